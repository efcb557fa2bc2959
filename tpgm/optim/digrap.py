"""Directional Gradient Projection (DiGraP, arXiv 2502.15895): what leads away from the anchor is projected out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Never

import torch
from torch import Tensor

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
from tpgm.projection import upcast


class DiGraP(AnchoredOptimizer):
    """AdamW on a gradient from which a learned part of what leads away from the anchor is removed (arXiv 2502.15895).

    For each tensor, with Δ = θ − θ⁰, ``P = ⟨g, Δ⟩/‖Δ‖² · Δ`` is the gradient's component along the displacement (0
    where nothing has moved). Where ``⟨g, Δ⟩ < 0`` descent leads away from the anchor, and Adam gets ``g − ω P``;
    elsewhere it gets g. ω starts at 0, no projection, and takes one step of Adam in every step, with the gradient
    ``⟨ĝ, P̂'⟩``; it is clipped to [0, 1]. P' is the component of the step before, with or without a conflict then. The
    hats divide each row, a line of numbers along dimension 1, by its Euclidean norm, or by 1e-12 if that is larger. So
    ω falls while gradients keep their side of the anchor, and rises when they change it.

    This is Algorithm 1 of the paper. It leaves the normalisation open; by rows, as here, is how the authors'
    development code does it. That code stops at tensors of fewer than two dimensions, which here are one row each: this
    project's addition.

    lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``; weight_decay, which pulls towards zero, is 0. omega_lr:
    step size of Adam on ω (the paper's μ), at least 0; 0.5 is published. All of them and the anchor can be set for each
    group. For params and anchor, the state and its precision see `AnchoredOptimizer`; beside the anchor the state holds
    one float32 tensor of the parameter's shape, the component P.

    Raises ValueError for a setting outside its range or an anchor that does not fit.
    """

    _wide = ("omega", "omega_exp_avg", "omega_exp_avg_sq", "component")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        anchor: Anchors = None,
        omega_lr: float = 0.5,
        **unknown: Never,
    ) -> None:
        base = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, anchor, {**base, "omega_lr": omega_lr}, unknown)

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
                s["component"] = torch.zeros_like(p, dtype=wide, requires_grad=False)
                for name, value in (("omega", 0.0), ("omega_exp_avg", 0.0), ("omega_exp_avg_sq", 0.0)):
                    s[name] = torch.full((), value, dtype=wide, device=p.device)

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        if not group["anchor"]:
            adam_step(group, params, grads, states)
            return
        passes, anchors, components = Passes("l2"), [s["anchor"] for s in states], [s["component"] for s in states]
        slopes = _cosines(grads, components, shards)
        _, norms = passes.advance(grads, components, params, anchors)  # the displacements, for the time being
        along = passes.dots(grads, params, anchors)
        if shards is not None:
            norms, along = shards.norms(norms), shards.add(along)
        n = torch.cat(norms)
        inverse = torch.where(n > 0, 1 / n, 0.0)
        length = torch.cat(along) * inverse
        for component, factor in zip(components, (length * inverse).unbind(), strict=True):
            component.mul_(factor)
        steps = torch.stack([s["step"] for s in states]) + 1
        omegas = adam_scalar(states, "omega", slopes, steps, group["omega_lr"]).clamp(0.0, 1.0)
        store(states, "omega", omegas)
        removed = (omegas * (length < 0)).unbind()
        kept = [
            torch.sub(g, w * s["component"], out=torch.empty_like(g))
            for g, s, w in zip(grads, states, removed, strict=True)
        ]
        adam_step(group, params, kept, states)


def _cosines(grads: list[Tensor], components: list[Tensor], shards: Shards | None) -> Tensor:
    """``⟨ĝ, P̂⟩`` for each parameter: cosines of rows along dimension 1, added up; shape (parameters,)."""
    sums = []
    for g, component in zip(grads, components, strict=True):
        x, y = (t if t.dim() > 1 else t.reshape(1, -1) for t in (upcast(g), component))
        sums.append(torch.stack([(x * y).sum(1), x.square().sum(1), y.square().sum(1)]))
    if shards is not None:
        sums = shards.lines(sums)
    cosines = [(s[0] / s[1:].sqrt().clamp(min=1e-12).prod(0)).sum().reshape(1) for s in sums]
    return torch.cat(cosines if shards is None else shards.over_lines(cosines))
