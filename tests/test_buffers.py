"""BatchNorm's running statistics beside projected weights: kept, moved, estimated anew; and who is warned."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn

import tpgm
from tests.conftest import build
from tpgm import TPGM
from tpgm.buffers import reestimate

WAYS = ("keep", "move", "reestimate")


def trained(kind: str = "conv") -> tuple[nn.Module, nn.Module, Tensor, Callable[[], Tensor]]:
    """A model whose weights and statistics have left those of the anchor, the anchor, inputs and a closure."""
    anchor, x, y = build(kind)
    model = copy.deepcopy(anchor)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(2 * x + 1)
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval(), anchor, x, lambda: cross_entropy(model(x), y)


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(before: dict[str, Tensor], model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# --- the values


def test_each_way_gives_the_buffers_it_promises() -> None:
    model, anchor, x, _ = trained()
    before, start = state(model), state(anchor)
    for way in WAYS:
        net = copy.deepcopy(model)
        constraint = TPGM(net, anchor=anchor, buffers=way, exclude=["8.*"])
        for _ in range(3):
            constraint.update(lambda net=net: cross_entropy(net(x), torch.arange(len(x)) % 3))
        given = {"batches": [x]} if way == "reestimate" else {}
        constraint.project_(**given)
        ratios = constraint.ratios()
        for layer in ("1", "4"):
            alpha = (ratios[f"{layer}.weight"] + ratios[f"{layer}.bias"]) / 2
            assert 0 < alpha < 1
            for key in ("running_mean", "running_var"):
                name = f"{layer}.{key}"
                if way == "keep":
                    assert torch.equal(net.state_dict()[name], before[name])
                elif way == "move":
                    expected = start[name] + alpha * (before[name] - start[name])
                    torch.testing.assert_close(net.state_dict()[name], expected)
            assert torch.equal(net.get_buffer(f"{layer}.num_batches_tracked"), before[f"{layer}.num_batches_tracked"])
        if way == "reestimate":
            inputs = net[0](x)
            torch.testing.assert_close(net[1].running_mean, inputs.mean(dim=(0, 2, 3)))
            torch.testing.assert_close(net[1].running_var, inputs.var(dim=(0, 2, 3)))


def test_buffers_of_modules_without_constrained_weights() -> None:
    """affine=False follows the mean over all; an excluded module and one whose weights are frozen stay."""
    net = nn.Sequential(nn.Linear(4, 4), *(nn.BatchNorm1d(4, affine=i > 0) for i in range(3)), nn.Linear(4, 2))
    anchor = copy.deepcopy(net)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(1.0 + len(name) / 10)
    net.eval()[3].requires_grad_(False)
    before = state(net)
    constraint = TPGM(net, anchor=anchor, buffers="move", exclude=["2.*"])
    constraint.update(lambda: net(torch.ones(3, 4)).square().sum())
    constraint.project_()
    alpha = sum(constraint.ratios().values()) / len(constraint.radii)
    moved = net.state_dict()
    torch.testing.assert_close(moved["1.running_var"], 1 + alpha * (before["1.running_var"] - 1))
    for name in ("2.running_mean", "2.running_var", "3.running_mean", "3.running_var"):
        assert torch.equal(moved[name], before[name])


@pytest.mark.parametrize("way", WAYS)
def test_an_update_and_a_look_leave_everything_as_it_was(way: Any) -> None:
    model, anchor, x, closure = trained()
    model.train()
    model[4].eval()
    before, modes = state(model), [m.training for m in model.modules()]
    constraint = TPGM(model, anchor=anchor.state_dict(), buffers=way)
    constraint.update(closure)
    with constraint.projected(**({"batches": lambda: model(x)} if way == "reestimate" else {})):
        inside = state(model)
    assert torch.equal(inside["1.running_var"], before["1.running_var"]) is (way == "keep")
    for broken in (lambda: {}["loss"], lambda: closure() * math.nan):
        with pytest.raises((KeyError, FloatingPointError)):
            constraint.update(broken)
    with pytest.raises(KeyError), constraint.projected():
        raise KeyError
    assert_same(before, model)
    assert [m.training for m in model.modules()] == modes


def test_what_the_validation_loss_sees() -> None:
    model, anchor, _, closure = trained()
    seen: dict[str, Tensor] = {}
    model[1].register_forward_hook(lambda m, given, out: seen.update(given=given[0].detach(), out=out.detach()))
    start, before = anchor.state_dict(), state(model)
    for way in WAYS:
        TPGM(model, anchor=anchor, buffers=way).update(closure)
        given = seen["given"]
        w, b = ((start[f"1.{n}"] + before[f"1.{n}"]) / 2 for n in ("weight", "bias"))  # L1 balls of half the norm
        mean, var = before["1.running_mean"], before["1.running_var"]
        if way == "move":
            mean, var = (mean + start["1.running_mean"]) / 2, (var + start["1.running_var"]) / 2
        if way == "reestimate":
            mean, var = given.mean(dim=(0, 2, 3)), given.var(dim=(0, 2, 3), correction=0)
        shape = (1, -1, 1, 1)
        expected = (given - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * w.view(shape) + b.view(shape)
        torch.testing.assert_close(seen["out"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_interpolation(way: Any) -> None:
    model, anchor, x, _ = trained()
    before, start = state(model), state(anchor)
    given = {"batches": [(x, None)]} if way == "reestimate" else {}
    for alpha in (0.0, 0.25, 1.0):
        net = tpgm.interpolate(model, anchor, alpha, buffers=way, **given)
        name = "1.running_var"
        expected = {
            "keep": before[name],
            "move": start[name].lerp(before[name], alpha),
            "reestimate": net[0](x).var(dim=(0, 2, 3)),
        }[way]
        torch.testing.assert_close(net.get_buffer(name), expected)
        assert_same(before, model)
    default = tpgm.interpolate(model, anchor, 0.25)
    assert torch.equal(default[1].running_var, tpgm.interpolate(model, anchor, 0.25, buffers="move")[1].running_var)
    weights = dict(anchor.named_parameters())
    assert torch.equal(tpgm.interpolate(model, weights, 0.25)[1].running_var, before["1.running_var"])


# --- estimating anew


class Noisy(nn.Module):
    """Dropout before BatchNorm, and keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm, self.unused = nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.norm(self.drop(scale * x))


