"""Drawn cases: parameters of any shape, dtype and place in memory, for the constraint and every optimizer.

A fast path must equal its plain twin, and memory that is not a parameter's must keep its bits. The suite runs few
cases, always the same. By hand, ten thousand new ones, with what was drawn counted in a file::

    TPGM_FUZZ=10000 TPGM_FUZZ_OUT=results/robustness-fuzz.jsonl python -m pytest -q tests/test_fuzz.py
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tpgm import TPGM, interpolate, project
from tpgm._engine import passes
from tpgm.book.experiments import experiment
from tpgm.book.plain import steps as plain_steps
from tpgm.book.plain.radii import ReferenceTPGM
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP

CASES = int(os.environ.get("TPGM_FUZZ", "0"))
SHARES = {"constraint": 30, "optimizers": 40, "project": 15, "interpolate": 15}  # per cent
COUNTS: dict[str, Counter[str]] = {name: Counter() for name in SHARES}

REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.float16: 1e-2, torch.bfloat16: 6e-2}
ROOM = 4096  # numbers of one memory
OPTIMIZERS: dict[Any, Any] = {
    SGDP: plain_steps.sgdp,
    AdamP: plain_steps.adamp,
    AdamSPD: plain_steps.adam_spd,
    DiGraP: plain_steps.digrap,
}


def fuzz(name: str) -> Any:
    """The number of cases of one test."""
    if not CASES:
        return settings(max_examples=40, phases=(Phase.generate, Phase.shrink))
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    count = CASES * SHARES[name] // 100
    return settings(max_examples=count, derandomize=False, database=None, deadline=None, suppress_health_check=quiet)


@pytest.fixture(scope="module", autouse=True)
def _recorded(request: pytest.FixtureRequest) -> Iterator[None]:
    began, before = time.monotonic(), request.session.testsfailed
    yield
    if path := os.environ.get("TPGM_FUZZ_OUT"):
        found = {name: dict(sorted(counts.items())) for name, counts in COUNTS.items()}
        row = {"cases": sum(c["held"] for c in COUNTS.values()), "failed": request.session.testsfailed - before}
        row |= {"found": found, "seconds": round(time.monotonic() - began)}
        experiment.append(path, {**row, **experiment.provenance()})


def count(name: str, *what: str) -> None:
    COUNTS[name].update(what)


# --- what is drawn


@dataclass(frozen=True)
class View:
    """How a parameter looks into memory: the order of its dimensions there, gaps between elements, numbers before it.

    interlocked: it begins inside the gaps of the one before, where there is room.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    gaps: tuple[int, ...]
    before: int
    interlocked: bool

    @property
    def strides(self) -> tuple[int, ...]:
        strides, reach = [0] * len(self.shape), 1
        for d, gap in zip(self.order, self.gaps, strict=True):
            strides[d] = reach + gap
            reach += strides[d] * max(0, self.shape[d] - 1)
        return tuple(strides)

    @property
    def kind(self) -> str:
        if 0 in self.shape:
            return "empty"
        if len(self.shape) < 2:
            return f"{len(self.shape)} dimensions" + (" with gaps" if any(self.gaps) else "")
        if any(self.gaps):
            return "with gaps"
        return "contiguous" if self.order == tuple(reversed(range(len(self.shape)))) else "permuted"


@st.composite
def views(draw: st.DrawFn) -> View:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 2, 3, 0]), max_size=4)))
    rank = len(shape)
    last_first = tuple(reversed(range(rank)))
    channels_last = (1, 3, 2, 0) if rank == 4 else last_first
    order = draw(st.one_of(st.just(last_first), st.just(channels_last), st.permutations(range(rank)).map(tuple)))
    gaps = tuple(draw(st.lists(st.sampled_from([0, 0, 0, 1, 3]), min_size=rank, max_size=rank)))
    return View(shape, order, gaps, draw(st.integers(0, 3)), draw(st.booleans()))


