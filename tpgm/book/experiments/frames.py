"""Tables of the experiments as data frames.

Cells keep their values: a `Mean` with its interval, a number, a text. `tpgm.book.notebook.show` gives them their form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from tpgm.book.experiments.experiment import Row, key
from tpgm.book.experiments.study import Study
from tpgm.book.experiments.variants import (
    SCORES,
    Mean,
    Score,
    Variant,
    along_path,
    barrier,
    by_position,
    counted,
    grouped,
    holm,
    mean,
    most_frequent,
    on_topic,
    ood_at,
    p_value,
    paired,
    score_of,
    topics_of,
)
from tpgm.book.notebook import Markup, code


def _frame(columns: Sequence[str], lines: Iterable[Sequence[Any]], digits: int = 1) -> pd.DataFrame:
    frame = pd.DataFrame([list(line) for line in lines], columns=list(columns), dtype=object)
    frame.attrs["digits"] = digits
    return frame


# --- rows


def flat(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows' main figures without nesting, for a CSV file or a terminal; accuracies are shares."""
    of_config, of_row = ("label", "model", "data", "seed"), ("val", "id", "ood", "seconds", "peak_memory_mb")
    lines = []
    for row in rows:
        config = row["config"]
        settings = " ".join(f"{n}={v}" for n, v in config["settings"].items())
        of = [config[name] for name in of_config] + [row[name] for name in of_row]
        lines.append([*of, row["hardware"], row["commit"], settings])
    return pd.DataFrame(lines, columns=[*of_config, *of_row, "hardware", "commit", "settings"])


def overview(rows: Iterable[Row]) -> pd.DataFrame:
    """One line for each configuration, accuracies in per cent."""
    lines = []
    for (model, label, number), v in grouped(rows).items():
        ood = v.of("ood") if all(row["ood"] is not None for row in v.rows) else None
        lines.append([model, label, int(number), v.of("id"), ood, len(v.rows), round(v.of("seconds").value)])
    return _frame(["model", "label", "settings", "ID", "OOD mean", "seeds", "s"], lines)


def runs(rows: Mapping[str, Row]) -> pd.DataFrame:
    """Single runs by name: accuracies (and macro-F1 where there is one) in per cent, and seconds."""
    scored = all("id_f1" in row for row in rows.values())
    what = {"ID": "id", "OOD mean": "ood"} | ({"ID macro-F1": "id_f1", "OOD macro-F1": "ood_f1"} if scored else {})
    lines = ([n, *(100 * row[w] for w in what.values()), round(row["seconds"])] for n, row in rows.items())
    return _frame(["method", *what, "s"], lines)


# --- studies


def tried(study: Study) -> pd.DataFrame:
    """What a study tries: label, method, the setting searched, and what differs from the budget."""
    lines = []
    for label, entry in study.entries.items():
        found = {n: ", ".join(code(f"{value:g}") for value in values) for n, values in entry.searched.items()}
        own = Markup(", ".join(code(f"{n}={v}") for n, v in entry.settings.items()))
        values = Markup("; ".join(f"{code(name)} in {values}" for name, values in found.items()))
        lines.append([label, code(entry.method), values, own])
    return _frame(["label", "method", "tried", "other settings of its own"], lines)


def regimes(studies: Mapping[str, Study]) -> pd.DataFrame:
    """Each regime's start, size in pixels, and how many methods, settings and seeds it has."""
    lines = []
    for name, study in studies.items():
        tried = sum(len(study.configs(label)) for label in study.entries)
        of = [name.partition(":")[2], study.about, study.config["size"], len(study.entries), tried, len(study.seeds)]
        lines.append(of)
    return _frame(["regime", "start", "pixels", "methods", "tried settings", "seeds"], lines)


def named(values: Mapping[str, Any], name: str = "shared setting") -> pd.DataFrame:
    """Names and values, as code."""
    return _frame([name, "value"], ([code(n), code(v)] for n, v in values.items()))


def searched(study: Study, rows: Iterable[Row], labels: Iterable[str]) -> pd.DataFrame:
    """Every setting tried on the search seed: accuracies in per cent, mean ratio, and tensors at ratio 0 and 1."""
    by_key, lines = {key(row["config"]): row for row in rows}, []
    for label in (label for label in labels if label in study.entries):
        for config in study.configs(label):
            if row := by_key.get(key(config)):
                scores = [100 * row[what] for what in ("val", "id", "ood")]
                lines.append([label, code(study.choice(label, config)), *scores, *_spread([row])])
    return _frame(["method", "tried", "validation", "ID", "OOD mean", "mean ratio", "at 0", "at 1"], lines)


