"""Numerical verification of statements 1-5 (book chapters 3 and 4): one function a statement, each a list of checks.

The keyword arguments that follow ``*`` break one assumption each. The book leaves them alone; the tests set them and
see the check fail.
"""

from __future__ import annotations

import numpy as np

from tpgm.book.linear.checks import Check, expectation, identity, inequality
from tpgm.book.linear.problem import Array, LinearProblem, fine_tune
from tpgm.book.linear.ratios import (
    MomentSetting,
    common_ratio,
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
    excess_risk,
    layer_delta,
    layer_moments,
    learn_ratios,
    random_displacements,
    random_rows,
    random_second_moment,
    random_trained,
)

RELATIVE = 1e-12  # rounding that an inequality between two risks is allowed, relative to their size


def _objective(h: Array, b: Array, alpha: Array) -> Array:
    """``αᵀHα − 2bᵀα`` for alpha (…, L)."""
    value: Array = np.einsum("...k,kl,...l->...", alpha, h, alpha) - 2 * alpha @ b
    return value


# --- where gradient descent converges


def gradient_descent(trials: int, rng: np.random.Generator, *, weight_decay: float = 0.0) -> list[Check]:
    """Gradient descent on ``‖y − Xw‖²/2`` from ``w⁰`` ends at ``w⁰ + X⁺(y − Xw⁰)`` and stays in ``w⁰ + rowspace(X)``.

    Half of the trials have fewer rows (5) than weights (10), half more (30). weight_decay pulls to zero and breaks it.
    """
    errors, outside = [], []
    for n in (5, 30):
        x, anchor = rng.standard_normal((trials // 2, n, 10)), rng.standard_normal((trials // 2, 10, 1))
        y = rng.standard_normal((trials // 2, n, 1))
        transposed = x.transpose(0, 2, 1)
        step = 1 / np.linalg.eigvalsh(x @ transposed)[:, -1].reshape(-1, 1, 1)
        w = anchor.copy()
        for _ in range(20_000):
            gradient = transposed @ (x @ w - y) + weight_decay * w
            w -= step * gradient
            if np.abs(gradient).max() < 1e-12:
                break
        limit = np.stack([fine_tune(*data)[:, None] for data in zip(x, y[..., 0], anchor[..., 0], strict=True)])
        moved = w - anchor
        errors.append(np.abs(w - limit).max() / np.abs(limit).max())
        outside.append(np.abs(moved - np.linalg.pinv(x) @ (x @ moved)).max() / np.abs(moved).max())
    return [
        identity("gradient descent ends at w⁰ + X⁺(y − Xw⁰)", max(errors), 0, trials=trials),
        identity("and never leaves w⁰ + rowspace(X)", max(outside), 0, trials=trials),
    ]


# --- statement 1


def radii_are_a_qp(
    trials: int,
    rng: np.random.Generator,
    *,
    block_diagonal: bool = True,
    frozen_layer: bool = False,
    noise_in_b: bool = True,
) -> list[Check]:
    """Statement 1: radii and ratios are one-to-one, the outer problem is the QP, and separable if Σ is block-diagonal.

    On a sample both H and b are those of the sample. frozen_layer sets ``Δ_1 = 0``; block_diagonal=False takes the
    closed form where it does not belong; noise_in_b=False leaves the sample's noise out of b, as if only Σ changed.
    """
    round_trip, risks, samples, gaps, closed, slack = [], [], [], [], [], []
    for _ in range(trials):
        problem, _, _, delta = random_trained(rng)
        if frozen_layer:
            delta[problem.layers[0]] = 0.0
        layers = len(problem.sizes)
        alpha = rng.uniform(size=(8, layers))
        radii = radii_from_ratios(alpha[0], delta, problem.sizes)
        round_trip.append(np.abs(ratios_from_radii(radii, delta, problem.sizes) - alpha[0]).max())

        h, b = outer_qp(problem, delta)
        at_anchor = problem.risk(problem.anchor)
        # the projected model itself, layer by layer, and not w(α)
        projected = problem.anchor.copy()
        for block, radius in zip(problem.layers, radii, strict=True):
            projected[block] += delta[block] * min(1.0, radius / (np.linalg.norm(delta[block]) or 1.0))
        risk = problem.risk(projected)
        risks.append(abs(at_anchor + _objective(h, b, alpha[0]) - risk) / max(risk, at_anchor))

        x, y = problem.sample(7, rng)
        columns = np.stack([x[:, block] @ delta[block] for block in problem.layers], axis=1)
        right = y - x @ problem.anchor if noise_in_b else x @ problem.delta
        value = np.sum((y - x @ problem.anchor) ** 2) + _objective(columns.T @ columns, columns.T @ right, alpha[0])
        losses = np.sum((y - x @ projected) ** 2), np.sum((y - x @ problem.anchor) ** 2)
        samples.append(abs(value - losses[0]) / max(losses))

        best = solve_outer_qp(h, b)
        lowest = float(_objective(h, b, best))
        gaps.append(abs(lowest - _objective(h, b, solve_outer_qp_reference(h, b))) / at_anchor)
        slack.append((_objective(h, b, alpha) - lowest).min() / at_anchor)

        problem, _, _, delta = random_trained(rng, block_diagonal=block_diagonal)
        h, b = outer_qp(problem, delta)
        closed.append(np.abs(separable_ratios(h, b) - solve_outer_qp(h, b)).max())
    return [
        identity("α ↦ γ ↦ α is the identity on [0, 1]ᴸ", np.max(round_trip), 0, trials=trials),
        identity("risk of the projected model = σ² + δᵀΣδ + αᵀHα − 2bᵀα", np.max(risks), 0, trials=trials),
        identity("the same on a sample, with the sample's H and b", np.max(samples), 0, trials=trials),
        identity("solver = enumeration of all faces", np.max(gaps), 0, trials=trials),
        inequality("no random ratios beat the solution", slack, rounding=RELATIVE),
        identity("closed form for block-diagonal Σ", np.max(closed), 0, trials=trials),
    ]


def rows_share_one_radius(trials: int, rng: np.random.Generator) -> list[Check]:
    """Under MARS the rows of a tensor share one radius: the problem in γ is not convex and may have several minima.

    The two-row example by hand, and the minima of random problems against a fine grid.
    """
    risk, example = shared_radius_risk, (np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.0, 1.0]))
    where, found = shared_radius_minima(*example)
    near = np.array([-1e-3, 1e-3])
    barrier = risk(np.array([1.0]), *example) - 3
    around = risk((where[found][:, None] + near).ravel(), *example) - 3

    slack, missed = [], []
    for n, h, best in zip(*random_rows(rng, trials, 4), strict=True):
        grid = np.linspace(0, n.max(), 400)
        values = risk(grid, n, h, best)
        where, found = shared_radius_minima(n, h, best)
        lowest = risk(where[found], n, h, best)
        size = max(values)
        distance = np.abs(where[found][:, None] - n)
        step = np.where(distance > 0, distance, np.inf).min(axis=1, keepdims=True) / 2  # not across a norm
        sides = risk((where[found][:, None] + step * [-1, 1]).ravel(), n, h, best).reshape(-1, 2)
        slack.append(((sides - lowest[:, None]) / size).min())
        missed.append((values.min() - lowest.min()) / size if lowest.size else -1.0)
    return [
        identity("two rows: R(½) = R(2) = 3 of the two minima", risk(np.array([0.5, 2.0]), *example), [3.0, 3.0]),
        inequality("two rows: both are minima, and R(1) > 3 between them", [*around, *(barrier - 1e-9)]),
        inequality("random rows: every stated minimum is one", slack, rounding=RELATIVE),
        inequality("random rows: no radius has less risk than the lowest of them", missed, rounding=RELATIVE),
    ]


# --- statement 2


def ratios_by_distance(
    draws: int, rng: np.random.Generator, *, row_scale: bool = False, stated_rows: int | None = None
) -> list[Check]:
    """Statement 2: both expectations, layer by layer and in the metric ``Σ'``, for n < d−1 and n > d+1.

    Eight weights, so that ``d−n`` and ``d−n−1`` differ by a quarter; without noise, and with noise that dominates.
    row_scale makes the rows anisotropic; stated_rows puts another n into the formulas.
    """
    sizes, distances = (1, 3, 4), np.array([0.05, 4.0, 1.0])
    d, checks = sum(sizes), []
    delta = layer_delta(distances, sizes, rng)
    root = rng.standard_normal((d, d)) * np.linspace(0.2, 2.0, d)[:, None]
    cov_ood = root @ root.T / d
    cases = ((3, 0.0, "n < d−1, no noise"), (3, 4.0, "n < d−1, mostly noise"), (16, 2.0, "n > d+1"))
    for n, noise, regime in cases:
        scale = np.linspace(0.3, 2.0, d) if row_scale else None
        drawn = random_displacements(delta, n, noise, draws, rng, scale)
        inner, square = layer_moments(drawn, delta, sizes)
        shared: MomentSetting = {"total": float(delta @ delta), "d": d, "n": stated_rows or n, "noise": noise}
        stated = expected_moments(distances, np.array(sizes), **shared)
        checks.append(expectation(f"{regime}: E⟨Δ_l,δ_l⟩, every layer", inner, stated[0]))
        checks.append(expectation(f"{regime}: E‖Δ_l‖², every layer", square, stated[1]))
        stated = expected_moments(delta @ cov_ood @ delta, np.trace(cov_ood), **shared)
        weighted = drawn @ cov_ood
        checks.append(expectation(f"{regime}: E⟨Δ,δ⟩_Σ'", weighted @ delta, stated[0]))
        checks.append(expectation(f"{regime}: E‖Δ‖²_Σ'", (weighted * drawn).sum(axis=1), stated[1]))
    return checks


def ratio_error_bound(trials: int, rng: np.random.Generator, *, draws: int = 40, factor: float = 1.0) -> list[Check]:
    """``E|clip(N/Q) − clip(EN/EQ)| ≤ 2 sd(N − ρQ)/EQ + 4 Var(Q)/(EQ)²``, on the empirical law of small samples.

    The bound holds for any law with Q > 0, so also for the one that puts equal weight on `draws` draws of a random
    problem. factor scales the right-hand side: the bound must not hold for a much smaller one.
    """
    slack = []
    for _ in range(trials):
        sizes = tuple(int(size) for size in rng.integers(1, 6, size=3))
        d = sum(sizes)
        n = int(rng.integers(1, d - 1)) if rng.random() < 0.5 else int(rng.integers(d + 2, 2 * d + 3))
        delta = layer_delta(rng.lognormal(sigma=1.5, size=3), sizes, rng)
        inner, square = layer_moments(random_displacements(delta, n, rng.uniform(0, 2), draws, rng), delta, sizes)
        mean = square.mean(axis=0)
        rho = inner.mean(axis=0) / mean
        error = np.abs(np.clip(inner / square, 0, 1) - np.clip(rho, 0, 1)).mean(axis=0)
        bound = 2 * (inner - rho * square).std(axis=0) / mean + 4 * square.var(axis=0) / mean**2
        slack.append((factor * bound - error).min())
    return [inequality("mean distance of α⋆_l from clip(ρ_l) ≤ 2 sd(N − ρQ)/EQ + 4 Var(Q)/(EQ)²", slack)]


# --- statement 3


def id_ood_tradeoff(
    trials: int, rng: np.random.Generator, *, concept_shift: float = 0.0, one_ratio: bool = True
) -> list[Check]:
    """Statement 3: where a constraint lowers OOD risk, by how much, and the bound on the root of the excess.

    concept_shift moves the OOD optimum away from ``w*``; one_ratio=False gives every layer a ratio of its own.
    """
    difference, agree, bound = [], [], []
    for _ in range(trials):
        problem, _, _, delta = random_trained(rng)
        h, _ = outer_qp(problem, delta, ood=True)
        best, curvature = common_ratio(problem, delta, ood=True), h.sum()
        alpha = float(rng.uniform())
        true = problem
        if concept_shift:
            optimum = problem.optimum + concept_shift * rng.standard_normal(problem.d)
            true = LinearProblem(problem.anchor, optimum, problem.sizes, noise=problem.noise, cov_ood=problem.cov_ood)
        ratios = np.full(len(problem.sizes), alpha) if one_ratio else rng.uniform(size=len(problem.sizes))
        alpha = float(ratios.mean())
        start, here, end = (true.risk(true.weights(delta, a), ood=True) for a in (0.0, ratios, 1.0))

        stated, size = curvature * (1 - alpha) * (1 + alpha - 2 * best), max(start, end)
        difference.append(abs(end - here - stated) / size)
        tie = abs(stated) < RELATIVE * size
        agree.append(0.0 if tie or (here < end) == (2 * best - 1 < alpha < 1) else -1.0)
        floor = true.noise**2
        roots = np.sqrt(np.maximum(0.0, np.array([start, here, end]) - floor))
        bound.append(((1 - alpha) * roots[0] + alpha * roots[2] - roots[1]) / np.sqrt(size))
    return [
        identity("R'(1) − R'(α) = ‖Δ‖²_Σ'(1−α)(1+α−2α_OOD)", np.max(difference), 0, trials=trials),
        inequality("OOD risk falls if and only if 2α_OOD − 1 < α < 1", agree),
        # a difference of roots of nearly equal numbers: rounding grows to the root of the precision
        inequality("√(R'(α)−σ²) ≤ (1−α)√(R'(0)−σ²) + α√(R'(1)−σ²)", bound, rounding=1e-7),
    ]


def regime_is_set_by_distance(
    draws: int, rng: np.random.Generator, *, trials: int = 1000, row_scale: bool = False
) -> list[Check]:
    """Statement 3 in expectation, n < d−1: full fine-tuning is right iff ``‖δ‖²_Σ'`` reaches ``(tr Σ'/d)(S + τ)``.

    Checked by simulation at the threshold itself, and at `trials` random settings within a hundredth of it or less
    against the two expectations, which are computed from other formulas. row_scale makes the rows anisotropic.
    """
    d, n, noise = 8, 3, 0.5
    spectrum = np.linspace(0.2, 6.0, d)
    low, high = np.eye(d)[0], np.eye(d)[-1]
    threshold = regime_threshold(float(spectrum.sum()), total=1.0, d=d, n=n, noise=noise)
    share = np.clip((threshold - spectrum[0]) / (spectrum[-1] - spectrum[0]), 0, 1)
    delta = np.sqrt(1 - share) * low + np.sqrt(share) * high
    drawn = random_displacements(delta, n, noise, draws, rng, np.linspace(0.3, 2.0, d) if row_scale else None)
    weighted = drawn * spectrum
    difference = weighted @ delta - (weighted * drawn).sum(axis=1)

    slack = []
    for _ in range(trials):
        d = int(rng.integers(4, 200))
        setting: MomentSetting = {
            "total": float(rng.lognormal()),
            "d": d,
            "n": int(rng.integers(1, d - 1)),
            "noise": float(rng.lognormal()),
        }
        trace = float(rng.lognormal()) * d
        edge = regime_threshold(trace, **setting)
        squared = edge * (1 + float(rng.choice([-1, 1]) * 10 ** rng.uniform(-6, -2)))
        inner, square = expected_moments(squared, trace, **setting)
        slack.append(0.0 if (inner >= square) == (squared >= edge) else -1.0)
    return [
        expectation("at the threshold E⟨Δ,δ⟩_Σ' = E‖Δ‖²_Σ'", difference, 0.0),
        inequality("E⟨Δ,δ⟩_Σ' ≥ E‖Δ‖²_Σ' if and only if ‖δ‖²_Σ' ≥ (tr Σ'/d)(S + τ)", slack),
    ]


# --- statement 4


def per_layer_beats_one(
    trials: int, rng: np.random.Generator, *, block_diagonal: bool = True, clipping: bool = False
) -> list[Check]:
    """Statement 4: the gain of one ratio a layer over one for all, on random problems whose optimum is not clipped.

    clipping admits the others; block_diagonal=False takes any Σ.
    """
    errors: list[float] = []
    slack: list[float] = []
    while len(errors) < trials:
        problem, _, _, delta = random_trained(rng, block_diagonal=block_diagonal)
        h, b = outer_qp(problem, delta)
        free = b / np.diag(h)
        if not clipping and not ((free >= 0) & (free <= 1)).all():
            continue
        one = problem.weights(delta, np.clip(common_ratio(problem, delta), 0, 1))
        each = problem.weights(delta, solve_outer_qp(h, b))
        gain, size = problem.risk(one) - problem.risk(each), problem.risk(problem.anchor)
        errors.append(abs(gain - per_layer_gain(h, b)) / size)
        slack.append(gain / size)
    return [
        identity("R(ᾱ,…,ᾱ) − R(α⋆) = Σ h_l(α⋆_l − ᾱ)²", np.max(errors), 0, trials=trials),
        inequality("the gain is never negative", slack, rounding=RELATIVE),
    ]


def id_ratios_serve_ood(trials: int, rng: np.random.Generator, *, proportional: bool = True) -> list[Check]:
    """Where the shift only rescales layers, ``Σ'_l = c_l Σ_l``, the ratios best for ID risk are best for OOD risk too.

    Checked against eight random choices of ratios, and ``α = 1``; proportional=False takes an unrelated Σ'.
    """
    slack = []
    for _ in range(trials):
        problem, _, _, delta = random_trained(rng, block_diagonal=True)
        if proportional:
            factors = np.sqrt(np.repeat(rng.lognormal(sigma=2, size=len(problem.sizes)), problem.sizes))
            ood = problem.second_moment() * np.outer(factors, factors)
            problem = LinearProblem(problem.anchor, problem.optimum, problem.sizes, problem.second_moment(), ood)
        best = solve_outer_qp(*outer_qp(problem, delta))
        h, b = outer_qp(problem, delta, ood=True)
        others = np.vstack([rng.uniform(size=(8, len(best))), np.ones(len(best))])
        size = problem.risk(problem.anchor, ood=True)
        slack.append((_objective(h, b, others) - _objective(h, b, best)).min() / size)
    return [inequality("Σ'_l = c_l Σ_l: no ratios have less OOD risk than the ID ones", slack, rounding=RELATIVE)]


# --- statement 5


def training_radii_never_constrain(trials: int, rng: np.random.Generator, *, held_out: bool = False) -> list[Check]:
    """Statement 5, first half: on the training set ``α = 1`` is a minimiser. held_out takes fresh samples instead."""
    slack, solved = [], []
    for _ in range(trials):
        problem, x, y, delta = random_trained(rng)
        if held_out:
            x, y = problem.sample(len(x), rng)
        size = y @ y + np.sum((y - x @ problem.anchor) ** 2)
        ratios = [np.ones(len(problem.sizes)), *rng.uniform(size=(8, len(problem.sizes)))]
        losses = [np.sum((y - x @ problem.weights(delta, alpha)) ** 2) for alpha in ratios]
        slack.append((min(losses[1:]) - losses[0]) / size)
        columns = np.stack([x[:, block] @ delta[block] for block in problem.layers], axis=1)
        best = solve_outer_qp(columns.T @ columns, columns.T @ (y - x @ problem.anchor))
        solved.append(abs(np.sum((y - x @ problem.weights(delta, best)) ** 2) - losses[0]) / size)
    return [
        inequality("training loss: no ratios beat α = 1", slack, rounding=RELATIVE),
        identity("training loss: the solver's minimum is that of α = 1", np.max(solved), 0, trials=trials),
    ]


def held_out_ratios(draws: int, rng: np.random.Generator, *, clipping: bool = False, ood: bool = False) -> list[Check]:
    """Statement 5, second half: the expected excess of ratios learned on m held-out samples, for several L and m.

    clipping clips the learned ratios; ood draws the validation samples from Σ' instead of Σ.
    """
    checks = []
    for sizes, m in (((4, 6), 12), ((2, 3, 4, 5), 25), ((3,) * 6, 60)):
        d = sum(sizes)
        problem = LinearProblem(
            anchor=np.zeros(d),
            optimum=rng.standard_normal(d),
            sizes=sizes,
            cov_id=random_second_moment(rng, (d,)),
            cov_ood=random_second_moment(rng, (d,)),
            noise=1.0,
        )
        delta = fine_tune(*problem.sample(d + 5, rng), problem.anchor)
        learned = learn_ratios(problem, delta, m, draws, rng, ood=ood)
        excess = excess_risk(problem, delta, np.clip(learned, 0, 1) if clipping else learned)
        h, b = outer_qp(problem, delta)
        best = problem.risk(problem.weights(delta, np.linalg.solve(h, b)))
        stated = held_out_excess(best, len(sizes), m)
        checks.append(expectation(f"excess risk R(α⋆)·L/(m−L−1), L = {len(sizes)}, m = {m}", excess, stated))
    return checks
