"""Plain twins of the optimizers: each algorithm as one loop, to be held beside its paper.

Every function starts at the anchor, `weights`, takes `steps` steps and returns the weights it ends with; `gradient(w,
t)` is the training gradient at the weights w in step t = 1, 2, … Slow and short on purpose: plain arithmetic on
float32 or float64 tensors, no groups, no state to save. The tests hold `tpgm.optim` to these functions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tpgm.projection import Norm

Gradient = Callable[[list[Tensor], int], list[Tensor]]


def row_norms(delta: Tensor, norm: Norm) -> Tensor:
    """n_i with dimensions kept, so that they broadcast over Δ."""
    if norm == "l2":
        return delta.square().sum().sqrt().reshape([1] * delta.dim())
    rows = tuple(range(1 if delta.dim() > 1 else 0, delta.dim()))
    return delta.abs().sum(dim=rows, keepdim=True)


class Adam:
    """Adam's direction m̂ / (√v̂ + ε) for one tensor."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas, self.eps, self.t = betas, eps, 0
        self.m: Tensor | float = 0.0
        self.v: Tensor | float = 0.0

    def __call__(self, g: Tensor) -> Tensor:
        (b1, b2), self.t = self.betas, self.t + 1
        self.m = m = b1 * self.m + (1 - b1) * g
        self.v = v = b2 * self.v + (1 - b2) * g * g
        return (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + self.eps)


class Projection:
    """FTP's radius and projection for one tensor (arXiv 2310.19182)."""

    def __init__(self, start: Tensor, kappa: float, norm: Norm, radius_lr: float) -> None:
        self.start, self.kappa, self.norm, self.lr = start, kappa, norm, radius_lr
        self.gamma, self.adam = start.new_tensor(1e-8), Adam()
        self.delta = torch.zeros_like(start)

    def __call__(self, tilde: Tensor, g: Tensor) -> Tensor:
        unit = self.delta / (row_norms(self.delta, self.norm) + 1e-8)
        slope = (g * unit).sum()
        if slope > 0:
            slope = self.kappa * slope
        self.delta = tilde - self.start
        n = row_norms(self.delta, self.norm)
        gamma = self.gamma - self.lr * self.adam(slope)
        self.gamma = torch.clamp(torch.minimum(gamma, n.max() + 1e-8), min=1e-8)
        return self.start + torch.clamp(self.gamma / (n + 1e-8), 0, 1) * self.delta


def sgdp(
    weights: list[Tensor],
    gradient: Gradient,
    steps: int,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    kappa: float = 1.0,
    norm: Norm = "mars",
    radius_lr: float = 1e-2,
) -> list[Tensor]:
    """SGDP (arXiv 2310.19182): SGD with momentum, then the projection."""
    projections = [Projection(w, kappa, norm, radius_lr) for w in weights]
    buffers = [torch.zeros_like(w) for w in weights]
    for t in range(1, steps + 1):
        grads = gradient(weights, t)
        for l, (w, g) in enumerate(zip(weights, grads, strict=True)):
            decayed = g + weight_decay * w
            buffers[l] = momentum * buffers[l] + decayed
            direction = decayed + momentum * buffers[l] if nesterov else buffers[l]
            weights = [*weights[:l], projections[l](w - lr * direction, g), *weights[l + 1 :]]
    return weights


def adamp(
    weights: list[Tensor],
    gradient: Gradient,
    steps: int,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    kappa: float = 1.0,
    norm: Norm = "mars",
    radius_lr: float = 1e-2,
) -> list[Tensor]:
    """AdamP (arXiv 2310.19182): Adam with decoupled weight decay, then the projection."""
    projections = [Projection(w, kappa, norm, radius_lr) for w in weights]
    adams = [Adam(betas, eps) for _ in weights]
    for t in range(1, steps + 1):
        grads = gradient(weights, t)
        for l, (w, g) in enumerate(zip(weights, grads, strict=True)):
            tilde = w - lr * (adams[l](g) + weight_decay * w)
            weights = [*weights[:l], projections[l](tilde, g), *weights[l + 1 :]]
    return weights


def adam_spd(
    weights: list[Tensor],
    gradient: Gradient,
    steps: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    strength: float = 1.0,
) -> list[Tensor]:
    """AdamSPD (arXiv 2411.01713): Adam, then decay towards the anchor where the gradient points back to it."""
    start, adams = weights, [Adam(betas, eps) for _ in weights]
    for t in range(1, steps + 1):
        grads = gradient(weights, t)
        for l, (w, g) in enumerate(zip(weights, grads, strict=True)):
            new = w - lr * (adams[l](g) + weight_decay * w)
            before, after = (w - start[l]).norm(), (new - start[l]).norm()
            if (g * (w - start[l])).sum() > 0 and after > before:
                r = (after - before) / after
                new = new - strength * r * (new - start[l])
            weights = [*weights[:l], new, *weights[l + 1 :]]
    return weights


def normalized(x: Tensor) -> Tensor:
    """Each row, a line of numbers along dimension 1, over its Euclidean norm; a vector is one row."""
    rows = x if x.dim() > 1 else x.reshape(1, -1)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths.clamp(min=1e-12)


def digrap(
    weights: list[Tensor],
    gradient: Gradient,
    steps: int,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    omega_lr: float = 0.5,
) -> list[Tensor]:
    """DiGraP (arXiv 2502.15895, algorithm 1): Adam on the gradient without a share of what leads from the anchor."""
    start, adams = weights, [Adam(betas, eps) for _ in weights]
    omegas, omega_adams = [w.new_tensor(0.0) for w in weights], [Adam() for _ in weights]
    projections = [torch.zeros_like(w) for w in weights]
    for t in range(1, steps + 1):
        grads = gradient(weights, t)
        for l, (w, g) in enumerate(zip(weights, grads, strict=True)):
            slope = (normalized(g) * normalized(projections[l])).sum()
            omegas[l] = torch.clamp(omegas[l] - omega_lr * omega_adams[l](slope), 0, 1)
            delta = w - start[l]
            along = (g * delta).sum()
            projections[l] = along / (delta * delta).sum() * delta if delta.norm() > 0 else delta
            if along < 0:
                g = g - omegas[l] * projections[l]
            weights = [*weights[:l], w - lr * (adams[l](g) + weight_decay * w), *weights[l + 1 :]]
    return weights
