"""Partial fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpgm.methods.base import Context, Method, register, setting
from tpgm.names import aliases, matches, require_match


@register
@dataclass(frozen=True, kw_only=True)
class Partial(Method):
    """The head and the parameters that patterns name are trained. Raises ValueError for one that matches nothing."""

    name: ClassVar[str] = "partial"
    about: ClassVar[str] = "fine-tune a named part and the head"

    train: tuple[str, ...] = setting(
        (), "fnmatch patterns of the parameters to train besides the head, separated by commas"
    )

    def check(self) -> None:
        if not self.train:
            raise ValueError("partial needs train: patterns of the parameters to train, such as train=['layer4.*']")

    def trainable(self, context: Context) -> set[str]:
        names = aliases(context.net)
        train = [require_match(pattern, names, "train") for pattern in self.train]
        return set(context.head) | {name for name in names if matches(name, train)}
