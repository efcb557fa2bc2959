"""Checks of chapter 5's theory of every-step TPGM: the vote, the ratchet, the budget, convergence at fixed radii."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike

from tpgm.book.linear.alternation import LinearLayers
from tpgm.book.linear.bilevel import Bilevel
from tpgm.book.linear.bilevel_study import SIZES
from tpgm.book.linear.checks import Check, expectation, identity, inequality
from tpgm.book.linear.inner import norms_by_layer, solve_inner
from tpgm.book.linear.problem import Array
from tpgm.book.linear.ratchet import ADAM_EPS, BETAS, Path, Stream, run, run_package
from tpgm.book.linear.verify_bilevel import GUARD_TOLERANCE, random_spd
from tpgm.constraint import EPS, TPGM

ADAM_BOUND = 7.3  # times lr: no step of Adam is longer, whatever the gradients


# --- the formulas


def slope_moments(along: Array, way: Array, cov: Array, noise: float, m: int) -> tuple[float, float]:
    """Mean and variance of a radius's slope on m fresh samples, at weights that ``e`` = way still separates from w*.

    along ``u``: unit direction of the layer, zeros elsewhere.
    """
    common, risk = float(along @ cov @ way), float(way @ cov @ way) + noise**2
    return -2 * common, 4 * (float(along @ cov @ along) * risk + common**2) / m


def agreement_moments(s: float, d: int, start_risk: float, n: int, m: int) -> tuple[float, float]:
    """Mean and variance of ``⟨g_l, h_l⟩``, half the negative gradients of a training and a validation batch at w⁰."""
    drift = s * (start_risk + s) * (1 / n + 1 / m)
    return s, drift + (d * start_risk**2 + 2 * start_risk * s + s**2) / (n * m)


def alignment_moments(s: float, d: int, start_risk: float, n: int, steps: int) -> tuple[float, float]:
    """Means of ``⟨G, δ_l⟩`` and ``‖G‖²`` for the sum G of `steps` half gradients at the anchor."""
    return steps * s, steps**2 * s + steps * (d * start_risk + s) / n


def free_steps(s: float, d: int, start_risk: float, n: int) -> float:
    """Steps after which the signal in the accumulated displacement equals its noise: ``d_l R₀ / (n s_l)``."""
    return d * start_risk / (n * s)


def contraction(smallest: Array, largest: Array, step_size: Array) -> Array:
    """``q = max(|1 − 2ηλ_min|, |1 − 2ηλ_max|)``: a training step brings any two weights so much closer."""
    return np.maximum(np.abs(1 - 2 * step_size * smallest), np.abs(1 - 2 * step_size * largest))


def lipschitz(smallest: Array, largest: Array) -> Array:
    """``√(1 + (λ_max/λ_min)²)``: the inner solution moves by at most so much for each unit of the radii."""
    constant: Array = np.sqrt(1 + (largest / smallest) ** 2)
    return constant


def reset_bound(length: float, period: int, chance: float) -> float:
    """Bound on the mean radius if every `period` steps contain a reset with conditional probability `chance`."""
    return EPS + length * period / chance


# --- the vote


def _halves(rng: np.random.Generator, draws: int, rows: int, way: Array, noise: float) -> tuple[Array, Array]:
    """Inputs (draws, rows, d), Σ = I, and residuals (draws, rows) of weights that `way` separates from the optimum."""
    x = rng.standard_normal((draws, rows, way.size))
    return x, x @ way + noise * rng.standard_normal((draws, rows))


def vote(draws: int, rng: np.random.Generator, *, fresh: bool = True, gaussian: bool = True) -> list[Check]:
    """Moments of the slope, and of the agreement of two batches.

    fresh: the vote is cast on another batch than the training step's; gaussian: inputs are, else random signs.
    """
    d, layer, m, n, noise = 7, slice(0, 4), 3, 2, 0.5
    cov = random_spd(rng, 1, d)[0]
    root = np.linalg.cholesky(cov)
    # most of the way lies in the layer, and the direction near it: every term of the formulas then counts
    way, along = 0.3 * rng.standard_normal(d), np.zeros(d)
    along[layer] = rng.standard_normal(4)
    way[layer] += along[layer]
    along /= np.linalg.norm(along)
    plain = rng.standard_normal((draws, m, d))
    x = (plain if gaussian else np.sign(plain)) @ root.T
    residual = x @ way + noise * rng.standard_normal((draws, m))
    slope = -2 * np.mean((x @ along) * residual, axis=1)
    mean, variance = slope_moments(along, way, cov, noise, m)

    def halves(distance: float) -> tuple[Array, float]:
        start = 0.3 * rng.standard_normal(d)
        start[layer] *= np.sqrt(distance) / np.linalg.norm(start[layer])
        x, r = _halves(rng, draws, n, start, noise)
        ours = np.einsum("tni,tn->ti", x, r)[:, layer] / n
        x, r = _halves(rng, draws, m, start, noise) if fresh else (x, r)
        theirs = np.einsum("tni,tn->ti", x, r)[:, layer] / len(x[0])
        return np.sum(ours * theirs, axis=1), float(start @ start) + noise**2

    s = 2.0
    agreed, start_risk = halves(s)
    common, spread = agreement_moments(s, 4, start_risk, n, m)
    coin, _ = halves(0.0)
    return [
        expectation("vote: mean slope of a radius", slope[:, None], [mean]),
        expectation("vote: variance of the slope", np.square(slope - mean)[:, None], [variance]),
        expectation("vote: mean agreement of two batches", agreed[:, None], [common]),
        expectation("vote: variance of the agreement", np.square(agreed - common)[:, None], [spread]),
        expectation("vote: a coin flip if s = 0", (coin > 0).astype(float)[:, None], [0.5]),
    ]


def alignment(draws: int, rng: np.random.Generator) -> list[Check]:
    """Signal and noise in the sum of several steps at the anchor."""
    d, layer, n, steps, noise = 6, slice(0, 3), 2, 4, 0.6
    start = rng.standard_normal(d)
    s, start_risk = float(start[layer] @ start[layer]), float(start @ start) + noise**2
    total = np.zeros((draws, 3))
    for _ in range(steps):
        x, r = _halves(rng, draws, n, start, noise)
        total += np.einsum("tni,tn->ti", x, r)[:, layer] / n
    along, square = alignment_moments(s, 3, start_risk, n, steps)
    return [
        expectation("free steps: signal", (total @ start[layer])[:, None], [along]),
        expectation("free steps: squared length", np.sum(total**2, axis=1)[:, None], [square]),
    ]


# --- the ratchet


def ratchet_slack(path: Path) -> Array:
    """(C,): the least distance of any radius, at any step, below the ratchet's bound.

    The bound: 1e-8 plus the lengths of the training steps since the radius last stood on its floor.
    """
    bound = np.zeros_like(path.radii[0])
    slack = np.full(path.radii.shape[1], np.inf)
    for radii, lengths in zip(path.radii, path.lengths, strict=True):
        bound = bound + lengths
        on = np.isfinite(radii)
        gap = np.where(on, EPS + bound - radii, np.inf) / np.maximum(bound, EPS)
        slack = np.minimum(slack, gap.min(axis=1))
        bound = np.where(on & (radii <= EPS), 0.0, bound)
    return slack


def ratchet(problems: int, rng: np.random.Generator, run: Callable[..., Path] = run, packages: int = 8) -> list[Check]:
    """No radius gets ahead of the steps since its last reset, in runs of many learning rates, starts and warm-ups.

    `run` takes the place of `tpgm.book.linear.ratchet.run` in tests.
    """
    slack, twins, stated = [], [], []
    side = min(50, problems)
    for k in range(-(-problems // side)):
        stream = Stream(tuple(rng.uniform(0.0, 0.5, 3)), (2, 5, 9), n=4, m=4, step_size=0.03, steps=40)
        lr, warmup = 10 ** rng.uniform(-4, 1, side), rng.integers(0, 20, side)
        slack.append(ratchet_slack(run(stream, lr, warmup, k, ("half-smallest", "largest")[k % 2])))
    packaged = []
    for k in range(packages):
        stream = Stream((0.0, 0.2, 0.4), (6, 8, 4), n=4, m=4, step_size=0.03, steps=25)
        rate, free, start = 10 ** rng.uniform(-4, 1), int(rng.integers(0, 10)), ("half-smallest", "largest")[k % 2]
        path = run_package(stream, rate, free, k, start=start)
        twins.append(run(stream, [rate], [free], k, start).norms[-1])
        stated.append(path.norms[-1])
        rows = run_package(stream, rate, free, k, start=start, norm="mars", shapes=[(2, 3), (8,), (4, 1)])
        packaged += [ratchet_slack(path), ratchet_slack(rows)]
    return [
        inequality("ratchet: no radius ahead of its steps", np.concatenate(slack)[:problems], rounding=1e-9),
        inequality("ratchet: the package's TPGM, L2 and MARS", np.concatenate(packaged), rounding=1e-6),
        identity("ratchet: plain run = package", twins, stated, trials=packages),
    ]


def resets(problems: int, rng: np.random.Generator) -> list[Check]:
    """The mean radius under random resets, computed exactly, against its bound."""
    slack = []
    for _ in range(problems):
        length, period, chance = rng.uniform(0.1, 2.0), int(rng.integers(1, 12)), rng.uniform(0.02, 1.0)
        when, age, largest = int(rng.integers(period)), 0.0, 0.0
        for step in range(40 * period):
            age = age + 1
            if step % period == when:
                age *= 1 - chance
            largest = max(largest, age)
        slack.append(reset_bound(length, period, chance) - EPS - length * largest)
    return [inequality("resets: mean radius at most u·k/p", slack)]


# --- the budget


def adam_steps(gradients: ArrayLike, lr: float = 1.0) -> Array:
    """What torch's Adam moves by under given gradients (T, P), at every step, in units of lr: (T, P)."""
    given = torch.as_tensor(np.asarray(gradients, dtype=np.float64))
    at = torch.nn.Parameter(torch.zeros_like(given[0]))
    optimizer, steps = torch.optim.Adam([at], lr=lr), []
    for one in given:
        before, at.grad = at.detach().clone(), one.clone()
        optimizer.step()
        steps.append(((at.detach() - before) / lr).numpy())
    return np.array(steps)


