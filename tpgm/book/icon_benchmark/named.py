"""Icons with their names, as CLIP had images with their captions: what zero-shot models are pre-trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpgm.book.icon_benchmark import tiny
from tpgm.book.icon_benchmark.cache import build_once, cache_dir, require
from tpgm.book.icon_benchmark.designers import designer
from tpgm.book.icon_benchmark.iconify import concepts, read_package
from tpgm.book.icon_benchmark.icons import checksum, icon_collection, package_file, published, read_built
from tpgm.book.icon_benchmark.render import SIZE, blocks, draw, on_white

_SUBSETS = {32: "named", 64: "named-64"}  # by size
_CHUNK = 512  # icons drawn before the next are
_ALIKE = 0.02  # mean difference of 1 below which a drawing counts as one of a tested designer


@dataclass(frozen=True)
class NamedIcons:
    """images: (N, 3, size, size) uint8, RGB on white; texts: (N,) int64, indices into `names`, the icons' names without
    style words; checksum: SHA-256 of the arrays."""

    images: Tensor
    texts: Tensor
    names: tuple[str, ...]
    checksum: str

    def __len__(self) -> int:
        return len(self.texts)


def named_icons(*, size: int = 32, source: str | Path | None = None, progress: bool = True) -> NamedIcons:
    """All icons of the designers kept for zero-shot pre-training, whatever they show, at 32 or 64 pixels.

    None of these designers is in the training, validation or test data of ``icons(designers="zero-shot")``, and a
    drawing that looks like one of its validation or test icons is left out. Built into the user's cache on first use
    (about five minutes of one core; 30 MB stay, at 64 pixels 80). Both sizes hold the same icons. Raises ValueError for
    another size; other arguments and errors as for :func:`icons`.
    """
    if size not in _SUBSETS:
        raise ValueError(f"size must be 32 or 64, got {size!r}: icons are drawn at 64 pixels")
    if source == "tiny":
        return _tiny(size)
    subset = _SUBSETS[size]
    target = cache_dir() / "icons" / f"{subset}-{published()[subset][:16]}.npz"
    if not target.exists():
        icon_collection("downstream", source=source, progress=progress)  # it is needed inside, where the lock is held
    build_once(target, lambda folder: _build_file(folder, size, source, progress))
    return _load(target, subset)


def _build_file(folder: Path, size: int, source: str | Path | None, progress: bool) -> Path:
    tarball, designers = package_file(folder, source), concepts()["zero_shot_designers"]
    arrays: dict[str, Any] = build(tarball, designers, None, progress, size)
    built = folder / "built.npz"
    np.savez_compressed(built, **arrays)
    return built


@lru_cache(maxsize=1)
def _load(path: Path, subset: str) -> NamedIcons:
    return read_built(path, subset, _named)


@lru_cache(maxsize=1)
def _tiny(size: int) -> NamedIcons:
    with TemporaryDirectory() as folder:
        return _named(build(tiny.package(Path(folder)), tiny.ZERO_SHOT_DESIGNERS, "tiny", False, size))


def _named(arrays: dict[str, np.ndarray]) -> NamedIcons:
    return NamedIcons(
        torch.from_numpy(arrays["images"]),
        torch.from_numpy(arrays["texts"].astype(np.int64)),
        tuple(arrays["names"].tolist()),
        checksum(arrays),
    )


def build(
    tarball: Path, designers: Iterable[str], source: str | None, progress: bool, size: int = 32
) -> dict[str, np.ndarray]:
    """Draw the icons of `designers` and leave out what looks like a validation or test icon. The file's arrays.

    What is left out is told at 32 pixels for every size.
    """
    wanted, (found, sets) = set(designers), read_package(tarball, "named")
    found = [icon for icon in found if designer(sets[icon.prefix].author) in wanted]
    parts, drawn = [], []
    with require("tqdm").tqdm(total=len(found), desc="drawing named icons", disable=not progress) as bar:
        for start in range(0, len(found), _CHUNK):
            rgba = np.stack([draw(icon.svg) for icon in found[start : start + _CHUNK]])
            white = on_white(rgba)
            # a mean of four pixels, rounded to nearest
            parts.append(((blocks(white, 2) + 2) // 4).astype(np.uint8))
            drawn.append(white if size == SIZE else parts[-1])
            bar.update(len(rgba))
    images = np.concatenate(parts)
    data = icon_collection("downstream", source=source, progress=progress)
    tested = blocks(data.images[data.splits > 0].numpy(), 2) // 4
    kept = np.flatnonzero((np.ptp(images, axis=(1, 2, 3)) > 0) & ~alike(images, tested))
    names = sorted({found[i].concept for i in kept})
    position = {name: number for number, name in enumerate(names)}
    texts = np.array([position[found[i].concept] for i in kept], dtype=np.int32)
    return {"images": np.concatenate(drawn)[kept], "texts": texts, "names": np.array(names)}


def alike(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) bool: whether an image differs from any of `others` by less than 2 % of the range, in the mean over grey
    values of 4 x 4 areas. images, others: (N, 3, 32, 32) of values up to 255."""
    mine, theirs = (
        torch.from_numpy(blocks(x.astype(np.uint16), 4).sum(axis=1).reshape(len(x), -1).astype(np.float32) / 12240)
        for x in (images, others)
    )
    found = [torch.cdist(part, theirs, p=1).amin(dim=1) < _ALIKE * mine.shape[1] for part in mine.split(1024)]
    result: np.ndarray = torch.cat(found).numpy()
    return result
