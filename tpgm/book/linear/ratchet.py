"""Every-step TPGM on fresh mini-batches of the linear model: the vote of a batch on a radius, and the ratchet.

Book chapter 5. The anchor is 0, inputs are isotropic, ``Σ = I``, norms are L2 and there is one projection update a
training step. Many runs go side by side; `run_package` is the same with the package's own `tpgm.TPGM`, a run at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from tpgm.book.linear.alternation import collapse_expected
from tpgm.book.linear.inner import indicator, norms_by_layer
from tpgm.book.linear.problem import Array, layer_slices
from tpgm.constraint import EPS, TPGM

BETAS, ADAM_EPS = (0.9, 0.999), 1e-8  # torch's


@dataclass(frozen=True)
class Stream:
    """Fresh Gaussian batches at every step: n training and m validation samples, ``y = xᵀδ + σε``.

    distances: (L,) the layers' squared distances ``s_l`` to the optimum; sizes: (L,) their numbers of weights ``d_l``;
    step_size ``η`` of SGD on the mean squared error.
    """

    distances: tuple[float, ...]
    sizes: tuple[int, ...]
    n: int = 8
    m: int = 8
    noise: float = 1.0
    step_size: float = 0.002
    steps: int = 200

    @property
    def d(self) -> int:
        return sum(self.sizes)

    @property
    def start_risk(self) -> float:
        """``R₀ = S + σ²``, the risk of the pre-trained weights."""
        return sum(self.distances) + self.noise**2

    def optimum(self, rng: np.random.Generator) -> Array:
        """``δ``, (d,): random directions of length ``√s_l`` in each layer."""
        way = rng.standard_normal(self.d)
        return way * np.repeat(np.sqrt(self.distances) / norms_by_layer(way, self.sizes), self.sizes)

    def batch(self, rng: np.random.Generator, optimum: Array, rows: int) -> tuple[Array, Array]:
        x = rng.standard_normal((rows, self.d))
        return x, x @ optimum + self.noise * rng.standard_normal(rows)


class Path(NamedTuple):
    """What C runs did, after each of T steps: radii, norms, lengths of the training step (T, C, L), risk (T, C).

    radii are infinite before the first projection update.
    """

    radii: Array
    lengths: Array
    norms: Array
    risk: Array


def gradient(x: Array, y: Array, v: Array) -> Array:
    """Of the mean squared error of displacements v (C, d) on one batch, (C, d)."""
    result: Array = 2 / len(y) * (v @ x.T - y) @ x
    return result


def run(stream: Stream, radius_lr: ArrayLike, warmup: ArrayLike, seed: int = 0, start: str = "half-smallest") -> Path:
    """C runs on the same batches. radius_lr, warmup: (C,), Adam's step and the number of free steps at first.

    start: the first radius, half of the displacement's norm or ("largest") all of it. A run whose warm-up has `steps`
    steps is plain SGD.
    """
    lr, free = np.broadcast_arrays(np.asarray(radius_lr, float), np.asarray(warmup, int))
    rng = np.random.default_rng(seed)
    optimum, layer = stream.optimum(rng), indicator(stream.sizes)
    count, (slow, fast) = (lr.size, len(stream.sizes)), BETAS
    v, radii = np.zeros((lr.size, stream.d)), np.full(count, np.inf)
    first, second, age = np.zeros(count), np.zeros(count), np.zeros((lr.size, 1))
    path: list[tuple[Array, Array, Array, Array]] = []
    for step in range(stream.steps):
        ahead = v - stream.step_size * gradient(*stream.batch(rng, optimum, stream.n), v)
        lengths, norms = norms_by_layer(ahead - v, stream.sizes), norms_by_layer(ahead, stream.sizes)
        on = (step >= free)[:, None]
        begin = norms if start == "largest" else norms / 2
        gamma = np.maximum(np.minimum(np.where(np.isinf(radii), begin, radii), norms), EPS)
        shrunk = np.minimum(1.0, gamma / (norms + EPS)) @ layer.T * ahead
        slope = gradient(*stream.batch(rng, optimum, stream.m), shrunk) * ahead @ layer / (norms + EPS)
        slope = np.where(gamma / (norms + EPS) <= 1, slope, 0.0)
        age = age + on
        first = np.where(on, slow * first + (1 - slow) * slope, first)
        second = np.where(on, fast * second + (1 - fast) * slope**2, second)
        safe = np.maximum(age, 1)
        move = first / (1 - slow**safe) / (np.sqrt(second / (1 - fast**safe)) + ADAM_EPS)
        gamma = np.maximum(gamma - lr[:, None] * move, EPS)
        gamma = np.maximum(np.minimum(gamma, norms), EPS)
        v = np.where(on, np.minimum(1.0, gamma / (norms + EPS)) @ layer.T, 1.0) * ahead
        radii = np.where(on, gamma, np.inf)
        risk = stream.noise**2 + np.sum((v - optimum) ** 2, axis=1)
        path.append((radii, lengths, norms_by_layer(v, stream.sizes), risk))
    return Path(*(np.stack(part) for part in zip(*path, strict=True)))


class Layers(nn.Module):
    """One float64 parameter a layer, starting at its anchor 0; shapes of two dimensions have rows (MARS)."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes)

    @property
    def vector(self) -> torch.Tensor:
        return torch.cat([part.reshape(-1) for part in self.parts])

    def loss(self, x: Array, y: Array) -> torch.Tensor:
        return (torch.from_numpy(x) @ self.vector - torch.from_numpy(y)).square().mean()


@collapse_expected()
def run_package(
    stream: Stream,
    radius_lr: float,
    warmup: int,
    seed: int = 0,
    *,
    shapes: Sequence[tuple[int, ...]] | None = None,
    **settings: str,
) -> Path:
    """One run (C = 1) of the package's TPGM on the same batches as `run`.

    shapes: of the layers' tensors, by default vectors; settings: of `tpgm.TPGM`, by default ``norm="l2"``. `lengths`
    and `norms` are in the unit of the norm: with "mars" those of the row where they are largest.
    """
    rng = np.random.default_rng(seed)
    optimum = stream.optimum(rng)
    model = Layers(shapes or [(size,) for size in stream.sizes])
    constraint = TPGM(model, **{"norm": "l2", "lr": radius_lr, **settings})  # type: ignore[arg-type]
    mars = constraint.norm == "mars"
    optimizer = torch.optim.SGD(model.parameters(), lr=stream.step_size)

    def measured(vector: Array) -> Array:
        parts = [
            vector[at].reshape(part.shape) for at, part in zip(layer_slices(stream.sizes), model.parts, strict=True)
        ]
        return np.array([np.abs(np.atleast_2d(p)).sum(axis=1).max() if mars else np.linalg.norm(p) for p in parts])

    path = []
    for step in range(stream.steps):
        before = model.vector.detach().numpy()
        optimizer.zero_grad()
        model.loss(*stream.batch(rng, optimum, stream.n)).backward()
        optimizer.step()
        lengths = measured(model.vector.detach().numpy() - before)
        batch = stream.batch(rng, optimum, stream.m)
        if step >= warmup:
            constraint.update(lambda batch=batch: model.loss(*batch))  # type: ignore[misc]
            constraint.project_()
        v = model.vector.detach().numpy()
        radii = np.array(list(constraint.radii.values()))
        path.append((radii, lengths, measured(v), np.float64(stream.noise**2 + np.sum((v - optimum) ** 2))))
    return Path(*(np.stack(part)[:, None] for part in zip(*path, strict=True)))
