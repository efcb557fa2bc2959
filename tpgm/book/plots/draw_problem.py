"""Figures of chapter 1: what forgetting looks like, and a first run of TPGM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from tpgm.book.plots.style import ANCHOR_COLOR, ID_COLOR, OOD_COLOR, TPGM_COLOR, book_style
from tpgm.book.toy import Run, Task, boundary

NETWORK_COLOR = "#CC79A7"


def decision_maps(cases: Mapping[str, tuple[Task, nn.Module, nn.Module]]) -> Figure:
    """By title, a task, its pre-trained and its fine-tuned model: where each puts the class boundary in the plane."""
    with book_style():
        fig, axes = plt.subplots(1, len(cases), figsize=(7.0, 4.1), sharey=True, squeeze=False)
        for ax, (title, (task, pretrained, tuned)) in zip(axes[0], cases.items(), strict=True):
            ax.axvspan(-3, 0, color=ID_COLOR, alpha=0.10, linewidth=0)
            ax.axvspan(0, 3, color=OOD_COLOR, alpha=0.10, linewidth=0)
            _draw_boundary(ax, pretrained, color=ANCHOR_COLOR, linewidths=1.5)
            _draw_boundary(ax, tuned, color=NETWORK_COLOR, linewidths=2.5)
            first = torch.linspace(-3, 3, 241)
            ax.plot(first, boundary(first, task.height), color="black", linestyle="--", linewidth=1.2)
            x, y = task.train
            for label, marker in ((0, "o"), (1, "^")):
                mine = x[y == label]
                ax.scatter(mine[:, 0], mine[:, 1], s=14, marker=marker, color=ID_COLOR, linewidths=0, zorder=3)
            for where, name, color in ((-2.75, "ID", ID_COLOR), (2.0, "OOD", OOD_COLOR)):
                ax.text(where, 1.65, name, color=color, weight="bold")
            ax.set(xlim=(-3, 3), ylim=(-2, 2), xlabel="first input", title=title)
            ax.grid(visible=False)
        axes[0, 0].set_ylabel("second input")
        handles = [
            Line2D([], [], color=NETWORK_COLOR, label="fine-tuned"),
            Line2D([], [], color=ANCHOR_COLOR, label="pre-trained"),
            Line2D([], [], color="black", linestyle="--", label="true boundary"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
        plt.close(fig)
    return fig


def _draw_boundary(ax: Axes, model: nn.Module, color: str, linewidths: float) -> None:
    first, second = torch.linspace(-3, 3, 241), torch.linspace(-2, 2, 161)
    with torch.no_grad():
        scores = model(torch.cartesian_prod(first, second))
    margin = (scores[:, 1] - scores[:, 0]).reshape(241, 161).T
    ax.contour(first, second, margin, levels=[0.0], colors=color, linewidths=linewidths)


def training_curves(vanilla: Sequence[Run], constrained: Sequence[Run]) -> Figure:
    """ID and OOD accuracy during fine-tuning: every seed thin, the mean over seeds thick."""
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 3.8), sharey=True)
        for ax, field, title in ((axes[0], "accuracy_id", "ID"), (axes[1], "accuracy_ood", "OOD")):
            for runs, color, style, label in (
                (vanilla, ANCHOR_COLOR, "--", "vanilla"),
                (constrained, TPGM_COLOR, "-", "TPGM"),
            ):
                curves = np.array([getattr(run, field) for run in runs])
                ax.plot(runs[0].steps, curves.T, color=color, linestyle=style, linewidth=0.6, alpha=0.5)
                ax.plot(runs[0].steps, curves.mean(axis=0), color=color, linestyle=style, linewidth=2.6, label=label)
            ax.set_title(f"{title} accuracy")
            ax.set_xlabel("step of fine-tuning")
        axes[0].set_ylabel("accuracy (%)")
        axes[0].legend(loc="lower right")
        plt.close(fig)
    return fig


def distances_by_tensor(vanilla: Run, constrained: Run) -> Figure:
    """How far each tensor has moved during fine-tuning, without and with the learned radii."""
    with book_style():
        names = list(vanilla.distances[0])
        fig, axes = plt.subplots(len(names) // 2, 2, figsize=(7.0, 6.4), sharex=True)
        for ax, name in zip(axes.flat, names, strict=True):
            ax.plot(vanilla.steps, [d[name] for d in vanilla.distances], color=ANCHOR_COLOR, linestyle="--")
            ax.plot(constrained.steps, [d[name] for d in constrained.distances], color=TPGM_COLOR)
            ax.set_title(name)
            ax.set_ylim(bottom=0)
        for ax in axes[-1]:
            ax.set_xlabel("step of fine-tuning")
        fig.supylabel("distance from the pre-trained tensor (MARS)", fontsize=10.5)
        handles = [
            Line2D([], [], color=ANCHOR_COLOR, linestyle="--", label="vanilla"),
            Line2D([], [], color=TPGM_COLOR, label="TPGM"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig
