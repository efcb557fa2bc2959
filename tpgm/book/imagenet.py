"""ImageNet and four test sets that shift it, read from their official layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tpgm.data.folders import LeftOut, class_folders, labelled_images, same_classes, split_off, thin, warn_of
from tpgm.data.images import resize_and_crop
from tpgm.data.splits import DataSplits, ImageFiles

# name -> folder inside root, what to download
SHIFTS = {
    "v2": (
        "imagenetv2-matched-frequency-format-val",
        "imagenetv2-matched-frequency.tar.gz (ImageNetV2, about 1.3 GB)",
    ),
    "a": ("imagenet-a", "imagenet-a.tar (ImageNet-A, natural adversarial examples, about 0.7 GB)"),
    "r": ("imagenet-r", "imagenet-r.tar (ImageNet-R, renditions, about 2.2 GB)"),
    "sketch": ("sketch", "ImageNet-Sketch.zip (about 7.6 GB)"),
}
_ID = {
    "train": "ILSVRC2012_img_train.tar (ImageNet 2012 training images, about 138 GB)",
    "val": "ILSVRC2012_img_val.tar (ImageNet 2012 validation images, about 6.3 GB), sorted into one folder per wnid",
}


def imagenet(
    root: str | Path,
    ood: Sequence[str] = ("v2", "a", "r", "sketch"),
    *,
    fraction: float = 100,
    val_share: float = 0.02,
    seed: int = 0,
    transform: Callable[[Any], Any] | None = None,
    train_transform: Callable[[Any], Any] | None = None,
) -> DataSplits:
    """ImageNet as ID; ImageNetV2 (matched frequency), ImageNet-A, ImageNet-R and ImageNet-Sketch as OOD tests.

    root holds the folders "train" and "val" (one folder per WordNet id, wnid), and of those named in `ood`
    "imagenetv2-matched-frequency-format-val" (folders "0" … "999"), "imagenet-a", "imagenet-r", "sketch" (wnids).
    Class k is the k-th wnid of "train" in sorted order, which is the usual order of ImageNet labels, so that
    pre-trained heads fit; class_names are wnids. The official "val" is the ID test; validation data are `val_share` of
    the training images, class by class, after `fraction` (percentage of the labels) is taken.

    ImageNet-A and ImageNet-R hold 200 of the 1,000 classes each: their labels stay 0 … 999, and ``class_subset`` holds
    the classes that occur, among which alone the arg max is taken (see :class:`tpgm.data.ImageFiles`). transform,
    train_transform and dtypes as in :func:`tpgm.data.image_folder`. Listing the training images takes a while.

    Raises FileNotFoundError saying what to download, how large it is and where to put it; ValueError for an unknown
    name in `ood`, a folder that is no class, or a class without images.
    """
    root = Path(root)
    for name in ood:
        if name not in SHIFTS:
            raise ValueError(f"unknown shift {name!r}; choose among {', '.join(SHIFTS)}")
    for folder, archive in [*_ID.items(), *(SHIFTS[name] for name in ood)]:
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"{root / folder} is missing: download {archive} and unpack it to {root / folder}")
    left = LeftOut()
    wnids = class_folders(root / "train", left)
    every = labelled_images(root / "train", wnids, left)
    train, val = split_off(thin(every, root, fraction, seed), root, val_share, seed)
    transform = transform or resize_and_crop()
    found = DataSplits(
        name="imagenet",
        id_domain="imagenet",
        class_names=tuple(wnids),
        train=ImageFiles(*train, train_transform or transform),
        val=ImageFiles(*val, transform),
        id_test=ImageFiles(*same_classes(root / "val", wnids, left), transform),
        ood_tests={name: _shifted(root / SHIFTS[name][0], wnids, name == "v2", transform, left) for name in ood},
    )
    warn_of(left, root)
    return found


def _shifted(
    folder: Path, wnids: Sequence[str], numbered: bool, transform: Callable[[Any], Any], left: LeftOut
) -> ImageFiles:
    paths, labels = same_classes(folder, [str(k) for k in range(len(wnids))] if numbered else wnids, left)
    occurring = sorted(set(labels))
    return ImageFiles(paths, labels, transform, torch.tensor(occurring) if len(occurring) < len(wnids) else None)
