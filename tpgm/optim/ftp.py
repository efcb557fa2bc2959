"""Fast Trainable Projection (FTP, arXiv 2310.19182): radii learned from the training gradient, in the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Never

import torch
from torch import Tensor
from torch.optim.sgd import sgd

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
from tpgm.projection import NORMS, Norm, count_rows, row_ratios

EPS = 1e-8  # the first radius, the smallest one, and the published code's guard in the ratio


class TrainableProjection(AnchoredOptimizer):
    """What `SGDP` and `AdamP` share: a base optimizer's step, then FTP's update of the radii and projection."""

    _wide = ("radius", "radius_exp_avg", "radius_exp_avg_sq", "displacement", "norms")

    @property
    def radii(self) -> dict[str, float]:
        """Radius γ of each constrained parameter that has taken a step, in the unit of the norm.

        Keys are parameter names, or the parameters' numbers as in ``state_dict()`` if they were given without names.
        """
        return {name: s["radius"].item() for name, s in self._learned("radius")}

    def ratios(self) -> dict[str, float]:
        """Ratio of each of those parameters at its last step: the mean over rows of clip(γ/(n + 1e-8), 0, 1)."""
        return {name: row_ratios(s["norms"], s["radius"], EPS).mean().item() for name, s in self._learned("radius")}

    def _check(self, group: Group) -> None:
        check.choice("norm", group["norm"], NORMS)
        require(group, "kappa", high=1.0)
        require(group, "radius_lr")

    def _norm(self, group: Group) -> Norm:
        norm: Norm = group["norm"]
        return norm

    def _prepare(self, group: Group, params: list[Tensor], states: list[State]) -> None:
        self._base_state(group, params, states)
        if group["anchor"]:
            _start(group["norm"], params, states)

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        self._base_step(group, params, grads, states)
        if group["anchor"]:
            _learn_and_project(group, params, grads, states, shards)

    def _base_state(self, group: Group, params: list[Tensor], states: list[State]) -> None:
        """What the base optimizer keeps, made where it is not there yet."""
        raise NotImplementedError

    def _base_step(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        """The unconstrained step, in place; counts it in each state's "step"."""
        raise NotImplementedError


def _start(norm: Norm, params: list[Tensor], states: list[State]) -> None:
    """Nothing has moved before the first step: its slope is 0 and the radius stays 1e-8."""
    for p, s in zip(params, states, strict=True):
        if "radius" not in s:
            wide = torch.float64 if p.dtype == torch.float64 else torch.float32
            s["displacement"] = torch.zeros_like(p, dtype=wide, requires_grad=False)
            rows = count_rows(p, norm)
            s["norms"] = torch.zeros(rows, dtype=wide, device=p.device)
            for name, value in (("radius", EPS), ("radius_exp_avg", 0.0), ("radius_exp_avg_sq", 0.0)):
                s[name] = s["norms"].new_full((), value)


def _learn_and_project(
    group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
) -> None:
    """Adam on the radii, with the gradients and last step's displacements; projection of the parameters in place."""
    norm: Norm = group["norm"]
    before = torch.cat([s["norms"] for s in states])
    passes, anchors = Passes(norm), [s["anchor"] for s in states]
    dots, norms = passes.advance(grads, [s["displacement"] for s in states], params, anchors)
    if shards is not None:
        dots, norms = shards.add(dots), shards.norms(norms)
    torch._foreach_copy_([s["norms"] for s in states], norms)
    after = torch.cat([s["norms"] for s in states])

    # the rows of all tensors lie end to end; `rows` says how many are whose
    counts = [len(s["norms"]) for s in states]
    rows = torch.tensor(counts, device=after.device)
    slopes = torch.segment_reduce(torch.cat(dots) / (before + EPS), "sum", lengths=rows, unsafe=True)
    slopes = torch.where(slopes > 0, group["kappa"] * slopes, slopes)
    radii = adam_scalar(states, "radius", slopes, torch.stack([s["step"] for s in states]), group["radius_lr"])
    largest = torch.segment_reduce(after, "max", lengths=rows, initial=0.0, unsafe=True)
    radii = radii.minimum(largest + EPS).clamp(min=EPS)  # at this end the ratio is exactly 1
    store(states, "radius", radii)

    ratios = row_ratios(after, radii.repeat_interleave(rows, output_size=len(after)), EPS)
    shares: Sequence[Tensor] = torch.split(ratios, counts)
    if shards is not None:
        shares = [shards.own(i, ratio) for i, ratio in enumerate(shares)]
    passes.scale(params, params, anchors, shares)


