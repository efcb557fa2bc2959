"""MARS-SP (Gouk et al., ICLR 2021, arXiv 2002.08253): projection on balls of one fixed radius after every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tpgm.methods.base import Context, Method, register, setting
from tpgm.methods.learned_radii import norm_setting
from tpgm.names import anchored
from tpgm.projection import Norm, project


@register
@dataclass(frozen=True, kw_only=True)
class MARSSP(Method):
    """Every parameter that has an anchor stays within one radius of it."""

    name: ClassVar[str] = "mars-sp"
    about: ClassVar[str] = "projection on balls of one fixed radius after every step (arXiv 2002.08253)"

    norm: Norm = norm_setting()
    radius: float = setting(1.0, "of every tensor, in the unit of the norm")

    def after_step(self, context: Context, step: int) -> None:
        project_fixed(context.net, context.anchor, self.radius, self.norm)


@torch.no_grad()
def project_fixed(model: nn.Module, anchor: Mapping[str, Tensor], radius: float, norm: Norm = "mars") -> None:
    """Project every parameter that has an anchor, in place, with one fixed radius."""
    for p, start in anchored(model, anchor):
        p.copy_(project(p, start, radius, norm))