class Guarded:
    """One memory for all parameters of a case; `changed` says whether numbers that are no parameter's have."""

    def __init__(self, parts: list[View], dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.memory = torch.randn(ROOM, generator=generator, dtype=torch.float64).to(dtype)
        free, at = torch.ones(ROOM, dtype=torch.bool), 1
        self.tensors: list[Tensor] = []
        for part in parts:
            at += part.before
            inside = at - 1
            fits = part.interlocked and bool(free.as_strided(part.shape, part.strides, inside).all())
            start = inside if fits else at
            assume(bool(free.as_strided(part.shape, part.strides, start).all()))
            free.as_strided(part.shape, part.strides, start).fill_(False)
            self.tensors.append(self.memory.as_strided(part.shape, part.strides, start))
            at = max(at, start + 2 + (0 if 0 in part.shape else self.reach(part)) // (2 if part.interlocked else 1))
            if not part.interlocked:
                at = int((~free).nonzero().max()) + 2 if not bool(free.all()) else at
        self.free, self.kept = free, self.memory[free].clone()

    @staticmethod
    def reach(part: View) -> int:
        return sum(stride * (size - 1) for stride, size in zip(part.strides, part.shape, strict=True))

    @property
    def changed(self) -> bool:
        return not torch.equal(self.memory[self.free].view(torch.uint8), self.kept.view(torch.uint8))


class Terms(nn.Module):
    """Parameters p0, p1, …, some also under another name, and a loss in which each has a part, or none."""

    def __init__(self, tensors: list[Tensor], parts: list[str]) -> None:
        super().__init__()
        self.parts = parts
        for i, (tensor, part) in enumerate(zip(tensors, parts, strict=True)):
            self.register_parameter(f"p{i}", nn.Parameter(tensor, requires_grad=part != "frozen"))
            if part == "tied":
                self.register_parameter(f"also{i}", self.get_parameter(f"p{i}"))

    def forward(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for i, part in enumerate(self.parts):
            if part != "untouched":
                p = getattr(self, f"p{i}")
                slopes = torch.linspace(-1.3, 1.7, p.numel(), dtype=torch.float64).reshape(p.shape)
                total = total + (torch.sin(2 * p.double()) * slopes).sum() + 0.3 * p.double().square().sum()
        return total


def plain_copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]


PART = st.sampled_from(["trained", "trained", "trained", "tied", "frozen", "frozen later", "untouched"])
WAY = st.sampled_from([None, None, "blocks", "grouped"])
SEED = st.integers(0, 2**16)


def same(ours: Tensor, theirs: Tensor, dtype: torch.dtype, what: str) -> None:
    close = CLOSE[dtype]
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=close, atol=close, msg=lambda m: f"{what}: {m}")


# --- the constraint


@fuzz("constraint")
@given(
    drawn=st.lists(st.tuples(views(), PART), min_size=1, max_size=4),
    dtype=st.sampled_from(REAL),
    norm=st.sampled_from(["l2", "mars"]),
    way=WAY,
    keep_copy=st.booleans(),
    seed=SEED,
)
def test_the_constraint_equals_its_twin_and_touches_nothing_else(
    drawn: list[tuple[View, str]], dtype: torch.dtype, norm: Any, way: Any, keep_copy: bool, seed: int
) -> None:
    shapes, parts = [view for view, _ in drawn], [part for _, part in drawn]
    memory = Guarded(shapes, dtype, seed)
    anchors = plain_copies(memory.tensors)
    ours, theirs = Terms(memory.tensors, parts), Terms(plain_copies(memory.tensors), parts)
    constrained = [i for i, p in enumerate(anchors) if p.numel() and parts[i] != "frozen"]
    if not constrained:
        with pytest.raises(ValueError, match="nothing to constrain"):
            TPGM(ours, norm=norm)
        count("constraint", "held", "nothing to constrain")
        return
    assume(any(parts[i] in ("trained", "tied") for i in constrained))  # else no update is possible
    generator = torch.Generator().manual_seed(seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "WAY", way)
        constraint = TPGM(ours, norm=norm, lr=0.05, keep_copy=keep_copy)
        twin = ReferenceTPGM(theirs, {f"p{i}": anchors[i] for i in constrained}, norm=norm, lr=0.05)
        assert list(constraint.radii) == list(twin.anchor)
        for step in range(3):
            now = {i for i, part in enumerate(parts) if part == "frozen later" and step > 1}
            with torch.no_grad():
                for i, part in enumerate(parts):
                    if part != "frozen" and i not in now:
                        move = (0.3 * torch.randn(anchors[i].shape, generator=generator)).to(dtype)
                        ours.get_parameter(f"p{i}").add_(move)
                        theirs.get_parameter(f"p{i}").add_(move)
            for i in now:
                ours.get_parameter(f"p{i}").requires_grad_(False)
            before = plain_copies([ours.get_parameter(f"p{i}") for i in range(len(parts))])
            still = {f"p{i}" for i in constrained if parts[i] == "untouched" or i in now}
            loss = constraint.update(ours)
            assert loss == pytest.approx(without(twin, still, now), rel=CLOSE[dtype], abs=CLOSE[dtype])
            for i, p in enumerate(before):
                assert torch.equal(ours.get_parameter(f"p{i}"), p), "an update moved weights"
            with constraint.projected():
                inside = plain_copies([ours.get_parameter(f"p{i}") for i in range(len(parts))])
            for i, p in enumerate(before):
                assert torch.equal(ours.get_parameter(f"p{i}"), p), "weights are not back"
            constraint.project_()
            twin_project(twin, now)
            for i, p in enumerate(inside):
                assert torch.equal(ours.get_parameter(f"p{i}"), p), "projected and project_ differ"
                if i in now or parts[i] == "frozen":
                    assert torch.equal(p, before[i]), "a frozen weight moved"
                same(p, theirs.get_parameter(f"p{i}"), dtype, f"p{i}, step {step}")
            radii = torch.tensor(list(constraint.radii.values()), dtype=torch.float64)
            same(radii, twin.gamma.double(), dtype, f"radii, step {step}")
            assert not memory.changed
    for i, tensor in enumerate(memory.tensors):
        p = ours.get_parameter(f"p{i}")
        assert (p.data_ptr(), p.stride()) == (tensor.data_ptr(), tensor.stride()), "it lies elsewhere now"
    count("constraint", "held", f"dtype {dtype}", *(v.kind for v in shapes), *(f"{p} parameter" for p in parts))


def without(twin: ReferenceTPGM, still: set[str], frozen: set[int]) -> float:
    """An update of the twin in which the radii `still`, and what Adam knows of them, stay as they are."""
    index = [l for l, name in enumerate(twin.anchor) if name in still]
    hidden = [l for l, name in enumerate(twin.anchor) if int(name[1:]) in frozen]
    state = twin.adam.state[twin.scaled]
    kept = {k: v.clone() for k, v in state.items() if v.shape == twin.gamma.shape}
    radii = twin.gamma.detach().clone()
    with torch.no_grad():
        twin.clip_radii(start=True)
        begun = twin.gamma.detach().clone()
        begun[hidden] = radii[hidden]
        twin.gamma[hidden] = torch.inf  # a frozen weight is not projected in the closure either
    clip, twin.clip_radii = twin.clip_radii, lambda start: None  # type: ignore[method-assign]
    loss = twin.update(lambda m: m())
    twin.clip_radii = clip  # type: ignore[method-assign]
    with torch.no_grad():
        twin.gamma[index] = begun[index]
        for key, value in twin.adam.state[twin.scaled].items():
            if value.shape == twin.gamma.shape:
                value[index] = kept.get(key, torch.zeros_like(value))[index]
    return loss


def twin_project(twin: ReferenceTPGM, frozen: set[int]) -> None:
    radii = twin.gamma.detach().clone()
    kept = {i: twin.model.get_parameter(f"p{i}").detach().clone() for i in frozen}
    twin.project_()
    with torch.no_grad():
        for i, p in kept.items():
            twin.model.get_parameter(f"p{i}").copy_(p)
        for l, name in enumerate(twin.anchor):
            if int(name[1:]) in frozen:
                twin.gamma[l] = radii[l]


# --- the optimizers


def backwards(t: Tensor) -> Tensor:
    return t.permute(list(reversed(range(t.dim()))))


LAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda g: g,
    "transposed": lambda g: backwards(backwards(g).contiguous()),
    "with gaps": lambda g: torch.stack([g, torch.zeros_like(g)], -1)[..., 0],
}