def test_it_is_what_stochastic_weight_averaging_does() -> None:
    model, _, x, _ = trained()
    batches = [x[:10], x[10:20], x[20:]]
    expected, before = copy.deepcopy(model), state(model)
    update_bn(batches, expected)
    reestimate(model, batches)
    for name, tensor in model.state_dict().items():
        wanted = before if name.endswith("num_batches_tracked") or "running" not in name else expected.state_dict()
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("form", ["tensors", "pairs", "mappings", "function"])
def test_batches_of_every_form_without_dropout(form: str) -> None:
    model, x = Noisy(), torch.randn(12, 3)
    model.train()
    model.drop.eval()
    modes = [m.training for m in model.modules()]
    before = state(model)
    halves = [x[:6], x[6:]]
    reestimate(
        model,
        {
            "tensors": halves,
            "pairs": [(half, 0) for half in halves],
            "mappings": ({"x": half / 2, "scale": 2.0} for half in halves),
            "function": lambda: [model(half) for half in halves],
        }[form],
    )
    torch.testing.assert_close(model.norm.running_mean, x.mean(dim=0))
    torch.testing.assert_close(model.norm.running_var, (halves[0].var(dim=0) + halves[1].var(dim=0)) / 2)
    assert (model.norm.momentum, int(model.norm.num_batches_tracked)) == (0.3, 0)
    assert torch.equal(model.unused.running_mean, before["unused.running_mean"])  # no pass reached it
    assert [m.training for m in model.modules()] == modes


def test_nothing_to_estimate_from_or_a_pass_that_breaks_leaves_the_statistics() -> None:
    model, _, x, _ = trained()
    before = state(model)
    for batches, error, message in (
        ([], ValueError, "batches is empty"),
        (lambda: None, ValueError, "batches is empty"),
        ([x, x[:, :1]], RuntimeError, "channels"),
        ([x, math.nan * x], FloatingPointError, "NaN"),
    ):
        with pytest.raises(error, match=message):
            reestimate(model, batches)
        assert_same(before, model)
        assert model[1].momentum == 0.1
    plain, x, _ = build("transformer")
    reestimate(plain, [])  # without running statistics there is nothing to do


def test_modules_without_a_count_of_batches() -> None:
    model, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    model.num_batches_tracked = None
    reestimate(model, [x])
    torch.testing.assert_close(model.running_mean, x.mean(dim=0))
    assert model.num_batches_tracked is None


# --- a resumed run


