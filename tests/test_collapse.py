"""The warning that a constraint has collapsed, and the learning rate that lets radii open (chapter 5)."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.small import small_data, small_start
from tpgm import TPGM, finetune
from tpgm.constraint import EPS, WINDOW
from tpgm.data import ImageArray

LAYERS, SIZE = 4, 60


class Linear(nn.Module):
    """``xᵀv`` with the weights in layers, starting at the anchor 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.zeros(SIZE)) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat(list(self.layers))


def train(steps: int, free: int = 0, distance: float = 0.1, lr: float = 0.1, **settings: str) -> TPGM:
    """Every-step TPGM on fresh batches of 8; `distance`: each layer's squared distance to the optimum."""
    generator = torch.Generator().manual_seed(0)
    optimum = torch.randn(LAYERS * SIZE, generator=generator) * math.sqrt(distance / SIZE)
    model = Linear()
    constraint = TPGM(model, norm="l2", lr=lr, **settings)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.007)

    def loss() -> Tensor:
        x = torch.randn(8, LAYERS * SIZE, generator=generator)
        return (model(x) - x @ optimum - torch.randn(8, generator=generator)).square().mean()

    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step >= free:
            constraint.update(loss)
            constraint.project_()
    return constraint


def collapses(*args: int, **settings: float | str) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(*args, **settings)  # type: ignore[arg-type]
    return [one for one in caught if "collapsed" in str(one.message)]


def test_a_collapse_is_told_once_with_its_cure() -> None:
    (told,) = collapses(3 * WINDOW)
    assert "begin=0.8" in str(told.message)
    assert "suggest_lr" in str(told.message)
    assert told.filename == __file__


def test_a_start_without_constraint_does_not_prevent_it() -> None:
    assert collapses(2 * WINDOW, start="largest")


def test_not_in_the_first_updates() -> None:
    assert not collapses(WINDOW - 1)


def test_no_false_alarm_after_a_free_beginning() -> None:
    assert not collapses(200, 150, lr=0.003)


def test_no_false_alarm_where_layers_are_far() -> None:
    assert not collapses(3 * WINDOW, distance=50.0)


def test_half_of_the_radii_on_their_floor_are_not_most() -> None:
    """Layers that validation data want back at the anchor: two of four on their floor is a result, three a collapse."""
    for shut in (2, 3):
        model = Linear()
        constraint = TPGM(model, norm="l2", lr=1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2 * WINDOW):
                with torch.no_grad():
                    for layer in model.layers:
                        layer += 0.1
                constraint.update(
                    lambda: sum((1 if l < shut else -1) * p.sum() for l, p in enumerate(model.layers))  # type: ignore[return-value,misc] # noqa: B023
                )
                constraint.project_()
        floor = sum(r <= 1.01 * EPS for r in constraint.radii.values())
        assert floor == shut
        assert bool(caught) is (shut == 3)


def test_projections_at_the_end_do_not_count() -> None:
    """Radii that many updates at the end put to the floor are what validation data want."""
    model = Linear()
    constraint = TPGM(model, norm="l2", lr=1.0)
    with torch.no_grad():
        for layer in model.layers:
            layer += 1.0
    for _ in range(3 * WINDOW):
        constraint.update(lambda: sum(p.sum() for p in model.layers))  # type: ignore[arg-type,return-value]
    constraint.project_()
    assert all(r <= 1.01 * EPS for r in constraint.radii.values())


@pytest.mark.parametrize("begin", [0.0, 0.8])
def test_the_method_collapses_on_noise_from_the_start_and_not_after_a_free_beginning(
    begin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpgm.constraint.WINDOW", 20)  # there are 110 steps, 22 of them in the last fifth
    data, generator = small_data(), torch.Generator().manual_seed(0)
    train, val = (
        ImageArray(part.images, part.labels[torch.randperm(len(part), generator=generator)])
        for part in (data.train, data.val)
    )
    settings = {"epochs": 10, "batch_size": 8, "val_batch_size": 4, "lr": 1e-3, "radius_lr": 0.03, "buffers": "keep"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        noise = dataclasses.replace(data, train=train, val=val)
        finetune(small_start(), noise, "tpgm", begin=begin, progress=False, workers=0, **settings)
    assert ["collapsed" in str(one.message) for one in caught] == [True] * (begin == 0)


# --- the learning rate


def moved(norm: str, **settings: str) -> tuple[TPGM, Linear]:
    model = Linear()
    constraint = TPGM(model, norm=norm, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for l, layer in enumerate(model.layers):
            layer += 0.1 * (l + 1)
    return constraint, model


@pytest.mark.parametrize(
    ("norm", "largest", "unit"), [("l2", 0.4 * math.sqrt(SIZE), math.sqrt(SIZE)), ("mars", 0.4 * SIZE, SIZE)]
)
def test_the_suggested_rate_crosses_the_longest_way(norm: str, largest: float, unit: float) -> None:
    constraint, _ = moved(norm)
    assert constraint.suggest_lr(10) == pytest.approx(largest / 2 / 10, rel=1e-5)
    constraint, _ = moved(norm, start="largest")
    assert constraint.suggest_lr(10) == pytest.approx(largest / 10, rel=1e-5)
    constraint, _ = moved(norm, unit="weight")
    assert constraint.suggest_lr(10) == pytest.approx(largest / 2 / 10 / unit, rel=1e-5)


@pytest.mark.parametrize("unit", ["norm", "weight"])
def test_with_the_suggested_rate_every_radius_opens_and_with_half_of_it_none_can(unit: str) -> None:
    for factor in (1.0, 0.5):
        constraint, model = moved("l2", unit=unit)
        constraint.optimizer.param_groups[0]["lr"] = factor * constraint.suggest_lr(20)
        for _ in range(20):
            constraint.update(lambda: -sum(p.sum() for p in model.layers))  # type: ignore[arg-type,return-value] # noqa: B023
        share = (
            min(constraint.ratios().values())
            if factor == 1
            else list(constraint.radii.values())[-1] / (0.4 * math.sqrt(SIZE))
        )
        assert share == pytest.approx(1.0 if factor == 1 else 0.75, abs=0.03)


def test_the_suggestion_changes_nothing() -> None:
    constraint, model = moved("mars")
    before, weights = copy.deepcopy(constraint.state_dict()), copy.deepcopy(model.state_dict())
    constraint.suggest_lr(5)
    after = constraint.state_dict()
    assert all(torch.equal(before["radii"][n], after["radii"][n]) for n in before["radii"])
    assert after["norms"] is None
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items())


def test_bad_requests() -> None:
    constraint, _ = moved("l2")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        constraint.suggest_lr(0)
    with pytest.raises(ValueError, match="no constrained weight has moved"):
        TPGM(Linear()).suggest_lr(10)
