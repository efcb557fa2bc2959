"""Closed-form projections: values by hand, shapes, dtypes, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tpgm
from tpgm.projection import row_norms


def test_l2_scales_the_whole_tensor_to_the_radius() -> None:
    weight, anchor = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    torch.testing.assert_close(tpgm.project(weight, anchor, 1.0, "l2"), weight / 5)


def test_mars_scales_each_row_by_its_l1_norm() -> None:
    weight = torch.tensor([[[1.0, -3.0]], [[0.25, 0.5]]]) + 7  # shape (2, 1, 2): the rest is flattened
    projected = tpgm.project(weight, torch.full_like(weight, 7), 1.0, "mars")
    torch.testing.assert_close(projected, torch.tensor([[[0.25, -0.75]], [[0.25, 0.5]]]) + 7)


def test_mars_treats_a_vector_as_one_row() -> None:
    projected = tpgm.project(torch.tensor([1.0, -3.0]), torch.zeros(2), 1.0, "mars")
    torch.testing.assert_close(projected, torch.tensor([0.25, -0.75]))


@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=4),
    norm=st.sampled_from(["l2", "mars"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    radius=st.floats(0, 10),
    seed=st.integers(0, 10_000),
)
def test_projected_weights_are_feasible_and_feasible_weights_stay(
    shape: list[int], norm: tpgm.projection.Norm, dtype: torch.dtype, radius: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    anchor = torch.zeros(shape, dtype=dtype)
    projected = tpgm.project(weight, anchor, radius, norm)
    assert projected.shape == weight.shape
    assert projected.dtype == dtype
    before, after = row_norms(weight, norm), row_norms(projected, norm)
    rounding = 1 + 4 * torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal * max(1, weight.numel())  # rounding of subnormal results
    assert (after <= torch.clamp(before, max=radius) * rounding + smallest).all()
    # half precision rounds the projected weights, so only then may a second projection move them, by that rounding
    again = tpgm.project(projected, anchor, radius, norm)
    torch.testing.assert_close(again, projected, rtol=4 * torch.finfo(dtype).eps, atol=smallest)
    feasible = tpgm.project(weight, anchor, float(before.max()), norm)
    assert torch.equal(feasible, weight)


def test_infinite_radius_and_zero_displacement_leave_the_weight() -> None:
    weight = torch.randn(3, 4)
    assert torch.equal(tpgm.project(weight, torch.zeros(3, 4), float("inf")), weight)
    assert torch.equal(tpgm.project(weight, weight.clone(), 0.0), weight)


def test_gradient_at_a_row_that_has_not_moved_is_finite() -> None:
    weight = torch.zeros(2, 2, dtype=torch.float64)
    weight[0] = 1.0
    weight.requires_grad_()
    tpgm.project(weight, torch.zeros(2, 2, dtype=torch.float64), 0.5).sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("weight", "anchor", "radius", "norm", "error", "message"),
    [
        (torch.zeros(2), torch.zeros(2), 1.0, "l1", ValueError, "norm must be one of .*got 'l1'"),
        (torch.zeros(2), torch.zeros(3), 1.0, "l2", ValueError, r"\(2,\).*\(3,\)"),
        (torch.zeros(2), torch.zeros(2), -1.0, "l2", ValueError, "at least 0"),
        (torch.zeros(2), torch.zeros(2), float("nan"), "l2", ValueError, "at least 0"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2), 1.0, "l2", TypeError, "floating point"),
    ],
)
def test_bad_input(weight, anchor, radius, norm, error, message) -> None:
    with pytest.raises(error, match=message):
        tpgm.project(weight, anchor, radius, norm)
