"""Selective Projection Decay (SPD, arXiv 2411.01713): decay towards the anchor where the gradient asks to come back."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
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
    adam_step,
    require,
    require_adam,
)


class AdamSPD(AnchoredOptimizer):
    """AdamW with selective projection decay (AdamSPD, arXiv 2411.01713).

    Every step takes each tensor from θ to θ̃ as ``torch.optim.AdamW`` would. If ``⟨g, θ − θ⁰⟩ > 0`` (the negative
    gradient points back to the anchor) and the distance has grown all the same, then
    ``θ ← θ̃ − λ r (θ̃ − θ⁰)`` with ``r = clip((‖θ̃ − θ⁰‖ − ‖θ − θ⁰‖) / ‖θ̃ − θ⁰‖, 0, 1)``; norms are Euclidean, over the
    tensor. λ = 1 takes back all of the growth: a projection onto the sphere of the distance before the step.

    lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``, but weight_decay, which pulls towards zero, is 0: SPD is
    meant in its place. strength: λ, at least 0; 0 is AdamW, 1 is where the paper says to begin. All of them and the
    anchor can be set for each group; "zero" is the anchor for adapters. For params and anchor, the state and its
    precision see `AnchoredOptimizer`.

    Raises ValueError for a setting outside its range or an anchor that does not fit.
    """

    @check.keywords
    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        anchor: Anchors = None,
        strength: float = 1.0,
    ) -> None:
        base = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, anchor, {**base, "strength": strength})

    def _check(self, group: Group) -> None:
        require_adam(group)
        require(group, "strength")

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        if not (group["anchor"] and group["strength"]):
            adam_step(group, params, grads, states)
            return
        passes, anchors = Passes("l2"), [s["anchor"] for s in states]
        dots = passes.dots(grads, params, anchors)
        back = torch.cat(dots if shards is None else shards.add(dots)) > 0
        # a CPU skips the tensors that Adam moves freely; a GPU would have to wait to know them
        chosen = back.tolist() if back.device.type == "cpu" else [True] * len(params)
        pulled, towards = list(compress(params, chosen)), list(compress(anchors, chosen))

        def norms() -> Tensor:
            found = iter(passes.measure(pulled, towards))
            own = [next(found) if wanted else dot.new_zeros(1) for wanted, dot in zip(chosen, dots, strict=True)]
            return torch.cat(own if shards is None else shards.norms(own))

        before = norms()
        adam_step(group, params, grads, states)
        after = norms()
        growth = torch.where(after > 0, (after - before) / after, 0.0).clamp(0.0, 1.0)
        ratios = torch.where(back, 1.0 - group["strength"] * growth, 1.0)
        passes.scale(pulled, pulled, towards, list(compress(torch.split(ratios, 1), chosen)))
