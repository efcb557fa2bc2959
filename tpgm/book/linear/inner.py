"""The inner problem of chapter 5: least squares with a ball around the anchor for every layer, solved exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpgm.book.linear.problem import Array

Rows = NDArray[np.integer[Any]]  # which of many problems
_FEASIBLE = 1e-13  # relative error of a squared norm on its squared radius at which the solver stops


class Inner(NamedTuple):
    """Solution of the inner problem: displacement ``v``, shape (…, d), and multipliers ``λ ≥ 0``, shape (…, L).

    ``(G + blockdiag(λ_l I)) v = c`` in every layer with positive radius; a layer with radius 0 has ``v_l = 0`` and
    its multiplier, which does not exist, is reported as 0.
    """

    displacement: Array
    multipliers: Array


def indicator(sizes: tuple[int, ...]) -> Array:
    """(d, L): 1 where a coordinate (row) belongs to a layer (column)."""
    return np.repeat(np.eye(len(sizes)), sizes, axis=0)


def norms_by_layer(vector: ArrayLike, sizes: tuple[int, ...]) -> Array:
    """``‖v_l‖``, (…, L), of vectors (…, d)."""
    return np.sqrt(np.square(vector) @ indicator(sizes))


def solve_inner(
    gram: ArrayLike, moment: ArrayLike, radii: ArrayLike, sizes: tuple[int, ...], start: ArrayLike = 0.0
) -> Inner:
    """Minimise ``vᵀGv − 2cᵀv`` over ``‖v_l‖ ≤ γ_l`` exactly (to about 1e-12), for many problems at once.

    gram ``G``: (…, d, d) symmetric positive definite; moment ``c``: (…, d); radii: (…, L), at least 0, infinity
    allowed; start: (…, L), a guess of the multipliers; leading dimensions broadcast. Works on the concave dual, a
    function of the L multipliers: an active-set Newton method whose first trial step is the secular one (Newton on
    ``1/γ_l − 1/‖v_l‖``, joint over layers), safeguarded by the dual function.
    Raises ValueError if a radius is negative or NaN, or if G is not positive definite: the solution is then not unique
    in general, and a ridge (`Bilevel.from_data`) chooses the one nearest the anchor. Raises ArithmeticError if it does
    not converge, which was seen for condition numbers of G above 1e5 only.
    """
    gram, moment, radii = (np.asarray(a, dtype=np.float64) for a in (gram, moment, radii))
    if not (radii >= 0).all():
        raise ValueError("radii must be at least 0")
    lead = np.broadcast_shapes(gram.shape[:-2], moment.shape[:-1], radii.shape[:-1])
    d, count = sum(sizes), len(sizes)
    spectrum = np.linalg.eigvalsh(gram)
    if not (spectrum[..., 0] > 1e-14 * spectrum[..., -1]).all():
        raise ValueError("gram must be positive definite; with n < d give a ridge > 0")
    condition = np.broadcast_to(spectrum[..., -1] / spectrum[..., 0], lead).reshape(-1)
    allowed = np.finfo(np.float64).eps * condition  # what rounding leaves
    layer = indicator(sizes)
    gamma = np.minimum(np.broadcast_to(radii, (*lead, count)).reshape(-1, count), 1e100)  # its square is finite
    frozen = gamma == 0
    squared = np.where(frozen, 1.0, gamma) ** 2
    # a frozen layer leaves the problem: unit rows and columns, and nothing that moves it
    free = ~frozen @ layer.T > 0
    k0 = np.broadcast_to(gram, (*lead, d, d)).reshape(-1, d, d)
    k0 = np.where(free[:, :, None] & free[:, None, :], k0, np.eye(d))
    c = np.broadcast_to(moment, (*lead, d)).reshape(-1, d) * free

    def evaluate(rows: Rows, lam: Array) -> tuple[Array, Array, Array]:
        """K = G + Λ, v = K⁻¹c and the negative dual cᵀv + λᵀγ²."""
        k = k0[rows] + (lam @ layer.T)[:, :, None] * np.eye(d)
        v = np.linalg.solve(k, c[rows][:, :, None])[:, :, 0]
        return k, v, np.sum(c[rows] * v, axis=1) + np.sum(lam * squared[rows], axis=1)

    def violation(rows: Rows, lam: Array, v: Array) -> tuple[Array, Array]:
        """The gradient of the dual ‖v_l‖² − γ_l², and the largest relative error in the KKT conditions."""
        excess = np.where(frozen[rows], 0.0, v**2 @ layer - squared[rows])
        error = np.where(lam > 0, np.abs(excess), np.maximum(excess, 0.0)) / squared[rows]
        return excess, np.max(error, axis=1)

    everything = np.arange(len(gamma))
    scale = np.trace(k0, axis1=1, axis2=2) / d
    lam = np.where(frozen, 0.0, np.broadcast_to(start, (*lead, count)).reshape(-1, count))
    k, v, dual = evaluate(everything, lam)
    visits = np.zeros(len(gamma), dtype=int)  # iterations at the level of rounding: Newton needs few
    for _ in range(200):
        excess, worst = violation(everything, lam, v)
        reach = np.max(np.where(lam > 0, np.linalg.norm(v, axis=1)[:, None] / np.sqrt(squared), 1.0), axis=1)
        visits += worst <= allowed * reach
        rows = np.flatnonzero((worst > _FEASIBLE) & (visits < 12))
        if not rows.size:
            break
        q, now = excess[rows], lam[rows]
        # multipliers about to vanish go to zero by themselves; the others take a joint Newton step
        leaving = (q < 0) & (now <= (1e-3 * scale * np.minimum(1.0, worst))[rows, None])
        active = ((now > 0) | (q > 0)) & ~leaving
        columns = v[rows][:, :, None] * layer
        curvature = np.swapaxes(columns, 1, 2) @ np.linalg.solve(k[rows], columns)
        norm2, target = v[rows] ** 2 @ layer, np.sqrt(squared[rows])
        secular = q * norm2 / (target * (np.sqrt(norm2) + target))
        blame = np.where(active | (now > 0), np.abs(q) / squared[rows], 0.0)
        single = np.arange(count) == np.argmax(blame, axis=1)[:, None]
        own = np.maximum(np.diagonal(curvature, axis1=1, axis2=2), 1e-300)
        for _ in range(count):
            both = active[:, :, None] & active[:, None, :]
            system = np.where(both, curvature, 0.0) + np.where(active, 1e-300, 1.0)[:, :, None] * np.eye(count)
            joint, newton = (
                np.linalg.solve(system, np.where(active, r, 0.0)[:, :, None])[:, :, 0] for r in (secular, q / 2)
            )
            barred = active & (now == 0) & (newton < 0)  # the step would leave the orthant: without that multiplier
            if not barred.any():
                break
            active &= ~barred
        waiting = np.arange(rows.size)
        for attempt in range(50):
            if attempt < 5:
                step = np.where(active, joint if attempt == 0 else newton * 0.25 ** (attempt - 1), -now)
            else:  # the most violated constraint alone: a step this way always descends once it is short enough
                step = single * (secular if attempt == 5 else 0.5 ** (attempt - 5) * q / 2) / own
            trial = np.maximum(now + step, 0.0)[waiting]
            at = rows[waiting]
            new_k, new_v, new_dual = evaluate(at, trial)
            gain = np.sum(q[waiting] * (trial - now[waiting]), axis=1)
            good = (gain > 0) & (new_dual <= dual[at] - 1e-4 * gain + 1e-15 * np.abs(dual[at]))
            # for tiny radii the dual is blind to what the KKT conditions still see
            blind = new_dual <= dual[at] + 1e-12 * np.abs(dual[at])
            good |= blind & (violation(at, trial, new_v)[1] <= np.minimum(worst[at] / 2, 1e-2))
            taken = at[good]
            lam[taken], k[taken], v[taken], dual[taken] = trial[good], new_k[good], new_v[good], new_dual[good]
            waiting = waiting[~good]
            if not waiting.size:
                break
    else:
        raise ArithmeticError(f"the inner problem did not converge: relative error {worst[rows].max():.2g}")
    return Inner(v.reshape(*lead, d), lam.reshape(*lead, count))


def solve_inner_plain(
    gram: ArrayLike,
    moment: ArrayLike,
    radii: ArrayLike,
    sizes: tuple[int, ...],
    steps: int = 5000,
    start: ArrayLike = 0.0,
) -> Array:
    """The same displacement ``v``, (d,), by accelerated projected gradient: the plain twin of `solve_inner`.

    One problem; a momentum step, a gradient step of length ``1/λ_max(G)``, the L2 projection of every layer, and a
    restart of the momentum whenever it points uphill. `start`, (d,), matters only where G is singular and there are
    many solutions.
    """
    gram, moment, radii = (np.asarray(a, dtype=np.float64) for a in (gram, moment, radii))
    step = 1 / np.linalg.eigvalsh(gram)[-1]
    v = ahead = np.zeros_like(moment) + np.asarray(start, dtype=np.float64)
    momentum = 1.0
    for _ in range(steps):
        moved = ahead - step * (gram @ ahead - moment)
        norms = norms_by_layer(moved, sizes)
        new = moved * np.repeat(np.minimum(1.0, radii / np.where(norms > 0, norms, 1.0)), sizes)
        if (ahead - new) @ (new - v) > 0:
            momentum = 1.0
        if np.max(np.abs(new - v)) < 1e-16 and momentum > 1.0:
            break
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        v, ahead, momentum = new, new + (momentum - 1) / grown * (new - v), grown
    return v
