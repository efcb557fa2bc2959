"""Parameters that lie in memory in any way: right results, and nothing beside them is touched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tpgm import TPGM
from tpgm._engine import passes
from tpgm._engine.layout import check_parameter, dense, fits, share_memory
from tpgm._engine.passes import Passes, Way
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP
from tpgm.projection import Norm, as_rows, row_norms, row_ratios, scale_rows, upcast

METHODS: list[Any] = [SGDP, AdamP, AdamSPD, DiGraP]
every_method = pytest.mark.parametrize("method", METHODS)
every_way = pytest.mark.parametrize("way", [None, "blocks", "grouped"])

LAYOUTS: dict[str, Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]]] = {
    # memory, and how a parameter looks into it
    "slice of channels": lambda: (torch.randn(8, 3, 3, 3), lambda m: m[:, :1]),
    "narrowed": lambda: (torch.randn(6, 10), lambda m: m.narrow(1, 2, 5)),
    "transposed slice": lambda: (torch.randn(5, 9), lambda m: m.t()[2:8]),
    "every second": lambda: (torch.randn(7, 8), lambda m: m[:, 1::2]),
    "strides of its own": lambda: (torch.randn(60), lambda m: m.as_strided((3, 4), (16, 2), 5)),
    "interlocking": lambda: (torch.randn(12), lambda m: m.as_strided((2, 3), (3, 2), 1)),
    "rows of a buffer": lambda: (torch.randn(9, 4), lambda m: m[3:6]),
    "transposed": lambda: (torch.randn(5, 4), lambda m: m.t()),
    "channels last": lambda: (torch.randn(2, 3, 3, 4), lambda m: m.permute(0, 3, 1, 2)),
    "a vector with gaps": lambda: (torch.randn(20), lambda m: m[::3]),
}
every_layout = pytest.mark.parametrize("kind", LAYOUTS)


def beside(memory: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
    """The numbers of the memory that are not the parameter's, as bits."""
    free = torch.ones_like(memory, dtype=torch.bool)
    look(free).fill_(False)
    return memory[free].view(torch.int32).clone()


def trained(method: Any, p: nn.Parameter, steps: int = 6, lay: Callable[[Tensor], Tensor] = Tensor.clone) -> Any:
    generator = torch.Generator().manual_seed(3)
    optimizer = method([("weight", p)], lr=0.05)
    target = torch.randn(p.shape, generator=generator)
    for _ in range(steps):
        p.grad = lay(p.detach() - target + 0.5 * torch.randn(p.shape, generator=generator))
        optimizer.step()
    return optimizer


@every_method
@every_way
@every_layout
def test_a_step_writes_the_parameter_and_nothing_beside_it(
    kind: str, way: Way | None, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "WAY", way)
    memory, look = LAYOUTS[kind]()
    p, q = nn.Parameter(look(memory)), nn.Parameter(look(memory).clone(memory_format=torch.contiguous_format))
    guard, start = beside(memory, look), p.detach().clone()
    assert p.data_ptr() == look(memory).data_ptr()
    ours, theirs = trained(method, p), trained(method, q)
    assert torch.equal(beside(memory, look), guard)
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(p, start)
    for name, value in ours.state[p].items():
        torch.testing.assert_close(value, theirs.state[q][name], rtol=1e-4, atol=1e-6, msg=name)
    assert p.data_ptr() == look(memory).data_ptr()


