"""Machine code for the passes on a CPU, made by numba: one reading of the numbers where torch would make several.

``tpgm._engine.passes`` alone imports this, where numba is installed, and gives it tensors that fit: see ``Passes``.
Tensors come as addresses, cut into pieces: piece k is `length[k]` neighbouring numbers of tensor `tensor[k]` from
number `start[k]` on, all in the row `row[k]` of the rows of all tensors. `like` is an empty array of the numbers' type.
Sums over a piece go into one float64 a piece, so that no result depends on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray
from torch import Tensor

from tpgm.projection import NORMS, Norm, as_rows, count_rows, row_norms, scale_rows

PIECE = 1 << 14  # numbers in a piece
SHARE = 1 << 20  # numbers in a thread's share of the work, at least
SHARES = 4  # shares a thread gets in turn, so that one whose core is busy with something else gets less to do

Kernel = Callable[..., None]


# --- kernels: each is one function, for what is called may be inlined or not, cold or from the cache, with other bits


def _compiled(function: Kernel) -> Kernel:
    """Sums may be reordered; that NaN and infinity occur is not assumed away. Other Python threads run meanwhile."""
    fast = {"reassoc", "contract", "nsz"}
    made: Kernel = njit(cache=True, nogil=True, error_model="numpy", fastmath=fast)(function)
    return made


def _pointer_code(context: Any, address: Any, like: Any) -> Any:
    to: Any = types.CPointer  # whose annotations mypy does not find
    pointer = to(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


_pointer: Any = intrinsic(_pointer_code)


@_compiled
def _measure(low: Any, high: Any, like: Any, pieces: Any, weights: Any, anchors: Any, squares: Any, sums: Any) -> None:
    tensor, start, length, _ = pieces
    for k in range(low, high):
        t, offset, n = tensor[k], start[k] * like.itemsize, length[k]
        w = carray(_pointer(weights[t] + offset, like), n)
        a = carray(_pointer(anchors[t] + offset, like), n)
        if squares:  # in float64: squares of small displacements would vanish
            total = 0.0
            for i in range(n):
                total += np.float64(w[i] - a[i]) ** 2
            sums[k] = total
        else:
            rough = like.dtype.type(0)
            for i in range(n):
                rough += abs(w[i] - a[i])
            sums[k] = rough


@_compiled
def _dots(low: Any, high: Any, like: Any, pieces: Any, grads: Any, weights: Any, anchors: Any, sums: Any) -> None:
    tensor, start, length, _ = pieces
    for k in range(low, high):
        t, offset, n = tensor[k], start[k] * like.itemsize, length[k]
        g = carray(_pointer(grads[t] + offset, like), n)
        w = carray(_pointer(weights[t] + offset, like), n)
        a = carray(_pointer(anchors[t] + offset, like), n)
        total = like.dtype.type(0)
        for i in range(n):
            total += g[i] * (w[i] - a[i])
        sums[k] = total


@_compiled
def _scale(low: Any, high: Any, like: Any, pieces: Any, outs: Any, weights: Any, anchors: Any, ratios: Any) -> None:
    tensor, start, length, row = pieces
    for k in range(low, high):
        t, offset, n, ratio = tensor[k], start[k] * like.itemsize, length[k], ratios[row[k]]
        out = carray(_pointer(outs[t] + offset, like), n)
        w = carray(_pointer(weights[t] + offset, like), n)
        a = carray(_pointer(anchors[t] + offset, like), n)
        if ratio < 1:
            for i in range(n):
                out[i] = a[i] + ratio * (w[i] - a[i])
        elif outs[t] != weights[t]:
            for i in range(n):
                out[i] = w[i]


@_compiled
def _advance(
    low: Any, high: Any, like: Any, pieces: Any, moved: Any, grads: Any, weights: Any, anchors: Any,
    squares: Any, products: Any, sums: Any,
) -> None:  # fmt: skip
    tensor, start, length, _ = pieces
    for k in range(low, high):
        t, offset, n = tensor[k], start[k] * like.itemsize, length[k]
        d = carray(_pointer(moved[t] + offset, like), n)
        g = carray(_pointer(grads[t] + offset, like), n)
        w = carray(_pointer(weights[t] + offset, like), n)
        a = carray(_pointer(anchors[t] + offset, like), n)
        product, rough, total = like.dtype.type(0), like.dtype.type(0), 0.0
        if squares:
            for i in range(n):
                product += g[i] * d[i]
                d[i] = w[i] - a[i]
                total += np.float64(d[i]) ** 2
        else:
            for i in range(n):
                product += g[i] * d[i]
                d[i] = w[i] - a[i]
                rough += abs(d[i])
        products[k] = product
        sums[k] = total if squares else rough


# --- how tensors are cut, and shared out


class Table(NamedTuple):
    """Tensors cut into pieces.

    pieces: tensor, start, length and row of each. firsts: the first piece of each row. rows: how many each tensor has.
    shares: ranges of pieces, of about equal work.
    """

    pieces: tuple[np.ndarray[Any, Any], ...]
    firsts: np.ndarray[Any, Any]
    rows: list[int]
    shares: list[tuple[int, int]]


@lru_cache(maxsize=64)
def _table(shapes: tuple[tuple[int, int], ...], threads: int) -> Table:
    """For tensors of these rows and columns."""
    rows, columns = np.array(shapes, dtype=np.int64).T
    cut = -(-columns // PIECE)  # pieces a row
    row_tensor = np.repeat(np.arange(len(rows)), rows)
    row_within = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    row = np.repeat(np.arange(rows.sum()), cut[row_tensor])
    tensor = row_tensor[row]
    firsts = np.cumsum(cut[row_tensor]) - cut[row_tensor]
    within = (np.arange(len(row)) - firsts[row]) * PIECE  # where the piece starts in its row
    length = np.minimum(PIECE, columns[tensor] - within)
    ends = np.cumsum(length)
    count = min(SHARES * threads, int(ends[-1]) // SHARE) if threads > 1 else 1
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, count) / max(count, 1))
    shares = [(int(a), int(b)) for a, b in pairwise([0, *inner, len(row)]) if a < b]
    return Table((tensor, row_within[row] * columns[tensor] + within, length, row), firsts, rows.tolist(), shares)


@lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of our own; a forked process, which has another number, starts its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tpgm")


def _run(kernel: Kernel, norm: Norm, tensors: Sequence[Sequence[Tensor]], *rest: Any, sums: int) -> list[list[Tensor]]:
    """Call the kernel with the addresses of the tensors and `rest`; returns the row sums of each of its `sums`."""
    first, threads = tensors[0], torch.get_num_threads()
    rows = [count_rows(t, norm) for t in first]
    table = _table(tuple((r, t.numel() // r) for r, t in zip(rows, first, strict=True)), threads)
    like = np.empty(0, dtype=np.float64 if first[0].dtype == torch.float64 else np.float32)
    found = np.empty((sums, len(table.pieces[0])))
    arguments = [*(np.array([t.data_ptr() for t in each], dtype=np.int64) for each in tensors), *rest, *found]

    # it holds the tensors: an interrupt must not free memory in which a thread still writes
    def share(low: int, high: int, held: Sequence[Sequence[Tensor]] = tensors) -> None:
        kernel(low, high, like, table.pieces, *arguments)

    if len(table.shares) == 1:
        share(*table.shares[0])
    else:
        pool = _pool(os.getpid(), threads)
        running = [pool.submit(share, *ends) for ends in table.shares]
        try:
            for future in running:
                future.result()
        finally:
            wait(running)
    whole = np.add.reduceat(found, table.firsts, axis=1)
    if sums and kernel in (_measure, _advance) and NORMS[norm].power == 2:
        np.sqrt(whole[-1], out=whole[-1])
    return [list(torch.split(torch.from_numpy(of.astype(like.dtype)), table.rows)) for of in whole]


# --- the passes


def measure(norm: Norm, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    """Row norms of the displacements, as ``Passes.measure``."""
    return _run(_measure, norm, [weights, anchors], NORMS[norm].power == 2, sums=1)[0]


def dots(norm: Norm, gradients: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    """Row products of gradient and displacement, as ``Passes.dots``."""
    return _run(_dots, norm, [gradients, weights, anchors], sums=1)[0]


def advance(
    norm: Norm,
    displacements: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    anchors: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Row products with the displacements of before, and norms of the new ones, as ``Passes.advance``."""
    tensors = [displacements, gradients, weights, anchors]
    products, norms = _run(_advance, norm, tensors, NORMS[norm].power == 2, sums=2)
    return products, norms


