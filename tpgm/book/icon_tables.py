"""What the data are, as Markdown tables for a notebook to display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tpgm.book.icon_benchmark.designers import SPLITS, designer
from tpgm.book.icon_benchmark.iconify import IconSet
from tpgm.book.icon_benchmark.icons import IconCollection
from tpgm.book.icon_benchmark.render import DOMAINS
from tpgm.data.splits import DataSplits
from tpgm.training.evaluate import Accuracy


def licence_table(sets: Iterable[IconSet]) -> str:
    """Icon sets: name, author, licence, both with their links, and the number of icons used."""

    def cell(text: str, link: str) -> str:
        text = text.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
        return f"[{text}]({link})" if link.startswith("http") else text

    rows = ["| set | author | licence | icons |", "|---|---|---|---:|"]
    for s in sets:
        rows.append(
            f"| {cell(s.name, '')} | {cell(s.author, s.url)} | {cell(s.license, s.license_url)} | {s.count:,} |"
        )
    return "\n".join(rows)


def icon_table(data: IconCollection) -> str:
    """Icons of each style in each split, and how many designers drew them."""
    rows = ["| style | " + " | ".join(SPLITS) + " | designers |", "|---|" + "---:|" * (len(SPLITS) + 1)]
    for number, style in enumerate(DOMAINS):
        mask = data.domains == number
        counts = [int((mask & (data.splits == split)).sum()) for split in range(len(SPLITS))]
        drawn_by = {designer(data.set_info[s].author) for s in data.sets[mask].tolist()}
        rows.append(f"| {style} | " + " | ".join(f"{n:,}" for n in counts) + f" | {len(drawn_by)} |")
    return "\n".join(rows)


def splits_table(data: DataSplits) -> str:
    """The parts of a data set: images, classes that occur, images of the rarest and of the median of these classes."""
    rows = ["| part | images | classes | least | median |", "|---|---:|---:|---:|---:|"]
    parts = {"train": data.train, "validation": data.val, f"ID test ({data.id_domain})": data.id_test}
    for name, part in {**parts, **{f"OOD test ({name})": test for name, test in data.ood_tests.items()}}.items():
        counts = part.labels.bincount()
        counts = counts[counts > 0].sort().values.tolist()
        rows.append(f"| {name} | {len(part):,} | {len(counts)} | {counts[0]} | {counts[len(counts) // 2]} |")
    return "\n".join(rows)


def licence_counts(sets: Iterable[IconSet]) -> str:
    """Sets and icons under each licence, most icons first."""
    count_sets, count_icons = Counter(), Counter()
    for s in sets:
        count_sets[s.license] += 1
        count_icons[s.license] += s.count
    rows = ["| licence | sets | icons |", "|---|---:|---:|"]
    rows += [f"| {name} | {count_sets[name]} | {icons:,} |" for name, icons in count_icons.most_common()]
    return "\n".join(rows)


def accuracy_table(rows: Mapping[str, Accuracy]) -> str:
    """By name of a test: images, accuracy and its 95 % interval, in per cent."""
    lines = ["| tested on | images | accuracy, % | 95 % interval |", "|---|---:|---:|---|"]
    for name, accuracy in rows.items():
        low, high = (100 * bound for bound in accuracy.interval)
        lines.append(f"| {name} | {accuracy.total:,} | {100 * accuracy.value:.1f} | {low:.1f} – {high:.1f} |")
    return "\n".join(lines)
