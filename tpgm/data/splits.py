"""One shape for all data: train, validation, ID test and named OOD tests of the same classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tpgm import check
from tpgm.data.images import read_image, resize_and_crop


class LabelledData(Protocol):
    """A map-style data set of ``(input, int label)``: images here, texts in the book.

    labels: (N,) int64; class_subset: (K,) int64, the classes that can occur, or None if all can.
    """

    labels: Tensor
    class_subset: Tensor | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, int]: ...


class ImageArray(Dataset[tuple[Tensor, int]]):
    """Images held in memory, so that a batch is one indexing operation: ``data.images[index]``.

    images: (N, 3, H, W) uint8, RGB; labels: (N,) int64. Item i is ``(images[i], int(labels[i]))``. Scaling to
    [0, 1], normalisation and augmentation are left to the training loop, which does them a batch at a time.
    class_subset: (K,) int64, the classes that can occur here, or None if all can (see :class:`ImageFiles`).
    Raises TypeError for other dtypes and ValueError for other shapes.
    """

    def __init__(self, images: Tensor, labels: Tensor, class_subset: Tensor | None = None) -> None:
        for what, given in (("images", images), ("labels", labels)):
            check.instance(what, given, Tensor, "a tensor")
        if images.dtype != torch.uint8 or labels.dtype != torch.int64:
            raise TypeError(f"images must be uint8 and labels int64, got {images.dtype} and {labels.dtype}")
        if images.ndim != 4 or images.shape[1] != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"images must be (N, 3, H, W) and labels (N,), got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        self.images, self.labels, self.class_subset = images, labels, class_subset

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


class ImageFiles(Dataset[tuple[Any, int]]):
    """Images on disk, read when asked for.

    Item i is ``(transform(image), label)`` with the image as a PIL image in RGB, made by `tpgm.data.images.rgb`.
    transform: None resizes and crops to (3, size, size) uint8, as :class:`ImageArray` holds them; size: 224, in a
    training that of the model. labels: (N,) int64.
    class_subset: (K,) int64, the sorted classes that occur here, where a data set covers some of the classes only
    (ImageNet-A, ImageNet-R): accuracy is then that of the arg max over these K logits,
    ``class_subset[logits[:, class_subset].argmax(1)]``. None if all classes occur.
    An unreadable image raises OSError naming the file.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Sequence[int],
        transform: Callable[[Any], Any] | None,
        class_subset: Tensor | None = None,
    ) -> None:
        if len(paths) != len(labels):
            raise ValueError(f"{len(paths)} paths but {len(labels)} labels: give one label for each path")
        self.paths, self.transform, self.class_subset = tuple(map(Path, paths)), transform, class_subset
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.size = 224

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        transform = self.transform or resize_and_crop(self.size)
        return transform(read_image(self.paths[index])), int(self.labels[index])


@dataclass(frozen=True)
class DataSplits:
    """What a fine-tuning run needs: ID data to train, to choose and to test on, and OOD data to test on only.

    name: of the data ("icons", …); id_domain: what the ID data are ("solid", "real", …). train, val, id_test and
    every value of ood_tests are map-style data sets with labels that index class_names: :class:`ImageArray` or
    :class:`ImageFiles`. Nothing that is chosen may look at ood_tests.
    """

    name: str
    id_domain: str
    class_names: tuple[str, ...]
    train: LabelledData
    val: LabelledData
    id_test: LabelledData
    ood_tests: Mapping[str, LabelledData]

    def __post_init__(self) -> None:
        own = {"train": self.train, "val": self.val, "id_test": self.id_test}
        if taken := sorted(set(own) & set(self.ood_tests)):
            raise ValueError(f"{self.name}: {taken[0]!r} is a part of the ID data: give the OOD test another name")
        if unclear := [name for name in self.ood_tests if not name.strip() or name == "OOD mean"]:
            raise ValueError(f"{self.name}: an OOD test cannot be called {unclear[0]!r}: give it another name")
        for part, data in {**own, **self.ood_tests}.items():
            if not (hasattr(data, "__len__") and hasattr(data, "labels")):
                raise TypeError(f"{self.name}: {part!r} must be a data set with labels, got {check.shown(data)}")
            if not len(data):
                raise ValueError(f"{self.name}: the part {part!r} has no images; give it at least one")
            if not 0 <= int(data.labels.min()) <= int(data.labels.max()) < len(self.class_names):
                span = f"{int(data.labels.min())} to {int(data.labels.max())}, must be 0 to {len(self.class_names) - 1}"
                raise ValueError(f"{self.name}: labels of {part!r} are {span}: give class_names for all")

    def at_size(self, size: int) -> DataSplits:
        """The same data; image files without a transform of their own are read at `size` pixels."""

        def sized(part: LabelledData) -> LabelledData:
            if isinstance(part, ImageFiles) and part.transform is None:
                part = copy(part)
                part.size = size
            return part

        tests = {name: sized(part) for name, part in self.ood_tests.items()}
        train, val, id_test = map(sized, (self.train, self.val, self.id_test))
        return replace(self, train=train, val=val, id_test=id_test, ood_tests=tests)


def shuffled(keys: Sequence[str], seed: int) -> list[int]:
    """Indices of `keys` in an order that depends on each key and the seed alone.

    A hash in place of a random generator: the order is the same on every machine, and taking the first n gives
    nested choices (the images of 1 % are among those of 5 %).
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=digests.__getitem__)


def by_class(labels: Sequence[int], keys: Sequence[str], seed: int) -> list[list[int]]:
    """For each class that occurs, in order, the indices of its items in the order of :func:`shuffled`."""
    groups: dict[int, list[int]] = {}
    for index in shuffled(keys, seed):
        groups.setdefault(int(labels[index]), []).append(index)
    return [groups[label] for label in sorted(groups)]


def label_fraction(labels: Sequence[int], keys: Sequence[str], percent: float, seed: int) -> list[int]:
    """Sorted indices of `percent` % of every class, at least one item of each.

    Raises ValueError unless 0 < percent <= 100.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"fraction is a percentage above 0 and up to 100, got {percent}")
    groups = by_class(labels, keys, seed)
    return sorted(i for group in groups for i in group[: max(1, round(len(group) * percent / 100))])


def hold_out(labels: Sequence[int], keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Sorted indices kept and held out: `share` of every class, at least one item of each class that has two.

    A class's only item is kept. Raises ValueError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out must be between 0 and 1, got {share}")
    kept, held = [], []
    for group in by_class(labels, keys, seed):
        count = min(len(group) - 1, max(1, round(len(group) * share)))
        held += group[:count]
        kept += group[count:]
    return sorted(kept), sorted(held)
