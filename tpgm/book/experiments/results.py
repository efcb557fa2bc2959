"""From result rows to what the chapters report: means with intervals, OOD regret, tables."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tpgm.book.experiments import protocol
from tpgm.book.experiments.experiment import Row, key


@dataclass(frozen=True)
class Mean:
    """Mean over runs, in the unit of the values, and half the width of its 95 % interval (NaN for a single run)."""

    value: float
    half: float
    count: int

    def __str__(self) -> str:
        """In per cent, for values that are shares."""
        return f"{100 * self.value:.1f}" + ("" if math.isnan(self.half) else f" ± {100 * self.half:.1f}")


def mean(values: Sequence[float]) -> Mean:
    """Mean and 95 % interval from Student's t distribution. Raises ValueError for no values."""
    from scipy.stats import t

    if not values:
        raise ValueError("no values to average")
    n = len(values)
    centre = math.fsum(values) / n
    if n == 1:
        return Mean(centre, math.nan, 1)
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1))
    return Mean(centre, float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n), n)


@dataclass(frozen=True)
class Summary:
    """One method in one setting over its seeds. choice: what was chosen, such as "lr=0.0003"."""

    label: str
    choice: str
    rows: tuple[Row, ...]

    def of(self, what: str) -> Mean:
        """what: "id", "ood", "val" (shares), "seconds" or "peak_memory_mb"."""
        return mean([row[what] for row in self.rows])


def select(rows: Iterable[Row], config: Mapping[str, Any]) -> list[Row]:
    """The rows of a configuration with any seed, by seed."""
    wanted = key({**config, "seed": 0})
    return sorted(
        (row for row in rows if key({**row["config"], "seed": 0}) == wanted), key=lambda row: row["config"]["seed"]
    )


def chosen(part: str, regime: str, rows: Sequence[Row], labels: Sequence[str] = ()) -> dict[str, Summary]:
    """Each label's chosen setting over the protocol's seeds; labels whose search is not complete are left out."""
    found = {}
    for label in labels or protocol.LABELS[part]:
        candidates = protocol.configs(part, regime, label, protocol.SEARCH_SEED)
        try:
            config = protocol.choose(candidates, rows)
        except ValueError:
            continue
        found[label] = Summary(label, _tried(label, config), tuple(select(rows, config)))
    return found


def fixed(part: str, regime: str, rows: Sequence[Row]) -> dict[str, Summary]:
    """The strategies that choose nothing, under the names "vanilla, lr=0.0003" and so on."""
    found = {}
    for label, own in protocol.FIXED.items():
        if label not in protocol.LABELS[part]:
            continue
        for config in protocol.configs(part, regime, label, protocol.SEARCH_SEED):
            if own.items() <= config["settings"].items() and (of := select(rows, config)):
                choice = _tried(label, config)
                found[f"{label}, {choice}"] = Summary(f"{label}, {choice}", choice, tuple(of))
    return found


def _tried(label: str, config: Mapping[str, Any]) -> str:
    """The setting that the protocol varies for a label, as text."""
    tried = protocol.TRIED[label][1]
    name = next(n for n in tried[0] if tried[0][n] != tried[1][n])
    return f"{name}={config['settings'][name]:g}"


