"""Checks of chapter 5: the exact bi-level problem, its hypergradient, and what TPGM leaves out (statement 8).

Random problems are drawn with condition numbers of ``G`` up to about 100. Identities hold to 1e-10; where a check
compares with finite differences, or with the package's TPGM, whose ratio divides by ``norm + 1e-8``, it states its
own tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import null_space
from torch import Tensor

from tpgm.book.linear.alternation import STEP_SIZE, LinearLayers, end_of_training, hidden_need
from tpgm.book.linear.bilevel import Bilevel
from tpgm.book.linear.bilevel_study import SIZES
from tpgm.book.linear.checks import Check, identity, inequality
from tpgm.book.linear.inner import indicator, norms_by_layer, solve_inner, solve_inner_plain
from tpgm.book.linear.problem import Array, layer_slices
from tpgm.constraint import TPGM

DIFFERENCE_TOLERANCE = 1e-7  # central differences of step 1e-4 of the radius; see `hypergradient_by_differences`
GUARD_TOLERANCE = 1e-6  # the 1e-8 in TPGM's ratio against radii of 0.01 and more
Gradient = Callable[[Bilevel, Array], Array]


# --- random problems


def random_spd(rng: np.random.Generator, count: int, d: int) -> Array:
    """(count, d, d) positive definite matrices, eigenvalues log-uniform in [0.1, 10], random eigenvectors."""
    vectors = np.linalg.qr(rng.standard_normal((count, d, d)))[0]
    gram = (vectors * np.exp(rng.uniform(np.log(0.1), np.log(10.0), (count, 1, d)))) @ np.swapaxes(vectors, 1, 2)
    symmetric: Array = (gram + np.swapaxes(gram, 1, 2)) / 2
    return symmetric


def random_problem(rng: np.random.Generator, sizes: tuple[int, ...] = SIZES, gram: Array | None = None) -> Bilevel:
    """Training and validation losses without relation to each other; gram: ``G`` if given, else a random one."""
    d = sum(sizes)
    gram = random_spd(rng, 1, d)[0] if gram is None else gram
    outer, outer_moment = random_spd(rng, 1, d)[0], rng.standard_normal(d)
    constant = float(outer_moment @ np.linalg.solve(outer, outer_moment))
    return Bilevel(gram, gram @ rng.standard_normal(d), outer, outer_moment, constant, sizes)


def block_isotropic(rng: np.random.Generator, sizes: tuple[int, ...] = SIZES) -> Array:
    """``G = blockdiag(g_l I)``: layers uncorrelated, and isotropic each."""
    return np.diag(np.repeat(np.exp(rng.uniform(-1.0, 1.0, len(sizes))), sizes))


def active_radii(rng: np.random.Generator, problem: Bilevel) -> Array:
    """Random radii at which every constraint is active: the norms of ``(G + Λ)⁻¹c`` for random ``Λ ≻ 0``."""
    multipliers = np.exp(rng.uniform(-2.0, 2.0, len(problem.sizes)))
    v = np.linalg.solve(problem.gram + np.diag(np.repeat(multipliers, problem.sizes)), problem.moment)
    return norms_by_layer(v, problem.sizes)


# --- formulas the package does not compute in this way


def exact_gradient(problem: Bilevel, radii: Array) -> Array:
    """`Bilevel.hypergradient`."""
    return problem.hypergradient(radii)


def hypergradient_by_differences(problem: Bilevel, radii: ArrayLike, step: float = 1e-4) -> Array:
    """Central differences of fourth order, steps of `step` times the radius.

    Their error is about ``step⁴`` from the formula and ``1e-13 / step`` from rounding: 1e-7 is a safe tolerance, away
    from kinks.
    """
    gamma = np.asarray(radii, dtype=np.float64)
    shifts = np.diag(step * gamma)
    near, far = (problem.value(gamma + k * shifts) - problem.value(gamma - k * shifts) for k in (1, 2))
    return (8 * near - far) / (12 * step * gamma)


def one_layer_hypergradient(problem: Bilevel, multiplier: float) -> tuple[float, float]:
    """Radius and hypergradient of a one-layer problem at a given multiplier, from the eigenvalues of ``G``.

    With eigenvalues ``g_i`` and ``c_i`` in that basis: ``v_i = c_i/(g_i + λ)``, ``γ² = Σ v_i²``, and both the outer
    loss and ``γ`` are differentiated in ``λ``.
    """
    values, vectors = np.linalg.eigh(problem.gram)
    c = vectors.T @ problem.moment
    v = c / (values + multiplier)
    along = -v / (values + multiplier)  # dv/dλ
    radius = float(np.linalg.norm(v))
    slope = problem.outer_gradient(vectors @ v)
    return radius, float(slope @ (vectors @ along)) / (float(v @ along) / radius)


def response(problem: Bilevel, radii: Array) -> Array:
    """``UᵀGW(Wᵀ(G + Λ)W)⁻¹Wᵀ∇R``, (L,), all constraints active: what TPGM's gradient lacks (book chapter 5)."""
    v, multipliers = problem.inner(radii)
    u = indicator(problem.sizes) * v[:, None] / radii
    w = null_space(u.T)
    k = problem.gram + np.diag(np.repeat(multipliers, problem.sizes))
    slope = problem.outer_gradient(v)
    lacking: Array = u.T @ problem.gram @ w @ np.linalg.solve(w.T @ k @ w, w.T @ slope)
    return lacking


