"""One look for all figures: colour-blind safe colours that keep their meaning throughout the book."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
from cycler import cycler

from tpgm.book.experiments.display import DISPLAY

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe-Ito, told apart also in grey and by people with colour-vision deficiency
ID_COLOR = "#0072B2"
OOD_COLOR = "#D55E00"
TPGM_COLOR = "#009E73"
ANCHOR_COLOR = "#56636B"
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#56636B")


class Look(NamedTuple):
    """How a method is named and drawn."""

    name: str
    color: str
    marker: str


# by the label of its rows; vanilla and TPGM have the colours of the theory chapters
_LOOKS = {
    "linear-probe": ("#E69F00", "^"),
    "vanilla": (ANCHOR_COLOR, "o"),
    "lp-ft": ("#0072B2", "s"),
    "wise-ft": ("#CC79A7", "D"),
    "tpgm-end": (TPGM_COLOR, "P"),
    "tpgm": ("#00543D", "X"),
    "ftp": ("#56B4E9", "v"),
    "spd": ("#D55E00", "<"),
}
METHODS: Mapping[str, Look] = {label: Look(DISPLAY[label], *look) for label, look in _LOOKS.items()}
BY_NAME: Mapping[str, Look] = {method.name: method for method in METHODS.values()}

_RC: dict[RcKeyType, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "figure.figsize": (7.0, 3.8),
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=list(CYCLE)),
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "font.size": 10.5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def book_style() -> Iterator[None]:
    """Context in which every figure function of this package draws."""
    with plt.rc_context(_RC):
        yield
