"""Ordinary fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpgm.methods.base import Method, register


@register
@dataclass(frozen=True, kw_only=True)
class Vanilla(Method):
    """All weights are trained, nothing holds them back."""

    name: ClassVar[str] = "vanilla"
    about: ClassVar[str] = "fine-tune all weights"
