"""Checks of chapter 2: what the L2 and the MARS projection are, and the gradient of the radii (statements 6 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tpgm.book.linear.checks import Check, identity, inequality
from tpgm.constraint import EPS, TPGM
from tpgm.projection import Norm, as_rows, project, row_norms

Projection = Callable[[Tensor, Tensor, float], Tensor]  # weight, anchor, radius -> projected weight
Side = Literal["left", "right"]
Formula = Callable[..., Tensor]  # called like `radius_gradient`
DIFFERENCE_TOLERANCE = 1e-6  # finite differences of second order, step 1e-5 of the radius


# --- the three maps


def project_l2(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
    """`tpgm.project` with norm "l2"."""
    return project(weight, anchor, radius, "l2")


def project_mars(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
    """`tpgm.project` with norm "mars", the radial map."""
    return project(weight, anchor, radius, "mars")


def project_mars_euclidean(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
    """The nearest point of the MARS ball: each row's displacement is soft-thresholded onto its L1 ball.

    weight, anchor: floating point, one shape; radius at least 0. The threshold of a row with magnitudes
    ``u_1 ≥ … ≥ u_k`` is ``τ = max(0, max_j (u_1 + … + u_j − γ)/j)``, found by sorting (Duchi et al. 2008).
    """
    rows = as_rows(weight - anchor, "mars")
    sums = rows.abs().sort(dim=1, descending=True).values.cumsum(dim=1)
    counts = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype)
    thresholds = ((sums - radius) / counts).amax(dim=1, keepdim=True).clamp(min=0.0)
    return anchor + _soft_threshold(rows, thresholds).reshape(weight.shape)


def project_mars_bisection(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
    """Plain twin of `project_mars_euclidean`: halves an interval until ``Σ_j max(|Δ_ij| − τ, 0) = γ`` in each row."""
    rows = as_rows(weight - anchor, "mars").clone()
    for i, row in enumerate(rows):
        if row.abs().sum() > radius:
            low, high = torch.zeros((), dtype=row.dtype), row.abs().max()
            for _ in range(60):  # the interval shrinks to 1e-18 of the largest magnitude
                middle = (low + high) / 2
                if (row.abs() - middle).clamp(min=0.0).sum() > radius:
                    low = middle
                else:
                    high = middle
            rows[i] = _soft_threshold(row, high)
    return anchor + rows.reshape(weight.shape)


def _soft_threshold(values: Tensor, threshold: Tensor) -> Tensor:
    return values.sign() * (values.abs() - threshold).clamp(min=0.0)


# --- random problems


def _displacement(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Entries that are Gaussian, heavy-tailed, or Gaussian with many exact zeros."""
    entries = rng.standard_t(2, shape) if rng.random() < 1 / 3 else rng.standard_normal(shape)
    if rng.random() < 1 / 3:
        entries = entries * (rng.random(shape) < 0.4)
    return torch.from_numpy(entries)


