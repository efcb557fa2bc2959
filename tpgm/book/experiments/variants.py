"""From result rows to numbers: means with intervals, paired differences, OOD regret, paths, ratios by depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from tpgm.book.experiments.experiment import Row, key
from tpgm.training.evaluate import Accuracy

Score = Literal["accuracy", "macro-F1"]
# score: the entries of a row that hold it, ID and OOD
SCORES: dict[Score, tuple[str, str]] = {"accuracy": ("id", "ood"), "macro-F1": ("id_f1", "ood_f1")}


@dataclass(frozen=True)
class Mean:
    """Mean over runs and half the width of its 95 % interval (NaN for a single run), both in the unit of the values.

    unit, digits: how it is shown: multiplied by `unit`, with so many decimals. The default shows shares in per cent.
    """

    value: float
    half: float
    count: int
    unit: float = 100.0
    digits: int = 1

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        shown = f"{self.unit * self.value:.{self.digits}f}"
        return shown if math.isnan(self.half) else f"{shown} ± {self.unit * self.half:.{self.digits}f}"

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out; a single run has none."""
        return not math.isnan(self.half) and abs(self.value) > self.half


def mean(values: Sequence[float], unit: float = 100.0, digits: int = 1) -> Mean:
    """Mean and 95 % interval from Student's t distribution. Raises ValueError for no values."""
    from scipy.stats import t

    if not values:
        raise ValueError("no values to average")
    n = len(values)
    centre = math.fsum(values) / n
    if n == 1:
        return Mean(centre, math.nan, 1, unit, digits)
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    return Mean(centre, float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n), n, unit, digits)


@dataclass(frozen=True)
class Variant:
    """One method in one setting over its seeds. choice: what was chosen, such as "lr=0.0003"."""

    label: str
    choice: str
    rows: tuple[Row, ...]

    def of(self, what: str) -> Mean:
        """what: an entry of the rows: "id", "ood", "val", "id_f1", "ood_f1" (shares), "seconds", "peak_memory_mb"."""
        return mean([row[what] for row in self.rows])

    def by_seed(self) -> dict[int, Row]:
        return {row["config"]["seed"]: row for row in self.rows}


def seedless(config: Mapping[str, Any]) -> str:
    """Equal for configurations that differ in the seed only; where it also drew the training data, in that too."""
    own = config.get("data_seed", 0) == config.get("seed", 0)
    return key({**config, "seed": 0, **({"data_seed": 0} if own else {})})


