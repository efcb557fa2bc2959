"""Chapter 2: wrong norms, wrong maps and wrong gradients, and the checks that catch them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mutants import Mutant
from tpgm.book.linear import verify_projection as verify
from tpgm.book.linear.checks import Check
from tpgm.book.linear.verify_projection import (
    Formula,
    Projection,
    Side,
    distance_ratio,
    project_l2,
    project_mars,
    project_mars_euclidean,
    radius_gradient,
    spread,
)
from tpgm.projection import Norm, as_rows, row_norms

PROBLEMS = 150


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --- wrong norms


def column_sums(displacement: Tensor, norm: Norm) -> Tensor:
    return row_norms(displacement.transpose(0, 1), norm)


def half_the_l2_norm(displacement: Tensor, norm: Norm) -> Tensor:
    return row_norms(displacement, norm) / (2 if norm == "l2" else 1)


def _norms(norms: Callable[[Tensor, Norm], Tensor], _: pytest.MonkeyPatch) -> list[Check]:
    return verify.verify_norms(_rng(), PROBLEMS, norms)


# --- wrong maps, made of right ones


def scaled_radius(projection: Projection, factor: float) -> Projection:
    return lambda weight, anchor, radius: projection(weight, anchor, factor * radius)


def half_way(projection: Projection) -> Projection:
    return lambda weight, anchor, radius: (projection(weight, anchor, radius) + anchor) / 2


def stretched(projection: Projection) -> Projection:
    return lambda weight, anchor, radius: anchor + 3 * (projection(weight, anchor, radius) - anchor)


def tensor_wide(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
    # feasible and radial, but every row pays for the largest one
    largest = float(row_norms(weight - anchor, "mars").max())
    return anchor + (weight - anchor) * min(1.0, radius / largest if largest else 1.0)


def first_threshold(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
    # takes t_1 for the largest of t_1, …, t_k
    rows = as_rows(weight - anchor, "mars")
    threshold = (rows.abs().amax(dim=1, keepdim=True) - radius).clamp(min=0.0)
    return anchor + (rows.sign() * (rows.abs() - threshold).clamp(min=0.0)).reshape(weight.shape)


MAPS: dict[str, tuple[Projection, Norm]] = {
    "L2": (project_l2, "l2"),
    "MARS Euclidean": (project_mars_euclidean, "mars"),
}


def _euclidean(name: str, change: Callable[[Projection], Projection], _: pytest.MonkeyPatch) -> list[Check]:
    projection, norm = MAPS[name]
    return verify.verify_euclidean(name, change(projection), norm, _rng(), PROBLEMS)


def _radial_as_euclidean(_: pytest.MonkeyPatch) -> list[Check]:
    return verify.verify_euclidean("MARS radial", project_mars, "mars", _rng(), 300)


def _radial(projection: Projection, _: pytest.MonkeyPatch) -> list[Check]:
    return verify.verify_radial(_rng(), PROBLEMS, projection)


def _sorting(projection: Projection, _: pytest.MonkeyPatch) -> list[Check]:
    return [verify.verify_sorting(_rng(), 30, projection)]


def _bound(factor: float, _: pytest.MonkeyPatch) -> list[Check]:
    return verify.verify_difference(_rng(), PROBLEMS, lambda rows: factor * spread(rows))


def _wrong_threshold(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    monkeypatch.setattr(verify, "project_mars_euclidean", first_threshold)
    return verify.verify_difference(_rng(), PROBLEMS)


def _inverse_ratio(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    monkeypatch.setattr(verify, "distance_ratio", lambda rows, fraction: 1 / distance_ratio(rows, fraction))
    return verify.verify_difference(_rng(), PROBLEMS)


# --- wrong gradients


def without_indicator(
    gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side, eps: float = 0.0
) -> Tensor:
    return radius_gradient(gradient, displacement, 0.0, norm, side, eps)


def without_unit_length(
    gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side, eps: float = 0.0
) -> Tensor:
    along = as_rows(gradient * displacement, norm).sum(dim=1)
    return torch.where(row_norms(displacement, norm) > radius, along, 0.0).sum()


def one_side(which: Side) -> Formula:
    def formula(gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side) -> Tensor:
        return radius_gradient(gradient, displacement, radius, norm, which)

    return formula


def along_the_signs(gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side) -> Tensor:
    # the direction of a Euclidean (soft-thresholding) projection without zeroed entries
    along = as_rows(gradient * displacement.sign(), norm).mean(dim=1)
    return torch.where(row_norms(displacement, norm) > radius, along, 0.0).sum()


def _gradient(norm: Norm, formula: Formula, _: pytest.MonkeyPatch) -> list[Check]:
    return verify.verify_radius_gradient(norm, _rng(), 60, formula)


def _package(norm: Norm, formula: Formula, _: pytest.MonkeyPatch) -> list[Check]:
    return [verify.verify_package_gradient(norm, _rng(), 6, formula)]


_EUCLIDEAN: dict[str, Callable[[Projection], Projection]] = {
    "a radius 1.1 times too large": partial(scaled_radius, factor=1.1),
    "a radius 0.9 times too small": partial(scaled_radius, factor=0.9),
    "half of the way from the projection to the anchor": half_way,
    "the result stretched threefold": stretched,
}
_LABELS = {"L2": "thm-l2-projection", "MARS Euclidean": "thm-mars-euclidean"}
_NORMS: tuple[Norm, ...] = ("l2", "mars")
_WRONG: dict[str, Formula] = {
    "rows within the radius count too": without_indicator,
    "displacement not divided by its norm": without_unit_length,
    "direction of the Euclidean projection": along_the_signs,
    "left derivative on both sides": one_side("left"),
    "right derivative on both sides": one_side("right"),
}

MUTANTS = [
    Mutant(2, "prop-mars-norm", "column sums for row sums", partial(_norms, column_sums)),
    Mutant(2, "prop-mars-norm", "half of the L2 norm", partial(_norms, half_the_l2_norm)),
    *(
        Mutant(2, _LABELS[name], f"{name}: {change}", partial(_euclidean, name, wrong))
        for name in MAPS
        for change, wrong in _EUCLIDEAN.items()
    ),
    Mutant(2, "thm-l2-projection", "the radial MARS map taken for a Euclidean projection", _radial_as_euclidean),
    Mutant(
        2, "thm-mars-radial", "a radius 1.1 times too large", partial(_radial, scaled_radius(project_mars, factor=1.1))
    ),
    Mutant(2, "thm-mars-radial", "the Euclidean projection", partial(_radial, project_mars_euclidean)),
    Mutant(2, "thm-mars-radial", "one ratio for all rows", partial(_radial, tensor_wide)),
    Mutant(2, "thm-mars-radial", "half of the way to the anchor", partial(_radial, half_way(project_mars))),
    Mutant(2, "thm-mars-radial", "the result stretched threefold", partial(_radial, stretched(project_mars))),
    Mutant(2, "thm-mars-euclidean", "the radial map against bisection", partial(_sorting, project_mars)),
    Mutant(2, "thm-mars-euclidean", "first threshold, against bisection", partial(_sorting, first_threshold)),
    Mutant(2, "thm-mars-euclidean", "first threshold for the largest", _wrong_threshold),
    Mutant(2, "thm-mars-euclidean", "the distance ratio upside down", _inverse_ratio),
    Mutant(2, "thm-mars-euclidean", "0.99 of the bound", partial(_bound, 0.99)),
    Mutant(2, "thm-mars-euclidean", "1.01 of the bound", partial(_bound, 1.01)),
    *(
        Mutant(2, "thm-radius-gradient", f"{norm.upper()}: {change}", partial(_gradient, norm, formula))
        for norm in _NORMS
        for change, formula in _WRONG.items()
    ),
    *(
        Mutant(
            2,
            "thm-radius-gradient",
            f"{norm.upper()}: displacement not divided by its norm, in tpgm.TPGM",
            partial(_package, norm, without_unit_length),
        )
        for norm in _NORMS
    ),
]  # fmt: skip
