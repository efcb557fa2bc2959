"""Chapter 2: the checks its notebook shows, and for each a broken assumption that makes it fail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tpgm.book.linear import Check
from tpgm.book.linear.verify_projection import (
    Projection,
    Side,
    distance_ratio,
    project_l2,
    project_mars,
    project_mars_euclidean,
    radius_gradient,
    spread,
    verify_difference,
    verify_euclidean,
    verify_norms,
    verify_package_gradient,
    verify_radial,
    verify_radius_gradient,
    verify_sorting,
)
from tpgm.projection import Norm, as_rows, row_norms

PROBLEMS = 1000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def failed(checks: Sequence[Check]) -> set[int]:
    """Positions of the checks that do not pass."""
    return {i for i, check in enumerate(checks) if not check.passed}


# --- norms


def test_mars_is_the_operator_norm(rng: np.random.Generator) -> None:
    for check in verify_norms(rng, PROBLEMS):
        check.require()


def test_column_sums_are_not_the_operator_norm(rng: np.random.Generator) -> None:
    def columns(displacement: Tensor, norm: Norm) -> Tensor:
        return row_norms(displacement.transpose(0, 1), norm)

    assert {0, 2} <= failed(verify_norms(rng, 200, columns))


def test_the_norm_inequalities_need_their_factors(rng: np.random.Generator) -> None:
    def halved_l2(displacement: Tensor, norm: Norm) -> Tensor:
        return row_norms(displacement, norm) / (2 if norm == "l2" else 1)

    assert failed(verify_norms(rng, 200, halved_l2)) == {3}


# --- projections


@pytest.mark.parametrize(
    ("projection", "norm"), [(project_l2, "l2"), (project_mars_euclidean, "mars")], ids=["l2", "mars euclidean"]
)
def test_euclidean_projections(projection: Projection, norm: Norm, rng: np.random.Generator) -> None:
    for check in verify_euclidean(norm, projection, norm, rng, PROBLEMS):
        check.require()


def test_the_radial_mars_map_is_no_euclidean_projection(rng: np.random.Generator) -> None:
    # feasible and idempotent, but the variational inequality and nonexpansiveness fail
    assert failed(verify_euclidean("radial", project_mars, "mars", rng, 300)) == {1, 2, 4}


def test_a_map_out_of_the_ball_or_too_deep_into_it_fails(rng: np.random.Generator) -> None:
    def too_far(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        return project_l2(weight, anchor, 1.1 * radius)

    def too_deep(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        return project_l2(weight, anchor, 0.9 * radius)

    def halving(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        return (project_l2(weight, anchor, radius) + anchor) / 2

    assert 0 in failed(verify_euclidean("far", too_far, "l2", rng, 200))
    assert {1, 2} <= failed(verify_euclidean("deep", too_deep, "l2", rng, 200))
    assert 3 in failed(verify_euclidean("halving", halving, "l2", rng, 200))


def test_sorting_finds_the_threshold(rng: np.random.Generator) -> None:
    verify_sorting(rng, 300).require()
    assert not verify_sorting(rng, 20, project_mars).passed


def test_what_the_radial_mars_map_is(rng: np.random.Generator) -> None:
    for check in verify_radial(rng, PROBLEMS):
        check.require()


def test_other_maps_are_not_radial_or_not_the_nearest_scaling(rng: np.random.Generator) -> None:
    def tensor_wide(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        # feasible and radial, but every row pays for the largest one
        largest = float(row_norms(weight - anchor, "mars").max())
        return anchor + (weight - anchor) * min(1.0, radius / largest if largest else 1.0)

    def outside(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        return project_mars(weight, anchor, 1.1 * radius)

    def halving(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        return (project_mars(weight, anchor, radius) + anchor) / 2

    assert failed(verify_radial(rng, 200, project_mars_euclidean)) == {1}
    assert failed(verify_radial(rng, 200, tensor_wide)) == {3}
    assert 0 in failed(verify_radial(rng, 200, outside))
    assert 2 in failed(verify_radial(rng, 200, halving))


@pytest.mark.parametrize("width", [2, 5, 16])
def test_the_lipschitz_constant_of_the_radial_map_is_the_root_of_the_width(width: int) -> None:
    start = torch.zeros(1, width, dtype=torch.float64)
    corner = torch.eye(1, width, dtype=torch.float64)
    near = corner + 1e-6 * (1 - corner)
    moved = (project_mars(near, start, 1.0) - project_mars(corner, start, 1.0)).norm()
    stretch = float(moved / (near - corner).norm())
    assert stretch == pytest.approx(width**0.5 / (1 + (width - 1) * 1e-6), rel=1e-9)


def test_a_stretched_map_breaks_the_lipschitz_bound(rng: np.random.Generator) -> None:
    def stretching(weight: Tensor, anchor: Tensor, radius: float) -> Tensor:
        return anchor + 3 * (project_mars(weight, anchor, radius) - anchor)

    assert 4 in failed(verify_radial(rng, 200, stretching))


# --- the difference


def test_the_counter_example() -> None:
    weight, start = torch.tensor([[2.0, 1.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    radial, nearest = project_mars(weight, start, 1.0), project_mars_euclidean(weight, start, 1.0)
    torch.testing.assert_close(radial, torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64), rtol=1e-15, atol=0)
    torch.testing.assert_close(nearest, torch.tensor([[1.0, 0.0]], dtype=torch.float64), rtol=1e-15, atol=0)
    assert float((weight - radial).norm() ** 2) == pytest.approx(20 / 9)
    assert float((weight - nearest).norm() ** 2) == pytest.approx(2)
    assert float(((weight - radial) * (nearest - radial)).sum()) == pytest.approx(2 / 9)


def test_how_far_the_radial_map_is_from_the_nearest_point(rng: np.random.Generator) -> None:
    for check in verify_difference(rng, PROBLEMS):
        check.require()


def test_the_bound_on_the_distance_ratio_cannot_be_smaller(rng: np.random.Generator) -> None:
    assert {1, 2} <= failed(verify_difference(rng, 200, lambda rows: 0.99 * spread(rows)))
    assert failed(verify_difference(rng, 200, lambda rows: 1.01 * spread(rows))) == {2}


def test_unequal_magnitudes_make_the_two_maps_differ(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(rng.choice([-1, 1], (50, 4)) * rng.uniform(0.5, 2.0, (50, 4)))
    for fraction in (0.1, 0.5, 0.9):
        assert bool((distance_ratio(rows, fraction) > 1 + 1e-9).all())
    assert bool((spread(rows.sign()) - 1).abs().max() < 1e-15)


# --- the gradient of the radii


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_radius_gradient(norm: Norm, rng: np.random.Generator) -> None:
    for check in verify_radius_gradient(norm, rng, 200):
        check.require()


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_the_package_takes_this_gradient(norm: Norm, rng: np.random.Generator) -> None:
    verify_package_gradient(norm, rng, 100).require()
    assert not verify_package_gradient(norm, rng, 20, without_unit_length).passed


def without_indicator(gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side) -> Tensor:
    return radius_gradient(gradient, displacement, 0.0, norm, side)


def without_unit_length(
    gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side, eps: float = 0.0
) -> Tensor:
    along = as_rows(gradient * displacement, norm).sum(dim=1)
    return torch.where(row_norms(displacement, norm) > radius, along, 0.0).sum()


def of_one_side(gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side) -> Tensor:
    return radius_gradient(gradient, displacement, radius, norm, "left")


def along_the_signs(gradient: Tensor, displacement: Tensor, radius: float, norm: Norm, side: Side) -> Tensor:
    # the gradient direction of a Euclidean (soft-thresholding) projection without zeroed entries
    norms = row_norms(displacement, norm)
    along = as_rows(gradient * displacement.sign(), norm).mean(dim=1)
    return torch.where(norms > radius, along, 0.0).sum()


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_wrong_formulas_fail(norm: Norm, rng: np.random.Generator) -> None:
    assert {0, 1, 3} <= failed(verify_radius_gradient(norm, rng, 100, without_indicator))
    assert {0, 1} <= failed(verify_radius_gradient(norm, rng, 100, without_unit_length))
    assert {0, 1} <= failed(verify_radius_gradient(norm, rng, 100, along_the_signs))


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_at_the_kink_one_derivative_does_not_serve_both_sides(norm: Norm, rng: np.random.Generator) -> None:
    assert failed(verify_radius_gradient(norm, rng, 100, of_one_side)) == {3}
