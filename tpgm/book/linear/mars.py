"""MARS radii on the linear model: where alternation rests, the inner solution, and the outer loss in one radius.

Every row of a layer has its own L1 norm, all share the layer's radius. Book chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tpgm.book.linear.problem import Array, layer_slices


def rows_of(shapes: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], Array]:
    """Sizes of all rows of layers with these (rows, columns), and the layer (rows,) that each belongs to."""
    sizes = tuple(columns for rows, columns in shapes for _ in range(rows))
    return sizes, np.repeat(np.arange(len(shapes)), [rows for rows, _ in shapes])


def lengths(v: ArrayLike, sizes: tuple[int, ...]) -> Array:
    """L1 norms of the rows, (…, rows), of displacements (…, d)."""
    v = np.asarray(v, dtype=np.float64)
    return np.stack([np.abs(v[..., block]).sum(axis=-1) for block in layer_slices(sizes)], axis=-1)


def mars(v: Array, radii: Array, sizes: tuple[int, ...]) -> Array:
    """The MARS projection: each row scaled back to its radius (…, rows)."""
    norms = lengths(v, sizes)
    projected: Array = v * np.repeat(np.minimum(1.0, radii / np.maximum(norms, 1e-300)), sizes, axis=-1)
    return projected


def nearest(v: Array, radii: Array, sizes: tuple[int, ...]) -> Array:
    """The Euclidean projection of each row onto its L1 ball: soft thresholding (Duchi et al. 2008)."""
    result = v.copy()
    for i, block in enumerate(layer_slices(sizes)):
        part, radius = np.abs(v[..., block]), radii[..., i, None]
        falling = -np.sort(-part, axis=-1)
        excess = np.cumsum(falling, axis=-1) - radius
        count = np.arange(1, part.shape[-1] + 1)
        last = np.sum(falling * count > excess, axis=-1, keepdims=True)
        threshold = np.take_along_axis(excess, last - 1, axis=-1) / last
        shrunk = np.sign(v[..., block]) * np.maximum(part - threshold, 0.0)
        result[..., block] = np.where(part.sum(axis=-1, keepdims=True) > radius, shrunk, v[..., block])
    return result


def settle(
    gram: Array, moment: Array, radii: Array, sizes: tuple[int, ...], project: Callable[..., Array], steps: int
) -> Array:
    """Where gradient steps of length ``1/λ_max(G)`` and `project` come to rest from the anchor, (P, d).

    gram: (P, d, d); moment: (P, d); radii: (P, rows).
    """
    step, v = 1 / np.linalg.eigvalsh(gram)[:, -1, None], np.zeros_like(moment)
    for _ in range(steps):
        v = project(v - step * (np.einsum("pij,pj->pi", gram, v) - moment), radii, sizes)
    return v


def training_loss(gram: Array, moment: Array, v: Array) -> Array:
    """``‖v − Δ‖²_G``, (P,): the training loss above that of fine-tuning."""
    missing = v - np.linalg.solve(gram, moment[..., None])[..., 0]
    loss: Array = np.einsum("pi,pij,pj->p", missing, gram, missing)
    return loss


def outer_loss(
    radius: ArrayLike, displacement: Sequence[Array], curvature: Sequence[float], best: Sequence[float]
) -> Array:
    """Loss ``Σ_i h_i (α_i − a_i)²`` of one layer's MARS radius (…), ``α_i = min(1, γ/n_i)``, at the end of training.

    displacement: the rows ``Δ_i``; curvature ``h_i``; best ``a_i``: the ratio that row i alone would take.
    """
    gamma = np.asarray(radius, dtype=np.float64)
    norms = [float(np.abs(row).sum()) for row in displacement]
    terms = [h * (np.minimum(1.0, gamma / n) - a) ** 2 for n, h, a in zip(norms, curvature, best, strict=True)]
    return np.asarray(sum(terms), dtype=np.float64)
