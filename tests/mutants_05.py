"""Mutations of chapter 5's formulas and code, each of which a check of the chapter must catch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.mutants import Mutant
from tpgm.book.linear import alternation, bilevel, ratchet, verify_bilevel, verify_mars, verify_ratchet
from tpgm.book.linear.bilevel import Bilevel
from tpgm.book.linear.bilevel_study import SIZES
from tpgm.book.linear.checks import Check
from tpgm.book.linear.inner import Inner

Checks = Callable[[np.random.Generator], list[Check]]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def changed(checks: Checks, *changes: tuple[Any, str, Any]) -> Callable[[pytest.MonkeyPatch], list[Check]]:
    """The checks with attributes replaced: (object, name, value)."""

    def run(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
        with monkeypatch.context() as patch:
            for target, name, value in changes:
                patch.setattr(target, name, value)
            return checks(rng())

    return run


def wrapped(target: Any, name: str, change: Callable[..., Any]) -> tuple[Any, str, Any]:
    """Replace a function by ``change(original, *arguments)``."""
    original = getattr(target, name)
    return target, name, lambda *a, **k: change(original, *a, **k)


def inner_of(change: Callable[[Inner], Inner]) -> Callable[..., Inner]:
    return lambda original, *a, **k: change(original(*a, **k))


def scaled(factor: float) -> Callable[..., Any]:
    return lambda original, *a, **k: factor * original(*a, **k)


def pair(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., Any]:
    return lambda original, *a, **k: change(*original(*a, **k))


# --- the checks, small enough for a test


def inner_problem(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.inner_problem(60, r, plain_problems=4)


def training_value(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.training_value(60, r)


def penalty_path(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.penalty_path(5, r)


def nearest_anchor(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.nearest_anchor(1, r)


def hypergradient(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.hypergradient(3, r)


def at_the_end(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.once_at_the_end(4, r)


def left_out(r: np.random.Generator) -> list[Check]:
    return [*verify_bilevel.what_tpgm_leaves_out(40, r), *verify_bilevel.gap_attained(5, r)]


def at_rest(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.alternation_at_rest(2, r)


def convergence(r: np.random.Generator) -> list[Check]:
    return verify_ratchet.convergence(60, r)


def mars(r: np.random.Generator) -> list[Check]:
    return verify_mars.at_rest(30, r, packages=2)


def mars_example(r: np.random.Generator) -> list[Check]:
    return verify_mars.example()


def kinks(r: np.random.Generator) -> list[Check]:
    return verify_mars.kinks(30, r)


def vote(r: np.random.Generator) -> list[Check]:
    return verify_ratchet.vote(100_000, r)


def alignment(r: np.random.Generator) -> list[Check]:
    return verify_ratchet.alignment(100_000, r)


def the_ratchet(r: np.random.Generator) -> list[Check]:
    return verify_ratchet.ratchet(50, r, ratchet.run, packages=2)


def resets(r: np.random.Generator) -> list[Check]:
    return verify_ratchet.resets(200, r)


def budget(r: np.random.Generator) -> list[Check]:
    return verify_ratchet.budget(100, r)


def stuck(r: np.random.Generator) -> list[Check]:
    return verify_bilevel.stuck_point()


# --- what is put in the place of something


def anisotropic(r: np.random.Generator) -> np.ndarray:
    return np.diag(r.uniform(0.5, 2.0, sum(SIZES)))


def unclipped(original: Any, *arguments: Any, **settings: Any) -> Any:
    """The plain run without the clip of `project_`: radii get ahead of their layers."""
    path = original(*arguments, **settings)
    return path._replace(radii=np.where(np.isfinite(path.radii), path.radii + 0.05, path.radii))


def forgetful(original: Any, *arguments: Any, **settings: Any) -> Any:
    """A run in which the weights do not go back when the radius is on its floor."""
    path = original(*arguments, **settings)
    return path._replace(norms=path.norms * 1.0001)


def l2_rows(v: np.ndarray, radii: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Rows scaled by different factors for their weights: no longer along themselves."""
    moved = verify_mars.nearest(v, radii, sizes)
    return np.asarray(moved)


