"""Updates as rare as the radii allow: waiting times by hand, the pace of the radii kept, exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.small import small_data, small_start
from tpgm import TPGM
from tpgm.methods import parse, resolve
from tpgm.schedule import Adaptive
from tpgm.training.loop import _Run, finetune


class Radii:
    """In place of a constraint: radii that a test sets."""

    def __init__(self) -> None:
        self.radii: dict[str, float] = {}


def advance(schedule: Adaptive, constraint: Any, **radii: float) -> int:
    """Steps until the next update is due, which then sets the radii."""
    while not schedule.step():
        pass
    steps, constraint.radii = schedule.since, radii
    schedule.observe(constraint)
    return steps


def test_waits_by_hand() -> None:
    schedule, constraint = Adaptive(tolerance=0.3, longest=7), Radii()
    assert advance(schedule, constraint, a=1.0, b=math.inf) == 1
    assert schedule.wait == 1  # a has just begun: speed 1
    assert advance(schedule, constraint, a=1.0, b=math.inf) == 1
    assert schedule.wait == 1  # (1 + 0) / 2, still more than 0.3
    assert advance(schedule, constraint, a=1.25, b=math.inf) == 1
    assert schedule.wait == 1  # (1/2 + 1/5) / 2 = 0.35; b takes no part
    assert advance(schedule, constraint, a=1.0, b=math.inf) == 1
    assert schedule.wait == 2  # (0.35 − 0.2) / 2 = 0.075: four steps, but at most twice as many as before
    assert advance(schedule, constraint, a=1.0, b=math.inf) == 2
    assert schedule.wait == 4
    assert advance(schedule, constraint, a=1.0, b=math.inf) == 4
    assert schedule.wait == 7  # at most the longest
    assert advance(schedule, constraint, a=0.01, b=5.0) == 7
    assert schedule.wait == 1  # b has just begun


def test_drift_counts_and_noise_cancels() -> None:
    steady, noisy = Adaptive(0.2), Adaptive(0.2)
    drifting, shaken, steps = Radii(), Radii(), 0
    for i in range(1, 30):
        while not steady.step():
            steps += 1
        steps += 1
        drifting.radii = {"a": 1.05**steps}
        steady.observe(drifting)  # type: ignore[arg-type]
        advance(noisy, shaken, a=1.0 + 0.05 * (i % 2))
    assert steady.wait in (3, 4)  # 1.05⁴ − 1 is 0.2
    assert noisy.wait == 64


@pytest.mark.parametrize("bad", [{"tolerance": 0.0}, {"tolerance": math.nan}, {"longest": 0}, {"longest": 2.0}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Adaptive(**bad)
    with pytest.raises(ValueError, match="lacks radii, since, speed"):
        Adaptive().load_state_dict({"wait": 1, "updates": 2})


def test_growing_radii_keep_the_pace_of_an_update_at_every_step() -> None:
    """Every step asks for a longer radius and leaves room for it: γ grows by lr a step, with far fewer updates."""
    found = {}
    for name, schedule in (("every", None), ("auto", Adaptive(0.25))):
        model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.zero_()
        constraint, updates = TPGM(model, norm="l2", lr=0.01), 0
        for _ in range(400):
            with torch.no_grad():
                model.weight += 0.01
            if schedule is None:
                constraint.update(lambda m=model: -m.weight.sum())
                updates += 1
            elif schedule.step():
                constraint.update(lambda m=model: -m.weight.sum(), covers=schedule.since, limit=schedule.tolerance)
                schedule.observe(constraint)
                updates += 1
            else:
                continue
            constraint.project_()
        found[name] = constraint.radii["weight"], updates
    assert found["every"][1] == 400
    assert found["auto"][1] < 40
    assert found["auto"][0] == pytest.approx(found["every"][0], rel=0.25)


# --- in the training loop

GIVEN = {"epochs": 4, "batch_size": 8, "lr": 3e-2, "optimizer": "sgd", "radius_lr": 0.05, "val_batch_size": 8}


def test_settings() -> None:
    assert resolve("tpgm", {"every": "auto"})["every"] == "auto"
    assert parse("tpgm", "every", "auto") == "auto"
    for bad in ("rarely", 1.5):
        with pytest.raises(ValueError, match="every must be of type int or 'auto'"):
            resolve("tpgm", {"every": bad})
    with pytest.raises(ValueError, match="every must be of type int or 'auto', got 'rarely'"):
        parse("tpgm", "every", "rarely")
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        resolve("tpgm", {"tolerance": 0.0})


def test_no_tolerance_is_an_update_at_every_step_and_the_default_saves_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[int] = []
    update = _Run._radius_update
    monkeypatch.setattr(
        _Run, "_radius_update", lambda self, net, number: (updates.append(number), update(self, net, number))[1]
    )
    every = finetune(small_start(), small_data(), progress=False, **GIVEN)
    steps = len(updates)
    assert updates == list(range(1, steps + 1))
    updates.clear()
    always = finetune(small_start(), small_data(), progress=False, every="auto", tolerance=1e-9, **GIVEN)
    assert updates == list(range(1, steps + 1))  # the same validation batches
    for name, p in always.model.named_parameters():
        assert torch.equal(p, every.model.get_parameter(name))
    assert always.radii == every.radii
    updates.clear()
    auto = finetune(small_start(), small_data(), progress=False, every="auto", **GIVEN)
    assert len(updates) < 0.6 * steps
    start = small_start().model
    for name, radius in auto.radii.items():  # projected after the last step, though no update was due there
        moved = auto.model.get_parameter(name).detach() - start.get_parameter(name).detach()
        rows = moved.reshape(len(moved) if moved.dim() > 1 else 1, -1).abs().sum(dim=1)
        assert rows.max() <= radius * (1 + 1e-4)


def test_killed_and_resumed_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, data = small_start(), small_data()
    given = {**GIVEN, "every": "auto", "updates": 2}
    expected = finetune(start, data, progress=False, **given)
    monkeypatch.setattr("tpgm.training.loop.CHECKPOINT_SECONDS", 0.0)
    forward, calls = nn.Conv2d.forward, {"n": 0}

    def dying(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] % 41 == 0:
            raise SystemExit
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", dying)
    deaths = 0
    while True:
        try:
            result = finetune(start, data, out=tmp_path / "run", progress=False, **given)
            break
        except SystemExit:
            deaths += 1
    assert deaths >= 3
    assert result.radii == expected.radii
    for name, p in result.model.named_parameters():
        assert torch.equal(p, expected.model.get_parameter(name))