def random_problems(
    rng: np.random.Generator, problems: int, norm: Norm, widths: tuple[int, int] = (1, 8)
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yields (weight, anchor, radius), matrices of 1 to 6 rows in float64; about one in four lies inside the ball.

    widths: smallest and largest row width. The largest row norm of the displacement is 1 (or 0, where nothing moved).
    """
    for _ in range(problems):
        shape = (int(rng.integers(1, 7)), int(rng.integers(widths[0], widths[1] + 1)))
        delta = _displacement(rng, shape)
        delta = delta / (row_norms(delta, norm).max() or 1.0)
        anchor = torch.from_numpy(rng.standard_normal(shape))
        yield anchor + delta, anchor, float(rng.uniform(0.02, 1.3))


def _random_member(rng: np.random.Generator, shape: torch.Size, radius: float, norm: Norm) -> Tensor:
    """A random displacement in the ball, often on its boundary."""
    rows = as_rows(_displacement(rng, tuple(shape)), norm)
    norms = row_norms(rows, norm)
    sizes = torch.from_numpy(np.minimum(1.2 * rng.random(len(rows)), 1.0)) * radius
    return (rows * (sizes / torch.where(norms > 0, norms, 1.0))[:, None]).reshape(shape)


def _support(direction: Tensor, radius: float, norm: Norm) -> Tensor:
    """``max ⟨direction, v⟩`` over the ball: γ times the dual norm, which covers every v at once."""
    rows = as_rows(direction, norm)
    return radius * (rows.norm() if norm == "l2" else rows.abs().amax(dim=1).sum())


# --- the norms


def verify_norms(
    rng: np.random.Generator, problems: int, norms: Callable[[Tensor, Norm], Tensor] = row_norms
) -> list[Check]:
    """MARS is the operator norm from ∞ to ∞, for a convolution too; and how it compares with the L2 norm.

    The L2 norm bounds the spectral norm of a matrix, and that of a convolution up to the root of the kernel's area: the
    constant 3×3 kernel shows that the root is needed. norms: computes the row norms, `tpgm.projection.row_norms`
    unless a test passes a wrong one.
    """
    bounds, attained, stated, conv, conv_stated, compare = [], [], [], [], [], []
    matrices, kernels = [], []
    for weight, anchor, _ in random_problems(rng, problems, "mars"):
        delta, (r, k) = weight - anchor, weight.shape
        mars, l2 = norms(delta, "mars").max(), norms(delta, "l2").max()
        x = torch.from_numpy(rng.uniform(-1, 1, (k, 20)))
        bounds.append((mars * x.abs().amax(dim=0) - (delta @ x).abs().amax(dim=0)).min())
        attained.append((delta @ delta.sign().T).abs().max())
        stated.append(mars)
        compare.append(min(np.sqrt(k) * l2 - mars, np.sqrt(r) * mars - l2))
        matrices.append(l2 - torch.linalg.matrix_norm(delta, ord=2))
    for _ in range(max(1, problems // 20)):
        kernel = torch.from_numpy(rng.standard_normal((*rng.integers(1, 4, 2), 3, 3)))
        operator = convolution_matrix(kernel, side=5)
        conv.append(torch.linalg.matrix_norm(operator, ord=np.inf))
        conv_stated.append(norms(kernel, "mars").max())
        kernels.append(3 * norms(kernel, "l2").max() - torch.linalg.matrix_norm(operator, ord=2))
    constant = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    spectral = torch.linalg.matrix_norm(convolution_matrix(constant, side=20), ord=2)
    kernels.append(3 * norms(constant, "l2").max() - spectral)
    stretch = (1 + 2 * np.cos(np.pi / 21)) ** 2 / 3
    return [
        inequality("‖Δx‖_∞ ≤ ‖Δ‖_MARS ‖x‖_∞", bounds),
        identity("… attained where x has the signs of a row", attained, stated, trials=problems),
        identity("convolution: operator norm = MARS of the flattened kernel", conv, conv_stated, trials=len(conv)),
        inequality("‖Δ‖_MARS ≤ √k ‖Δ‖₂ and ‖Δ‖₂ ≤ √r ‖Δ‖_MARS", compare),
        inequality("matrix: ‖Δx‖₂ ≤ ‖Δ‖₂ ‖x‖₂", matrices),
        inequality("convolution: ‖Δ∗x‖₂ ≤ √(kernel area) ‖Δ‖₂ ‖x‖₂", kernels),
        identity("constant 3×3 kernel, 20 × 20 pixels: 2.96 ‖Δ‖₂", spectral, stretch * norms(constant, "l2").max()),
    ]


def convolution_matrix(kernel: Tensor, side: int) -> Tensor:
    """The matrix of a convolution with zero padding 1 on images of side × side pixels; kernel (out, in, 3, 3)."""
    channels = kernel.shape[1]
    pixels = torch.eye(channels * side**2, dtype=torch.float64).reshape(-1, channels, side, side)
    matrix: Tensor = nn.functional.conv2d(pixels, kernel, padding=1).flatten(1).T
    return matrix


# --- Euclidean projections


def verify_euclidean(
    name: str, projection: Projection, norm: Norm, rng: np.random.Generator, problems: int
) -> list[Check]:
    """Feasible, variational inequality, idempotent, nonexpansive: what holds for a Euclidean projection on the ball."""
    feasible, variational, everywhere, again, once, nonexpansive = [], [], [], [], [], []
    for weight, anchor, radius in random_problems(rng, problems, norm):
        p = projection(weight, anchor, radius)
        feasible.append(radius - row_norms(p - anchor, norm).max())
        members = [_random_member(rng, weight.shape, radius, norm) for _ in range(5)]
        variational.append(min(-torch.sum((weight - p) * (anchor + v - p)) for v in members))
        everywhere.append(torch.sum((weight - p) * (p - anchor)) - _support(weight - p, radius, norm))
        again.append(projection(p, anchor, radius))
        once.append(p)
        other = weight + 10 ** rng.uniform(-3, 0) * torch.from_numpy(rng.standard_normal(weight.shape))
        nonexpansive.append((weight - other).norm() - (p - projection(other, anchor, radius)).norm())
    return [
        inequality(f"{name}: feasible", feasible),
        inequality(f"{name}: ⟨w − Πw, v − Πw⟩ ≤ 0, random v", variational),
        inequality(f"{name}: the same for all v (support function)", everywhere),
        identity(f"{name}: idempotent", _flat(again), _flat(once), trials=problems),
        inequality(f"{name}: ‖Πw − Πw'‖ ≤ ‖w − w'‖", nonexpansive),
    ]


def verify_sorting(rng: np.random.Generator, problems: int, projection: Projection = project_mars_euclidean) -> Check:
    """The threshold by sorting against the threshold by bisection."""
    pairs = [
        (projection(*problem), project_mars_bisection(*problem)) for problem in random_problems(rng, problems, "mars")
    ]
    fast, plain = zip(*pairs, strict=True)
    return identity("MARS Euclidean: sorting = bisection", _flat(fast), _flat(plain), trials=problems)


# --- the radial MARS map


def verify_radial(rng: np.random.Generator, problems: int, projection: Projection = project_mars) -> list[Check]:
    """What TPGM's MARS map is: feasible, radial in each row, idempotent, nearest among row scalings, √k-Lipschitz."""
    feasible, direction, again, once, scalings, lipschitz = [], [], [], [], [], []
    for weight, anchor, radius in random_problems(rng, problems, "mars"):
        delta, p = weight - anchor, projection(weight, anchor, radius)
        moved = p - anchor
        feasible.append(radius - row_norms(moved, "mars").max())
        along = (moved * delta).sum(dim=1)
        cosine_one = along**2 - (moved**2).sum(dim=1) * (delta**2).sum(dim=1)
        direction.append(torch.minimum(along, cosine_one).min())
        again.append(projection(p, anchor, radius))
        once.append(p)
        norms = row_norms(delta, "mars")
        allowed = torch.where(norms > radius, radius / norms, 1.0)
        other = torch.from_numpy(rng.random(len(norms))) * allowed
        scalings.append((delta - other[:, None] * delta).norm() - (delta - moved).norm())
        near = weight + 10 ** rng.uniform(-3, 0) * torch.from_numpy(rng.standard_normal(weight.shape))
        stretch = (p - projection(near, anchor, radius)).norm()
        lipschitz.append(np.sqrt(weight.shape[1]) * (weight - near).norm() - stretch)
    return [
        inequality("MARS radial: feasible", feasible),
        inequality("MARS radial: each row keeps its direction", direction),
        identity("MARS radial: idempotent", _flat(again), _flat(once), trials=problems),
        inequality("MARS radial: nearest of all row scalings", scalings),
        inequality("MARS radial: ‖Πw − Πw'‖ ≤ √k ‖w − w'‖", lipschitz),
    ]


# --- how far the radial map is from the Euclidean projection


def distance_ratio(displacement: Tensor, fraction: float) -> Tensor:
    """``‖Δ − radial‖₂ / ‖Δ − Euclidean‖₂`` of every row, shape (rows,), when γ is `fraction` of the row's L1 norm.

    displacement: (rows, k), no row zero; fraction in [0, 1).
    """
    unit = displacement / displacement.abs().sum(dim=1, keepdim=True)
    origin = torch.zeros_like(unit)
    radial, euclidean = project_mars(unit, origin, fraction), project_mars_euclidean(unit, origin, fraction)
    ratio: Tensor = (unit - radial).norm(dim=1) / (unit - euclidean).norm(dim=1)
    return ratio


def spread(displacement: Tensor) -> Tensor:
    """``√k_0 ‖Δ_i‖₂ / ‖Δ_i‖₁`` of every row, (rows,): 1 if its k_0 nonzero entries have one magnitude, at most √k_0.

    displacement: any shape with rows in the first dimension, as `tpgm.project` reads it; a zero row gives NaN.
    """
    rows = as_rows(displacement, "mars")
    uneven: Tensor = (rows != 0).sum(dim=1).to(rows.dtype).sqrt() * rows.norm(dim=1) / rows.abs().sum(dim=1)
    return uneven


def verify_difference(
    rng: np.random.Generator, problems: int, bound: Callable[[Tensor], Tensor] = spread
) -> list[Check]:
    """When the radial map and the Euclidean projection agree, and by how much the distances differ where they do not.

    bound: the upper bound on the distance ratio of each row, `spread` unless a test passes a wrong one.
    """
    lower, upper, tight, tight_stated, radial, euclidean = [], [], [], [], [], []
    for _ in range(problems):
        rows = _displacement(rng, (4, int(rng.integers(2, 33))))
        rows[(rows == 0).all(dim=1), 0] = 1.0
        ratio = distance_ratio(rows, float(rng.uniform(0.0, 0.95)))
        lower.append((ratio - 1).min())
        upper.append((bound(rows) - ratio).min())
        # no entry is zeroed while the threshold stays below the smallest magnitude: the bound is attained
        row = torch.from_numpy(rng.choice([-1, 1], rows.shape[1]) * rng.uniform(0.5, 2.0, rows.shape[1]))[None]
        enough = 1 - row.shape[1] * float(row.abs().min() / row.abs().sum())
        tight.append(distance_ratio(row, float(rng.uniform(enough, (1 + enough) / 2))))
        tight_stated.append(bound(row))
        equal = torch.from_numpy(rng.choice([-1.0, 0.0, 1.0], (3, 6)) * rng.uniform(0.5, 2.0, (3, 1)))
        radius = float(rng.uniform(0.1, 5.0))
        radial.append(project_mars(equal, torch.zeros_like(equal), radius))
        euclidean.append(project_mars_euclidean(equal, torch.zeros_like(equal), radius))
    return [
        inequality("1 ≤ distance ratio", lower),
        inequality("distance ratio ≤ √k₀ ‖Δ‖₂ / ‖Δ‖₁", upper),
        identity("… with equality while no entry is zeroed", _flat(tight), _flat(tight_stated), trials=len(tight)),
        identity("equal magnitudes: the two maps agree", _flat(radial), _flat(euclidean), trials=len(radial)),
    ]


# --- the gradient of the radii


def radius_gradient(
    gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side = "right", eps: float = 0.0
) -> Tensor:
    """``∂L/∂γ = Σ_i 1[γ < n_i] ⟨∇_i L, Δ_i⟩ / n_i``, the theorem of chapter 2; a scalar tensor.

    gradient: of the loss at the projected weights; displacement: before the projection, same shape. Where γ equals a
    norm the one-sided derivatives differ: side "left" counts rows with ``n_i = γ``, "right" does not. eps is added to
    the norms, as `tpgm.TPGM` does (1e-8).
    """
    norms = row_norms(displacement, norm) + eps
    along = as_rows(gradient * displacement, norm).sum(dim=1)
    active = norms >= radius if side == "left" else norms > radius
    return torch.where(active & (norms > 0), along / torch.where(norms > 0, norms, 1.0), 0.0).sum()


def random_loss(rng: np.random.Generator, size: int) -> Callable[[Tensor], Tensor]:
    """A smooth loss of a weight tensor with `size` entries: squared error of 8 tanh units on random data."""
    x, y = torch.from_numpy(rng.standard_normal((8, size))), torch.from_numpy(rng.standard_normal(8))
    return lambda weight: ((torch.tanh(x @ weight.flatten()) - y) ** 2).mean()


@dataclass(frozen=True)
class GradientProblem:
    """A loss of one weight tensor, its anchor and its displacement, in float64: all that ``L(γ)`` depends on."""

    norm: Norm
    anchor: Tensor
    displacement: Tensor
    loss: Callable[[Tensor], Tensor]

    @classmethod
    def random(cls, norm: Norm, rng: np.random.Generator) -> GradientProblem:
        """A bias, a matrix or a convolution kernel, with largest row norm 2."""
        r, k = (int(size) for size in rng.integers(2, 6, 2))
        shape = [(r,), (r, k), (r, k, 2, 2)][rng.integers(3)]
        delta = torch.from_numpy(rng.standard_normal(shape))
        delta = 2 * delta / row_norms(delta, norm).max()
        return cls(norm, torch.from_numpy(0.3 * rng.standard_normal(shape)), delta, random_loss(rng, delta.numel()))

    def value(self, radius: float | Tensor) -> Tensor:
        """``L(γ)``, the loss at the projected weights."""
        return self.loss(project(self.anchor + self.displacement, self.anchor, radius, self.norm))

    def slope(self, radius: float, side: Side = "right", formula: Formula = radius_gradient) -> float:
        """``∂L/∂γ`` by the formula, with the loss gradient taken at the projected weights."""
        projected = project(self.anchor + self.displacement, self.anchor, radius, self.norm).requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(projected), projected)
        return float(formula(gradient, self.displacement, radius, self.norm, side))