@fuzz("optimizers")
@given(
    drawn=st.lists(
        st.tuples(views(), st.sampled_from(["trained", "trained", "trained", "frozen", "replaced"])),
        min_size=1,
        max_size=4,
    ),
    kind=st.sampled_from(list(OPTIMIZERS)),
    dtype=st.sampled_from(REAL),
    lay=st.sampled_from(list(LAYS)),
    way=WAY,
    decay=st.sampled_from([0.0, 0.0, 0.1]),
    seed=SEED,
)
def test_every_optimizer_equals_its_twin_and_touches_nothing_else(
    drawn: list[tuple[View, str]], kind: Any, dtype: torch.dtype, lay: str, way: Any, decay: float, seed: int
) -> None:
    shapes, parts = [view for view, _ in drawn], [part for _, part in drawn]
    memory = Guarded(shapes, dtype, seed)
    start = plain_copies(memory.tensors)
    params = [nn.Parameter(t, requires_grad=part != "frozen") for t, part in zip(memory.tensors, parts, strict=True)]
    given_ = {"lr": 0.05, "weight_decay": decay}
    half = dtype in (torch.float16, torch.bfloat16)
    live = [i for i, part in enumerate(parts) if part != "frozen"]
    total = 4

    def slopes(weights: list[Tensor], t: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed + t)
        noise = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in start]
        return [(torch.sin(3 * w.double() + t) + n).to(dtype) for w, n in zip(weights, noise, strict=True)]

    def every_slope(weights: list[Tensor], t: int) -> list[Tensor]:
        whole = list(start)
        for i, w in zip(live, weights, strict=True):
            whole[i] = w
        found = slopes(whole, t)
        return [found[i] for i in live]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "WAY", way)
        optimizer = kind([(f"p{i}", p) for i, p in enumerate(params)], **given_)
        for t in range(1, total + 1):
            for p, g in zip(params, slopes([p.detach() for p in params], t), strict=True):
                if p.requires_grad:
                    p.grad = LAYS[lay](g)
            optimizer.step()
            if t == 2:
                for p, part in zip(params, parts, strict=True):
                    if part == "replaced":  # as model.to(memory_format=…) does
                        p.data = p.detach().clone(memory_format=torch.contiguous_format)
    assert not memory.changed
    if half:  # no published arithmetic is meant in half precision: the same steps in plain memory
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(passes, "WAY", "blocks")
            twins = [nn.Parameter(start[i].clone()) for i in live]
            other = kind([(f"p{i}", p) for i, p in zip(live, twins, strict=True)], **given_) if live else None
            for t in range(1, total + 1):
                for p, g in zip(twins, every_slope([p.detach() for p in twins], t), strict=True):
                    p.grad = g
                if other is not None:
                    other.step()
        expected = [p.detach() for p in twins]
    else:
        filled = [i for i in live if start[i].numel()]  # a twin takes the largest of no rows
        live = filled
        expected = OPTIMIZERS[kind]([start[i].clone() for i in live], every_slope, total, **given_) if live else []
    for i, p in enumerate(params):
        if i in live:
            same(p, expected[live.index(i)], dtype, f"p{i} of {kind.__name__}")
        else:
            assert torch.equal(p.detach(), start[i]), "a frozen weight moved"
    count(
        "optimizers",
        "drawn",
        "held",
        f"dtype {dtype}",
        kind.__name__,
        *(v.kind for v in shapes),
        *(f"{p} parameter" for p in parts),
    )


