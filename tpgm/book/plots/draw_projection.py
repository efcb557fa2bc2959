"""Figures of chapter 2: the L2 and the MARS ball, their projections, and the loss as a function of the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from torch import Tensor

from tpgm.book.linear.verify_projection import (
    GradientProblem,
    distance_ratio,
    project_l2,
    project_mars,
    project_mars_euclidean,
    spread,
)
from tpgm.book.plots.style import ANCHOR_COLOR, CYCLE, ID_COLOR, OOD_COLOR, TPGM_COLOR, book_style
from tpgm.projection import Norm, row_norms, row_ratios

# name, map, colour, marker and its size: where markers coincide all can be seen
MAPS = (
    ("L2", project_l2, ID_COLOR, "s", 7),
    ("MARS radial (TPGM)", project_mars, TPGM_COLOR, "o", 10),
    ("MARS Euclidean", project_mars_euclidean, OOD_COLOR, "D", 4.5),
)


def balls(points: Sequence[tuple[float, float]], radius: float = 1.0) -> Figure:
    """Both balls in the plane, and where three maps send the points: two weights as one row, and as two rows."""
    with book_style():
        fig, axes = plt.subplots(1, 2, figsize=(7.0, 4.3), sharey=True)
        for ax, shape, title in (
            (axes[0], (1, 2), "one row of two weights"),
            (axes[1], (2, 1), "two rows of one weight"),
        ):
            corners = [(radius, 0), (0, radius), (-radius, 0), (0, -radius)]
            if shape == (2, 1):
                corners = [(radius, radius), (-radius, radius), (-radius, -radius), (radius, -radius)]
            ax.add_patch(Polygon(corners, facecolor=TPGM_COLOR, alpha=0.18))
            ax.add_patch(Circle((0, 0), radius, facecolor="none", edgecolor=ID_COLOR, linewidth=1.2))
            for point in points:
                _arrows(ax, point, shape, radius)
            ax.plot(0, 0, "+", color=ANCHOR_COLOR, markersize=10)
            ax.set(title=title, xlabel="first weight − anchor", aspect="equal", xlim=(-1.35, 2.3), ylim=(-1.35, 2.3))
        axes[0].set_ylabel("second weight − anchor")
        handles, labels = axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        fig.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def _arrows(ax: Axes, point: tuple[float, float], shape: tuple[int, int], radius: float) -> None:
    weight = torch.tensor(point, dtype=torch.float64).reshape(shape)
    ax.plot(*point, "o", color="black", markersize=5, label="before")
    for name, projection, color, marker, size in MAPS:
        x, y = projection(weight, torch.zeros_like(weight), radius).flatten().tolist()
        ax.plot([point[0], x], [point[1], y], color=color, linewidth=0.9)
        ax.plot(x, y, marker, color=color, markersize=size, label=name)


def two_scales(rng: np.random.Generator, rows: int, width: int, share: float, small: float = 0.05) -> Tensor:
    """Gaussian rows (rows, width), float64: a `share` of the entries has standard deviation 1, the others `small`."""
    scale = np.where(rng.random((rows, width)) < share, 1.0, small)
    return torch.from_numpy(scale * rng.standard_normal((rows, width)))


def difference(rng: np.random.Generator, rows: int) -> Figure:
    """How much farther the radial map moves a row than needed: against the radius, and against unevenness."""
    with book_style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.0, 4.1))
        fractions = np.linspace(0.0, 0.98, 25)
        for width, color in zip((4, 16, 64, 1024), CYCLE, strict=False):
            gaussian = torch.from_numpy(rng.standard_normal((rows, width)))
            medians = [float(distance_ratio(gaussian, fraction).median()) for fraction in fractions]
            left.plot(fractions, medians, color=color, label=f"{width}")
        left.axhline(np.sqrt(np.pi / 2), color=ANCHOR_COLOR, linestyle=":", linewidth=1.2)
        left.text(0.02, np.sqrt(np.pi / 2), "√(π/2)", va="bottom", color=ANCHOR_COLOR)
        left.legend(title="row width")
        left.set(xlabel="radius / L1 norm of the row", ylabel="distance ratio", title="Gaussian rows")

        shares = np.geomspace(0.01, 1.0, 13)
        samples = [two_scales(rng, rows, 256, share) for share in shares]
        for fraction, color in zip((0.25, 0.5, 0.9), CYCLE, strict=False):
            medians = [float(distance_ratio(sample, fraction).median()) for sample in samples]
            right.plot(shares, medians, color=color, label=f"{fraction}")
        right.plot(
            shares, [float(spread(s).median()) for s in samples], color=ANCHOR_COLOR, linestyle=":", label="bound"
        )
        right.set_xscale("log")
        right.set_ylim(1.0, 4.0)  # room for the legend
        right.set_xticks([0.01, 0.1, 1.0], ["1 %", "10 %", "100 %"])
        right.legend(title="radius / L1 norm", loc="upper right")
        right.set(xlabel="share of large entries", title="width 256, the rest 20 times smaller")
        plt.close(fig)
    return fig


def loss_and_slope(problem: GradientProblem) -> Figure:
    """``L(γ)`` and its derivative for one matrix: kinks at the row norms, jumps of the derivative there."""
    with book_style():
        norms = row_norms(problem.displacement, problem.norm)
        radii = np.linspace(0.0, 1.15 * float(norms.max()), 400)
        losses = [float(problem.value(radius)) for radius in radii]
        slopes = np.array([problem.slope(radius) for radius in radii])
        fig, (upper, lower) = plt.subplots(2, 1, figsize=(7.0, 4.8), sharex=True)
        upper.plot(radii, losses, color=TPGM_COLOR)
        edges = [0.0, *norms.sort().values.tolist(), radii[-1]]
        for start, end in pairwise(edges):
            inside = (radii >= start) & (radii < end)
            lower.plot(radii[inside], slopes[inside], color=TPGM_COLOR)
        for norm in norms.tolist():
            left, right = problem.slope(norm, "left"), problem.slope(norm, "right")
            lower.plot(norm, left, "o", color=TPGM_COLOR, markersize=5)
            lower.plot(norm, right, "o", markerfacecolor="white", color=TPGM_COLOR, markersize=5)
            for ax in (upper, lower):
                ax.axvline(norm, color=ANCHOR_COLOR, linestyle=":", linewidth=1.0)
        lower.axhline(0.0, color=ANCHOR_COLOR, linewidth=0.8)
        upper.set(ylabel="loss L(γ)", title="dotted: the row norms, where the derivative jumps")
        lower.set(xlabel="radius γ", ylabel="∂L/∂γ")
        plt.close(fig)
    return fig


def spread_during_training(steps: Sequence[int], spreads: Mapping[str, np.ndarray]) -> Figure:
    """Upper bound on the distance ratio in a network's tensors; spreads: by optimizer, (steps, tensors)."""
    with book_style():
        fig, ax = plt.subplots()
        for (name, values), color in zip(spreads.items(), CYCLE, strict=False):
            ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.6)
            ax.plot(steps, np.median(values, axis=1), color=color, linewidth=2.6, label=name)
        ax.set_xscale("log")
        ax.set(
            xlabel="step of fine-tuning", ylabel="√k₀ ‖Δ‖₂ / ‖Δ‖₁", title="how uneven the rows of the displacement are"
        )
        ax.legend(title="optimizer")
        plt.close(fig)
    return fig


