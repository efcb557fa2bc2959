"""Figures of chapters 3 and 4: ratios in the linear model, the ID/OOD trade-off, and radii learned on held-out data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from tpgm.book.linear.problem import Array, LinearProblem
from tpgm.book.linear.ratios import (
    MomentSetting,
    common_ratio,
    common_ratio_risk,
    expected_moments,
    held_out_excess,
    outer_qp,
    regime_threshold,
    separable_ratios,
    shared_radius_minima,
    shared_radius_risk,
    solve_outer_qp,
)
from tpgm.book.linear.simulation import excess_risk, learn_ratios, random_displacements, random_rows, ratio_curve
from tpgm.book.plots.style import ANCHOR_COLOR, CYCLE, ID_COLOR, OOD_COLOR, TPGM_COLOR, book_style

Case = tuple[LinearProblem, Array]  # a problem and the displacement that fine-tuning gave


def radii_landscape(problem: LinearProblem, displacement: Array) -> Figure:
    """ID risk over the ratios of two layers, with the box, the common-ratio line and the minimisers on each."""
    h, b = outer_qp(problem, displacement)
    free, best = np.linalg.solve(h, b), solve_outer_qp(h, b)
    one = np.full(2, np.clip(common_ratio(problem, displacement), 0, 1))
    low, high = np.minimum(-0.25, free - 0.3), np.maximum(1.25, free + 0.3)
    grid = np.stack(np.meshgrid(*(np.linspace(low[i], high[i], 121) for i in (0, 1))), axis=-1)
    risk = problem.risk(problem.anchor) + np.einsum("...k,kl,...l", grid, h, grid) - 2 * grid @ b
    with book_style():
        fig, ax = plt.subplots(figsize=(6.2, 4.6))
        levels = risk.min() + (risk.max() - risk.min()) * np.linspace(0.02, 1, 12) ** 2
        ax.contour(grid[..., 0], grid[..., 1], risk, levels=levels, colors=ID_COLOR, linewidths=0.9, alpha=0.75)
        ax.add_patch(Rectangle((0, 0), 1, 1, facecolor=TPGM_COLOR, alpha=0.13))
        ax.plot([0, 1], [0, 1], color=ANCHOR_COLOR, linestyle="--", label="one common ratio")
        ax.plot(*np.zeros(2), "s", color=ANCHOR_COLOR, label="pre-trained")
        ax.plot(*np.ones(2), "s", color=OOD_COLOR, markersize=12, label="fine-tuned")
        ax.plot(*free, "x", color="black", markersize=9, markeredgewidth=2, zorder=4, label="best without the box")
        ax.plot(*one, "o", color=ANCHOR_COLOR, markersize=7, label="best common ratio")
        ax.plot(*best, "o", color=TPGM_COLOR, markersize=10, zorder=2, label="best ratios $α^⋆$")
        ax.set(
            xlabel="ratio of layer 1",
            ylabel="ratio of layer 2",
            title="Choosing radii = minimising a quadratic in a box",
        )
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        fig.legend(loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def shared_radius(rows: Sequence[int], problems: int, rng: np.random.Generator) -> Figure:
    """Rows under one radius: the cost of two rows by hand, and how many random problems have several minima."""
    example = np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.0, 1.0])
    radii = np.linspace(0, 2.4, 241)
    where, found = shared_radius_minima(*example)
    counts = [shared_radius_minima(*random_rows(rng, problems, r))[1].sum(axis=-1) for r in rows]
    shares = [100 * float(np.mean(count > 1)) for count in counts]
    with book_style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.0, 3.6))
        left.plot(radii, shared_radius_risk(radii, *example), color=ID_COLOR)
        left.plot(where[found], shared_radius_risk(where[found], *example), "o", color=TPGM_COLOR, markersize=9)
        for norm in example[0]:
            left.axvline(norm, color=ANCHOR_COLOR, linestyle=":", linewidth=1.2)
        left.text(1.05, 4.2, "γ = norm\nof row 1", color=ANCHOR_COLOR, fontsize=9)
        left.set(xlabel="radius γ of both rows", ylabel="cost", ylim=(2.5, 4.5), title="two rows, two minima")
        bars = right.bar([str(r) for r in rows], shares, color=TPGM_COLOR, width=0.6)
        right.bar_label(bars, fmt="%.0f %%")
        right.set(xlabel="rows under one radius", ylabel="problems (%)", ylim=(0, 65), title="several minima")
        right.grid(axis="x", visible=False)
        plt.close(fig)
    return fig


def ratios_by_distance(
    layer_sizes: Sequence[int], distances: Array, noise: float, draws: int, rng: np.random.Generator
) -> Figure:
    """Ratio against squared distance ``s_l``: the ratio of expectations, and simulated layers, in both regimes."""
    grid = np.geomspace(distances.min() / 1.3, distances.max() * 1.3, 200)
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.2), sharey=True)
        for ax, rows, title in ((axes[0], 0.5, "n = d/2 rows"), (axes[1], 2.0, "n = 2d rows")):
            for size, color, shift in zip(layer_sizes, (OOD_COLOR, ID_COLOR), (0.94, 1.06), strict=True):
                curve = ratio_curve(size, rows, distances, noise, draws, rng)
                d = size * len(distances)
                inner, square = expected_moments(grid, size, total=distances.sum(), d=d, n=round(rows * d), noise=noise)
                ax.plot(grid, np.clip(inner / square, 0, 1), color=color, linewidth=1.4)
                spread = (curve["mean"] - curve["low"], curve["high"] - curve["mean"])
                ax.errorbar(
                    distances * shift, curve["mean"], np.maximum(spread, 0), fmt="o", color=color, markersize=5,
                    elinewidth=1, label=f"layers of {size} weights",
                )  # fmt: skip
            ax.set(xscale="log", title=title, xlabel="squared distance $s_l$")
        axes[0].set_ylabel("ratio $α_l$")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def approximation(layer_sizes: Sequence[int], errors: Mapping[str, Array]) -> Figure:
    """How far ratios are from the ratio of expectations as layers grow: a single training set, and the mean over them.

    errors: what `tpgm.book.linear.simulation.approximation_errors` returns for these layer sizes.
    """
    sizes = np.asarray(layer_sizes, dtype=np.float64)
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.2), sharey=True)
        for ax, key, title in ((axes[0], "scatter", "one training set"), (axes[1], "bias", "mean over training sets")):
            for l, color, marker in ((1, ID_COLOR, "o"), (2, TPGM_COLOR, "s"), (3, OOD_COLOR, "^")):
                label = f"$ρ_l$ = {errors['ratio'][-1, l]:.2g}"
                ax.plot(sizes, errors[key][:, l], marker=marker, color=color, label=label)
            ax.plot(sizes, 0.6 * sizes**-0.5, color=ANCHOR_COLOR, linestyle=":", label="slope −1/2")
            ax.set(xscale="log", yscale="log", xlabel="layer size $d_l$", title=title)
            ax.set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
            ax.set_xticks([], minor=True)
        axes[0].set(ylabel="distance from $ρ_l$", ylim=(1e-3, 0.5))
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        plt.close(fig)
    return fig


def parabolas(cases: Mapping[str, Case]) -> Figure:
    """ID and OOD risk along one common ratio; shaded is where a constraint lowers OOD risk. One panel a case."""
    alpha = np.linspace(0, 1, 101)
    with book_style():
        fig, axes = plt.subplots(1, len(cases), figsize=(7.0, 3.9), sharey=True)
        for ax, (name, case) in zip(axes, cases.items(), strict=True):
            for ood, color, label in ((False, ID_COLOR, "ID risk"), (True, OOD_COLOR, "OOD risk")):
                ax.plot(alpha, common_ratio_risk(*case, alpha, ood), color=color, label=label)
                best = np.clip(common_ratio(*case, ood), 0, 1)
                ax.plot(best, common_ratio_risk(*case, best, ood), "o", color=color, markersize=8)
            edge = max(0.0, 2 * common_ratio(*case, ood=True) - 1)
            if edge < 1:
                ax.axvspan(edge, 1, color=TPGM_COLOR, alpha=0.13, label="OOD risk below full fine-tuning")
            ax.axhline(common_ratio_risk(*case, 1.0, ood=True), color=OOD_COLOR, linestyle=":", linewidth=1.2)
            ax.set(title=name, xlabel="common ratio α")
        axes[0].set_ylabel("risk")
        handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        plt.close(fig)
    return fig


def regimes(problems: Sequence[LinearProblem], n: int, draws: int, rng: np.random.Generator) -> Figure:
    """Best common ratio OOD against the pre-trained model's OOD excess risk; problems share S, noise and ``tr Σ'``."""
    first = problems[0]
    trace = float(np.trace(first.second_moment(ood=True)))
    setting: MomentSetting = {"total": float(first.distances.sum()), "d": first.d, "n": n, "noise": first.noise}
    squared = []
    low: list[float] = []
    high: list[float] = []
    for problem in problems:
        moved = random_displacements(problem.delta, n, problem.noise, draws, rng)
        weighted = moved @ problem.second_moment(ood=True)
        ratios = weighted @ problem.delta / (weighted * moved).sum(axis=1)
        squared.append(problem.risk(problem.anchor, ood=True) - problem.noise**2)
        for store, value in zip((low, high), np.quantile(ratios, (0.05, 0.95)), strict=True):
            store.append(value)
    grid = np.linspace(0, max(squared) * 1.05, 200)
    inner, square = expected_moments(grid, trace, **setting)
    threshold = regime_threshold(trace, **setting)
    with book_style():
        fig, ax = plt.subplots(figsize=(7.0, 3.8))
        ax.plot(grid, inner / square, color=OOD_COLOR, label="ratio of expectations")
        ax.vlines(squared, low, high, color=ANCHOR_COLOR, label="90 % of the training sets", linewidth=3)
        ax.axhline(1, color="black", linewidth=1)
        ax.axvline(threshold, color=TPGM_COLOR, linestyle="--", label="threshold")
        ax.text(threshold * 0.5, 1.3, "a constraint\nlowers OOD risk", ha="center")
        ax.text((threshold + grid[-1]) / 2, 0.45, "any constraint\nraises OOD risk", ha="center")
        ax.set(xlabel="OOD excess risk of the pre-trained model", ylabel="$α_{OOD}$", ylim=(0, None))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        plt.close(fig)
    return fig


def risk_slider(cases: Mapping[str, Case], positions: int = 21) -> go.Figure:
    """A slider for one common ratio: ID and OOD risk move on their parabolas, bars show the change that it makes.

    cases: problem and displacement by a short name, one button each; positions: of the slider, from 0 to 1. All data
    are computed beforehand, so the figure needs no kernel.
    """
    alpha, start = np.linspace(0, 1, positions), (positions - 1) // 2
    curve = np.linspace(0, 1, 51)
    names, colors = ("ID", "OOD"), (ID_COLOR, OOD_COLOR)
    fig = make_subplots(rows=2, row_heights=[0.74, 0.26], vertical_spacing=0.2)
    owner: list[str] = []  # the case that each trace belongs to
    moving: list[int] = []  # the traces that the slider changes …
    changes: list[list[dict[str, list[float] | list[str]]]] = [[] for _ in alpha]  # … and what they get, by position
    ranges: dict[str, dict[str, object]] = {}

    def add(trace: go.Scatter | go.Bar, row: int, case: str) -> None:
        fig.add_trace(trace.update(visible=case == next(iter(cases))), row=row, col=1)
        owner.append(case)

    for name, case in cases.items():
        risks = np.stack([common_ratio_risk(*case, alpha, ood) for ood in (False, True)]).round(4)
        lines = np.stack([common_ratio_risk(*case, curve, ood) for ood in (False, True)]).round(4)
        gains = (risks - risks[:, -1:]).T
        texts = [[f"{value:+.2f}".replace("-", "−") for value in row] for row in gains]
        top, widest = 1.08 * float(risks.max()), 1.6 * float(np.abs(gains).max())
        ranges[name] = {"yaxis.range": [-0.04 * top, top], "xaxis2.range": [-widest, widest]}
        ranges[name]["annotations[0].text"] = f"<b>{name}</b>"

        edge = max(0.0, 2 * common_ratio(*case, ood=True) - 1)
        if edge < 1:
            helps = go.Scatter(x=[edge, (edge + 1) / 2, 1], y=[0, 0, 0], mode="lines+text", textposition="top center")
            helps.update(
                text=["", "constraint helps<br> ", ""], line={"color": TPGM_COLOR, "width": 8}, showlegend=False
            )
            add(helps.update(hoverinfo="skip", cliponaxis=False), 1, name)
        for label, color, line in zip(names, colors, lines, strict=True):
            add(go.Scatter(x=curve, y=line, line_color=color, name=f"{label} risk", hoverinfo="skip"), 1, name)
        for color, risk in zip(colors, risks, strict=True):
            moving.append(len(owner))
            mark = {"color": color, "size": 14, "line": {"color": "white", "width": 2}}
            point = go.Scatter(x=[alpha[start]], y=[risk[start]], mode="markers", marker=mark, showlegend=False)
            add(point.update(hoverinfo="y"), 1, name)
            for change, a, value in zip(changes, alpha, risk, strict=True):
                change.append({"x": [round(float(a), 4)], "y": [float(value)], "text": [""]})
        moving.append(len(owner))
        bar = go.Bar(x=gains[start], y=names, text=texts[start], orientation="h", marker_color=colors)
        add(bar.update(textposition="outside", cliponaxis=False, showlegend=False, hoverinfo="skip"), 2, name)
        for change, gain, text in zip(changes, gains.round(4).tolist(), texts, strict=True):
            change.append({"x": gain, "y": list(names), "text": text})

    steps = [
        {"label": f"{a:.2f}", "method": "restyle", "args": [{k: [c[k] for c in change] for k in change[0]}, moving]}
        for a, change in zip(alpha, changes, strict=True)
    ]
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [name == mine for mine in owner]}, ranges[name]]}
        for name in cases
    ]
    # an active button is drawn in a light colour that a dark page's light letters vanish on: a label says what is shown
    menu = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "xref": "paper", "yref": "paper", "yshift": 44}
    first = ranges[next(iter(cases))]
    fig.update_layout(
        height=640,
        margin={"l": 50, "r": 22, "t": 90, "b": 20},
        sliders=[{"active": start, "steps": steps, "currentvalue": {"prefix": "common ratio α = "}, "pad": {"t": 70}}],
        updatemenus=[{**menu, "buttons": buttons, "pad": {"b": 38}, "showactive": False}],
        annotations=[{**place, "text": first["annotations[0].text"], "showarrow": False}],
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
    )
    fig.update_xaxes(title_text="common ratio α", range=[-0.03, 1.03], row=1, col=1)
    fig.update_yaxes(title_text="risk", range=first["yaxis.range"], row=1, col=1)
    fig.update_xaxes(title_text="risk minus that of full fine-tuning", range=first["xaxis2.range"], row=2, col=1)
    return fig


# --- chapter 4


def layer_optima(problem: LinearProblem, displacement: Array) -> Figure:
    """Each layer's optimum against the best common ratio: bars as wide as ``h_l``, the weight in the gain."""
    h, b = outer_qp(problem, displacement)
    weight, best = np.diag(h), separable_ratios(h, b)
    mean, edges = weight @ best / weight.sum(), np.concatenate([[0.0], np.cumsum(weight)])
    with book_style():
        fig, ax = plt.subplots(figsize=(7.0, 3.8))
        for l, ratio in enumerate(best):
            ax.bar(
                edges[l], ratio, weight[l], align="edge", color=TPGM_COLOR, alpha=0.55, edgecolor="white", linewidth=2
            )
            ax.text(
                edges[l] + weight[l] / 2, ratio + 0.02, f"{ratio:.2f}", ha="center", zorder=3,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
        ax.set_xticks(edges[:-1] + weight / 2, [f"{l + 1}" for l in range(len(best))])
        ax.axhline(mean, color=ANCHOR_COLOR, linestyle="--", label=f"best common ratio {mean:.2f}")
        ax.set(xlabel="layer; width of the bar: $h_l$", ylabel="best ratio $α^⋆_l$", ylim=(0, 1.15))
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper left")
        plt.close(fig)
    return fig


STRATEGY_LOOKS = {
    "pre-trained": (ANCHOR_COLOR, ":", ""),
    "full fine-tuning": (CYCLE[3], "-", "s"),
    "one ratio": (CYCLE[4], "-", "v"),
    "one per layer, mixed layers": (CYCLE[5], "--", "x"),
    "one per layer": (TPGM_COLOR, "-", "o"),
}


def strategies(shares: ArrayLike, risks: Sequence[Mapping[str, tuple[Array, Array]]]) -> Figure:
    """Mean ID and OOD risk of ways to choose ratios, against the share of the distance that the shift amplifies.

    risks: for each share what `tpgm.book.linear.simulation.strategy_risks` returns.
    """
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.7))
        for ax, domain, title in ((axes[0], 0, "ID risk"), (axes[1], 1, "OOD risk")):
            for name, (color, line, marker) in STRATEGY_LOOKS.items():
                means = [drawn[name][domain].mean() for drawn in risks]
                ax.plot(shares, means, color=color, linestyle=line, marker=marker, label=name)
            ax.set(title=title, xlabel="share of distance in layer 1")
        # the pre-trained model would press everything else together
        axes[1].set_ylim(0.3, 1.25 * max(drawn["one ratio"][1].mean() for drawn in risks))
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def held_out_curve(
    problem: LinearProblem, displacement: Array, samples: Sequence[int], draws: int, rng: np.random.Generator
) -> Figure:
    """Mean excess risk of ratios learned on m held-out samples: formula, simulation, and simulation in the box.

    Without the box only m > L + 3 is simulated: below, the mean has no finite standard error. In the box a tenth of
    the draws is taken.
    """
    layers = len(problem.sizes)
    h, b = outer_qp(problem, displacement)
    free, best = np.linalg.solve(h, b), solve_outer_qp(h, b)
    lowest = problem.risk(problem.weights(displacement, free))
    enough = [m for m in samples if m > layers + 3]
    unclipped = [excess_risk(problem, displacement, learn_ratios(problem, displacement, m, draws, rng)) for m in enough]
    boxed = [
        excess_risk(problem, displacement, learn_ratios(problem, displacement, m, draws // 10, rng, box=True))
        - excess_risk(problem, displacement, best)
        for m in samples
    ]
    grid = np.geomspace(layers + 1.3, samples[-1], 300)
    with book_style():
        fig, ax = plt.subplots(figsize=(7.0, 4.3))
        ax.plot(grid, held_out_excess(lowest, layers, grid), color=ID_COLOR, label="$R(α^∘)\\,L/(m−L−1)$")
        ax.plot(enough, [drawn.mean() for drawn in unclipped], "o", color=ID_COLOR, label="simulated, not clipped")
        ax.plot(samples, [drawn.mean() for drawn in boxed], "^", color=TPGM_COLOR, label="simulated, in the box")
        ax.axvline(layers + 1, color=ANCHOR_COLOR, linestyle=":", label="m = L + 1")
        ax.set(xscale="log", yscale="log", xlabel="held-out samples m", ylabel="excess ID risk")
        ax.set_xticks(samples, [str(m) for m in samples])
        ax.set_xticks([], minor=True)
        fig.legend(loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def outer_data(learned: Mapping[str, tuple[Array, float, float]]) -> Figure:
    """Ratios by what they were learned on, and the ID and OOD risk that follows.

    learned: by name of the outer data the mean ratios (L,), mean ID risk and mean OOD risk.
    """
    names = list(learned)
    rows = np.arange(len(names))
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.2), sharey=True)
        for l in range(len(learned[names[0]][0])):
            shift = (l - 0.5) * 0.3
            axes[0].barh(
                rows + shift, [learned[k][0][l] for k in names], 0.28, color=CYCLE[l + 2], label=f"layer {l + 1}"
            )
        for i, (color, label) in enumerate(((ID_COLOR, "ID risk"), (OOD_COLOR, "OOD risk"))):
            axes[1].barh(rows + (i - 0.5) * 0.3, [learned[k][1 + i] for k in names], 0.28, color=color, label=label)
        axes[0].set(xlabel="mean ratio", xlim=(0, 1.05))
        axes[0].set_yticks(rows, names)
        axes[0].invert_yaxis()
        axes[1].set(xlabel="mean risk")
        for ax in axes:
            ax.grid(axis="y", visible=False)
            _legend_above(ax)
        plt.close(fig)
    return fig


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1, handlelength=1.2)