def test_the_loss_of_a_slice_as_it_was_reported() -> None:
    big = torch.randn(8, 3, 3, 3)
    keep, w = big[:, 1:].clone(), nn.Parameter(big[:, :1])
    optimizer = AdamSPD([w], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        w.square().sum().backward()
        optimizer.step()
    assert torch.equal(big[:, 1:], keep)


@every_method
@every_way
@pytest.mark.parametrize("shape", [(0, 1), (0,), (3, 0), (0, 2, 2), ()])
def test_a_parameter_without_numbers_alone_or_beside_others(
    shape: tuple[int, ...], way: Way | None, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "WAY", way)
    for others in ([], [torch.randn(3, 2)]):
        start = [torch.randn(shape), *others]
        params = [nn.Parameter(t.clone()) for t in start]
        optimizer = method(params, lr=0.1)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert [p.shape for p in params] == [t.shape for t in start]
        assert all(bool(p.isfinite().all()) for p in params)


@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("way", ["blocks", "grouped", "compiled"])
def test_passes_over_no_rows_at_all(way: Way, norm: Norm) -> None:
    empty, run = [torch.zeros(0, 3), torch.zeros(0, 1)], Passes(norm, way)
    wanted = [row_norms(t, norm) for t in empty]
    copies = [[t.clone() for t in empty] for _ in range(2)]
    for found in (run.measure(empty, copies[0]), run.dots(empty, empty, copies[0])):
        assert all(map(torch.equal, found, wanted))
    products, norms = run.advance(empty, copies[1], empty, copies[0])
    assert all(map(torch.equal, (*products, *norms), (*wanted, *wanted)))
    run.scale(empty, empty, copies[0], wanted)


def transposed(g: Tensor) -> Tensor:
    return g.mT.contiguous().mT


@every_method
@pytest.mark.parametrize("lay", [transposed, lambda g: torch.stack([g, g], -1)[..., 0], lambda g: g[:1].expand(6, 4)])
def test_gradients_may_lie_in_another_way_than_their_parameter(method: Any, lay: Callable[[Tensor], Tensor]) -> None:
    start = torch.randn(6, 4)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    trained(method, p, lay=lay)
    trained(method, q, lay=lambda g: lay(g).contiguous())
    assert torch.equal(p, q)


@every_method
def test_a_state_goes_on_in_parameters_that_lie_in_another_way(method: Any) -> None:
    """As after ``model.to(memory_format=torch.channels_last)``."""
    p = nn.Parameter(torch.randn(4, 3, 3, 3))
    optimizer = trained(method, p)
    state, weights = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    q = nn.Parameter(weights.clone(memory_format=torch.channels_last))
    other = method([("weight", q)])
    other.load_state_dict(state)
    grads = torch.randn(4, *p.shape)
    for g in grads:
        p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
    p.data = p.data.to(memory_format=torch.channels_last)
    for g in grads:
        p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)


@every_method
def test_a_gradient_in_the_parameters_own_memory(method: Any) -> None:
    start = torch.randn(5, 3)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first, second = method([p], lr=0.1), method([q], lr=0.1)
    for _ in range(4):
        p.grad, q.grad = p.detach(), q.detach().clone()
        first.step()
        second.step()
    assert torch.equal(p, q)


@every_method
def test_an_anchor_may_lie_in_any_way(method: Any) -> None:
    start, anchor = torch.randn(6, 4), torch.randn(6, 4)
    found = []
    for given_ in (anchor, transposed(anchor), torch.stack([anchor, anchor], -1)[..., 1], anchor.double()):
        p = nn.Parameter(start.clone())
        optimizer = method([p], lr=0.1, anchor=[given_])
        for t in range(4):
            p.grad = torch.sin(p.detach() + t)
            optimizer.step()
        found.append(p.detach())
    assert all(torch.equal(found[0], other) for other in found)


OVERLAPPING: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.zeros(3).expand(4, 3),
    "one number": lambda: torch.zeros(()).expand(5),
    "sliding windows": lambda: torch.zeros(9).unfold(0, 4, 1),
    "strides too short": lambda: torch.zeros(30).as_strided((4, 5), (3, 1)),
    "interlocking": lambda: torch.zeros(30).as_strided((4, 3), (2, 3)),
}