# --- the checks


def inner_problem(problems: int, rng: np.random.Generator, plain_problems: int = 40) -> list[Check]:
    """The solver: KKT conditions, its plain twin, and the bound on what radii can matter."""
    d, layers = sum(SIZES), len(SIZES)
    gram = random_spd(rng, problems, d)
    moment = np.einsum("pij,pj->pi", gram, rng.standard_normal((problems, d)))
    free = norms_by_layer(np.linalg.solve(gram, moment[..., None])[..., 0], SIZES)
    radii = free * rng.uniform(0.02, 1.3, (problems, layers))
    v, multipliers = solve_inner(gram, moment, radii, SIZES)
    stationary = np.einsum("pij,pj->pi", gram, v) + np.repeat(multipliers, SIZES, axis=1) * v
    room = 1 - norms_by_layer(v, SIZES) / radii
    some = range(min(plain_problems, problems))
    plain = [solve_inner_plain(gram[p], moment[p], radii[p], SIZES) for p in some]
    bounds = np.stack([Bilevel(g, c, g, c, 0.0, SIZES).largest_radii for g, c in zip(gram, moment, strict=True)])
    return [
        identity("inner problem: stationarity", stationary, moment, trials=problems),
        identity("inner problem: complementarity", multipliers * room, 0 * room, trials=problems, scale=1.0),
        inequality("inner problem: feasible, λ ≥ 0", np.minimum(room.min(axis=1), multipliers.min(axis=1))),
        identity("inner problem: Newton = projected gradient", v[list(some)], plain, trials=len(plain)),
        inequality("no layer passes the largest radius", (bounds - norms_by_layer(v, SIZES)).min(axis=1)),
    ]


def training_value(problems: int, rng: np.random.Generator) -> list[Check]:
    """The training loss of ``w*(γ)`` is convex in γ and falls with slope ``−2λ_lγ_l``."""
    gram = random_spd(rng, problems, sum(SIZES))
    moment = np.einsum("pij,pj->pi", gram, rng.standard_normal((problems, sum(SIZES))))
    ends = rng.uniform(0.02, 1.5, (2, problems, len(SIZES)))

    def loss(radii: Array) -> Array:
        v = solve_inner(gram, moment, radii, SIZES).displacement
        value: Array = np.einsum("pi,pij,pj->p", v, gram, v) - 2 * np.sum(moment * v, axis=1)
        return value

    at, other = loss(ends[0]), loss(ends[1])
    slopes, stated = [], []
    for g, c, radii in zip(gram[:100], moment[:100], ends[0], strict=False):
        problem = Bilevel(g, c, g, c, 0.0, SIZES)
        slopes.append(problem.hypergradient(radii))
        stated.append(-2 * problem.inner(radii).multipliers * radii)
    return [
        inequality("training loss convex in the radii", (at + other) / 2 - loss(ends.mean(axis=0))),
        inequality("training loss falls as radii grow", at - loss(ends[0] * rng.uniform(1.0, 2.0, ends[0].shape))),
        identity("slope on training data = −2λγ", slopes, stated, trials=len(slopes)),
    ]


