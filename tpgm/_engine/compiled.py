"""The passes and optimizer steps of ``tpgm._engine.kernels`` for tensors, on as many threads as torch uses.

Used for float32 and float64 tensors on a CPU wherever numba is installed (``pip install "tpgm[fast]"``); without it,
and for everything else, ``tpgm._engine.passes`` and ``tpgm.optim`` do the same with torch's operations.
``TPGM_COMPILED=0`` in the environment switches it off.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tpgm.projection import Norm

PIECE = 1 << 14  # numbers in a piece: those of an optimizer's six tensors stay in second-level cache
RADIUS = ("radius", "radius_exp_avg", "radius_exp_avg_sq")  # what FTP keeps of each radius
SHARES = 4  # parts a thread gets in turn, so that one whose core is busy with something else gets less to do


@cache
def available() -> bool:
    """Whether numba is installed and not switched off."""
    return os.environ.get("TPGM_COMPILED", "1") != "0" and find_spec("numba") is not None


def fit(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors of one shape: on a CPU, float32 or float64, laid out alike and densely."""
    first = tensors[0]
    if first is None or not available() or torch.compiler.is_compiling():
        return False
    dtype, shape = first.dtype, first.shape
    if dtype not in (torch.float32, torch.float64) or not first.numel():
        return False
    form = _form(first)
    if form is None:
        return False
    for t in tensors:
        if t is None or not (t.is_cpu and t.layout == torch.strided and t.dtype == dtype and t.shape == shape):
            return False
        if not t.is_contiguous(memory_format=form):
            return False
    return True


def _form(tensor: Tensor) -> torch.memory_format | None:
    if tensor.is_contiguous():
        return torch.contiguous_format
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else None


# --- how tensors are cut


class Table(NamedTuple):
    """Tensors of given rows and columns, cut into pieces.

    pieces: tensor, start, length and row of each. bounds, shape (tensors, 5): first and last piece, first and last row,
    and pieces a row of each tensor. starts: the first piece of each row. ends: how many numbers the pieces up to each
    hold. shares_of: what `shares` has found.
    """

    pieces: tuple[np.ndarray[Any, Any], ...]
    bounds: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    ends: np.ndarray[Any, Any]
    shares_of: dict[tuple[int, ...], list[tuple[int, int]]]

    def shares(self, workers: int, *chosen: int) -> list[tuple[int, int]]:
        """Ranges of pieces of about the same number of numbers, of all tensors or of those chosen."""
        known = self.shares_of.get((workers, *chosen))
        if known is not None:
            return known
        count = SHARES * workers if workers > 1 else 1
        found = []
        for low, high in [tuple(self.bounds[t, :2]) for t in chosen] or [(0, len(self.ends))]:
            before = self.ends[low - 1] if low else 0
            goals = before + (self.ends[high - 1] - before) * np.arange(1, count) / count
            cuts = [low, *(low + np.searchsorted(self.ends[low:high], goals)), high]
            found += [(int(a), int(b)) for a, b in pairwise(cuts) if a < b]
        self.shares_of[workers, *chosen] = found
        return found


