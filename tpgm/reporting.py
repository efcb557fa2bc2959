"""What a constraint has learned, in one call: a picture by depth, a table by block."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tpgm import check
from tpgm.constraint import TPGM
from tpgm.files import write_aside
from tpgm.names import aliases, blocks, in_figure, kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# told apart by people with colour-vision deficiency too (Okabe and Ito)
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_LOOK: Any = dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
_LOOK |= {"figure.figsize": (7.0, 3.8), "figure.constrained_layout.use": True, "savefig.dpi": 160, "axes.grid": True}


@dataclass(frozen=True)
class Block:
    """A row of the table: `tensors` tensors with `weights` weights; mean, smallest and largest of their ratios in
    [0, 1], smallest and largest of their radii in the unit of the norm (infinity: not in force yet)."""

    name: str
    tensors: int
    weights: int
    ratio: tuple[float, float, float]
    radius: tuple[float, float]


class Report:
    """What `report` returns: ``str()`` is the table, a notebook shows the picture, ``figure`` is that picture."""

    def __init__(self, constraint: TPGM, title: str) -> None:
        self._model, self._title, self._about = constraint.model, title, repr(constraint)
        self.ratios: dict[str, float] = constraint.ratios()
        self.radii: dict[str, float] = constraint.radii
        sizes = {name: p.numel() for name, p in aliases(constraint.model).items()}
        self.blocks: list[Block] = []
        for block, names in blocks(self.ratios).items():
            ratios, radii = [self.ratios[n] for n in names], [self.radii[n] for n in names]
            spread = (sum(ratios) / len(ratios), min(ratios), max(ratios))
            size = sum(sizes[n] for n in names)
            self.blocks.append(Block(block or "(model)", len(names), size, spread, (min(radii), max(radii))))

    @cached_property
    def figure(self) -> Figure:
        """The ratios by depth. Raises ImportError without matplotlib."""
        return ratios_by_depth(self.ratios, self._model, self._title)

    def save(self, path: str | Path) -> None:
        """Write the picture to a file of any kind matplotlib knows (.png, .pdf, .svg).

        Raises ValueError for another ending, OSError if the file cannot be written.
        """
        path = Path(path)
        known = self.figure.canvas.get_supported_filetypes()
        kind = path.suffix.removeprefix(".").lower()
        if kind not in known:
            raise ValueError(f"{path.name}: the picture's file must end in one of {', '.join(sorted(known))}")
        with write_aside(path) as aside:
            self.figure.savefig(aside, format=kind)

    def __str__(self) -> str:
        head = ("block", "tensors", "weights", "ratio", "from", "to", "radius from", "to")
        rows = [
            (b.name, str(b.tensors), f"{b.weights:,}", *(f"{r:.3f}" for r in b.ratio), *(f"{r:.3g}" for r in b.radius))
            for b in self.blocks
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        # names to the left, numbers to the right
        lines = [
            "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in (head, *rows)
        ]
        held = sum(r < 1 for r in self.ratios.values())
        waiting = sum(map(math.isinf, self.radii.values()))
        notes = [f"{held} of {len(self.ratios)} tensors are held back (ratio below 1)"]
        if waiting:
            notes.append(f"{waiting} have no radius yet: they have not moved, or there was no update since they did")
        return "\n".join([self._about, *lines, *notes])

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What Jupyter shows: the picture, and the table for who reads text."""
        bundle: dict[str, Any] = {"text/plain": str(self)}
        try:
            content = io.BytesIO()
            self.figure.savefig(content, format="png")
            bundle["image/png"] = content.getvalue()
        except ImportError:
            pass
        return bundle


@check.keywords
def report(constraint: TPGM, path: str | Path | None = None, *, title: str = "Ratios by depth") -> Report:
    """The ratios of a constraint by depth: a picture in a notebook or a file, a table in a terminal.

    ``print(tpgm.report(constraint))`` prints a line for each block of layers: how many tensors and weights it has, the
    mean of its tensors' ratios and the smallest and largest of them, the smallest and largest radius. As the last
    line of a notebook's cell it shows the picture. path: where to write the picture, with an ending that matplotlib
    knows (``ratios.png``). The ratios are those of ``constraint.ratios()`` at the time of the call. The picture needs
    matplotlib, the table nothing.
    Raises TypeError for anything but a `TPGM`, ValueError for an unknown file ending, ImportError if a picture is asked
    for without matplotlib.
    """
    check.instance("constraint", constraint, TPGM, "a tpgm.TPGM")
    check.instance("title", title, str, "a text")
    if path is not None:
        path = check.path("path", path)
    result = Report(constraint, title)
    if path is not None:
        result.save(path)
    return result


def ratios_by_depth(ratios: Mapping[str, float], model: nn.Module, title: str = "Learned ratios by depth") -> Figure:
    """Mean ratio of every constrained tensor (0: at its anchor, 1: free) in the order of the model's parameters.

    Raises ImportError without matplotlib.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'tpgm[theory]'") from error
    with plt.rc_context(_LOOK):
        figure, axes = plt.subplots()
        names = list(ratios)
        of = kinds(model)
        for kind, color, marker in zip(dict.fromkeys(of[name] for name in names), _COLORS, "osD^v", strict=False):
            index = [i for i, name in enumerate(names) if of[name] == kind]
            axes.plot(index, [ratios[names[i]] for i in index], marker, color=color, label=kind, markersize=5)
        axes.set(xlabel="parameter tensor, from input to output", ylabel="ratio", ylim=(-0.03, 1.03))
        axes.set_title(in_figure(title))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5, columnspacing=1.2, handletextpad=0.2)
        plt.close(figure)
    return figure


def learning_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Training loss (of an epoch's last batch) and ID validation accuracy by epoch; a line where a stage begins.

    history: of a `tpgm.training.Result`. Raises ImportError without matplotlib.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_LOOK):
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        epochs = range(1, len(history) + 1)
        starts = [n for n, (a, b) in enumerate(pairwise(history), 1) if a["stage"] != b["stage"]]
        for axes, name, scale, label in zip(
            figure.subplots(1, 2),
            ("loss", "val"),
            (1, 100),
            ("training loss", "ID validation accuracy (%)"),
            strict=True,
        ):
            axes.plot(epochs, [scale * h[name] for h in history], "o-", color=_COLORS[0], markersize=4)
            for n in starts:
                axes.axvline(n + 0.5, color="0.6", linestyle="--")
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{border-bottom:1px solid #ccc;padding:.2rem .7rem;text-align:left}"
    "svg{max-width:100%;height:auto}pre{white-space:pre-wrap;background:#f4f4f4;padding:.7rem}"
)


def page(row: Mapping[str, Any], figures: Iterable[Figure]) -> str:
    """A run's report as one HTML page that needs no other file; row: what ``result.json`` holds."""

    def table(lines: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
        cells = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"] if head else []
        cells += [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in line)}</tr>" for line in lines]
        return f"<table>{''.join(cells)}</table>"

    scores = []
    for name, found in row["accuracies"].items():
        share, low, high = (100 * value for value in (found["accuracy"], *found["interval"]))
        scores.append((name, f"{share:.1f}", f"{low:.1f} to {high:.1f}", found["total"]))
    if row["ood_mean"] is not None:
        scores.append(("OOD mean", f"{100 * row['ood_mean']:.1f}", "", ""))
    drawn = []
    for figure in figures:
        text = io.StringIO()
        figure.savefig(text, format="svg")
        drawn.append(text.getvalue().partition("<svg")[2])
    title = escape(f"{row['model']['name']}, {row['method']}, {row['data']['name']}")
    model, data = row["model"], row["data"]
    images = ", ".join(f"{name} {count}" for name, count in data["images"].items())
    about = [
        ("model", f"{model['name']} ({model['architecture'] or 'of your own'}), {model['size']} pixels"),
        ("data", f"{data['name']}, {data['classes']} classes; images: {images}"),
        ("training", f"{row['seconds']:.0f} s on {row['hardware']}, ended {row['time']}"),
        ("versions", ", ".join(f"{package} {version}" for package, version in row["versions"].items())),
    ]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
        f"<h1>{title}</h1>",
        table(scores, ("data", "accuracy (%)", "95 % interval", "images")),
        *(f"<svg{one}" for one in drawn),
        "<h2>How it was made</h2>",
        f"<pre>{escape(row['command'])}</pre>",
        table(about),
        table(row["settings"].items(), ("setting", "value")),
    ]
    return "\n".join(parts) + "\n"