def budget(problems: int, rng: np.random.Generator, *, shrinking: bool = True, packages: int = 5) -> list[Check]:
    """Adam's step, and how far radii get at the end of training.

    shrinking: the gradients do not grow in size; with False they do, and the first bound fails.
    """
    falls = np.cumprod(rng.uniform(0.3, 1.0, (200, problems)) ** rng.uniform(0, 1, problems), axis=0)
    signs = rng.choice([-1.0, 1.0], (200, problems), p=[0.2, 0.8])
    sizes = np.maximum(falls if shrinking else 1 / falls, 1e-3)
    wild = rng.standard_normal((200, problems)) * 10 ** rng.uniform(-6, 6, (200, problems))
    constant = adam_steps(np.full((50, 3), [1e4, -2e4, 1e5]))
    lr, updates = 0.02, 60
    norms = rng.uniform(0.2, 5.0, problems)
    target = rng.uniform(0.3, 1.0, problems) * norms
    radii = radii_at_the_end(norms, target, lr, updates)
    reached = np.maximum.accumulate(radii, axis=0) >= target * (1 - 1e-9)
    below = radii[0] + lr * np.arange(updates + 1)[:, None] - radii
    package = package_at_the_end(norms[:packages], target[:packages], lr, updates)
    return [
        inequality(
            "budget: Adam's step ≤ lr if gradients do not grow",
            1 - np.abs(adam_steps(signs * sizes)).max(axis=0),
            rounding=1e-9,
        ),
        inequality("budget: Adam's step ≤ 7.3 lr", ADAM_BOUND - np.abs(adam_steps(wild)).max(axis=0)),
        identity("budget: constant gradient, step = lr", np.abs(constant), np.ones_like(constant), trials=3),
        inequality(
            "budget: below its target a radius gains at most lr·N",
            np.where(reached, np.inf, below).min(axis=0),
            rounding=1e-9,
        ),
        Check(
            "budget: plain radii = package",
            "identity",
            float(np.max(np.abs(radii[:, :packages] - package))),
            packages,
            GUARD_TOLERANCE,
        ),
    ]


