"""Ctrl-C at every line of an update, a projection and a look: nothing is left out of its place, no call is refused."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpgm
from tpgm import TPGM
from tpgm._engine import interrupts
from tpgm.buffers import reestimate

# every line by hand, with TPGM_EVERY_LINE=1; some of them here, other ones for each way
EVERY = 1 if os.environ.get("TPGM_EVERY_LINE") else 23
PACKAGE = str(Path(tpgm.__file__).parent)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


class Rig:
    """A constraint on weights that have moved, after an update, with gradients of a training step."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.net = Net()
        self.constraint = TPGM(self.net, **{"buffers": "keep", **settings})
        self.x, self.y = torch.randn(6, 4), torch.tensor([0, 1] * 3)
        with torch.no_grad():
            for p in self.net.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
        self.constraint.update(self.loss)
        self.loss().backward()
        self.net.last.weight.requires_grad_(False)

    def loss(self) -> Tensor:
        return cross_entropy(self.net(self.x), self.y)

    def state(self) -> list[Any]:
        """Everything that must be as it was, radii apart."""
        net = self.net
        tensors = [t.detach().clone() for t in (*net.parameters(), *net.buffers())]
        places = [id(t) for t in (*net.parameters(), *net.buffers())]
        modes = [m.training for m in net.modules()]
        grads = [(id(p.grad), p.requires_grad) for p in net.parameters()]
        return [tensors, places, modes, grads, [signal.getsignal(s) for s in interrupts.SIGNALS]]

    def check(self, before: list[Any]) -> None:
        now = self.state()
        assert now[1:] == before[1:]
        assert all(map(torch.equal, now[0], before[0]))
        assert not self.constraint._exchange.active
        assert not interrupts._held


def raise_at(line: int, call: Callable[[], Any]) -> tuple[bool, int]:
    """Run `call` and send SIGINT to this process at the line-th line of the package; whether it came, and lines run."""
    count, came = 0, False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith((PACKAGE, os.path.dirname(os.__file__) + "/contextlib")):
            return None
        if event == "line":
            count += 1
            if count == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        came = True
    finally:
        sys.settrace(old)
    return came, count


def looked(rig: Rig) -> None:
    with rig.constraint.projected():
        rig.net(rig.x)