def hypergradient(problems: int, rng: np.random.Generator, formula: Gradient = exact_gradient) -> list[Check]:
    """The hypergradient against closed forms (1e-10) and finite differences; `formula` takes its place in tests."""
    one, closed, block, block_closed, errors = [], [], [], [], []
    for _ in range(problems):
        single = random_problem(rng, (6,))
        radius, derivative = one_layer_hypergradient(single, float(np.exp(rng.uniform(-2.0, 2.0))))
        one.append(formula(single, np.array([radius]))[0])
        closed.append(derivative)

        separate = random_problem(rng, SIZES, block_isotropic(rng))
        radii = separate.free_radii * rng.uniform(0.05, 0.95, len(SIZES))
        unit = separate.displacement / np.repeat(separate.free_radii, SIZES)
        slope = separate.outer_gradient(unit * np.repeat(radii, SIZES))
        block.append(formula(separate, radii))
        block_closed.append((slope * unit) @ indicator(SIZES))

        problem = random_problem(rng)
        radii = active_radii(rng, problem)
        exact = hypergradient_by_differences(problem, radii)
        errors.append(np.max(np.abs(formula(problem, radii) - exact)) / np.max(np.abs(exact)))
    return [
        identity("hypergradient, one layer, closed form", one, closed, trials=problems),
        identity("hypergradient, isotropic uncorrelated layers, closed form", block, block_closed, trials=problems),
        Check("hypergradient, finite differences", "identity", float(max(errors)), problems, DIFFERENCE_TOLERANCE),
    ]


def what_tpgm_leaves_out(
    problems: int, rng: np.random.Generator, gram: Callable[..., Array] = block_isotropic
) -> list[Check]:
    """TPGM's gradient at rest: its difference from the hypergradient, when that is zero, and its bound.

    The identities are checked on the first 200 problems. gram draws the designs that should leave the span of the
    displacements invariant.
    """
    gaps, stated, slack = [], [], []
    equal: list[Array] = []
    exact: list[Array] = []
    scalar: list[Array] = []
    scalar_exact: list[Array] = []
    for k in range(problems):
        problem = random_problem(rng)
        radii = active_radii(rng, problem)
        solved = problem.inner(radii)
        v, multipliers = solved
        gap = problem.projection_gradient(radii) - problem.hypergradient(radii, solved)
        slack.append(gap_bound(problem, multipliers) * tangential(problem, v) - np.linalg.norm(gap))
        if k >= 200:
            continue
        gaps.append(gap)
        stated.append(response(problem, radii))
        for sizes, design, ours, theirs in (
            (SIZES, gram(rng), equal, exact),
            ((1, 1, 1, 1), None, scalar, scalar_exact),
        ):
            special = random_problem(rng, sizes, design)
            radii = active_radii(rng, special)
            ours.append(special.projection_gradient(radii))
            theirs.append(special.hypergradient(radii))
    return [
        identity("TPGM's gradient − hypergradient = response", gaps, stated, trials=len(gaps)),
        identity("equal if the span is invariant", equal, exact, trials=len(equal)),
        identity("equal for active layers of one weight", scalar, scalar_exact, trials=len(scalar)),
        inequality("the difference is within its bound", slack),
    ]


def gap_bound(problem: Bilevel, multipliers: Array) -> float:
    """The smaller of the two constants of eq-gap, which bound what TPGM leaves out in units of `tangential`."""
    values = np.linalg.eigvalsh(problem.gram)
    low, high = values[0] + multipliers.min(), values[-1] + multipliers.max()
    return float(min((values[-1] - values[0]) / (2 * low), (high - low) / (2 * np.sqrt(low * high))))


def tangential(problem: Bilevel, v: Array) -> float:
    """``‖Wᵀ∇R‖``: what of the validation gradient lies across the displacements."""
    outward = indicator(problem.sizes) * v[:, None] / norms_by_layer(v, problem.sizes)
    slope = problem.outer_gradient(v)
    return float(np.linalg.norm(slope - outward @ (outward.T @ slope)))


def gap_attained(problems: int, rng: np.random.Generator) -> list[Check]:
    """One layer of two weights at the worst angle: the difference equals its bound."""
    gaps, bounds = [], []
    for _ in range(problems):
        low, high, multiplier = rng.uniform(0.1, 1.0), rng.uniform(1.0, 10.0), rng.uniform(0.0, 2.0)
        angle = np.arctan(np.sqrt((low + multiplier) / (high + multiplier)))  # of W to the eigenvector of `low`
        v = np.array([np.sin(angle), np.cos(angle)])
        gram = np.diag([low, high])
        moment = (gram + multiplier * np.eye(2)) @ v
        problem = Bilevel(gram, moment, np.eye(2), rng.standard_normal(2), 0.0, (2,))
        radius = np.ones(1)
        gaps.append(abs(float((problem.projection_gradient(radius) - problem.hypergradient(radius))[0])))
        bounds.append(gap_bound(problem, np.array([multiplier])) * tangential(problem, v))
    return [identity("the bound is attained by a layer of two weights", gaps, bounds, trials=problems)]


