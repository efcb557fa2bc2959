"""How an update takes the gradients of the validation loss: each one dropped as soon as its product is known."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.conftest import build
from tpgm import TPGM
from tpgm._engine import gradients


class Tied(nn.Module):
    """One weight used twice, one used never, one embedding with a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6, sparse=True)
        self.twice, self.never, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.twice(torch.tanh(self.twice(self.words(x)))))
        return found


def moved(kind: str) -> tuple[nn.Module, TPGM, Callable[[], Tensor]]:
    torch.manual_seed(0)
    if kind == "tied":
        model, x, y = Tied(), torch.arange(9), torch.arange(9) % 3
    else:
        model, x, y = build(kind)
    tpgm = TPGM(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, tpgm, lambda: cross_entropy(model(x), y)


@pytest.mark.parametrize("kind", ["mlp", "conv", "transformer", "tied"])
def test_radii_do_not_depend_on_how_many_gradients_wait(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for held in (1, 50, 1 << 30):
        monkeypatch.setattr(gradients, "HELD", held)
        _, tpgm, closure = moved(kind)
        losses = [tpgm.update(closure) for _ in range(3)]
        found.append((losses, tpgm.radii))
    assert found[0] == found[1] == found[2]


def test_a_gradient_is_dropped_once_its_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def alive_together(held: int) -> int:
        monkeypatch.setattr(gradients, "HELD", held)
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(6)))
        tpgm = TPGM(model)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        seen: list[weakref.ref[Tensor]] = []
        most = 0

        def watch(gradient: Tensor) -> None:
            nonlocal most
            seen.append(weakref.ref(gradient))
            most = max(most, sum(ref() is not None for ref in seen))

        for p in model.parameters():
            p.register_hook(watch)
        tpgm.update(lambda: model(torch.ones(2, 20)).square().sum())
        assert len(seen) == 12
        return most

    assert alive_together(1) <= 2  # the one at hand, and one on its way
    assert alive_together(1 << 30) == 12


def test_hooks_go_and_gradients_of_training_stay_where_a_product_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "HELD", 1)
    model, tpgm, closure = moved("mlp")
    closure().backward()
    kept = {name: (p.grad, p.detach().clone()) for name, p in model.named_parameters()}

    def fail(*_: object) -> None:
        raise RuntimeError("no product")

    with monkeypatch.context() as patch:
        patch.setattr("tpgm._engine.passes.Passes.dots", fail)
        with pytest.raises(RuntimeError, match="no product"):
            tpgm.update(closure)
    for name, p in model.named_parameters():
        assert p.grad is kept[name][0]
        assert torch.equal(p, kept[name][1])
        assert not p._backward_hooks
    tpgm.update(closure)
    assert not any(p._backward_hooks for p in model.parameters())


def test_a_hook_of_the_users_own_changes_the_gradient_first() -> None:
    """As in any backward pass: with every gradient doubled the radii's own gradient is doubled, too."""
    slopes = []
    for factor in (1.0, 2.0):
        model, tpgm, closure = moved("mlp")
        for p in model.parameters():
            p.register_hook(lambda g, factor=factor: factor * g)
        tpgm.update(closure)
        slopes.append(tpgm.optimizer.state[tpgm.optimizer.param_groups[0]["params"][0]]["exp_avg"].clone())
    torch.testing.assert_close(slopes[1], 2 * slopes[0])


def test_a_compiled_model_is_not_compiled_again() -> None:
    from torch._dynamo.utils import counters

    model, tpgm, _ = moved("mlp")
    _, x, y = build("mlp")
    compiled = torch.compile(model, backend="aot_eager")
    counters.clear()
    for _ in range(4):
        compiled(x).sum().backward()
        tpgm.update(lambda: cross_entropy(compiled(x), y))
    assert counters["stats"]["unique_graphs"] <= 2  # one in train mode, one in eval mode
