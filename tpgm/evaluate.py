"""Accuracies with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total` test images."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        """The share of correct answers, in [0, 1]."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the share (sampling of test images only, not of training runs)."""
        n, p, z2 = self.total, self.value, Z95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def correct_answers(logits: Tensor, labels: Tensor, class_subset: Tensor | None = None) -> Tensor:
    """How many arg max answers are right, a scalar int64 tensor.

    logits: (B, C); labels: (B,) int64; class_subset: (K,) int64, the classes that can occur (ImageNet-A, ImageNet-R):
    the arg max is then over these alone.
    """
    if class_subset is None:
        return (logits.argmax(dim=1) == labels).sum()
    subset = class_subset.to(logits.device)
    return (subset[logits[:, subset].argmax(dim=1)] == labels).sum()


def mean_accuracy(parts: dict[str, Accuracy]) -> float:
    """The unweighted mean over test sets, in [0, 1]: what "OOD accuracy" means in the published tables."""
    return float(torch.tensor([a.value for a in parts.values()], dtype=torch.float64).mean())
