"""WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tpgm.interpolation import interpolate
from tpgm.methods.base import Context, Method, register, setting


@register
@dataclass(frozen=True, kw_only=True)
class WiSEFT(Method):
    """After ordinary fine-tuning all weights go back along the straight line to the anchor, by one ratio."""

    name: ClassVar[str] = "wise-ft"
    about: ClassVar[str] = "one ratio for all weights after fine-tuning (arXiv 2109.01903)"

    alpha: float = setting(0.5, "the ratio: 0 is the pre-trained model, 1 the fine-tuned one", low=-math.inf)
    path: int = setting(0, "evaluate so many ratios between 0 and 1 as well")

    def further(self, context: Context) -> Iterator[tuple[float, nn.Module]]:
        for i in range(self.path):
            alpha = i / max(1, self.path - 1)
            yield alpha, interpolate(context.net, context.anchor, alpha, exclude=context.exclude)

    def finish(self, context: Context) -> nn.Module:
        return interpolate(context.net, context.anchor, self.alpha, exclude=context.exclude)
