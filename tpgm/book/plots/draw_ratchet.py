"""Figures of chapter 5 on mini-batches: the vote, the ratchet, its cure, the budget, MARS radii, and the networks."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm as gaussian

from tpgm.book.linear.bilevel_study import interval
from tpgm.book.linear.mars import outer_loss
from tpgm.book.linear.problem import Array
from tpgm.book.linear.ratchet import Path, Stream
from tpgm.book.linear.verify_ratchet import agreement_moments, radii_at_the_end
from tpgm.book.plots.style import ANCHOR_COLOR, CYCLE, ID_COLOR, OOD_COLOR, TPGM_COLOR, book_style

FLOOR = 1.01e-8  # radii up to this stand on their floor


def vote(
    shares: Sequence[float], widths: Sequence[int], draws: int, rng: np.random.Generator, rows: int = 16
) -> Figure:
    """Share of validation batches that vote to open a layer at the anchor, over ``s_l / (R₀ √(d_l / nm))``.

    Dots: `draws` simulated pairs of batches of `rows` samples, σ = 1, for layers of these widths; line: a Gaussian with
    the mean and variance of the theorem.
    """
    with book_style():
        fig, ax = plt.subplots()
        for d, color, marker in zip(widths, (ID_COLOR, OOD_COLOR, TPGM_COLOR), "os^", strict=False):
            found, stated = [], []
            unit = np.sqrt(d) / rows  # the signal in units of R₀, which itself contains it: s / (s + 1) < 1
            reached = [share for share in shares if share * unit < 0.9]
            for share in reached:
                s = share * unit / (1 - share * unit)
                ours, theirs = (_half_gradients(rng, draws, rows, d, s) for _ in range(2))
                found.append(float(np.mean(np.sum(ours * theirs, axis=1) > 0)))
                mean, variance = agreement_moments(s, d, s + 1, rows, rows)
                stated.append(float(gaussian.cdf(mean / np.sqrt(variance))))
            ax.plot(reached, found, marker, color=color, label=f"{d} weights")
            ax.plot(reached, stated, "-", color=color)
        ax.axhline(0.5, color=ANCHOR_COLOR, linestyle="--", linewidth=1.2)
        ax.set(
            xlabel=r"signal over noise, $s_l\, /\, R_0\sqrt{d_l/nm}$",
            ylabel="share of votes to open",
            ylim=(0.4, 1.02),
            title="A weak layer's vote is a coin flip",
        )
        ax.legend(title="layer")
        plt.close(fig)
    return fig


def _half_gradients(rng: np.random.Generator, draws: int, rows: int, d: int, s: float) -> Array:
    """Half negative gradients (draws, d) of batches at the anchor: the optimum lies `√s` away, σ = 1."""
    x = rng.standard_normal((draws, rows, d))
    residual = np.sqrt(s) * x[..., 0] + rng.standard_normal((draws, rows))
    result: Array = np.einsum("tni,tn->ti", x, residual) / rows
    return result


def bound_of(path: Path, run: int, layer: int) -> Array:
    """(T,): the lengths of the training steps since the radius last stood on its floor."""
    total, bound = 0.0, []
    for radius, length in zip(path.radii[:, run, layer], path.lengths[:, run, layer], strict=True):
        total += float(length)
        bound.append(total)
        total = 0.0 if radius <= FLOOR else total
    return np.array(bound)


def ratchet(path: Path, names: Sequence[str], layer: int = 0) -> Figure:
    """One layer's radius over the steps and the ratchet's bound, one panel a run."""
    with book_style():
        fig, axes = plt.subplots(1, len(names), figsize=(7.0, 3.9), sharey=True)
        steps = np.arange(1, len(path.radii) + 1)
        for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
            radius = path.radii[:, k, layer]
            ax.plot(steps, bound_of(path, k, layer), color=ANCHOR_COLOR, linewidth=1.2, label="steps since the reset")
            ax.plot(steps, path.norms[:, k, layer], color=ID_COLOR, linewidth=1.2, label="displacement")
            ax.plot(steps, np.where(np.isfinite(radius), radius, np.nan), color=TPGM_COLOR, label="radius")
            down = radius <= FLOOR
            ax.plot(steps[down], radius[down], "|", color=OOD_COLOR, markersize=9, label="on its floor")
            ax.set(xlabel="training step", title=name, ylim=(-0.02, 0.75))
        axes[0].set_ylabel("length")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def cure(rates: Sequence[float], risks: Mapping[str, Array], start: float, free: Array) -> Figure:
    """ID risk at the end over the radii's learning rate, a curve for each warm-up: mean and 95 % interval over runs.

    risks: (rates, runs) by the warm-up's name; start: of the pre-trained weights; free: (runs,) of plain SGD.
    """
    with book_style():
        fig, ax = plt.subplots()
        for (name, values), color, marker in zip(
            risks.items(), (OOD_COLOR, CYCLE[3], ID_COLOR, TPGM_COLOR), "os^D", strict=False
        ):
            mean, low, high = np.array([interval(one) for one in values]).T
            ax.errorbar(rates, mean, yerr=[mean - low, high - mean], color=color, marker=marker, label=name)
        ax.axhline(start, color=ANCHOR_COLOR, linestyle="--", linewidth=1.2, label="pre-trained")
        ax.axhline(float(free.mean()), color="black", linestyle=":", linewidth=1.2, label="plain SGD")
        ax.set(xscale="log", xlabel="learning rate of the radii", ylabel="ID risk at the end")
        ax.set_title("Free steps first, then slow radii, lower the risk")
        fig.legend(loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


def kept(reaches: Sequence[float], updates: int = 400) -> Figure:
    """Share of its displacement that a layer keeps over its distance, for several budgets lr·N.

    Every layer wants 0.9 of its displacement; radii begin at half of the smallest layer's norm.
    """
    norms = np.geomspace(0.1, 10, 41)
    with book_style():
        fig, ax = plt.subplots()
        for reach, color in zip(reaches, (OOD_COLOR, CYCLE[3], TPGM_COLOR), strict=True):
            radii = radii_at_the_end(norms, 0.9 * norms, reach / updates, updates, start=0.05)[-1]
            ax.plot(norms, np.minimum(1, radii / norms), color=color, label=f"{reach:g}")
        ax.axhline(0.9, color=ANCHOR_COLOR, linestyle="--", linewidth=1.2)
        ax.set(xscale="log", xlabel=r"displacement $\|\Delta_l\|$", ylabel="share kept", ylim=(0, 1.02))
        ax.set_title("A small budget holds the far layers back")
        ax.legend(title="lr · N")
        plt.close(fig)
    return fig


def mars(excess: Array, points: int = 241) -> Figure:
    """Left: training loss where alternation rests, in per cent above the inner solution's, sorted; right: the outer
    loss over one MARS radius, for a layer of two rows that want ratios 0 and 1."""
    rows, curvature, best = [np.array([1.0]), np.array([2.0])], (3.0, 4.0), (0.0, 1.0)
    gamma = np.linspace(0.0, 2.4, points)
    with book_style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.0, 3.6))
        left.bar(np.arange(1, len(excess) + 1), np.sort(100 * excess), color=TPGM_COLOR, width=1.0)
        left.axhline(100 * float(excess.mean()), color="black", linestyle="--", linewidth=1.2)
        left.set(xlabel="problem (sorted)", ylabel="% above the minimum", title="Training loss at rest")
        right.plot(gamma, outer_loss(gamma, rows, curvature, best), color=ID_COLOR)
        at = np.array([0.5, 2.0])
        right.plot(at, outer_loss(at, rows, curvature, best), "o", color=TPGM_COLOR)
        right.plot(1.0, outer_loss(1.0, rows, curvature, best), "s", color=OOD_COLOR)
        right.set(xlabel="radius γ", ylabel="outer loss", title="One radius, two minima", ylim=(2.5, None))
        plt.close(fig)
    return fig


def networks(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Figure:
    """Median radius over the training steps, by run, one panel a network. titles: by the model of the rows."""
    labels = list(dict.fromkeys(row["config"]["label"] for row in rows))
    models = [model for model in titles if any(row["config"]["model"] == model for row in rows)]
    with book_style():
        fig, axes = plt.subplots(1, len(models), figsize=(7.0, 4.2), sharey=True, squeeze=False)
        looks = ((OOD_COLOR, "-"), (CYCLE[3], "--"), (ID_COLOR, "-"), (TPGM_COLOR, "-"))
        styles = dict(zip(labels, looks, strict=False))
        for ax, model in zip(axes[0], models, strict=True):
            for row in (row for row in rows if row["config"]["model"] == model):
                radii, (color, style) = row["radii"], styles[row["config"]["label"]]
                median = np.maximum(radii["median"], 1e-8)
                ax.plot(radii["step"], median, style, color=color, label=row["config"]["label"])
            ax.set(yscale="log", xlabel="training step", title=titles[model], ylim=(5e-9, 5))
        axes[0][0].set_ylabel("median radius")
        fig.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plt.close(fig)
    return fig


# --- the figure with two sliders

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 380, 250, 34, 34, 10


def sliders(
    path: Path, risks: Array, rates: Sequence[float], warmups: Sequence[int], stream: Stream, free: float, alt: str
) -> str:
    """The ratchet with a slider for the radii's rate and one for the warm-up, as HTML that needs no kernel or network.

    path: one run of each pair, rates outside, warm-ups inside; risks (pairs,): mean ID risk at the end; free: that of
    plain SGD. The sliders are the browser's own, so arrow keys move them; without JavaScript the first pair shows.
    """
    top = 0.75
    across = np.linspace(_LEFT, _WIDTH - 8, stream.steps)

    def line(values: Array) -> str:
        down = _HEIGHT - _BOTTOM - np.minimum(values, top) / top * (_HEIGHT - _BOTTOM - _TOP)
        points = [f"{x:.0f},{y:.1f}" for x, y in zip(across, down, strict=True) if np.isfinite(y)]
        return "M" + "L".join(points) if points else "M0,0"

    states = []
    for pair in range(len(rates) * len(warmups)):
        radius = path.radii[:, pair, 0]
        on = np.isfinite(path.radii[:, pair])
        floor = (path.radii[:, pair] <= FLOOR) & on
        ever = float(np.mean(floor.any(axis=0)))
        ticks = "".join(f"M{x:.0f},{_HEIGHT - _BOTTOM}v-9" for x, down in zip(across, floor[:, 0], strict=True) if down)
        states.append(
            {
                "radius": line(np.where(np.isfinite(radius), radius, np.nan)),
                "bound": line(bound_of(path, pair, 0)),
                "ticks": ticks or "M0,0",
                "says": f"ID risk at the end: {risks[pair]:.2f} (pre-trained {stream.start_risk:.2f}, plain SGD "
                f"{free:.2f}). {100 * ever:.0f} % of the radii have been on their floor.",
            }
        )
    first = states[-len(warmups)]
    base = _HEIGHT - _BOTTOM
    marks = "".join(
        f'<text x="{_LEFT - 4}" y="{base - v / top * (base - _TOP) + 4:.0f}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75)
    )
    marks += "".join(
        f'<text x="{_LEFT + k / 4 * (_WIDTH - 12 - _LEFT):.0f}" y="{base + 15}" text-anchor="middle">'
        f"{k * stream.steps // 4}</text>"
        for k in range(5)
    )
    data = json.dumps(
        {"states": states, "rates": list(rates), "warmups": list(warmups), "columns": len(warmups)}, ensure_ascii=False
    ).replace("</", "<\\/")
    control = (
        '<label style="display:block">{0}: <output></output><br><input type="range" min="0" max="{1}" value="{2}" '
        'step="1" style="width:100%" aria-label="{0}"></label>'
    )
    controls = control.format("learning rate of the radii", len(rates) - 1, len(rates) - 1)
    controls += control.format("free training steps first", len(warmups) - 1, 0)
    label = html.escape(alt, quote=True)
    return f"""<div class="tpgm-sliders" role="group" aria-label="{label}" style="max-width:640px;margin:0 auto">
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" style="width:100%;height:auto" fill="none"
 stroke-width="1.6" font-size="12"><path d="M{_LEFT},{_TOP}V{base}H{_WIDTH - 8}" stroke="currentColor"/>
