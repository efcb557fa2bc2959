"""Write the appendix page on mutations: every changed formula, broken assumption or wrong map, and the checks it fails.

    python tools/mutations.py          # run all mutants (about a minute) and rewrite book/mutations.md
    python tools/mutations.py check    # exit 1 if the page differs

The mutants stand in ``tests/mutants_0N.py``; ``tests/test_mutants.py`` runs the same ones.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "mutations.md"
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.mutants import Mutant


def all_mutants() -> list[Mutant]:
    """Those of every ``tests/mutants_0N*.py`` that exists, by chapter."""
    names = sorted(path.stem for path in (ROOT / "tests").glob("mutants_0*.py"))
    found = [mutant for name in names for mutant in importlib.import_module(f"tests.{name}").MUTANTS]
    return sorted(found, key=lambda mutant: mutant.chapter)


def outcome(mutant: Mutant) -> list[str]:
    """The names of the checks that fail under it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return mutant.caught_by(monkeypatch)


def _reference(label: str, labels: set[str]) -> str:
    if label not in labels:
        return f"`{label}`"
    return f"{{eq}}`{label}`" if label.startswith("eq-") else f"{{prf:ref}}`{label}`"


def page(mutants: Sequence[Mutant], outcomes: Sequence[Sequence[str]]) -> str:
    """The page's text. outcomes: for each mutant the names of the checks that fail."""
    pages = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.md")]
    texts = [path.read_text(encoding="utf8") for path in pages if path != PAGE]
    found = [
        name for text in texts for pair in re.findall(r":label: ([\w-]+)|\$\$ \(([\w-]+)\)", text) for name in pair
    ]
    labels = set(found)
    checks = {name for names in outcomes for name in names}
    survivors = sum(not names for names in outcomes)
    lines = [
        "# What the checks catch",
        "",
        "Can the checks of chapters 1 to 5 fail? We changed a formula, dropped an assumption or put in a wrong map in "
        f"{len(mutants)} ways. {survivors or 'None'} of the changes passed all checks; "
        f"together they fail {len(checks)} checks.",
        "",
        "The tests run every change again, and they also require that each check shown in a chapter fails under at "
        "least one of them. This page is written by `python tools/mutations.py`.",
    ]
    for chapter in sorted({mutant.chapter for mutant in mutants}):
        rows = [(m, names) for m, names in zip(mutants, outcomes, strict=True) if m.chapter == chapter]
        lines += [
            "",
            f"## Chapter {chapter}",
            "",
            f":::{{admonition}} {len(rows)} changes",
            ":class: dropdown",
            "",
            "| statement | change | checks that fail |",
            "|---|---|---|",
        ]
        for mutant, names in rows:
            failed = "; ".join(f"`{name}`" for name in names) or "**none**"
            lines.append(f"| {_reference(mutant.statement, labels)} | {mutant.change} | {failed} |")
        lines.append(":::")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    mutants = all_mutants()
    text = page(mutants, [outcome(mutant) for mutant in mutants])
    if list(arguments) == ["check"]:
        return int(PAGE.read_text(encoding="utf8") != text)
    PAGE.write_text(text, encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
