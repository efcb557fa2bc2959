"""The baselines on a linear model, where what they converge to is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tpgm.methods.bitfit import norm_and_bias_names
from tpgm.methods.l2_sp import l2_sp
from tpgm.methods.mars_penalty import mars_penalty
from tpgm.methods.mars_sp import project_fixed


def problem() -> tuple[nn.Linear, dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(5, 1, bias=False).double()
    anchor = {"weight": model.weight.detach().clone()}
    x = torch.linalg.qr(torch.randn(20, 5, dtype=torch.float64))[0]  # orthonormal columns: XᵀX = I
    return model, anchor, x, torch.randn(20, dtype=torch.float64)


def descend(model: nn.Linear, loss: Callable[[], Tensor], after: Callable[[], None] = lambda: None) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after()
    return model.weight.detach()[0]


def test_l2_sp_converges_to_ridge_regression_around_the_anchor() -> None:
    model, anchor, x, y = problem()
    found = descend(model, lambda: 0.5 * (model(x)[:, 0] - y).square().sum() + l2_sp(model, anchor, 0.7, 0.0))
    start = anchor["weight"][0]
    expected = start + torch.linalg.solve(x.T @ x + 0.7 * torch.eye(5).double(), x.T @ (y - x @ start))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_l2_sp_pulls_the_head_to_zero_and_skips_the_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    anchor = {name: p.detach() + 1 for name, p in model[0].named_parameters(prefix="0")}
    expected = 0.5 * 0.2 * sum(p.square().sum() for p in model[1].parameters())
    model[0].requires_grad_(False)
    torch.testing.assert_close(l2_sp(model, anchor, 0.7, 0.2), expected)
    model[0].requires_grad_(True)
    torch.testing.assert_close(l2_sp(model, anchor, 0.7, 0.2), expected + 0.5 * 0.7 * 6)


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_mars_sp_converges_to_the_constrained_least_squares_solution(norm) -> None:
    model, anchor, x, y = problem()
    start = anchor["weight"][0]
    free = x.T @ (y - x @ start)  # the unconstrained displacement, since XᵀX = I
    radius = 0.5 * float(free.norm() if norm == "l2" else free.abs().sum())
    found = descend(
        model,
        lambda: 0.5 * (model(x)[:, 0] - y).square().sum(),
        lambda: project_fixed(model, anchor, radius, norm),
    )
    # both maps scale the one row; descent from the anchor never leaves the ray to the free optimum
    torch.testing.assert_close(found, start + free / 2, rtol=1e-10, atol=1e-10)


def test_mars_penalty_is_the_sum_of_largest_row_sums() -> None:
    model = nn.Linear(2, 2)
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.weight += torch.tensor([[1.0, -2.0], [0.5, 0.0]])
        model.bias += torch.tensor([0.25, 0.25])
    torch.testing.assert_close(mars_penalty(model, anchor, 0.1), torch.tensor(0.1 * (3.0 + 0.5)))


def test_norm_and_bias_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert norm_and_bias_names(model) == {"1.weight", "1.bias", "3.bias"}
    assert norm_and_bias_names(nn.MultiheadAttention(4, 2)) == {"in_proj_bias", "out_proj.bias"}
