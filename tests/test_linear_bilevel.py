"""Statement 8: the exact bi-level problem and what TPGM leaves out; each check fails when an assumption is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tpgm.book.linear import verify_bilevel as verify
from tpgm.book.linear.alternation import alternate, end_of_training, hidden_need, needs_differ
from tpgm.book.linear.bilevel import Bilevel, solve_exact
from tpgm.book.linear.bilevel_study import SIZES, Comparison, compare, draw_problem, gradient_cosines, interval
from tpgm.book.linear.checks import Check
from tpgm.book.linear.inner import norms_by_layer, solve_inner, solve_inner_plain
from tpgm.book.linear.problem import fine_tune
from tpgm.book.plots import draw_bilevel as plots

CHECKS: dict[str, tuple[Callable[..., list[Check]], int]] = {
    "inner problem": (verify.inner_problem, 1000),
    "training value": (verify.training_value, 1000),
    "hypergradient": (verify.hypergradient, 100),
    "what TPGM leaves out": (verify.what_tpgm_leaves_out, 1000),
    "alternation at rest": (verify.alternation_at_rest, 30),
    "at the end": (verify.once_at_the_end, 10),
}


@pytest.mark.parametrize("name", CHECKS)
def test_holds(name: str, rng: np.random.Generator) -> None:
    function, problems = CHECKS[name]
    for check in function(problems, rng):
        check.require()


def test_stuck_point_slopes() -> None:
    for check in verify.stuck_point():
        check.require()


# --- broken assumptions


def failing(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_projection_gradient_is_not_the_hypergradient(rng: np.random.Generator) -> None:
    def projection(problem: Bilevel, radii: Any) -> Any:
        return problem.projection_gradient(radii)

    assert failing(verify.hypergradient(5, rng, projection)) == {
        "hypergradient, one layer, closed form",
        "hypergradient, finite differences",
    }


def test_wrong_hypergradient_is_noticed(rng: np.random.Generator) -> None:
    assert len(failing(verify.hypergradient(5, rng, lambda p, r: 1.000001 * p.hypergradient(r)))) == 3


def test_correlated_layers_break_equality(rng: np.random.Generator) -> None:
    def correlated(rng: np.random.Generator) -> Any:
        return verify.random_spd(rng, 1, sum(SIZES))[0]

    assert failing(verify.what_tpgm_leaves_out(5, rng, correlated)) == {"equal if the span is invariant"}


def test_uncorrelated_but_anisotropic_layers_break_equality(rng: np.random.Generator) -> None:
    def anisotropic(rng: np.random.Generator) -> Any:
        return np.diag(rng.uniform(0.5, 2.0, sum(SIZES)))

    assert failing(verify.what_tpgm_leaves_out(5, rng, anisotropic)) == {"equal if the span is invariant"}


def test_inactive_layer_breaks_equality_for_single_weights(rng: np.random.Generator) -> None:
    problem = verify.random_problem(rng, (1, 1, 1, 1))
    radii = np.where([True, False, False, False], 10 * problem.largest_radii, verify.active_radii(rng, problem) / 10)
    v, multipliers = problem.inner(radii)
    assert multipliers[0] == 0
    assert np.linalg.norm(v) > 0
    gap = problem.projection_gradient(radii) - problem.hypergradient(radii)
    assert np.max(np.abs(gap)) > 1e-3
    np.testing.assert_allclose(problem.hypergradient(radii), verify.hypergradient_by_differences(problem, radii), 1e-7)


def test_finite_differences_fail_at_a_kink(rng: np.random.Generator) -> None:
    problem = verify.random_problem(rng, SIZES, verify.block_isotropic(rng))
    kink = problem.free_radii * [1.0, 0.5, 0.5]  # layer 1 on its radius, multiplier 0
    slope = problem.outer_gradient(problem.inner(kink).displacement)[:3]
    unit = problem.displacement[:3] / problem.free_radii[0]
    step = 1e-6 * kink[0] * np.eye(3)[0]
    value = problem.value(kink)
    below, above = (value - problem.value(kink - step)) / step[0], (problem.value(kink + step) - value) / step[0]
    assert below == pytest.approx(slope @ unit, rel=1e-4)
    assert above == 0.0
    exact, differences = problem.hypergradient(kink), verify.hypergradient_by_differences(problem, kink)
    assert exact[0] == pytest.approx(slope @ unit, rel=1e-10)
    np.testing.assert_allclose(differences[1:], exact[1:], rtol=1e-7)
    assert abs(differences[0] - exact[0]) > 0.1 * abs(exact[0])


def test_one_layer_can_get_the_wrong_sign() -> None:
    """Two weights, one layer: the counter-example of the chapter."""
    problem = Bilevel(np.diag([1.0, 10.0]), np.array([1.0, 5.0]), np.eye(2), np.zeros(2), 0.0, (2,))
    v = np.linalg.solve(problem.gram + np.eye(2), problem.moment)
    direction = np.array([-v[1], v[0]]) * 3 + 0.3 * v  # mostly tangential
    problem = Bilevel(problem.gram, problem.moment, np.eye(2), v - direction / 2, 0.0, (2,))
    radii = np.array([np.linalg.norm(v)])
    assert problem.projection_gradient(radii)[0] > 0.1
    assert problem.hypergradient(radii)[0] < -0.1


# --- inner problem


def test_many_inner_problems_at_once_equal_one_by_one(rng: np.random.Generator) -> None:
    gram = verify.random_spd(rng, 6, 12).reshape(2, 3, 12, 12)
    moment, radii = rng.standard_normal((3, 12)), rng.uniform(0.0, 2.0, (2, 3, 3))
    v, multipliers = solve_inner(gram, moment, radii, SIZES)
    assert v.shape == (2, 3, 12)
    assert multipliers.shape == (2, 3, 3)
    for i, j in np.ndindex(2, 3):
        one = solve_inner(gram[i, j], moment[j], radii[i, j], SIZES)
        np.testing.assert_allclose(v[i, j], one.displacement, rtol=0, atol=1e-12)


def test_radius_zero_and_infinity(rng: np.random.Generator) -> None:
    problem = verify.random_problem(rng)
    assert not problem.inner(np.zeros(3)).displacement.any()
    np.testing.assert_allclose(problem.inner([np.inf] * 3).displacement, problem.displacement, rtol=1e-12)
    radii = np.array([np.inf, 0.0, 0.3])
    v, multipliers = problem.inner(radii)
    assert not v[3:7].any()
    assert multipliers[0] == multipliers[1] == 0
    kept = np.r_[0:3, 7:12]
    without = solve_inner(problem.gram[np.ix_(kept, kept)], problem.moment[kept], [np.inf, 0.3], (3, 5))
    np.testing.assert_allclose(v[kept], without.displacement, rtol=0, atol=1e-12)
    plain = solve_inner_plain(problem.gram, problem.moment, np.array([100.0, 0.0, 0.3]), SIZES)
    np.testing.assert_allclose(v, plain, rtol=0, atol=1e-10)


def test_hypergradient_at_radius_zero_is_the_derivative_from_above(rng: np.random.Generator) -> None:
    for radii in (np.zeros(3), np.array([0.4, 0.0, 0.2]), np.array([np.inf, 0.0, 0.2])):
        problem = verify.random_problem(rng)
        step = 1e-7 * np.eye(3)
        for l in np.flatnonzero(radii == 0):
            difference = (problem.value(radii + step[l]) - problem.value(radii)) / 1e-7
            assert problem.hypergradient(radii)[l] == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_tiny_radii(rng: np.random.Generator) -> None:
    for scale in (1e-3, 1e-6, 1e-9):
        problem = verify.random_problem(rng)
        radii = np.array([scale, 0.5, 0.3 * scale])
        v, multipliers = problem.inner(radii)
        np.testing.assert_allclose(norms_by_layer(v, SIZES)[[0, 2]], radii[[0, 2]], rtol=1e-12)
        residual = problem.gram @ v + np.repeat(multipliers, SIZES) * v - problem.moment
        assert np.max(np.abs(residual)) < 1e-12


def test_fewer_rows_than_weights(rng: np.random.Generator) -> None:
    """Without a ridge refused; with a small one the solution nearest the anchor, which gradient descent finds too."""
    x, y = rng.standard_normal((5, 12)), rng.standard_normal(5)
    x_val, y_val, anchor = rng.standard_normal((20, 12)), rng.standard_normal(20), rng.standard_normal(12)
    with pytest.raises(ValueError, match="ridge"):
        Bilevel.from_data(anchor, x, y, x_val, y_val, SIZES).inner(np.ones(3))
    free = Bilevel.from_data(anchor, x, y, x_val, y_val, SIZES, ridge=1e-8)
    np.testing.assert_allclose(anchor + free.inner([np.inf] * 3).displacement, fine_tune(x, y, anchor), atol=1e-6)
    # constrained: the least-norm point of the solution set; a null direction inside the balls makes it longer
    radii = norms_by_layer(free.displacement, SIZES) * [2.0, 0.3, 2.0]
    near = free.inner(radii).displacement
    errors = [
        np.linalg.norm(
            Bilevel.from_data(anchor, x, y, x_val, y_val, SIZES, ridge=ridge).inner(radii).displacement - near
        )
        for ridge in (1e-3, 1e-5)
    ]
    assert errors[1] < 0.05 * errors[0]


def test_bad_input(rng: np.random.Generator) -> None:
    problem = verify.random_problem(rng)
    for radii in ([-1.0, 1.0, 1.0], [np.nan, 1.0, 1.0]):
        with pytest.raises(ValueError, match="radii"):
            problem.inner(radii)
    with pytest.raises(ValueError, match="layer sizes"):
        alternate([problem, hidden_need()], steps=1, radius_lr=0.1)
    with pytest.raises(ValueError, match="statistic"):
        interval([1.0, 2.0], "mode")


# --- outer problem


def test_exact_is_no_worse_than_a_dense_grid(rng: np.random.Generator) -> None:
    local = 0
    for _ in range(15):
        problem = draw_problem(rng, (4, 4), n=12, m=12).bilevel
        exact = solve_exact(problem)
        axis = np.linspace(0.0, 1.6, 61)
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2) * problem.free_radii
        values = problem.value(grid)
        assert exact.loss <= values.min() + 1e-9 * values.min()
        assert exact.loss > values.min() - 0.05 * values.min()  # the grid is near it, so it is no artefact
        assert problem.value(exact.radii) == pytest.approx(exact.loss, rel=1e-10)
        local += np.ptp(exact.reached) > 1e-6 * exact.loss
    assert local < 15


def test_outer_problem_is_not_convex(rng: np.random.Generator) -> None:
    problems = [draw_problem(rng).bilevel for _ in range(10)]
    bumps = 0
    for problem in problems:
        ends = rng.uniform(0.0, 1.0, (2, 50, 3)) * problem.free_radii
        chord = (problem.value(ends[0]) + problem.value(ends[1])) / 2
        bumps += int(np.sum(problem.value(ends.mean(axis=0)) > chord + 1e-6))
    assert bumps > 0


# --- TPGM on the linear model


def test_problems_run_together_as_they_do_alone(rng: np.random.Generator) -> None:
    problems = [verify.random_problem(rng) for _ in range(3)]
    together = alternate(problems, steps=15, radius_lr=0.05, tv=0.1, warmup=2)
    for k, problem in enumerate(problems):
        alone = alternate([problem], steps=15, radius_lr=0.05, tv=0.1, warmup=2)
        np.testing.assert_allclose(together.radii[:, k], alone.radii[:, 0], rtol=1e-12)
        np.testing.assert_allclose(together.outer_loss[:, k], alone.outer_loss[:, 0], rtol=1e-12)
        np.testing.assert_allclose(together.displacement[k], alone.displacement[0], rtol=1e-12, atol=1e-15)


def test_alternation_is_the_tpgm_of_the_package(rng: np.random.Generator) -> None:
    """Radii start at half the first displacement, and the weights never leave their balls."""
    problem = verify.random_problem(rng)
    path = alternate([problem], steps=1, radius_lr=0.0, step_size=0.5)
    first = problem.moment / np.linalg.eigvalsh(problem.gram)[-1] / 2
    np.testing.assert_allclose(path.radii[0, 0], norms_by_layer(first, SIZES) / 2, rtol=1e-12)
    np.testing.assert_allclose(path.displacement[0], first / 2, rtol=1e-6)
    path = alternate([problem], steps=40, radius_lr=0.02)
    assert (norms_by_layer(path.displacement[0], SIZES) <= path.radii[-1, 0] + 1e-12).all()


def test_radii_move_by_a_bounded_step(rng: np.random.Generator) -> None:
    """The budget of the chapter: no radius grows by more than 7.3 times the learning rate in an update."""
    path = alternate([verify.random_problem(rng) for _ in range(5)], steps=60, radius_lr=0.01)
    growth = np.diff(path.radii, axis=0)
    assert growth.max() <= 7.3 * 0.01
    assert growth.max() > 0.5 * 0.01


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    rng = np.random.default_rng(0)
    return compare([draw_problem(rng) for _ in range(25)], steps=60, radius_lr=0.05)


def test_no_radii_beat_the_exact_ones(comparison: Comparison) -> None:
    exact = comparison.radii_loss["exact bi-level"]
    for name, loss in comparison.radii_loss.items():
        assert (loss >= exact * (1 - 1e-9)).all(), name
    np.testing.assert_allclose(comparison.outer_loss["exact bi-level"], exact, rtol=1e-10)


def test_order_that_theory_gives(comparison: Comparison) -> None:
    loss = comparison.outer_loss
    assert (loss["TPGM at the end"] <= np.minimum(loss["fine-tuning"], loss["pre-trained"]) + 1e-12).all()
    # weights at the end are not w*(γ) of any radii, so their loss may lie below the exact optimum's; it does at times
    assert (loss["TPGM at the end"] < loss["exact bi-level"]).any()
    assert (comparison.risk["fine-tuning"] >= 1.0).all()


def test_cosines(rng: np.random.Generator) -> None:
    cosines = [gradient_cosines(draw_problem(rng).bilevel, [0.01, 0.5]) for _ in range(20)]
    every = np.array([pair["every step"] for pair in cosines])
    assert (np.abs(every) <= 1 + 1e-12).all()
    assert every[:, 0].min() > 0.99  # exact in the limit of tight constraints
    assert every[:, 1].min() < 0.99


def test_end_of_training_minimises_over_the_box(rng: np.random.Generator) -> None:
    problem = verify.random_problem(rng)
    ratios = end_of_training(problem)
    best = problem.outer_loss(problem.displacement * np.repeat(ratios, SIZES))
    others = problem.displacement * np.repeat(rng.uniform(0, 1, (2000, 3)), SIZES, axis=1)
    assert (problem.outer_loss(others) >= best - 1e-12).all()


def test_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for k in range(60):
        value, low, high = interval(rng.standard_normal(40), seed=k)
        assert low < value < high
        covered += low <= 0 <= high
    assert 50 <= covered <= 60
    assert interval([1.0, np.nan, 3.0])[0] == 2.0


# --- greedy underfitting


def test_greedy_underfits_and_smoothing_lifts() -> None:
    problem = hidden_need()
    stuck = problem.outer_constant - 2 * 0.01 * 0.11 + 0.01**2  # loss at (s, 0)
    for start in ({}, {"warmup": 500}):
        path = alternate([problem], steps=300, radius_lr=0.03, **start)
        assert path.outer_loss[-1, 0] == pytest.approx(stuck, rel=1e-4)
    assert solve_exact(problem).loss < 0.2 * stuck
    smoothed = alternate([problem], steps=300, radius_lr=0.03, tv=0.03)
    assert smoothed.outer_loss[-1, 0] < 0.5 * stuck


def test_threshold_of_the_smoothing() -> None:
    """Below ``4η(b-slope)(pull)`` the radius stays at its floor, above it leaves (proposition of the chapter)."""
    problem = hidden_need()
    threshold = verify.smoothing_threshold(problem)
    assert threshold == pytest.approx(5.9e-4, rel=0.01)
    radius = [
        alternate([problem], steps=150, radius_lr=0.03, tv=factor * threshold).radii[-1, 0, 1] for factor in (0.9, 1.1)
    ]
    assert radius[0] < 1e-6
    assert radius[1] > 1e-4


def test_price_of_the_smoothing() -> None:
    problem = needs_differ()
    plain, smoothed = (alternate([problem], steps=150, radius_lr=0.03, tv=tv).outer_loss[-1, 0] for tv in (0.0, 0.1))
    assert plain < 1e-6
    assert smoothed > 0.01


def test_figures(comparison: Comparison) -> None:
    cosines = {"every step": np.ones((3, 2)), "at the end": np.zeros((3, 2))}
    path = alternate([hidden_need()], steps=3, radius_lr=0.03)
    for figure in (
        plots.cosines([0.1, 0.5], cosines),
        plots.excess(comparison),
        plots.outer_landscape(hidden_need(), {"no smoothing": path}),
        plots.paths({"no smoothing": path}, exact=0.01),
        plots.smoothing([0.0, 0.1], {"a": np.array([1.0, 2.0])}, {"a": 0.5}),
    ):
        assert isinstance(figure, plt.Figure)
    assert not plt.get_fignums()
