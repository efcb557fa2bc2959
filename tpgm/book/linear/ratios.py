"""Ratios in the linear model: the outer problem as a QP, and what its solution depends on (statements 1-5).

Everything is NumPy float64. Displacements ``Δ`` are (d,) vectors, ratios ``α`` and radii ``γ`` are (L,) vectors; radii
are Euclidean, in the unit of the weights. The book's chapters 3 and 4 prove the formulas.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import lsq_linear

from tpgm.book.linear.problem import Array, LinearProblem, displacement_matrix, layer_slices


def layer_norms(displacement: ArrayLike, sizes: tuple[int, ...]) -> Array:
    """``‖Δ_l‖``, (L,)."""
    delta = np.asarray(displacement, dtype=np.float64)
    return np.array([np.linalg.norm(delta[block]) for block in layer_slices(sizes)])


def ratios_from_radii(radii: ArrayLike, displacement: ArrayLike, sizes: tuple[int, ...]) -> Array:
    """``α_l = min(1, γ_l/‖Δ_l‖)``, (L,); 1 for a layer that has not moved. Raises ValueError for a negative radius."""
    radii, norms = np.asarray(radii, dtype=np.float64), layer_norms(displacement, sizes)
    if not (radii >= 0).all():
        raise ValueError(f"radii must be at least 0, got {radii}")
    return np.where(norms > 0, np.minimum(1.0, radii / np.where(norms > 0, norms, 1.0)), 1.0)


def radii_from_ratios(ratios: ArrayLike, displacement: ArrayLike, sizes: tuple[int, ...]) -> Array:
    """``γ_l = α_l ‖Δ_l‖``, (L,): the inverse of `ratios_from_radii` on [0, 1]^L wherever every ``Δ_l ≠ 0``."""
    return np.asarray(ratios, dtype=np.float64) * layer_norms(displacement, sizes)


def outer_qp(problem: LinearProblem, displacement: ArrayLike, ood: bool = False) -> tuple[Array, Array]:
    """``H = DᵀΣD`` (L, L) and ``b = DᵀΣδ`` (L,): up to a constant the risk is ``αᵀHα − 2bᵀα`` (statement 1)."""
    matrix = displacement_matrix(displacement, problem.sizes)
    weighted = matrix.T @ problem.second_moment(ood)
    return weighted @ matrix, weighted @ problem.delta


def solve_outer_qp(h: ArrayLike, b: ArrayLike) -> Array:
    """A minimiser of ``αᵀHα − 2bᵀα`` over [0, 1]^L, (L,); the only one if ``H`` is positive definite.

    h: (L, L) symmetric positive semi-definite, with b (L,) in its range, as `outer_qp` gives them or as
    ``H = (XD)ᵀXD, b = (XD)ᵀ(y − Xw⁰)`` does for a data set.
    """
    h, b = np.asarray(h, dtype=np.float64), np.asarray(b, dtype=np.float64)
    # layers differ in size by orders of magnitude: give every column unit length, and stretch the box instead
    unit = np.sqrt(np.where(np.diag(h) > 0, np.diag(h), 1.0))
    values, vectors = np.linalg.eigh(h / np.outer(unit, unit))
    kept = values > 1e-13 * values[-1]
    if values[-1] <= 0:
        return np.ones(len(b))
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
    target = vectors[:, kept].T @ (b / unit) / np.sqrt(values[kept])
    # the active-set method ends at the exact minimiser of a face; the tolerance only says when a face is left
    found = lsq_linear(root, target, (np.zeros(len(b)), unit), method="bvls", tol=1e-15)
    ratios: Array = np.clip(found.x / unit, 0.0, 1.0)
    return ratios


def solve_outer_qp_reference(h: ArrayLike, b: ArrayLike) -> Array:
    """The same by plain enumeration: every ratio is 0, 1 or free, so try all ``3^L`` faces (L at most 8)."""
    h, b = np.asarray(h, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(b) > 8:
        raise ValueError(f"{len(b)} layers have 3^{len(b)} faces; use solve_outer_qp")
    best, lowest = np.ones(len(b)), math.inf
    for face in product((0.0, 1.0, math.nan), repeat=len(b)):
        alpha = np.array(face)
        free = np.isnan(alpha)
        if free.any():
            fixed = h[np.ix_(free, ~free)] @ alpha[~free]
            alpha[free] = np.linalg.lstsq(h[np.ix_(free, free)], b[free] - fixed, rcond=None)[0]
        value = alpha @ h @ alpha - 2 * b @ alpha
        if value < lowest and (alpha >= 0).all() and (alpha <= 1).all():
            best, lowest = alpha, value
    return best


def separable_ratios(h: ArrayLike, b: ArrayLike) -> Array:
    """``clip(b_l / H_ll, 0, 1)``, (L,): the minimiser where ``Σ`` is block-diagonal over layers (statement 1)."""
    return np.clip(np.asarray(b, dtype=np.float64) / np.diag(np.asarray(h, dtype=np.float64)), 0.0, 1.0)


class MomentSetting(TypedDict):
    """What `expected_moments` and `regime_threshold` depend on besides the layer."""

    total: float
    d: int
    n: int
    noise: float


def expected_moments(
    squared: ArrayLike, trace: ArrayLike, *, total: float, d: int, n: int, noise: float
) -> tuple[Array, Array]:
    """``E⟨Δ,δ⟩_M`` and ``E‖Δ‖²_M`` over training sets of n isotropic Gaussian rows (statement 2, both regimes).

    ``M`` is any positive semi-definite metric; squared: ``‖δ‖²_M``; trace: ``tr M``; total: ``S = ‖δ‖²``; noise:
    ``σ``. Layer l is the metric "identity on block l": ``squared = s_l`` and ``trace = d_l``. Arrays broadcast. The
    first divided by the second is the ratio of expectations. Raises ValueError for n = d−1, d or d+1, where
    the noise term has no finite mean.
    """
    q, k = np.asarray(squared, dtype=np.float64), np.asarray(trace, dtype=np.float64)
    if abs(n - d) < 2:
        raise ValueError(f"n = {n} rows for d = {d} weights: the noise term has an infinite mean unless |n − d| > 1")
    if n > d:
        return q, q + noise**2 * k / (n - d - 1)
    scale = n / (d * (d - 1) * (d + 2))
    mixed, kept = scale * (d - n), scale * (n * d + d - 2)
    return n / d * q, mixed * k * total + kept * q + noise**2 * k / d * n / (d - n - 1)


def regime_threshold(trace: float, *, total: float, d: int, n: int, noise: float) -> float:
    """The OOD excess risk ``‖δ‖²_Σ'`` of the pre-trained model above which full fine-tuning is right (statement 3).

    ``(tr Σ'/d)(S + τ)`` with ``τ = σ²(d−1)(d+2)/((d−n)(d−n−1))`` for n < d−1. trace: ``tr Σ'``; total: ``S``. For
    n > d+1 it is infinite with noise and 0 without. Raises ValueError for n = d−1, d or d+1.
    """
    if abs(n - d) < 2:
        raise ValueError(f"n = {n} rows for d = {d} weights: the noise term has an infinite mean unless |n − d| > 1")
    if n > d:
        return math.inf if noise > 0 else 0.0
    return trace / d * (total + noise**2 * (d - 1) * (d + 2) / ((d - n) * (d - n - 1)))


def common_ratio(problem: LinearProblem, displacement: ArrayLike, ood: bool = False) -> float:
    """``⟨Δ,δ⟩_Σ / ‖Δ‖²_Σ``: the unclipped minimiser of the risk along one common ratio (statement 3).

    ``α_ID`` by default, ``α_OOD`` with ood. Raises ValueError if the displacement has no effect (``‖Δ‖_Σ = 0``).
    """
    h, b = outer_qp(problem, displacement, ood)
    if not h.sum() > 0:
        raise ValueError("the displacement does not change the predictions: every ratio has the same risk")
    return float(b.sum() / h.sum())


def common_ratio_risk(problem: LinearProblem, displacement: ArrayLike, ratios: ArrayLike, ood: bool = False) -> Array:
    """``R(α)`` (or ``R'``) along the WiSE-FT line ``w⁰ + αΔ``, the shape of `ratios`: a parabola (statement 3)."""
    h, b = outer_qp(problem, displacement, ood)
    alpha = np.asarray(ratios, dtype=np.float64)
    risk: Array = problem.risk(problem.anchor, ood) + alpha**2 * h.sum() - 2 * alpha * b.sum()
    return risk


def shared_radius_risk(radius: ArrayLike, norms: Array, curvature: Array, optima: Array) -> Array:
    """``Σ_i h_i (min(1, γ/n_i) − α*_i)²``: excess risk of r rows that share the radius γ, as under MARS.

    radius: any shape (…); norms ``n_i > 0``, curvature ``h_i > 0``, optima ``α*_i``: (r,). Returns (…).
    """
    kept = np.minimum(1.0, np.asarray(radius, dtype=np.float64)[..., None] / norms)
    risk: Array = (kept - optima) ** 2 @ curvature
    return risk


def shared_radius_minima(norms: Array, curvature: Array, optima: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Where `shared_radius_risk` has local minima: candidates (…, r) and which of them are minima, (…, r).

    norms, curvature, optima: (…, r), the optima in [0, 1] and not all 0, no two norms equal. The risk is quadratic
    between neighbouring norms and its slope drops at each, so a minimum lies inside a piece, or is the last norm,
    beyond which nothing changes.
    """
    order = np.argsort(norms, axis=-1)
    n, h, best = (np.take_along_axis(values, order, axis=-1) for values in (norms, curvature, optima))

    def held(values: Array) -> Array:
        """Sums over the rows that are still held back in each piece."""
        return np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]

    vertex = held(h * best / n) / held(h / n**2)
    start = np.concatenate([np.zeros_like(n[..., :1]), n[..., :-1]], axis=-1)
    inside = (vertex > start) & (vertex < n)
    inside[..., -1] = vertex[..., -1] > start[..., -1]
    return np.minimum(vertex, n), inside


def per_layer_gain(h: ArrayLike, b: ArrayLike) -> float:
    """``Σ_l h_l (α*_l − ᾱ)²``: by how much the best ratios beat the best common one (statement 4).

    Holds for block-diagonal ``Σ`` (``H`` diagonal, ``h_l = H_ll > 0``) and no clipping; off-diagonal entries are
    not looked at.
    """
    weight = np.diag(np.asarray(h, dtype=np.float64))
    best = np.asarray(b, dtype=np.float64) / weight
    return float(weight @ (best - weight @ best / weight.sum()) ** 2)


def held_out_excess(risk: float, layers: int, samples: ArrayLike) -> Array:
    """``R(α*)·L/(m−L−1)``: expected excess risk of L unclipped ratios learned on m samples (statement 5).

    risk: ``R(α*)``, noise included; samples: m, any shape; infinite for m ≤ L+1.
    """
    spare = np.asarray(samples, dtype=np.float64) - layers - 1
    return np.where(spare > 0, risk * layers / np.where(spare > 0, spare, 1.0), np.inf)
