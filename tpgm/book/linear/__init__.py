"""The linear model in which TPGM's claims can be proved, and the checks that verify the proofs."""

from tpgm.book.linear.alternation import Trajectory, alternate, end_of_training, hidden_need, needs_differ
from tpgm.book.linear.bilevel import Bilevel, Exact, solve_exact
from tpgm.book.linear.checks import Check, table
from tpgm.book.linear.inner import Inner, solve_inner, solve_inner_plain
from tpgm.book.linear.problem import LinearProblem, displacement_matrix, fine_tune, layer_slices
from tpgm.book.linear.ratios import (
    common_ratio,
    common_ratio_risk,
    expected_moments,
    held_out_excess,
    outer_qp,
    per_layer_gain,
    radii_from_ratios,
    ratios_from_radii,
    regime_threshold,
    separable_ratios,
    solve_outer_qp,
    solve_outer_qp_reference,
)

__all__ = [
    "Bilevel",
    "Check",
    "Exact",
    "Inner",
    "LinearProblem",
    "Trajectory",
    "alternate",
    "common_ratio",
    "common_ratio_risk",
    "displacement_matrix",
    "end_of_training",
    "expected_moments",
    "fine_tune",
    "held_out_excess",
    "hidden_need",
    "layer_slices",
    "needs_differ",
    "outer_qp",
    "per_layer_gain",
    "radii_from_ratios",
    "ratios_from_radii",
    "regime_threshold",
    "separable_ratios",
    "solve_exact",
    "solve_inner",
    "solve_inner_plain",
    "solve_outer_qp",
    "solve_outer_qp_reference",
    "table",
]