<g fill="currentColor" stroke="none">{marks}<text x="{_WIDTH // 2}" y="{_HEIGHT - 3}" text-anchor="middle">training
 step</text></g><path class="bound" stroke="{ANCHOR_COLOR}" stroke-dasharray="4 2" d="{first["bound"]}"/>
<path class="radius" stroke="{TPGM_COLOR}" stroke-width="2.2" d="{first["radius"]}"/>
<path class="ticks" stroke="{OOD_COLOR}" d="{first["ticks"]}"/></svg>
<p style="margin:0"><span style="color:{TPGM_COLOR}">■</span> radius of one layer &ensp;
<span style="color:{ANCHOR_COLOR}">■</span> steps since its reset &ensp;
<span style="color:{OOD_COLOR}">■</span> on its floor</p>
{controls}<p class="says" aria-live="polite">{first["says"]}</p>
<script type="application/json">{data}</script>
<script>(() => {{
  const box = document.currentScript.parentElement;
  const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
  const [rate, free] = box.querySelectorAll("input");
  const shown = box.querySelectorAll("output");
  const draw = () => {{
    const state = data.states[rate.value * data.columns + Number(free.value)];
    for (const name of ["radius", "bound", "ticks"]) box.querySelector("." + name).setAttribute("d", state[name]);
    shown[0].textContent = data.rates[rate.value];
    shown[1].textContent = data.warmups[free.value];
    rate.setAttribute("aria-valuetext", data.rates[rate.value]);
    free.setAttribute("aria-valuetext", data.warmups[free.value] + " steps");
    box.querySelector(".says").textContent = state.says;
  }};
  rate.addEventListener("input", draw);
  free.addEventListener("input", draw);
  draw();
}})();</script></div>"""