@lru_cache(maxsize=64)
def _table(shapes: tuple[tuple[int, int], ...], piece: int) -> Table:
    cut = np.array([-(-columns // piece) for _, columns in shapes], dtype=np.int64)
    rows = np.array([r for r, _ in shapes], dtype=np.int64)
    pieces_of = rows * cut
    last, bottom = np.cumsum(pieces_of), np.cumsum(rows)
    bounds = np.stack([last - pieces_of, last, bottom - rows, bottom, cut], axis=1)
    tensor = np.repeat(np.arange(len(shapes)), pieces_of)
    within = np.arange(last[-1]) - bounds[tensor, 0]  # number of the piece in its tensor
    row, number = within // bounds[tensor, 4], within % bounds[tensor, 4]
    columns = np.array([c for _, c in shapes])[tensor]
    length = np.minimum(piece, columns - number * piece)
    pieces = (tensor, row * columns + number * piece, length, row + bounds[tensor, 2])
    return Table(pieces, bounds, np.flatnonzero(number == 0), np.cumsum(length), {})


def _cut(tensors: Sequence[Tensor], norm: Norm) -> Table:
    rows = [t.shape[0] if norm == "mars" and t.dim() > 1 else 1 for t in tensors]
    return _table(tuple((r, t.numel() // r) for r, t in zip(rows, tensors, strict=True)), PIECE)


def _addresses(tensors: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    return np.array([t.data_ptr() for t in tensors], dtype=np.int64)


def _like(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.float64 if tensor.dtype == torch.float64 else np.float32)


# --- threads

_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_process = os.getpid()
_lock = Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process, which a fork changes, and size


@cache
def _torchs_threads() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the OpenMP that torch itself runs on; None where it has none of this kind."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = [_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    found: Callable[..., None] = parallel
    return found


def _helpers(count: int) -> ThreadPoolExecutor:
    with _lock:
        key = (os.getpid(), count)
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(count, thread_name_prefix="tpgm")
        return _pools[key]


def _spread(piece: Callable[[Any], None], parts: Sequence[Any]) -> None:
    """Call `piece` with each of the parts, on as many threads as torch uses; this one is among them."""
    waiting = iter(parts)
    threads = torch.get_num_threads()

    def work() -> None:
        for part in waiting:
            piece(part)

    if threads == 1 or len(parts) == 1:
        work()
        return
    # torch's own threads still spin on their cores for some milliseconds after an operation: others would have to
    # share those cores with them. OpenMP's threads do not survive a fork.
    parallel = _torchs_threads() if os.getpid() == _process else None
    if parallel is None:
        _spread_over_pool(work, min(threads, len(parts)) - 1)
        return
    raised: list[BaseException] = []

    def share(_: int | None) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    parallel(_Work(share), None, threads, 0)
    if raised:
        raise raised[0]


def _spread_over_pool(work: Callable[[], None], helpers: int) -> None:
    """Run `work` here and, at the same time, on so many threads of our own."""
    helping = []
    try:
        pool = _helpers(helpers)
        helping = [pool.submit(work) for _ in range(helpers)]
    except RuntimeError:  # the interpreter is shutting down
        pass
    try:
        work()
    finally:
        for helper in helping:
            helper.result()


# --- passes


def measure(norm: Norm, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    """Row norms of the displacements, as ``Passes.measure``."""
    from tpgm._engine import kernels

    table, like = _cut(weights, norm), _like(weights[0])
    at = _addresses(weights), _addresses(anchors)
    sums = np.empty(len(table.pieces[0]))
    _spread(
        lambda part: kernels.measure(*part, like, table.pieces, *at, norm == "mars", sums),
        table.shares(torch.get_num_threads()),
    )
    rows = np.add.reduceat(sums, table.starts)
    return _split(table, (rows if norm == "mars" else np.sqrt(rows)).astype(like.dtype))


def dots(norm: Norm, gradients: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    """Row products of gradient and displacement, as ``Passes.dots``."""
    from tpgm._engine import kernels

    table, like = _cut(weights, norm), _like(weights[0])
    at = _addresses(gradients), _addresses(weights), _addresses(anchors)
    sums = np.empty(len(table.pieces[0]))
    _spread(
        lambda part: kernels.dots(*part, like, table.pieces, *at, sums),
        table.shares(torch.get_num_threads()),
    )
    return _split(table, np.add.reduceat(sums, table.starts).astype(like.dtype))


def scale(
    norm: Norm, outs: Sequence[Tensor], weights: Sequence[Tensor], anchors: Sequence[Tensor], ratios: Sequence[Tensor]
) -> None:
    """Weights scaled by row, into `outs`, as ``Passes.scale``."""
    from tpgm._engine import kernels

    table, like = _cut(weights, norm), _like(weights[0])
    at = _addresses(outs), _addresses(weights), _addresses(anchors)
    flat = torch.cat(list(ratios)).to(weights[0].dtype).numpy()
    _spread(
        lambda part: kernels.scale(*part, like, table.pieces, *at, flat),
        table.shares(torch.get_num_threads()),
    )


def _split(table: Table, rows: np.ndarray[Any, Any]) -> list[Tensor]:
    return list(torch.split(torch.from_numpy(rows), (table.bounds[:, 3] - table.bounds[:, 2]).tolist()))


# --- optimizer steps


def ftp(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    moments: tuple[str, ...],
    settings: Sequence[float],
    norm: Norm,
) -> None:
    """One step of AdamP, or with one moment of SGDP, in place.

    moments: names of the base optimizer's state, none without momentum. settings: lr, weight decay, then two betas and
    eps, or momentum, whether it is Nesterov's, and 0; kappa, radius_lr.
    """
    from tpgm._engine import kernels

    adam = len(moments) == 2
    names = (*(moments * 2)[:2], *("step", "anchor", "displacement", "norms", *RADIUS))  # in the order of kernels.M, …
    tensors = [params, grads, *([s[name] for s in states] for name in names)]
    table, like = _cut(params, norm), _like(params[0])
    at, values, mars = np.stack([_addresses(t) for t in tensors]), np.array(settings, dtype=np.float64), norm == "mars"
    products, sums = np.empty((2, len(table.pieces[0])))
    ratios = np.empty(len(table.starts), dtype=like.dtype)

    def whole(chosen: np.ndarray[Any, Any]) -> None:
        kernels.ftp(chosen, like, table.pieces, table.bounds, at, adam, values, mars, products, sums, ratios)

    def sweep(part: tuple[int, int]) -> None:
        kernels.ftp_sweep(*part, like, table.pieces, at, adam, values, mars, products, sums)

    def middle(t: int) -> None:
        kernels.ftp_radius(t, like, table.bounds, at, values, mars, products, sums, ratios)

    _step(table, params, whole, sweep, middle, at, like, ratios)


def spd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    settings: Sequence[float],
) -> None:
    """One step of AdamSPD, in place. settings: lr, weight decay, betas, eps, strength."""
    from tpgm._engine import kernels

    names = ("exp_avg", "exp_avg_sq", "step", "anchor")
    tensors = [params, grads, *([s[name] for s in states] for name in names)]
    table, like = _cut(params, "l2"), _like(params[0])
    at, values = np.stack([_addresses(t) for t in tensors]), np.array(settings, dtype=np.float64)
    sums = np.empty((3, len(table.pieces[0])))
    ratios = np.empty(len(params), dtype=like.dtype)

    def whole(chosen: np.ndarray[Any, Any]) -> None:
        kernels.spd(chosen, like, table.pieces, table.bounds, at, values, *sums, ratios)

    def sweep(part: tuple[int, int]) -> None:
        kernels.spd_sweep(*part, like, table.pieces, at, values, *sums)

    def middle(t: int) -> None:
        kernels.spd_ratio(t, table.bounds, at, values, *sums, ratios)

    _step(table, params, whole, sweep, middle, at, like, ratios)


def _step(
    table: Table,
    params: Sequence[Tensor],
    whole: Callable[[Any], None],
    sweep: Callable[[Any], None],
    middle: Callable[[int], None],
    at: np.ndarray[Any, Any],
    like: np.ndarray[Any, Any],
    ratios: np.ndarray[Any, Any],
) -> None:
    """Tensor after tensor, each by one thread; those too large for that by all threads, pass after pass."""
    from tpgm._engine import kernels

    workers = torch.get_num_threads()
    sizes = [p.numel() for p in params]
    limit = sum(sizes) / (2 * workers) if workers > 1 else np.inf
    large = [t for t, size in enumerate(sizes) if size > limit]
    _spread(whole, list(_bundles(sizes, limit)))
    if large:
        parts = table.shares(workers, *large)
        _spread(sweep, parts)
        for t in large:
            middle(t)
        _spread(lambda part: kernels.scale(*part, like, table.pieces, at[0], at[0], at[kernels.A], ratios), parts)


def _bundles(sizes: Sequence[int], limit: float) -> Iterator[np.ndarray[Any, Any]]:
    """Numbers of the tensors within the limit, large ones first, small ones together."""
    bundle, total = list[int](), 0
    for t in sorted(range(len(sizes)), key=lambda t: -sizes[t]):
        if sizes[t] <= limit:
            bundle.append(t)
            total += sizes[t]
            if total >= 1 << 18:
                yield np.array(bundle)
                bundle, total = [], 0
    if bundle:
        yield np.array(bundle)
