"""How tensors lie in memory: what a fast path may assume of them, and which of them share numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def dense(tensor: Tensor) -> bool:
    """Whether the tensor's numbers fill one block of memory, each once, in any order of its dimensions."""
    if tensor.layout != torch.strided or tensor.is_neg() or tensor.is_conj():
        return False
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(_steps(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def fits(written: Tensor, *read: Tensor | None) -> bool:
    """Whether a loop over memory may take these tensors number by number while it writes to the first one.

    All must be dense, on one device, of one shape and in one order of memory, and hold numbers. A tensor that shares
    memory with the first one must be that very block, in the same dtype. Dtypes may differ otherwise.
    """
    if not (dense(written) and written.numel() and written.data_ptr()):
        return False
    start, shape, device, contiguous = written.data_ptr(), written.shape, written.device, written.is_contiguous()
    end = start + written.numel() * written.element_size()
    for t in read:
        if t is None or t.shape != shape or t.device != device or not dense(t):
            return False
        if not (t.is_contiguous() if contiguous else _steps(t) == _steps(written)):
            return False
        at = t.data_ptr()
        if at == start and t.dtype != written.dtype:
            return False
        if at == 0 or (at != start and at < end and start < at + t.numel() * t.element_size()):
            return False
    return True


def check_parameter(name: str, p: Tensor) -> None:
    """Raise ValueError, with name and cure, for what cannot be stepped in place: not strided, memory used twice, no
    numbers, or made in inference mode."""
    if p.is_meta:
        raise ValueError(f"{name} is on the device meta and has no numbers: load the weights first")
    if p.is_inference():
        raise ValueError(
            f"{name} was made inside torch.inference_mode() and can never be trained: make the model outside of it"
        )
    if p.layout != torch.strided:
        raise ValueError(f"{name} has the layout {p.layout}; only dense parameters can be constrained: call to_dense()")
    if _repeats(p):
        raise ValueError(
            f"{name}, of shape {tuple(p.shape)} and strides {p.stride()}, has several elements in one place of memory "
            "(as expand makes them); give it memory of its own by clone()"
        )


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether some number of one strided tensor is also a number of the other."""
    if a.device != b.device or not (a.numel() and b.numel() and a.data_ptr() and b.data_ptr()):
        return False
    low, high = max(a.data_ptr(), b.data_ptr()), min(_end(a), _end(b))
    return low < high and ((dense(a) and dense(b)) or bool(torch.isin(_places(a), _places(b)).any()))


def refuse_overlap(parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with names, for two tensors that share a number: it would be projected or stepped twice."""
    reaching: list[tuple[str, Tensor]] = []
    filled = {name: t for name, t in parameters.items() if t.layout == torch.strided and t.numel() and t.data_ptr()}
    for name, t in sorted(filled.items(), key=lambda item: item[1].data_ptr()):
        reaching = [(other, o) for other, o in reaching if _end(o) > t.data_ptr()]
        if twins := [other for other, o in reaching if share_memory(o, t)]:
            raise ValueError(
                f"{twins[0]} and {name} share memory, but are two parameters: tie them by giving both modules one "
                "nn.Parameter (b.weight = a.weight), or give each its own by clone()"
            )
        reaching.append((name, t))


def place(tensor: Tensor) -> int | None:
    """Address of the memory that the tensor looks into; None for what has none."""
    return tensor.untyped_storage().data_ptr() or None


def versions(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Where each tensor lies and how often torch has counted a change of it."""
    return [(t.data_ptr(), t._version) for t in tensors]


def same_block(a: Tensor, b: Tensor) -> bool:
    """Whether both tensors begin at one place in memory."""
    return a.data_ptr() == b.data_ptr()


def _steps(t: Tensor) -> list[tuple[int, int]]:
    """Stride and size of the dimensions that matter."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _extent(t: Tensor) -> int:
    """Numbers from the first to the last in memory."""
    return 1 + sum(stride * (size - 1) for stride, size in _steps(t))


def _end(t: Tensor) -> int:
    return t.data_ptr() + _extent(t) * t.element_size()


def _places(t: Tensor) -> Tensor:
    """Addresses of all numbers, shape (numel,)."""
    return torch.arange(_extent(t)).as_strided(t.shape, t.stride()).flatten() * t.element_size() + t.data_ptr()


def _repeats(t: Tensor) -> bool:
    reach = 0
    for stride, size in sorted(_steps(t)):
        if stride <= reach:  # dimensions interlock: only counting tells
            return bool(t.numel()) and bool((_places(t).sort().values.diff() == 0).any())
        reach += stride * (size - 1)
    return False
