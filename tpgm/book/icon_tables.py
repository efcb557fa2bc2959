"""What the data are, as data frames for a chapter to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from tpgm.book.icon_benchmark.designers import SPLITS, designer
from tpgm.book.icon_benchmark.iconify import IconSet
from tpgm.book.icon_benchmark.icons import IconCollection
from tpgm.book.icon_benchmark.render import DOMAINS
from tpgm.book.notebook import Markup
from tpgm.data.splits import DataSplits
from tpgm.names import in_markdown
from tpgm.training.evaluate import Accuracy


def licence_table(sets: Iterable[IconSet]) -> pd.DataFrame:
    """Icon sets: name, author, licence, both with their links, and the number of icons used."""

    def cell(text: str, link: str = "") -> str:
        return Markup(f"[{in_markdown(text)}]({link})") if re.fullmatch(r"https?://[^\s<>()]+", link) else text

    lines = [(cell(s.name), cell(s.author, s.url), cell(s.license, s.license_url), s.count) for s in sets]
    return pd.DataFrame(lines, columns=["set", "author", "licence", "icons"], dtype=object)


def icon_table(data: IconCollection) -> pd.DataFrame:
    """Icons of each style in each split, and how many designers drew them."""
    lines = []
    for number, style in enumerate(DOMAINS):
        mask = data.domains == number
        counts = [int((mask & (data.splits == split)).sum()) for split in range(len(SPLITS))]
        drawn_by = {designer(data.set_info[s].author) for s in data.sets[mask].tolist()}
        lines.append((style, *counts, len(drawn_by)))
    return pd.DataFrame(lines, columns=["style", *SPLITS, "designers"])


def splits_table(data: DataSplits) -> pd.DataFrame:
    """The parts of a data set: images, classes that occur, images of the rarest and of the median of these classes."""
    parts = {"train": data.train, "validation": data.val, f"ID test ({data.id_domain})": data.id_test}
    parts |= {f"OOD test ({name})": test for name, test in data.ood_tests.items()}
    lines = []
    for name, part in parts.items():
        counts = sorted(n for n in part.labels.bincount().tolist() if n)
        lines.append((name, len(part), len(counts), counts[0], counts[len(counts) // 2]))
    return pd.DataFrame(lines, columns=["part", "images", "classes", "least", "median"])


def licence_counts(sets: Iterable[IconSet]) -> pd.DataFrame:
    """Sets and icons under each licence, most icons first."""
    frame = pd.DataFrame([(s.license, 1, s.count) for s in sets], columns=["licence", "sets", "icons"])
    return frame.groupby("licence", as_index=False).sum().sort_values("icons", ascending=False, ignore_index=True)


def accuracy_table(rows: Mapping[str, Accuracy]) -> pd.DataFrame:
    """By name of a test: images, accuracy and its 95 % interval, in per cent."""
    lines = []
    for name, accuracy in rows.items():
        low, high = (100 * bound for bound in accuracy.interval)
        lines.append((name, accuracy.total, 100 * accuracy.value, f"{low:.1f} – {high:.1f}"))
    return pd.DataFrame(lines, columns=["tested on", "images", "accuracy, %", "95 % interval"])
