"""What TPGM's methods share: settings of the radii, the constraint, and one projection update on validation data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn.functional import cross_entropy

from tpgm.buffers import Buffers
from tpgm.constraint import TPGM, Start, Unit
from tpgm.methods.base import Context, Method, setting
from tpgm.projection import Norm


def norm_setting() -> Any:
    """The setting that says how a displacement is measured."""
    return setting("mars", "mars (L1 norm of each row) or l2 (Euclidean norm of the tensor)", choices=get_args(Norm))


def radius_lr_setting() -> Any:
    """The setting of the radii's learning rate."""
    return setting(1e-2, "learning rate of Adam on the radii")


@dataclass(frozen=True, kw_only=True)
class LearnedRadii(Method):
    """Base of the methods that learn radii on held-out data (arXiv 2303.10720)."""

    norm: Norm = norm_setting()
    radius_lr: float = radius_lr_setting()
    val_batch_size: int = setting(64, "validation images of a projection update", low=1)
    tv: float = setting(0.0, "strength of the total variation of neighbouring ratios")
    penalty: float = setting(0.0, "strength of the squared radii (TPGM-C)")
    unit: Unit = setting(
        "norm",
        "norm: radius_lr in the unit of the norm (published); weight: for each weight of a row or tensor",
        choices=get_args(Unit),
    )
    start: Start = setting(
        "half-smallest",
        "first radius: half-smallest (published) or largest row norm (no constraint at first)",
        choices=get_args(Start),
    )
    val_data: Literal["val", "train"] = setting(
        "val",
        "what radii are learned on: val, or train (for the ablation that asks whether it matters)",
        choices=("val", "train"),
    )
    buffers: Buffers = setting(
        "keep",
        "BatchNorm's running statistics when weights are projected: keep (published), move with their module's ratio, "
        "or reestimate on the training images, once, after the last projection",
        choices=get_args(Buffers),
    )
    outer_loss: Literal["labels", "entropy"] = setting(
        "labels",
        "labels (cross-entropy) or entropy (of the predictions, without labels)",
        choices=("labels", "entropy"),
    )

    def constraint(self, context: Context, buffers: Buffers | None) -> TPGM:
        """A new constraint on the network around its anchor; buffers: as in `tpgm.TPGM`."""
        return TPGM(
            context.net,
            anchor=context.anchor,
            norm=self.norm,
            exclude=context.exclude,
            lr=self.radius_lr,
            penalty=self.penalty,
            tv=self.tv,
            unit=self.unit,
            start=self.start,
            buffers=buffers,
        )

    def update(self, context: Context, number: int) -> None:
        """One projection update on batch `number` of the data that radii are learned on."""
        x, y = context.batch(self.val_data, self.val_batch_size, number)

        def closure() -> Tensor:
            with context.autocast():
                logits = context.net(x)
                # with the predictions as labels: their mean entropy
                return cross_entropy(logits, logits.softmax(dim=1) if self.outer_loss == "entropy" else y)

        context.learner.update(closure)
