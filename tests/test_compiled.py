"""Machine code for passes and steps: held to torch's operations in every way tensors can be cut and shared out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpgm import TPGM
from tpgm._engine import compiled
from tpgm._engine.passes import Passes
from tpgm.optim import SGDP, AdamP, AdamSPD

pytest.importorskip("numba")

# one tensor is most of the numbers: it is not left to one thread
SHAPES = ((70, 11), (6,), (4, 3, 3, 3), (), (5, 1), (2, 40), (1, 17))
METHODS: list[tuple[Any, dict[str, Any]]] = [
    (SGDP, {"lr": 0.05}),
    (SGDP, {"lr": 0.05, "norm": "l2", "nesterov": False, "weight_decay": 0.1, "kappa": 0.5}),
    (SGDP, {"lr": 0.05, "momentum": 0.0, "nesterov": False}),  # for which there is no kernel
    (AdamP, {"lr": 0.01, "weight_decay": 0.1}),
    (AdamP, {"lr": 0.01, "norm": "l2", "betas": (0.8, 0.95)}),
    (AdamSPD, {"lr": 0.01, "strength": 1.5, "weight_decay": 0.1}),
]


@pytest.fixture(params=[1, 2, 3, "pool of 3"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Torch's threads or, where they cannot be had, our own."""
    before, count = torch.get_num_threads(), request.param
    if isinstance(count, str):
        count = 3
        monkeypatch.setattr(compiled, "_torchs_threads", lambda: None)
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


