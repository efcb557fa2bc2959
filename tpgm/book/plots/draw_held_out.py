"""Figures on what held-out samples buy (chapter 4) and on what they cannot see (chapter 4b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from tpgm.book.linear.held_out import (
    SPENDING,
    alignment,
    alignment_variance,
    clipped_excess,
    expected_common,
    mean_squared_score,
    penalised_path,
    replicates,
)
from tpgm.book.linear.problem import Array, LinearProblem
from tpgm.book.linear.ratios import expected_moments, held_out_excess, outer_qp
from tpgm.book.linear.simulation import layer_delta, layer_moments
from tpgm.book.plots.style import ANCHOR_COLOR, CYCLE, ID_COLOR, OOD_COLOR, TPGM_COLOR, book_style

SPENDING_LOOKS = {
    "held out": (TPGM_COLOR, "o", "held out: TPGM"),
    "trained on": (CYCLE[3], "s", "trained on: full fine-tuning"),
    "refit": (CYCLE[4], "v", "refit with the learned ratios"),
    "James–Stein": (CYCLE[5], "D", "trained on, then James–Stein"),
    "cross-fitted": (ID_COLOR, "^", "cross-fitted ratios, refit"),
}
REGIME_LOOKS = {"near": (TPGM_COLOR, "o"), "far": (OOD_COLOR, "s"), "far, long way": (CYCLE[3], "^")}


def half_width(draws: Array) -> float:
    """Half the width of a 95 % interval for the mean."""
    return float(1.96 * draws.std(ddof=1) / np.sqrt(len(draws)))


def spending(risks: Mapping[int, Mapping[str, Array]]) -> Figure:
    """Mean ID risk by what m further samples are used for, and the paired difference from training on them.

    risks: for each m what `tpgm.book.linear.held_out.spend_samples` returns.
    """
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.6))
        for name, shift in zip(SPENDING_LOOKS, np.linspace(-0.16, 0.16, len(SPENDING)), strict=True):
            color, marker, label = SPENDING_LOOKS[name]
            place = np.arange(len(risks)) + shift
            for ax, reference in ((axes[0], 0.0), (axes[1], 1.0)):
                values = [drawn[name] - reference * drawn["trained on"] for drawn in risks.values()]
                if reference and name == "trained on":
                    continue
                ax.errorbar(
                    place, [v.mean() for v in values], [half_width(v) for v in values], fmt=marker, color=color,
                    label=label, markersize=6,
                )  # fmt: skip
        axes[1].axhline(0, color=CYCLE[3], linewidth=1.2)
        axes[0].set(ylabel="ID risk", title="risk")
        axes[1].set(ylabel="difference", title="minus full fine-tuning")
        for ax in axes:
            ax.set_xticks(range(len(risks)), [str(m) for m in risks])
            ax.set(xlabel="further samples m", xlim=(-0.5, len(risks) - 0.5))
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def formula_and_guarantee(
    optimum: tuple[float, float], samples: Sequence[int], draws: int, rng: np.random.Generator
) -> Figure:
    """Mean excess risk of two ratios learned in the box, ``H = I``, ``σ = 1``: simulation, formula and guarantee."""
    free = np.array(optimum)
    best = np.clip(free, 0, 1)
    lowest = float(1 + ((best - free) ** 2).sum())
    drawn = [clipped_excess(optimum, m, draws, rng) for m in samples]
    grid = np.geomspace(samples[0], samples[-1], 200)
    spare = 1 - np.sqrt(0.5) - np.sqrt(2 / grid)
    worst = max(((np.array(corner) - free) ** 2).sum() for corner in product((0.0, 1.0), repeat=2)) + 1 - lowest
    bound = 4 * mean_squared_score(lowest, 1.0, 2, grid) + np.exp(-grid * spare**2 / 2) * worst
    with book_style():
        fig, ax = plt.subplots(figsize=(7.0, 4.2))
        ax.plot(grid[spare >= 0], bound[spare >= 0], color=ANCHOR_COLOR, linestyle="--", label="guarantee")
        ax.plot(grid, held_out_excess(1.0, 2, grid), color=ID_COLOR, label="formula without the box")
        ax.errorbar(
            samples,
            [d.mean() for d in drawn],
            [half_width(d) for d in drawn],
            fmt="^",
            color=TPGM_COLOR,
            label="simulated, in the box",
        )
        ax.set(xscale="log", yscale="log", xlabel="held-out samples m", ylabel="excess ID risk")
        ax.set_xticks(samples, [str(m) for m in samples])
        ax.set_xticks([], minor=True)
        fig.legend(loc="outside lower center", ncols=3)
        plt.close(fig)
    return fig


def alignments(draws: int, rng: np.random.Generator) -> Figure:
    """ID and OOD ratio of one layer against ``κ``, and how far ``κ`` of a random direction is from 1, by width."""
    kappa, size, d, n = np.linspace(0, 3, 100), 10, 50, 100
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.3))
        for s, color, line in ((0.03, TPGM_COLOR, "-"), (0.2, CYCLE[3], "-"), (1.0, OOD_COLOR, "-")):
            inner, square = expected_moments(kappa * s, size, total=2.0, d=d, n=n, noise=1.0)
            axes[0].plot(kappa, inner / square, color=color, linestyle=line, label=f"$s_l$ = {s:g}")
            inner, square = expected_moments(s, size, total=2.0, d=d, n=n, noise=1.0)
            axes[0].axhline(inner / square, color=color, linestyle=":", linewidth=1.2)
        axes[0].axvline(1, color=ANCHOR_COLOR, linewidth=1)
        axes[0].set(xlabel="$κ_l$", ylabel="best ratio", title="— OOD    ··· ID", ylim=(0, 1))
        axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, columnspacing=0.8, handlelength=1.2)
        widths = np.array([2, 4, 8, 16, 32, 64, 128, 256])
        looks = (
            ("half of it shifts", ID_COLOR, "o"),
            ("falls like 1/k", CYCLE[4], "v"),
            ("one direction", ANCHOR_COLOR, "D"),
        )
        for name, color, marker in looks:
            stated, seen = [], []
            for width in widths:
                order = np.arange(width)
                spectrum = {"half of it shifts": 2 * order < width, "falls like 1/k": 1 / (order + 1.0)}.get(
                    name, order < 1
                )
                metric = np.diag(spectrum.astype(float))
                stated.append(alignment_variance(metric) ** 0.5)
                seen.append(alignment(rng.standard_normal((10 * draws, width)), metric, (int(width),)).std())
            axes[1].plot(widths, stated, color=color)
            axes[1].plot(widths, seen, marker, color=color, label=name)
        axes[1].set(
            xscale="log", xlabel="weights in the layer", ylabel="sd of $κ_l$", title="random directions", ylim=(0, 1.7)
        )
        axes[1].set_xticks(widths[::2], [str(w) for w in widths[::2]])
        axes[1].set_xticks([], minor=True)
        axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, columnspacing=0.8, handlelength=1.2)
        plt.close(fig)
    return fig


def price_and_gain(cases: Mapping[str, tuple[LinearProblem, Array]]) -> Figure:
    """Change of OOD risk along the path to the anchor, against the ID price, with the first order in ``√p``."""
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.1))
        for ax, scale in zip(axes, ("linear", "log"), strict=True):
            for name, (problem, displacement) in cases.items():
                color = REGIME_LOOKS[name][0]
                (h, b), (h_ood, b_ood) = outer_qp(problem, displacement), outer_qp(problem, displacement, ood=True)
                squares = layer_moments(displacement[None], displacement, problem.sizes)[1][0]
                path = penalised_path(h, b, squares, np.geomspace(1e-4, 1.5, 120))
                best = np.linalg.solve(h, b)
                step = path - best
                price = np.einsum("ik,kl,il->i", step, h, step)
                gradient = 2 * (h_ood @ best - b_ood)
                change = step @ gradient + np.einsum("ik,kl,il->i", step, h_ood, step)
                pull = squares * best
                slope = gradient @ np.linalg.solve(h, pull) / np.sqrt(pull @ np.linalg.solve(h, pull))
                kept = price < 0.12
                sign = 1 if scale == "linear" else -np.sign(slope)
                ax.plot(price[kept], sign * change[kept], color=color, label=name)
                ax.plot(price[kept], -sign * slope * np.sqrt(price[kept]), color=color, linestyle=":", linewidth=1.2)
            ax.set(xlabel="ID price p")
        axes[0].axhline(0, color="black", linewidth=1)
        axes[0].plot(
            [0, 0.12], [0, 0.12], color=ANCHOR_COLOR, linestyle="--", linewidth=1.2, label="as much as the price"
        )
        axes[1].plot([1e-6, 0.12], [1e-6, 0.12], color=ANCHOR_COLOR, linestyle="--", linewidth=1.2)
        axes[0].set(ylabel="change of OOD risk", title="near falls, far rises")
        axes[1].set(
            xscale="log",
            yscale="log",
            ylabel="size of the change",
            title="both like $√p$",
            xlim=(1e-6, 0.15),
            ylim=(1e-5, 2),
        )
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def rule_changes(results: Mapping[tuple[str, int], Mapping[str, Array]]) -> Figure:
    """Paired change of ID and OOD risk, in per cent, when the rule replaces the best validated ratios; by case and m.

    results: by case and m what `tpgm.book.linear.held_out.one_standard_error` returns.
    """
    rows = np.arange(len(results))
    with book_style():
        fig, ax = plt.subplots(figsize=(7.0, 3.9))
        for name, color, marker, shift in (("id", ID_COLOR, "o", -0.13), ("ood", OOD_COLOR, "s", 0.13)):
            change = [
                100 * (result[name][:, 2] - result[name][:, 1]) / result[name][:, 1].mean()
                for result in results.values()
            ]
            ax.errorbar(
                [c.mean() for c in change], rows + shift, xerr=[half_width(c) for c in change], fmt=marker, color=color,
                label=f"{name.upper()} risk",
            )  # fmt: skip
        ax.axvline(0, color="black", linewidth=1)
        ax.set_yticks(rows, [f"{case}, m = {m}" for case, m in results])
        ax.invert_yaxis()
        ax.set(xlabel="change of risk, %: rule against best validated ratios")
        fig.legend(loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def cosines(draws: int, rng: np.random.Generator) -> Figure:
    """Cosine of two fine-tunings, layer by layer, against the best ratio of one, in three settings."""
    size, noise = 16, 0.5
    distances = np.geomspace(0.003, 3.0, 6)
    sizes, d = (size,) * 6, 6 * size
    delta = layer_delta(distances, sizes, rng)
    total, starts = float(distances.sum()), np.cumsum((0, *sizes[:-1]))
    grid = np.geomspace(0.002, 4.5, 100)
    settings = (
        ("own inputs, n = 2d", 2 * d, False),
        ("own inputs, n = d/2", d // 2, False),
        ("shared, n = d/2", d // 2, True),
    )
    with book_style():
        fig, axes = plt.subplots(1, 3, figsize=(7.0, 3.9), sharey=True)
        for ax, (title, n, shared) in zip(axes, settings, strict=True):
            moved = replicates(delta, n, noise, 2, draws, rng, shared_inputs=shared)
            both = np.add.reduceat(moved[:, 0] * moved[:, 1], starts, axis=1)
            lengths = [np.add.reduceat(moved[:, i] ** 2, starts, axis=1) for i in (0, 1)]
            found = both / np.sqrt(lengths[0] * lengths[1])
            inner, square = expected_moments(grid, size, total=total, d=d, n=n, noise=noise)
            common = expected_common(grid, size, total=total, d=d, n=n, shared_inputs=shared)
            ax.plot(grid, np.clip(inner / square, 0, 1), color=TPGM_COLOR, label="best ratio $ρ_l$")
            ax.plot(grid, common / square, color=CYCLE[4], linestyle="--", label="common part $C_l/V_l$")
            low, high = np.quantile(found, (0.1, 0.9), axis=0)
            mean = found.mean(axis=0)
            ax.errorbar(
                distances, mean, np.stack([mean - low, high - mean]), fmt="o", color=CYCLE[4], markersize=5,
                label="cosine, 10–90 %",
            )  # fmt: skip
            ax.set(xscale="log", title=title, xlabel="$s_l$")
        axes[0].set(ylabel="ratio or cosine", ylim=(-0.45, 1.05))
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        plt.close(fig)
    return fig
