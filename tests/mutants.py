"""One shape for "a mutation that a check must catch": the tests run them, and the appendix lists them.

Each chapter of the theory keeps its own list in ``tests/mutants_0N.py``, named ``MUTANTS``. ``run`` carries out the
checks of one statement with one formula, assumption or line of code changed, and returns them; the mutant is caught if
one of them does not pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tpgm.book.linear.checks import Check

Verify = Callable[..., list[Check]]  # takes trials and a generator
Run = Callable[[pytest.MonkeyPatch], list[Check]]


@dataclass(frozen=True)
class Mutant:
    """`statement` is the label of the theorem in the chapter, `change` one short sentence on what was changed."""

    chapter: int
    statement: str
    change: str
    run: Run

    def caught_by(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the checks that fail under the mutation; an empty list means that it survives."""
        return [check.name for check in self.run(monkeypatch) if not check.passed]


def broken(function: Verify, trials: int, /, **assumptions: Any) -> Run:
    """The checks with assumptions dropped."""
    return lambda monkeypatch: function(trials, np.random.default_rng(0), **assumptions)


def replaced(function: Verify, trials: int, name: str, value: object) -> Run:
    """The checks with what their module calls `name` replaced."""

    def run(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
        monkeypatch.setattr(sys.modules[function.__module__], name, value)
        return function(trials, np.random.default_rng(0))

    return run
