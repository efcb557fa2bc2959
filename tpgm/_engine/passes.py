"""Fast passes over weights and anchor: measure, scale, multiply with the gradient. Their plain twins are in projection.

This module alone chooses how a pass is computed. On a CPU machine code reads every number once
(``tpgm._engine.numba``, where numba is installed). Otherwise a tensor is gone through in blocks of rows that stay in
cache between one operation and the next; nothing of a weight's size is allocated, for fresh memory costs more there
than the arithmetic. Elsewhere tensors are laid end to end in groups of bounded size, so that the number of kernels does
not grow with the number of tensors. Tensors that a fast way does not fit, by ``layout.fits``, go by the plain twins.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from tpgm._engine.layout import fits
from tpgm.projection import NORMS, Norm, as_rows, count_rows, row_norms, scale_rows, upcast

BLOCK = 1 << 18  # numbers: of 2¹⁶ to 2²⁰ about the fastest, on one thread and on two
GROUP = 1 << 26  # numbers in a group: 256 MiB of float32

Way = Literal["compiled", "grouped", "blocks"]
WAY: Way | None = None  # forces one way for passes that name none: for tests and measurements

_broken = False  # numba failed, and a warning has said so


@cache
def kernels(dtype: torch.dtype = torch.float32) -> Any:
    """``tpgm._engine.numba``, ready for this dtype: where numba is installed and TPGM_COMPILED is not 0; else None.

    If the kernels cannot be made, loaded or trusted, a warning says so once and torch's operations serve.
    """
    global _broken
    if _broken or os.environ.get("TPGM_COMPILED", "1") == "0" or find_spec("numba") is None:
        return None
    try:
        module = import_module("tpgm._engine.numba")
        module.check(dtype)
    except Exception as error:
        _broken = True
        warnings.warn(
            f"numba's machine code cannot be used ({type(error).__name__}: {str(error)[:200]}); torch's operations do "
            "the same, more slowly. Delete numba's cache (tpgm/_engine/__pycache__ or ~/.cache/numba), or set "
            "NUMBA_CACHE_DIR to a folder that can be written; TPGM_COMPILED=0 switches the machine code off.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return module


class Passes:
    """The passes for one norm; keeps its scratch memory, a block for each dtype.

    way: "compiled", on a CPU, where it fits; "grouped", tensors end to end; or "blocks". None, the default, chooses
    (unless ``WAY`` does): "grouped" for tensors that are not on a CPU, else "compiled" where it fits, else "blocks".
    Weights, anchors, gradients and outputs come as sequences in one order; one value a row as tensors of shape (rows,),
    in float32, float64 for float64 weights. An anchor may have another floating-point dtype or device than its weight.
    """

    def __init__(self, norm: Norm, way: Way | None = None) -> None:
        self.norm, self.way = norm, way or WAY
        self._squares = NORMS[norm].power == 2
        self._scratch: dict[torch.dtype, Tensor] = {}

    @torch.no_grad()
    def measure(self, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
        """Row norms of the displacements."""
        found: list[Tensor] = []
        for way, run in self._runs(weights, anchors):
            w, a = weights[run], anchors[run]
            if way == "compiled":
                found += kernels(w[0].dtype).measure(self.norm, w, a)
            elif way == "grouped":
                delta = self._group_delta(w, a)
                found += self._group_norms(delta, w)
            else:
                found.append(self._measure_one(w[0], a[0]))
        return found

    @torch.no_grad()
    def scale(
        self, outs: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor], ratios: Sequence[Tensor]
    ) -> None:
        """``W⁰_i + α_i (W_i − W⁰_i)`` into `outs`, which may be the weights; rows with ratio 1 keep their bits."""
        for way, run in self._runs(outs, weights, anchors):
            into, w, a, alpha = outs[run], weights[run], anchors[run], ratios[run]
            if way == "compiled":
                kernels(w[0].dtype).scale(self.norm, into, w, a, alpha)
            elif way == "grouped":
                self._scale_group(into, w, a, alpha)
            else:
                self._scale_one(into[0], w[0], a[0], alpha[0])

    @torch.no_grad()
    def dots(
        self, gradients: Sequence[Tensor | None], weights: Sequence[Tensor], anchors: Sequence[Tensor]
    ) -> list[Tensor]:
        """``⟨g_i, W_i − W⁰_i⟩`` for every row; zeros where there is no gradient."""
        found: list[Tensor] = []
        for way, run in self._runs(weights, anchors, gradients):
            g, w, a = gradients[run], weights[run], anchors[run]
            if way == "compiled":
                found += kernels(w[0].dtype).dots(self.norm, [y for y in g if y is not None], w, a)
            elif way == "grouped":
                dense = [torch.zeros_like(x) if y is None else _dense(y) for x, y in zip(w, g, strict=True)]
                found += self._group_rows(self._group_delta(w, a).mul_(_end_to_end(dense)), w)
            else:
                found.append(self._dots_one(g[0], w[0], a[0]))
        return found

    @torch.no_grad()
    def advance(
        self,
        gradients: Sequence[Tensor],
        displacements: Sequence[Tensor],
        weights: Sequence[Tensor],
        anchors: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """``⟨g_i, D_i⟩`` with the displacements D of before; then D becomes W − W⁰, of which the norms.

        displacements: in float32, or float64 for float64 weights; written to.
        """
        products, norms = list[Tensor](), list[Tensor]()
        for way, run in self._runs(displacements, weights, anchors, gradients):
            g, d, w, a = gradients[run], displacements[run], weights[run], anchors[run]
            if way == "compiled":
                found, lengths = kernels(d[0].dtype).advance(self.norm, d, g, w, a)
                products += found
                norms += lengths
            elif way == "grouped":
                products += self._group_rows(_end_to_end(d).mul_(_end_to_end(g)), w)
                delta = self._group_delta(w, a)
                parts = torch.split(delta, [x.numel() for x in d])
                torch._foreach_copy_(list(d), [part.view(x.shape) for part, x in zip(parts, d, strict=True)])
                norms += self._group_norms(delta, w)
            else:
                one, weight, anchor = d[0], upcast(w[0]), upcast(a[0])
                products.append(as_rows(upcast(g[0]) * one, self.norm).sum(dim=1))
                torch.sub(weight, anchor, out=one)
                norms.append(row_norms(one, self.norm))
        return products, norms

    # --- one tensor, in blocks

    def _measure_one(self, w: Tensor, a: Tensor) -> Tensor:
        views = self._blocked(w, a)
        if views is None:
            return row_norms(upcast(w) - upcast(a.to(w.device)), self.norm)
        norms = w.new_empty(len(views[0]), dtype=_wide(w.dtype))
        power, total = (2 if self._squares else 1), 0.0
        for rows, (wb, ab) in self._blocks(views):
            found = torch.linalg.vector_norm(self._delta(wb, ab), power, dim=1)
            if len(norms) > 1:
                norms[rows] = found
            else:
                total += float(found) ** power  # in float64, where small squares do not vanish
        return norms if len(norms) > 1 else norms.fill_(total ** (1 / power))

    def _scale_one(self, out: Tensor, w: Tensor, a: Tensor, ratios: Tensor) -> None:
        views = self._blocked(out, w, a)
        if views is None:
            out.copy_(scale_rows(w, a.to(w.device), ratios, self.norm))
            return
        alpha = ratios.unsqueeze(1)
        if bool((ratios >= 1).all()):
            if out.data_ptr() != w.data_ptr():
                out.copy_(w)
        elif w.dtype == a.dtype == ratios.dtype:
            start, end = views[2], views[1]
            torch.lerp(start, end, float(ratios) if len(ratios) == 1 else alpha, out=views[0])
        else:
            for rows, (ob, wb, ab) in self._blocks(views):
                moved = self._delta(wb, ab).mul_(alpha[rows]).add_(ab)
                ob.copy_(torch.where(alpha[rows] < 1, moved, wb))

    def _dots_one(self, g: Tensor | None, w: Tensor, a: Tensor) -> Tensor:
        wide = _wide(w.dtype)
        if g is None:
            return torch.zeros(count_rows(w, self.norm), dtype=wide, device=w.device)
        g = _dense(g)
        views = self._blocked(w, a, g)
        if views is None:
            return as_rows(upcast(g) * (upcast(w) - upcast(a.to(w.device))), self.norm).sum(dim=1)
        sums = w.new_zeros(len(views[0]), dtype=wide)
        total = 0.0
        for rows, (wb, ab, gb) in self._blocks(views):
            delta = self._delta(wb, ab)
            if len(sums) > 1:
                _sum(delta.mul_(gb), rows, sums)
            else:
                total += float(torch.dot(delta[0], gb[0].to(wide)))
        return sums if len(sums) > 1 else sums.fill_(total)

    def _blocked(self, *tensors: Tensor) -> list[Tensor] | None:
        """Each tensor as (rows, columns) in the order of its memory; None unless all lie alike, rows together."""
        first = tensors[0]
        if first.device.type != "cpu" or not self._fit(*tensors):
            return None
        rows = count_rows(first, self.norm)
        columns = first.numel() // rows
        return [t.as_strided((rows, columns), (columns, 1)) for t in tensors]

    def _fit(self, written: Tensor, *read: Tensor | None) -> bool:
        """Whether each is a block of memory, all in one order, in which every row is a block."""
        if not fits(written, *read):
            return False
        rows = count_rows(written, self.norm)
        return rows == 1 or written.stride(0) * rows == written.numel()

    def _blocks(self, views: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        rows, columns = views[0].shape
        if rows == 1:
            for start in range(0, columns, BLOCK):
                yield slice(0, 1), [v[:, start : start + BLOCK] for v in views]
            return
        step = max(1, BLOCK // columns)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            yield part, [v[part] for v in views]

    def _delta(self, w: Tensor, a: Tensor) -> Tensor:
        wide = _wide(w.dtype)
        room = self._room(w, wide)
        return torch.sub(w, a, out=room) if w.dtype == wide else room.copy_(w).sub_(a)

    def _room(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        room = self._scratch.get(dtype)
        if room is None or room.numel() < like.numel():  # a single row may be longer than a block
            room = self._scratch[dtype] = torch.empty(max(BLOCK, like.numel()), dtype=dtype)
        return room[: like.numel()].view(like.shape)

    # --- many tensors at once

    def _runs(
        self, written: Sequence[Tensor], *read: Sequence[Tensor] | Sequence[Tensor | None]
    ) -> Iterator[tuple[Way, slice]]:
        """Neighbouring tensors to be taken together, in one way; single ones for "blocks"."""
        start = 0
        while start < len(written):
            first = written[start]
            way, size = self._way(first, *(x[start] for x in read)), first.numel()
            end = start + 1
            while way != "blocks" and end < len(written):
                next_ = written[end]
                size += next_.numel()
                if (next_.device, next_.dtype) != (first.device, first.dtype) or (way == "grouped" and size > GROUP):
                    break
                if self._way(next_, *(x[end] for x in read)) != way:
                    break
                end += 1
            yield way, slice(start, end)
            start = end

    def _way(self, written: Tensor, *read: Tensor | None) -> Way:
        if self.way == "grouped" or (self.way is None and written.device.type != "cpu"):
            return "grouped"
        dtype = written.dtype
        if self.way == "blocks" or written.device.type != "cpu" or dtype not in (torch.float32, torch.float64):
            return "blocks"
        if any(t is None or t.dtype != dtype for t in read) or not self._fit(written, *read):
            return "blocks"
        return "compiled" if not torch.compiler.is_compiling() and kernels(dtype) is not None else "blocks"

    def _group_delta(self, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        return upcast(_end_to_end(weights)).sub_(_end_to_end(anchors).to(weights[0].device, non_blocking=True))

    def _group_rows(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the rows of tensors laid end to end."""
        counts = [count_rows(w, self.norm) for w in like]
        if not any(counts):  # torch would look for the shortest of no rows
            return [flat.new_zeros(0) for _ in counts]
        return list(torch.split(torch.segment_reduce(flat, "sum", lengths=self._lengths(like, counts)), counts))

    def _group_norms(self, delta: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Row norms of displacements laid end to end, which are overwritten."""
        sums = self._group_rows(delta.square_() if self._squares else delta.abs_(), like)
        return list(torch._foreach_sqrt(sums)) if self._squares else sums

    def _lengths(self, like: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        columns = [w.numel() // max(1, rows) for w, rows in zip(like, counts, strict=True)]
        return torch.tensor(columns).repeat_interleave(torch.tensor(counts)).to(like[0].device, non_blocking=True)

    def _scale_group(
        self, outs: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor], ratios: Sequence[Tensor]
    ) -> None:
        sizes = [w.numel() for w in weights]
        lengths = self._lengths(weights, [len(r) for r in ratios])
        alpha = torch.cat(list(ratios)).repeat_interleave(lengths, output_size=sum(sizes))
        end = upcast(_end_to_end(weights))
        start = upcast(_end_to_end(anchors).to(end.device, non_blocking=True))
        parts = torch.split(torch.where(alpha < 1, start + alpha * (end - start), end), sizes)
        torch._foreach_copy_(list(outs), [part.view(out.shape) for part, out in zip(parts, outs, strict=True)])


def _sum(block: Tensor, rows: slice, out: Tensor) -> None:
    torch.sum(block, dim=1, out=out[rows])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
