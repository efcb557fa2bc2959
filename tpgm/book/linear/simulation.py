"""Simulated fine-tuning in the linear model: random problems, displacements, learned ratios; vectorised over draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpgm.book.linear.problem import Array, LinearProblem, displacement_matrix, fine_tune, layer_slices, solve
from tpgm.book.linear.ratios import expected_moments, layer_norms, outer_qp, regime_threshold, solve_outer_qp


class Trained(NamedTuple):
    """A random problem, its training set and the displacement that fine-tuning on it gives."""

    problem: LinearProblem
    x: Array
    y: Array
    displacement: Array


def random_second_moment(rng: np.random.Generator, sizes: tuple[int, ...]) -> Array:
    """A random positive semi-definite matrix, zero between the given blocks; a fifth of the blocks lack rank."""
    cov = np.zeros((sum(sizes), sum(sizes)))
    for block, size in zip(layer_slices(sizes), sizes, strict=True):
        rank = max(1, size - 1) if rng.random() < 0.2 else 2 * size
        root = rng.standard_normal((size, rank)) * rng.lognormal(sigma=0.7, size=(size, 1))
        cov[block, block] = root @ root.T / rank
    return cov


def random_trained(rng: np.random.Generator, *, block_diagonal: bool = False) -> Trained:
    """1 to 4 layers of 1 to 5 weights; random ``Σ``, ``Σ'``, noise, anchor, optimum; fewer or more rows than weights.

    Every fifth training set repeats a row, so that it lacks rank. With block_diagonal, ``Σ`` is so over layers.
    """
    sizes = tuple(int(size) for size in rng.integers(1, 6, size=rng.integers(1, 5)))
    d = sum(sizes)
    problem = LinearProblem(
        anchor=rng.standard_normal(d),
        optimum=rng.standard_normal(d),
        sizes=sizes,
        cov_id=random_second_moment(rng, sizes if block_diagonal else (d,)),
        cov_ood=random_second_moment(rng, (d,)),
        noise=float(rng.uniform(0, 2)),
    )
    x, y = problem.sample(int(rng.integers(2, 2 * d + 3)), rng)
    if rng.random() < 0.2:
        x[-1], y[-1] = x[0], y[0]
    return Trained(problem, x, y, fine_tune(x, y, problem.anchor) - problem.anchor)


def random_rows(rng: np.random.Generator, problems: int, rows: int, width: int = 8) -> tuple[Array, Array, Array]:
    """L1 norms, curvatures and optima, each (problems, rows), of random rows under one radius, for ``Σ = I``.

    Each row is Gaussian with a log-normal scale, so the curvature is its squared length; optima are uniform on [0, 1].
    """
    entries = rng.lognormal(size=(problems, rows, 1)) * rng.standard_normal((problems, rows, width))
    return np.abs(entries).sum(axis=-1), (entries**2).sum(axis=-1), rng.random((problems, rows))


def random_displacements(
    delta: Array, n: int, noise: float, draws: int, rng: np.random.Generator, row_scale: Array | None = None
) -> Array:
    """Displacements after training on n Gaussian rows, (draws, d); isotropic unless row_scale (d,) scales columns."""

    def batches() -> Iterator[Array]:
        size = max(1, 2_000_000 // (n * len(delta)))
        for start in range(0, draws, size):
            x = rng.standard_normal((min(size, draws - start), n, len(delta)))
            if row_scale is not None:
                x *= row_scale
            y = x @ delta + noise * rng.standard_normal(x.shape[:2])
            transposed = x.transpose(0, 2, 1)
            if n < len(delta):
                yield (transposed @ np.linalg.solve(x @ transposed, y[..., None]))[..., 0]
            else:
                yield solve(transposed @ x, transposed @ y[..., None])[..., 0]

    return np.concatenate(list(batches()))


def layer_moments(displacements: Array, delta: Array, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """``⟨Δ_l,δ_l⟩`` and ``‖Δ_l‖²``, each (draws, L), of displacements (draws, d)."""
    starts = np.cumsum((0, *sizes[:-1]))
    return (
        np.add.reduceat(displacements * delta, starts, axis=1),
        np.add.reduceat(displacements**2, starts, axis=1),
    )


def layer_delta(distances: ArrayLike, sizes: tuple[int, ...], rng: np.random.Generator) -> Array:
    """``δ``, (d,): a random direction in each layer with ``‖δ_l‖² = s_l``."""
    delta = rng.standard_normal(sum(sizes))
    scale = np.sqrt(np.asarray(distances, dtype=np.float64)) / layer_norms(delta, sizes)
    return delta * np.repeat(scale, sizes)


def approximation_errors(
    layer_sizes: Sequence[int], draws: int, rng: np.random.Generator, *, noise: float = 0.5
) -> dict[str, Array]:
    """How far clipped ratios are from the clipped ratio of expectations ``ρ``, as layers grow in proportion.

    Four equal layers, n = d/2 rows; distances 0, 0.1, 0.2 and the one for which ``ρ = 1``, the edge of clipping.
    Returns, each (number of layer sizes, 4): "scatter" ``E|α*_l − ρ_l|`` and "bias" ``|E α*_l − ρ_l|``, both
    estimated from `draws` training sets, and "ratio" ``ρ_l``.
    """
    scatter, bias, ratios = [], [], []
    for size in layer_sizes:
        sizes, d = (size,) * 4, 4 * size
        # the layer's own distance is part of S, hence the factor 1/(1 − d_l/d)
        edge = regime_threshold(size, total=0.3, d=d, n=d // 2, noise=noise) * 4 / 3
        distances = np.array([0.0, 0.1, 0.2, edge])
        delta = layer_delta(distances, sizes, rng)
        inner, square = layer_moments(random_displacements(delta, d // 2, noise, draws, rng), delta, sizes)
        mean = expected_moments(distances, size, total=float(distances.sum()), d=d, n=d // 2, noise=noise)
        ratios.append(np.clip(mean[0] / mean[1], 0, 1))
        error = np.clip(inner / square, 0, 1) - ratios[-1]
        scatter.append(np.abs(error).mean(axis=0))
        bias.append(np.abs(error.mean(axis=0)))
    return {"scatter": np.array(scatter), "bias": np.array(bias), "ratio": np.array(ratios)}


def learn_ratios(
    problem: LinearProblem,
    displacement: Array,
    m: int,
    draws: int,
    rng: np.random.Generator,
    *,
    ood: bool = False,
    box: bool = False,
) -> Array:
    """Least-squares ratios learned on m fresh samples, (draws, L); ood draws the samples from OOD data.

    Unclipped, which needs m ≥ L; with box the minimiser over [0, 1]^L, one small QP a draw.
    """

    def batches() -> Iterator[Array]:
        size = max(1, 2_000_000 // (m * problem.d))
        for start in range(0, draws, size):
            count = min(size, draws - start)
            x, y = problem.sample(count * m, rng, ood)
            residual = (y - x @ problem.anchor).reshape(count, m, 1)
            columns = (x @ displacement_matrix(displacement, problem.sizes)).reshape(count, m, -1)
            h, b = columns.transpose(0, 2, 1) @ columns, columns.transpose(0, 2, 1) @ residual
            if box:
                yield np.stack([solve_outer_qp(*terms) for terms in zip(h, b[..., 0], strict=True)])
            else:
                yield solve(h, b)[..., 0]

    return np.concatenate(list(batches()))


def excess_risk(problem: LinearProblem, displacement: Array, ratios: Array) -> Array:
    """``R(α) − R(α°)`` with ``α°`` the unclipped minimiser, for ratios (…, L); needs ``H`` positive definite."""
    h, b = outer_qp(problem, displacement)
    error = ratios - np.linalg.solve(h, b)
    excess: Array = np.einsum("...k,kl,...l->...", error, h, error)
    return excess


# --- the examples of chapters 3 and 4


def ratio_curve(
    layer_size: int, rows: float, distances: ArrayLike, noise: float, draws: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Clipped ratios of layers of one size with the given distances, trained together on n = rows·d Gaussian rows.

    Returns, each (L,): "mean", "low" and "high" (10 % and 90 % quantiles).
    """
    distances = np.asarray(distances, dtype=np.float64)
    sizes = (layer_size,) * len(distances)
    d = sum(sizes)
    delta = layer_delta(distances, sizes, rng)
    inner, square = layer_moments(random_displacements(delta, round(rows * d), noise, draws, rng), delta, sizes)
    ratios = np.clip(inner / square, 0, 1)
    low, high = np.quantile(ratios, (0.1, 0.9), axis=0)
    return {"mean": ratios.mean(axis=0), "low": low, "high": high}


