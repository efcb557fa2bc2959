"""Checks of chapter 5's theory of MARS radii: what alternation rests at, and the kinks of the outer loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tpgm.book.linear.checks import Check, identity, inequality
from tpgm.book.linear.inner import norms_by_layer, solve_inner
from tpgm.book.linear.mars import lengths, mars, nearest, outer_loss, rows_of, settle, training_loss
from tpgm.book.linear.problem import Array, layer_slices
from tpgm.book.linear.ratchet import Layers
from tpgm.book.linear.verify_bilevel import GUARD_TOLERANCE, random_spd
from tpgm.constraint import TPGM

SHAPES = ((2, 3), (3, 2))  # two layers, rows times columns


def draw(problems: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """G (P, d, d) with eigenvalues in [0.3, 3.2], c (P, d), and radii of the rows (P, rows), shared in each layer."""
    sizes, layer = rows_of(SHAPES)
    values, vectors = np.linalg.eigh(random_spd(rng, problems, sum(sizes)))
    gram = (vectors * np.sqrt(values)[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    target = rng.standard_normal((problems, sum(sizes)))
    moment = np.einsum("pij,pj->pi", gram, target)
    norms = lengths(target, sizes)
    largest = np.stack([norms[:, layer == l].max(axis=1) for l in range(len(SHAPES))], axis=1)
    return gram, moment, (largest * rng.uniform(0.15, 0.9, largest.shape))[:, layer]


def at_rest(
    problems: int, rng: np.random.Generator, project: Callable[..., Array] = mars, packages: int = 20
) -> list[Check]:
    """Alternation at fixed MARS radii against an inner problem with row-wise L2 balls; tests break `project`."""
    sizes, _ = rows_of(SHAPES)
    gram, moment, radii = draw(problems, rng)
    rest = settle(gram, moment, radii, sizes, project, steps=600)
    least = settle(gram, moment, radii, sizes, nearest, steps=600)
    inner = solve_inner(gram, moment, norms_by_layer(rest, sizes), sizes)
    above = training_loss(gram, moment, rest) - training_loss(gram, moment, least)
    pull = moment - np.einsum("pij,pj->pi", gram, least)
    # no other point of a row's L1 ball has a larger product with the pull: the variational inequality of the minimum
    blocks = layer_slices(sizes)
    reach = np.stack([np.abs(pull[:, at]).max(axis=1) for at in blocks], axis=1) * radii
    gained = np.stack([np.sum(pull[:, at] * least[:, at], axis=1) for at in blocks], axis=1)
    return [
        identity("MARS: at rest = inner solution of rows' L2 balls", rest, inner.displacement, trials=problems),
        inequality("MARS: at rest no better than the inner solution", above, rounding=1e-9),
        identity("MARS: inner solution, its own condition", reach, gained, trials=problems, scale=1.0),
        Check(
            "MARS: the package rests there",
            "identity",
            _package(gram, moment, radii, rest, packages),
            packages,
            GUARD_TOLERANCE,
        ),
    ]


def _package(gram: Array, moment: Array, radii: Array, rest: Array, packages: int) -> float:
    """How far a training step and `TPGM.project_` at these radii take the weights from where they rest."""
    _, layer = rows_of(SHAPES)
    first = [int(np.flatnonzero(layer == l)[0]) for l in range(len(SHAPES))]
    error = 0.0
    for k in range(min(packages, len(gram))):
        model = Layers(SHAPES)
        constraint = TPGM(model, norm="mars")
        state = constraint.state_dict()
        state["radii"] = dict(zip(state["radii"], torch.from_numpy(radii[k, first]), strict=True))
        constraint.load_state_dict(state)
        ahead = rest[k] - 0.3 / np.linalg.eigvalsh(gram[k])[-1] * (gram[k] @ rest[k] - moment[k])
        torch.nn.utils.vector_to_parameters(torch.from_numpy(ahead), model.parameters())
        constraint.project_()
        error = max(error, float(np.max(np.abs(model.vector.detach().numpy() - rest[k]))))
    return error


def example() -> list[Check]:
    """One row of two weights: ``G = I``, ``Δ = (2, 1)``, ``γ = 1``."""
    gram, moment, radii = np.eye(2)[None], np.array([[2.0, 1.0]]), np.array([[1.0]])
    rest, least = (settle(gram, moment, radii, (2,), project, steps=200)[0] for project in (mars, nearest))
    return [
        identity("MARS example: alternation rests at (2/3, 1/3)", rest, [2 / 3, 1 / 3]),
        identity("MARS example: the minimiser is (1, 0)", least, [1.0, 0.0]),
    ]


def slope_drop(gradient: Array, row: Array) -> float:
    """``⟨∇_i R, Δ_i⟩ / n_i``: the drop of the outer loss's slope where the radius reaches the norm of row i."""
    return float(gradient @ row) / float(np.abs(row).sum())


def kinks(problems: int, rng: np.random.Generator) -> list[Check]:
    """One-sided slopes of the outer loss in one MARS radius; and the example with two equal minima."""
    drops, stated, bent = [], [], []
    for _ in range(problems):
        rows = [rng.standard_normal(3) for _ in range(4)]
        outer = random_spd(rng, 1, 12)[0]
        moment = rng.standard_normal(12)
        norms = np.array([np.abs(row).sum() for row in rows])

        def projected(gamma: float, rows: list[Array] = rows, norms: Array = norms) -> Array:
            return np.concatenate([row * min(1.0, gamma / n) for row, n in zip(rows, norms, strict=True)])

        def loss(
            gamma: float, outer: Array = outer, moment: Array = moment, at: Callable[..., Array] = projected
        ) -> float:
            v = at(gamma)
            return float(v @ outer @ v - 2 * moment @ v)

        apart = np.abs(norms[:, None] - norms) + np.diag(norms)
        i = int(np.argmax(apart.min(axis=1)))  # the row whose norm is farthest from the others
        # both sides are quadratic: three values give the one-sided slopes exactly, up to rounding
        h = 0.5 * float(apart[i].min())
        at, left, right = norms[i], [loss(norms[i] - k * h) for k in (1, 2)], [loss(norms[i] + k * h) for k in (1, 2)]
        before = (3 * loss(at) - 4 * loss(at - h / 2) + left[0]) / h
        after = (-3 * loss(at) + 4 * loss(at + h / 2) - right[0]) / h
        gradient = 2 * (outer @ projected(at) - moment)[3 * i : 3 * i + 3]
        drops.append(before - after)
        stated.append(slope_drop(gradient, rows[i]))
        # with a positive drop the middle of a short chord lies above it: the loss is not convex
        chord = (loss(at - 1e-3 * h) + loss(at + 1e-3 * h)) / 2 - loss(at)
        bent.append(-chord if stated[-1] > 1e-2 else 1.0)
    rows = [np.array([1.0]), np.array([2.0])]
    minima = [float(outer_loss(g, rows, (3.0, 4.0), (0.0, 1.0))) for g in (0.5, 2.0)]
    near = [float(outer_loss(g + e, rows, (3.0, 4.0), (0.0, 1.0))) for g in (0.5, 2.0) for e in (-0.01, 0.01)]
    return [
        identity("MARS: the slope drops at a row's norm", drops, stated, trials=problems),
        inequality("MARS: not convex where a row wants less", bent),
        identity("MARS example: two minima of height 3", minima, [3.0, 3.0]),
        inequality("MARS example: both are minima", np.array(near) - 3.0 + 1e-15),
    ]
