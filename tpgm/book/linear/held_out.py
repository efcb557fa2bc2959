"""What a held-out set can buy and cannot see, in the linear model (book chapter 4 and the page that follows it).

A guarantee for ratios learned in the box; held-out against training samples; when ratios learned in distribution (ID)
serve out of distribution (OOD); the one-standard-error rule; replicates in place of validation data. Everything is
NumPy float64, and leading axes of arrays are draws.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from tpgm.book.linear.problem import Array, LinearProblem, layer_slices, solve
from tpgm.book.linear.ratios import expected_moments
from tpgm.book.linear.simulation import random_displacements


def box_minimisers(h: Array, b: Array) -> Array:
    """`solve_outer_qp` for many problems at once: the minimisers of ``αᵀHα − 2bᵀα`` over [0, 1]^L, (…, L).

    h: (…, L, L) positive definite; b: (…, L). Tries all ``3^L`` faces of the box; raises ValueError for L > 6.
    """
    layers = b.shape[-1]
    if layers > 6:
        raise ValueError(f"{layers} layers have 3^{layers} faces; use solve_outer_qp for each problem")
    best, lowest = np.zeros(b.shape), np.full(b.shape[:-1], np.inf)
    for face in product((0.0, 1.0, np.nan), repeat=layers):
        alpha = np.broadcast_to(np.array(face), b.shape).copy()
        free = np.isnan(face)
        if free.any():
            right = b[..., free] - (h[..., free, :][..., ~free] @ alpha[..., ~free, None])[..., 0]
            alpha[..., free] = solve(h[..., free, :][..., free], right[..., None])[..., 0]
        value = ((h @ alpha[..., None])[..., 0] * alpha).sum(-1) - 2 * (b * alpha).sum(-1)
        better = (value < lowest) & (alpha >= -1e-13).all(-1) & (alpha <= 1 + 1e-13).all(-1)
        best[better], lowest[better] = alpha[better], value[better]
    return np.clip(best, 0.0, 1.0)


# --- a guarantee in the box


def box_guarantee(h: Array, sampled: Array, score: Array) -> Array:
    """What ratios learned in a convex set can cost at most: ``‖ζ‖²_{H⁻¹}/λ²``, or ``/(2λ−1)`` where ``λ > 1``, (…).

    h: ``H`` (L, L); sampled: ``Ĥ = mean(zzᵀ)`` (…, L, L); score: ``ζ = mean(ze) − E(ze)`` (…, L), where ``e`` is the
    residual of the best ratios in the set. ``λ`` is the smallest eigenvalue of ``H^{-1/2} Ĥ H^{-1/2}``; infinite where
    it is 0.
    """
    inverse = np.linalg.inv(np.linalg.cholesky(h))
    smallest = np.linalg.eigvalsh(inverse @ sampled @ inverse.T)[..., 0]
    squared = ((score @ inverse.T) ** 2).sum(-1)
    with np.errstate(divide="ignore"):
        bound: Array = squared / np.where(smallest > 1, 2 * smallest - 1, np.maximum(smallest, 0.0) ** 2)
    return bound


def mean_squared_score(best: float, free: float, layers: int, samples: ArrayLike) -> Array:
    """``E‖ζ‖²_{H⁻¹} = ((L+1)R(α*) − R(α°))/m`` for Gaussian inputs; best: ``R(α*)`` in the box, free: ``R(α°)``."""
    return ((layers + 1) * best - free) / np.asarray(samples, dtype=np.float64)


def clipped_excess(optimum: tuple[float, float], m: int, draws: int, rng: np.random.Generator) -> Array:
    """Excess risk, (draws,), of two ratios learned in the box on m samples: ``H = I``, ``σ = 1``, ``α°`` = optimum."""
    free = np.array(optimum)
    z = rng.standard_normal((draws, m, 2))
    r = z @ free + rng.standard_normal((draws, m))
    transposed = z.transpose(0, 2, 1)
    learned = box_minimisers(transposed @ z, (transposed @ r[..., None])[..., 0])
    excess: Array = ((learned - free) ** 2).sum(axis=1) - ((np.clip(free, 0, 1) - free) ** 2).sum()
    return excess


# --- held out, or trained on

SPENDING = ("held out", "trained on", "James–Stein", "refit", "cross-fitted")


def spend_samples(
    problem: LinearProblem, n: int, m: int, draws: int, rng: np.random.Generator, *, folds: int = 5
) -> dict[str, Array]:
    """ID risk, each (draws,), of five ways to spend m samples beyond n training samples; n above d, m above L.

    "held out": train on n, learn ratios in the box on m. "trained on": fine-tune on n + m. "James–Stein": shrink each
    layer of that by its estimated noise. "refit": ratios of "held out", displacement of "trained on". "cross-fitted":
    the same displacement, ratios from all samples, each scored by the model trained without its fold.
    """
    blocks, total = problem.layers, n + m
    starts = [block.start for block in blocks]
    found: dict[str, list[Array]] = {name: [] for name in SPENDING}

    def trained(x: Array, y: Array) -> Array:
        transposed = x.transpose(0, 2, 1)
        return solve(transposed @ x, transposed @ y[..., None])[..., 0]

    def moments(x: Array, y: Array, moved: Array) -> tuple[Array, Array]:
        """``Ĥ`` and ``b̂``, up to the number of samples."""
        z = np.add.reduceat(x * moved[:, None, :], starts, axis=2)
        transposed = z.transpose(0, 2, 1)
        return transposed @ z, (transposed @ y[..., None])[..., 0]

    for start in range(0, draws, 200):
        count = min(200, draws - start)
        x, y = problem.sample(count * total, rng)
        x = x.reshape(count, total, problem.d)
        y = y.reshape(count, total) - x @ problem.anchor
        some, every = trained(x[:, :n], y[:, :n]), trained(x, y)

        curvature, linear = np.zeros((count, len(starts), len(starts))), np.zeros((count, len(starts)))
        for held in np.array_split(np.arange(total), folds):
            others = np.setdiff1d(np.arange(total), held)
            terms = moments(x[:, held], y[:, held], trained(x[:, others], y[:, others]))
            curvature, linear = curvature + terms[0], linear + terms[1]
        crossed = box_minimisers(curvature, linear)

        residual = y - (x @ every[..., None])[..., 0]
        variance = (residual**2).sum(1) / (total - problem.d)
        spread = np.einsum("...ii->...i", np.linalg.inv(x.transpose(0, 2, 1) @ x))
        widths = np.array(problem.sizes)
        noise = variance[:, None] * np.add.reduceat(spread, starts, axis=1)
        stein = np.maximum(0.0, 1 - (1 - 2 / widths) * noise / np.add.reduceat(every**2, starts, axis=1))

        learned = box_minimisers(*moments(x[:, n:], y[:, n:], some))
        for name, ratios, moved in zip(
            SPENDING, (learned, np.ones_like(learned), stein, learned, crossed), (some, *[every] * 4), strict=True
        ):
            error = np.repeat(ratios, problem.sizes, axis=1) * moved - problem.delta
            found[name].append(problem.noise**2 + ((error @ problem.second_moment()) * error).sum(1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


# --- when ID ratios serve OOD


def alignment(delta: Array, cov_ood: Array, sizes: tuple[int, ...]) -> Array:
    """``κ_l = (‖δ_l‖²_{Σ'_l}/s_l)/(tr Σ'_l/d_l)``, (…, L): what a layer's way costs OOD, against the average direction.

    delta: (…, d), no layer zero; cov_ood: ``Σ'`` (d, d), of which only the blocks on the diagonal count.
    """
    found = []
    for block in layer_slices(sizes):
        way, metric = delta[..., block], cov_ood[block, block]
        cost = ((way @ metric) * way).sum(-1) / (way**2).sum(-1)
        found.append(cost / np.trace(metric) * len(metric))
    return np.stack(found, axis=-1)


def alignment_variance(metric: Array) -> float:
    """``Var κ_l`` for a uniformly random direction: ``2(d_l tr Σ'²/(tr Σ')² − 1)/(d_l + 2)``; metric: ``Σ'_l``."""
    d = len(metric)
    return float(2 * (d * np.trace(metric @ metric) / np.trace(metric) ** 2 - 1) / (d + 2))


