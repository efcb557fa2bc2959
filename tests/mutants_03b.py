"""Four statements of chapter 4 whose checks stand with those of chapter 3: broken assumptions that they catch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tests.mutants import Mutant, broken, replaced
from tpgm.book.linear import verify_ratios as verify
from tpgm.book.linear.problem import Array
from tpgm.book.linear.ratios import held_out_excess

DRAWS = 10_000


def negative_gain(h: Array, b: Array) -> Array:
    """The best ratios turned into the worst corner: what a solver with the wrong sign finds."""
    worst: Array = np.where(b / np.diag(h) > 0.5, 0.0, 1.0)
    return worst


def gain_at_the_plain_mean(h: ArrayLike, b: ArrayLike) -> float:
    """The gain over the unweighted mean of the layers' optima."""
    weight = np.diag(np.asarray(h, dtype=np.float64))
    best = np.asarray(b) / weight
    return float(weight @ (best - best.mean()) ** 2)


def one_spare_sample_more(risk: float, layers: int, samples: ArrayLike) -> Array:
    return held_out_excess(risk, layers, np.asarray(samples) + 1)


MUTANTS = [
    Mutant(4, "thm-spread", "Σ mixes layers", broken(verify.per_layer_beats_one, 50, block_diagonal=False)),
    Mutant(4, "thm-spread", "the box is active", broken(verify.per_layer_beats_one, 50, clipping=True)),
    Mutant(
        4,
        "thm-spread",
        "plain mean of the optima for the weighted one",
        replaced(verify.per_layer_beats_one, 50, "per_layer_gain", gain_at_the_plain_mean),
    ),
    Mutant(
        4,
        "thm-spread",
        "the worst corner of the box for the best ratios",
        replaced(verify.per_layer_beats_one, 50, "solve_outer_qp", negative_gain),
    ),
    Mutant(
        4,
        "prop-rescale",
        "a shift that does more than rescale layers",
        broken(verify.id_ratios_serve_ood, 50, proportional=False),
    ),
    Mutant(
        4,
        "thm-training",
        "held-out in place of training data",
        broken(verify.training_radii_never_constrain, 100, held_out=True),
    ),
    Mutant(
        4,
        "thm-held-out",
        "learned ratios are clipped",
        broken(verify.held_out_ratios, DRAWS, clipping=True),
    ),
    Mutant(
        4,
        "thm-held-out",
        "validation data from OOD",
        broken(verify.held_out_ratios, DRAWS, ood=True),
    ),
    Mutant(
        4,
        "thm-held-out",
        "m−L for m−L−1",
        replaced(verify.held_out_ratios, DRAWS, "held_out_excess", one_spare_sample_more),
    ),
]
