"""A synthetic sample of the icon benchmark: an icon package of a few invented sets, made in code.

It goes through the same code as the real package, so that tests and a first run need no network. Its drawings are
this project's own.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

# outlines in a 24 x 24 box, one a class
_SHAPES = {
    "home": "M4 12 12 4 20 12V20H4Z",
    "star": "M12 3 14.6 9 21 9.6 16.2 13.9 17.6 20.4 12 17 6.4 20.4 7.8 13.9 3 9.6 9.4 9Z",
    "moon": "M15 4A8 8 0 1 0 20 15 7 7 0 0 1 15 4Z",
    "flag": "M6 3H19L16 8 19 13H9V21H6Z",
    "envelope": "M3 6H21V18H3Z",
    "lightbulb": "M12 3A6 6 0 0 1 15 14V17H9V14A6 6 0 0 1 12 3ZM10 19H14V21H10Z",
    "plus": "M10 4H14V10H20V14H14V20H10V14H4V10H10Z",
    "triangle": "M12 4 21 20H3Z",
    "square": "M5 5H19V19H5Z",
    "diamond": "M12 3 20 12 12 21 4 12Z",
}
_STYLES = {
    "solid": '<path d="{d}"/>',
    "outline": '<path fill="none" stroke="currentColor" stroke-width="{width}" d="{d}"/>',
    "duotone": '<path opacity=".4" d="{d}"/><path fill="none" stroke="currentColor" d="{d}"/>',
    "color": '<path fill="{color}" d="{d}"/>',
    "emoji": '<path fill="{color}" stroke="#222" stroke-width="{width}" d="{d}"/>',
}
_COLORS = ("#d33", "#27b", "#2a5", "#e90", "#83c", "#0a9")
_DESIGNERS = 6
DESIGNER_SPLITS = {"Designer 3": "val", "Designer 4": "test", "Designer 5": "test"}
ZERO_SHOT_DESIGNERS, DEVELOPMENT_DESIGNERS = ("Designer 0",), ("Designer 2",)


def package(folder: Path) -> Path:
    """Write the package's tarball into `folder`: six designers, a set per style each, three views of every shape."""
    path = folder / "tiny.tgz"
    collections, sets = {}, {}
    for number in range(_DESIGNERS):
        for style in _STYLES:
            prefix = f"tiny-{style}-{number}"
            colored = style in ("color", "emoji")
            collections[prefix] = {
                "name": f"Tiny {style} {number}",
                "author": {"name": f"Designer {number}"},
                "license": {"spdx": "CC0-1.0"},
                "category": "Emoji" if style == "emoji" else "UI 24px",
                "palette": colored,
            }
            sets[prefix] = {"prefix": prefix, "width": 24, "height": 24, "icons": _icons(style, number)}
    with tarfile.open(path, "w:gz") as archive:
        members = {"collections": collections, **{f"json/{prefix}": content for prefix, content in sets.items()}}
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _icons(style: str, number: int) -> dict[str, dict[str, str]]:
    icons = {}
    for index, (shape, path) in enumerate(_SHAPES.items()):
        for view, suffix in enumerate(("", "-alt", "-sharp")):
            drawn = _STYLES[style].format(
                d=path, width=1 + 0.2 * (number % 3), color=_COLORS[(index + number + view) % len(_COLORS)]
            )
            turn, slant, size = 12 * (view - 1), 6 * number - 15, 0.9 - 0.06 * view
            move = f'transform="translate(12 12) rotate({turn}) skewX({slant}) scale({size:.2f}) translate(-12 -12)"'
            icons[shape + suffix] = {"body": f"<g {move}>{drawn}</g>"}
    return icons