def penalty_path(problems: int, rng: np.random.Generator) -> list[Check]:
    """Every L2-SP solution is an inner solution, and every inner solution with active layers is one."""
    there, back, strengths, found = [], [], [], []
    for _ in range(problems):
        problem, multipliers = random_problem(rng), np.exp(rng.uniform(-2.0, 2.0, len(SIZES)))
        penalised = np.linalg.solve(problem.gram + np.diag(np.repeat(multipliers, SIZES)), problem.moment)
        inner = problem.inner(norms_by_layer(penalised, SIZES))
        there.append(penalised)
        back.append(inner.displacement)
        strengths.append(multipliers)
        found.append(inner.multipliers)
    return [
        identity("L2-SP by layer = inner solution", back, there, trials=problems),
        identity("its strengths = the multipliers", found, strengths, trials=problems),
    ]


def nearest_anchor(problems: int, rng: np.random.Generator, ridge: float = 1e-7) -> list[Check]:
    """Fewer rows than weights: the solution with a small ridge against the inner solution nearest the anchor.

    The latter by other means: projected gradient from a random start finds some inner solution, and Dykstra's
    alternating projections the point of all inner solutions (same ``Gv``, within the radii) that is nearest 0.
    """
    errors, spread = [], []
    for _ in range(problems):
        x, y = rng.standard_normal((5, sum(SIZES))), rng.standard_normal(5)
        gram, moment = x.T @ x / 5, x.T @ y / 5
        radii = norms_by_layer(np.linalg.pinv(gram) @ moment, SIZES) * rng.uniform(0.5, 2.0, len(SIZES))
        near = solve_inner(gram + ridge * np.eye(sum(SIZES)), moment, radii, SIZES).displacement
        some = solve_inner_plain(gram, moment, radii, SIZES, 5_000, rng.standard_normal(sum(SIZES)))
        errors.append(np.linalg.norm(near - dykstra(gram, some, radii)) / np.linalg.norm(near))
        spread.append(np.linalg.norm(near - some) / np.linalg.norm(near))
    return [
        Check("ridge → inner solution nearest the anchor", "identity", float(max(errors)), problems, 1e-4),
        inequality("… and there are others", [max(spread) - 0.1]),
    ]


def dykstra(gram: Array, some: Array, radii: Array, steps: int = 20_000) -> Array:
    """The point nearest 0 of all v with ``Gv = G·some`` within the radii."""
    keep = np.linalg.pinv(gram) @ gram
    v, left = np.zeros_like(some), np.zeros_like(some)
    for _ in range(steps):
        flat = v + keep @ (some - v)  # an affine set needs no correction
        moved = flat + left
        norms = norms_by_layer(moved, SIZES)
        new = moved * np.repeat(np.minimum(1.0, radii / np.maximum(norms, 1e-300)), SIZES)
        left = moved - new
        if np.max(np.abs(new - v)) < 1e-14:
            break
        v = new
    return v


def _total(model: LinearLayers, gram: Tensor, moment: Tensor) -> Tensor:
    total: Tensor = model(gram, moment).sum()
    return total


