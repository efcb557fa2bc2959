"""Auto-RGN (Lee et al., Surgical fine-tuning, ICLR 2023, arXiv 2210.11466)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from tpgm.methods.base import Context, Method, ordinary_optimizer, register


@register
@dataclass(frozen=True, kw_only=True)
class AutoRGN(Method):
    """Each tensor's learning rate is in proportion to its relative gradient norm ``‖g‖ / ‖θ‖``, the largest having lr.

    The norms are taken anew at each step.
    """

    name: ClassVar[str] = "auto-rgn"
    about: ClassVar[str] = "learning rates by relative gradient norm (arXiv 2210.11466)"

    def make_optimizer(self, context: Context, parameters: Mapping[str, nn.Parameter], lr: float) -> Any:
        optimizer = ordinary_optimizer(self, parameters, lr)
        common = {key: value for key, value in optimizer.param_groups.pop().items() if key != "params"}
        for p in parameters.values():
            optimizer.add_param_group({**common, "params": [p]})
        optimizer.register_step_pre_hook(lambda chosen, *_: scale(chosen))
        return optimizer


@torch.no_grad()
def scale(optimizer: torch.optim.Optimizer) -> None:
    """Multiply the learning rate of each group, one tensor each, by its share of the largest ``‖g‖ / ‖θ‖``.

    A tensor without a gradient, and one that is 0 everywhere, are left alone and have no part in the largest.
    """
    tensors = [group["params"][0] for group in optimizer.param_groups]
    norms = torch.stack([p.norm() if p.grad is None else p.grad.norm() / p.norm() for p in tensors]).tolist()
    known = {i: n for i, n in enumerate(norms) if tensors[i].grad is not None and 0 <= n < float("inf")}
    largest = max(known.values(), default=0.0)
    for i, norm in known.items():
        optimizer.param_groups[i]["lr"] *= norm / largest if largest else 1.0
