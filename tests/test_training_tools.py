"""What people train with beside a model: compiled models, autocast, a GradScaler, activation checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tests.conftest import build
from tpgm import TPGM


def train(
    model: nn.Module, step: Callable[[Tensor], Any] | None = None, forward: Callable[[], Tensor] | None = None
) -> TPGM:
    """Two steps of the ordinary loop at the published order: step, update, project."""
    _, x, y = build("mlp")
    forward = forward or (lambda: cross_entropy(model(x), y))
    constraint = TPGM(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss = forward()
        if step is None:
            loss.backward()
            optimizer.step()
        else:
            step(loss, optimizer)
        constraint.update(forward)
        constraint.project_()
    return constraint


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return build("mlp")[0]


def same(ours: TPGM, theirs: TPGM, rtol: float = 1e-5) -> None:
    assert min(theirs.ratios().values()) < 0.99, "the constraint binds"
    assert ours.radii == pytest.approx(theirs.radii, rel=rtol)
    for name, p in theirs._params.items():
        torch.testing.assert_close(ours._params[name].detach(), p.detach(), rtol=rtol, atol=rtol)


# --- torch.compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["wrapper", "in place"])
def test_compiled_models_are_constrained_as_they_are(backend: str, how: str) -> None:
    def built() -> Any:
        torch.compiler.reset()
        graphs.clear()
        model = fresh()
        if how == "wrapper":
            return torch.compile(model, backend=backend)
        model.compile(backend=backend)
        return model

    graphs = torch._dynamo.utils.counters["stats"]
    built()(build("mlp")[1])
    least = graphs["unique_graphs"]  # older versions of torch compile nothing in place
    assert least == 1 or (how == "in place" and torch.__version__ < (2, 14))
    same(train(built()), train(fresh()))
    # at most one for training and one for evaluation, however often weights are exchanged
    assert least <= graphs["unique_graphs"] <= 2


def test_a_compiled_loss_of_a_plain_model() -> None:
    model = fresh()
    _, x, y = build("mlp")
    loss = torch.compile(lambda: cross_entropy(model(x), y), backend="aot_eager")
    same(train(model, forward=loss), train(fresh()))


# --- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = fresh()
    _, x, y = build("mlp")
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, given, out: seen.append(out.dtype))

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype):
            return cross_entropy(model(x), y)

    constraint = train(model, forward=forward)
    assert set(seen) == {dtype}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same(constraint, train(fresh()), rtol=0.02)


def test_a_gradient_scaler_skips_its_step_and_is_left_alone() -> None:
    model = fresh()
    before = copy.deepcopy(model.state_dict())
    _, x, y = build("mlp")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)
    constraint, optimizer = TPGM(model), torch.optim.SGD(model.parameters(), lr=0.5)
    skipped = 0
    for _ in range(95):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        state = scaler.state_dict()
        constraint.update(lambda: cross_entropy(model(x), y))
        assert scaler.state_dict() == state
        if all(torch.equal(p, before[name]) for name, p in model.named_parameters()):
            skipped += 1
            assert set(constraint.radii.values()) == {torch.inf}, "no step, no radius"
        else:
            constraint.project_()
    assert 10 < skipped < 95
    assert max(constraint.radii.values()) < torch.inf
    assert min(constraint.ratios().values()) < 1
    assert scaler.get_scale() > 1


def test_a_scaled_run_is_the_unscaled_one() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    same(train(fresh(), step), train(fresh()))


# --- activation checkpointing


def test_activation_checkpointing_changes_nothing() -> None:
    wrapped = fresh()
    apply_activation_checkpointing(
        wrapped, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda m: isinstance(m, nn.Linear)
    )
    same(train(wrapped), train(fresh()))
    called = fresh()
    _, x, y = build("mlp")
    same(train(called, forward=lambda: cross_entropy(checkpoint(called, x, use_reentrant=False), y)), train(fresh()))


class Half(nn.Module):
    """The last layer in the open, the layers before it behind a reentrant checkpoint."""

    def __init__(self, model: nn.Sequential, own_input: bool) -> None:
        super().__init__()
        self.hidden, self.head, self.own_input = model[:-1], model[-1], own_input

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden
        if not self.own_input:
            x, hidden = hidden[0](x), hidden[1:]
        return self.head(checkpoint(hidden, x, use_reentrant=True))


@pytest.mark.parametrize("own_input", [True, False])
def test_reentrant_checkpointing_is_refused_by_name_and_leaves_all_as_it_was(own_input: bool) -> None:
    model, (_, x, y) = Half(fresh(), own_input), build("mlp")
    x.requires_grad_()  # or the reentrant kind gives no gradient at all
    constraint = TPGM(model, anchor={name: 1.1 * p.detach() for name, p in model.named_parameters()})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="use_reentrant=False"):
        constraint.update(lambda: cross_entropy(model(x), y))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert set(constraint.radii.values()) == {torch.inf}
    constraint.update(lambda: cross_entropy(model.head(model.hidden(x)), y))
    assert max(constraint.radii.values()) < torch.inf


def test_a_layer_that_the_loss_does_not_use_is_no_error() -> None:
    model, y = Half(fresh(), True), build("mlp")[2]
    constraint = TPGM(model, anchor={name: 1.1 * p.detach() for name, p in model.named_parameters()}, lr=0.1)
    constraint.update(lambda: cross_entropy(model.head(torch.ones(24, 8)), y))
    assert max(constraint.radii.values()) < torch.inf
