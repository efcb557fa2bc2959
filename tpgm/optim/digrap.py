"""Directional Gradient Projection (DiGraP, arXiv 2502.15895), in this project's reading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tpgm.optim.anchored import (
    AnchoredOptimizer,
    Anchors,
    Group,
    State,
    adam_scalar,
    adam_state,
    adam_step,
    require,
    require_adam,
    store,
)
from tpgm.projection import upcast
from tpgm.sharded import Shards


class DiGraP(AnchoredOptimizer):
    """AdamW on a gradient from which a learned part of what leads away from the anchor is removed (arXiv 2502.15895).

    With ``u = (θ − θ⁰)/‖θ − θ⁰‖`` for each tensor (0 where it has not moved), the gradient g and the pull to the anchor
    conflict where ``c = min(⟨g, u⟩, 0)`` is negative: descent leads away. Adam gets ``g − ω c u``, with ω in [0, 1].
    ω takes one step of Adam in every step, with the gradient ``−⟨g, u'⟩`` where u' is the direction of the step before
    if there was a conflict then, else 0; it is clipped to [0, 1].

    **This is the project's reading, not the published algorithm to the letter.** The paper says that the conflicting
    component is projected out to a learned extent; the rest is ours: ω's gradient (the chain rule through a plain
    gradient step, without the positive factor ``lr · |c'|``, which Adam on ω would mostly cancel), its start at 1, the
    strongest, and Adam with step size 1e-2, both as in FTP.

    lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``; weight_decay, which pulls towards zero, is 0. omega_lr:
    step size of Adam on ω, at least 0. All of them and the anchor can be set for each group. For params and anchor, the
    state and its precision see `AnchoredOptimizer`; beside the anchor the state holds one float32 tensor of the
    parameter's shape, the direction.

    Raises ValueError for a setting outside its range or an anchor that does not fit.
    """

    _wide = ("omega", "omega_exp_avg", "omega_exp_avg_sq", "direction")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        anchor: Anchors = None,
        omega_lr: float = 1e-2,
    ) -> None:
        base = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, anchor, {**base, "omega_lr": omega_lr})

    @property
    def omegas(self) -> dict[str, float]:
        """ω of each constrained parameter that has taken a step, by name, or by number as in ``state_dict()``."""
        return {name: s["omega"].item() for name, s in self._learned("omega")}

    def _check(self, group: Group) -> None:
        require_adam(group)
        require(group, "omega_lr")

    def _prepare(self, group: Group, params: list[Tensor], states: list[State]) -> None:
        adam_state(params, states)
        for p, s in zip(params, states, strict=True):
            if group["anchor"] and "omega" not in s:
                wide = torch.float64 if p.dtype == torch.float64 else torch.float32
                s["direction"] = torch.zeros_like(p, dtype=wide, memory_format=torch.contiguous_format)
                for name, value in (("omega", 1.0), ("omega_exp_avg", 0.0), ("omega_exp_avg_sq", 0.0)):
                    s[name] = torch.full((), value, dtype=wide, device=p.device)

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        if not group["anchor"]:
            adam_step(group, params, grads, states)
            return
        flat = [upcast(g).reshape(-1) for g in grads]
        directions = [s["direction"].view(-1) for s in states]

        def along() -> Tensor:
            """⟨g, u⟩ of each tensor."""
            own = [torch.dot(g, u).reshape(1) for g, u in zip(flat, directions, strict=True)]
            return torch.cat(own if shards is None else shards.add(own))

        slopes = -along()
        for p, s in zip(params, states, strict=True):
            torch.sub(upcast(p), s["anchor"], out=s["direction"])
        norms = [torch.linalg.vector_norm(u).reshape(1) for u in directions]
        norms = norms if shards is None else shards.norms(norms)
        for u, n in zip(directions, norms, strict=True):
            u.mul_(torch.where(n > 0, 1 / n, 0.0))
        conflict = along()
        for u, c in zip(directions, conflict, strict=True):
            u.mul_(c < 0)  # no conflict, no direction
        steps = torch.stack([s["step"] for s in states]) + 1
        omegas = adam_scalar(states, "omega", slopes, steps, group["omega_lr"]).clamp(0.0, 1.0)
        store(states, "omega", omegas)
        removed = (omegas * conflict).unbind()
        # in the layout of the gradient, on which torch's fused kernels rely
        kept = [
            torch.sub(g, w * s["direction"], out=torch.empty_like(g))
            for g, s, w in zip(grads, states, removed, strict=True)
        ]
        adam_step(group, params, kept, states)
