"""Chapter 2: the checks its notebook shows hold; `test_mutants.py` sees each of them fail when something is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tpgm.book.linear.verify_projection import (
    Projection,
    convolution_matrix,
    distance_ratio,
    project_l2,
    project_mars,
    project_mars_euclidean,
    spread,
    verify_difference,
    verify_euclidean,
    verify_norms,
    verify_package_gradient,
    verify_radial,
    verify_radius_gradient,
    verify_sorting,
)
from tpgm.projection import Norm

PROBLEMS = 1000


# --- norms


def test_mars_is_the_operator_norm(rng: np.random.Generator) -> None:
    for check in verify_norms(rng, PROBLEMS):
        check.require()


def test_l2_does_not_bound_a_convolution_without_the_root_of_its_area() -> None:
    constant = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    length = float(constant.norm())
    stretch = [float(torch.linalg.matrix_norm(convolution_matrix(constant, side), ord=2)) / length for side in (5, 20)]
    assert stretch[0] > 2.4
    assert 2.95 < stretch[1] < 3


# --- projections


@pytest.mark.parametrize(
    ("projection", "norm"), [(project_l2, "l2"), (project_mars_euclidean, "mars")], ids=["l2", "mars euclidean"]
)
def test_euclidean_projections(projection: Projection, norm: Norm, rng: np.random.Generator) -> None:
    for check in verify_euclidean(norm, projection, norm, rng, PROBLEMS):
        check.require()


def test_sorting_finds_the_threshold(rng: np.random.Generator) -> None:
    verify_sorting(rng, 300).require()


def test_what_the_radial_mars_map_is(rng: np.random.Generator) -> None:
    for check in verify_radial(rng, PROBLEMS):
        check.require()


@pytest.mark.parametrize("width", [2, 5, 16])
def test_the_lipschitz_constant_of_the_radial_map_is_the_root_of_the_width(width: int) -> None:
    start = torch.zeros(1, width, dtype=torch.float64)
    corner = torch.eye(1, width, dtype=torch.float64)
    near = corner + 1e-6 * (1 - corner)
    moved = (project_mars(near, start, 1.0) - project_mars(corner, start, 1.0)).norm()
    stretch = float(moved / (near - corner).norm())
    assert stretch == pytest.approx(width**0.5 / (1 + (width - 1) * 1e-6), rel=1e-9)


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
