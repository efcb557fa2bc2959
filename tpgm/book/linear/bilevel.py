"""The bi-level problem that TPGM approximates, solved exactly for the linear model (NumPy/SciPy, float64).

Inner problem: ``w*(γ) = argmin ‖y − Xw‖²/n`` over ``‖w_l − w⁰_l‖ ≤ γ_l`` for every layer l. Outer problem:
minimise the validation loss of ``w*(γ)`` over the radii γ. Everything is written in the displacement
``v = w − w⁰`` and in second moments: the training loss is ``vᵀGv − 2cᵀv`` up to a constant, with ``G = XᵀX/n`` and
``c = Xᵀ(y − Xw⁰)/n``. Book chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from tpgm.book.linear.inner import Inner, indicator, norms_by_layer, solve_inner
from tpgm.book.linear.problem import Array, layer_slices, solve

_AT_RADIUS = 1e-9  # relative distance below which a layer counts as lying on its radius


@dataclass(frozen=True)
class Bilevel:
    """One bi-level problem: training loss ``vᵀGv − 2cᵀv`` inside, ``R(v) = vᵀHv − 2bᵀv + r`` outside.

    gram ``G``: (d, d) positive definite; moment ``c``: (d,); outer_gram ``H``: (d, d) positive semi-definite;
    outer_moment ``b``: (d,); outer_constant ``r``, the outer loss of the anchor; sizes: the L layer sizes.
    """

    gram: Array
    moment: Array
    outer_gram: Array
    outer_moment: Array
    outer_constant: float
    sizes: tuple[int, ...]

    @classmethod
    def from_data(
        cls,
        anchor: ArrayLike,
        x: ArrayLike,
        y: ArrayLike,
        x_val: ArrayLike,
        y_val: ArrayLike,
        sizes: tuple[int, ...],
        ridge: float = 0.0,
    ) -> Bilevel:
        """Mean squared errors on a training set x (n, d), y (n,) and a validation set x_val (m, d), y_val (m,).

        ridge ``τ ≥ 0`` adds ``τ‖w − w⁰‖²`` to the training loss. With n < d the inner solution is not unique without
        it; as τ → 0 the solution tends to the one nearest the anchor (book chapter 5).
        """
        anchor, x, y, x_val, y_val = (np.asarray(a, dtype=np.float64) for a in (anchor, x, y, x_val, y_val))
        left, left_val = y - x @ anchor, y_val - x_val @ anchor
        n, m = len(y), len(y_val)
        return cls(
            gram=x.T @ x / n + ridge * np.eye(anchor.size),
            moment=x.T @ left / n,
            outer_gram=x_val.T @ x_val / m,
            outer_moment=x_val.T @ left_val / m,
            outer_constant=float(left_val @ left_val) / m,
            sizes=tuple(sizes),
        )

    @property
    def displacement(self) -> Array:
        """``Δ = G⁻¹c``, (d,): where fine-tuning without constraint ends."""
        return solve(self.gram, self.moment)

    @property
    def free_radii(self) -> Array:
        """``‖Δ_l‖``, (L,): the smallest radii that all leave the fine-tuned model as it is."""
        return norms_by_layer(self.displacement, self.sizes)

    @property
    def largest_radii(self) -> Array:
        """(L,): no inner solution, whatever the other radii, reaches further than this in layer l.

        ``‖Δ_l‖ + √(cᵀΔ · λ_max((G⁻¹)_ll))``: the farthest point of the ellipsoid of all weights that do not raise the
        training loss above the anchor's.
        """
        inverse = np.linalg.inv(self.gram)
        widest = [np.linalg.eigvalsh(inverse[block, block])[-1] for block in layer_slices(self.sizes)]
        largest: Array = self.free_radii + np.sqrt(self.moment @ self.displacement * np.array(widest))
        return largest

    def inner(self, radii: ArrayLike) -> Inner:
        """``w*(γ) − w⁰`` and its multipliers, for radii (…, L)."""
        return solve_inner(self.gram, self.moment, radii, self.sizes)

    def outer_loss(self, displacement: ArrayLike) -> Array:
        """``R(v)`` for displacements (…, d)."""
        v = np.asarray(displacement, dtype=np.float64)
        loss: Array = np.sum(v * (v @ self.outer_gram - 2 * self.outer_moment), axis=-1) + self.outer_constant
        return loss

    def value(self, radii: ArrayLike) -> Array:
        """``F(γ) = R(w*(γ))`` for radii (…, L): what the exact method minimises."""
        return self.outer_loss(self.inner(radii).displacement)

    def outer_gradient(self, displacement: Array) -> Array:
        """``∇R(v) = 2(Hv − b)``, (d,), for one displacement."""
        return 2 * (self.outer_gram @ displacement - self.outer_moment)

    def hypergradient(self, radii: ArrayLike, inner: Inner | None = None) -> Array:
        """``∂F/∂γ``, (L,), exactly, by implicit differentiation of the inner KKT conditions (book chapter 5).

        0 for a layer inside its radius. At a kink, where a layer lies on its radius with multiplier 0, the derivative
        of the piece in which that layer is active (for one such layer: the derivative from below); at radius 0 the
        derivative from above. inner: the inner solution, where it is at hand.
        """
        gamma = np.asarray(radii, dtype=np.float64)
        v, multipliers = self.inner(gamma) if inner is None else inner
        layer, slope = indicator(self.sizes), self.outer_gradient(v)
        shut = gamma == 0
        active = ~shut & (norms_by_layer(v, self.sizes) >= gamma * (1 - _AT_RADIUS))
        free = layer @ ~shut > 0
        # a shut layer would open along the training gradient, an active one moves along its own direction
        pull = layer * (self.moment - self.gram @ v)[:, None]
        outward = layer * v[:, None]
        for columns in (pull, outward):
            columns /= np.maximum(np.linalg.norm(columns, axis=0), np.finfo(np.float64).tiny)
        count = int(free.sum())
        normals = outward[np.ix_(free, active)]
        bordered = np.zeros((count + normals.shape[1],) * 2)
        bordered[:count, :count] = self.gram[np.ix_(free, free)] + np.diag((layer @ multipliers)[free])
        bordered[:count, count:], bordered[count:, :count] = normals, normals.T
        adjoint = np.linalg.solve(bordered, np.append(slope[free], np.zeros(normals.shape[1])))
        result = np.zeros(len(self.sizes))
        result[active] = adjoint[count:]
        result[shut] = (slope - self.gram[:, free] @ adjoint[:count]) @ pull[:, shut]
        return result

    def projection_gradient(self, radii: ArrayLike, displacement: ArrayLike | None = None) -> Array:
        """TPGM's radius gradient, (L,): through the projection alone, ``1[γ_l < ‖Δ_l‖] ⟨∇_l R, Δ_l⟩ / ‖Δ_l‖``.

        displacement: the weights that are projected, minus the anchor. Default: one training step away from
        ``w*(γ)``, where alternation rests; ``Δ_l`` is then parallel to ``v_l``, and a layer inside its radius gets 0.
        """
        gamma = np.asarray(radii, dtype=np.float64)
        if displacement is None:
            v, multipliers = self.inner(gamma)
            ahead = v * np.repeat(1 + multipliers, self.sizes)
        else:
            ahead = np.asarray(displacement, dtype=np.float64)
        norms = norms_by_layer(ahead, self.sizes)
        length = np.where(norms > 0, norms, 1.0)
        projected = ahead * np.repeat(np.minimum(1.0, gamma / length), self.sizes)
        radial = (self.outer_gradient(projected) * ahead) @ indicator(self.sizes) / length
        return np.where(gamma < norms, radial, 0.0)


class Exact(NamedTuple):
    """Best point found: radii (L,), displacement (d,) of ``w*(γ)``, outer loss, and the loss each start reached."""

    radii: Array
    displacement: Array
    loss: float
    reached: Array


def solve_exact(problem: Bilevel, grid: int = 5, starts: int = 3) -> Exact:
    """Minimise ``F(γ) = R(w*(γ))`` by L-BFGS-B, a bounded quasi-Newton method, with the exact hypergradient.

    ``F`` is continuous and piecewise smooth but in general not convex: a start reaches a local minimum only. Starts:
    all radii 0, all radii just below ``‖Δ_l‖``, and the `starts` best points of a grid with `grid` values per layer
    between 0 and ``1.2 ‖Δ_l‖`` (``grid^L`` inner problems: for small L). Nothing proves that the
    best of them is global.
    """
    free = problem.free_radii
    unit = np.where(free > 0, free, 1.0)
    axes = np.meshgrid(*[np.linspace(0.0, 1.2, grid)] * len(unit), indexing="ij")
    points = np.stack([axis.ravel() for axis in axes], axis=1) * unit
    best = points[np.argsort(problem.value(points))[:starts]]
    bounds = [(0.0, top) for top in problem.largest_radii / unit]
    known = problem.inner(free / 2)  # multipliers of the last point are a good guess at the next

    def loss_and_gradient(t: Array) -> tuple[float, Array]:
        nonlocal known
        known = solve_inner(problem.gram, problem.moment, t * unit, problem.sizes, known.multipliers)
        return float(problem.outer_loss(known.displacement)), problem.hypergradient(t * unit, known) * unit

    found = []
    for start in (np.zeros_like(unit), 0.999 * free, *best):
        radii, loss = start, np.inf
        while True:
            options = {"ftol": 1e-14, "gtol": 1e-9}
            result = minimize(
                loss_and_gradient, radii / unit, jac=True, bounds=bounds, method="L-BFGS-B", options=options
            )
            # beyond the norm a layer takes anyway F is flat: come back to the edge, where it may fall again
            taken = norms_by_layer(problem.inner(result.x * unit).displacement, problem.sizes)
            gained, loss = loss - result.fun, float(result.fun)
            radii = np.minimum(result.x * unit, taken)
            if gained <= 1e-12 * abs(loss) or (result.x * unit <= taken * (1 + _AT_RADIUS)).all():
                break
        found.append((loss, radii))
    loss, radii = min(found, key=lambda pair: pair[0])
    return Exact(radii, problem.inner(radii).displacement, loss, np.array([pair[0] for pair in found]))
