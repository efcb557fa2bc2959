"""WiSE-FT interpolation: values, what it touches, bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

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
    with pytest.raises(TypeError, match=r"anchor must be a module or a state dict.*got 'zero'"):
        tpgm.interpolate(model, "zero", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matches no parameter"):
        tpgm.interpolate(model, anchor, 0.5, exclude=["head.*"])


# --- a ratio for each parameter, and averages


def test_a_mapping_gives_each_parameter_its_ratio_and_buffers_that_of_their_module() -> None:
    model, anchor = pair()
    names = [name for name, _ in model.named_parameters()]
    ratios = {name: i / len(names) for i, name in enumerate(names)}
    mixed = tpgm.interpolate(model, anchor, ratios)
    for name, p in mixed.named_parameters():
        start, end = anchor.get_parameter(name), model.get_parameter(name)
        torch.testing.assert_close(p, start + ratios[name] * (end - start), msg=name)
    start, end = anchor.get_buffer("1.running_var"), model.get_buffer("1.running_var")
    share = (ratios["1.weight"] + ratios["1.bias"]) / 2
    torch.testing.assert_close(mixed.get_buffer("1.running_var"), start + share * (end - start))
    with pytest.raises(ValueError, match=r"differing: 0\.weight"):
        tpgm.interpolate(model, anchor, {name: 0.5 for name in names if name != "0.weight"})
    with pytest.raises(ValueError, match="differing: nothing"):
        tpgm.interpolate(model, anchor, {**ratios, "nothing": 0.5})
    with pytest.raises(ValueError, match=r"alpha of 0\.weight must be a finite number"):
        tpgm.interpolate(model, anchor, {**ratios, "0.weight": math.nan})


def several(k: int) -> tuple[list[nn.Module], nn.Module]:
    first, anchor = pair()
    models = [copy.deepcopy(first) for _ in range(k)]
    with torch.no_grad():
        for model in models[1:]:
            for tensor in [*model.parameters(), model.get_buffer("1.running_mean")]:
                tensor.add_(torch.randn_like(tensor))
    return models, anchor


def test_soup_is_the_mean_of_weights_and_statistics() -> None:
    models, _ = several(3)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    mixed = tpgm.soup(models)
    for name, tensor in mixed.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, sum(state[name] for state in before) / 3, msg=name)
        for model, state in zip(models, before, strict=True):
            assert torch.equal(model.state_dict()[name], state[name])
    with pytest.raises(ValueError, match="two models or more, got 1"):
        tpgm.soup(models[:1])
    with pytest.raises(ValueError, match=r"models\[1\] and models\[0\] differ in bias"):
        tpgm.soup([nn.Linear(2, 3), nn.Linear(2, 4)])


@pytest.mark.parametrize("k", [2, 3])
def test_model_stock_is_the_formula_of_the_paper(k: int) -> None:
    models, anchor = several(k)
    mixed, ratios = tpgm.model_stock(models, anchor, exclude=["8.*"])
    for name, start in anchor.named_parameters():
        moved = [(model.get_parameter(name) - start).flatten() for model in models]
        mean = start + sum(moved).reshape(start.shape) / k
        if name.startswith("8."):
            torch.testing.assert_close(mixed.get_parameter(name), mean, msg=name)
            continue
        pairs = [(a, b) for i, a in enumerate(moved) for b in moved[:i]]
        cosine = sum((torch.dot(a, b) / (a.norm() * b.norm())).item() for a, b in pairs) / len(pairs)
        assert ratios[name] == pytest.approx(max(0, k * cosine / (1 + (k - 1) * cosine)), abs=1e-6)
        torch.testing.assert_close(mixed.get_parameter(name), start + ratios[name] * (mean - start), msg=name)


def test_model_stock_at_its_ends() -> None:
    """The same displacement twice is kept whole; opposite ones, and none, go back to the anchor."""
    anchor = nn.Linear(3, 2)
    models = [copy.deepcopy(anchor) for _ in range(2)]
    with torch.no_grad():
        models[0].weight += 1
        models[1].weight += 1
    mixed, ratios = tpgm.model_stock(models, anchor)
    assert ratios == {"weight": pytest.approx(1), "bias": 0}
    torch.testing.assert_close(mixed.weight, models[0].weight)
    with torch.no_grad():
        models[1].weight -= 2
    mixed, ratios = tpgm.model_stock(models, anchor)
    assert ratios["weight"] == 0
    assert torch.equal(mixed.bias, anchor.bias)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(2, dtype=torch.complex64))


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_averages_refuse_what_they_cannot_average() -> None:
    """Complex weights stayed the first model's, silently; other things failed in torch's words."""
    bad: list[tuple[Any, type[Exception], str]] = [
        ([Complex(), Complex()], ValueError, "no real floating-point numbers: p"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), TypeError, "a sequence of models"),
        ({"a": nn.Linear(2, 2)}, TypeError, "a sequence of models"),
        (None, TypeError, "a sequence of models"),
        ([nn.Linear(2, 2).state_dict()] * 2, TypeError, r"models\[0\] must be an nn.Module"),
        ([nn.Linear(2, 2, device="meta")] * 2, ValueError, "meta"),
        ([torch.nn.utils.weight_norm(nn.Linear(2, 2)) for _ in range(2)], ValueError, "remove_weight_norm"),
    ]
    diverged = nn.Linear(2, 2)
    nn.init.constant_(diverged.weight, float("nan"))
    bad.append(([nn.Linear(2, 2), diverged], ValueError, r"weight of models\[1\] holds NaN"))
    for models, kind, words in bad:
        with pytest.raises(kind, match=words):
            tpgm.soup(models)
        with pytest.raises(kind, match=words):
            tpgm.model_stock(models, nn.Linear(2, 2))
    assert isinstance(tpgm.soup(nn.Linear(2, 2) for _ in range(2)), nn.Linear)
    assert isinstance(tpgm.soup([WithExtraState(2, 2), WithExtraState(2, 2)]), WithExtraState)


def test_the_anchor_of_model_stock_may_be_none_of_the_models() -> None:
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    for anchor in (models[0], models[1].state_dict()):
        with pytest.raises(ValueError, match="shares memory"):
            tpgm.model_stock(models, anchor)
