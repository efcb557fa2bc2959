"""Statements 1-5 of the linear model hold; `test_mutants.py` sees each check fail when something is changed."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tpgm.book.linear import verify_ratios as verify
from tpgm.book.linear.checks import Check, expectation, table
from tpgm.book.linear.problem import LinearProblem, displacement_matrix, fine_tune
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
    shared_radius_minima,
    shared_radius_risk,
    solve_outer_qp,
    solve_outer_qp_reference,
)
from tpgm.book.linear.simulation import (
    approximation_errors,
    compare_outer_data,
    excess_risk,
    learn_ratios,
    random_displacements,
    random_rows,
    random_trained,
    strategy_risks,
    style_shift,
)
from tpgm.book.plots import draw_ratios as plots

DRAWS, PROBLEMS = 10_000, 1_000


STATEMENTS: dict[str, tuple[Callable[..., list[Check]], int]] = {
    "gradient descent": (verify.gradient_descent, 40),
    "1: radii are a QP": (verify.radii_are_a_qp, PROBLEMS),
    "1: rows share one radius": (verify.rows_share_one_radius, PROBLEMS),
    "2: ratios by distance": (verify.ratios_by_distance, 10 * DRAWS),
    "2: error of the approximation": (verify.ratio_error_bound, PROBLEMS),
    "3: trade-off": (verify.id_ood_tradeoff, PROBLEMS),
    "3: regime by distance": (verify.regime_is_set_by_distance, 10 * DRAWS),
    "4: per layer beats one": (verify.per_layer_beats_one, PROBLEMS),
    "4: ID ratios serve OOD": (verify.id_ratios_serve_ood, PROBLEMS),
    "5: training data never constrain": (verify.training_radii_never_constrain, PROBLEMS),
    "5: held-out data": (verify.held_out_ratios, DRAWS),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_holds(name: str, rng: np.random.Generator) -> None:
    function, trials = STATEMENTS[name]
    for check in function(trials, rng):
        check.require()
        needed = {"identity": 1, "expectation": DRAWS, "inequality": PROBLEMS}[check.kind]
        assert check.trials >= needed or check.name.startswith("two rows"), check.name


def test_held_out_formula_fails_for_dependent_validation_data(rng: np.random.Generator) -> None:
    sizes, m = (3, 4), 12
    problem = LinearProblem(np.zeros(7), rng.standard_normal(7), sizes, noise=1.0)

    def surprise(reuse: bool) -> float:
        """Excess risk of ratios learned on m samples, less the formula, for one training set."""
        x, y = problem.sample(m, rng)
        delta = fine_tune(x, y, problem.anchor)
        if reuse:
            columns = x @ displacement_matrix(delta, sizes)
            learned = np.linalg.lstsq(columns, y, rcond=None)[0]
        else:
            learned = learn_ratios(problem, delta, m, 1, rng)[0]
        h, b = outer_qp(problem, delta)
        best = problem.risk(problem.weights(delta, np.linalg.solve(h, b)))
        return float(excess_risk(problem, delta, learned) - held_out_excess(best, 2, m))

    expectation("fresh validation data", [surprise(reuse=False) for _ in range(2_000)], 0.0).require()
    with pytest.raises(AssertionError):
        expectation("the training data again", [surprise(reuse=True) for _ in range(2_000)], 0.0).require()


def test_approximation_error_falls_like_the_root_of_the_layer_size(rng: np.random.Generator) -> None:
    layer_sizes = np.array([8, 16, 32, 64])
    errors = approximation_errors(layer_sizes, 500, rng)
    assert np.all(errors["scatter"][:, 0] == 0), "a layer at its optimum is frozen in every draw"
    slopes = [np.polyfit(np.log(layer_sizes), np.log(errors["scatter"][:, l]), 1)[0] for l in (1, 2, 3)]
    np.testing.assert_allclose(slopes, -0.5, atol=0.12)
    # inside (0, 1) the mean is much closer than a single draw; at the edge clipping keeps it at the same order
    assert np.all(errors["bias"][-1, 1:3] < 0.3 * errors["scatter"][-1, 1:3])
    np.testing.assert_allclose(errors["bias"][:, 3], errors["scatter"][:, 3])


def test_ratio_grows_with_distance_from_frozen_to_free() -> None:
    distances = np.array([0.0, 0.01, 0.1, 1.0, 10.0, 1e6])
    for n in (30, 90):
        # every layer in turn: the other layers' distances stay as they are
        ratios = []
        for s in distances:
            inner, square = expected_moments(s, 20, total=1.0 + s, d=60, n=n, noise=0.5)
            ratios.append(inner / square)
        assert ratios[0] == 0
        assert np.all(np.diff(ratios) > 0)
        assert np.clip(ratios[-1], 0, 1) == pytest.approx(1, abs=1e-4)


def test_one_ratio_cannot_tell_the_regimes_apart_but_ratios_of_layers_can(rng: np.random.Generator) -> None:
    near, far = (strategy_risks(style_shift(share, rng), 100, 200, rng) for share in (0.02, 0.6))
    means = [{name: (r[0].mean(), r[1].mean()) for name, r in risks.items()} for risks in (near, far)]
    # one ratio chosen on ID data: the same ID risk, but OOD it beats full fine-tuning in one regime only
    assert means[0]["one ratio"][0] == pytest.approx(means[1]["one ratio"][0], rel=0.02)
    assert means[0]["one ratio"][1] < means[0]["full fine-tuning"][1] - 0.1
    assert means[1]["one ratio"][1] > means[1]["full fine-tuning"][1] + 0.1
    for risks in means:
        assert risks["one per layer"][1] < risks["full fine-tuning"][1]
        # not the number of ratios does it, but that layers separate what OOD data weigh differently
        assert risks["one per layer, mixed layers"][1] == pytest.approx(risks["one ratio"][1], rel=0.02)


def test_outer_data_decide_the_ratios(rng: np.random.Generator) -> None:
    problem = style_shift(0.02, rng, mixed=True)
    learned = compare_outer_data(problem, n=100, m=60, draws=20, rng=rng)
    np.testing.assert_allclose(learned["training data"][0], 1.0, atol=1e-9)
    id_risk, ood_risk = ({name: values[i] for name, values in learned.items()} for i in (1, 2))
    assert min(id_risk, key=id_risk.get) == "ID held-out"
    assert min(ood_risk, key=ood_risk.get) == "OOD held-out"


# --- the solver and its relatives on corner cases


def test_solver_on_degenerate_problems() -> None:
    np.testing.assert_array_equal(solve_outer_qp(np.zeros((2, 2)), np.zeros(2)), [1, 1])
    np.testing.assert_array_equal(solve_outer_qp_reference(np.zeros((2, 2)), np.zeros(2)).shape, (2,))
    # the minimisers are a segment: α_1 + α_2 = 1/2
    h, b = np.ones((2, 2)), np.full(2, 0.5)
    for solve in (solve_outer_qp, solve_outer_qp_reference):
        assert solve(h, b).sum() == pytest.approx(0.5, abs=1e-12)
    # clipping the unconstrained minimiser is wrong when Σ mixes layers
    h, b = np.array([[1.0, 0.9], [0.9, 1.0]]), np.array([1.2, 0.7])
    np.testing.assert_allclose(solve_outer_qp(h, b), [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(solve_outer_qp(h, b), solve_outer_qp_reference(h, b), atol=1e-12)
    assert not np.allclose(separable_ratios(h, b), [1.0, 0.0])


def test_solver_on_layers_of_very_different_size() -> None:
    h, b = np.diag([5.0, 1e-13]), np.array([1.0, 5e-11])
    np.testing.assert_allclose(solve_outer_qp(h, b), [0.2, 1.0], rtol=1e-12)
    np.testing.assert_allclose(solve_outer_qp_reference(h, b), [0.2, 1.0], rtol=1e-12)


def test_radii_outside_the_displacement_do_nothing() -> None:
    delta = np.array([3.0, 4.0, 0.0])
    np.testing.assert_allclose(ratios_from_radii([2.5, 7.0], delta, (2, 1)), [0.5, 1.0])
    np.testing.assert_allclose(ratios_from_radii([9.0, 0.0], delta, (2, 1)), [1.0, 1.0])
    np.testing.assert_allclose(radii_from_ratios([0.5, 0.5], delta, (2, 1)), [2.5, 0.0])


def test_parabola_is_the_risk_on_the_line(rng: np.random.Generator) -> None:
    problem, _, _, delta = random_trained(rng)
    alphas = np.linspace(-0.5, 1.5, 9)
    for ood in (False, True):
        direct = [problem.risk(problem.weights(delta, a), ood) for a in alphas]
        np.testing.assert_allclose(common_ratio_risk(problem, delta, alphas, ood), direct, rtol=1e-10)
        best = common_ratio(problem, delta, ood)
        assert (common_ratio_risk(problem, delta, alphas, ood) >= common_ratio_risk(problem, delta, best, ood)).all()


def test_minima_under_one_radius_by_hand() -> None:
    # rows of norm 1 and 2 with curvature 3 and 4; the first wants nothing of its way, the second all of it
    where, found = shared_radius_minima(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(where[found], [0.5, 2.0])
    # three rows in any order: the sum over held rows is taken from the longest on
    norms, curvature, optima = np.array([3.0, 1.0, 2.0]), np.array([9.0, 1.0, 4.0]), np.array([0.9, 0.2, 0.5])
    grid = np.linspace(0, 3, 3001)
    risk = shared_radius_risk(grid, norms, curvature, optima)
    lowest = grid[1:-1][(risk[1:-1] < risk[:-2]) & (risk[1:-1] < risk[2:])]
    where, found = shared_radius_minima(norms, curvature, optima)
    np.testing.assert_allclose(where[found], lowest, atol=2e-3)


def test_share_of_random_rows_with_several_minima() -> None:
    for rows, share in ((2, 0.15), (4, 0.29), (16, 0.51)):
        _, found = shared_radius_minima(*random_rows(np.random.default_rng(0), 20_000, rows))
        assert (found.sum(axis=-1) > 1).mean() == pytest.approx(share, abs=0.01)


def test_gain_by_hand() -> None:
    # two layers, h = (1, 3), optima 0 and 1: one ratio settles at 3/4 and loses 9/16 + 3/16
    assert per_layer_gain(np.diag([1.0, 3.0]), np.array([0.0, 3.0])) == pytest.approx(0.75)


def test_displacements_of_the_batch_are_those_of_fine_tuning() -> None:
    delta = np.array([1.0, -2.0, 0.5, 3.0])
    for n in (2, 9):
        drawn = random_displacements(delta, n, 0.3, 5, np.random.default_rng(1))
        rng = np.random.default_rng(1)
        x, noise = rng.standard_normal((5, n, 4)), rng.standard_normal((5, n))
        for i in range(5):
            np.testing.assert_allclose(drawn[i], fine_tune(x[i], x[i] @ delta + 0.3 * noise[i], np.zeros(4)), rtol=1e-9)


def test_equal_draws_pass_only_at_their_value() -> None:
    assert expectation("", np.ones((5, 2)), [1.0, 1.0]).passed
    assert not expectation("", np.ones((5, 2)), [1.0, 1.1]).passed
    assert not expectation("", np.array([1.0, np.nan]), 1.0).passed


def test_errors_and_edges() -> None:
    with pytest.raises(ValueError, match="infinite mean"):
        expected_moments(1.0, 2, total=1.0, d=10, n=9, noise=1.0)
    with pytest.raises(ValueError, match="radii must be at least 0"):
        ratios_from_radii([-1.0], [1.0], (1,))
    with pytest.raises(ValueError, match="use solve_outer_qp"):
        solve_outer_qp_reference(np.eye(9), np.ones(9))
    with pytest.raises(ValueError, match="does not change the predictions"):
        common_ratio(LinearProblem(np.zeros(2), np.ones(2), (1, 1)), np.zeros(2))
    np.testing.assert_array_equal(held_out_excess(2.0, 3, [3, 4, 5, 7]), [np.inf, np.inf, 6.0, 2.0])
    assert regime_threshold(10.0, total=1.0, d=10, n=20, noise=0.5) == np.inf
    assert regime_threshold(10.0, total=1.0, d=10, n=20, noise=0.0) == 0.0
    # without noise: what an isotropic δ of the same length would cost
    assert regime_threshold(25.0, total=2.0, d=10, n=4, noise=0.0) == pytest.approx(25.0 / 10 * 2.0)


# --- figures


def test_slider_shows_the_risks_of_its_position_in_every_case(rng: np.random.Generator) -> None:
    cases = {}
    for name, share in (("near", 0.02), ("far", 0.8)):
        problem = style_shift(share, rng)
        x, y = problem.sample(100, rng)
        cases[name] = (problem, fine_tune(x, y, problem.anchor))
    figure = plots.risk_slider(cases, positions=11)
    assert len(figure.to_json()) < 400_000
    (slider,), (menu,) = figure.layout.sliders, figure.layout.updatemenus
    assert [step.label for step in slider.steps][:2] == ["0.00", "0.10"]
    for step, alpha in zip(slider.steps, np.linspace(0, 1, 11), strict=True):
        change, traces = step.args
        shown = dict(zip(traces, zip(change["x"], change["y"], strict=True), strict=True))
        for button, case in zip(menu.buttons, cases.values(), strict=True):
            visible = [i for i in traces if button.args[0]["visible"][i]]
            risks = [common_ratio_risk(*case, alpha, ood) for ood in (False, True)]
            full = [common_ratio_risk(*case, 1.0, ood) for ood in (False, True)]
            for i, risk in zip(visible[:2], risks, strict=True):
                assert shown[i][0] == [pytest.approx(alpha)]
                assert shown[i][1] == [pytest.approx(risk, abs=1e-4)]
            np.testing.assert_allclose(shown[visible[2]][0], np.subtract(risks, full), atol=2e-4)
    # every trace belongs to one case, and what shows at first is the first case at the slider's first position
    assert all(sum(b.args[0]["visible"][i] for b in menu.buttons) == 1 for i in range(len(figure.data)))
    assert [trace.visible for trace in figure.data] == list(menu.buttons[0].args[0]["visible"])
    first = slider.steps[slider.active].args
    for i, x in zip(first[1], first[0]["x"], strict=True):
        np.testing.assert_allclose(figure.data[i].x, x, atol=1e-4)


def test_matplotlib_figures_are_drawn_once_and_closed(rng: np.random.Generator) -> None:
    two = LinearProblem(np.zeros(6), rng.standard_normal(6), (3, 3), noise=0.5)
    moved = fine_tune(*two.sample(12, rng), two.anchor)
    shift = style_shift(0.1, rng)
    case = (shift, fine_tune(*shift.sample(50, rng), shift.anchor))
    sizes = (4, 8)
    risks = [strategy_risks(shift, 50, 5, rng)] * 2
    figures = [
        plots.radii_landscape(two, moved),
        plots.shared_radius((2, 4), 20, rng),
        plots.ratios_by_distance((2, 3), np.array([0.1, 0.5, 1.0, 2.0]), 0.5, 20, rng),
        plots.approximation(sizes, approximation_errors(sizes, 20, rng)),
        plots.parabolas({"a": case, "b": case}),
        plots.regimes([shift, style_shift(0.9, rng)], 50, 20, rng),
        plots.layer_optima(two, moved),
        plots.strategies([0.1, 0.2], risks),
        plots.held_out_curve(two, moved, (2, 6, 20), 50, rng),
        plots.outer_data({"a": (np.ones(2), 1.0, 2.0), "b": (np.zeros(2), 2.0, 1.0)}),
    ]
    for figure in figures:
        assert all(ax.get_xlabel() for ax in figure.axes)
        figure.draw_without_rendering()
    assert not plt.get_fignums()


def test_a_table_of_checks_typesets_their_names() -> None:
    names = {
        "‖Δ‖²_Σ' ≥ e^(−m/2), α⋆_l": "‖Δ‖²<sub>Σ′</sub> ≥ e<sup>−m/2</sup>, α⋆<sub>l</sub>",
        "‖Πw − Πw'‖_∞, R'(1)": "‖Πw − Πw′‖<sub>∞</sub>, R′(1)",
        "the solver's minimum (rows' balls)": "the solver's minimum (rows' balls)",
    }
    lines = table([Check(name, "identity", 0.0, 1, 1.0) for name in names]).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {shown}" for shown in names.values()]
