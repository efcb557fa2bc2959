"""Checks of chapter 1: wider radii fit training data better, and the algorithm as written is the package's."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tpgm.book.linear.checks import Check, identity, inequality
from tpgm.book.linear.inner import solve_inner
from tpgm.book.linear.problem import Array
from tpgm.book.plain.radii import ReferenceTPGM
from tpgm.constraint import TPGM
from tpgm.projection import project


def _training_loss(gram: Array, moment: Array, displacement: Array) -> Array:
    """``vᵀGv − 2cᵀv``, the training loss up to a constant."""
    loss: Array = np.einsum("...i,...ij,...j", displacement, gram, displacement) - 2 * np.sum(
        moment * displacement, axis=-1
    )
    return loss


def wider_radii_fit_better(trials: int, rng: np.random.Generator) -> list[Check]:
    """The smallest training loss within radii γ is at least the one within γ' ≥ γ: training data want no constraint.

    Linear model, three layers, 12 weights, 20 samples; γ' exceeds γ in some layers and equals it in the others.
    """
    sizes = (2, 4, 6)
    x = rng.standard_normal((trials, 20, 12)) @ rng.standard_normal((trials, 12, 12))
    y = rng.standard_normal((trials, 20))
    gram, moment = x.transpose(0, 2, 1) @ x / 20, np.einsum("tni,tn->ti", x, y) / 20
    narrow = rng.lognormal(mean=-1, size=(trials, 3))
    wide = narrow * (1 + rng.lognormal(size=(trials, 3)) * (rng.random((trials, 3)) < 0.6))
    smallest = [
        _training_loss(gram, moment, solve_inner(gram, moment, radii, sizes).displacement) for radii in (narrow, wide)
    ]
    return [inequality("wider radii never raise the smallest training loss", smallest[0] - smallest[1], rounding=1e-9)]


def algorithm_as_written(trials: int, rng: np.random.Generator, *, steps: int = 8) -> list[Check]:
    """Algorithm 1, written out in plain code, against `tpgm.TPGM`: radii and weights after every one of `steps` steps.

    Random networks of three tensors in float64, SGD with momentum, MARS, two projection updates for each step.
    """
    radii: list[float] = []
    weights: list[float] = []
    for _ in range(trials):
        fast = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape))))
        plain = copy.deepcopy(fast)
        data = [
            (torch.from_numpy(rng.standard_normal((12, 3))), torch.from_numpy(rng.integers(2, size=12)))
            for _ in range(2)
        ]
        constraint = TPGM(fast, lr=0.05)
        twin = ReferenceTPGM(plain, {name: p.detach() for name, p in plain.named_parameters()}, lr=0.05)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (fast, plain)]

        def loss(model: nn.Module, part: int, data: list[tuple[Tensor, Tensor]] = data) -> Tensor:
            return cross_entropy(model(data[part][0]), data[part][1])

        for _ in range(steps):
            for model, optimizer in zip((fast, plain), optimizers, strict=True):
                optimizer.zero_grad()
                loss(model, 0).backward()
                optimizer.step()
            for _ in range(2):
                constraint.update(lambda: loss(fast, 1))  # noqa: B023  (called at once)
                twin.update(lambda model: loss(model, 1))
            constraint.project_()
            twin.project_()
            found = torch.tensor(list(constraint.radii.values()), dtype=torch.float64)
            radii.append(float((found - twin.gamma.detach()).abs().max() / twin.gamma.detach().max()))
            pairs = zip(fast.parameters(), plain.parameters(), strict=True)
            weights.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    return [
        identity("radii of the algorithm as written = tpgm.TPGM", max(radii), 0, trials=trials),
        identity("weights of the algorithm as written = tpgm.TPGM", max(weights), 0, trials=trials),
    ]


def projection_inside(trials: int, rng: np.random.Generator) -> list[Check]:
    """The slope of a radius by the chain rule, against autograd through the projection, for random matrices and losses.

    The gradient is taken at the projected weights, and the way in which they move is ``Δ_i/n_i`` in rows held back.
    """
    stated, autograd = [], []
    for _ in range(trials):
        anchor, delta = (torch.from_numpy(rng.standard_normal((4, 3))) for _ in range(2))
        x, y = torch.from_numpy(rng.standard_normal((8, 4))), torch.from_numpy(rng.standard_normal((8, 3)))
        norms = delta.abs().sum(dim=1)
        radius = torch.tensor(float(rng.uniform(0.1, 1.0) * float(norms.max())), dtype=torch.float64)
        radius.requires_grad_()
        loss = torch.tanh(x @ project(anchor + delta, anchor, radius) - y).square().mean()
        autograd.append(float(torch.autograd.grad(loss, radius)[0]))
        projected = project(anchor + delta, anchor, radius.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(torch.tanh(x @ projected - y).square().mean(), projected)
        way = torch.where((norms > radius.detach())[:, None], delta / norms[:, None], 0.0)
        stated.append(float((slope * way).sum()))
    return [identity("∂L_val/∂γ by the chain rule = autograd", stated, autograd, trials=trials)]
