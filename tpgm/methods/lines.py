"""LiNeS, layer-increasing network scaling (Wang et al., ICLR 2025, arXiv 2410.17146)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tpgm.interpolation import interpolate
from tpgm.methods.base import Context, Method, register, setting
from tpgm.names import blocks, names_left


@register
@dataclass(frozen=True, kw_only=True)
class LiNeS(Method):
    """After fine-tuning each block goes back to the anchor by a ratio that rises linearly with depth.

    Blocks are those of `tpgm.names.blocks`, in the order of the network. BatchNorm's running statistics move along with
    their module's ratio.
    """

    name: ClassVar[str] = "lines"
    about: ClassVar[str] = "ratios that rise linearly with depth after fine-tuning (arXiv 2410.17146)"

    shallow: float = setting(0.5, "ratio of the first block", high=1)
    deep: float = setting(1.0, "ratio of the last block", high=1)

    def finish(self, context: Context) -> nn.Module:
        ratios = by_depth(names_left(context.net, context.exclude), self.shallow, self.deep)
        return interpolate(context.net, context.anchor, ratios, exclude=context.exclude)


def by_depth(names: Iterable[str], shallow: float, deep: float) -> dict[str, float]:
    """``shallow + (deep − shallow) l / (L − 1)`` for block l = 0 … L − 1 of the parameters `names`, by name."""
    found = list(blocks(names).values())
    steps = max(1, len(found) - 1)
    return {name: shallow + (deep - shallow) * depth / steps for depth, block in enumerate(found) for name in block}
