"""From SVG to pixels, and from pixels to a style: integer arithmetic throughout, so that machines agree."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from tpgm.book.icon_benchmark.cache import require

SIZE = 64
DOMAINS = ("solid", "outline", "duotone", "color", "emoji")
MIXED = len(DOMAINS)  # neither clearly solid nor clearly outline
DROPPED = -1
_OPAQUE = 128  # alpha from which a pixel counts as ink
_CHROMA = 25  # mean of max(RGB) - min(RGB) over the ink above which an icon is coloured
_HALF = (30, 200)  # alpha of a pixel that is neither background nor full ink
_FLAT = 8  # largest step of alpha to a neighbour within a half-tone area
_DUPLICATE = 0.01  # mean grey difference, of 1, below which two icons of a class are one


def draw(svg: str) -> np.ndarray:
    """An SVG document as (64, 64, 4) uint8, RGBA with straight alpha. Raises ValueError if it cannot be drawn."""
    from PIL import Image

    png = require("resvg_py").svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(N, H, W, 4) uint8 with alpha -> (N, 3, H, W) uint8 RGB over white, rounded to nearest."""
    alpha = rgba[..., 3:].astype(np.uint32)
    rgb = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return np.ascontiguousarray(rgb.astype(np.uint8).transpose(0, 3, 1, 2))


def fill_holes(ink: np.ndarray) -> np.ndarray:
    """(N, H, W) bool -> the same with every background region filled that does not touch the border."""
    background = np.ascontiguousarray(~ink.transpose(1, 2, 0))  # icons last, so that one step moves all of them
    outside = np.zeros_like(background)
    outside[[0, -1]] = background[[0, -1]]
    outside[:, [0, -1]] = background[:, [0, -1]]
    known = -1
    while known != (known := int(outside.sum())):
        for across, open_ in ((outside, background), (outside.swapaxes(0, 1), background.swapaxes(0, 1))):
            for k in range(1, len(across)):
                across[k] |= across[k - 1] & open_[k]
            for k in range(len(across) - 2, -1, -1):
                across[k] |= across[k + 1] & open_[k]
    return ~outside.transpose(2, 0, 1)


def solidity(ink: np.ndarray) -> np.ndarray:
    """(N, H, W) bool -> (N,) float64: ink over ink with holes filled, 1 without holes (and for no ink at all, 0)."""
    share: np.ndarray = ink.sum((1, 2)) / np.maximum(fill_holes(ink).sum((1, 2)), 1)
    return share


def flat_half(alpha: np.ndarray) -> np.ndarray:
    """(N, H, W) int alpha -> bool: half-transparent pixels whose four neighbours are much the same.

    A half-tone area, in other words, and not the soft edge of a line.
    """
    flat = (alpha >= _HALF[0]) & (alpha < _HALF[1])
    down = np.abs(np.diff(alpha, axis=1)) <= _FLAT
    right = np.abs(np.diff(alpha, axis=2)) <= _FLAT
    flat[:, :-1] &= down
    flat[:, 1:] &= down
    flat[:, :, :-1] &= right
    flat[:, :, 1:] &= right
    return flat


def styles(rgba: np.ndarray, emoji: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """(N,) int64 index into DOMAINS, or MIXED or DROPPED.

    rgba: (N, H, W, 4) uint8; emoji and palette: (N,) bool, from a coloured emoji set or another coloured set. The
    first that holds: blank (under 2 % of the image visible): dropped; emoji; mean chroma of the ink over 25 of 255:
    color; of a coloured set all the same: dropped; at least 10 % of the visible pixels in half-tone areas and 10 %
    full ink: duotone; under 15 % full ink (hair lines): dropped; ink / ink with holes filled under 0.55: outline,
    over 0.7: solid, between: mixed.
    """
    alpha = rgba[..., 3].astype(np.int64)
    rgb = rgba[..., :3].astype(np.int64)
    chroma = ((rgb.max(-1) - rgb.min(-1)) * alpha).sum((1, 2)) / np.maximum(alpha.sum((1, 2)), 1)
    visible = (alpha >= _HALF[0]).sum((1, 2))
    full = (alpha >= _HALF[1]).sum((1, 2)) / np.maximum(visible, 1)
    half = flat_half(alpha).sum((1, 2)) / np.maximum(visible, 1)
    filled = solidity(alpha >= _OPAQUE)
    number = {name: index for index, name in enumerate(DOMAINS)} | {"dropped": DROPPED}
    rules = [
        (visible < 0.02 * alpha[0].size, "dropped"),
        (emoji, "emoji"),
        (chroma > _CHROMA, "color"),
        (palette, "dropped"),
        ((half >= 0.1) & (full >= 0.1), "duotone"),
        ((half >= 0.1) | (full < 0.15), "dropped"),
        (filled < 0.55, "outline"),
        (filled > 0.7, "solid"),
    ]
    return np.select([rule for rule, _ in rules], [number[name] for _, name in rules], MIXED)


def blocks(images: np.ndarray, side: int) -> np.ndarray:
    """(N, C, H, W) integers -> (N, C, H / side, W / side) uint16: sums over squares of `side` pixels."""
    count, channels, height, width = images.shape
    parts = images.reshape(count, channels, height // side, side, width // side, side)
    sums: np.ndarray = parts.sum((3, 5), dtype=np.uint16)
    return sums


def first_of_each(images: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(N,) bool: False for an icon that looks like an earlier one of its class.

    images: (N, 3, H, W) uint8. Two icons count as one if their grey values, averaged over 2x2 pixels, differ by
    less than 1 % of the range in the mean: sizes of one drawing, or a drawing that several sets share.
    """
    count = len(images)
    grey = blocks(images, 2).sum(1, dtype=np.int16).reshape(count, -1)  # each value up to 3 * 4 * 255
    limit = _DUPLICATE * 3 * 4 * 255 * grey.shape[1]
    keep = np.ones(count, dtype=bool)
    kept: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        earlier = kept.setdefault(int(label), [])
        if earlier and np.abs(grey[earlier] - grey[index]).sum(1, dtype=np.int64).min() < limit:
            keep[index] = False
        else:
            earlier.append(index)
    return keep
