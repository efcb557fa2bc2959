"""Chapter 5's comparison on random problems: exact bi-level, TPGM at every step, TPGM once at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from tpgm.book.linear.alternation import alternate, end_of_training
from tpgm.book.linear.bilevel import Bilevel, solve_exact
from tpgm.book.linear.problem import Array, LinearProblem

SIZES = (3, 4, 5)


class Drawn(NamedTuple):
    """A random problem: the population it comes from, and the bi-level problem of its training and validation sets."""

    population: LinearProblem
    bilevel: Bilevel


class Comparison(NamedTuple):
    """Results on P problems, by method name.

    outer_loss, risk: (P,) validation loss and ID risk (both with the noise) of every method's final weights;
    radii_loss: (P,) validation loss of ``w*(γ)`` at every method's final radii γ; local_minima: (P,) bool, whether the
    exact method's starts ended in different minima.
    """

    outer_loss: dict[str, Array]
    risk: dict[str, Array]
    radii_loss: dict[str, Array]
    local_minima: Array


def draw_problem(
    rng: np.random.Generator, sizes: tuple[int, ...] = SIZES, n: int = 24, m: int = 24, noise: float = 1.0
) -> Drawn:
    """n training and m validation rows, Gaussian, from one random population; anchor 0.

    ``Σ`` has eigenvalues log-uniform in [e^-1.5, e^1.5] and random eigenvectors, so layers are correlated; layer l's
    way to the optimum has a random direction and a root mean square length log-uniform in [0.1, 2].
    """
    d = sum(sizes)
    vectors = np.linalg.qr(rng.standard_normal((d, d)))[0]
    cov = (vectors * np.exp(rng.uniform(-1.5, 1.5, d))) @ vectors.T
    lengths = np.exp(rng.uniform(np.log(0.1), np.log(2.0), len(sizes)))
    optimum = np.repeat(lengths / np.sqrt(sizes), sizes) * rng.standard_normal(d)
    population = LinearProblem(np.zeros(d), optimum, sizes, cov_id=(cov + cov.T) / 2, noise=noise)
    training, validation = population.sample(n, rng), population.sample(m, rng)
    return Drawn(population, Bilevel.from_data(np.zeros(d), *training, *validation, sizes))


def gradient_cosines(problem: Bilevel, tightness: ArrayLike) -> dict[str, Array]:
    """Cosine of TPGM's radius gradient with the exact hypergradient at radii ``t ‖Δ_l‖``, (T,) for tightness t (T,).

    "every step": where alternation would rest with these radii; "at the end": projecting the fine-tuned weights. NaN
    where the hypergradient is zero.
    """
    result: dict[str, list[float]] = {"every step": [], "at the end": []}
    for t in np.asarray(tightness, dtype=np.float64):
        radii = t * problem.free_radii
        exact = problem.hypergradient(radii)
        for name, displacement in (("every step", None), ("at the end", problem.displacement)):
            ours = problem.projection_gradient(radii, displacement)
            length = np.linalg.norm(exact) * np.linalg.norm(ours)
            result[name].append(float(exact @ ours / length) if length > 0 else np.nan)
    return {name: np.array(cosines) for name, cosines in result.items()}


def compare(drawn: Sequence[Drawn], *, steps: int, radius_lr: float, tv: Sequence[float] = (0.0,)) -> Comparison:
    """Every method on every problem. Alternation runs once for each strength in `tv`, which its name then bears."""
    problems = [one.bilevel for one in drawn]
    exact = [solve_exact(problem, starts=1) for problem in problems]
    found: dict[str, tuple[list[Array], list[Array]]] = {
        "exact bi-level": ([e.displacement for e in exact], [e.radii for e in exact]),
    }
    for strength in tv:
        path = alternate(problems, steps=steps, radius_lr=radius_lr, tv=strength)
        name = "TPGM every step" + (f", TV {strength:g}" if strength else "")
        found[name] = (list(path.displacement), list(path.radii[-1]))
    ratios = [end_of_training(problem) for problem in problems]
    pairs = list(zip(problems, ratios, strict=True))
    found["TPGM at the end"] = (
        [problem.displacement * np.repeat(alpha, problem.sizes) for problem, alpha in pairs],
        [problem.free_radii * alpha for problem, alpha in pairs],
    )
    found["fine-tuning"] = ([p.displacement for p in problems], [p.free_radii for p in problems])
    found["pre-trained"] = ([0 * p.displacement for p in problems], [0 * p.free_radii for p in problems])

    def losses(of: int) -> dict[str, Array]:
        measure = (Bilevel.outer_loss, Bilevel.value)[of]
        return {
            name: np.array([float(measure(p, at)) for p, at in zip(problems, both[of], strict=True)])
            for name, both in found.items()
        }

    risk = {
        name: np.array([one.population.risk(one.population.anchor + v) for one, v in zip(drawn, both[0], strict=True)])
        for name, both in found.items()
    }
    spread = np.array([np.ptp(e.reached) > 1e-6 * e.loss for e in exact])
    return Comparison(losses(0), risk, losses(1), spread)


def interval(values: ArrayLike, statistic: str = "mean", seed: int = 0) -> tuple[float, float, float]:
    """Mean or median over problems with its 95 % bootstrap interval (percentile, 2 000 resamples): (value, low, high).

    NaN values are left out. Raises ValueError for another statistic.
    """
    if statistic not in ("mean", "median"):
        raise ValueError(f"statistic must be 'mean' or 'median', got {statistic!r}")
    every = np.asarray(values, dtype=np.float64)
    known = every[~np.isnan(every)]
    measure = np.mean if statistic == "mean" else np.median
    resampled = bootstrap(
        (known,), measure, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(measure(known)), float(resampled.low), float(resampled.high)