WAYS = {
    "update": lambda rig: rig.constraint.update(rig.loss),
    "projected": looked,
    "reestimate": lambda rig: reestimate(rig.net, [rig.x]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings", [{}, {"buffers": "reestimate"}, {"buffers": "move"}], ids=["keep", "again", "move"]
)
def test_an_interrupt_at_any_line_leaves_everything_in_its_place(way: str, settings: dict[str, Any]) -> None:
    rig, call = Rig(**settings), WAYS[way]
    statistics = [b.clone() for b in rig.net.buffers()]
    call(rig)  # what only the first call does is not counted
    _, lines = raise_at(0, lambda: call(rig))
    for line in range(1, lines + 1, EVERY):
        for buffer, old in zip(rig.net.buffers(), statistics, strict=True):
            buffer.copy_(old)
        before, radii = rig.state(), rig.constraint.radii
        came, _ = raise_at(line, partial(call, rig))
        assert came, line
        if way == "reestimate":  # either as before or done
            done = not torch.equal(rig.net.norm.running_mean, statistics[0])
            before[0][-3:] = [b.clone() for b in rig.net.buffers()] if done else before[0][-3:]
        rig.check(before)
        if way == "projected":
            assert rig.constraint.radii == radii


def test_an_interrupted_update_leaves_radii_or_has_stepped_them() -> None:
    rig = Rig()
    saved, start = rig.constraint.state_dict(), rig.constraint.radii
    _, lines = raise_at(0, lambda: rig.constraint.update(rig.loss))
    stepped, seen = rig.constraint.radii, set()
    for line in range(1, lines + 1, EVERY):
        rig.constraint.load_state_dict(saved)
        raise_at(line, lambda: rig.constraint.update(rig.loss))
        assert rig.constraint.radii in (start, stepped)
        seen.add(rig.constraint.radii == stepped)
    assert seen == {True, False}


def test_an_interrupted_projection_is_whole_or_has_not_begun() -> None:
    def prepared() -> Rig:
        rig = Rig()
        rig.constraint.update(rig.loss)
        return rig

    rig = prepared()
    before = rig.state()[0]
    _, lines = raise_at(0, rig.constraint.project_)
    after, seen = rig.state()[0], set()
    for line in range(1, lines + 1, EVERY):
        rig = prepared()
        came, _ = raise_at(line, rig.constraint.project_)
        now = rig.state()[0]
        whole, none = all(map(torch.equal, now, after)), all(map(torch.equal, now, before))
        assert came
        assert whole or none, line
        seen.add(whole)
    assert seen == {True, False}


def _late_in_an_update(rig: Rig, moment: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, max(moment, 1e-5))
    rig.constraint.update(rig.loss)
    time.sleep(5)


@pytest.mark.parametrize("threads", [1, 3])
def test_signals_at_random_moments_reach_the_caller(threads: int) -> None:
    rig = Rig()
    generator = torch.Generator().manual_seed(threads)
    had = torch.get_num_threads()
    torch.set_num_threads(threads)

    def alarm(*_: object) -> None:
        raise TimeoutError("late")

    old = signal.signal(signal.SIGALRM, alarm)
    try:
        began = time.perf_counter()
        rig.constraint.update(rig.loss)
        span = time.perf_counter() - began
        before = rig.state()
        for moment in (torch.rand(20, generator=generator) * span).tolist():
            with pytest.raises(TimeoutError, match="late"):
                _late_in_an_update(rig, moment)
            rig.check(before)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        torch.set_num_threads(had)


def test_the_closure_is_interrupted_at_once_and_a_handler_that_does_not_raise_is_called_at_once() -> None:
    rig, seen = Rig(), []

    def slow() -> Tensor:
        signal.raise_signal(signal.SIGINT)
        seen.append("after")
        return rig.loss()

    with pytest.raises(KeyboardInterrupt):
        rig.constraint.update(slow)
    assert not seen
    old = signal.signal(signal.SIGINT, lambda *_: seen.append("handled"))
    try:
        rig.constraint.update(slow)
        assert seen == ["handled", "after"]
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_handler_that_puts_another_in_its_place_is_obeyed() -> None:
    rig = Rig()

    def once(*_: object) -> None:
        signal.signal(signal.SIGINT, old)

    old = signal.signal(signal.SIGINT, once)
    try:
        rig.constraint.update(lambda: (signal.raise_signal(signal.SIGINT), rig.loss())[1])
        assert signal.getsignal(signal.SIGINT) is old
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_update_without_touching_handlers() -> None:
    rig, found = Rig(), []
    before = rig.state()
    thread = threading.Thread(target=lambda: found.append(rig.constraint.update(rig.loss)))
    thread.start()
    thread.join()
    assert found
    rig.check(before)


@pytest.mark.parametrize("error", [KeyError, MemoryError, SystemExit, GeneratorExit, KeyboardInterrupt])
def test_whatever_the_closure_raises_reaches_the_caller(error: type[BaseException]) -> None:
    rig = Rig()
    before, radii = rig.state(), rig.constraint.radii

    def broken() -> Tensor:
        rig.net.norm.running_mean += 1
        rig.loss()
        raise error("mine")

    with pytest.raises(error, match="mine"):
        rig.constraint.update(broken)
    rig.check(before)
    assert rig.constraint.radii == radii


# --- what forward changes besides


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.word, self.last_mean, self.log = 0, "none", torch.zeros(3), []
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("cache", torch.zeros(2, 3).t(), persistent=False)
        self.register_buffer("wide", torch.zeros(1).expand(4))
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.seen += 1
        self.word = "seen"
        self.last_mean = hidden.mean(dim=0)
        self.steps += 1
        self.cache = hidden.detach()
        self.later = torch.ones(1)
        self.new = 3
        self.log.append(1)
        return super().forward(x)


def test_what_forward_changes_is_put_back_and_what_is_not_is_as_the_docstring_says() -> None:
    torch.manual_seed(0)
    net = Counting()
    constraint = TPGM(net, buffers="keep")
    with torch.no_grad():
        net.first.weight.add_(0.1)
    x = torch.randn(6, 4)
    net.train()
    net(x)  # training has seen one batch
    mean, cache = net.last_mean, net.cache
    steps, values = net.steps, net.cache.clone()
    constraint.update(lambda: net(x).square().mean())
    assert (net.seen, net.word, net.new) == (1, "seen", 3)
    assert net.last_mean is mean
    assert net.last_mean.grad_fn is not None
    assert net.steps is steps
    assert int(steps) == 1
    assert net.cache is cache
    assert torch.equal(cache, values)
    assert len(net.log) == 2  # lists stay as forward leaves them
    with constraint.projected():
        net(x)
    assert int(net.steps) == 1
    assert net.seen == 2  # a look is the user's own: attributes stay


def test_buffers_and_attributes_that_appear_in_forward_go_and_what_vanishes_comes_back() -> None:
    net = Counting()
    constraint = TPGM(net, buffers="keep")
    with torch.no_grad():
        net.first.weight.add_(0.1)
    x = torch.randn(6, 4)

    def closure() -> Tensor:
        net.register_buffer("extra", torch.ones(1))
        del net.word, net.cache
        loss = nn.Module.__call__(net.first, x).square().mean()
        net.other = 2.0
        return loss

    constraint.update(closure)
    assert "extra" not in dict(net.named_buffers())
    assert net.later is None
    assert not hasattr(net, "other")
    assert net.word == "none"
    assert net.cache.shape == (3, 2)


def test_a_graph_of_the_training_survives_an_update() -> None:
    """In eval mode BatchNorm's statistics are part of it: they are put back without autograd taking note."""
    net = Net().eval()
    constraint = TPGM(net, buffers="keep")
    with torch.no_grad():
        net.first.weight.add_(0.1)
    x = torch.randn(6, 4)
    mean = net.norm.running_mean
    waiting = torch.relu(net.norm(x[:, :3])).sum() + (net.norm.weight * mean).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constraint.update(lambda: net(x).square().mean())
    waiting.backward()
    assert net.norm.weight.grad is not None


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)
