"""The linear model of the theory chapters: setting, data, fine-tuning, risks (NumPy, float64).

Notation (book chapter 3): weights ``w`` in layers ``w_1 … w_L``, pre-trained weights ``w⁰`` (the anchor),
optimum ``w*``, ``δ = w* − w⁰``; data ``y = xᵀw* + ε`` with ``Var ε = σ²`` and second moment ``Σ`` of ``x`` in
distribution (ID), ``Σ'`` out of distribution (OOD); fine-tuned weights ``ŵ`` and displacement ``Δ = ŵ − w⁰``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def solve(matrix: Array, right: Array) -> Array:
    """`numpy.linalg.solve`, for which NumPy states no precision: here it is float64."""
    return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)


def layer_slices(sizes: tuple[int, ...]) -> list[slice]:
    """Where each layer's coordinates lie in the stacked vector ``(w_1, …, w_L)``."""
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


def displacement_matrix(displacement: ArrayLike, sizes: tuple[int, ...]) -> Array:
    """``D``, shape (d, L): column l holds ``Δ_l`` in block l and zeros elsewhere, so ``Dα`` scales layer l by ``α_l``.

    Raises ValueError if the layer sizes do not add up to the length of `displacement`.
    """
    delta = np.asarray(displacement, dtype=np.float64)
    if delta.ndim != 1 or delta.size != sum(sizes):
        raise ValueError(f"displacement has shape {delta.shape}; layer sizes {sizes} need ({sum(sizes)},)")
    matrix = np.zeros((delta.size, len(sizes)))
    for l, block in enumerate(layer_slices(sizes)):
        matrix[block, l] = delta[block]
    return matrix


def fine_tune(x: ArrayLike, y: ArrayLike, anchor: ArrayLike) -> Array:
    """``ŵ = w⁰ + X⁺(y − Xw⁰)``, shape (d,): where gradient descent on ``‖y − Xw‖²`` from the anchor converges.

    x: (n, d); y: (n,); anchor: (d,).
    """
    x, y, anchor = (np.asarray(a, dtype=np.float64) for a in (x, y, anchor))
    if x.ndim != 2 or y.shape != x.shape[:1] or anchor.shape != x.shape[1:]:
        raise ValueError(f"shapes do not fit: x {x.shape}, y {y.shape}, anchor {anchor.shape}; want (n, d), (n,), (d,)")
    return anchor + np.linalg.lstsq(x, y - x @ anchor, rcond=None)[0]


@dataclass(frozen=True)
class LinearProblem:
    """One fine-tuning problem of the linear model.

    anchor ``w⁰`` and optimum ``w*``: (d,); sizes: the L layer sizes ``d_l``, summing to d; cov_id ``Σ`` and
    cov_ood ``Σ'``: (d, d) symmetric positive semi-definite, identity by default; noise: ``σ ≥ 0``, in units of y.
    Raises ValueError on shapes that do not fit, an asymmetric or indefinite second moment, or negative noise.
    """

    anchor: Array
    optimum: Array
    sizes: tuple[int, ...]
    cov_id: Array | None = None
    cov_ood: Array | None = None
    noise: float = 0.0
    _roots: dict[bool, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = tuple(int(size) for size in self.sizes)
        d = sum(sizes)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"layer sizes must be positive, got {self.sizes}")
        set_ = object.__setattr__
        set_(self, "sizes", sizes)
        for name in ("anchor", "optimum"):
            vector = np.asarray(getattr(self, name), dtype=np.float64)
            if vector.shape != (d,):
                raise ValueError(f"{name} has shape {vector.shape}; layer sizes {sizes} need ({d},)")
            set_(self, name, vector)
        for name, ood in (("cov_id", False), ("cov_ood", True)):
            given = getattr(self, name)
            cov = np.eye(d) if given is None else np.asarray(given, dtype=np.float64)
            if cov.shape != (d, d) or not np.allclose(cov, cov.T, rtol=1e-10, atol=1e-12):
                raise ValueError(f"{name} must be a symmetric ({d}, {d}) matrix, got shape {cov.shape}")
            values, vectors = np.linalg.eigh(cov)
            if values[0] < -1e-10 * max(1.0, values[-1]):
                raise ValueError(f"{name} must be positive semi-definite; smallest eigenvalue {values[0]:.3g}")
            set_(self, name, cov)
            # an eigenvalue that is zero but for rounding would put 1e-8 into the samples, and its inverse into ŵ
            values = np.where(values > 1e-12 * values[-1], values, 0.0)
            self._roots[ood] = (vectors * np.sqrt(values)) @ vectors.T
        if not self.noise >= 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    @property
    def d(self) -> int:
        return sum(self.sizes)

    @property
    def layers(self) -> list[slice]:
        return layer_slices(self.sizes)

    @property
    def delta(self) -> Array:
        """``δ = w* − w⁰``, (d,)."""
        return self.optimum - self.anchor

    @property
    def distances(self) -> Array:
        """``s_l = ‖δ_l‖²``, (L,): each layer's squared distance to the optimum."""
        return np.array([self.delta[block] @ self.delta[block] for block in self.layers])

    def second_moment(self, ood: bool = False) -> Array:
        """``Σ`` (ID) or ``Σ'`` (OOD), (d, d)."""
        cov = self.cov_ood if ood else self.cov_id
        assert cov is not None
        return cov

    def sample(self, n: int, rng: np.random.Generator, ood: bool = False) -> tuple[Array, Array]:
        """n Gaussian samples: x (n, d) with mean 0 and second moment Σ (or Σ'), y (n,)."""
        x = rng.standard_normal((n, self.d)) @ self._roots[ood]
        return x, x @ self.optimum + self.noise * rng.standard_normal(n)

    def risk(self, weights: ArrayLike, ood: bool = False) -> float:
        """``R(w) = σ² + (w − w*)ᵀΣ(w − w*)`` (ID), or with ``Σ'`` (OOD)."""
        error = np.asarray(weights, dtype=np.float64) - self.optimum
        return float(self.noise**2 + error @ self.second_moment(ood) @ error)

    def weights(self, displacement: ArrayLike, ratios: ArrayLike) -> Array:
        """``w(α) = w⁰ + Dα``, (d,): the model whose layer l keeps the fraction ``α_l`` of its displacement.

        ratios: (L,), or a scalar for one common ratio (the WiSE-FT line).
        """
        alpha = np.broadcast_to(np.asarray(ratios, dtype=np.float64), (len(self.sizes),))
        return self.anchor + displacement_matrix(displacement, self.sizes) @ alpha
