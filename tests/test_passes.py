"""Fast passes over weights and anchors against their plain twins in tpgm.projection, for every layout and dtype."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import tpgm
import tpgm._engine.passes
from tpgm._engine.passes import Passes, Way
from tpgm.projection import NORMS, Measure, Norm, as_rows, project, row_norms, row_ratios, scale_rows, upcast

SHAPES = ((), (40,), (5, 6), (4, 3, 3, 3), (6, 1, 2), (3, 50), (1, 9))


def tensors(kind: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    if kind == "channels last":
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in found]
    if kind == "strided":  # transposed, and every second element of a larger tensor
        return [t.t().contiguous().t() if t.dim() == 2 else torch.stack([t, t], -1)[..., 0] for t in found]
    return found


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("kind", ["contiguous", "channels last", "strided", "zero"])
@pytest.mark.parametrize(
    ("dtype", "anchored"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_equal_to_the_plain_twins(
    norm: Norm, dtype: torch.dtype, anchored: torch.dtype, kind: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpgm._engine.passes, "BLOCK", 16)  # several blocks, and rows longer than one
    monkeypatch.setattr(tpgm._engine.passes, "GROUP", 60)
    if way == "compiled":
        pytest.importorskip("numba")
    weights = tensors(kind, dtype, 1)
    anchors: list[Tensor] = tensors(kind, anchored, 2)
    if kind == "zero":
        anchors = [torch.zeros((), dtype=anchored).expand(w.shape) for w in weights]
    gradients: list[Tensor | None] = [*tensors("contiguous", dtype, 3)]  # laid out in another way, one is missing
    gradients[2] = None
    passes = Passes(norm, way)
    norms, products = passes.measure(weights, anchors), passes.dots(gradients, weights, anchors)
    ratios = [row_ratios(n, n.max() / 2) for n in norms]
    ratios[3][-1] = 1.0 if norm == "mars" else ratios[3][-1]
    ratios[5] = torch.ones_like(ratios[5])
    outs = [torch.empty_like(w) for w in weights]
    passes.scale(outs, weights, anchors, ratios)
    tight = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}
    for w, a, g, n, d, r, out in zip(weights, anchors, gradients, norms, products, ratios, outs, strict=True):
        delta = upcast(w) - upcast(a)
        torch.testing.assert_close(n, row_norms(delta, norm), **tight)
        none = torch.zeros_like(w) if g is None else g
        torch.testing.assert_close(d, as_rows(upcast(none) * delta, norm).sum(dim=1), **tight)
        expected = scale_rows(w, a, r, norm)
        rounding = tight if dtype in (torch.float32, torch.float64) else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(out, expected, **rounding)
    assert torch.equal(outs[5], weights[5])  # ratio 1: bit for bit
    assert norm == "l2" or torch.equal(outs[3][-1], weights[3][-1])
    copies = [w.clone() for w in weights]
    passes.scale(copies, copies, anchors, ratios)  # in place
    for out, again in zip(outs, copies, strict=True):
        assert torch.equal(out, again)


def test_launches_do_not_grow_with_the_number_of_tensors() -> None:
    """Laid end to end, 4 tensors and 64 take as many operations on numbers of weights' size."""

    def count(number: int) -> int:
        weights = [torch.randn(8, 4) for _ in range(number)]
        anchors = [torch.randn(8, 4) for _ in range(number)]
        passes = Passes("mars", "grouped")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            norms = passes.measure(weights, anchors)
            passes.dots(weights, weights, anchors)
        assert len(norms) == number
        views = ("aten::reshape", "aten::view", "aten::as_strided", "aten::_reshape_alias", "aten::narrow")
        return sum(e.count for e in profile.key_averages() if e.key not in views and "slice" not in e.key)

    assert count(4) == count(64)


def test_sparse_gradients_and_long_rows() -> None:
    w, a = torch.randn(9, 3), torch.randn(9, 3)
    g = torch.sparse_coo_tensor([[1, 4]], torch.ones(2, 3), (9, 3), check_invariants=True)
    (found,) = Passes("mars").dots([g], [w], [a])
    torch.testing.assert_close(found, (g.to_dense() * (w - a)).sum(dim=1))
    long, start = torch.randn(2, 100_000, dtype=torch.float64), torch.randn(2, 100_000, dtype=torch.float64)
    torch.testing.assert_close(Passes("mars").measure([long], [start])[0], (long - start).abs().sum(dim=1))
    torch.testing.assert_close(Passes("l2").measure([long], [start])[0], (long - start).norm().reshape(1))


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("kind", ["contiguous", "channels last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_advance_equals_its_pieces(
    norm: Norm, dtype: torch.dtype, kind: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpgm._engine.passes, "BLOCK", 16)
    monkeypatch.setattr(tpgm._engine.passes, "GROUP", 200)
    weights, anchors, gradients, moved = (tensors(kind, dtype, seed) for seed in range(4))
    before = [upcast(d).clone() for d in moved]
    after = [d.clone() for d in before]
    found = Passes(norm, way).advance(gradients, after, weights, anchors)
    tight = {"rtol": 2e-6, "atol": 2e-6}
    for w, a, g, old, new, products, norms in zip(weights, anchors, gradients, before, after, *found, strict=True):
        delta = upcast(w) - upcast(a)
        torch.testing.assert_close(products, as_rows(upcast(g) * old, norm).sum(dim=1), **tight)
        torch.testing.assert_close(norms, row_norms(delta, norm), **tight)
        assert torch.equal(new, delta)


@pytest.mark.parametrize("way", get_args(Way))
def test_a_new_norm_is_one_line(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Euclidean norm of each row: passes and radii know what to do from the table in ``tpgm.projection`` alone."""
    if way == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setitem(NORMS, "rows-l2", Measure(by_row=True, power=2))
    monkeypatch.setattr(tpgm._engine.passes, "WAY", way)
    norm: Any = "rows-l2"
    model = nn.Linear(6, 4, dtype=torch.float64)
    start = {name: p.detach() - torch.randn_like(p) for name, p in model.named_parameters()}
    constraint = tpgm.TPGM(model, anchor=start, norm=norm, lr=0.1)
    moved = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(5, 6, dtype=torch.float64)
    constraint.update(lambda: model(x).square().sum())
    constraint.project_()
    assert torch.allclose(
        row_norms(moved["weight"] - start["weight"], norm), (moved["weight"] - start["weight"]).norm(dim=1)
    )
    for name, p in model.named_parameters():
        expected = project(moved[name], start[name], constraint.radii[name], norm)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-6)
        lengths = row_norms(p.detach() - start[name], norm)
        assert lengths.max() <= constraint.radii[name] * (1 + 1e-6)
