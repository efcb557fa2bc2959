"""TPGM once, after ordinary fine-tuning (Tian et al., CVPR 2023, arXiv 2303.10720, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpgm.constraint import TPGM
from tpgm.methods.base import Context, Stage, register, setting
from tpgm.methods.learned_radii import LearnedRadii

RADII = "radii"  # the stage of its own


@register
@dataclass(frozen=True, kw_only=True)
class TPGMEnd(LearnedRadii):
    """Many projection updates at the end of training, then one projection."""

    name: ClassVar[str] = "tpgm-end"
    about: ClassVar[str] = "radii learned on validation data once, after fine-tuning (arXiv 2303.10720)"

    updates: int = setting(200, "projection updates before the projection", low=1)

    def stages(self, epoch: int) -> list[Stage]:
        return [*super().stages(epoch), Stage(RADII, self.updates)]

    def enter(self, context: Context, stage: str) -> TPGM | None:
        # none chosen: TPGM warns where training has changed running statistics
        chosen = None if self.buffers == "keep" else self.buffers
        return self.constraint(context, chosen) if stage == RADII else None

    def own_step(self, context: Context, stage: str, number: int) -> None:
        self.update(context, number)

    def leave(self, context: Context, stage: str) -> None:
        context.learner.project_(batches=context.inputs() if self.buffers == "reestimate" else None)