def regrets(by_regime: Mapping[str, Mapping[str, Summary]], best_of: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """OOD regret: the best method's mean OOD accuracy minus this one's.

    by_regime: regime -> label -> Summary; best_of: regime -> labels among which the best is looked for. Returns label
    -> {regime: regret, …, "mean": over the regimes} as shares, for labels that every regime has.
    """
    best = {regime: max(by_regime[regime][label].of("ood").value for label in best_of[regime]) for regime in by_regime}
    common = [label for label in next(iter(by_regime.values())) if all(label in s for s in by_regime.values())]
    result = {}
    for label in common:
        each = {regime: best[regime] - by_regime[regime][label].of("ood").value for regime in by_regime}
        result[label] = {**each, "mean": math.fsum(each.values()) / len(each)}
    return result


def accuracy_table(summaries: Mapping[str, Summary]) -> str:
    """Markdown: method, chosen setting, ID and OOD accuracy in per cent with 95 % intervals over seeds, and seeds."""
    lines = ["| method | chosen | ID | OOD mean | seeds |", "|---|---|---:|---:|---:|"]
    for label, s in sorted(summaries.items(), key=lambda item: -item[1].of("ood").value):
        lines.append(f"| {label} | `{s.choice}` | {s.of('id')} | {s.of('ood')} | {len(s.rows)} |")
    return "\n".join(lines)


def regret_table(regret: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: OOD regret in points by regime and their mean, smallest mean first."""
    regimes = list(next(iter(regret.values())))
    lines = ["| method | " + " | ".join(regimes) + " |", "|---|" + "---:|" * len(regimes)]
    for label, of in sorted(regret.items(), key=lambda item: item[1]["mean"]):
        lines.append(f"| {label} | " + " | ".join(f"{100 * of[r]:.1f}" for r in regimes) + " |")
    return "\n".join(lines)


def flat(row: Row) -> dict[str, Any]:
    """A row's main figures without nesting, for a CSV file or a terminal."""
    config = row["config"]
    return {
        "label": config["label"],
        "model": config["model"],
        "data": config["data"],
        "seed": config["seed"],
        "val": row["val"],
        "id": row["id"],
        "ood": row["ood"],
        "seconds": row["seconds"],
        "peak_memory_mb": row["peak_memory_mb"],
        "hardware": row["hardware"],
        "commit": row["commit"],
        "settings": " ".join(f"{n}={v}" for n, v in config["settings"].items()),
    }


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header line; "" for no rows."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(flat, rows))
    return text.getvalue()


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str], Summary]:
    """Rows that differ in nothing but the seed together: (model, label, number among that label's settings)."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key({**row["config"], "seed": 0}), []).append(row)
    found: dict[tuple[str, str, str], Summary] = {}
    for members in groups.values():
        model, label = members[0]["config"]["model"], members[0]["config"]["label"]
        number = str(1 + sum(k[:2] == (model, label) for k in found))
        found[model, label, number] = Summary(label, number, tuple(members))
    return found


def overview(rows: Sequence[Row]) -> str:
    """Markdown table of :func:`grouped`: one line for each configuration, accuracies in per cent."""
    lines = ["| model | label | settings | ID | OOD mean | seeds | s |", "|---|---|---:|---:|---:|---:|---:|"]
    for (model, label, number), s in grouped(rows).items():
        ood = s.of("ood") if all(row["ood"] is not None for row in s.rows) else ""
        seconds = s.of("seconds").value
        lines.append(f"| {model} | {label} | {number} | {s.of('id')} | {ood} | {len(s.rows)} | {seconds:.0f} |")
    return "\n".join(lines)


# --- paths, depth, ablations


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


def barrier_table(along: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: for each network, the barrier in points and the ratio with the best accuracy, ID and OOD, means over
    seeds."""
    lines = [
        "| network | barrier ID | barrier OOD | best α, ID | best α, OOD | seeds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, rows in along.items():
        best = [math.fsum(max(along_path(row), key=lambda p: p[n])[0] for row in rows) / len(rows) for n in (1, 2)]
        falls = [str(mean([barrier(row, what) for row in rows])) for what in ("id", "ood")]
        lines.append(f"| {name} | {falls[0]} | {falls[1]} | {best[0]:.2f} | {best[1]:.2f} | {len(rows)} |")
    return "\n".join(lines)


def ood_at(row: Row, id_accuracy: float) -> float | None:
    """Mean OOD accuracy (a share) of a WiSE-FT path where it has this ID accuracy, interpolated between its ratios.

    The highest OOD accuracy if the path passes there several times, None if it never does.
    """
    found = []
    for (_, i, o), (_, i_next, o_next) in itertools.pairwise(along_path(row)):
        if i != i_next and min(i, i_next) <= id_accuracy <= max(i, i_next):
            found.append(o + (o_next - o) * (id_accuracy - i) / (i_next - i))
    return max(found, default=None)


def equal_id_table(along: Sequence[Row], controlled: Sequence[Row]) -> str:
    """Markdown: for each penalty of TPGM-C its accuracies and its mean OOD accuracy minus WiSE-FT's at the same ID
    accuracy, paired by seed; runs whose ID accuracy WiSE-FT's path does not reach have no partner."""
    lines = [
        "| method | ID | OOD mean | OOD minus WiSE-FT's at this ID | seeds with a partner |",
        "|---|---:|---:|---:|---:|",
    ]
    paths = {row["config"]["seed"]: row for row in along}
    for (_, label, _), s in grouped(controlled).items():
        pairs = [
            row["ood"] - other
            for row in s.rows
            if row["config"]["seed"] in paths and (other := ood_at(paths[row["config"]["seed"]], row["id"])) is not None
        ]
        gain = str(mean(pairs)) if pairs else "–"
        lines.append(f"| {label} | {s.of('id')} | {s.of('ood')} | {gain} | {len(pairs)} of {len(s.rows)} |")
    return "\n".join(lines)


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


def depth_table(groups: Mapping[str, Sequence[Row]], what: str = "ratios") -> str:
    """Markdown: rank correlation of position and value, and means of the lower and upper half; means over seeds with
    95 % intervals. Values are ratios, or radii for each weight in units of 1e-3."""
    from scipy.stats import spearmanr

    unit = 1.0 if what == "ratios" else 1e3
    name = "ratio" if what == "ratios" else "radius for each weight, ×10⁻³"
    lines = [
        f"| runs | rank correlation with depth | lower half, {name} | upper half | seeds |",
        "|---|---:|---:|---:|---:|",
    ]
    for title, rows in groups.items():
        values = [by_position(row, what) for row in rows]
        # undefined for equal values
        rho = mean([float(spearmanr(range(len(v)), v).statistic) if min(v) < max(v) else math.nan for v in values])
        halves = [
            mean([unit * math.fsum(part) / len(part) for part in parts])
            for parts in ([v[: len(v) // 2] for v in values], [v[len(v) // 2 :] for v in values])
        ]
        shown = [
            "–" if math.isnan(m.value) else f"{m.value:.2f}" + ("" if math.isnan(m.half) else f" ± {m.half:.2f}")
            for m in (rho, *halves)
        ]
        lines.append(f"| {title} | {' | '.join(shown)} | {len(rows)} |")
    return "\n".join(lines)


def kind_table(groups: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: mean ratio over tensors and seeds by kind of layer ("" where a network has none)."""
    kinds = list(dict.fromkeys(kind for rows in groups.values() for kind in rows[0]["kinds"].values()))
    lines = ["| runs | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    for title, rows in groups.items():
        cells = []
        for kind in kinds:
            values = [r for row in rows for name, r in row["ratios"].items() if row["kinds"][name] == kind]
            cells.append(f"{math.fsum(values) / len(values):.2f}" if values else "")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table(groups: Mapping[str, Mapping[str, Summary]]) -> str:
    """Markdown: each variant's ID and OOD accuracy minus those of the first of its group, paired by seed, in points."""
    lines = ["| group | variant | ID | OOD mean | Δ ID | Δ OOD | seeds |", "|---|---|---:|---:|---:|---:|---:|"]
    for group, of in groups.items():
        base = {row["config"]["seed"]: row for row in next(iter(of.values())).rows}
        for number, (label, s) in enumerate(of.items()):
            pairs = [(row, base[row["config"]["seed"]]) for row in s.rows if row["config"]["seed"] in base]
            delta = [str(mean([a[w] - b[w] for a, b in pairs])) if number and pairs else "" for w in ("id", "ood")]
            lines.append(
                f"| {group} | {label} | {s.of('id')} | {s.of('ood')} | {delta[0]} | {delta[1]} | {len(s.rows)} |"
            )
    return "\n".join(lines)