def drawn(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def trained(method: Any, settings: dict[str, Any], dtype: torch.dtype, steps: int = 6) -> Any:
    """Optimizer and parameters after steps towards a target; some lie in other ways than their gradients."""
    start = drawn(1, dtype)
    start[2] = start[2].contiguous(memory_format=torch.channels_last)
    params, target = [nn.Parameter(t.clone()) for t in start], drawn(2, dtype)
    optimizer = method(params, **settings)
    for t in range(steps):
        for p, goal, noise in zip(params, target, drawn(3 + t, dtype), strict=True):
            p.grad = p.detach() - goal + noise
        first = params[0].grad
        params[0].grad = first.t().contiguous().t() if t == 2 and first is not None else first
        versions = [p._version for p in params]
        optimizer.step()
        assert all(p._version > v for p, v in zip(params, versions, strict=True))  # autograd is told
    return optimizer, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_steps_equal_those_of_torchs_operations(
    method: Any, settings: dict[str, Any], dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "PIECE", 8)
    taken: list[int] = []
    for name in ("ftp", "spd"):
        original = getattr(compiled, name)
        monkeypatch.setattr(compiled, name, lambda p, *rest, f=original: (taken.append(len(p)), f(p, *rest)))
    ours, fast = trained(method, settings, dtype)
    assert taken == ([] if settings.get("momentum") == 0 else [7, 7, 6, 7, 7, 7])  # once laid out unlike its gradient
    monkeypatch.setattr(compiled, "available", lambda: False)
    theirs, plain = trained(method, settings, dtype)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    for p, q in zip(fast, plain, strict=True):
        torch.testing.assert_close(p, q, **close)
        assert ours.state[p].keys() == theirs.state[q].keys()
        for name, value in ours.state[p].items():
            torch.testing.assert_close(value, theirs.state[q][name], **close, msg=lambda m, name=name: f"{name}: {m}")
    theirs.load_state_dict(ours.state_dict())  # a state goes on either way


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_passes_over_pieces_and_threads(norm: Any, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, anchors, gradients = (drawn(seed, torch.float64) for seed in range(3))
    plain, fast = Passes(norm, "blocks"), Passes(norm, "compiled")
    ratios = [torch.rand_like(n) for n in plain.measure(weights, anchors)]
    for piece in (1, 8, 1 << 14):
        monkeypatch.setattr(compiled, "PIECE", piece)
        outs, wanted = [torch.empty_like(w) for w in weights], [torch.empty_like(w) for w in weights]
        fast.scale(outs, weights, anchors, ratios)
        plain.scale(wanted, weights, anchors, ratios)
        torch.testing.assert_close(outs, wanted)
        torch.testing.assert_close(fast.measure(weights, anchors), plain.measure(weights, anchors))
        found = fast.dots(list(gradients), weights, anchors)
        torch.testing.assert_close(found, plain.dots(list(gradients), weights, anchors))


def test_every_part_is_done_once_and_errors_arrive(threads: int) -> None:
    """Also where several Python threads spread their work at the same time."""

    def work(number: int) -> list[int]:
        done: list[int] = []
        for _ in range(50):
            compiled._spread(done.append, range(number))
        return sorted(done)

    with ThreadPoolExecutor(3) as callers:
        for number, done in zip((1, 2, 40), callers.map(work, (1, 2, 40)), strict=True):
            assert done == sorted([*range(number)] * 50)

    def fail(part: int) -> None:
        torch.ones(1000).sum()
        if part >= 5:
            raise KeyboardInterrupt(f"part {part}")

    with pytest.raises(KeyboardInterrupt, match="part"):
        compiled._spread(fail, range(20))


def test_torchs_threads_are_found() -> None:
    """On Linux, where torch runs on an OpenMP with GNU's entry points; elsewhere there is the pool."""
    assert sys.platform != "linux" or compiled._torchs_threads() is not None


@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(norm: Any, value: float) -> None:
    weight, anchor = torch.randn(3, 50), torch.randn(3, 50)
    weight[1, 7] = value
    (norms,) = Passes(norm, "compiled").measure([weight], [anchor])
    assert norms.isfinite().tolist() == ([True, False, True] if norm == "mars" else [False])
    model = nn.Linear(3, 2)
    constraint = TPGM(model)
    with torch.no_grad():
        model.weight[0, 0] = value
    with pytest.raises(FloatingPointError, match="weights are NaN or infinite in weight"):
        constraint.update(lambda: model(torch.ones(3)).sum())


def test_small_displacements_have_a_norm() -> None:
    """Their squares would be 0 in float32."""
    weight = torch.full((4, 4), 1e-30)
    (norm,) = Passes("l2", "compiled").measure([weight], [torch.zeros(4, 4)])
    torch.testing.assert_close(norm, torch.tensor([4e-30]), rtol=1e-6, atol=0)


def test_only_what_fits_is_taken() -> None:
    w = torch.randn(3, 4)
    assert compiled.fit(w, w.clone())
    assert not compiled.fit(w, None)
    assert not compiled.fit(w, w.to_sparse())
    assert not compiled.fit(w, w.double())
    assert not compiled.fit(w, w.t().contiguous().t())
    assert not compiled.fit(w, torch.zeros(()).expand(3, 4))
    assert not compiled.fit(w.bfloat16(), w.bfloat16())
    assert not compiled.fit(w.to("meta"), w.to("meta"))
    assert not compiled.fit(torch.empty(0, 4), torch.empty(0, 4))


ALONE = """
import os, torch
from tpgm._engine import compiled
from tpgm._engine.passes import Passes
torch.set_num_threads(2)
w, a = torch.randn(300, 1000), torch.randn(300, 1000)
passes = Passes("mars")
here = passes.measure([w], [a])[0]
print(compiled.available(), "numba" in __import__("sys").modules)
if os.environ.get("FORK") and not (child := os.fork()):
    same = torch.equal(Passes("mars").measure([w], [a])[0], here)
    os._exit(0 if same else 1)
if os.environ.get("FORK"):
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(
    ("environment", "said"), [({}, "True True"), ({"TPGM_COMPILED": "0"}, "False False"), ({"FORK": "1"}, "True True")]
)
def test_switched_off_and_in_a_forked_process(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ALONE]  # of fork with threads
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said
