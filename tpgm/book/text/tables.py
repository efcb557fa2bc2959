"""From the text example's rows to what its chapter shows: accuracy and macro-F1, by topic and against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from tpgm.book.experiments.experiment import Row
from tpgm.book.experiments.results import Mean, Summary, mean
from tpgm.training.evaluate import Accuracy

Score = Literal["accuracy", "macro-F1"]
KEYS: dict[Score, tuple[str, str]] = {"accuracy": ("id", "ood"), "macro-F1": ("id_f1", "ood_f1")}


def counted(row: Row, topic: str) -> Accuracy:
    """What a row counted on one topic ("id_test" for the ID one)."""
    found = row["accuracies"][topic]
    return Accuracy(found["correct"], found["total"], tuple(map(tuple, found["confusion"])))


def on_topic(summary: Summary, topic: str, score: Score) -> Mean:
    """Mean and 95 % interval over seeds of a method's score on one topic."""
    counts = [counted(row, topic) for row in summary.rows]
    return mean([a.value if score == "accuracy" else a.macro_f1 for a in counts])


def topics_of(summaries: Mapping[str, Summary]) -> list[str]:
    """ "id_test" first, then the OOD topics."""
    accuracies = next(iter(summaries.values())).rows[0]["accuracies"]
    return [name for name in accuracies if name != "val"]


def score_table(summaries: Mapping[str, Summary]) -> str:
    """Markdown: both scores, ID and mean OOD, in per cent with 95 % intervals over seeds; best OOD macro-F1 first."""
    lines = [
        "| method | chosen | ID accuracy | ID macro-F1 | OOD accuracy | OOD macro-F1 | seeds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for label, s in sorted(summaries.items(), key=lambda item: -item[1].of("ood_f1").value):
        cells = " | ".join(str(s.of(what)) for what in ("id", "id_f1", "ood", "ood_f1"))
        lines.append(f"| {label} | `{s.choice}` | {cells} | {len(s.rows)} |")
    return "\n".join(lines)


def topic_table(summaries: Mapping[str, Summary], score: Score) -> str:
    """Markdown: one score of every method on every topic, in per cent with 95 % intervals over seeds; below it what one
    and the same answer, the topic's most frequent label, would score, and the number of tweets."""
    topics = topics_of(summaries)
    lines = ["| method | " + " | ".join(["airlines (ID)", *topics[1:]]) + " |", "|---|" + "---:|" * len(topics)]
    for label, s in summaries.items():
        lines.append(f"| {label} | " + " | ".join(str(on_topic(s, topic, score)) for topic in topics) + " |")
    row = next(iter(summaries.values())).rows[0]
    constant = [_most_frequent(counted(row, topic)) for topic in topics]
    values = [a.value if score == "accuracy" else a.macro_f1 for a in constant]
    lines.append("| *most frequent label* | " + " | ".join(f"{100 * v:.1f}" for v in values) + " |")
    lines.append("| *tweets* | " + " | ".join(str(a.total) for a in constant) + " |")
    return "\n".join(lines)


def _most_frequent(a: Accuracy) -> Accuracy:
    of_label = [sum(row) for row in a.confusion]
    answer = max(range(len(of_label)), key=of_label.__getitem__)
    confusion = tuple(tuple(n if j == answer else 0 for j in range(len(of_label))) for n in of_label)
    return Accuracy(of_label[answer], a.total, confusion)


def difference(ours: Summary, other: Summary, what: str) -> Mean:
    """Mean and 95 % interval of our score minus the other's, over the seeds that both have.

    what: a key of KEYS' values. Raises ValueError if they have no seed in common.
    """
    theirs = {row["config"]["seed"]: row[what] for row in other.rows}
    return mean([row[what] - theirs[row["config"]["seed"]] for row in ours.rows if row["config"]["seed"] in theirs])


def difference_table(summaries: Mapping[str, Summary], ours: Sequence[str]) -> str:
    """Markdown: what each of `ours` scores more than each other method, in points with 95 % intervals, paired by seed.

    A difference whose interval does not hold 0 is in bold.
    """
    whats = [what for pair in KEYS.values() for what in pair]
    lines = [
        "| method | minus | ID accuracy | OOD accuracy | ID macro-F1 | OOD macro-F1 | seeds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for label in ours:
        for other, s in summaries.items():
            if other in ours or label not in summaries:
                continue
            found = [difference(summaries[label], s, what) for what in whats]
            cells = " | ".join(f"**{m}**" if _clear(m) else str(m) for m in found)
            lines.append(f"| {label} | {other} | {cells} | {found[0].count} |")
    return "\n".join(lines)


def verdict(summaries: Mapping[str, Summary], label: str, what: str) -> str:
    """One sentence: which methods `label` is above, below or level with, by the intervals of the paired difference.

    Where a single seed is shared there is no interval, and it says so.
    """
    alone = "of one seed only beside"
    said: dict[str, list[str]] = {"above": [], "below": [], "level with": [], alone: []}
    for other, s in summaries.items():
        if other != label:
            m = difference(summaries[label], s, what)
            where = "above" if m.value > 0 else "below"
            said[alone if math.isnan(m.half) else where if _clear(m) else "level with"].append(other)
    parts = [f"{where} {', '.join(names)}" for where, names in said.items() if names]
    return f"{label} is {'; '.join(parts)}"


def _clear(m: Mean) -> bool:
    """Whether the interval leaves 0 out; a single seed has none."""
    return not math.isnan(m.half) and abs(m.value) > m.half
