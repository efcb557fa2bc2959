"""Batches as a pure function of seed and step, so that a run resumed anywhere sees what an uninterrupted one sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tpgm.data import ImageFiles


def derive(seed: int, *what: str | int) -> int:
    """A seed for one purpose, the same on every machine."""
    text = ":".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def content(data: Any) -> str:
    """What tells other data of the same labels: their numbers, or of `ImageFiles` names and sizes; else nothing."""
    held = getattr(data, "images", getattr(data, "tokens", None))
    if isinstance(held, Tensor):
        return content_of([held])
    paths = data.paths if isinstance(data, ImageFiles) else ()
    files = [(*path.parts[-2:], path.stat().st_size) for path in paths]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def content_of(tensors: Iterable[Any]) -> str:
    """A checksum of the tensors' numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def per_epoch(n: int, batch_size: int, least: int = 1) -> int:
    """How many batches n items make. A last one of fewer than `least` does not count, unless it is the only one."""
    full, rest = divmod(n, batch_size)
    return full + (rest >= least) or 1


def index_batches(n: int, batch_size: int, seed: int, start: int = 0, least: int = 1) -> Iterator[list[int]]:
    """Endless batches of indices below n, reshuffled every epoch, from batch number `start` on; the last of an epoch
    may be smaller, and is left out if it has fewer than `least` items (see `per_epoch`)."""
    count = per_epoch(n, batch_size, least)
    epoch, first = divmod(start, count)
    while True:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, "epoch", epoch)))
        for batch in range(first, count):
            yield order[batch * batch_size : (batch + 1) * batch_size].tolist()
        epoch, first = epoch + 1, 0


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate in (0, 1]: a linear rise over the share `warmup` of the steps, then a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def read(
    data: Any, batches: Iterator[list[int]] | Sequence[list[int]], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) for each batch of indices, or (tokens, labels); image files are read by `workers` processes.

    Raises OSError naming an image that cannot be read.
    """
    held = getattr(data, "images", getattr(data, "tokens", None))
    if held is not None:
        for index in batches:
            yield held[index], data.labels[index]
        return
    generator = torch.Generator().manual_seed(0)  # or the loader would draw from, and shift, torch's global one
    try:
        yield from DataLoader(data, batch_sampler=batches, num_workers=workers, generator=generator)
    except OSError as error:  # of a worker process, with its traceback in the message
        raise OSError(str(error).rstrip().rpartition("\nOSError: ")[2]) from error


def share(batches: Iterator[list[int]], rank: int, processes: int, pad: bool = True) -> Iterator[list[int]]:
    """The part of every batch that the process `rank` takes; batches of which it gets nothing are passed over.

    pad: give every process as many, if need be some of the batch twice, so that their means weigh the same.
    """
    for index in batches:
        short = -len(index) % processes if pad else 0
        if mine := (index + (index * short)[:short])[rank::processes]:
            yield mine
