"""What chapter 6 shows: contact sheets, tables and the nearest-neighbour floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tpgm.book.icon_benchmark import DOMAINS, IconCollection, icon_collection, icons
from tpgm.book.icon_tables import accuracy_table, icon_table, licence_counts, splits_table
from tpgm.book.neighbour import mixed_designers, nearest_neighbour
from tpgm.book.notebook import markdown
from tpgm.book.plots.draw_data import class_sheet, count_bars, overview, solidity_figure, style_sheet
from tpgm.data import ImageArray
from tpgm.training.evaluate import Accuracy


@pytest.fixture(scope="module")
def data() -> IconCollection:
    return icon_collection(source="tiny")


def ink_in_rows(figure: Figure, rows: int) -> list[bool]:
    """Which rows of the first sheet show anything."""
    picture = np.asarray(figure.axes[0].images[0].get_array())
    return [bool((part < 255).any()) for part in np.split(picture, rows)]


def test_sheets_have_a_row_for_every_style_or_class(data: IconCollection) -> None:
    figure = class_sheet(data, "star", columns=4)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(DOMAINS)
    assert ink_in_rows(figure, 5) == [True] * 5
    assert [label.get_text() for label in style_sheet(data, "emoji").axes[0].get_yticklabels()] == list(
        data.class_names
    )
    with pytest.raises(ValueError, match="no class 'unicorn'"):
        class_sheet(data, "unicorn")
    with pytest.raises(ValueError, match="no style 'oil'"):
        style_sheet(data, "oil")


def test_a_sheet_shows_icons_of_its_class_and_style_only(data: IconCollection) -> None:
    figure = class_sheet(data, "moon", columns=3)
    picture = np.asarray(figure.axes[0].images[0].get_array())
    label = data.class_names.index("moon")
    for row, style in enumerate(DOMAINS):
        mask = (data.labels == label) & (data.domains == DOMAINS.index(style))
        allowed = {image.permute(1, 2, 0).numpy().tobytes() for image in data.images[mask]}
        for column in range(3):
            icon = picture[68 * row : 68 * row + 64, 68 * column : 68 * column + 64]
            assert np.ascontiguousarray(icon).tobytes() in allowed


def test_the_overview_leaves_missing_icons_empty(data: IconCollection) -> None:
    figure = overview(data)
    shown = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    assert shown == list(data.class_names)
    labels = data.labels.clone()
    labels[(labels == 0) & (data.domains == DOMAINS.index("emoji"))] = 1
    without = type(data)(**{**vars(data), "labels": labels})
    first_row = np.asarray(overview(without).axes[0].images[0].get_array())[:64]
    assert (first_row[:, 4 * 68 :] == 255).all()
    assert (first_row[:, : 4 * 68] < 255).any()


def test_figures_show_the_numbers(data: IconCollection) -> None:
    ratios = [float(ax.get_title()) for ax in solidity_figure(data, ["star", "home"]).axes[:4]]
    assert min(ratios[::2]) > 0.7
    assert max(ratios[1::2]) < 0.55
    totals = [int(text.get_text().replace(",", "")) for text in count_bars(data).axes[0].texts]
    assert totals == data.domains.bincount().tolist()


def test_tables_count_what_is_there(data: IconCollection) -> None:
    rows = [line.strip("| ").split(" | ") for line in markdown(icon_table(data)).splitlines()[2:]]
    assert [row[0] for row in rows] == list(DOMAINS)
    assert sum(int(n) for row in rows for n in row[1:4]) == len(data.labels)
    assert {row[4] for row in rows} == {"6"}
    splits = icons(source="tiny")
    table = markdown(splits_table(splits)).splitlines()[2:]
    assert table[0].startswith(f"| train | {len(splits.train)} | 6 |")
    assert [line.split(" | ")[0] for line in table[3:]] == [f"| OOD test ({name})" for name in splits.ood_tests]
    assert markdown(licence_counts(data.set_info)).splitlines()[2:] == [f"| CC0-1.0 | 30 | {len(data.labels)} |"]
    assert "| ID | 200 | 50.0 | 43.1 – 56.9 |" in markdown(accuracy_table({"ID": Accuracy(100, 200)}))


def test_nearest_neighbour_finds_the_same_picture_and_ignores_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(100, 200, (20, 1, 16, 16), generator=generator).repeat(1, 3, 1, 1)
    images = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    train = ImageArray(images, torch.arange(20))
    assert nearest_neighbour(train, train) == Accuracy(20, 20)
    paler = ImageArray(images // 2 + 100, torch.arange(20))
    assert nearest_neighbour(train, paler) == Accuracy(20, 20)
    wrong = ImageArray(images, torch.arange(20).roll(1))
    assert nearest_neighbour(train, wrong) == Accuracy(0, 20)


def test_mixed_designers_draws_disjoint_icons_of_the_style(data: IconCollection) -> None:
    like = icons("emoji", source="tiny")
    train, test = mixed_designers(data, like, seed=0)
    assert (len(train), len(test)) == (len(like.train), len(like.id_test))
    pool = {image.numpy().tobytes() for image in data.images[data.domains == DOMAINS.index("emoji")]}
    first, second = ({image.numpy().tobytes() for image in part.images} for part in (train, test))
    assert first <= pool
    assert second <= pool
    assert not first & second
    again, _ = mixed_designers(data, like, seed=1)
    assert not torch.equal(again.images, train.images)
