"""The fast constraint against its plain twin: the same radii and weights along whole training runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.conftest import build
from tpgm import TPGM
from tpgm.book.plain.radii import ReferenceTPGM
from tpgm.constraint import Start, Unit
from tpgm.names import default_groups, matches
from tpgm.projection import Norm

# biases before a BatchNorm in train mode: their gradient is 0 but for rounding, which decides whether they move at all
NOISE = {"mlp": (), "conv": ("0.bias", "3.bias"), "transformer": ()}


def alternate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    norm: Norm,
    exclude: Sequence[str] = (),
    every: int = 1,
    train_lr: float = 0.05,
    lr: float = 1e-2,
    penalty: float = 0.0,
    tv: float = 0.0,
    unit: Unit = "norm",
    start: Start = "half-smallest",
    tolerance: float,
) -> float:
    """Train two copies, one with each implementation; assert agreement after every step; return how far they moved."""
    fast, plain = model.train(), copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters() if not matches(name, exclude)]
    anchor = {name: plain.get_parameter(name).detach().clone() for name in names}
    same: dict[str, Any] = {"norm": norm, "lr": lr, "penalty": penalty, "tv": tv, "unit": unit, "start": start}
    ours = TPGM(fast, exclude=exclude, buffers="keep", **same)
    twin = ReferenceTPGM(plain, anchor, groups=default_groups(names), **same)
    optimizers = [torch.optim.SGD(m.parameters(), lr=train_lr, momentum=0.9) for m in (fast, plain)]
    train, held_out = slice(0, len(x) // 2), slice(len(x) // 2, None)
    for step in range(steps):
        for m, optimizer in zip((fast, plain), optimizers, strict=True):
            torch.manual_seed(step)  # the same dropout in both
            optimizer.zero_grad()
            cross_entropy(m(x[train]).float(), y[train]).backward()
            optimizer.step()
        if step % every == 0:
            loss = ours.update(lambda: cross_entropy(fast(x[held_out]).float(), y[held_out]))
            expected = twin.update(lambda m: cross_entropy(m(x[held_out]).float(), y[held_out]))
            assert loss == pytest.approx(expected, rel=tolerance, abs=tolerance)
        ours.project_()
        twin.project_()
        radii = torch.tensor(list(ours.radii.values()), dtype=twin.gamma.dtype)
        torch.testing.assert_close(radii, twin.gamma.detach(), rtol=tolerance, atol=tolerance)
        for name, p in fast.named_parameters():
            torch.testing.assert_close(p, plain.get_parameter(name), rtol=tolerance, atol=tolerance, msg=name)
    return max((fast.get_parameter(name).detach() - anchor[name]).abs().max().item() for name in names)


@pytest.mark.filterwarnings("ignore:the constraint has collapsed")  # as that of the transformer does
@pytest.mark.parametrize("kind", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_equal_to_the_twin_over_100_alternating_steps(kind: str, norm: Norm) -> None:
    model, x, y = build(kind)
    if kind == "conv":  # in float32 the order of summation alone grows beyond the tolerance in 100 steps of this net
        model, x = model.double(), x.double()
    moved = alternate(model, x, y, steps=100, norm=norm, exclude=NOISE[kind], tolerance=1e-6)
    assert moved > 1e-2  # the run went somewhere


@pytest.mark.parametrize("start", ["half-smallest", "largest"])
@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_equal_with_steps_for_each_weight(norm: Norm, start: Start) -> None:
    model, x, y = build("conv")
    moved = alternate(
        model.double(),
        x.double(),
        y,
        steps=60,
        norm=norm,
        exclude=NOISE["conv"],
        unit="weight",
        start=start,
        lr=2e-3,
        tolerance=1e-9,
    )
    assert moved > 1e-2


@pytest.mark.parametrize(("norm", "unit"), [("mars", 6), ("l2", math.sqrt(24))])
def test_lr_for_each_weight_is_scaled_by_the_tensor(norm: Norm, unit: float) -> None:
    """One update moves the radius of a (4, 6) weight by lr times 6 (row length) or √24, from the largest norm."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    anchor = {"weight": torch.zeros(4, 6)}
    ours = TPGM(model, anchor=anchor, norm=norm, lr=1e-3, unit="weight", start="largest")
    largest = model.weight.detach().abs().sum(1).max() if norm == "mars" else model.weight.detach().norm()
    ours.update(lambda: model.weight.square().sum())  # the smaller the better
    assert ours.radii["weight"] == pytest.approx(float(largest) - 1e-3 * unit, rel=1e-6)


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_equal_with_penalty_and_total_variation(norm: Norm) -> None:
    # float64: where neighbouring ratios meet, the sign in the total variation's gradient hangs on rounding
    model, x, y = build("mlp")
    moved = alternate(model.double(), x.double(), y, steps=40, norm=norm, penalty=0.05, tv=0.1, tolerance=1e-9)
    assert moved > 1e-2


