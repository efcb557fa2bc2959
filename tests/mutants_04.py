"""Mutations that the checks of chapters 4 and 4b must catch: each changes one formula, assumption or line of code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.mutants import Mutant, Run, Verify, broken, replaced
from tpgm.book.linear import verify_held_out as verify
from tpgm.book.linear.held_out import penalised_path

DRAWS, PROBLEMS = 20_000, 300


def _changed(function: Verify, trials: int, name: str, change: Callable[[Any], Any]) -> Run:
    """The checks with one function, as `verify_held_out` sees it, replaced by ``change(function)``."""
    return replaced(function, trials, name, change(getattr(verify, name)))


def _scaled(factor: float) -> Callable[[Any], Any]:
    return lambda original: lambda *given, **named: factor * original(*given, **named)


def _twice_as_strong(original: Any) -> Any:
    def nearest(h: Any, b: Any, squares: Any, price: float) -> tuple[Any, float]:
        _, mu = original(h, b, squares, price)
        return penalised_path(h, b, squares, 2 * mu), mu

    return nearest


def _other_strength(original: Any) -> Any:
    def nearest(h: Any, b: Any, squares: Any, price: float) -> tuple[Any, float]:
        alpha, mu = original(h, b, squares, price)
        return alpha, 1.01 * mu

    return nearest


BOX, MEAN, CLIPPED = verify.guarantee_in_the_box, verify.guarantee_in_the_mean, verify.formula_is_no_bound
KAPPA, RANDOM = verify.id_ratios_and_alignment, verify.alignment_of_random_ways
NEAREST, CHANGE, STAY = (
    verify.nearest_model_within_a_price,
    verify.ood_change_along_the_path,
    verify.clipped_layers_stay,
)
ERRORS, TWINS = verify.standard_errors_of_the_rule, verify.replicates_in_place_of_validation
STOCK, POOLED = verify.stock_is_shrinkage, verify.k_models_or_one

MUTANTS = [
    Mutant(4, "thm-box", "ratios clipped one by one, not solved in the box", broken(BOX, PROBLEMS, clip_only=True)),
    Mutant(4, "thm-box", "nine tenths of the bound", _changed(BOX, PROBLEMS, "box_guarantee", _scaled(0.9))),
    Mutant(
        4, "thm-box", "inputs with signs ±1 in place of Gaussian ones", broken(MEAN, 1, draws=DRAWS, gaussian=False)
    ),
    Mutant(
        4,
        "thm-box",
        "L in place of L + 1 in the mean",
        _changed(
            MEAN,
            1,
            "mean_squared_score",
            lambda original: lambda best, free, layers, m: original(best, free, layers - 1, m),
        ),
    ),
    Mutant(4, "thm-box", "a hundredth of the bound on the mean", broken(MEAN, PROBLEMS, draws=DRAWS, factor=0.01)),
    Mutant(4, "thm-box", "an optimum inside the box", broken(CLIPPED, DRAWS, optimum=(0.6, 0.5))),
    Mutant(
        4,
        "thm-box",
        "m − L in place of m − L − 1",
        _changed(CLIPPED, 5 * DRAWS, "held_out_excess", lambda original: lambda r, l, m: original(r, l, m + 1)),
    ),
    Mutant(4, "thm-alignment", "anisotropic training inputs", broken(KAPPA, DRAWS, trials=1, row_scale=True)),
    Mutant(4, "thm-alignment", "Σ' mixes layers", broken(KAPPA, DRAWS, trials=1, block_diagonal=False)),
    Mutant(
        4, "thm-alignment", "κ = 1 everywhere", _changed(KAPPA, DRAWS, "alignment", lambda o: lambda *g: o(*g) ** 0)
    ),
    Mutant(
        4,
        "thm-alignment",
        "a ratio that falls with the distance",
        _changed(
            KAPPA, 100, "expected_moments", lambda original: lambda s, *g, **n: original(1 / np.asarray(s), *g, **n)
        ),
    ),
    Mutant(4, "thm-alignment", "ways along what shifts most", broken(RANDOM, DRAWS, aligned=1.0)),
    Mutant(
        4,
        "thm-alignment",
        "the bound 2/r in place of the variance",
        _changed(
            RANDOM,
            DRAWS,
            "alignment_variance",
            lambda original: lambda metric: 2 * np.trace(metric @ metric) / np.trace(metric) ** 2,
        ),
    ),
    Mutant(4, "thm-price", "twice the penalty", _changed(NEAREST, PROBLEMS, "nearest_within", _twice_as_strong)),
    Mutant(4, "thm-price", "a penalty 1 % too large", _changed(NEAREST, PROBLEMS, "nearest_within", _other_strength)),
    Mutant(4, "thm-price", "distance in ratios, not in weights", broken(NEAREST, PROBLEMS, wrong_metric=True)),
    Mutant(4, "thm-price", "best ratios outside the box", broken(NEAREST, PROBLEMS, inside=False)),
    Mutant(4, "thm-price", "a tenth of each bound", broken(CHANGE, PROBLEMS, factor=0.1)),
    Mutant(4, "thm-price", "twice the penalty", _changed(CHANGE, PROBLEMS, "nearest_within", _twice_as_strong)),
    Mutant(4, "prop-clipped", "layers that the box does not hold", broken(STAY, PROBLEMS, inside=True)),
    Mutant(4, "prop-errors", "ratios that are not the best", broken(ERRORS, DRAWS, best=False)),
    Mutant(4, "prop-errors", "half the risk", _changed(ERRORS, DRAWS, "_risks", _scaled(0.5))),
    Mutant(4, "thm-stock", "replicates that share label noise", broken(TWINS, DRAWS, same_noise=True)),
    Mutant(4, "thm-stock", "formulas of own inputs for shared ones", broken(TWINS, DRAWS, stated_shared=False)),
    Mutant(4, "thm-stock", "formulas of shared inputs for own ones", broken(TWINS, DRAWS, stated_shared=True)),
    Mutant(
        4,
        "thm-stock",
        "the noise of one model for the average",
        _changed(TWINS, DRAWS, "averaged_moments", lambda original: lambda inner, square, common, k: (inner, square)),
    ),
    Mutant(4, "thm-stock", "n < d − 1 in place of n > d + 1", broken(STOCK, PROBLEMS, few_rows=True)),
    Mutant(
        4,
        "thm-stock",
        "k + 1 models in place of k",
        _changed(STOCK, PROBLEMS, "stock_ratio", lambda original: lambda cosine, k: original(cosine, k + 1)),
    ),
    Mutant(4, "thm-stock", "n < d − 1: one on kn against k averaged", broken(POOLED, PROBLEMS, few_rows=True)),
]
