"""LP-FT (Kumar et al., ICLR 2022, arXiv 2202.10054)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpgm.methods.base import Method, other_default, register


@register
@dataclass(frozen=True, kw_only=True)
class LPFT(Method):
    """Linear probing, then ordinary fine-tuning from the head found."""

    name: ClassVar[str] = "lp-ft"
    about: ClassVar[str] = "the head first, then all weights (arXiv 2202.10054)"

    head_epochs: int = other_default("head_epochs", 2)