@pytest.mark.parametrize("way", WAYS)
def test_resume_is_exact(way: Any) -> None:
    def run(stop: int | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, x, y = build("conv")
        constraint = TPGM(model, buffers=way)
        for step in range(6):
            if step == stop:
                file = io.BytesIO()
                torch.save([model.state_dict(), constraint.state_dict()], file)
                file.seek(0)
                torch.manual_seed(0)
                model, *_ = build("conv")
                constraint = TPGM(model, buffers=way)
                for m, saved in zip((model, constraint), torch.load(file, weights_only=True), strict=True):
                    m.load_state_dict(saved)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.zero_grad()
            cross_entropy(model(x[:12]), y[:12]).backward()
            optimizer.step()
            constraint.update(lambda m=model: cross_entropy(m(x[12:]), y[12:]))
            constraint.project_()
        return state(model)

    whole = run(None)
    for stop in (1, 4):
        again = run(stop)
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_state_of_another_choice_is_refused() -> None:
    model, anchor, *_ = trained()
    saved = TPGM(model, anchor=anchor, buffers="move").state_dict()
    with pytest.raises(ValueError, match="the state has buffers 'move', this constraint 'keep'"):
        TPGM(model, anchor=anchor, buffers="keep").load_state_dict(saved)
    del saved["buffers"]  # of an earlier version
    TPGM(model, anchor=anchor, buffers="keep").load_state_dict(saved)


# --- bad input


def test_wrong_words_and_anchors_without_buffers() -> None:
    model, anchor, x, _ = trained()
    weights = {name: p.detach().clone() for name, p in anchor.named_parameters()}
    odd = {**state(anchor), "1.running_var": torch.ones(2)}
    for call, message in (
        (lambda: TPGM(model, anchor=anchor, buffers="follow"), "buffers must be one of 'keep', 'move'.*got 'follow'"),
        (lambda: TPGM(model, anchor=weights, buffers="move"), r"1\.running_mean is missing.*and 1 more.*whole state"),
        (lambda: TPGM(model, anchor="zero", buffers="move"), r"1\.running_mean is missing"),
        (lambda: TPGM(model, anchor=odd, buffers="move"), r"1\.running_var: anchor \(2,\), model \(5,\)"),
        (lambda: TPGM(model, anchor=anchor, buffers="keep").project_(batches=[x]), "batches are for buffers='reest"),
        (lambda: TPGM(model, anchor=anchor).projected(batches=[x]).__enter__(), "batches are for buffers='reest"),
        (lambda: tpgm.interpolate(model, anchor, 0.5, buffers="follow"), "got 'follow'"),
        (lambda: tpgm.interpolate(model, anchor, 0.5, buffers="reestimate"), "no batches: give an iterable"),
        (lambda: tpgm.interpolate(model, anchor, 0.5, batches=[x]), "and batches: leave them out"),
        (lambda: tpgm.interpolate(model, weights, 0.5, buffers="move"), r"1\.running_mean is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    TPGM(model, anchor=weights, buffers="reestimate")


# --- who is warned

STALE = "the running statistics of BatchNorm"


def heard(constraint: TPGM, closure: Callable[[], Tensor]) -> list[str]:
    """The warnings of an update, a look and a projection, and whether all point to the caller."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        constraint.update(closure)
        with constraint.projected():
            pass
        constraint.project_()
    assert all(w.filename == __file__ for w in found)
    return [str(w.message) for w in found]


@pytest.mark.parametrize("mode", [True, False])
def test_changed_statistics_are_told_once_with_the_cure(mode: bool) -> None:
    model, anchor, _, closure = trained()
    model.train(mode)
    told = heard(constraint := TPGM(model, anchor=anchor), closure)
    assert len(told) == 1
    assert told[0].startswith(f"{STALE} (1)")
    assert "buffers='reestimate'" in told[0]
    assert heard(constraint, closure) == []
    for way in WAYS:  # a choice was made
        assert heard(TPGM(model, anchor=anchor, buffers=way), closure) == []


@pytest.mark.parametrize("call", ["update", "projected", "project_"])
def test_every_door_tells(call: str) -> None:
    model, anchor, _, closure = trained()
    saved = TPGM(model, anchor=anchor, buffers="keep")
    saved.update(closure)
    constraint = TPGM(model, anchor=anchor)
    constraint.load_state_dict(saved.state_dict())
    with pytest.warns(UserWarning, match=STALE):
        {
            "update": lambda: constraint.update(closure),
            "projected": lambda: constraint.projected().__enter__(),
            "project_": lambda: constraint.project_(),
        }[call]()


def test_an_anchor_of_weights_alone() -> None:
    """What the statistics were is not known: train mode is the sign, or a change since construction."""
    model, anchor, x, closure = trained()
    weights = {name: p.detach().clone() for name, p in anchor.named_parameters()}
    constraint = TPGM(model, anchor=weights)
    assert heard(constraint, closure) == []
    model.train()
    model(x)
    assert len(heard(constraint, closure)) == 1
    assert len(heard(TPGM(model, anchor=weights), closure)) == 1


@pytest.mark.parametrize("kind", ["conv", "transformer", "mlp"])
def test_usual_loops_are_not_told_anything(kind: str) -> None:
    """BatchNorm in eval mode during training (the default here), LayerNorm in train mode, none at all."""
    model, x, y = build(kind)
    model.train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    constraint = TPGM(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        assert heard(constraint, lambda: cross_entropy(model(x), y)) == []
    model.train()  # nothing was forwarded in train mode yet: the statistics are still the anchor's
    if kind != "conv":
        assert heard(constraint, lambda: cross_entropy(model(x), y)) == []


def test_batchnorm_without_statistics_and_excluded_ones_are_not_spoken_of() -> None:
    model, x, y = build("conv")
    model[1] = nn.BatchNorm2d(5, track_running_stats=False)
    constraint = TPGM(model, exclude=["4.*"])
    model.train()
    with torch.no_grad():
        model(x)
        model[0].weight.add_(0.1)
    assert heard(constraint, lambda: cross_entropy(model(x), y)) == []