def row_scaling(displacement: Tensor, positions: int = 21) -> go.Figure:
    """A slider for the radius, as a share of the largest norm: the ratio each row of a matrix keeps, L2 and MARS."""
    rows = [f"row {i + 1}" for i in range(len(displacement))]
    shares = np.linspace(0.0, 1.0, positions)

    def ratios(norm: Norm, share: float) -> list[float]:
        norms = row_norms(displacement, norm)
        kept = row_ratios(norms, share * norms.max()).expand(len(rows))
        return [round(float(value), 4) for value in kept]

    first = positions // 2
    bars: tuple[tuple[str, Norm, str], ...] = (("L2", "l2", ID_COLOR), ("MARS", "mars", TPGM_COLOR))
    traces = [
        go.Bar(name=label, x=rows, y=ratios(norm, shares[first]), marker_color=color) for label, norm, color in bars
    ]
    steps = [
        {
            "method": "restyle",
            "label": f"{100 * share:.0f} %",
            "args": [{"y": [ratios("l2", share), ratios("mars", share)]}],
        }
        for share in shares
    ]
    slider = {"active": first, "steps": steps, "currentvalue": {"prefix": "radius / largest norm: "}, "pad": {"t": 40}}
    layout = go.Layout(
        barmode="group",
        height=420,
        margin={"l": 55, "r": 15, "t": 40, "b": 40},
        yaxis={"title": {"text": "ratio kept"}, "range": [0, 1.05]},
        legend={"orientation": "h", "y": 1.12},
        sliders=[slider],
    )
    return go.Figure(traces, layout)