@pytest.mark.parametrize("kind", OVERLAPPING)
def test_memory_used_twice_is_refused_by_name(kind: str) -> None:
    p = nn.Parameter(OVERLAPPING[kind]())
    for method in METHODS:
        with pytest.raises(ValueError, match=r"head\.weight, of shape .* one place of memory .* clone\(\)"):
            method([("head.weight", p)])
        with pytest.raises(ValueError, match="parameter 0 of the group, of shape"):
            method([p])
    model = nn.Module()
    model.weight = p
    with pytest.raises(ValueError, match=r"weight, of shape .* one place of memory"):
        TPGM(model)


@every_method
def test_memory_that_became_shared_is_refused_before_a_step(method: Any) -> None:
    first, second = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4, 3))
    optimizer = method([("first", first), ("second", second)], lr=0.1)
    second.data = torch.ones(3).expand(4, 3)
    first.grad, second.grad = torch.ones(4, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match="second, of shape"):
        optimizer.step()
    assert torch.equal(first, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"table has the layout torch\.sparse_coo"):
        method([("table", torch.ones(2, 2).to_sparse().requires_grad_())])


@every_method
def test_an_anchor_that_moves_with_the_parameter_is_refused(method: Any) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"weight: the anchor shares memory .* clone\(\)"):
        method(model.named_parameters(), anchor=model.state_dict())
    big = torch.randn(4, 4)
    with pytest.raises(ValueError, match="shares memory"):
        method([nn.Parameter(big[:, :2])], anchor=[big[:, 1:3]])
    method([nn.Parameter(big[:, :2])], anchor=[big[:, 2:]])  # beside each other
    method(model.named_parameters(), anchor=copy.deepcopy(model.state_dict()))


# --- TPGM