def _spread(rows: Sequence[Row]) -> list[Any]:
    """Mean ratio, and the shares of ratios at 0 and at 1 (within 0.01), over all tensors and rows."""
    values = [r for row in rows for r in row["ratios"].values()]
    if not values:
        return [None] * 3
    shares = [
        f"{100 * sum(found) / len(values):.0f} %" for found in ([v < 0.01 for v in values], [v > 0.99 for v in values])
    ]
    return [Mean(math.fsum(values) / len(values), math.nan, len(values), 1.0, 2), *shares]


def accuracies(variants: Mapping[str, Variant], scores: Sequence[Score] = ("accuracy",)) -> pd.DataFrame:
    """Method, chosen setting, ID and OOD scores in per cent with 95 % intervals over seeds; best OOD score first."""
    whats = [what for score in scores for what in SCORES[score]]
    names = [f"{place} {score}" if len(scores) > 1 else place for score in scores for place in ("ID", "OOD mean")]
    order = sorted(variants.items(), key=lambda item: -item[1].of(whats[-1]).value)
    choice = {label: code(v.choice) if v.choice else "" for label, v in order}
    lines = ([label, choice[label], *(v.of(what) for what in whats), len(v.rows)] for label, v in order)
    return _frame(["method", "chosen", *names, "seeds"], lines)