# --- one projection


@fuzz("project")
@given(
    view=views(),
    beside=st.booleans(),
    dtypes=st.tuples(st.sampled_from(REAL), st.sampled_from(REAL)),
    norm=st.sampled_from(["l2", "mars"]),
    share=st.one_of(st.sampled_from([0.0, 1.0, float("inf")]), st.floats(0.01, 1.5)),
    seed=SEED,
)
def test_one_projection_is_the_formula_in_any_memory(
    view: View, beside: bool, dtypes: tuple[torch.dtype, torch.dtype], norm: Any, share: float, seed: int
) -> None:
    memory = Guarded([view], dtypes[0], seed)
    (weight,) = memory.tensors
    generator = torch.Generator().manual_seed(seed + 1)
    anchor = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(dtypes[1])
    if beside and weight.dim() and dtypes[0] == dtypes[1]:
        anchor = anchor.select(0, 0).expand(weight.shape) if weight.shape[0] else anchor  # memory used again: only read
    w, a = weight.double(), anchor.double()
    delta = w - a
    rows = tuple(range(1, delta.dim())) if norm == "mars" and delta.dim() > 1 else tuple(range(delta.dim()))
    size = (delta.abs().sum(dim=rows, keepdim=True) if rows else delta.abs()) if norm == "mars" else delta.norm()
    radius = share * float(size.max()) if size.numel() else share
    assume(radius == radius)  # 0 times infinity
    bits = memory.memory.clone()
    found = project(weight, anchor, radius, norm)
    ratio = torch.where(size > 0, radius / size, 1.0).clamp(0, 1)
    same(found, (a + ratio * delta).to(dtypes[0]), max(dtypes, key=CLOSE.__getitem__), "project")
    assert found.dtype == dtypes[0]
    if weight.numel() and share >= 1.01:
        assert torch.equal(found, weight), "inside the ball a weight keeps its bits"
    assert torch.equal(memory.memory.view(torch.uint8), bits.view(torch.uint8))
    if found.numel():
        assert found.untyped_storage().data_ptr() != memory.memory.untyped_storage().data_ptr(), "not a new tensor"
    count("project", "held", f"dtype {dtypes[0]}", view.kind, norm)