# --- the one-standard-error rule


def penalised_path(h: Array, b: Array, squares: Array, strength: ArrayLike) -> Array:
    """``α(μ) = (H + μQ)⁻¹b``, (…, L), for strengths μ (…): the path from the best ratios (μ = 0) to the anchor.

    squares: ``‖Δ_l‖²`` (L,), the diagonal of ``Q``. Not clipped.
    """
    mu = np.asarray(strength, dtype=np.float64)[..., None, None]
    return solve(h + mu * np.diag(squares), np.broadcast_to(b[:, None], (*mu.shape[:-2], len(b), 1)))[..., 0]


def nearest_within(h: Array, b: Array, squares: Array, price: float) -> tuple[Array, float]:
    """The ratios nearest to the anchor, ``min Σ‖α_lΔ_l‖²``, among all with ``R(α) ≤ R(α*) + price``, and their ``μ``.

    h, b: ``H`` positive definite and ``b``, with ``α* = H⁻¹b`` inside the box. Raises ValueError for a price that is
    not between 0 and ``R(0) − R(α*)``.
    """
    best = np.linalg.solve(h, b)
    if not 0 < price < best @ h @ best:
        raise ValueError(
            f"price {price} must lie between 0 and R(0) − R(α*) = {best @ h @ best:.6g}: choose a lower one"
        )
    root = np.linalg.cholesky(h)
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse * squares @ inverse.T)
    share = (vectors.T @ root.T @ best) ** 2

    def surplus(log_strength: float) -> float:
        given = np.exp(log_strength) * values
        return float(np.log(((given / (1 + given)) ** 2 * share).sum() / price))

    mu = float(np.exp(brentq(surplus, -80.0, 80.0, xtol=1e-14, rtol=1e-15)))
    return penalised_path(h, b, squares, mu), mu


def one_standard_error(
    problem: LinearProblem, n: int, m: int, draws: int, rng: np.random.Generator, *, paired: bool = False
) -> dict[str, Array]:
    """Best validated ratios against the nearest model that m validation samples cannot tell from them.

    "cannot tell": the mean validation loss is above the lowest by at most its standard error, or with `paired` by at
    most the standard error of the paired difference. Returns "id" and "ood", each (draws, 3): the risks of full
    fine-tuning, of the best validated ratios and of the rule; and "ratios" (draws, 2, L) of the latter two. Training
    inputs are standard Gaussian.
    """
    strengths = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 120)])
    starts = [block.start for block in problem.layers]
    moved = random_displacements(problem.delta, n, problem.noise, draws, rng)
    chosen = []
    for delta in moved:
        x, y = problem.sample(m, rng)
        r, z = y - x @ problem.anchor, np.add.reduceat(x * delta, starts, axis=1)
        squares = np.add.reduceat(delta**2, starts)
        h, b = z.T @ z / m, z.T @ r / m
        pulled = h + strengths[:, None, None] * np.diag(squares)
        path = box_minimisers(pulled, np.broadcast_to(b, (len(strengths), len(b))))
        losses = (r[:, None] - z @ path.T) ** 2
        rise = losses - losses[:, :1]
        spread = (rise if paired else losses[:, :1]).std(axis=0, ddof=1) / np.sqrt(m)
        allowed = np.flatnonzero(rise.mean(axis=0) <= spread)
        chosen.append(path[[0, allowed[-1]]])
    ratios = np.stack(chosen)
    weights = np.concatenate([np.ones((draws, 1, problem.d)), np.repeat(ratios, problem.sizes, axis=2)], axis=1)
    error = weights * moved[:, None] - problem.delta
    floor = problem.noise**2
    risks = {
        name: floor + ((error @ problem.second_moment(ood)) * error).sum(-1)
        for name, ood in (("id", False), ("ood", True))
    }
    return {**risks, "ratios": ratios}


# --- replicates


def replicates(
    delta: Array, n: int, noise: float, k: int, draws: int, rng: np.random.Generator, *, shared_inputs: bool = False
) -> Array:
    """Displacements of k fine-tunings on n Gaussian rows each, (draws, k, d), whose noise is independent.

    Inputs are independent too, or one set for all k with shared_inputs.
    """
    if not shared_inputs:
        return random_displacements(delta, n, noise, draws * k, rng).reshape(draws, k, -1)
    found, size = [], max(1, 2_000_000 // (n * len(delta)))
    for start in range(0, draws, size):
        x = rng.standard_normal((min(size, draws - start), n, len(delta)))
        y = (x @ delta)[..., None] + noise * rng.standard_normal((len(x), n, k))
        transposed = x.transpose(0, 2, 1)
        few = n < len(delta)
        moved = transposed @ solve(x @ transposed, y) if few else solve(transposed @ x, transposed @ y)
        found.append(moved.transpose(0, 2, 1))
    return np.concatenate(found)


def expected_common(
    squared: ArrayLike, trace: ArrayLike, *, total: float, d: int, n: int, shared_inputs: bool = False
) -> Array:
    """``E⟨Δ⁽¹⁾_l, Δ⁽²⁾_l⟩`` of two replicates, (L,); arguments as in `expected_moments`."""
    if shared_inputs:
        return expected_moments(squared, trace, total=total, d=d, n=n, noise=0.0)[1]
    return min(1.0, n / d) ** 2 * np.asarray(squared, dtype=np.float64)


def stock_ratio(cosine: ArrayLike, k: int) -> Array:
    """Model Stock's ratio for the average of k fine-tunings, ``k c/(1 + (k−1)c)``; cosine: ``c``."""
    c = np.asarray(cosine, dtype=np.float64)
    return k * c / (1 + (k - 1) * c)


def averaged_moments(inner: Array, square: Array, common: Array, k: int) -> tuple[Array, Array]:
    """``E⟨Δ̄_l, δ_l⟩`` and ``E‖Δ̄_l‖²`` of the average of k replicates, from the moments of one and of a pair."""
    return inner, common + (square - common) / k
