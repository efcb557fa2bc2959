"""WiSE-FT interpolation: values, what it touches, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import tpgm
from tests.conftest import build


def pair() -> tuple[nn.Module, nn.Module]:
    anchor, x, _ = build("conv")
    model = copy.deepcopy(anchor)
    model.train()
    model(x + 1)  # its own BatchNorm statistics
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return model, anchor


def test_weights_and_statistics_lie_on_the_line() -> None:
    model, anchor = pair()
    before = copy.deepcopy(model.state_dict())
    wise = tpgm.interpolate(model, anchor, 0.25)
    for name, tensor in wise.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.75 * anchor.state_dict()[name] + 0.25 * before[name]
            torch.testing.assert_close(tensor, expected, msg=name)
        else:
            assert torch.equal(tensor, before[name])  # a count of batches has no average
        assert torch.equal(model.state_dict()[name], before[name])
    assert not torch.equal(wise.get_buffer("1.running_mean"), before["1.running_mean"])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_exact(alpha: float) -> None:
    model, anchor = pair()
    end = (anchor, model)[int(alpha)]
    wise = tpgm.interpolate(model, anchor.state_dict(), alpha)
    for name, p in wise.named_parameters():
        assert torch.equal(p, end.get_parameter(name))


def test_an_excluded_head_is_kept() -> None:
    model, anchor = pair()
    state = {name: t for name, t in anchor.state_dict().items() if not name.startswith("8.")}
    wise = tpgm.interpolate(model, {**state, "fc.weight": torch.zeros(9, 9)}, 0.0, exclude=["8.*", "fc.*"])
    assert torch.equal(wise.get_parameter("8.weight"), model.get_parameter("8.weight"))
    assert torch.equal(wise.get_parameter("0.weight"), anchor.get_parameter("0.weight"))


def test_bad_input() -> None:
    model, anchor = pair()
    with pytest.raises(ValueError, match="finite"):
        tpgm.interpolate(model, anchor, math.nan)
    with pytest.raises(ValueError, match="lacks tensors"):
        tpgm.interpolate(model, {}, 0.5)
    with pytest.raises(TypeError, match="anchor must be a module or a state dict.*got 'zero'"):
        tpgm.interpolate(model, "zero", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matches no parameter"):
        tpgm.interpolate(model, anchor, 0.5, exclude=["head.*"])
