"""SPD (Tian et al., NeurIPS 2024, arXiv 2411.01713): decay towards the anchor where the gradient asks to come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from tpgm.methods.base import Context, Method, anchor_groups, register, setting
from tpgm.optim import AdamSPD


@register
@dataclass(frozen=True, kw_only=True)
class WithSPD(Method):
    """AdamSPD takes the optimizer's place."""

    name: ClassVar[str] = "spd"
    about: ClassVar[str] = "AdamSPD: decay towards the anchor where the gradient asks to come back (arXiv 2411.01713)"

    optimizer: Literal["adamw"] = setting("adamw", "adamw: the method is an Adam", choices=("adamw",))
    strength: float = setting(1.0, "λ")

    def make_optimizer(self, context: Context, parameters: Mapping[str, nn.Parameter], lr: float) -> AdamSPD:
        groups = anchor_groups(context, parameters)
        return AdamSPD(groups, lr=lr, strength=self.strength, weight_decay=self.weight_decay)