def another_sum(original: Any, radius: Any, displacement: Sequence[Any], curvature: Any, best: Any) -> Any:
    return original(radius, displacement, curvature, (best[0] + 0.2, best[1]))


MUTANTS: list[Mutant] = [
    Mutant(
        5,
        "lem-inner",
        "multipliers doubled",
        changed(
            inner_problem,
            wrapped(verify_bilevel, "solve_inner", inner_of(lambda s: Inner(s.displacement, 2 * s.multipliers))),
        ),
    ),
    Mutant(
        5,
        "lem-inner",
        "a solution that ignores the radii",
        changed(
            inner_problem, wrapped(verify_bilevel, "solve_inner", lambda o, g, c, r, s, **k: o(g, c, r * 1e6, s, **k))
        ),
    ),
    Mutant(
        5,
        "lem-inner",
        "the solution shortened by 1e-6",
        changed(
            inner_problem,
            wrapped(
                verify_bilevel, "solve_inner", inner_of(lambda s: Inner(s.displacement * (1 - 1e-6), s.multipliers))
            ),
        ),
    ),
    Mutant(
        5,
        "lem-inner",
        "multipliers of the wrong sign",
        changed(
            inner_problem,
            wrapped(verify_bilevel, "solve_inner", inner_of(lambda s: Inner(s.displacement, -s.multipliers))),
        ),
    ),
    Mutant(
        5,
        "lem-inner",
        "largest radius without its second term",
        changed(inner_problem, (bilevel.Bilevel, "largest_radii", property(lambda p: 0.5 * p.free_radii))),
    ),
    Mutant(
        5,
        "lem-inner",
        "L2-SP with strengths 1 % larger",
        changed(penalty_path, wrapped(verify_bilevel, "norms_by_layer", scaled(0.99))),
    ),
    Mutant(5, "prop-nearest", "a large ridge", changed(lambda r: verify_bilevel.nearest_anchor(1, r, ridge=1e-2))),
    Mutant(
        5,
        "prop-nearest",
        "another inner solution than the nearest",
        changed(nearest_anchor, (verify_bilevel, "dykstra", lambda g, some, radii: some)),
    ),
    Mutant(
        5,
        "prop-nearest",
        "projected gradient from the anchor alone",
        changed(
            nearest_anchor,
            wrapped(
                verify_bilevel,
                "solve_inner_plain",
                lambda o, g, c, r, s, n, start: (
                    verify_bilevel.solve_inner(g + 1e-7 * np.eye(len(g)), c, r, s).displacement
                ),
            ),
        ),
    ),
    Mutant(
        5,
        "prop-training-value",
        "inner solution of other radii",
        changed(
            training_value,
            wrapped(verify_bilevel, "solve_inner", lambda o, g, c, r, s, **k: o(g, c, np.sin(4 * r) ** 2, s, **k)),
        ),
    ),
    Mutant(
        5,
        "prop-training-value",
        "slope −λγ",
        changed(
            training_value,
            wrapped(bilevel, "solve_inner", inner_of(lambda s: Inner(s.displacement, s.multipliers / 2))),
        ),
    ),
    Mutant(
        5,
        "thm-hypergradient",
        "TPGM's gradient in its place",
        changed(lambda r: verify_bilevel.hypergradient(3, r, lambda p, g: p.projection_gradient(g))),
    ),
    Mutant(
        5,
        "thm-hypergradient",
        "1e-6 too large",
        changed(lambda r: verify_bilevel.hypergradient(3, r, lambda p, g: 1.000001 * p.hypergradient(g))),
    ),
    Mutant(
        5,
        "prop-end",
        "the box is [0, ¼]",
        changed(at_the_end, wrapped(verify_bilevel, "end_of_training", lambda o, p: np.minimum(o(p), 0.25))),
    ),
    Mutant(
        5,
        "thm-left-out",
        "the response without the term across",
        changed(left_out, wrapped(verify_bilevel, "response", scaled(1.001))),
    ),
    Mutant(
        5,
        "thm-left-out",
        "anisotropic layers",
        changed(lambda r: verify_bilevel.what_tpgm_leaves_out(5, r, anisotropic)),
    ),
    Mutant(
        5,
        "thm-left-out",
        "hypergradient of a smaller metric",
        changed(left_out, wrapped(Bilevel, "hypergradient", scaled(1.001))),
    ),
    Mutant(
        5, "thm-left-out", "bound a tenth smaller", changed(left_out, wrapped(verify_bilevel, "gap_bound", scaled(0.9)))
    ),
    Mutant(
        5,
        "thm-left-out",
        "bound with a fourth of the difference of eigenvalues",
        changed(left_out, wrapped(verify_bilevel, "gap_bound", scaled(0.25))),
    ),
    Mutant(
        5, "thm-left-out", "bound a tenth larger", changed(left_out, wrapped(verify_bilevel, "gap_bound", scaled(1.1)))
    ),
    Mutant(
        5,
        "prop-rest",
        "radius gradient of another training step",
        changed(at_rest, wrapped(Bilevel, "projection_gradient", scaled(1.01))),
    ),
    Mutant(
        5,
        "prop-rest",
        "multipliers doubled",
        changed(at_rest, wrapped(bilevel, "solve_inner", inner_of(lambda s: Inner(s.displacement, 2 * s.multipliers)))),
    ),
    Mutant(
        5,
        "prop-rest",
        "weights that are no inner solution",
        changed(
            at_rest,
            wrapped(bilevel, "solve_inner", inner_of(lambda s: Inner(s.displacement[::-1].copy(), s.multipliers))),
        ),
    ),
    Mutant(
        5,
        "prop-converges",
        "contraction q²",
        changed(convergence, wrapped(verify_ratchet, "contraction", lambda o, *a: o(*a) ** 2)),
    ),
    Mutant(
        5,
        "prop-converges",
        "radii that move at no cost",
        changed(convergence, wrapped(verify_ratchet, "lipschitz", scaled(0.0))),
    ),
    Mutant(
        5,
        "prop-mars",
        "rest of the Euclidean projection",
        changed(lambda r: verify_mars.at_rest(30, r, l2_rows, packages=2)),
    ),
    Mutant(
        5,
        "prop-mars",
        "inner problem with radii of other rows",
        changed(mars, wrapped(verify_mars, "norms_by_layer", lambda o, *a: 0.9 * o(*a))),
    ),
    Mutant(5, "prop-mars", "minimiser that MARS scales", changed(mars, (verify_mars, "nearest", verify_mars.mars))),
    Mutant(
        5,
        "prop-mars",
        "minimiser over balls half as large",
        changed(mars, wrapped(verify_mars, "nearest", lambda o, v, radii, s: o(v, radii / 2, s))),
    ),
    Mutant(
        5,
        "prop-mars",
        "example: both projections exchanged",
        changed(mars_example, (verify_mars, "mars", verify_mars.nearest), (verify_mars, "nearest", verify_mars.mars)),
    ),
    Mutant(
        5,
        "prop-mars",
        "drop measured by the row's L2 norm",
        changed(kinks, (verify_mars, "slope_drop", lambda g, row: float(g @ row / np.linalg.norm(row)))),
    ),
    Mutant(5, "prop-mars", "drop of the other sign", changed(kinks, wrapped(verify_mars, "slope_drop", scaled(-1.0)))),
    Mutant(
        5,
        "prop-mars",
        "example: the first row wants ratio 0.2",
        changed(kinks, wrapped(verify_mars, "outer_loss", another_sum)),
    ),
    Mutant(
        5,
        "thm-vote",
        "mean slope without its sign",
        changed(vote, wrapped(verify_ratchet, "slope_moments", pair(lambda m, v: (-m, v)))),
    ),
    Mutant(
        5,
        "thm-vote",
        "variance of the slope over m − 1",
        changed(vote, wrapped(verify_ratchet, "slope_moments", pair(lambda m, v: (m, 1.5 * v)))),
    ),
    Mutant(
        5,
        "thm-vote",
        "variance without ⟨u, e⟩²",
        changed(
            vote,
            wrapped(
                verify_ratchet,
                "slope_moments",
                lambda o, u, e, c, s, m: (o(u, e, c, s, m)[0], o(u, e, c, s, m)[1] - 4 * (u @ c @ e) ** 2 / m),
            ),
        ),
    ),
    Mutant(
        5,
        "thm-vote",
        "the vote on the training step's own batch",
        changed(lambda r: verify_ratchet.vote(100_000, r, fresh=False)),
    ),
    Mutant(
        5,
        "thm-vote",
        "inputs that are not Gaussian",
        changed(lambda r: verify_ratchet.vote(100_000, r, gaussian=False)),
    ),
    Mutant(
        5,
        "thm-vote",
        "variance without 2R₀s + s²",
        changed(
            vote,
            wrapped(
                verify_ratchet,
                "agreement_moments",
                lambda o, s, d, r0, n, m: (s, o(s, d, r0, n, m)[1] - (2 * r0 * s + s * s) / (n * m)),
            ),
        ),
    ),
    Mutant(
        5,
        "thm-vote",
        "mean agreement s²",
        changed(vote, wrapped(verify_ratchet, "agreement_moments", pair(lambda m, v: (m * m, v)))),
    ),
    Mutant(
        5,
        "thm-vote",
        "signal N²s",
        changed(
            alignment,
            wrapped(verify_ratchet, "alignment_moments", lambda o, s, d, r0, n, k: (k * k * s, o(s, d, r0, n, k)[1])),
        ),
    ),
    Mutant(
        5,
        "thm-vote",
        "squared length without s in the noise",
        changed(
            alignment,
            wrapped(verify_ratchet, "alignment_moments", lambda o, s, d, r0, n, k: (k * s, k * k * s + k * d * r0 / n)),
        ),
    ),
    Mutant(5, "thm-ratchet", "radii ahead of their layers", changed(the_ratchet, wrapped(ratchet, "run", unclipped))),
    Mutant(
        5, "thm-ratchet", "plain run with lengths off by 1e-4", changed(the_ratchet, wrapped(ratchet, "run", forgetful))
    ),
    Mutant(
        5,
        "thm-ratchet",
        "the package without its clip",
        changed(the_ratchet, wrapped(verify_ratchet, "run_package", unclipped)),
    ),
    Mutant(5, "thm-ratchet", "bound u k / 2p", changed(resets, wrapped(verify_ratchet, "reset_bound", scaled(0.5)))),
    Mutant(
        5, "thm-ratchet", "bound without k", changed(resets, (verify_ratchet, "reset_bound", lambda u, k, p: u / p))
    ),
    Mutant(5, "prop-budget", "gradients that grow", changed(lambda r: verify_ratchet.budget(100, r, shrinking=False))),
    Mutant(5, "prop-budget", "constant 1 in place of 7.3", changed(budget, (verify_ratchet, "ADAM_BOUND", 1.0))),
    Mutant(
        5,
        "prop-budget",
        "Adam without the correction of its means",
        changed(budget, wrapped(verify_ratchet, "adam_steps", scaled(1.01))),
    ),
    Mutant(
        5,
        "prop-budget",
        "radii of twice the learning rate",
        changed(budget, wrapped(verify_ratchet, "radii_at_the_end", lambda o, n, t, lr, k: o(n, t, 2 * lr, k))),
    ),
    Mutant(
        5,
        "prop-hidden",
        "the correlation's sign changed",
        changed(
            stuck,
            (verify_bilevel, "hidden_need", lambda: alternation.two_weights(0.95, (0.01, 0.1), (0.11, -0.02))),
            (bilevel.Bilevel, "outer_gradient", lambda p, v: 2 * (p.outer_gram @ v + p.outer_moment)),
        ),
    ),
    Mutant(
        5,
        "prop-hidden",
        "hypergradient without the response",
        changed(
            stuck,
            (bilevel.Bilevel, "hypergradient", lambda p, g, inner=None: p.outer_gradient(p.inner(g).displacement)),
        ),
    ),
]