def regret(of: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """OOD regret in points by regime and their mean, smallest mean first."""
    regimes = list(next(iter(of.values())))
    order = sorted(of.items(), key=lambda item: item[1]["mean"])
    return _frame(["method", *regimes], ([label, *(100 * by[r] for r in regimes)] for label, by in order))


def against_fixed(
    ours: Iterable[str],
    fixed: Iterable[str],
    of: Mapping[str, Mapping[str, float]],
    chosen: Mapping[str, Mapping[str, Variant]],
) -> pd.DataFrame:
    """Whether the mean regret of each of `ours` is below that of each fixed strategy, and its ID accuracy's distance
    to the best of each regime in points."""
    names = [name for name in fixed if name in of]
    lines = []
    for label in (label for label in ours if label in of):
        verdicts = ["smaller" if of[label]["mean"] < of[name]["mean"] else Markup("**larger**") for name in names]
        best = (max(v.of("id").value for v in by.values()) - by[label].of("id").value for by in chosen.values())
        lines.append([label, *verdicts, ", ".join(f"{100 * gap:.1f}" for gap in best)])
    return _frame(["", *names, "points of ID below the best, by regime"], lines)


def differences(groups: Mapping[str, Mapping[str, Variant]]) -> pd.DataFrame:
    """Each variant's ID and OOD accuracy minus those of the first of its group, paired by seed, in points."""
    lines = []
    for group, of in groups.items():
        base = next(iter(of.values()))
        for label, v in of.items():
            shared = v is not base and not base.by_seed().keys().isdisjoint(v.by_seed())
            delta = [paired(v, base, what) if shared else "" for what in ("id", "ood")]
            lines.append([group, label, v.of("id"), v.of("ood"), *delta, len(v.rows)])
    return _frame(["group", "variant", "ID", "OOD mean", "Δ ID", "Δ OOD", "seeds"], lines)


def contrasts(variants: Mapping[str, Variant], base: str, labels: Sequence[str]) -> pd.DataFrame:
    """Each label minus `base`: ID and OOD accuracy in points with 95 % intervals, paired by seed, and the p-value of
    the OOD difference, Holm-corrected over the labels."""
    other = variants[base]
    adjusted = holm({label: p_value(variants[label], other, "ood") for label in labels})
    lines = [
        [label, *(paired(variants[label], other, what) for what in ("id", "ood")), f"{adjusted[label]:.2g}"]
        for label in labels
    ]
    return _frame([f"minus {base}", "Δ ID", "Δ OOD", "p of Δ OOD"], lines)


def gains(variants: Mapping[str, Variant], ours: Sequence[str]) -> pd.DataFrame:
    """What each of `ours` scores more than each other method, in points with 95 % intervals, paired by seed.

    A difference whose interval does not hold 0 is in bold.
    """
    names = [f"{place} {score}" for score in SCORES for place in ("ID", "OOD")]
    whats, lines = [what for pair in SCORES.values() for what in pair], []
    for label in (label for label in ours if label in variants):
        for other, v in variants.items():
            if other not in ours:
                found = [paired(variants[label], v, what) for what in whats]
                lines.append([label, other, *(Markup(f"**{m}**") if m.clear else m for m in found), found[0].count])
    return _frame(["method", "minus", *names, "seeds"], lines)


def by_topic(variants: Mapping[str, Variant], score: Score) -> pd.DataFrame:
    """One score of every method on every topic, in per cent with 95 % intervals over seeds; below it what the topic's
    most frequent label would score, and the number of texts."""
    topics = topics_of(variants)
    constant = [most_frequent(counted(next(iter(variants.values())).rows[0], topic)) for topic in topics]
    lines = [[label, *(on_topic(v, topic, score) for topic in topics)] for label, v in variants.items()]
    lines.append([Markup("*most frequent label*"), *(100 * score_of(a, score) for a in constant)])
    lines.append([Markup("*tweets*"), *(a.total for a in constant)])
    return _frame(["method", "airlines (ID)", *topics[1:]], lines)


# --- paths, depth, ratios


def barriers(along: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
    """For each network, the barrier in points and the ratio with the best accuracy, ID and OOD, means over seeds."""
    lines = []
    for name, rows in along.items():
        falls = [mean([barrier(row, what) for row in rows]) for what in ("id", "ood")]
        best = [math.fsum(max(along_path(row), key=lambda p: p[n])[0] for row in rows) / len(rows) for n in (1, 2)]
        lines.append([name, *falls, *best, len(rows)])
    columns = ["network", "barrier ID", "barrier OOD", "best α, ID", "best α, OOD", "seeds"]
    return _frame(columns, lines, digits=2)


def equal_id(along: Sequence[Row], controlled: Iterable[Row]) -> pd.DataFrame:
    """For each penalty of TPGM-C its accuracies and its mean OOD accuracy minus WiSE-FT's at the same ID accuracy,
    paired by seed; runs whose ID accuracy WiSE-FT's path does not reach have no partner."""
    paths, lines = {row["config"]["seed"]: row for row in along}, []
    for (_, label, _), v in grouped(controlled).items():
        partners = {seed: ood_at(paths[seed], row["id"]) for seed, row in v.by_seed().items() if seed in paths}
        pairs = [v.by_seed()[seed]["ood"] - other for seed, other in partners.items() if other is not None]
        gain = mean(pairs) if pairs else None
        lines.append([label, v.of("id"), v.of("ood"), gain, f"{len(pairs)} of {len(v.rows)}"])
    return _frame(["method", "ID", "OOD mean", "OOD minus WiSE-FT's at this ID", "seeds with a partner"], lines)


def depth(groups: Mapping[str, Sequence[Row]], what: str = "ratios") -> pd.DataFrame:
    """Rank correlation of position and value, and means of the lower and upper half; means over seeds with 95 %
    intervals. Values are ratios, or radii for each weight in units of 1e-3."""
    from scipy.stats import spearmanr

    unit, name = (1.0, "ratio") if what == "ratios" else (1e3, "radius for each weight, ×10⁻³")
    lines = []
    for title, rows in groups.items():
        values = [by_position(row, what) for row in rows]
        # undefined for equal values
        rho = [float(spearmanr(range(len(v)), v).statistic) if min(v) < max(v) else math.nan for v in values]
        halves = ([v[: len(v) // 2] for v in values], [v[len(v) // 2 :] for v in values])
        means = [mean([math.fsum(part) / len(part) for part in parts], unit, 2) for parts in halves]
        lines.append([title, mean(rho, 1.0, 2), *means, len(rows)])
    return _frame(["runs", "rank correlation with depth", f"lower half, {name}", "upper half", "seeds"], lines)


def kinds(groups: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
    """Mean ratio over tensors and seeds by kind of layer ("" where a network has none)."""
    names = list(dict.fromkeys(kind for rows in groups.values() for kind in rows[0]["kinds"].values()))
    lines = []
    for title, rows in groups.items():
        found = {
            kind: [r for row in rows for n, r in row["ratios"].items() if row["kinds"][n] == kind] for kind in names
        }
        lines.append([title, *(math.fsum(of) / len(of) if of else "" for of in found.values())])
    return _frame(["runs", *names], lines, digits=2)


def spread(groups: Mapping[str, Mapping[str, Variant]]) -> pd.DataFrame:
    """Mean ratio and shares of ratios at 0 and 1 of every variant that has ratios, over tensors and seeds."""
    of = [(group, label, _spread(v.rows)) for group, by in groups.items() for label, v in by.items()]
    lines = ([group, label, *found] for group, label, found in of if found[0] is not None)
    return _frame(["group", "variant", "mean ratio", "at 0", "at 1"], lines)
