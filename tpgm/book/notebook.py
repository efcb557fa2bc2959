"""What the chapters' notebooks share: profiles that set the size of a run, and how tables are shown."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tpgm.names import in_markdown

if TYPE_CHECKING:
    import pandas as pd


class Markup(str):
    """Markdown that is meant: `markdown` leaves it as it is, except for HTML."""


def code(text: object) -> Markup:
    """A name or value as code."""
    return Markup("`{}`".format(str(text).replace("`", "'")))


PROFILES = ("smoke", "quick", "full")
_FIGURE = re.compile(r"(\*\*)?[-−–]?[\d–]")  # a number, perhaps in bold


def settings(profile: str, **choices: Mapping[str, Any]) -> SimpleNamespace:
    """Pick each setting's value for a profile.

    ``settings("quick", draws={"smoke": 200, "quick": 10_000, "full": 10**6}).draws`` is 10 000.
    profile: "smoke" (seconds, for tests), "quick" (the book's build on 2 CPU cores) or "full". Raises ValueError
    for an unknown profile, and for a setting that does not name all three.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose one of {', '.join(map(repr, PROFILES))}")
    for name, values in choices.items():
        if set(values) != set(PROFILES):
            raise ValueError(f"setting {name!r} must name exactly {PROFILES}, got {tuple(values)}")
    return SimpleNamespace(**{name: values[profile] for name, values in choices.items()})


def record(**values: Any) -> None:
    """Put values into the result row of the sweep that runs this notebook; elsewhere nothing happens.

    values: what JSON can hold. Raises TypeError for anything else, wherever the notebook runs.
    """
    line = json.dumps(values)
    if path := os.environ.get("TPGM_RECORD"):
        with open(path, "a", encoding="utf8") as file:
            file.write(line + "\n")


def hardware() -> str:
    """One line: the GPU that PyTorch found, or what to do to get one in Colab."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU found; in Colab choose one under Runtime > Change runtime type"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"GPU: {torch.cuda.get_device_name(0)}, {memory:.0f} GB"


def markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, without its index: columns of figures on the right, "–" for what
    is absent.

    Of ``frame.attrs``: digits (1): decimals of floats; note: a line below. Texts are shown as they are, a `Markup` as
    Markdown without HTML.
    """
    digits = frame.attrs.get("digits", 1)
    cells = [[_text(cell, digits) for cell in row] for row in frame.itertuples(index=False, name=None)]
    given = [[row[n] for row in cells if row[n]] for n in range(len(frame.columns))]
    right = [n > 0 and 2 * sum(bool(_FIGURE.match(c)) for c in column) > len(column) for n, column in enumerate(given)]
    rule = "".join("---:|" if r else "---|" for r in right)
    lines = [" | ".join(_text(str(name), digits) for name in frame.columns), *(" | ".join(row) for row in cells)]
    table = "\n".join([f"| {lines[0]} |", f"|{rule}", *(f"| {line} |" for line in lines[1:])])
    return f"{table}\n\n{frame.attrs['note']}" if "note" in frame.attrs else table


def _text(cell: Any, digits: int) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, float):
        return f"{cell:.{digits}f}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    if isinstance(cell, Markup):
        return cell.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
    return in_markdown(str(cell))


def show(*parts: str | pd.DataFrame) -> Any:
    """Texts and data frames below each other, as a chapter displays them."""
    from IPython.display import Markdown

    return Markdown("\n\n".join(part if isinstance(part, str) else markdown(part) for part in parts))