class SGDP(TrainableProjection):
    """SGD with momentum, projected onto learned radii (SGDP, arXiv 2310.19182).

    Every step: (1) θ̃ by SGD with momentum, as ``torch.optim.SGD``; Δ = θ̃ − θ⁰, row norms n. (2) The radius γ of each
    tensor takes one step of Adam with the gradient ``Σ_i ⟨g_i, Δ'_i⟩ / (n'_i + 1e-8)``, where g is the training
    gradient of this step and Δ', n' are those of the step before; where it is positive, so that γ would shrink, it is
    multiplied by κ. γ starts at 1e-8 and is clipped to [1e-8, max n + 1e-8], where the ratio is exactly 1. (3)
    ``θ_i ← θ⁰_i + Δ_i clip(γ/(n_i + 1e-8), 0, 1)``. The first step leaves the parameters within 1e-8 of the anchor. No
    validation data and no extra pass.

    lr: at least 0; 1e-2 is published, 1e-1 for 10 % of the labels. momentum, nesterov: 0.9 and True are published.
    weight_decay: L2 term in the gradient of the base step (not in the radius's), published 0. kappa: κ in [0, 1]; 1,
    the default, constrains most, at 0 no gradient tightens a radius. norm: "mars" (L1 norm of each row; rows are the
    first dimension) or "l2" (one Euclidean norm). radius_lr: step size of Adam on the radii, in the unit of the norm;
    published 1e-2. All of them and the anchor can be set for each group.
    For params and anchor, the state and its precision see `AnchoredOptimizer`; beside the anchor the state holds one
    float32 tensor of the parameter's shape, the last displacement.

    Raises ValueError for a setting outside its range, an unknown norm, or an anchor that does not fit.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        *,
        anchor: Anchors = None,
        kappa: float = 1.0,
        norm: Norm = "mars",
        radius_lr: float = 1e-2,
        **unknown: Never,
    ) -> None:
        base = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, anchor, {**base, "kappa": kappa, "norm": norm, "radius_lr": radius_lr}, unknown)

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "momentum")
        check.flag("nesterov", group["nesterov"])
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov needs a momentum above 0; without momentum give nesterov=False")

    def _base_state(self, group: Group, params: list[Tensor], states: list[State]) -> None:
        for p, s in zip(params, states, strict=True):
            if "step" not in s:
                s["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            if group["momentum"] and "momentum_buffer" not in s:
                s["momentum_buffer"] = torch.zeros_like(p)

    def _base_step(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        torch._foreach_add_([s["step"] for s in states], 1)
        first = params[0]
        sgd(
            params,
            grads,
            [s.get("momentum_buffer") for s in states],
            # on a CPU torch 2.6 leaves half-precision weights where they are
            fused=first.device.type != "cpu" or first.dtype in (torch.float32, torch.float64),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )


class AdamP(TrainableProjection):
    """AdamW, projected onto learned radii (AdamP, arXiv 2310.19182). Not the AdamP of arXiv 2006.08217.

    As `SGDP`, with θ̃ by Adam and decoupled weight decay, as ``torch.optim.AdamW``.

    lr: at least 0; 1e-4 is published. betas, eps, weight_decay: as in ``torch.optim.AdamW``; weight decay pulls to
    zero, not to the anchor, and is 0 as published. anchor, kappa, norm, radius_lr and what is raised: as in `SGDP`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        anchor: Anchors = None,
        kappa: float = 1.0,
        norm: Norm = "mars",
        radius_lr: float = 1e-2,
        **unknown: Never,
    ) -> None:
        base = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, anchor, {**base, "kappa": kappa, "norm": norm, "radius_lr": radius_lr}, unknown)

    def _check(self, group: Group) -> None:
        super()._check(group)
        require_adam(group)

    def _base_state(self, group: Group, params: list[Tensor], states: list[State]) -> None:
        adam_state(params, states)

    def _base_step(self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
        adam_step(group, params, grads, states)