def select(rows: Iterable[Row], config: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows of a configuration with any seed, by seed; where a seed was run twice, the first."""
    wanted, found = seedless(config), dict[int, Row]()
    for row in rows:
        if seedless(row["config"]) == wanted:
            found.setdefault(row["config"]["seed"], row)
    return tuple(found[seed] for seed in sorted(found))


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str, str], Variant]:
    """Rows that differ in nothing but the seed together: (model, label, number among that label's settings)."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(seedless(row["config"]), []).append(row)
    found: dict[tuple[str, str, str], Variant] = {}
    for members in groups.values():
        model, label = members[0]["config"]["model"], members[0]["config"]["label"]
        number = str(1 + sum(k[:2] == (model, label) for k in found))
        found[model, label, number] = Variant(label, number, tuple(members))
    return found


def paired(ours: Variant, other: Variant, what: str) -> Mean:
    """Mean and 95 % interval of our entry `what` minus the other's, over the seeds that both have.

    Raises ValueError if they have no seed in common.
    """
    theirs = other.by_seed()
    return mean([row[what] - theirs[seed][what] for seed, row in ours.by_seed().items() if seed in theirs])


def p_value(ours: Variant, other: Variant, what: str) -> float:
    """Two-sided t-test of our entry `what` minus the other's, paired by seed, in [0, 1].

    Raises ValueError for fewer than two seeds in common.
    """
    from scipy.stats import ttest_1samp

    theirs = other.by_seed()
    pairs = [row[what] - theirs[seed][what] for seed, row in ours.by_seed().items() if seed in theirs]
    if len(pairs) < 2:
        raise ValueError(f"a test needs two seeds in common, {ours.label} and {other.label} have {len(pairs)}")
    return float(ttest_1samp(pairs, 0.0).pvalue)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values: comparing each with a level keeps the chance of any false rejection below it."""
    found, least = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        found[name] = least
    return {name: found[name] for name in p}


def regrets(by_regime: Mapping[str, Mapping[str, Variant]], best_of: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """OOD regret: the best method's mean OOD accuracy minus this one's.

    by_regime: regime -> label -> Variant; best_of: regime -> labels among which the best is looked for. Returns label
    -> {regime: regret, …, "mean": over the regimes} as shares, for labels that every regime has.
    """
    best = {regime: max(by_regime[regime][label].of("ood").value for label in best_of[regime]) for regime in by_regime}
    common = [label for label in next(iter(by_regime.values())) if all(label in s for s in by_regime.values())]
    result = {}
    for label in common:
        each = {regime: best[regime] - by_regime[regime][label].of("ood").value for regime in by_regime}
        result[label] = {**each, "mean": math.fsum(each.values()) / len(each)}
    return result


# --- paths from the anchor to the fine-tuned weights


def along_path(row: Row) -> list[tuple[float, float, float]]:
    """(α, ID accuracy, mean OOD accuracy) for every ratio of a WiSE-FT run with a path, by α."""
    found = []
    for alpha, counts in row["path"].items():
        shares = {name: a["correct"] / a["total"] for name, a in counts.items()}
        ood = [share for name, share in shares.items() if name not in ("val", "id_test")]
        found.append((float(alpha), shares["id_test"], math.fsum(ood) / len(ood)))
    return sorted(found)


def barrier(row: Row, what: str = "id") -> float:
    """How far accuracy falls below the straight line between both ends of the path, at worst, as a share; 0 or more."""
    points = [(a, i if what == "id" else o) for a, i, o in along_path(row)]
    (first, left), (last, right) = points[0], points[-1]
    lines = [left + (right - left) * (a - first) / (last - first) for a, _ in points]
    return max(line - value for line, (_, value) in zip(lines, points, strict=True))


def ood_at(row: Row, id_accuracy: float) -> float | None:
    """Mean OOD accuracy (a share) of a WiSE-FT path where it has this ID accuracy, interpolated between its ratios.

    The highest OOD accuracy if the path passes there several times, None if it never does.
    """
    found = []
    for (_, i, o), (_, i_next, o_next) in itertools.pairwise(along_path(row)):
        if i != i_next and min(i, i_next) <= id_accuracy <= max(i, i_next):
            found.append(o + (o_next - o) * (id_accuracy - i) / (i_next - i))
    return max(found, default=None)


# --- ratios


def by_position(row: Row, what: str = "ratios") -> list[float]:
    """Ratios, or radii for each weight of a row, of the tensors from input to output; without those not in force.

    Radii for each weight need the row lengths and so exist for models that can be built here without weights.
    """
    if what == "ratios":
        return list(row["ratios"].values())
    lengths = row_lengths(row["config"]["model"])
    return [r / lengths[name] for name, r in row["radii"].items() if r is not None]


@lru_cache(maxsize=8)
def row_lengths(model: str) -> dict[str, int]:
    """Number of weights in a row of every parameter tensor of an offline model, by name (MARS)."""
    from tpgm import models

    net = models.load(model, 2).model
    return {n: p.numel() // len(p) if p.ndim > 1 else p.numel() for n, p in net.named_parameters()}


# --- topics of texts


def topics_of(variants: Mapping[str, Variant]) -> list[str]:
    """ "id_test" first, then the OOD topics."""
    accuracies = next(iter(variants.values())).rows[0]["accuracies"]
    return [name for name in accuracies if name != "val"]


def counted(row: Row, topic: str) -> Accuracy:
    """What a row counted on one topic ("id_test" for the ID one)."""
    found = row["accuracies"][topic]
    return Accuracy(found["correct"], found["total"], tuple(map(tuple, found["confusion"])))


def on_topic(variant: Variant, topic: str, score: Score) -> Mean:
    """Mean and 95 % interval over seeds of a method's score on one topic."""
    return mean([score_of(counted(row, topic), score) for row in variant.rows])


def score_of(accuracy: Accuracy, score: Score) -> float:
    return accuracy.value if score == "accuracy" else accuracy.macro_f1


def most_frequent(accuracy: Accuracy) -> Accuracy:
    """What one and the same answer, the most frequent label, would score on the same data."""
    of_label = [sum(row) for row in accuracy.confusion]
    answer = max(range(len(of_label)), key=of_label.__getitem__)
    confusion = tuple(tuple(n if j == answer else 0 for j in range(len(of_label))) for n in of_label)
    return Accuracy(of_label[answer], accuracy.total, confusion)


def verdict(variants: Mapping[str, Variant], label: str, what: str) -> str:
    """One sentence: which methods `label` is above, below or level with, by the intervals of the paired difference.

    Where a single seed is shared there is no interval, and it says so.
    """
    alone = "of one seed only beside"
    said: dict[str, list[str]] = {"above": [], "below": [], "level with": [], alone: []}
    for other, variant in variants.items():
        if other != label:
            m = paired(variants[label], variant, what)
            where = "above" if m.value > 0 else "below"
            said[alone if math.isnan(m.half) else where if m.clear else "level with"].append(other)
    return f"{label} is " + "; ".join(f"{where} {', '.join(names)}" for where, names in said.items() if names)
