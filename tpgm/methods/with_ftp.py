"""FTP (Tian et al., NeurIPS 2023, arXiv 2310.19182): radii learned from the training gradient inside the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from tpgm.methods.base import MOMENTUM, Context, Method, anchor_groups, register, setting
from tpgm.methods.learned_radii import norm_setting, radius_lr_setting
from tpgm.optim import SGDP, AdamP
from tpgm.projection import Norm


@register
@dataclass(frozen=True, kw_only=True)
class WithFTP(Method):
    """AdamP, or SGDP with `optimizer` "sgd", takes the optimizer's place."""

    name: ClassVar[str] = "ftp"
    about: ClassVar[str] = (
        "radii learned from the training gradient inside the optimizer: AdamP or SGDP (arXiv 2310.19182)"
    )

    norm: Norm = norm_setting()
    radius_lr: float = radius_lr_setting()
    kappa: float = setting(1.0, "in [0, 1]; smaller lets constraints loosen", high=1)

    def make_optimizer(self, context: Context, parameters: Mapping[str, nn.Parameter], lr: float) -> Any:
        own = {"kappa": self.kappa, "norm": self.norm, "radius_lr": self.radius_lr}
        make: Any = partial(SGDP, momentum=MOMENTUM) if self.optimizer == "sgd" else AdamP
        return make(anchor_groups(context, parameters), lr=lr, weight_decay=self.weight_decay, **own)

    def learned(self, context: Context) -> tuple[dict[str, float], dict[str, float]]:
        optimizer = getattr(context.optimizer, "optimizer", context.optimizer)  # inside accelerate's wrapper
        return (optimizer.ratios(), dict(optimizer.radii)) if isinstance(optimizer, SGDP | AdamP) else ({}, {})
