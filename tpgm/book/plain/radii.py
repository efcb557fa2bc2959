"""Plain twin of TPGM: the paper's algorithm 1 as written, with a deep copy and autograd through the projection.

Slow on purpose and short, to be read beside the paper; the tests hold `tpgm.TPGM` to it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tpgm.projection import Norm

EPS = 1e-8


class ReferenceTPGM:
    """The same algorithm as `tpgm.TPGM` for models without wrappers or tied weights, on one device.

    model: the model being trained. anchor: θ⁰ by parameter name, for exactly the parameters to constrain.
    lr, penalty, tv, unit, start as in `tpgm.TPGM`; groups: lists of parameter names.
    """

    def __init__(
        self,
        model: nn.Module,
        anchor: Mapping[str, Tensor],
        *,
        norm: Norm = "mars",
        lr: float = 1e-2,
        penalty: float = 0.0,
        tv: float = 0.0,
        groups: Sequence[Sequence[str]] = (),
        unit: str = "norm",
        start: str = "half-smallest",
    ) -> None:
        self.model, self.norm, self.penalty, self.tv, self.groups = model, norm, penalty, tv, groups
        self.anchor = {name: tensor.detach().clone() for name, tensor in anchor.items()}
        double = any(tensor.dtype == torch.float64 for tensor in anchor.values())
        dtype = torch.float64 if double else torch.float32
        self.gamma = torch.full((len(self.anchor),), math.inf, dtype=dtype, requires_grad=True)
        self.start = start
        # Adam moves each radius with a step of its own if lr is for each weight
        self.unit = [1.0 if unit == "norm" else self.entries(t) for t in self.anchor.values()]
        self.scaled = nn.Parameter(torch.zeros_like(self.gamma))
        self.adam = torch.optim.Adam([self.scaled], lr=lr)

    def entries(self, tensor: Tensor) -> float:
        """The norm of a displacement of 1 in every weight of a row (or of the tensor)."""
        if self.norm == "l2":
            return math.sqrt(tensor.numel())
        return tensor.numel() / (len(tensor) if tensor.dim() > 1 else 1)

    def displacement(self, name: str) -> tuple[Tensor, Tensor]:
        """Δ (float32 or float64) and its norms n, with dimensions kept so that they broadcast over Δ."""
        weight, start = self.model.get_parameter(name).detach(), self.anchor[name]
        delta = weight - start if weight.dtype == torch.float64 else weight.float() - start.float()
        if self.norm == "l2":
            return delta, delta.norm().reshape([1] * delta.dim())
        rows = tuple(range(1, delta.dim())) if delta.dim() > 1 else tuple(range(delta.dim()))
        return delta, delta.abs().sum(dim=rows, keepdim=True)

    def clip_radii(self, start: bool) -> None:
        """Start the radii of tensors that have now moved at half the smallest norm; clip all to [1e-8, largest]."""
        with torch.no_grad():
            for l, name in enumerate(self.anchor):
                _, n = self.displacement(name)
                if n.max() == 0:
                    continue
                if start and self.gamma[l].isinf():
                    self.gamma[l] = n.max() if self.start == "largest" else n.min() / 2
                if not self.gamma[l].isinf():
                    self.gamma[l] = self.gamma[l].clamp(max=n.max()).clamp(min=EPS)

    def project(self, name: str, radius: Tensor) -> tuple[Tensor, Tensor]:
        """``Π(θ, γ) = θ⁰ + Δ clip(γ / (n + 1e-8), 0, 1)``, differentiable in γ, and the ratios."""
        delta, n = self.displacement(name)
        ratio = radius.to(n) / (n + EPS)
        # clip to [0, 1]; written so that the gradient counts at ratio 1, where torch.clamp's depends on its version
        ratio = torch.where((n > 0) & (ratio <= 1), ratio, 1.0)
        weight = self.model.get_parameter(name)
        return (self.anchor[name].to(delta) + ratio * delta).to(weight.dtype), ratio

    def update(self, loss_of: Callable[[nn.Module], Tensor]) -> float:
        """One projection update; `loss_of(model)` is the validation loss of a model."""
        self.clip_radii(start=True)
        projected = copy.deepcopy(self.model).eval()
        alpha = {}
        for l, name in enumerate(self.anchor):
            weight, ratio = self.project(name, self.gamma[l])
            alpha[name] = ratio.mean()
            path, _, leaf = name.rpartition(".")
            module = projected.get_submodule(path)
            delattr(module, leaf)  # a plain tensor takes the Parameter's place, so that autograd reaches γ
            setattr(module, leaf, weight)
        loss = loss_of(projected)
        in_force = dict(zip(self.anchor, self.gamma.detach().isfinite(), strict=True))
        total = loss + self.penalty * self.gamma[self.gamma.isfinite()].square().sum()
        for group in self.groups:
            for a, b in itertools.pairwise(name for name in self.anchor if name in group):
                if in_force[a] and in_force[b]:
                    total = total + self.tv * (alpha[a] - alpha[b]).abs()
        (slope,) = torch.autograd.grad(total, [self.gamma])
        unit = torch.tensor(self.unit, dtype=slope.dtype)
        with torch.no_grad():
            self.scaled.copy_(self.gamma / unit)
            self.scaled.grad = slope * unit
            self.adam.step()
            self.gamma.copy_(self.scaled * unit)
        return loss.item()

    @torch.no_grad()
    def project_(self) -> None:
        """Projection of the model's weights in place."""
        self.clip_radii(start=False)
        for l, name in enumerate(self.anchor):
            self.model.get_parameter(name).copy_(self.project(name, self.gamma[l])[0])