def radii_at_the_end(norms: ArrayLike, target: ArrayLike, lr: float, updates: int, start: float | None = None) -> Array:
    """Radii (updates + 1, P) of P isotropic layers at the end of training by Adam, from `start` or half their norms.

    norms ``‖Δ_l‖`` and target ``α*_l ‖Δ_l‖``, (P,): the validation loss is ``Σ (γ_l − target_l)²`` inside the norms.
    """
    norms, target = np.asarray(norms, dtype=np.float64), np.asarray(target, dtype=np.float64)
    (slow, fast), first, second = BETAS, 0.0 * norms, 0.0 * norms
    path = [norms / 2 if start is None else np.full_like(norms, start)]
    for step in range(1, updates + 1):
        radii = np.minimum(path[-1], norms)
        slope = 2 * (radii - target)
        first, second = slow * first + (1 - slow) * slope, fast * second + (1 - fast) * slope**2
        move = first / (1 - slow**step) / (np.sqrt(second / (1 - fast**step)) + ADAM_EPS)
        path.append(np.maximum(radii - lr * move, EPS))
    return np.array(path)


def package_at_the_end(norms: Array, target: Array, lr: float, updates: int) -> Array:
    """The same by the package's TPGM: each layer is one weight, which training has moved by its norm."""
    size = len(norms)
    eye = np.eye(size)
    model = LinearLayers([Bilevel(eye, norms, eye, target, 0.0, (1,) * size)])
    constraint = TPGM(model, norm="l2", lr=lr)
    with torch.no_grad():
        for parameter, norm in zip(model.parameters(), norms, strict=True):
            parameter.fill_(float(norm))
    gram, moment = torch.eye(size, dtype=torch.float64)[None], torch.from_numpy(target)[None]
    path = [norms / 2]
    for _ in range(updates):
        constraint.update(lambda: model(gram, moment).sum())
        path.append(np.array(list(constraint.radii.values())))
    return np.array(path)