def alternation_at_rest(problems: int, rng: np.random.Generator, step_size: float = 0.3) -> list[Check]:
    """The package's TPGM, started at ``w*(γ)`` with radii γ: after a training step it projects back to ``w*(γ)``.

    Its ratios are ``1/(1 + 2ηλ_l)``, and the gradient its Adam receives is `Bilevel.projection_gradient`.
    """
    back, ratios, stated, slopes, ours = [], [], [], [], []
    for _ in range(problems):
        problem = random_problem(rng)
        radii = active_radii(rng, problem)
        v, multipliers = problem.inner(radii)
        model = LinearLayers([problem])
        constraint = TPGM(model, norm="l2")
        state = constraint.state_dict()
        state["radii"] = dict(zip(state["radii"], torch.from_numpy(radii), strict=True))
        constraint.load_state_dict(state)
        eta = step_size / (2 * np.linalg.eigvalsh(problem.gram)[-1])
        ahead = v - 2 * eta * (problem.gram @ v - problem.moment)
        with torch.no_grad():
            for parameter, block in zip(model.parameters(), layer_slices(problem.sizes), strict=True):
                parameter.copy_(torch.from_numpy(ahead[block]))
        constraint.project_()
        ratios.append(list(constraint.ratios().values()))
        stated.append(1 / (1 + 2 * eta * multipliers))
        back.append(torch.cat(list(model.parameters())).detach().numpy() - v)
        with torch.no_grad():
            for parameter, block in zip(model.parameters(), layer_slices(problem.sizes), strict=True):
                parameter.copy_(torch.from_numpy(ahead[block]))
        outer = torch.from_numpy(problem.outer_gram)[None], torch.from_numpy(problem.outer_moment)[None]
        constraint.update(partial(_total, model, *outer))
        group = constraint.optimizer.param_groups[0]
        first_moment = constraint.optimizer.state[group["params"][0]]["exp_avg"] / (1 - group["betas"][0])
        slopes.append(first_moment.numpy())
        ours.append(problem.projection_gradient(radii))

    def near(name: str, left: ArrayLike, right: ArrayLike, scale: float | None = None) -> Check:
        return Check(name, "identity", identity("", left, right, scale=scale).value, problems, GUARD_TOLERANCE)

    return [
        near("TPGM at rest: projects back to w*(γ)", back, np.zeros_like(back), scale=1.0),
        near("TPGM at rest: ratio = 1/(1 + 2ηλ)", ratios, stated),
        near("TPGM at rest: its radius gradient", slopes, ours),
    ]


def once_at_the_end(problems: int, rng: np.random.Generator, updates: int = 300) -> list[Check]:
    """Many updates of the package's TPGM on fixed fine-tuned weights reach the box-constrained QP of chapter 3."""
    drawn = [random_problem(rng) for _ in range(problems)]
    model = LinearLayers(drawn)
    constraint = TPGM(model, norm="l2")
    displacement = torch.from_numpy(np.concatenate([problem.displacement for problem in drawn]))
    sizes = [parameter.numel() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), displacement.split(sizes), strict=True):
            parameter.copy_(part)
    gram = torch.from_numpy(np.stack([problem.outer_gram for problem in drawn]))
    moment = torch.from_numpy(np.stack([problem.outer_moment for problem in drawn]))
    for k in range(updates):
        constraint.optimizer.param_groups[0]["lr"] = 0.1 * 0.97**k
        constraint.update(partial(_total, model, gram, moment))
    constraint.project_()
    with torch.no_grad():
        reached = model(gram, moment).numpy()
    best = [
        float(problem.outer_loss(problem.displacement * np.repeat(end_of_training(problem), SIZES)))
        for problem in drawn
    ]
    constants = np.array([problem.outer_constant for problem in drawn])
    error = float(np.max(np.abs(reached + constants - best) / constants))
    return [Check("TPGM at the end reaches the QP's minimum", "identity", error, problems, 1e-3)]


def stuck_point() -> list[Check]:
    """Slopes of the constructed problem where alternation is stuck, in closed form (proposition on hidden needs)."""
    problem = hidden_need()
    rho, c, b = problem.gram[0, 1], problem.moment, problem.outer_moment
    open_first = np.array([2 * c[0], 0.0])  # layer 1 inside its radius, layer 2 held at its anchor
    tpgm = problem.outer_gradient(problem.inner(open_first).displacement)[1]
    return [
        identity("stuck point: TPGM's slope", tpgm, 2 * (rho * c[0] - b[1])),
        identity("stuck point: hypergradient", problem.hypergradient(open_first)[1], 2 * (rho * b[0] - b[1])),
    ]


def smoothing_threshold(problem: Bilevel, step_size: float = STEP_SIZE) -> float:
    """Strength above which total variation lifts layer 2 of `hidden_need` from radius 0: TPGM's slope times the length
    of one training step from the stuck point."""
    at = np.array([problem.moment[0], 0.0])
    pull = abs(problem.moment - problem.gram @ at)[1]
    return float(problem.outer_gradient(at)[1] * pull * step_size / np.linalg.eigvalsh(problem.gram)[-1])
