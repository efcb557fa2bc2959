"""L2-SP (Li et al., ICML 2018, arXiv 1802.01483): ``a/2 ‖θ − θ⁰‖² + b/2 ‖θ_new‖²`` is added to the training loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tpgm.methods.base import Context, Method, register, setting
from tpgm.names import canonical, unwrap


@register
@dataclass(frozen=True, kw_only=True)
class L2SP(Method):
    """The squared distance to the anchor, and the squared length of a new head, are penalised."""

    name: ClassVar[str] = "l2-sp"
    about: ClassVar[str] = "penalty a/2 ‖θ − θ⁰‖² on the backbone and b/2 ‖θ‖² on the head (arXiv 1802.01483)"

    strength: float = setting(0.1, "a")
    head_strength: float = setting(0.01, "b")

    def extra_loss(self, context: Context) -> Tensor:
        return l2_sp(context.net, context.anchor, self.strength, self.head_strength)


def l2_sp(model: nn.Module, anchor: Mapping[str, Tensor], strength: float, head_strength: float) -> Tensor:
    """The penalty, a scalar, over the parameters being trained; new are those without an anchor."""
    terms = [
        0.5 * strength * (p - anchor[name]).square().sum() if name in anchor else 0.5 * head_strength * p.square().sum()
        for name, p in ((canonical(name), p) for name, p in unwrap(model).named_parameters())
        if p.requires_grad
    ]
    return torch.stack(terms).sum()
