"""Batches as a pure function of seed and step, so that a run resumed anywhere sees what an uninterrupted one sees."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader


def derive(seed: int, *what: str | int) -> int:
    """A seed for one purpose, the same on every machine."""
    text = ":".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def index_batches(n: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices below n, reshuffled every epoch, from batch number `start` on; the last of an epoch
    may be smaller."""
    per_epoch = -(-n // batch_size)
    epoch, first = divmod(start, per_epoch)
    while True:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, "epoch", epoch)))
        for batch in range(first, per_epoch):
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
    """(images, labels) for each batch of indices, or (tokens, labels); image files are read by `workers` processes."""
    held = getattr(data, "images", getattr(data, "tokens", None))
    if held is not None:
        for index in batches:
            yield held[index], data.labels[index]
        return
    generator = torch.Generator().manual_seed(0)  # or the loader would draw from, and shift, torch's global one
    yield from DataLoader(data, batch_sampler=batches, num_workers=workers, generator=generator)


@dataclass(frozen=True)
class Preparation:
    """From stored images to what the model takes.

    size: height and width in pixels; mean, std: per channel, of images scaled to [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) uint8 in [0, 255] to (B, 3, size, size) float32, normalised; with a generator also augmented.

        The augmentation mirrors each image with probability ½ and shifts it by up to an eighth of its size.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        if generator is not None:
            images = _augmented(images, generator)
        x = images.to(device).float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    reach = max(1, height // 8)
    shifts = torch.randint(0, 2 * reach + 1, (count, 2), generator=generator).tolist()
    mirror = torch.rand(count, generator=generator).lt(0.5).tolist()
    padded = pad(images, (reach,) * 4, mode="replicate")
    return torch.stack(
        [
            image[:, top : top + height, left : left + width].flip(-1)
            if flip
            else image[:, top : top + height, left : left + width]
            for image, (top, left), flip in zip(padded, shifts, mirror, strict=True)
        ]
    )
