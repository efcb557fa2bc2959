"""Figures of chapter 5: TPGM against the exact bi-level problem, greedy underfitting and total variation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from tpgm.book.linear.alternation import Trajectory
from tpgm.book.linear.bilevel import Bilevel, solve_exact
from tpgm.book.linear.bilevel_study import Comparison, interval
from tpgm.book.linear.problem import Array
from tpgm.book.plots.style import ANCHOR_COLOR, CYCLE, ID_COLOR, OOD_COLOR, TPGM_COLOR, book_style


def cosines(tightness: ArrayLike, by_method: Mapping[str, Array]) -> Figure:
    """Mean cosine of TPGM's radius gradient with the exact hypergradient, (P, T) by method, and its 95 % interval."""
    t = np.asarray(tightness, dtype=np.float64)
    with book_style():
        fig, ax = plt.subplots()
        for (name, values), color, marker in zip(by_method.items(), (TPGM_COLOR, OOD_COLOR), "os", strict=True):
            mean, low, high = np.array([interval(column) for column in values.T]).T
            ax.plot(t, mean, marker=marker, color=color, label=name)
            ax.fill_between(t, low, high, color=color, alpha=0.2, linewidth=0)
        ax.axhline(1.0, color=ANCHOR_COLOR, linestyle="--", linewidth=1.2)
        ax.set(
            xlabel=r"radius / norm of fine-tuning's displacement",
            ylabel="cosine with the hypergradient",
            title="The tighter the constraints, the better TPGM's gradient",
        )
        ax.legend(title="TPGM's gradient")
        plt.close(fig)
    return fig


def excess(comparison: Comparison) -> Figure:
    """Validation loss and ID risk above those of the exact bi-level optimum, in per cent: mean, median, intervals."""
    names = [name for name in comparison.risk if name not in ("exact bi-level", "pre-trained")]
    with book_style():
        fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7.0, 0.5 * len(names) + 2.3))
        for ax, values, title in zip(
            axes, (comparison.outer_loss, comparison.risk), ("validation loss", "ID risk"), strict=True
        ):
            for statistic, color, shift in (("mean", ID_COLOR, -0.13), ("median", OOD_COLOR, 0.13)):
                above = [100 * (values[name] / values["exact bi-level"] - 1) for name in names]
                centre, low, high = np.array([interval(one, statistic) for one in above]).T
                y = np.arange(len(names)) + shift
                ax.errorbar(centre, y, xerr=[centre - low, high - centre], fmt="o", color=color, label=statistic)
            ax.axvline(0.0, color=ANCHOR_COLOR, linestyle="--", linewidth=1.2)
            ax.set(xlabel="% above exact bi-level", title=title)
        axes[0].set_yticks(range(len(names)), [name.replace("TPGM ", "TPGM\n") for name in names])
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def outer_landscape(problem: Bilevel, paths: Mapping[str, Trajectory]) -> Figure:
    """Contours of ``F(γ)`` over the radii of two layers, the radii's paths in alternation, and the exact optimum."""
    exact = solve_exact(problem)
    top = 1.15 * np.maximum(problem.free_radii, exact.radii)
    grid = np.stack(np.meshgrid(*(np.linspace(0.0, end, 81) for end in top)), axis=-1)
    value = problem.value(grid)
    with book_style():
        fig, ax = plt.subplots(figsize=(6.4, 4.8))
        drawn = ax.contourf(grid[..., 0], grid[..., 1], value, levels=14, cmap="Blues_r", alpha=0.7)
        fig.colorbar(drawn, ax=ax, label="validation loss of $w^⋆(γ)$")
        for (name, path), color in zip(paths.items(), (OOD_COLOR, TPGM_COLOR, CYCLE[3], CYCLE[4]), strict=False):
            ax.plot(*path.radii[:, 0].T, color=color, label=name)
            ax.plot(*path.radii[-1, 0], "o", color=color, markeredgecolor="black")
        ax.plot(*exact.radii, "*", color="black", markersize=13, label="exact optimum", linestyle="none")
        ax.plot(*problem.free_radii, "s", color=ANCHOR_COLOR, label="fine-tuned", linestyle="none")
        ax.set(xlabel="radius of layer 1", ylabel="radius of layer 2", xlim=(-0.02, top[0]), ylim=(-0.02, top[1]))
        ax.grid(False)
        fig.legend(loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def paths(by_name: Mapping[str, Trajectory], exact: float) -> Figure:
    """Validation loss (left) and the two layers' radii (right) over the steps of alternation on one problem."""
    with book_style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.0, 4.3))
        for (name, path), color in zip(by_name.items(), (OOD_COLOR, TPGM_COLOR, CYCLE[3], CYCLE[4]), strict=False):
            steps = np.arange(1, len(path.outer_loss) + 1)
            left.plot(steps, path.outer_loss[:, 0], color=color, label=name)
            for l, style in ((0, "-"), (1, ":")):
                right.plot(steps, path.radii[:, 0, l], style, color=color)
        left.axhline(exact, color="black", linestyle="--", linewidth=1.2, label="exact optimum")
        right.plot([], [], "-", color="black", label="layer 1")
        right.plot([], [], ":", color="black", label="layer 2")
        left.set(xlabel="step", ylabel="validation loss", ylim=(0, None), title="Loss")
        right.set(xlabel="step", ylabel="radius", title="Radii")
        right.legend()
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def smoothing(strengths: Sequence[float], losses: Mapping[str, Array], exact: Mapping[str, float]) -> Figure:
    """Validation loss after alternation, (S,) by problem, over the strengths (S,) of total variation; 0 stands left."""
    at = np.arange(len(strengths))
    with book_style():
        fig, ax = plt.subplots()
        for (name, loss), color, marker in zip(losses.items(), (TPGM_COLOR, OOD_COLOR), "os", strict=False):
            ax.plot(at, loss, color=color, marker=marker, label=name)
            ax.axhline(exact[name], color=color, linestyle="--", linewidth=1.2, label=f"{name}: exact optimum")
        ax.set_xticks(at, [f"{strength:g}" for strength in strengths])
        ax.set(xlabel="strength of total variation", ylabel="validation loss", title="Smoothing cures, at a price")
        fig.legend(loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig
