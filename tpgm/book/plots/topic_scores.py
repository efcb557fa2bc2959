"""Figures of the text example: accuracy and macro-F1, in and out of distribution and by topic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tpgm.book.experiments.experiment import Row
from tpgm.book.experiments.variants import SCORES, Variant, on_topic, topics_of
from tpgm.book.plots.comparison import look
from tpgm.book.plots.style import ANCHOR_COLOR, BY_NAME, CYCLE, METHODS, book_style
from tpgm.names import in_figure


def named(variants: Mapping[str, Variant]) -> dict[str, Variant]:
    """The same methods under the names by which the book's text calls them, where they have one."""
    found = {label: METHODS[label].name if label in METHODS else label for label in variants}
    return {found[label]: replace(variant, label=found[label]) for label, variant in variants.items()}


def id_against_ood(variants: Mapping[str, Variant], rerun: Mapping[str, Row] | None = None) -> Figure:
    """OOD over ID, in per cent: a panel for accuracy and one for macro-F1; bars are 95 % intervals over seeds.

    rerun: label -> row made while the book was built, drawn hollow.
    """
    labels = list(dict.fromkeys([*variants, *(rerun or {})]))
    with book_style():
        figure, panels = plt.subplots(1, 2, figsize=(9.2, 4.9))
        for axes, (score, (inside, outside)) in zip(panels, SCORES.items(), strict=True):
            for label, s in variants.items():
                i, o = s.of(inside), s.of(outside)
                bars = {"xerr": 100 * i.half, "yerr": 100 * o.half} if not math.isnan(i.half) else {}
                style: dict[str, Any] = {"ls": "", "ms": 7, "elinewidth": 0.8, **_look(label, labels)}
                axes.errorbar(100 * i.value, 100 * o.value, **bars, **style, label=in_figure(label))
            for label, row in (rerun or {}).items():
                axes.plot(
                    100 * row[inside], 100 * row[outside], ls="", ms=9, mfc="none", mew=1.6, **_look(label, labels)
                )
            axes.set(xlabel=f"ID {score} (%)", ylabel=f"mean OOD {score} (%)", title=score)
        handles, names = panels[0].get_legend_handles_labels()
        if rerun:
            handles.append(Line2D([], [], ls="", marker="o", mfc="none", color="black", ms=9))
            names.append("this build, shorter")
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        plt.close(figure)
    return figure


def by_topic(variants: Mapping[str, Variant]) -> Figure:
    """Macro-F1 in per cent of every method on every topic, with 95 % intervals over seeds; the ID topic at the top."""
    labels, topics = list(variants), topics_of(variants)
    with book_style():
        figure, axes = plt.subplots(figsize=(7.0, 0.85 * len(topics) + 1.2))
        offsets = np.linspace(-0.34, 0.34, len(labels))
        for label, offset in zip(labels, offsets, strict=True):
            found = [on_topic(variants[label], topic, "macro-F1") for topic in topics]
            half = [0.0 if math.isnan(m.half) else 100 * m.half for m in found]
            style: dict[str, Any] = {"ls": "", "ms": 5, "elinewidth": 0.8, **_look(label, labels)}
            axes.errorbar(
                [100 * m.value for m in found],
                np.arange(len(topics)) + offset,
                xerr=half,
                **style,
                label=in_figure(label),
            )
        for line in np.arange(len(topics) - 1) + 0.5:
            axes.axhline(line, color=ANCHOR_COLOR, lw=0.5)
        axes.set_yticks(np.arange(len(topics)), ["airlines (ID)", *map(in_figure, topics[1:])])
        axes.invert_yaxis()
        left, right = axes.get_xlim()
        axes.set_xlim(max(0, left), min(100, right))
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="macro-F1 (%)")
        figure.legend(loc="outside lower center", ncols=3)
        plt.close(figure)
    return figure


def _look(label: str, labels: Sequence[str]) -> dict[str, str]:
    """A known method's own colour and marker; else `look`, but black where colours would begin anew."""
    if label in BY_NAME:
        return {"color": BY_NAME[label].color, "marker": BY_NAME[label].marker}
    return {**look(label, labels), **({"color": "black"} if list(labels).index(label) >= len(CYCLE) else {})}
