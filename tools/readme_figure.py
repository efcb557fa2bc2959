"""Draw the README's figure, `book/figures/two_regimes.png`: ID and OOD risk along one common ratio, in both regimes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tpgm.book.linear import fine_tune
from tpgm.book.linear.simulation import style_shift
from tpgm.book.plots.draw_ratios import Case, parabolas

TARGET = Path(__file__).resolve().parent.parent / "book" / "figures" / "two_regimes.png"


def case(share: float, rows: int = 100) -> Case:
    """A problem of chapter 3, and what fine-tuning on `rows` samples of it gives. share: as in `style_shift`."""
    rng = np.random.default_rng(0)
    problem = style_shift(share, rng)
    x, y = problem.sample(rows, rng)
    return problem, fine_tune(x, y, problem.anchor) - problem.anchor


def main(target: Path = TARGET) -> None:
    cases = {"pre-trained model copes with the shift": case(0.02), "pre-trained model does not": case(0.6)}
    target.parent.mkdir(parents=True, exist_ok=True)
    parabolas(cases).savefig(target, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