def scale(
    norm: Norm, outs: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor], ratios: Sequence[Tensor]
) -> None:
    """Weights scaled by row, into `outs`, as ``Passes.scale``."""
    flat = torch.cat(list(ratios)).to(weights[0].dtype).numpy()
    _run(_scale, norm, [outs, weights, anchors], flat, sums=0)


def check(dtype: torch.dtype) -> None:
    """Make the machine code for one dtype, or read it from numba's cache, and try it.

    Raises what numba raises, and ArithmeticError where the code does not compute what torch does.
    """
    w, a, g = (torch.linspace(-1, top, 40).square().reshape(4, 10).to(dtype) for top in (1, 2, 3))
    ratios = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=dtype)
    for norm in get_args(Norm):
        r = ratios[: count_rows(w, norm)]
        out, moved, delta = torch.empty_like(w), g.clone(), w - a
        scale(norm, [out], [w], [a], [r])
        (products,), (norms,) = advance(norm, [moved], [g], [w], [a])
        found = [*measure(norm, [w], [a]), *dots(norm, [g], [w], [a]), out, products, norms, moved]
        lengths, slopes = row_norms(delta, norm), as_rows(g * delta, norm).sum(dim=1)
        wanted = [lengths, slopes, scale_rows(w, a, r, norm), as_rows(g * g, norm).sum(dim=1), lengths, delta]
        if not all(torch.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in zip(found, wanted, strict=True)):
            raise ArithmeticError("the compiled passes return wrong numbers")
