"""TPGM along with the training (Tian et al., CVPR 2023, arXiv 2303.10720, algorithm 1).

After a training step: θ̃ by the optimizer; the radii γ by Adam on the validation loss of Π(θ̃, γ); θ ← Π(θ̃, γ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tpgm.buffers import reestimate
from tpgm.constraint import TPGM
from tpgm.methods.base import Context, register, setting
from tpgm.methods.learned_radii import LearnedRadii


@register
@dataclass(frozen=True, kw_only=True)
class TPGMEachStep(LearnedRadii):
    """Projection updates and a projection after every `every` training steps."""

    name: ClassVar[str] = "tpgm"
    about: ClassVar[str] = "radii learned on validation data along with the weights (arXiv 2303.10720)"

    every: int = setting(1, "training steps between projections", low=1)
    updates: int = setting(1, "projection updates before each projection", low=1)
    begin: float = setting(
        0.0, "share of the training steps that are free, before the first projection update", high=1, below=True
    )

    def check(self) -> None:
        if self.begin and self.patience:
            raise ValueError(
                "begin and patience do not go together: training could stop before the first projection; leave one at 0"
            )

    def enter(self, context: Context, stage: str) -> TPGM:
        return self.constraint(context, self.buffers)

    def after_step(self, context: Context, step: int) -> None:
        free = step + 1 <= self.begin * context.steps  # the weights leave their anchor first
        if free or (step + 1) % self.every:
            return
        for update in range(self.updates):
            self.update(context, (step + 1) // self.every * self.updates + update)
        context.learner.project_(unmoved=True)

    def finish(self, context: Context) -> nn.Module:
        if self.buffers == "reestimate":
            reestimate(context.net, context.inputs())
        return context.net
