"""Chapter 5 on mini-batches and MARS radii: every check holds, the plain run is the package's, the figures draw."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tpgm.book.linear import verify_bilevel, verify_mars, verify_ratchet
from tpgm.book.linear.checks import Check
from tpgm.book.linear.mars import lengths, mars, nearest, outer_loss
from tpgm.book.linear.ratchet import Stream, run, run_package
from tpgm.book.plots import draw_ratchet as plots

CHECKS: dict[str, Callable[[np.random.Generator], list[Check]]] = {
    "vote": lambda rng: verify_ratchet.vote(100_000, rng),
    "alignment": lambda rng: verify_ratchet.alignment(100_000, rng),
    "ratchet": lambda rng: verify_ratchet.ratchet(1000, rng),
    "resets": lambda rng: verify_ratchet.resets(1000, rng),
    "budget": lambda rng: verify_ratchet.budget(1000, rng),
    "convergence": lambda rng: verify_ratchet.convergence(1000, rng),
    "MARS at rest": lambda rng: verify_mars.at_rest(1000, rng),
    "MARS example": lambda rng: verify_mars.example(),
    "kinks": lambda rng: verify_mars.kinks(1000, rng),
    "the bound is attained": lambda rng: verify_bilevel.gap_attained(100, rng),
    "L2-SP": lambda rng: verify_bilevel.penalty_path(30, rng),
    "nearest the anchor": lambda rng: verify_bilevel.nearest_anchor(3, rng),
}


@pytest.mark.parametrize("name", CHECKS)
def test_holds(name: str) -> None:
    for check in CHECKS[name](np.random.default_rng(1)):
        check.require()


STREAM = Stream((0.1,) * 3, (20,) * 3, step_size=0.02, steps=60)


@pytest.mark.parametrize("start", ["half-smallest", "largest"])
@pytest.mark.parametrize("warmup", [0, 20])
def test_the_plain_run_is_the_packages(start: str, warmup: int) -> None:
    plain = run(STREAM, [0.003, 0.1], warmup, seed=2, start=start)
    package = run_package(STREAM, 0.1, warmup, seed=2, start=start)
    for ours, theirs in zip(plain, package, strict=True):
        np.testing.assert_allclose(ours[:, 1], theirs[:, 0], rtol=1e-10, atol=1e-14)


def test_no_constraint_before_the_warmup_is_over() -> None:
    path = run(STREAM, [0.1, 0.1], [10, STREAM.steps])
    assert np.isinf(path.radii[:10, 0]).all()
    assert np.isfinite(path.radii[10:, 0]).all()
    assert np.isinf(path.radii[:, 1]).all()
    np.testing.assert_array_equal(path.norms[:10, 0], path.norms[:10, 1])


def test_a_radius_starts_again_from_its_floor() -> None:
    """What the ratchet says, on one run: after a reset the radius is no longer than the one step since."""
    path = run(Stream((0.0,) * 4, (60,) * 4, step_size=0.007), [0.3], [0])
    down = path.radii[:-1] <= 1.01e-8
    assert down.mean() > 0.1
    assert (path.radii[1:][down] <= path.lengths[1:][down] + 1e-8).all()


def test_free_steps_first_lower_the_risk() -> None:
    stream = Stream((0.1,) * 10, (60,) * 10, step_size=0.0067)
    pairs = [(rate, warmup) for warmup in (0, 150) for rate in (0.001, 0.003, 0.01, 0.03, 0.1)]
    risk = np.mean([run(stream, *zip(*pairs, strict=True), seed, "largest").risk[-1] for seed in range(3)], axis=0)
    assert risk[:5].min() > 1.85
    assert risk[5:].min() < 1.7


# --- MARS


def test_projections_on_the_l1_ball() -> None:
    rng = np.random.default_rng(0)
    sizes, radii = (3, 5), np.array([[0.4, 1.0]])
    v = rng.standard_normal((200, 8))
    for project in (mars, nearest):
        assert (lengths(project(v, radii, sizes), sizes) <= radii + 1e-12).all()
        inside = 0.01 * v
        np.testing.assert_allclose(project(inside, radii, sizes), inside, rtol=1e-12)
    others = mars(rng.standard_normal((200, 8)), radii, sizes)
    best = np.sum((nearest(v, radii, sizes) - v) ** 2, axis=1)
    assert (np.sum((others - v) ** 2, axis=1) >= best - 1e-12).all()
    assert (np.sum((mars(v, radii, sizes) - v) ** 2, axis=1) >= best - 1e-12).all()


def test_one_radius_two_minima() -> None:
    """The example of the design: n = (1, 2), h = (3, 4), optima (0, 1); both minima have height 3."""
    gamma = np.linspace(0.01, 2.5, 2491)
    loss = outer_loss(gamma, [np.array([1.0]), np.array([2.0])], (3.0, 4.0), (0.0, 1.0))
    low = np.flatnonzero((loss[1:-1] < loss[:-2]) & (loss[1:-1] <= loss[2:])) + 1
    np.testing.assert_allclose(gamma[low], [0.5, 2.0], atol=2e-3)
    np.testing.assert_allclose(loss[low], 3.0, atol=1e-4)


# --- figures


def test_figures() -> None:
    rng = np.random.default_rng(0)
    path = run(STREAM, [0.1, 0.003], [0, 20])
    rows = [
        {"config": {"model": "a", "label": label}, "radii": {"step": [1, 2], "median": [0.1, 0.0]}}
        for label in ("one", "two")
    ]
    for figure in (
        plots.vote([0.0, 1.0], (4, 16), 50, rng),
        plots.ratchet(path, ["from the start", "after 20 steps"]),
        plots.cure([0.01, 0.1], {"0": np.ones((2, 3)), "20": np.zeros((2, 3))}, 2.0, np.ones(3)),
        plots.kept((0.3, 3.0, 30.0)),
        plots.mars(np.linspace(0.0, 0.2, 9)),
        plots.networks(rows, {"a": "A", "b": "not there"}),
    ):
        assert isinstance(figure, plt.Figure)
    assert not plt.get_fignums()


@pytest.fixture
def page() -> str:
    rates, warmups = (0.01, 0.1), (0, 20, 40)
    pairs = [(rate, warmup) for rate in rates for warmup in warmups]
    path = run(STREAM, *zip(*pairs, strict=True))
    return plots.sliders(path, path.risk[-1], rates, warmups, STREAM, 1.5, 'radius "and" floor')


def test_the_sliders_are_the_browsers_own_and_need_no_host(page: str) -> None:
    assert page.count('<input type="range"') == 2
    assert page.count("aria-label") >= 4
    assert "&quot;and&quot;" in page
    assert "http" not in page
    assert 'aria-live="polite"' in page


def test_every_pair_of_positions_has_its_state(page: str) -> None:
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert len(data["states"]) == len(data["rates"]) * data["columns"] == 6
    for number, state in enumerate(data["states"]):
        points = state["radius"].count("L") + 1
        assert points == STREAM.steps - data["warmups"][number % 3]  # nothing is drawn before a radius exists
        assert "ID risk" in state["says"]
    first = data["states"][3]
    assert f'd="{first["radius"]}"' in page, "without JavaScript the sliders' first position shows"
