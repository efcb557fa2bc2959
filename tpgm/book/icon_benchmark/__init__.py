"""The book's benchmark: one concept drawn in many styles, from openly licensed icons."""

from tpgm.book.icon_benchmark.iconify import IconSet
from tpgm.book.icon_benchmark.icons import IconCollection, icon_collection, icons, icons_upstream
from tpgm.book.icon_benchmark.named import NamedIcons, named_icons
from tpgm.book.icon_benchmark.render import DOMAINS

__all__ = [
    "DOMAINS",
    "IconCollection",
    "IconSet",
    "NamedIcons",
    "icon_collection",
    "icons",
    "icons_upstream",
    "named_icons",
]
