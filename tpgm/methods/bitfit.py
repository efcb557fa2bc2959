"""BitFit (Zaken et al., ACL 2022, arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from tpgm.methods.base import Context, Method, register
from tpgm.names import NORMALIZATIONS, aliases, canonical, unwrap


@register
@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Biases, normalization layers and the head are trained."""

    name: ClassVar[str] = "bitfit"
    about: ClassVar[str] = "fine-tune biases, normalization layers and the head (arXiv 2106.10199)"

    def trainable(self, context: Context) -> set[str]:
        return set(context.head) | norm_and_bias_names(context.net)


def norm_and_bias_names(model: nn.Module) -> set[str]:
    """Names of all biases and of the weights of normalization layers."""
    names = {name for name in aliases(model) if name.endswith("bias")}
    for prefix, module in unwrap(model).named_modules():
        if isinstance(module, NORMALIZATIONS):
            names |= {canonical(f"{prefix}.{name}") for name, _ in module.named_parameters(recurse=False)}
    return names