# --- WiSE-FT


@fuzz("interpolate")
@given(
    drawn=st.lists(st.tuples(views(), st.sampled_from(["trained", "tied", "frozen"])), min_size=1, max_size=4),
    dtypes=st.tuples(st.sampled_from(REAL), st.sampled_from(REAL)),
    alpha=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-0.5, 1.5)),
    seed=SEED,
)
def test_interpolation_is_the_formula_and_leaves_both_models_alone(
    drawn: list[tuple[View, str]], dtypes: tuple[torch.dtype, torch.dtype], alpha: float, seed: int
) -> None:
    shapes, parts = [view for view, _ in drawn], [part for _, part in drawn]
    memory, other = Guarded(shapes, dtypes[0], seed), Guarded(shapes, dtypes[1], seed + 1)
    model, anchor = Terms(memory.tensors, parts), Terms(other.tensors, parts)
    bits = memory.memory.clone(), other.memory.clone()
    result = interpolate(model, anchor, alpha)
    for i, part in enumerate(parts):
        w, a = memory.tensors[i], other.tensors[i]
        expected = (a.double() + alpha * (w.double() - a.double())).to(dtypes[0])
        same(result.get_parameter(f"p{i}"), expected, max(dtypes, key=CLOSE.__getitem__), f"p{i}")
        assert result.get_parameter(f"p{i}").requires_grad == (part != "frozen")
        if part == "tied":
            assert result.get_parameter(f"p{i}") is getattr(result, f"also{i}")
        if alpha == 1.0 and w.numel():
            assert torch.equal(result.get_parameter(f"p{i}"), w), "at 1 it is the model"
    for kept, now in zip(bits, (memory.memory, other.memory), strict=True):
        assert torch.equal(kept.view(torch.uint8), now.view(torch.uint8))
    count(
        "interpolate",
        "drawn",
        "held",
        f"dtype {dtypes[0]}",
        *(v.kind for v in shapes),
        *(f"{p} parameter" for p in parts),
    )


# --- what must be refused


@settings(max_examples=CASES // 20 or 30)
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    data=st.data(),
    dtype=st.sampled_from([*REAL, torch.complex64, torch.complex128]),
)
def test_memory_used_twice_and_complex_numbers_are_refused_by_name(
    shape: list[int], data: st.DataObject, dtype: torch.dtype
) -> None:
    free = data.draw(st.integers(0, len(shape) - 1))
    base = torch.randn([1 if d == free else size for d, size in enumerate(shape)]).to(dtype)
    tensor = base.expand(shape) if dtype in REAL else base.clone()
    memory, model = base.clone(), nn.Module()
    model.weight = nn.Parameter(tensor)
    acts: list[Callable[[], object]] = [lambda: TPGM(model), lambda: TPGM(model, anchor="zero")]
    acts += [lambda kind=kind: kind([("weight", model.weight)]) for kind in OPTIMIZERS]
    for act in acts:
        with pytest.raises(ValueError, match="weight"):
            act()
    halfway = {"weight": torch.zeros(tensor.shape, dtype=dtype)}
    if dtype in REAL:  # the copy has memory of its own
        same(interpolate(model, halfway, 0.5).weight, tensor / 2, dtype, "interpolate")
    else:
        with pytest.raises(ValueError, match="weight: anchor has dtype"):
            interpolate(model, halfway, 0.5)
    assert torch.equal(base, memory)
