"""Figures of the experiments: accuracies in and out of distribution, regret, ratios, paths, ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tpgm.book.experiments.experiment import Row
from tpgm.book.experiments.variants import Mean, Variant, along_path
from tpgm.book.plots.style import CYCLE, ID_COLOR, OOD_COLOR, book_style
from tpgm.names import in_figure

MARKERS = "osD^vP*X<>hp"


def look(label: str, labels: Sequence[str]) -> dict[str, str]:
    """A colour and marker that a label keeps through all figures of one set of labels."""
    number = list(labels).index(label)
    turn = number // math.lcm(len(CYCLE), len(MARKERS))  # after which colours and markers would meet again
    return {"color": CYCLE[number % len(CYCLE)], "marker": MARKERS[(number + turn) % len(MARKERS)]}


def id_against_ood(
    by_regime: Mapping[str, Mapping[str, Variant]], rerun: Mapping[str, Mapping[str, Row]] | None = None
) -> Figure:
    """OOD over ID accuracy in per cent, a panel for each regime; bars are 95 % intervals over seeds.

    A method with less than half the best ID accuracy of its regime would squeeze the others into a corner: it is named
    below the panel instead of drawn. rerun: regime -> label -> row made while the book was built, drawn hollow.
    """
    labels = list(dict.fromkeys(label for variants in by_regime.values() for label in variants))
    handles: dict[str, Any] = {}
    with book_style():
        count = len(by_regime)
        columns = min(4, 2 * count)
        height = 4.0 + 0.24 * -(-len(labels) // columns)  # a legend of many lines must not press on the panels
        figure, panels = plt.subplots(1, count, figsize=(4.6 * count, height), squeeze=False)
        for axes, (regime, variants) in zip(panels[0], by_regime.items(), strict=True):
            least = max(s.of("id").value for s in variants.values()) / 2
            failed = {label: s for label, s in variants.items() if s.of("id").value < least}
            below = ""
            if failed:
                text = ", ".join(
                    f"{in_figure(label)} ({100 * s.of('id').value:.0f} / {100 * s.of('ood').value:.0f})"
                    for label, s in failed.items()
                )
                below = "\n" + fill(f"not drawn (ID / OOD): {text}", 56, break_on_hyphens=False)
            for label, s in variants.items():
                if label in failed:
                    continue
                i, o = s.of("id"), s.of("ood")
                bars = {"xerr": 100 * i.half, "yerr": 100 * o.half} if not math.isnan(i.half) else {}
                axes.errorbar(
                    100 * i.value,
                    100 * o.value,
                    **bars,
                    ls="",
                    ms=7,
                    elinewidth=0.8,
                    label=in_figure(label),
                    **look(label, labels),
                )
            for label, row in (rerun or {}).get(regime, {}).items():
                own = look(label, labels) if label in labels else {"color": "black", "marker": "o"}
                axes.plot(100 * row["id"], 100 * row["ood"], ls="", ms=9, mfc="none", mew=1.6, **own)
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            axes.set(xlim=(max(0, left), min(100, right)), ylim=(max(0, low), min(100, high)))
            axes.set(xlabel=f"ID accuracy (%){below}", ylabel="mean OOD accuracy (%)", title=in_figure(regime))
            handles |= {n: h for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}
        if rerun:
            handles["this build, shorter"] = Line2D([], [], ls="", marker="o", mfc="none", color="black", ms=9)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, columnspacing=1.2)
        plt.close(figure)
    return figure


def regret_bars(regret: Mapping[str, Mapping[str, float]]) -> Figure:
    """OOD regret in points of every method, in each regime, sorted by the mean (the line)."""
    order = sorted(regret, key=lambda label: -regret[label]["mean"])
    regimes = [name for name in next(iter(regret.values())) if name != "mean"]
    with book_style():
        figure, axes = plt.subplots(figsize=(7.0, 0.42 * len(order) + 1.3))
        height = 0.8 / len(regimes)
        y = np.arange(len(order))
        for n, regime in enumerate(regimes):
            values = [100 * regret[label][regime] for label in order]
            axes.barh(
                y + (n - (len(regimes) - 1) / 2) * height, values, height, color=CYCLE[n], label=in_figure(regime)
            )
        means = [100 * regret[label]["mean"] for label in order]
        axes.plot(means, y, "|", color="black", ms=14, mew=2, label="mean of the regimes")
        axes.set_yticks(y, [in_figure(label) for label in order])
        axes.set(xlabel="OOD regret (points of accuracy; less is better)")
        figure.legend(loc="outside lower center", ncols=3)
        axes.grid(axis="y", visible=False)
        plt.close(figure)
    return figure


def intervals(values: Mapping[str, Mean], xlabel: str, marked: str = "") -> Figure:
    """A dot with its 95 % interval for each name, in points, from the top in the order given; `marked` in colour."""
    with book_style():
        figure, axes = plt.subplots(figsize=(6.4, 0.32 * len(values) + 1.0))
        for y, (name, m) in enumerate(values.items()):
            half = 0.0 if math.isnan(m.half) else 100 * m.half
            color = OOD_COLOR if name == marked else CYCLE[6]
            axes.errorbar(100 * m.value, y, xerr=half, fmt="o", color=color, ms=6, elinewidth=1.4)
        axes.set_yticks(range(len(values)), [in_figure(name) for name in values])
        axes.invert_yaxis()
        axes.axvline(0.0, color="black", lw=1)
        axes.set(xlabel=xlabel)
        axes.grid(axis="y", visible=False)
        plt.close(figure)
    return figure


def ratios_by_depth(panels: Mapping[str, Sequence[Row]]) -> Figure:
    """Mean ratio over seeds of every constrained tensor, from input to output, by kind of layer; a panel for each name.

    Raises ValueError for no panels.
    """
    if not panels:
        raise ValueError("no rows with ratios to draw")
    kinds = list(dict.fromkeys(k for rows in panels.values() for k in rows[0]["kinds"].values()))
    with book_style():
        count = len(panels)
        rows_of_panels = math.ceil(count / 2)
        figure, grid = plt.subplots(
            rows_of_panels,
            min(2, count),
            figsize=(4.6 * min(2, count), 2.9 * rows_of_panels),
            squeeze=False,
            sharey=True,
        )
        for axes in grid.flat[count:]:
            axes.set_visible(False)
        for axes, (title, rows) in zip(grid.flat, panels.items(), strict=False):
            names = list(rows[0]["ratios"])
            values = np.array([[row["ratios"][name] for name in names] for row in rows]).mean(axis=0)
            for kind in kinds:
                index = [i for i, name in enumerate(names) if rows[0]["kinds"][name] == kind]
                if index:
                    axes.plot(index, values[index], ls="", ms=4.5, **look(kind, kinds), label=in_figure(kind))
            axes.set(title=in_figure(title), xlabel="tensor, from input to output", ylim=(-0.03, 1.03))
        for axes in grid[:, 0]:
            axes.set_ylabel("mean ratio")
        seen = {n: h for axes in grid.flat for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=5)
        plt.close(figure)
    return figure


def paths(by_name: Mapping[str, Sequence[Row]]) -> Figure:
    """ID and mean OOD accuracy along the line from the anchor (0) to the fine-tuned weights (1), one panel a model.

    by_name: title -> rows of WiSE-FT runs with a path, one a seed, drawn thin; their mean thick.
    """
    with book_style():
        figure, panels = plt.subplots(1, len(by_name), figsize=(3.6 * len(by_name), 3.8), squeeze=False)
        for axes, (title, rows) in zip(panels[0], by_name.items(), strict=True):
            points = np.array([along_path(row) for row in rows])  # (seeds, ratios, 3)
            for n, name, color in ((1, "ID", ID_COLOR), (2, "OOD mean", OOD_COLOR)):
                axes.plot(points[0, :, 0], 100 * points[:, :, n].T, color=color, lw=0.7, alpha=0.6)
                axes.plot(points[0, :, 0], 100 * points[:, :, n].mean(axis=0), color=color, lw=2.4, label=name)
            axes.set(xlabel="ratio α", ylabel="accuracy (%)", title=in_figure(title))
            axes.legend()
        plt.close(figure)
    return figure


def trade_off(along: Mapping[str, Sequence[Row]], controlled: Mapping[str, Sequence[Row]]) -> Figure:
    """OOD over ID accuracy in per cent, means over seeds: WiSE-FT's line and TPGM-C's points, a panel each network."""
    with book_style():
        figure, panels = plt.subplots(1, len(along), figsize=(max(6.4, 3.6 * len(along)), 4.3), squeeze=False)
        for axes, (title, rows) in zip(panels[0], along.items(), strict=True):
            points = np.mean([along_path(row) for row in rows], axis=0)
            axes.plot(100 * points[:, 1], 100 * points[:, 2], "o-", color=OOD_COLOR, ms=4, label="WiSE-FT")
            for alpha, i, o in points[[0, -1]]:
                axes.annotate(
                    f"α = {alpha:g}", (100 * i, 100 * o), (0, 6), textcoords="offset points", ha="center", size=9
                )
            groups: dict[str, list[Row]] = {}
            for row in controlled.get(title, ()):
                groups.setdefault(f"μ = {row['config']['settings']['penalty']:g}", []).append(row)
            for n, (name, members) in enumerate(groups.items()):
                i, o = (100 * np.mean([row[what] for row in members]) for what in ("id", "ood"))
                axes.plot(i, o, ls="", ms=7, marker="sD^"[n % 3], color=CYCLE[2 + n % 3], label=f"TPGM-C, {name}")
            axes.set(xlabel="ID accuracy (%)", ylabel="mean OOD accuracy (%)", title=in_figure(title))
            axes.margins(0.12)
        seen = {n: h for axes in panels.flat for h, n in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=min(4, 1 + len(along)))
        plt.close(figure)
    return figure


def ablation(groups: Mapping[str, Mapping[str, Variant]]) -> Figure:
    """Mean ID and OOD accuracy with 95 % intervals over seeds; one block of lines for each group of variants."""
    lines = [(group, label, s) for group, of in groups.items() for label, s in of.items()]
    with book_style():
        figure, axes = plt.subplots(figsize=(7.0, 0.34 * (len(lines) + len(groups)) + 1.2))
        y, ticks, names = 0.0, [], []
        for group, of in groups.items():
            axes.text(0.0, y, f" {in_figure(group)}", transform=axes.get_yaxis_transform(), va="center", weight="bold")
            y += 1
            for label, s in of.items():
                for what, color, marker in (("id", ID_COLOR, "o"), ("ood", OOD_COLOR, "s")):
                    m = s.of(what)
                    half = 0.0 if math.isnan(m.half) else 100 * m.half
                    axes.errorbar(100 * m.value, y, xerr=half, fmt=marker, color=color, ms=5, elinewidth=1)
                ticks.append(y)
                names.append(in_figure(label))
                y += 1
        axes.set_yticks(ticks, names)
        axes.invert_yaxis()
        axes.set(xlabel="accuracy (%)")
        handles = [
            Line2D([], [], ls="", marker=m, color=c, label=n)
            for n, c, m in (("ID", ID_COLOR, "o"), ("OOD mean", OOD_COLOR, "s"))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        plt.close(figure)
    return figure


def costs(seconds: Mapping[str, float], baseline: str) -> Figure:
    """Seconds of training over those of `baseline`, a bar for each method, smallest first."""
    order = sorted(seconds, key=lambda label: -seconds[label])
    with book_style():
        figure, axes = plt.subplots(figsize=(7.0, 0.36 * len(order) + 1.0))
        values = [seconds[label] / seconds[baseline] for label in order]
        axes.barh([in_figure(label) for label in order], values, color=CYCLE[5])
        for n, value in enumerate(values):
            axes.text(value, n, f" {value:.2f}", va="center")
        axes.axvline(1.0, color="black", lw=1)
        axes.set(xlabel=f"time of training, {in_figure(baseline)} = 1")
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        plt.close(figure)
    return figure
