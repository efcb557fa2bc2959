"""Numerical verification of what held-out data buy and cannot see (book chapters 4 and 4b): one function a statement.

As in `verify_ratios`, the keyword arguments that follow ``*`` break one assumption each; the tests set them and see the
check fail.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from tpgm.book.linear.checks import Check, expectation, identity, inequality
from tpgm.book.linear.held_out import (
    alignment,
    alignment_variance,
    averaged_moments,
    box_guarantee,
    box_minimisers,
    clipped_excess,
    expected_common,
    mean_squared_score,
    nearest_within,
    penalised_path,
    replicates,
    stock_ratio,
)
from tpgm.book.linear.problem import Array, LinearProblem, displacement_matrix, solve
from tpgm.book.linear.ratios import (
    MomentSetting,
    expected_moments,
    held_out_excess,
    outer_qp,
    solve_outer_qp,
    solve_outer_qp_reference,
)
from tpgm.book.linear.simulation import layer_delta, layer_moments, random_displacements

RELATIVE = 1e-11  # rounding that an inequality is allowed, relative to the size of the risks


def _positive(rng: np.random.Generator, sizes: tuple[int, ...]) -> Array:
    """A random positive definite matrix, zero between the given blocks."""
    cov = np.zeros((sum(sizes), sum(sizes)))
    end = 0
    for size in sizes:
        root = rng.standard_normal((size, 2 * size + 2)) * rng.lognormal(sigma=0.5, size=(size, 1))
        cov[end : end + size, end : end + size] = root @ root.T / (2 * size + 2)
        end += size
    return cov


def random_displaced(
    rng: np.random.Generator, *, inside: bool = True, block_diagonal: bool = False, most: int = 4
) -> tuple[LinearProblem, Array]:
    """A random problem and a displacement, at most `most` layers; with `inside` the best ratios lie in the box."""
    sizes = tuple(int(size) for size in rng.integers(1, 6, size=rng.integers(1, most + 1)))
    d, layers = sum(sizes), len(sizes)
    cov, cov_ood = (_positive(rng, sizes if block_diagonal else (d,)) for _ in range(2))
    delta = rng.standard_normal(d) * rng.lognormal(sigma=0.7, size=layers)[np.repeat(np.arange(layers), sizes)]
    columns, rest = displacement_matrix(delta, sizes), rng.standard_normal(d)
    rest -= columns @ solve(columns.T @ cov @ columns, columns.T @ cov @ rest)  # what no ratios reach
    free = rng.uniform(0.05, 0.95, layers) if inside else rng.uniform(-1.0, 2.0, layers)
    anchor = rng.standard_normal(d)
    optimum = anchor + columns @ free + rest
    return LinearProblem(anchor, optimum, sizes, cov, cov_ood, noise=float(rng.uniform(0.1, 2))), delta


def _risks(problem: LinearProblem, delta: Array, ratios: Array, ood: bool = False) -> Array:
    """Risk of the projected models, straight from the weights, (…) for ratios (…, L)."""
    error = np.repeat(ratios, problem.sizes, axis=-1) * delta - problem.delta
    risk: Array = problem.noise**2 + ((error @ problem.second_moment(ood)) * error).sum(-1)
    return risk


# --- a guarantee in the box


def guarantee_in_the_box(
    trials: int, rng: np.random.Generator, *, clip_only: bool = False, factor: float = 1.0
) -> list[Check]:
    """The bound on the excess risk of ratios learned in the box, for any ``Σ`` and m ≥ L samples; that it is sharp.

    clip_only clips the unconstrained solution instead of solving in the box; factor scales the bound.
    """
    slack = []
    for _ in range(trials):
        problem, delta = random_displaced(rng, inside=bool(rng.random() < 0.3))
        layers = len(problem.sizes)
        m = layers + int(rng.integers(1, 40))
        h, b = outer_qp(problem, delta)
        best = solve_outer_qp_reference(h, b)
        x, y = problem.sample(m, rng)
        z, r = x @ displacement_matrix(delta, problem.sizes), y - x @ problem.anchor
        sampled, linear = z.T @ z / m, z.T @ r / m
        learned = solve_outer_qp(sampled, linear)
        if clip_only:
            learned = np.clip(solve(sampled, linear), 0, 1)
        score = linear - sampled @ best - (b - h @ best)
        excess = float(_risks(problem, delta, learned) - _risks(problem, delta, best))
        bound = factor * float(box_guarantee(h, sampled, score))
        slack.append((bound - excess) / (excess + 1e-9 * problem.risk(problem.anchor)))

    attained = []
    for _ in range(50):
        layers = int(rng.integers(1, 5))
        h, sampled = _positive(rng, (layers,)), _positive(rng, (layers,))
        root = np.asarray(np.linalg.cholesky(h), dtype=np.float64)
        inverse = np.linalg.inv(root)
        values, vectors = np.linalg.eigh(inverse @ sampled @ inverse.T)
        if values[0] <= 1:  # no box: the error along the weakest direction
            score = root @ vectors[:, 0]
            moved = solve(sampled, score)
            excess = float(moved @ h @ moved)
        else:  # one layer, held at 1 by a slope that the samples do not show
            size, value = rng.lognormal(), float(values[0])
            h, sampled, score = np.array([[1.0]]), np.array([[value]]), np.array([-size])
            slope = size * (value - 1) / (2 * value - 1)
            short = max(0.0, (size - slope) / value)  # how far the samples put the ratio below 1
            excess = short**2 + 2 * slope * short
        attained.append(factor * float(box_guarantee(h, sampled, score)) / excess - 1)
    return [
        inequality("R(α̂) − R(α⋆) ≤ ‖ζ‖²/λ², or ‖ζ‖²/(2λ−1) for λ > 1", slack, rounding=1e-9),
        identity("and both bounds are attained", np.abs(attained).max(), 0, trials=50),
    ]


def guarantee_in_the_mean(
    trials: int, rng: np.random.Generator, *, draws: int = 100_000, gaussian: bool = True, factor: float = 1.0
) -> list[Check]:
    """``E‖ζ‖²_{H⁻¹}``, and the bound on the mean excess that follows (40 draws for each of `trials` random problems).

    gaussian=False takes inputs with signs ±1 for the first; factor scales the second.
    """
    checks = []
    for sizes, m in (((2, 3), 5), ((1, 2, 3), 12)):
        d, layers = sum(sizes), len(sizes)
        optimum = 2.5 * rng.standard_normal(d)
        problem = LinearProblem(np.zeros(d), optimum, sizes, cov_id=_positive(rng, (d,)), noise=0.5)
        delta = rng.uniform(0.5, 1.5, d)
        columns = displacement_matrix(delta, sizes)
        h, b = outer_qp(problem, delta)
        best, free = solve_outer_qp_reference(h, b), solve(h, b)
        if gaussian:
            x, y = problem.sample(draws * m, rng)
        else:
            x = rng.choice([-1.0, 1.0], (draws * m, d)) @ np.linalg.cholesky(problem.second_moment()).T
            y = x @ problem.optimum + problem.noise * rng.standard_normal(len(x))
        z = x @ columns
        score = (z * (y - z @ best)[:, None]).reshape(draws, m, layers).mean(axis=1) - (b - h @ best)
        squared = (score * solve(h, score.T).T).sum(axis=1)
        stated = mean_squared_score(float(_risks(problem, delta, best)), float(_risks(problem, delta, free)), layers, m)
        checks.append(expectation(f"E‖ζ‖² = ((L+1)R(α⋆) − R(α°))/m, L = {layers}, m = {m}", squared, stated))

    slack = []
    for _ in range(trials):
        problem, delta = random_displaced(rng, inside=False, most=3)
        layers, m = len(problem.sizes), int(rng.integers(40, 120))
        h, b = outer_qp(problem, delta)
        best, free = solve_outer_qp_reference(h, b), solve(h, b)
        x, y = problem.sample(40 * m, rng)
        z = (x @ displacement_matrix(delta, problem.sizes)).reshape(40, m, layers)
        r = (y - x @ problem.anchor).reshape(40, m, 1)
        transposed = z.transpose(0, 2, 1)
        learned = box_minimisers(transposed @ z, (transposed @ r)[..., 0])
        lowest, lower = float(_risks(problem, delta, best)), float(_risks(problem, delta, free))
        excess = float((_risks(problem, delta, learned) - lowest).mean())
        worst = max(float(_risks(problem, delta, np.array(corner))) for corner in product((0.0, 1.0), repeat=layers))
        rare = np.exp(-m * max(0.0, 1 - np.sqrt(0.5) - np.sqrt(layers / m)) ** 2 / 2)
        bound = 4 * float(mean_squared_score(lowest, lower, layers, m)) + rare * (worst - lowest)
        slack.append((factor * bound - excess) / lowest)
    return [*checks, inequality("mean excess ≤ 4((L+1)R(α⋆) − R(α°))/m + e^(−mt²/2)(max R − R(α⋆))", slack)]


def formula_is_no_bound(
    draws: int, rng: np.random.Generator, *, optimum: tuple[float, float] = (6.0, 0.5)
) -> list[Check]:
    """``H = I``, best ratios without the box (6, 0.5), m = 25: the excess in the box is above the unclipped formula.

    An optimum inside the box breaks it. The second check explains the size: with the first ratio held at 1, the second
    is a regression whose residual variance is ``R(α*)``.
    """
    m, free = 25, np.array(optimum)
    best = np.clip(free, 0, 1)
    excess = clipped_excess(optimum, m, draws, rng)
    formula = float(held_out_excess(1.0, 2, m))
    below = excess.mean() - 4 * excess.std(ddof=1) / np.sqrt(draws) - formula

    z = rng.standard_normal((2, draws, m))
    left = free[0] * z[0] + free[1] * z[1] + rng.standard_normal((draws, m)) - best[0] * z[0]
    second = (z[1] * left).sum(axis=1) / (z[1] ** 2).sum(axis=1)
    held_at_one = float(held_out_excess(1 + ((best - free) ** 2).sum(), 1, m))
    return [
        Check(
            "clipped excess exceeds the unclipped formula by 4 standard errors",
            "inequality",
            float(below < 0),
            draws,
            0.0,
        ),
        expectation("first ratio held at 1: excess R(α⋆)/(m−2)", (second - free[1]) ** 2, held_at_one),
    ]


# --- when ID ratios serve OOD


def id_ratios_and_alignment(
    draws: int, rng: np.random.Generator, *, trials: int = 1000, row_scale: bool = False, block_diagonal: bool = True
) -> list[Check]:
    """The OOD ratio is the ID formula at ``κ_l s_l``; it agrees with the ID ratio iff ``κ_l = 1`` or both are clipped.

    row_scale makes the training inputs anisotropic; block_diagonal=False lets ``Σ'`` mix layers.
    """
    sizes, distances, noise = (2, 4, 6), np.array([0.2, 3.0, 1.0]), 0.6
    d, checks = sum(sizes), []
    cov = _positive(rng, sizes)
    delta = layer_delta(distances, sizes, rng)
    if not block_diagonal:  # the same blocks, and a coupling of each layer's way with the others'
        cov = cov + 0.2 * np.outer(delta, delta) / (delta @ delta) * np.trace(cov) / d
    kappa = alignment(delta, cov, sizes)
    matrix = cov if not block_diagonal else np.where(np.equal.outer(*[np.repeat(range(3), sizes)] * 2), cov, 0.0)
    for n, regime in ((5, "n < d−1"), (30, "n > d+1")):
        drawn = random_displacements(delta, n, noise, draws, rng, np.linspace(0.5, 1.6, d) if row_scale else None)
        shared: MomentSetting = {"total": float(delta @ delta), "d": d, "n": n, "noise": noise}
        inner, square = expected_moments(kappa * distances, np.array(sizes), **shared)
        # half the derivative of the OOD risk in each ratio, at the stated ratios
        ratios = np.repeat(inner / square, sizes)
        slope = drawn * ((drawn * ratios - delta) @ matrix)
        slopes = np.add.reduceat(slope, np.cumsum((0, *sizes[:-1])), axis=1)
        checks.append(expectation(f"{regime}: the OOD slope vanishes at the ID formula of κs", slopes, 0.0))

    agree = []
    for _ in range(trials):
        d = int(rng.integers(6, 100))
        n = int(rng.integers(1, d - 1)) if rng.random() < 0.5 else int(rng.integers(d + 2, 3 * d + 3))
        size = int(rng.integers(1, d))
        s = float(rng.lognormal(sigma=1.5))
        shared = {"total": s + float(rng.lognormal()), "d": d, "n": n, "noise": float(rng.lognormal(sigma=0.5))}
        kappa_l = float(rng.choice([1.0, rng.lognormal()]))
        ratios_l = [float(np.divide(*expected_moments(k * s, size, **shared))) for k in (1.0, kappa_l)]
        same = np.ptp(np.clip(ratios_l, 0, 1)) == 0
        above = ratios_l[0] > ratios_l[1]
        agree.append(1.0 if same == (kappa_l == 1 or min(ratios_l) >= 1) and (kappa_l < 1) == above else -1.0)
    return [
        *checks,
        inequality("ID ratio = OOD ratio iff κ = 1 or both clipped; above it iff κ < 1", agree),
    ]


def alignment_of_random_ways(draws: int, rng: np.random.Generator, *, aligned: float = 0.0) -> list[Check]:
    """``Eκ = 1`` and ``Var κ`` for random directions, three spectra; aligned pulls ways to the strongest shift."""
    checks = []
    for size, power in ((3, 0.0), (10, 1.0), (40, 2.0)):
        spectrum = np.arange(1, size + 1.0) ** -power if power else np.array([4.0, 1.0, 0.25])
        ways = rng.standard_normal((draws, size))
        ways[:, 0] += aligned
        kappa = alignment(ways, np.diag(spectrum), (size,))[:, 0]
        checks.append(expectation(f"Eκ = 1, {size} weights", kappa, 1.0))
        stated = alignment_variance(np.diag(spectrum))
        checks.append(expectation(f"Var κ = {stated:.2f}, {size} weights", (kappa - 1) ** 2, stated))
    return checks


# --- the one-standard-error rule


def nearest_model_within_a_price(
    trials: int, rng: np.random.Generator, *, inside: bool = True, wrong_metric: bool = False
) -> list[Check]:
    """``α(μ)`` is the nearest model to the anchor within an ID price; the price along the path; where the path stays.

    inside=False lets the best ratios leave the box; wrong_metric measures distance by ratios instead of weights.
    """
    priced, closer, closed, stays = [], [], [], []
    for _ in range(trials):
        problem, delta = random_displaced(rng)
        h, b = outer_qp(problem, delta)
        squares = (displacement_matrix(delta, problem.sizes) ** 2).sum(axis=0)
        best = solve(h, b)
        fall = problem.risk(problem.anchor) - float(_risks(problem, delta, best))
        price = fall * float(rng.uniform(0.01, 0.99))
        metric = np.ones_like(squares) if wrong_metric else squares
        alpha, mu = nearest_within(h, b, metric, price)
        size = problem.risk(problem.anchor)
        priced.append(abs(float(_risks(problem, delta, alpha) - _risks(problem, delta, best)) - price) / size)
        pull = solve(h + mu * np.diag(metric), metric * best)
        closed.append(abs(mu**2 * pull @ h @ pull - price) / size)
        # other models of that price: half of them anywhere, half beside the solution
        others = rng.standard_normal((32, len(b)))
        others[16:] = (alpha - best) + 0.05 * np.linalg.norm(alpha - best) * others[16:]
        length = np.sqrt(np.einsum("ik,kl,il->i", others, h, others))
        others = best + others * (np.sqrt(price) / length * rng.choice([1.0, 0.95], 32))[:, None]
        closer.append(((others**2 @ squares).min() - alpha**2 @ squares) / (best**2 @ squares))

        problem, delta = random_displaced(rng, inside=inside, block_diagonal=True)
        h, b = outer_qp(problem, delta)
        squares = (displacement_matrix(delta, problem.sizes) ** 2).sum(axis=0)
        path = penalised_path(h, b, squares, np.geomspace(1e-4, 1e4, 30))
        steps = np.concatenate([path[:1] - np.ones(len(b)), np.diff(path, axis=0)])
        stays.append(min(path.min(), (-steps).min()))
    return [
        identity("risk at α(μ) is R(α⋆) + p", np.max(priced), 0, trials=trials),
        identity("p = μ²‖(H+μQ)⁻¹Qα⋆‖²_H", np.max(closed), 0, trials=trials),
        inequality("no model of that price is nearer to the anchor", closer, rounding=RELATIVE),
        inequality("block-diagonal Σ: every ratio falls along the path and stays in the box", stays, rounding=RELATIVE),
    ]


def ood_change_along_the_path(
    trials: int, rng: np.random.Generator, *, factor: float = 1.0, inside: bool = True
) -> list[Check]:
    """OOD risk along the path: the first order in √p with its remainder, and two bounds on the loss.

    factor scales all three bounds; inside=False lets the best ratios leave the box, for the last.
    """
    first, bounded, lost = [], [], []
    for _ in range(trials):
        problem, delta = random_displaced(rng)
        h, b = outer_qp(problem, delta)
        h_ood, b_ood = outer_qp(problem, delta, ood=True)
        squares = (displacement_matrix(delta, problem.sizes) ** 2).sum(axis=0)
        best = solve(h, b)
        fall = problem.risk(problem.anchor) - float(_risks(problem, delta, best))
        price = fall * 10 ** float(rng.uniform(-6, -0.05))
        alpha, _ = nearest_within(h, b, squares, price)
        gradient, pull = 2 * (h_ood @ best - b_ood), squares * best
        inverse = np.linalg.inv(h)
        root = np.linalg.inv(np.linalg.cholesky(h))
        steepest = np.linalg.eigvalsh(root @ h_ood @ root.T)[-1]
        stretch = np.linalg.eigvalsh(root * squares @ root.T)[-1]
        length = np.sqrt(pull @ inverse @ pull)
        slope = gradient @ inverse @ pull / length
        change = float(_risks(problem, delta, alpha, True) - _risks(problem, delta, best, True))
        remainder = steepest + 2 * np.sqrt(gradient @ inverse @ gradient) * stretch / length
        size = float(_risks(problem, delta, best, True))
        first.append((factor * price * remainder - abs(change + np.sqrt(price) * slope)) / size)

        # any model of that price; the last goes where the OOD risk rises most steeply
        others = rng.standard_normal((16, len(b)))
        others[-1] = solve(h, gradient) + 1e-12 * others[-1]
        length = np.sqrt(np.einsum("ik,kl,il->i", others, h, others))
        others = best + others * (np.sqrt(price) / length)[:, None]
        free = solve(h_ood, b_ood)
        roots = [np.sqrt(np.maximum(0, _risks(problem, delta, a, True) - _risks(problem, delta, free, True)))
                 for a in (others, best)]  # fmt: skip
        bounded.append((np.sqrt(factor * steepest * price) - np.abs(roots[0] - roots[1]).max()) / np.sqrt(size))

        problem, delta = random_displaced(rng, inside=inside, block_diagonal=True)
        (h, b), (h_ood, b_ood) = outer_qp(problem, delta), outer_qp(problem, delta, ood=True)
        squares = (displacement_matrix(delta, problem.sizes) ** 2).sum(axis=0)
        best = b / np.diag(h)
        bought = b**2 / np.diag(h)
        bought_ood = 2 * b_ood * best - np.diag(h_ood) * best**2
        price = bought.sum() * 10 ** float(rng.uniform(-6, -0.05))
        alpha, _ = nearest_within(h, b, squares, price)
        change = float(_risks(problem, delta, alpha, True) - _risks(problem, delta, best, True))
        bound = np.sqrt(price * (np.maximum(bought_ood, 0) ** 2 / bought).sum())
        lost.append((factor * bound - change) / float(_risks(problem, delta, best, True)))
    return [
        inequality("OOD change = −√p·slope, up to Cp", first, rounding=RELATIVE),
        inequality("root of the OOD excess moves by √(χp) at most", bounded, rounding=1e-7),
        inequality("block-diagonal: loss ≤ √p·√(Σ (f'_l)²/f_l)", lost, rounding=RELATIVE),
    ]


def clipped_layers_stay(trials: int, rng: np.random.Generator, *, inside: bool = False) -> list[Check]:
    """A layer whose ratio the box holds at 1 stays there along the path up to ``μ = (b_l − h_l)/‖Δ_l‖²``, not longer.

    inside=True takes layers that are not clipped, whose ratio falls at once.
    """
    errors, short = [], []
    for _ in range(trials):
        layers = int(rng.integers(1, 4))
        h, squares = rng.lognormal(size=layers), rng.lognormal(size=layers)
        slope = h * (rng.uniform(-0.9, -0.1, layers) if inside else rng.uniform(0.05, 2, layers))
        until = np.abs(slope) / squares
        strengths = np.outer([0.5, 0.999999, 2.0], until).T.reshape(-1)
        path = box_minimisers(
            np.diag(h) + strengths[:, None, None] * np.diag(squares), np.tile(h + slope, (len(strengths), 1))
        ).reshape(layers, 3, layers)
        own = path[np.arange(layers), :, np.arange(layers)]
        errors.append(np.abs(own[:, :2] - 1).max() + (own[:, 2] >= 1).sum())
        price = rng.lognormal(size=layers)
        # the farthest that the price lets one layer go, all others at their best
        back = (-slope + np.sqrt(slope**2 + h * price)) / h
        short.append((price / (2 * slope) - back).min())
    return [
        identity("a clipped ratio stays at 1 until μ = (b_l−h_l)/‖Δ_l‖²", np.max(errors), 0, trials=trials),
        inequality("and goes back by at most p/(2(b_l−h_l))", short),
    ]


def standard_errors_of_the_rule(draws: int, rng: np.random.Generator, *, best: bool = True) -> list[Check]:
    """Variance of one sample's loss, ``2R²``, and of the difference of two losses, ``4R(α*)‖v‖²_H + 2‖v‖⁴_H``.

    best=False starts from ratios that are not the best, where residual and inputs are not independent.
    """
    problem, delta = random_displaced(rng)
    while len(problem.sizes) < 2:
        problem, delta = random_displaced(rng)
    h, b = outer_qp(problem, delta)
    start = solve(h, b) + (0.0 if best else 0.5)
    v = 0.3 * rng.standard_normal(len(b))
    x, y = problem.sample(draws, rng)
    z = x @ displacement_matrix(delta, problem.sizes)
    e, lowest, squared = y - x @ problem.anchor - z @ start, float(_risks(problem, delta, start)), float(v @ h @ v)
    rise = (e - z @ v) ** 2 - e**2
    return [
        expectation("variance of a sample's loss 2R(α)²", (e**2 - lowest) ** 2, 2 * lowest**2),
        expectation("mean of the paired difference ‖v‖²_H", rise, squared),
        expectation(
            "variance of the paired difference 4R‖v‖²_H + 2‖v‖⁴_H",
            (rise - squared) ** 2,
            4 * lowest * squared + 2 * squared**2,
        ),
    ]


# --- replicates


def replicates_in_place_of_validation(
    draws: int, rng: np.random.Generator, *, same_noise: bool = False, stated_shared: bool | None = None
) -> list[Check]:
    """What two fine-tunings have in common, and the best ratio of an average of three; inputs shared or not.

    same_noise correlates the replicates' labels; stated_shared puts the other case into the formulas.
    """
    sizes, distances, noise, k = (2, 3, 5), np.array([0.2, 2.0, 1.0]), 0.8, 3
    d, checks = sum(sizes), []
    delta = layer_delta(distances, sizes, rng)
    starts = np.cumsum((0, *sizes[:-1]))
    for n, regime in ((5, "n < d−1"), (24, "n > d+1")):
        for shared in (False, True):
            moved = replicates(delta, n, noise, k, draws, rng, shared_inputs=shared)
            if same_noise:
                moved[:, 1] = 0.5 * (moved[:, 0] + moved[:, 1])
            setting: MomentSetting = {"total": float(delta @ delta), "d": d, "n": n, "noise": noise}
            inner, square = expected_moments(distances, np.array(sizes), **setting)
            common = expected_common(
                distances, np.array(sizes), total=setting["total"], d=d, n=n,
                shared_inputs=shared if stated_shared is None else stated_shared,
            )  # fmt: skip
            label = f"{regime}, {'shared' if shared else 'own'} inputs"
            both = np.add.reduceat(moved[:, 0] * moved[:, 1], starts, axis=1)
            checks.append(expectation(f"{label}: E⟨Δ⁽¹⁾,Δ⁽²⁾⟩", both, common))
            mean_inner, mean_square = averaged_moments(inner, square, common, k)
            drawn_inner, drawn_square = layer_moments(moved.mean(axis=1), delta, sizes)
            checks.append(
                expectation(f"{label}: best ratio of {k}", drawn_inner - mean_inner / mean_square * drawn_square, 0.0)
            )
    return checks


def stock_is_shrinkage(trials: int, rng: np.random.Generator, *, few_rows: bool = False) -> list[Check]:
    """Own inputs, n > d+1: Model Stock's ratio is the best ratio of the average of k, k = 1 … 8 (k = 1: the cosine).

    few_rows takes n < d−1, where it is too small by the factor n/d.
    """
    errors, scaled = [], []
    for _ in range(trials):
        d, s, noise = int(rng.integers(4, 60)), float(rng.lognormal()), float(rng.lognormal())
        size, k, total = int(rng.integers(1, d + 1)), int(rng.integers(1, 9)), s + float(rng.lognormal())
        found = []
        for n in (int(rng.integers(1, d - 1)), int(rng.integers(d + 2, 4 * d + 3))):
            inner, square = expected_moments(s, size, total=total, d=d, n=n, noise=noise)
            common = expected_common(s, size, total=total, d=d, n=n)
            best = np.divide(*averaged_moments(inner, square, common, k))
            found.append(float(stock_ratio(common / square, k) / best))
            if n < d:
                scaled.append(abs(found[-1] * d / n - 1))
        errors.append(abs(found[0 if few_rows else 1] - 1))
    return [
        identity(
            "n > d+1, own inputs: Model Stock's ratio = best ratio of the average of k", max(errors), 0, trials=trials
        ),
        identity("n < d−1, own inputs: it is n/d times the best one", max(scaled), 0, trials=trials),
    ]


def k_models_or_one(trials: int, rng: np.random.Generator, *, few_rows: bool = False) -> list[Check]:
    """n > d+1: k fine-tunings on n samples each, averaged, against one on all kn: the average is never the better one.

    Both at their best ratios, mean ID risk of one layer. few_rows takes n < d−1.
    """
    slack = []
    for _ in range(trials):
        d, k = int(rng.integers(8, 60)), int(rng.integers(2, 9))
        n = int(rng.integers(d // 2 + 2, d - 1)) if few_rows else int(rng.integers(d + 2, 4 * d + 3))
        s, size = float(rng.lognormal()), int(rng.integers(1, d + 1))
        total, noise = s + 0.1, float(rng.lognormal())
        inner, square = expected_moments(s, size, n=n, total=total, d=d, noise=noise)
        common = expected_common(s, size, total=total, d=d, n=n)
        average = np.divide(*averaged_moments(inner, square, common, k)) * inner
        inner, square = expected_moments(s, size, n=k * n, total=total, d=d, noise=noise)
        slack.append(float(inner**2 / square - average) / s)
    return [inequality("one fine-tuning on kn samples is at least as good as k averaged", slack)]
