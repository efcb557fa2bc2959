"""Chapters 4 and 4b: statements hold, solvers agree with plain ones; `test_mutants.py` sees each check fail."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tpgm.book.linear import verify_held_out as verify
from tpgm.book.linear.checks import Check
from tpgm.book.linear.held_out import (
    SPENDING,
    box_guarantee,
    box_minimisers,
    nearest_within,
    one_standard_error,
    penalised_path,
    replicates,
    spend_samples,
    stock_ratio,
)
from tpgm.book.linear.problem import LinearProblem, fine_tune
from tpgm.book.linear.ratios import solve_outer_qp_reference
from tpgm.book.linear.simulation import layer_delta, style_shift
from tpgm.book.plots import draw_held_out as plots

DRAWS, PROBLEMS = 100_000, 1_000


STATEMENTS: dict[str, tuple[Callable[..., list[Check]], int]] = {
    "guarantee in the box": (verify.guarantee_in_the_box, PROBLEMS),
    "guarantee in the mean": (verify.guarantee_in_the_mean, PROBLEMS),
    "the formula is no bound": (verify.formula_is_no_bound, DRAWS),
    "alignment decides": (verify.id_ratios_and_alignment, DRAWS),
    "random ways": (verify.alignment_of_random_ways, DRAWS),
    "nearest within a price": (verify.nearest_model_within_a_price, PROBLEMS),
    "OOD change": (verify.ood_change_along_the_path, PROBLEMS),
    "clipped layers": (verify.clipped_layers_stay, PROBLEMS),
    "standard errors": (verify.standard_errors_of_the_rule, DRAWS),
    "replicates": (verify.replicates_in_place_of_validation, DRAWS),
    "Model Stock": (verify.stock_is_shrinkage, PROBLEMS),
    "k models or one": (verify.k_models_or_one, PROBLEMS),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statement_holds(name: str, rng: np.random.Generator) -> None:
    function, trials = STATEMENTS[name]
    for check in function(trials, rng):
        check.require()
        needed = {"identity": 1, "expectation": DRAWS, "inequality": PROBLEMS}[check.kind]
        assert check.trials >= needed, check.name


def test_box_minimisers_are_those_of_the_plain_enumeration(rng: np.random.Generator) -> None:
    for layers in (1, 3, 5):
        root = rng.standard_normal((8, layers, layers + 2))
        h, b = root @ root.transpose(0, 2, 1), 3 * rng.standard_normal((8, layers))
        plain = [solve_outer_qp_reference(*terms) for terms in zip(h, b, strict=True)]
        np.testing.assert_allclose(box_minimisers(h, b), plain, atol=1e-10)
    with pytest.raises(ValueError, match="7 layers have 3\\^7 faces"):
        box_minimisers(np.eye(7), np.ones(7))


def test_guarantee_without_information_is_infinite() -> None:
    assert box_guarantee(np.eye(2), np.diag([1.0, 0.0]), np.ones(2)) == np.inf


def test_spent_samples(rng: np.random.Generator) -> None:
    problem = LinearProblem(np.ones(12), 1 + layer_delta([0.1, 2.0], (6, 6), rng), (6, 6), noise=1.0)
    risks = spend_samples(problem, 30, 10, 3_000, rng)
    assert tuple(risks) == SPENDING
    mean = {name: values.mean() for name, values in risks.items()}
    error = {name: values.std() / np.sqrt(3_000) for name, values in risks.items()}
    assert abs(mean["trained on"] - (1 + 12 / (40 - 12 - 1))) < 4 * error["trained on"]
    assert mean["cross-fitted"] + 4 * error["cross-fitted"] < mean["held out"]
    # with samples without end nothing is left to gain, and refitting forgets nothing
    exact = LinearProblem(problem.anchor, problem.optimum, problem.sizes, noise=0.0)
    for name, values in spend_samples(exact, 30, 10, 20, rng).items():
        assert values.max() < 1e-12, name


def test_a_price_out_of_reach_is_named(rng: np.random.Generator) -> None:
    h, b, squares = np.diag([1.0, 2.0]), np.array([0.5, 0.5]), np.array([1.0, 3.0])
    for price in (0.0, 0.375):
        with pytest.raises(ValueError, match="choose a lower one" if price else "must lie between"):
            nearest_within(h, b, squares, price)
    path = penalised_path(h, b, squares, [0.0, 1e12])
    np.testing.assert_allclose(path, [[0.5, 0.25], [0, 0]], atol=1e-9)


def test_the_rule_goes_back_and_pays_in_id_risk(rng: np.random.Generator) -> None:
    problem = style_shift(0.02, rng, mixed=True)
    for paired in (False, True):
        result = one_standard_error(problem, 100, 40, 40, rng, paired=paired)
        assert np.all(result["ratios"][:, 1].sum(axis=1) <= result["ratios"][:, 0].sum(axis=1) + 1e-9)
        change = result["id"][:, 2] - result["id"][:, 1]
        assert change.mean() > 2 * change.std() / np.sqrt(40)
        assert result["ood"][:, 2].mean() < result["ood"][:, 1].mean()


def test_replicates_without_noise_and_stock_of_one(rng: np.random.Generator) -> None:
    delta = rng.standard_normal(6)
    shared = replicates(delta, 3, 0.0, 2, 5, rng, shared_inputs=True)
    np.testing.assert_allclose(shared[:, 0], shared[:, 1])
    assert not np.allclose(*np.moveaxis(replicates(delta, 3, 0.0, 2, 5, rng), 1, 0))
    np.testing.assert_allclose(
        replicates(delta, 9, 0.0, 2, 5, rng, shared_inputs=True), np.broadcast_to(delta, (5, 2, 6))
    )
    assert stock_ratio(0.5, 1) == 0.5
    assert stock_ratio(0.5, 2) == pytest.approx(2 / 3)


def test_figures_are_drawn(rng: np.random.Generator) -> None:
    case = style_shift(0.8, rng, mixed=True)
    moved = fine_tune(*case.sample(100, rng), case.anchor) - case.anchor
    small = LinearProblem(np.zeros(12), layer_delta([0.1, 2.0], (6, 6), rng), (6, 6), noise=1.0)
    figures = [
        plots.spending({m: spend_samples(small, 20, m, 5, rng) for m in (5, 10)}),
        plots.formula_and_guarantee((6.0, 0.5), [5, 50], 20, rng),
        plots.alignments(20, rng),
        plots.price_and_gain({"far": (case, moved)}),
        plots.rule_changes({("far", 40): one_standard_error(case, 100, 40, 3, rng)}),
        plots.cosines(10, rng),
    ]
    for figure in figures:
        assert all(ax.get_xlabel() for ax in figure.axes)
        figure.canvas.draw()
    assert not plt.get_fignums()