def style_shift(share: float, rng: np.random.Generator, *, noise: float = 0.5, mixed: bool = False) -> LinearProblem:
    """A problem with d = 200, S = 1 and layers of 40 and 160 weights; OOD the first counts 16 times as much.

    ``Σ = I``; ``Σ'`` is 4 on the first layer, think of inputs that carry drawing style, and 1/4 on the second. share:
    the part of ``S`` in the first layer: small for a pre-trained model that already copes with style. mixed deals
    the weights to the layers at random.
    """
    sizes = (40, 160)
    delta, scale = layer_delta([share, 1 - share], sizes, rng), np.repeat([4.0, 0.25], sizes)
    if mixed:
        order = rng.permutation(200)
        delta, scale = delta[order], scale[order]
    return LinearProblem(np.zeros(200), delta, sizes, cov_ood=np.diag(scale), noise=noise)


def strategy_risks(
    problem: LinearProblem, n: int, draws: int, rng: np.random.Generator
) -> dict[str, tuple[Array, Array]]:
    """ID and OOD risk, each (draws,), of ways to choose ratios, over training sets of n rows; needs ``Σ = I``.

    Ratios are the best for ID risk (as with validation data without end), except for the last, which sees OOD risk.
    "mixed layers" deals the weights at random to layers of the same sizes.
    """
    delta = problem.delta
    moved = random_displacements(delta, n, problem.noise, draws, rng)

    def best(inner: Array, square: Array) -> Array:
        return np.clip(inner / square, 0, 1)

    def layered(order: NDArray[np.int64]) -> Array:
        """Each weight's ratio, (draws, d), when the weights in this order are cut into layers."""
        ratios = best(*layer_moments(moved[:, order], delta[order], problem.sizes))
        return np.repeat(ratios, problem.sizes, axis=1)[:, np.argsort(order)]

    weighted = moved @ problem.second_moment(ood=True)
    ratios = {
        "pre-trained": np.zeros((draws, 1)),
        "full fine-tuning": np.ones((draws, 1)),
        "one ratio": best(moved @ delta, (moved**2).sum(axis=1))[:, None],
        "one per layer": layered(np.arange(problem.d)),
        "one per layer, mixed layers": layered(rng.permutation(problem.d)),
        "one ratio, chosen on OOD data": best(weighted @ delta, (weighted * moved).sum(axis=1))[:, None],
    }
    risks = {}
    for name, alpha in ratios.items():
        error = alpha * moved - delta
        id_, ood = ((error @ problem.second_moment(o) * error).sum(axis=1) for o in (False, True))
        risks[name] = (id_ + problem.noise**2, ood + problem.noise**2)
    return risks


def compare_outer_data(
    problem: LinearProblem, n: int, m: int, draws: int, rng: np.random.Generator
) -> dict[str, tuple[Array, float, float]]:
    """Ratios learned on the n training samples, on m ID or m OOD held-out ones: mean ratios (L,), ID and OOD risk."""
    found: dict[str, list[Array]] = {"training data": [], "ID held-out": [], "OOD held-out": []}
    risks: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(draws):
        train = problem.sample(n, rng)
        delta = fine_tune(*train, problem.anchor) - problem.anchor
        outer = (train, problem.sample(m, rng), problem.sample(m, rng, ood=True))
        for name, (x, y) in zip(found, outer, strict=True):
            columns = x @ displacement_matrix(delta, problem.sizes)
            alpha = solve_outer_qp(columns.T @ columns, columns.T @ (y - x @ problem.anchor))
            weights = problem.weights(delta, alpha)
            found[name].append(alpha)
            risks[name].append((problem.risk(weights), problem.risk(weights, ood=True)))
    return {name: (np.mean(found[name], axis=0), *np.mean(risks[name], axis=0).tolist()) for name in found}