class Slices(nn.Module):
    """A linear map and a vector that look into larger memory."""

    def __init__(self, weight: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(weight), nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.flatten(1).t() + self.shift


@pytest.mark.parametrize("norm", ["mars", "l2"])
@every_way
@every_layout
def test_updates_and_projections_leave_the_memory_beside_alone(
    kind: str, way: Way | None, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "WAY", way)
    if kind == "a vector with gaps":
        memory, look = torch.randn(7, 3), lambda m: m[:, 1:2]
    else:
        memory, look = LAYOUTS[kind]()
    line = torch.randn(30)
    model = Slices(look(memory), line[1 : 1 + 2 * len(look(memory)) : 2])
    plain = copy.deepcopy(model)
    plain.weight.data = plain.weight.data.clone(memory_format=torch.contiguous_format)
    plain.shift.data = plain.shift.data.clone()
    constraints = [TPGM(m, norm=norm, lr=0.1) for m in (model, plain)]
    guards = beside(memory, look), beside(line, lambda m: m[1 : 1 + 2 * len(model.shift) : 2])
    x = torch.randn(5, model.weight.flatten(1).shape[1])
    moves = [torch.randn_like(p, memory_format=torch.contiguous_format) for p in plain.parameters()]
    for m, constraint in zip((model, plain), constraints, strict=True):
        with torch.no_grad():
            for p, move in zip(m.parameters(), moves, strict=True):
                p.add_(move)
        for _ in range(3):
            constraint.update(lambda m=m: m(x).square().mean())
        constraint.project_()
    assert constraints[0].radii == pytest.approx(constraints[1].radii, rel=1e-4)
    assert min(constraints[0].ratios().values()) < 1
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(beside(memory, look), guards[0])
    assert torch.equal(beside(line, lambda m: m[1 : 1 + 2 * len(model.shift) : 2]), guards[1])


# --- any layout


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Shape, order of the dimensions in memory, gaps between the elements of each, and numbers before the first."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    order = tuple(draw(st.permutations(range(len(shape)))))
    gaps = tuple(draw(st.lists(st.sampled_from([0, 0, 1, 3]), min_size=len(shape), max_size=len(shape))))
    return shape, order, gaps, draw(st.integers(0, 4))


def strides_of(shape: tuple[int, ...], order: tuple[int, ...], gaps: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Strides, and how many numbers the view reaches over."""
    strides, reach = [0] * len(shape), 1
    for d, gap in zip(order, gaps, strict=True):
        strides[d] = reach + gap
        reach += strides[d] * (shape[d] - 1)
    return tuple(strides), reach


@settings(max_examples=150)
@given(
    parts=st.lists(views(), min_size=1, max_size=3),
    together=st.booleans(),
    dtypes=st.sampled_from([(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]),
    norm=st.sampled_from(["l2", "mars"]),
    way=st.sampled_from([None, "blocks", "grouped"]),
    seed=st.integers(0, 2**16),
)
def test_passes_equal_their_plain_twins_in_any_memory(
    parts: list[Any], together: bool, dtypes: tuple[torch.dtype, ...], norm: Norm, way: Way | None, seed: int
) -> None:
    """together: weights and anchors look into one storage, beside each other or interlocked."""
    generator = torch.Generator().manual_seed(seed)
    dtype, anchored = dtypes if not together else (dtypes[0],) * 2
    memory = torch.randn(20_000, generator=generator, dtype=torch.float64).to(dtype)
    free, at = torch.ones(20_000, dtype=torch.bool), 0
    weights, anchors, grads = list[Tensor](), list[Tensor](), list[Tensor]()
    for shape, order, gaps, before in parts:
        strides, reach = strides_of(shape, order, gaps)
        at += before
        weights.append(memory.as_strided(shape, strides, at))
        free.as_strided(shape, strides, at).fill_(False)
        interlocked = together and bool(free.as_strided(shape, strides, at + 1).all())
        at += 1 if interlocked else reach
        if together:
            anchors.append(memory.as_strided(shape, strides, at))
            at += reach
        else:
            anchors.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(anchored))
        grads.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        assert not share_memory(weights[-1], anchors[-1])
        check_parameter("weight", weights[-1])
    kept, copies, run = memory[free].clone(), [w.clone() for w in weights], Passes(norm, way)
    tight = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    deltas = [upcast(w) - upcast(a) for w, a in zip(weights, anchors, strict=True)]
    norms, products = run.measure(weights, anchors), run.dots(grads, weights, anchors)
    for n, d, g, delta in zip(norms, products, grads, deltas, strict=True):
        torch.testing.assert_close(n, row_norms(delta, norm), **tight)
        torch.testing.assert_close(d, as_rows(upcast(g) * delta, norm).sum(dim=1), **tight)
    before_ = [torch.randn(w.shape, generator=generator).to(upcast(w).dtype) for w in weights]
    moved = [b.clone() for b in before_]
    for d, n, g, b, delta, m in zip(
        *run.advance(grads, moved, weights, anchors), grads, before_, deltas, moved, strict=True
    ):
        torch.testing.assert_close(d, as_rows(upcast(g) * b, norm).sum(dim=1), **tight)
        torch.testing.assert_close(n, row_norms(delta, norm), **tight)
        torch.testing.assert_close(m, delta, **tight)
    ratios = [row_ratios(n, n.max() / 2) for n in norms]
    expected = [scale_rows(w, a, r, norm) for w, a, r in zip(copies, anchors, ratios, strict=True)]
    run.scale(weights, weights, anchors, ratios)
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w, e, **(tight if dtype != torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-2}))
    assert torch.equal(memory[free], kept)


@settings(max_examples=80)
@given(
    view=views(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    method=st.sampled_from(METHODS),
    way=st.sampled_from([None, "blocks", "grouped"]),
    seed=st.integers(0, 2**16),
)
def test_steps_are_those_of_a_contiguous_parameter_in_any_memory(
    view: Any, dtype: torch.dtype, method: Any, way: Way | None, seed: int
) -> None:
    shape, order, gaps, at = view
    strides, _ = strides_of(shape, order, gaps)
    memory = torch.randn(20_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    free = torch.ones(20_000, dtype=torch.bool)
    free.as_strided(shape, strides, at).fill_(False)
    kept = memory[free].clone()
    p = nn.Parameter(memory.as_strided(shape, strides, at))
    q = nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "WAY", way)
        optimizers = [method([w], lr=0.05) for w in (p, q)]
        for t in range(4):
            for w in (p, q):
                w.grad = torch.sin(3 * q.detach() + t)
            for optimizer in optimizers:
                optimizer.step()
    assert torch.equal(memory[free], kept)
    close = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(p.detach(), q.detach(), rtol=close, atol=close)


# --- what decides


def test_only_what_fits_is_taken() -> None:
    w, square = torch.randn(3, 4), torch.randn(4, 4)
    assert fits(w, w, w.clone())
    assert fits(w.t(), w.clone().t())
    assert fits(w, w.double())
    assert fits(torch.randn(4, 3, 1, 1), torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last))
    assert not fits(w, None)
    assert not fits(w, w.to_sparse())
    assert not fits(w.to_sparse(), w)
    assert not fits(w, w.t().contiguous().t())
    assert not fits(w, torch.zeros(()).expand(3, 4))
    assert not fits(w, torch.randn(4, 4)[:3, :].flatten()[:11])
    assert not fits(square[:, :2], square[:, :2].clone())
    assert not fits(w.to("meta"), w.to("meta"))
    assert not fits(torch.empty(0, 4), torch.empty(0, 4))
    assert not fits(square[:3], square[1:])  # shifted: what is written would be read again
    assert fits(square[:2], square[2:])
    assert not fits(w, torch._neg_view(w.clone()))
    assert not fits(w, w.view(torch.int32))  # the same place, read as another dtype


def test_what_is_dense() -> None:
    w = torch.randn(2, 3, 4)
    assert all(dense(t) for t in (w, w.permute(2, 0, 1), w[:1], w[1], torch.zeros(()), torch.zeros(0, 3)))
    assert not any(dense(t) for t in (w[:, :2], w[..., 1:], w[..., :1], w[0].expand(2, 3, 4), w[:, ::2]))


@pytest.mark.parametrize("overlap", ["whole", "part", "between"])
def test_two_parameters_in_one_memory_are_refused(overlap: str) -> None:
    """They would be projected, or stepped, twice: a radius of 1.76 left a distance of 0.87."""
    flat = torch.randn(12)
    looks = {"whole": (flat[:6], flat[:6]), "part": (flat[:8], flat[4:]), "between": (flat[::2], flat[4:5])}
    model = nn.ParameterDict({name: nn.Parameter(look) for name, look in zip("ab", looks[overlap], strict=True)})
    with pytest.raises(ValueError, match=r"a and b share memory.*clone"):
        TPGM(model)
    for method in METHODS:
        with pytest.raises(ValueError, match="share memory"):
            method(model.parameters())
        optimizer = method([model["a"]])
        with pytest.raises(ValueError, match="share memory"):
            optimizer.add_param_group({"params": [model["b"]]})
    apart = nn.ParameterDict({"a": nn.Parameter(flat[::2]), "b": nn.Parameter(flat[1::2])})
    TPGM(apart)  # interlocked, but no number is in both
    AdamP(apart.parameters())


@every_method
@pytest.mark.parametrize("change", ["smaller", "larger", "type"])
def test_a_parameter_that_has_changed_since_is_refused_before_a_step(method: Any, change: str) -> None:
    """The fused kernel went on over the end of the old moments: the heap was corrupted and the interpreter aborted."""
    p = nn.Parameter(torch.randn(5, 5))
    optimizer = method([p], lr=0.1)
    p.data = {"smaller": torch.ones(3, 3), "larger": torch.ones(64, 64), "type": torch.ones(5, 5).double()}[change]
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"another shape or type.*anew"):
        optimizer.step()
    assert bool((p == 1).all())
