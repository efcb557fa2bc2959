"""The distance as a penalty (Gouk et al., ICLR 2021, arXiv 2002.08253): ``λ Σ_l ‖θ_l − θ⁰_l‖`` in the training loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tpgm.methods.base import Context, Method, register, setting
from tpgm.methods.learned_radii import norm_setting
from tpgm.names import anchored
from tpgm.projection import Norm, row_norms


@register
@dataclass(frozen=True, kw_only=True)
class MARSPenalty(Method):
    """The distance of every parameter to its anchor is penalised."""

    name: ClassVar[str] = "mars-penalty"
    about: ClassVar[str] = "penalty λ Σ ‖θ_l − θ⁰_l‖, the largest row norm of each tensor (arXiv 2002.08253)"

    norm: Norm = norm_setting()
    strength: float = setting(1e-3, "λ")

    def extra_loss(self, context: Context) -> Tensor:
        return mars_penalty(context.net, context.anchor, self.strength, self.norm)


def mars_penalty(model: nn.Module, anchor: Mapping[str, Tensor], strength: float, norm: Norm = "mars") -> Tensor:
    """The penalty, a scalar, over the parameters that have an anchor; a tensor's norm is its largest row norm."""
    return strength * torch.stack([row_norms(p - start, norm).max() for p, start in anchored(model, anchor)]).sum()
