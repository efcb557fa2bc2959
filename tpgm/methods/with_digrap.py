"""DiGraP (Huang et al., 2025, arXiv 2502.15895): what of the gradient leads away from the anchor is projected out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from tpgm.methods.base import Context, Method, anchor_groups, register, setting
from tpgm.optim import DiGraP


@register
@dataclass(frozen=True, kw_only=True)
class WithDiGraP(Method):
    """DiGraP's Adam takes the optimizer's place."""

    name: ClassVar[str] = "digrap"
    about: ClassVar[str] = (
        "a learned share of the gradient that leads away from the anchor is projected out (arXiv 2502.15895)"
    )

    optimizer: Literal["adamw"] = setting("adamw", "adamw: the method is an Adam", choices=("adamw",))
    omega_lr: float = setting(0.5, "μ, learning rate of Adam on the share; 0.5 is published")

    def make_optimizer(self, context: Context, parameters: Mapping[str, nn.Parameter], lr: float) -> DiGraP:
        groups = anchor_groups(context, parameters)
        return DiGraP(groups, lr=lr, omega_lr=self.omega_lr, weight_decay=self.weight_decay)
