"""One shape for "a mutation that a check must catch": the tests run them, and the appendix lists them.

Each chapter of the theory keeps its own list in ``tests/mutants_0N.py``, named ``MUTANTS``. ``run`` carries out the
checks of one statement with one formula, assumption or line of code changed, and returns them; the mutant is caught if
one of them does not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tpgm.book.linear.checks import Check


@dataclass(frozen=True)
class Mutant:
    """`statement` is the label of the theorem in the chapter, `change` one short sentence on what was changed."""

    chapter: int
    statement: str
    change: str
    run: Callable[[pytest.MonkeyPatch], list[Check]]

    def caught_by(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the checks that fail under the mutation; an empty list means that it survives."""
        return [check.name for check in self.run(monkeypatch) if not check.passed]
