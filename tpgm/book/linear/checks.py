"""What "verified numerically" means: one record a check, the same for the notebooks and the tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

IDENTITY_TOLERANCE = 1e-10
STANDARD_ERRORS = 4.0

Kind = Literal["identity", "expectation", "inequality"]
_MEASURE = {
    "identity": "largest relative error",
    "expectation": "largest deviation / standard error",
    "inequality": "violations",
}


@dataclass(frozen=True)
class Check:
    """One numerical check of one statement.

    kind "identity": `value` is the largest relative error, passed below 1e-10; "expectation": the largest distance
    of a mean over `trials` draws from the stated value in standard errors, passed below 4; "inequality": the number
    of violations among `trials` random problems, passed at zero.
    """

    name: str
    kind: Kind
    value: float
    trials: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(np.isfinite(self.value)) and self.value <= self.tolerance

    def require(self) -> Check:
        """Return the check itself, or raise AssertionError saying by how much it fails."""
        if not self.passed:
            raise AssertionError(
                f"{self.name}: {_MEASURE[self.kind]} {self.value:.3g} exceeds {self.tolerance:.3g} "
                f"({self.trials} trials)"
            )
        return self


def identity(name: str, left: ArrayLike, right: ArrayLike, *, trials: int = 1, scale: float | None = None) -> Check:
    """Two computations of one quantity; errors relative to `scale`, by default the largest magnitude of `right`."""
    left, right = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    size = float(np.max(np.abs(right))) if scale is None else scale
    error = float(np.max(np.abs(left - right))) / (size or 1.0)
    return Check(name, "identity", error, trials, IDENTITY_TOLERANCE)


def expectation(name: str, draws: ArrayLike, stated: ArrayLike) -> Check:
    """draws: (trials, …) independent draws whose mean over the first axis should be `stated`.

    Draws that are all equal have no error: they pass only if they are the stated value.
    """
    draws = np.asarray(draws, dtype=np.float64)
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    deviation = np.abs(draws.mean(axis=0) - np.asarray(stated, dtype=np.float64))
    surprise = np.where(deviation == 0, 0.0, np.inf)
    np.divide(deviation, error, out=surprise, where=error > 0)
    return Check(name, "expectation", float(np.max(surprise)), len(draws), STANDARD_ERRORS)


def inequality(name: str, slack: ArrayLike, *, rounding: float = 1e-12) -> Check:
    """slack: (trials,) right-hand side minus left-hand side; negative beyond `rounding` is a violation."""
    slack = np.asarray(slack, dtype=np.float64)
    return Check(name, "inequality", float(np.sum(~(slack >= -rounding))), slack.size, 0.0)


def _typeset(name: str) -> str:
    """A check's name for a page: primes, subscripts and powers as such, where the plain text has ', _ and ^."""
    name = re.sub(r"(?<=[RfuwΣ])'(?![a-zA-Z])", "′", name)
    name = re.sub(r"_([\w∞]+′?)", r"<sub>\1</sub>", name)
    return re.sub(r"\^\(([^()]+)\)", r"<sup>\1</sup>", name)


def table(checks: Sequence[Check]) -> str:
    """The checks as a Markdown table, for a notebook to display."""
    rows = ["| check | measure | value | allowed | trials | |", "|---|---|---:|---:|---:|---|"]
    for check in checks:
        mark = "holds" if check.passed else "**FAILS**"
        value = f"{check.value:.0f}" if check.kind == "inequality" else f"{check.value:.2g}"
        cells = (_typeset(check.name), _MEASURE[check.kind], value, f"{check.tolerance:.2g}", f"{check.trials:,}", mark)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
