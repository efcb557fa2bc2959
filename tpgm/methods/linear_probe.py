"""Linear probing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpgm.methods.base import Context, Method, other_default, register


@register
@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Only the head is trained; the backbone stays as it was pre-trained."""

    name: ClassVar[str] = "linear-probe"
    about: ClassVar[str] = "train the new head only"

    lr: float = other_default("lr", 3e-3)

    def trainable(self, context: Context) -> set[str]:
        return set(context.head)
