"""Figures of chapter 6: contact sheets of the icon benchmark, how its styles are told apart, how much there is."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from tpgm.book.icon_benchmark.icons import IconCollection
from tpgm.book.icon_benchmark.render import DOMAINS, fill_holes, solidity
from tpgm.book.plots.style import ANCHOR_COLOR, ID_COLOR, OOD_COLOR, book_style

_GAP = 4  # pixels between icons


def class_sheet(data: IconCollection, concept: str, columns: int = 10) -> Figure:
    """A contact sheet of one class: a row for each style, icons spread over all sets. ValueError if no such class."""
    if concept not in data.class_names:
        raise ValueError(f"no class {concept!r}; choose among {', '.join(data.class_names)}")
    label = data.class_names.index(concept)
    rows = [_spread(data, (data.labels == label) & (data.domains == d), columns) for d in range(len(DOMAINS))]
    return _sheet([rows], [list(DOMAINS)], columns)


def style_sheet(data: IconCollection, style: str, columns: int = 10) -> Figure:
    """A contact sheet of one style: a row for each class, icons spread over all sets. ValueError if no such style."""
    if style not in DOMAINS:
        raise ValueError(f"no style {style!r}; choose among {', '.join(DOMAINS)}")
    mask = data.domains == DOMAINS.index(style)
    rows = [_spread(data, mask & (data.labels == c), columns) for c in range(len(data.class_names))]
    return _sheet([rows], [list(data.class_names)], columns)


def overview(data: IconCollection, blocks: int = 2) -> Figure:
    """Every class once in every style, in `blocks` columns of classes; a style without such an icon stays empty."""
    rows = [
        np.concatenate(
            [_spread(data, (data.labels == c) & (data.domains == d), 1) for d in range(len(DOMAINS))], axis=1
        )
        for c in range(len(data.class_names))
    ]
    size = -(-len(rows) // blocks)
    parts = [rows[k : k + size] for k in range(0, len(rows), size)]
    names = [list(data.class_names[k : k + size]) for k in range(0, len(rows), size)]
    return _sheet(parts, names, len(DOMAINS), heads=DOMAINS)


def _spread(data: IconCollection, mask: Tensor, count: int) -> np.ndarray:
    """(64 + gap, count * (64 + gap), 3) uint8: `count` icons at even steps through those of the mask."""
    index = mask.nonzero().flatten().numpy()
    if len(index) > count:
        index = index[np.linspace(0, len(index) - 1, count + 2).round().astype(int)[1:-1]]
    step = data.images.shape[-1] + _GAP
    row = np.full((step, count * step, 3), 255, dtype=np.uint8)
    for column, image in enumerate(data.images[index].permute(0, 2, 3, 1).numpy()):
        row[: step - _GAP, column * step : (column + 1) * step - _GAP] = image
    return row


def _sheet(
    blocks: Sequence[Sequence[np.ndarray]], names: Sequence[Sequence[str]], columns: int, heads: Sequence[str] = ()
) -> Figure:
    """Rows of icons with their names at the left, blocks side by side."""
    rows = max(map(len, blocks))
    width = 7.0 / len(blocks)
    cell = (width - 0.95) / columns
    with book_style():
        height = rows * cell + (0.75 if heads else 0.1)
        fig, axes = plt.subplots(1, len(blocks), figsize=(7.0, height), squeeze=False)
        for ax, block, labels in zip(axes[0], blocks, names, strict=True):
            picture = np.concatenate(block)
            step = picture.shape[0] / len(block)
            ax.imshow(picture, interpolation="antialiased", interpolation_stage="rgba")
            ax.set_yticks((np.arange(len(block)) + 0.46) * step, labels)
            ax.set_xticks((np.arange(len(heads)) + 0.46) * step, heads, rotation=60, ha="left")
            ax.tick_params(length=0, pad=3, top=False, labeltop=bool(heads), labelbottom=False, labelsize=9)
            ax.set_ylim(rows * step, 0)  # a shorter block keeps the scale of the others
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        plt.close(fig)
    return fig


def solidity_figure(data: IconCollection, class_names: Sequence[str]) -> Figure:
    """How solid and outline are told apart: a solid and an outline icon of each class, and both with holes filled.

    The number above each is the ratio of the two areas.
    """
    masks = [
        (data.labels == data.class_names.index(name)) & (data.domains == DOMAINS.index(style))
        for name in class_names
        for style in ("solid", "outline")
    ]
    step = data.images.shape[-1]
    ink = np.stack([_spread(data, mask, 1)[:step, :step].mean(axis=2) < 128 for mask in masks])
    filled, ratios = fill_holes(ink), solidity(ink)
    with book_style():
        fig, axes = plt.subplots(2, len(masks), figsize=(7.0, 2.9))
        for column, ratio in enumerate(ratios):
            axes[0, column].imshow(ink[column], cmap=ListedColormap(["white", "black"]))
            axes[0, column].set_title(f"{ratio:.2f}")
            axes[1, column].imshow(filled[column], cmap=ListedColormap(["white", ID_COLOR]))
        for ax, name in zip(axes[:, 0], ("ink", "holes filled"), strict=True):
            ax.set_ylabel(name)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        plt.close(fig)
    return fig


def count_bars(data: IconCollection) -> Figure:
    """Icons of each style, divided into training, validation and test designers."""
    counts = np.array(
        [[int(((data.domains == d) & (data.splits == s)).sum()) for d in range(len(DOMAINS))] for s in range(3)]
    )
    with book_style():
        fig, ax = plt.subplots(figsize=(7.0, 3.0))
        start = np.zeros(len(DOMAINS))
        for row, name, color in zip(
            counts, ("train", "validation", "test"), (ID_COLOR, ANCHOR_COLOR, OOD_COLOR), strict=True
        ):
            ax.barh(DOMAINS, row, left=start, color=color, label=name)
            start += row
        for y, total in enumerate(start):
            ax.text(total, y, f" {total:,.0f}", va="center")
        ax.set(xlabel="icons", xlim=(0, start.max() * 1.12))
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.legend(title="the designer's split", loc="lower right")
        plt.close(fig)
    return fig