def verify_radius_gradient(
    norm: Norm, rng: np.random.Generator, problems: int, formula: Formula = radius_gradient
) -> list[Check]:
    """The formula against autograd through `tpgm.project`, finite differences, and one-sided differences at kinks."""
    smooth: list[tuple[float, float, float]] = []  # by the formula, by autograd, by a central difference
    left: list[tuple[float, float]] = []  # by the formula, by a difference
    right: list[tuple[float, float]] = []
    sides: tuple[tuple[list[tuple[float, float]], Side, int], ...] = ((left, "left", -1), (right, "right", 1))
    for _ in range(problems):
        problem = GradientProblem.random(norm, rng)
        norms = row_norms(problem.displacement, norm)
        radius = float(rng.uniform(0.1, 2.4))
        h = 1e-5 * radius
        if (norms - radius).abs().min() > 2 * h:
            leaf = torch.tensor(radius, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(problem.value(leaf), leaf)
            difference = (problem.value(radius + h) - problem.value(radius - h)) / (2 * h)
            smooth.append((problem.slope(radius, "right", formula), float(slope), float(difference)))

        kink = float(norms[rng.integers(len(norms))])
        h = 1e-5 * kink
        if ((norms - kink).abs() > 2 * h).sum() == len(norms) - 1:  # no other kink within reach
            for pairs, side, sign in sides:
                step = sign * h
                near, far = problem.value(kink + step), problem.value(kink + 2 * step)
                difference = (4 * near - far - 3 * problem.value(kink)) / (2 * step)
                pairs.append((problem.slope(kink, side, formula), float(difference)))
    stated, autograd, central = zip(*smooth, strict=True)
    size = float(np.abs(autograd).max())
    differences = list(zip(stated, central, strict=True))
    return [
        identity(f"{norm.upper()}: ∂L/∂γ = autograd through the projection", stated, autograd, trials=len(smooth)),
        _difference(f"{norm.upper()}: ∂L/∂γ = central difference", differences, size),
        _difference(f"{norm.upper()}: left derivative at γ = n_i", left, size),
        _difference(f"{norm.upper()}: right derivative at γ = n_i", right, size),
    ]


def _difference(name: str, pairs: Sequence[tuple[float, float]], size: float) -> Check:
    stated, measured = zip(*pairs, strict=True)
    exact = identity(name, stated, measured, trials=len(pairs), scale=size)
    return replace(exact, tolerance=DIFFERENCE_TOLERANCE)


class _OneTensor(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def _loss_of(model: _OneTensor, problem: GradientProblem) -> Tensor:
    return problem.loss(model.weight)


def verify_package_gradient(
    norm: Norm, rng: np.random.Generator, problems: int, formula: Formula = radius_gradient
) -> Check:
    """The gradient `tpgm.TPGM` gives its Adam, read off Adam's first moment, against the formula with its 1e-8."""
    used, stated = [], []
    for _ in range(problems):
        problem, radius = GradientProblem.random(norm, rng), float(rng.uniform(0.1, 1.99))
        model = _OneTensor(problem.anchor + problem.displacement)
        constraint = TPGM(model, anchor={"weight": problem.anchor}, norm=norm)
        state = constraint.state_dict()
        state["radii"]["weight"] = torch.tensor(radius, dtype=torch.float64)
        constraint.load_state_dict(state)
        with constraint.projected():
            (gradient,) = torch.autograd.grad(problem.loss(model.weight), model.weight)
        constraint.update(partial(_loss_of, model, problem))
        (moments,) = constraint.optimizer.state.values()
        used.append(float(moments["exp_avg"]) / (1 - constraint.optimizer.param_groups[0]["betas"][0]))
        stated.append(float(formula(gradient, problem.displacement, radius, norm, "left", EPS)))
    return identity(f"{norm.upper()}: gradient inside tpgm.TPGM", used, stated, trials=problems)


def _flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
