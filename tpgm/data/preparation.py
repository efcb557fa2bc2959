"""From stored images to what a model takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from tpgm import check


@dataclass(frozen=True)
class Preparation:
    """From stored images to what the model takes.

    size: height and width in pixels; mean, std: per channel, of images scaled to [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Raise ValueError for a size below 1 and a standard deviation that is not above 0."""
        check.number("size", self.size, 1, whole=True)
        for value in self.std:
            check.number("std", value, 0, above=True)

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
    places = zip(padded, shifts, strict=True)
    crops = [image[:, top : top + height, left : left + width] for image, (top, left) in places]
    return torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, mirror, strict=True)])
