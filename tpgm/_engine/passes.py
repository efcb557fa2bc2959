"""Fast passes over weights and anchor: measure, scale, multiply with the gradient. Their plain twins are in projection.

On a CPU they are machine code that reads every number once (``tpgm._engine.compiled``, where numba is installed).
Otherwise a tensor is gone through in blocks of rows that stay in cache between one operation and the next; nothing of
a weight's size is allocated, for fresh memory costs more there than the arithmetic. Elsewhere tensors are laid end
to end in groups of bounded size, so that the number of kernels does not grow with the number of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from tpgm._engine import compiled
from tpgm.projection import Norm, as_rows, row_norms, scale_rows, upcast

BLOCK = 1 << 18  # numbers: of 2¹⁶ to 2²⁰ about the fastest, on one thread and on two
GROUP = 1 << 26  # numbers in a group: 256 MiB of float32

Way = Literal["compiled", "grouped", "blocks"]


class Passes:
    """The three passes for one norm; keeps its scratch memory, a block for each dtype.

    way: "compiled", on a CPU, where it fits; "grouped", tensors end to end; or "blocks". None, the default, chooses:
    "grouped" for tensors that are not on a CPU, else "compiled" where it fits, else "blocks".
    Weights, anchors, gradients and outputs come as sequences in one order; one value a row as tensors of shape (rows,),
    in float32, float64 for float64 weights. An anchor may have another floating-point dtype or device than its weight.
    """

    def __init__(self, norm: Norm, way: Way | None = None) -> None:
        self.norm, self.way = norm, way
        self._scratch: dict[torch.dtype, Tensor] = {}

    @torch.no_grad()
    def measure(self, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
        """Row norms of the displacements."""
        found: list[Tensor] = []
        for way, run in self._runs(weights, anchors):
            w, a = weights[run], anchors[run]
            if way == "compiled":
                found += compiled.measure(self.norm, w, a)
            elif way == "grouped":
                delta = self._group_delta(w, a)
                squares = self.norm == "l2"
                sums = self._group_rows(delta.square_() if squares else delta.abs_(), w)
                found += torch._foreach_sqrt(sums) if squares else sums
            else:
                found.append(self._measure_one(w[0], a[0]))
        return found

    @torch.no_grad()
    def scale(
        self, outs: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor], ratios: Sequence[Tensor]
    ) -> None:
        """``W⁰_i + α_i (W_i − W⁰_i)`` into `outs`, which may be the weights; rows with ratio 1 keep their bits."""
        for way, run in self._runs(weights, anchors, outs):
            into, w, a, alpha = outs[run], weights[run], anchors[run], ratios[run]
            if way == "compiled":
                compiled.scale(self.norm, into, w, a, alpha)
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
                found += compiled.dots(self.norm, [y for y in g if y is not None], w, a)
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
        for way, run in self._runs(weights, anchors, displacements, gradients):
            g, d, w, a = gradients[run], displacements[run], weights[run], anchors[run]
            if way == "grouped":
                products += self._group_rows(_end_to_end(d).mul_(_end_to_end(g)), w)
                delta = self._group_delta(w, a)
                parts = torch.split(delta, [x.numel() for x in d])
                torch._foreach_copy_(list(d), [part.view(x.shape) for part, x in zip(parts, d, strict=True)])
                sums = self._group_rows(delta.square_() if self.norm == "l2" else delta.abs_(), w)
                norms += torch._foreach_sqrt(sums) if self.norm == "l2" else sums
            else:
                for tensors in zip(g, d, w, a, strict=True):
                    for found, value in zip((products, norms), self._advance_one(*tensors), strict=True):
                        found.append(value)
        return products, norms

    # --- one tensor, in blocks

    def _measure_one(self, w: Tensor, a: Tensor) -> Tensor:
        views = self._blocked(w, a)
        if views is None:
            return row_norms(upcast(w) - upcast(a.to(w.device)), self.norm)
        norms = w.new_empty(len(views[0]), dtype=_wide(w.dtype))
        total = 0.0
        for rows, (wb, ab) in self._blocks(views):
            delta = self._delta(wb, ab)
            if len(norms) > 1:
                _sum(delta.abs_(), rows, norms)
            elif self.norm == "mars":
                total += float(delta.abs_().sum(dim=1))
            else:
                total += float(torch.linalg.vector_norm(delta)) ** 2
        return norms if len(norms) > 1 else norms.fill_(total if self.norm == "mars" else total**0.5)

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
            return torch.zeros(w.shape[0] if self.norm == "mars" and w.dim() > 1 else 1, dtype=wide, device=w.device)
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

    def _advance_one(self, g: Tensor, displacement: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        views = self._blocked(displacement, w, a, g)
        if views is None or len({w.dtype, a.dtype, g.dtype, displacement.dtype}) > 1:
            products = as_rows(upcast(g) * displacement, self.norm).sum(dim=1)
            torch.sub(upcast(w), upcast(a), out=displacement)
            return products, row_norms(displacement, self.norm)
        products, norms = w.new_zeros(2, len(views[0]))
        total = squares = 0.0
        for rows, (db, wb, ab, gb) in self._blocks(views):
            room = self._room(db, db.dtype)
            if len(norms) > 1:
                _sum(torch.mul(db, gb, out=room), rows, products)
            else:
                total += float(torch.dot(db[0], gb[0]))
            torch.sub(wb, ab, out=db)
            if self.norm == "l2":
                squares += float(torch.linalg.vector_norm(db)) ** 2
            elif len(norms) > 1:
                _sum(torch.abs(db, out=room), rows, norms)
            else:
                squares += float(torch.abs(db, out=room).sum(dim=1))
        if len(norms) == 1:
            products.fill_(total)
            norms.fill_(squares**0.5 if self.norm == "l2" else squares)
        return products, norms

    def _blocked(self, *tensors: Tensor) -> list[Tensor] | None:
        """Each tensor as (rows, columns) in the order of its memory; None unless all lie alike, rows together."""
        first = tensors[0]
        if not first.numel():
            return None
        for t in tensors:
            if t.device.type != "cpu" or t.stride() != first.stride() or t.shape != first.shape:
                return None
        last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
        if not (first.is_contiguous() or last):
            return None
        rows = first.shape[0] if self.norm == "mars" and first.dim() > 1 else 1
        columns = first.numel() // rows
        return [t.as_strided((rows, columns), (columns, 1)) for t in tensors]

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
        self, weights: Sequence[Tensor], anchors: Sequence[Tensor], *others: Sequence[Tensor | None]
    ) -> Iterator[tuple[Way, slice]]:
        """Neighbouring tensors to be taken together, in one way; single ones for "blocks"."""
        start = 0
        while start < len(weights):
            first = weights[start]
            way, size = self._way(*(x[start] for x in (weights, anchors, *others))), first.numel()
            end = start + 1
            while way != "blocks" and end < len(weights):
                next_ = weights[end]
                size += next_.numel()
                if (next_.device, next_.dtype) != (first.device, first.dtype) or (way == "grouped" and size > GROUP):
                    break
                if self._way(*(x[end] for x in (weights, anchors, *others))) != way:
                    break
                end += 1
            yield way, slice(start, end)
            start = end

    def _way(self, *tensors: Tensor | None) -> Way:
        weight = tensors[0]
        if weight is None:
            return "blocks"
        if self.way == "grouped" or (self.way is None and weight.device.type != "cpu"):
            return "grouped"
        return "compiled" if self.way != "blocks" and compiled.fit(*tensors) else "blocks"

    def _group_delta(self, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
        return upcast(_end_to_end(weights)).sub_(_end_to_end(anchors).to(weights[0].device, non_blocking=True))

    def _group_rows(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the rows of tensors laid end to end."""
        counts = [w.shape[0] if self.norm == "mars" and w.dim() > 1 else 1 for w in like]
        return list(torch.split(torch.segment_reduce(flat, "sum", lengths=self._lengths(like, counts)), counts))

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