# --- convergence at fixed radii


def convergence(problems: int, rng: np.random.Generator, *, steps: int = 40) -> list[Check]:
    """Alternation at fixed, and at slowly moving, L2 radii: distance to the inner solution against its bound.
    The step size is ``1/(2 λ_max)``. At fixed radii weights start at the anchor, at moving ones at the inner solution.
    """
    gram = random_spd(rng, problems, sum(SIZES))
    moment = np.einsum("pij,pj->pi", gram, rng.standard_normal((problems, sum(SIZES))))
    spectrum: Array = np.linalg.eigvalsh(gram).astype(np.float64)
    eta = 1 / (2 * spectrum[:, -1])
    shrink, stiff = contraction(spectrum[:, 0], spectrum[:, -1], eta), lipschitz(spectrum[:, 0], spectrum[:, -1])
    first = norms_by_layer(np.linalg.solve(gram, moment[..., None])[..., 0], SIZES) * rng.uniform(
        0.05, 1.2, (problems, 3)
    )
    drift = 1e-3 * rng.standard_normal((steps, problems, 3))
    result = []
    for moving in (False, True):
        radii, v = first, np.zeros_like(moment)
        solution = solve_inner(gram, moment, radii, SIZES).displacement
        v = solution.copy() if moving else v
        bound = np.linalg.norm(v - solution, axis=1)
        slack = np.full(problems, np.inf)
        for step in range(steps):
            new = np.maximum(radii + drift[step], 0.01) if moving else radii
            bound = shrink * (bound + stiff * np.linalg.norm(new - radii, axis=1))
            radii = new
            ahead = v - 2 * eta[:, None] * (np.einsum("pij,pj->pi", gram, v) - moment)
            norms = norms_by_layer(ahead, SIZES)
            v = ahead * np.repeat(np.minimum(1, radii / np.maximum(norms, 1e-300)), SIZES, axis=1)
            if moving and step % 8:
                continue
            if moving:
                solution = solve_inner(gram, moment, radii, SIZES).displacement
            slack = np.minimum(slack, bound - np.linalg.norm(v - solution, axis=1))
        result.append(slack)
    return [
        inequality("fixed radii: distance to w*(γ) shrinks by q", result[0], rounding=1e-9),
        inequality("moving radii: tracking error", result[1], rounding=1e-9),
    ]
