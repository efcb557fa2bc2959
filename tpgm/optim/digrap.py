"""Directional Gradient Projection (DiGraP, arXiv 2502.15895), in this project's reading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tpgm import check
from tpgm._engine.passes import Passes
from tpgm._engine.sharded import Shards
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

    @check.keywords
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
                s["direction"] = torch.zeros_like(p, dtype=wide, requires_grad=False)
                for name, value in (("omega", 1.0), ("omega_exp_avg", 0.0), ("omega_exp_avg_sq", 0.0)):
                    s[name] = torch.full((), value, dtype=wide, device=p.device)

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        if not group["anchor"]:
            adam_step(group, params, grads, states)
            return
        passes, anchors, directions = Passes("l2"), [s["anchor"] for s in states], [s["direction"] for s in states]
        slopes, norms = passes.advance(grads, directions, params, anchors)  # from here on directions have a length
        along = passes.dots(grads, params, anchors)
        if shards is not None:
            slopes, norms, along = shards.add(slopes), shards.norms(norms), shards.add(along)
        n = torch.cat(norms)
        inverse = torch.where(n > 0, 1 / n, 0.0)
        conflict = torch.cat(along) * inverse
        for u, factor in zip(directions, (inverse * (conflict < 0)).unbind(), strict=True):
            u.mul_(factor)  # no conflict, no direction
        steps = torch.stack([s["step"] for s in states]) + 1
        omegas = adam_scalar(states, "omega", -torch.cat(slopes), steps, group["omega_lr"]).clamp(0.0, 1.0)
        store(states, "omega", omegas)
        removed = (omegas * conflict).unbind()
        kept = [
            torch.sub(g, w * s["direction"], out=torch.empty_like(g))
            for g, s, w in zip(grads, states, removed, strict=True)
        ]
        adam_step(group, params, kept, states)
