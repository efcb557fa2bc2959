"""Norms of a displacement, ratios and closed-form projections: the only place that knows L2 and MARS.

The displacement of a weight is ``Δ = W − W⁰``. "l2" measures the whole tensor by one Euclidean norm. "mars" (maximum
absolute row sum, arXiv 2002.08253) measures each row by its L1 norm; rows are the first dimension, the rest flattened;
a tensor with fewer than two dimensions is one row.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tpgm import check

Norm = Literal["l2", "mars"]


class Measure(NamedTuple):
    """What a norm takes together and how.

    by_row: one norm for each row, or one for the whole tensor. power: 1 for the sum of absolute values, 2 for the root
    of the sum of squares.
    """

    by_row: bool
    power: Literal[1, 2]


# all that the rest of the package knows of a norm; a new one is a line here and a word in `Norm`
NORMS: dict[str, Measure] = {"l2": Measure(by_row=False, power=2), "mars": Measure(by_row=True, power=1)}


def count_rows(tensor: Tensor, norm: Norm) -> int:
    """How many norms a tensor has: one for each row, or one."""
    return tensor.shape[0] if NORMS[norm].by_row and tensor.dim() > 1 else 1


def as_rows(tensor: Tensor, norm: Norm) -> Tensor:
    """The tensor as (rows, columns), one row for each norm it has; a view where the layout allows."""
    rows = count_rows(tensor, norm)
    return tensor.reshape(rows, tensor.numel() // rows if rows else 0)


def upcast(tensor: Tensor) -> Tensor:
    """float64 stays, everything narrower becomes float32: norms of half-precision weights would overflow."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def row_norms(displacement: Tensor, norm: Norm) -> Tensor:
    """``n_i``, shape (rows,), float32 or float64: for "mars" the L1 norm of each row, for "l2" one Euclidean norm."""
    rows = as_rows(upcast(displacement), norm)
    return rows.abs().sum(dim=1) if NORMS[norm].power == 1 else torch.linalg.vector_norm(rows, dim=1)


def row_ratios(norms: Tensor, radius: Tensor | float, eps: float = 0.0) -> Tensor:
    """``clip(γ / (n_i + eps), 0, 1)``, the shape of `norms`; a row that has not moved gets 1."""
    radius = torch.as_tensor(radius, dtype=norms.dtype, device=norms.device)  # number / tensor would not be exact
    moved = norms > 0
    # the inner where keeps 0 out of the denominator, whose gradient would be NaN
    return torch.where(moved, radius / (torch.where(moved, norms, 1.0) + eps), 1.0).clamp(0.0, 1.0)


def scale_rows(weight: Tensor, anchor: Tensor, ratios: Tensor, norm: Norm) -> Tensor:
    """``W⁰_i + α_i (W_i − W⁰_i)`` in the shape and dtype of `weight`; rows with ratio 1 come back bit for bit."""
    moved, start = as_rows(upcast(weight), norm), as_rows(upcast(anchor), norm)
    alpha = ratios.to(moved.dtype).unsqueeze(1)
    scaled = torch.where(alpha < 1, start + alpha * (moved - start), moved)
    return scaled.reshape(weight.shape).to(weight.dtype)


@check.keywords
def project(weight: Tensor, anchor: Tensor, radius: Tensor | float, norm: Norm = "mars") -> Tensor:
    """Project a weight onto the ball of `radius` around its anchor, in closed form (arXiv 2303.10720, section 3).

    weight, anchor: floating-point tensors of one shape; radius: at least 0, in the unit of the norm; infinity leaves
    the weight as it is. norm "l2": ``W⁰ + Δ min(1, γ/‖Δ‖₂)``, the Euclidean projection. norm "mars": row i becomes
    ``W⁰_i + Δ_i min(1, γ/‖Δ_i‖₁)``, feasible and radial but not the Euclidean projection on the MARS ball.
    Returns a new tensor with the shape and dtype of `weight`; differentiable wherever no norm equals the radius.
    Raises ValueError for an unknown norm, shapes that differ, NaN or infinite values, or a radius that is negative, NaN
    or neither one number nor one a row; TypeError for anything but floating-point tensors.
    """
    check.choice("norm", norm, NORMS)
    for name, tensor in (("weight", weight), ("anchor", anchor)):
        if check.instance(name, tensor, Tensor, "a tensor").layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got the layout {tensor.layout}: call to_dense()")
    if weight.shape != anchor.shape:
        raise ValueError(f"weight {tuple(weight.shape)} and anchor {tuple(anchor.shape)} must have the same shape")
    if not (weight.is_floating_point() and anchor.is_floating_point()):
        raise TypeError(f"weight and anchor must be floating point, got {weight.dtype} and {anchor.dtype}")
    rows = count_rows(weight, norm)
    if not isinstance(radius, Tensor):
        radius = math.inf if radius == math.inf else check.number("radius", radius, 0)
    elif radius.is_complex() or radius.shape not in ((), (1,), (rows,)):
        raise ValueError(f"radius must be one number or one a row, ({rows},), got {radius.dtype} {tuple(radius.shape)}")
    elif not bool((radius >= 0).all()):
        raise ValueError(f"radius must be at least 0, got {check.shown(radius)} with the smallest {radius.min():g}")
    check.finite({"weight": weight, "anchor": anchor}, "give finite numbers: the training may have diverged")
    norms = row_norms(upcast(weight) - upcast(anchor), norm)
    return scale_rows(weight, anchor, row_ratios(norms, radius), norm)
