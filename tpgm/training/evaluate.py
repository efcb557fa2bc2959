"""Accuracies with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm._engine.gradients import eval_mode

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total` test images or texts.

    confusion: how many of label i were answered j, where the data ask for it (`keep_confusion`), else ().
    """

    correct: int
    total: int
    confusion: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError for counts that cannot be."""
        check.number("total", self.total, 1, whole=True)
        check.number(f"correct of {self.total}", self.correct, 0, self.total, whole=True)

    @classmethod
    def of(cls, counts: Tensor) -> Accuracy:
        """From what `count` returned."""
        if counts.dim() == 1:
            return cls(int(counts[1]), int(counts.sum()))
        return cls(int(counts.trace()), int(counts.sum()), tuple(map(tuple, counts.tolist())))

    @property
    def value(self) -> float:
        """The share of correct answers, in [0, 1]."""
        return self.correct / self.total

    @property
    def counts(self) -> dict[str, Any]:
        """The counts as JSON values; "confusion" among them only if it was kept."""
        kept = {"confusion": [list(row) for row in self.confusion]} if self.confusion else {}
        return {"correct": self.correct, "total": self.total, **kept}

    @property
    def macro_f1(self) -> float:
        """The mean over labels of F1, the harmonic mean of precision and recall, in [0, 1].

        A label without any item or answer counts 0. Raises ValueError if no confusion was kept.
        """
        if not self.confusion:
            raise ValueError("macro-F1 needs the confusion, which was not kept for these data")
        of_label, of_answer = [sum(row) for row in self.confusion], [sum(c) for c in zip(*self.confusion, strict=True)]
        right = [row[n] for n, row in enumerate(self.confusion)]
        scores = [2 * r / max(1, a + b) for r, a, b in zip(right, of_label, of_answer, strict=True)]
        return math.fsum(scores) / len(scores)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the share (sampling of test images only, not of training runs)."""
        n, p, z2 = self.total, self.value, Z95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def answers(logits: Tensor, class_subset: Tensor | None = None) -> Tensor:
    """The arg max of each row, (B,) int64.

    logits: (B, C); class_subset: (K,) int64, the classes that can occur (ImageNet-A, ImageNet-R): the arg max is then
    over these alone.
    """
    if class_subset is None:
        return logits.argmax(dim=1)
    subset = class_subset.to(logits.device)
    return subset[logits[:, subset].argmax(dim=1)]


@torch.no_grad()
def count(
    net: nn.Module, inputs: Iterable[tuple[Tensor, Tensor]], classes: int, data: Any, device: torch.device
) -> Tensor:
    """Answers of a network in eval mode, whose modes are put back: wrong and right ones, shape (2,), int64.

    inputs: (images, labels), on `device`. data: the test set they are of; where it keeps the confusion
    (`keep_confusion`) the shape is (classes, classes): how many of label i were answered j.
    """
    keep = getattr(data, "keep_confusion", False)
    counts = torch.zeros(classes**2 if keep else 2, dtype=torch.int64, device=device)
    with eval_mode(net):
        for x, labels in inputs:
            found = answers(net(x), data.class_subset)
            cells = labels * classes + found if keep else (labels == found).long()
            counts += torch.bincount(cells, minlength=len(counts))
    return counts.view(classes, classes) if keep else counts


def mean_accuracy(parts: dict[str, Accuracy]) -> float:
    """The unweighted mean over test sets, in [0, 1]: what "OOD accuracy" means in the published tables.

    Raises ValueError without any.
    """
    if not parts:
        raise ValueError("parts is empty, {}: give the accuracy of at least one test set")
    return float(torch.tensor([a.value for a in parts.values()], dtype=torch.float64).mean())
