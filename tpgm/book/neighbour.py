"""The simplest classifier of icons: a floor for what a network must beat, and a probe of how data are split."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from tpgm.book.icon_benchmark.icons import IconCollection
from tpgm.book.icon_benchmark.render import DOMAINS
from tpgm.data.splits import DataSplits, ImageArray, shuffled
from tpgm.training.evaluate import Accuracy

_CELLS = 16
_CHUNK = 256


def nearest_neighbour(train: ImageArray, test: ImageArray) -> Accuracy:
    """How many test images have the label of the training image most like them.

    Likeness: cosine of the grey images, averaged down to 16 x 16 cells, without their mean; contrast and brightness
    do not count, place does.
    """
    known, asked = _features(train.images), _features(test.images)
    correct = 0
    for start in range(0, len(asked), _CHUNK):
        nearest = (asked[start : start + _CHUNK] @ known.T).argmax(dim=1)
        correct += int((train.labels[nearest] == test.labels[start : start + _CHUNK]).sum())
    return Accuracy(correct, len(asked))


def mixed_designers(data: IconCollection, like: DataSplits, seed: int) -> tuple[ImageArray, ImageArray]:
    """Training and test icons of one style, as many as in `like`, drawn from all its icons whoever made them.

    What one would get without splitting by designer. Both come from the classes of `like`.
    """
    keys = data.keys()
    known = torch.tensor([name in like.class_names for name in data.class_names])[data.labels]
    pool = (known & (data.domains == DOMAINS.index(like.id_domain))).nonzero().flatten()
    order = pool[shuffled([keys[i] for i in pool.tolist()], seed)]
    first, count = len(like.train), len(like.id_test)
    train, test = (ImageArray(data.images[i], data.labels[i]) for i in (order[:first], order[first : first + count]))
    return train, test


def _features(images: Tensor) -> Tensor:
    chunks = torch.split(images, _CHUNK)
    grey = torch.cat([adaptive_avg_pool2d(c.float().mean(dim=1, keepdim=True), _CELLS) for c in chunks]).flatten(1)
    grey = grey - grey.mean(dim=1, keepdim=True)
    return normalize(grey, eps=1e-6)
