"""Which icons of the npm package @iconify/json are used, and what they show: names, licences, designers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tpgm.names import matches

Subset = Literal["downstream", "upstream", "named"]


@dataclass(frozen=True)
class IconSet:
    """One icon set as its own metadata describe it. license: SPDX identifier; count: icons used here."""

    prefix: str
    name: str
    author: str
    url: str
    license: str
    license_url: str
    category: str
    palette: bool
    count: int = 0

    @property
    def is_emoji(self) -> bool:
        """A coloured set of emoji. One such set carries the word in its name only, not as its category."""
        return self.palette and (self.category == "Emoji" or "emoji" in self.prefix)


@dataclass(frozen=True)
class Icon:
    """One icon to draw: its set, its name there, its class and its drawing as a standalone SVG document."""

    prefix: str
    name: str
    concept: str
    svg: str


@cache
def concepts() -> Mapping[str, Any]:
    """The word lists of ``icon_concepts.json``: classes and their words, style words, licences, the pinned source."""
    found: dict[str, Any] = json.loads(
        files("tpgm.book.icon_benchmark").joinpath("icon_concepts.json").read_text(encoding="utf-8")
    )
    return found


def class_of_word(subset: Subset) -> dict[str, str]:
    """Word in an icon's name -> class. An upstream word is its own class."""
    if subset == "upstream":
        return {word: word for word in concepts()["upstream"]}
    return {word: name for name, words in concepts()["downstream"].items() for word in words}


def concept_of(name: str, words: Mapping[str, str]) -> str | None:
    """The class of an icon's name: split at "-", without style words, exactly one word is left and it is known."""
    style = set(concepts()["style_words"])
    left = [word for word in name.split("-") if word not in style]
    return words.get(left[0]) if len(left) == 1 else None


def admitted(info: Mapping[str, Any]) -> bool:
    rules = concepts()
    return (
        info["license"].get("spdx") in rules["allowed_licences"]
        and info.get("category") not in rules["skip_categories"]
    )


def name_without_style(name: str) -> str:
    """What an icon's name says of the thing: "alarm clock" for "alarm-clock-outline-24"; "" if nothing is left."""
    style = set(concepts()["style_words"])
    return " ".join(word for word in name.split("-") if word and word not in style and not word.isdigit())


def read_package(path: Path, subset: Subset) -> tuple[list[Icon], dict[str, IconSet]]:
    """The icons of the subset's classes, or with their names, sorted by set and name, and every admitted set.

    subset: "named" takes every icon, whose concept is its name without style words. path: the package as npm packs it
    (a gzipped tar). Its JSON members are read as a stream; nothing is extracted to disk. Raises RuntimeError if it is
    not such a package.
    """
    if subset == "named":
        find = name_without_style
    else:
        words = class_of_word(subset)
        find = lambda name: concept_of(name, words) or ""  # noqa: E731
    collections, icons = None, []
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                is_set = member.name.startswith("package/json/") and member.name.endswith(".json")
                if not member.isfile() or not (is_set or member.name == "package/collections.json"):
                    continue
                file = archive.extractfile(member)
                assert file is not None  # it is only for members that are no files
                content = json.load(file)
                if is_set:
                    icons += _icons_of(content, find)
                else:
                    collections = content
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError) as error:
        raise RuntimeError(f"{path.name} is not a readable icon package: {error}") from error
    if collections is None:
        raise RuntimeError(f"{path.name} is not an icon package: it has no collections.json")
    sets = {prefix: _icon_set(prefix, info) for prefix, info in collections.items() if admitted(info)}
    return sorted((i for i in icons if i.prefix in sets), key=lambda i: (i.prefix, i.name)), sets


def _icon_set(prefix: str, info: Mapping[str, Any]) -> IconSet:
    author, terms = info["author"], info["license"]
    return IconSet(
        prefix,
        info["name"],
        author["name"],
        author.get("url", ""),
        terms["spdx"],
        terms.get("url", ""),
        info.get("category", ""),
        bool(info.get("palette")),
    )


def _icons_of(content: Mapping[str, Any], find: Callable[[str], str]) -> list[Icon]:
    found, prefix = [], content["prefix"]
    for name, icon in content["icons"].items():
        concept, body = find(name), icon["body"]
        # an animation's first frame is often empty; text and linked images depend on the machine
        if not concept or any(tag in body for tag in ("<animate", "<set", "<text", "<image")):
            continue
        if matches(f"{prefix}:{name}", concepts()["skip_icons"]):
            continue
        box = {key: icon.get(key, content.get(key, default)) for key, default in _BOX.items()}
        found.append(Icon(prefix, name, concept, _document(body, **box)))
    return found


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}  # the format's own defaults


def _document(body: str, left: float, top: float, width: float, height: float) -> str:
    """The icon centred in a square; its current colour is black."""
    side = max(width, height)
    corner = f"{left - (side - width) / 2} {top - (side - height) / 2}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{corner} {side} {side}">{body}</svg>'
