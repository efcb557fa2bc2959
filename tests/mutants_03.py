"""Chapter 3: broken assumptions and changed formulas, and the checks that catch them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tests.mutants import Mutant, broken, replaced
from tpgm.book.linear import verify_ratios as verify
from tpgm.book.linear.problem import Array, LinearProblem
from tpgm.book.linear.ratios import common_ratio, outer_qp, shared_radius_minima

DRAWS = 100_000


# --- theorem 1


def doubled_b(problem: LinearProblem, displacement: ArrayLike, ood: bool = False) -> tuple[Array, Array]:
    h, b = outer_qp(problem, displacement, ood)
    return h, 2 * b


def clipped_free_minimiser(h: Array, b: Array) -> Array:
    free: Array = np.clip(np.linalg.lstsq(h, b, rcond=None)[0], 0, 1)
    return free


def one_ratio_for_all_rows(radius: ArrayLike, norms: Array, curvature: Array, optima: Array) -> Array:
    kept = np.minimum(1.0, np.asarray(radius)[..., None] / norms.max())
    risk: Array = (kept - optima) ** 2 @ curvature
    return risk


def last_norm_only(norms: Array, curvature: Array, optima: Array) -> tuple[Array, Any]:
    where, found = shared_radius_minima(norms, curvature, optima)
    found[..., :-1] = False
    found[..., -1] = True
    return where, found


# --- theorem 2 and the threshold: one formula with one number changed at a time


def moments(
    squared: ArrayLike,
    trace: ArrayLike,
    *,
    total: float,
    d: int,
    n: int,
    noise: float,
    spare: int = 1,  # of d−n−1 and of n−d−1
    less: int = 2,  # of nd+d−2
    mixing: float = 1.0,
    third: int = 2,  # of d(d−1)(d+2)
    first: int = 0,  # of E⟨Δ,δ⟩ = n/(d+first) …
    signal: float = 1.0,
) -> tuple[Array, Array]:
    q, k = np.asarray(squared, dtype=np.float64), np.asarray(trace, dtype=np.float64)
    if n > d:
        return signal * q, signal * q + noise**2 * k / (n - d - spare)
    scale = n / (d * (d - 1) * (d + third))
    square = scale * (mixing * (d - n) * k * total + (n * d + d - less) * q)
    return n / (d + first) * q, square + noise**2 * k / d * n / (d - n - spare)


def threshold(
    trace: float,
    *,
    total: float,
    d: int,
    n: int,
    noise: float,
    spare: int = 1,
    above: int = 2,
    below: int = 1,
    power: int = 2,
    distance: float = 1.0,
) -> float:
    if n > d:
        return math.inf
    return trace / d * (distance * total + noise**power * (d - below) * (d + above) / ((d - n) * (d - n - spare)))


def best_on_id_data(problem: LinearProblem, displacement: ArrayLike, ood: bool = False) -> float:
    return common_ratio(problem, displacement, ood=False)


_FORMULAS: dict[str, dict[str, Any]] = {
    "d−n for d−n−1, n−d for n−d−1": {"spare": 0},
    "nd+d for nd+d−2": {"less": 0},
    "nine tenths of the mixing term": {"mixing": 0.9},
    "d+1 for d+2": {"third": 1},
    "n/(d+1) for n/d": {"first": 1},
    "0.99 of the signal, n > d+1": {"signal": 0.99},
}
_THRESHOLDS: dict[str, dict[str, Any]] = {
    "(d−n)² for (d−n)(d−n−1)": {"spare": 0},
    "d for d+2": {"above": 0},
    "d for d−1": {"below": 0},
    "σ for σ²": {"power": 1},
    "0.9 S for S": {"distance": 0.9},
}

MUTANTS = [
    Mutant(3, "prop-limit", "weight decay 0.1", broken(verify.gradient_descent, 10, weight_decay=0.1)),
    Mutant(3, "thm-radii-qp", "a layer that has not moved", broken(verify.radii_are_a_qp, 20, frozen_layer=True)),
    Mutant(3, "thm-radii-qp", "Σ mixes layers", broken(verify.radii_are_a_qp, 50, block_diagonal=False)),
    Mutant(
        3,
        "thm-radii-qp",
        "on a sample only Σ changes, not b",
        broken(verify.radii_are_a_qp, 20, noise_in_b=False),
    ),
    Mutant(3, "thm-radii-qp", "2b for b", replaced(verify.radii_are_a_qp, 20, "outer_qp", doubled_b)),
    Mutant(
        3,
        "thm-radii-qp",
        "the free minimiser, clipped",
        replaced(verify.radii_are_a_qp, 100, "solve_outer_qp", clipped_free_minimiser),
    ),
    Mutant(
        3,
        "prop-rows",
        "one ratio for all rows in place of one radius",
        replaced(verify.rows_share_one_radius, 50, "shared_radius_risk", one_ratio_for_all_rows),
    ),
    Mutant(
        3,
        "prop-rows",
        "the largest norm taken for the only minimum",
        replaced(verify.rows_share_one_radius, 50, "shared_radius_minima", last_norm_only),
    ),
    Mutant(3, "thm-distance", "anisotropic rows", broken(verify.ratios_by_distance, 10_000, row_scale=True)),
    *(
        Mutant(
            3,
            "thm-distance",
            change,
            replaced(verify.ratios_by_distance, DRAWS, "expected_moments", partial(moments, **changed)),
        )
        for change, changed in _FORMULAS.items()
    ),
    Mutant(
        3,
        "prop-ratio-error",
        "a fifth of the bound",
        broken(verify.ratio_error_bound, 200, factor=0.2),
    ),
    Mutant(
        3,
        "thm-tradeoff",
        "another optimum on OOD data",
        broken(verify.id_ood_tradeoff, 200, concept_shift=1.0),
    ),
    Mutant(
        3,
        "thm-tradeoff",
        "a ratio for each layer in place of one",
        broken(verify.id_ood_tradeoff, 200, one_ratio=False),
    ),
    Mutant(
        3,
        "thm-tradeoff",
        "the best ratio on ID data for the best on OOD data",
        replaced(verify.id_ood_tradeoff, 50, "common_ratio", best_on_id_data),
    ),
    Mutant(
        3,
        "prop-regime",
        "anisotropic rows",
        broken(verify.regime_is_set_by_distance, 20_000, row_scale=True, trials=10),
    ),
    *(
        Mutant(
            3,
            "prop-regime",
            change,
            replaced(verify.regime_is_set_by_distance, DRAWS, "regime_threshold", partial(threshold, **changed)),
        )
        for change, changed in _THRESHOLDS.items()
    ),
]