@pytest.mark.parametrize("unit", ["norm", "weight"])
def test_equal_where_updates_are_rarer_than_projections(unit: Unit) -> None:
    model, x, y = build("mlp")
    moved = alternate(model.double(), x.double(), y, steps=40, norm="mars", every=5, unit=unit, tolerance=1e-9)
    assert moved > 1e-2


@given(data=st.data())
def test_equal_over_random_models(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4), label="widths")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), label="dtype")
    exclude = data.draw(st.sampled_from([(), ("*.bias",), ("0.*",), ("*.weight",)]), label="exclude")
    torch.manual_seed(data.draw(st.integers(0, 1000), label="seed"))
    layers: list[nn.Module] = []
    for a, b in zip(widths, [*widths[1:], 3], strict=True):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    if len(widths) == 2 and exclude == ("0.*",):
        exclude = ()
    x, y = torch.randn(12, widths[0]), torch.randint(0, 3, (12,))
    alternate(
        model.to(dtype),
        x.to(dtype),
        y,
        steps=8,
        norm=data.draw(st.sampled_from(["l2", "mars"]), label="norm"),
        exclude=exclude,
        every=data.draw(st.integers(1, 3), label="every"),
        lr=data.draw(st.sampled_from([1e-3, 1e-2, 1e-1]), label="lr"),
        penalty=data.draw(st.sampled_from([0.0, 0.1]), label="penalty"),
        # both do the same arithmetic in float32 but sum in different orders; bfloat16 weights round that to 2^-8
        tolerance={torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype],
    )


def test_a_wrong_radius_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: halving the gradient of one tensor's radius breaks it."""
    right = TPGM._radius_gradient

    def wrong(self: TPGM, *args: object) -> Tensor:
        slopes = right(self, *args)  # type: ignore[arg-type]
        slopes[0] = -slopes[0]
        return slopes

    monkeypatch.setattr(TPGM, "_radius_gradient", wrong)
    with pytest.raises(AssertionError):
        alternate(*build("mlp"), steps=20, norm="l2", tolerance=1e-6)


def test_radii_start_at_half_the_smallest_row_norm_and_learn_by_adam() -> None:
    """By hand, one layer of two rows: start, projected loss, one Adam step of size lr, clip, projection."""
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [3.0, 1.0]]))
    ours = TPGM(model, anchor={"weight": torch.zeros(2, 2)}, norm="mars", lr=0.1)
    target = torch.tensor([10.0, 10.0], dtype=torch.float64)
    loss = ours.update(lambda: -(model(target[None]).sum()))  # the larger the weights the better
    # start: 2/2 = 1; rows scaled by 1/2 and 1/4
    assert loss == pytest.approx(-(10 * (2 * 0.5 + 4 * 0.25)), rel=1e-7)
    assert ours.radii["weight"] == pytest.approx(1 + 0.1)  # Adam's first step has size lr
    assert ours.ratios()["weight"] == pytest.approx((1.1 / 2 + 1.1 / 4) / 2)
    ours.project_()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.55, 0.55], [0.825, 0.275]]).double())
    assert math.isclose(ours.radii["weight"], 1.1)
