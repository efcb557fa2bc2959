"""The regimes side by side: which default the development rows choose, its contrast on the tests, regret of everything.

What is computed here was laid down in the third part of the chapter on the protocol, before the runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tpgm.book.experiments import experiment
from tpgm.book.experiments.display import DISPLAY
from tpgm.book.experiments.experiment import Row, key, missing
from tpgm.book.experiments.frames import _frame
from tpgm.book.experiments.icon_studies import DEFAULTS, REGIME_STUDIES
from tpgm.book.experiments.study import Study
from tpgm.book.experiments.variants import Mean, Variant, holm, mean, paired

THREE = ("zero-shot", "upstream", "imagenet")  # over which regret is averaged
RELATIVES = ("one ratio", "one ratio, 1 SE", "probe-anchored", "probe-anchored, 1 SE", *DEFAULTS)


@dataclass(frozen=True)
class Regime:
    """One regime's study with its rows, for the labels that are complete: every setting searched, every seed run.

    development: label -> the row of the chosen setting on the development designers; tests: label -> its runs on the
    test designers.
    """

    study: Study
    development: Mapping[str, Row]
    tests: Mapping[str, Variant]

    def at_edge(self) -> list[str]:
        """Labels whose chosen learning rate is the lowest or the highest that they tried."""
        found = []
        for label, variant in self.tests.items():
            rates = self.study.entries[label].searched.get("lr", ())
            if rates and variant.rows[0]["config"]["settings"]["lr"] in (rates[0], rates[-1]):
                found.append(label)
        return found


def regime(study: Study, rows: Sequence[Row]) -> Regime:
    """The study's complete labels."""
    by_key = {key(row["config"]): row for row in reversed(rows)}
    development, tests = {}, {}
    for label in study.entries:
        if missing(study.configs(label), rows):
            continue
        variant = study.chosen(rows, [label])[label]
        if {row["config"]["seed"] for row in variant.rows} == set(study.seeds):
            development[label], tests[label] = by_key[key(study.choose(label, rows))], variant
    return Regime(study, development, tests)


def committed(names: Iterable[str] = THREE) -> dict[str, Regime]:
    """The regimes by name, with the rows that come with the package."""
    studies = {name: REGIME_STUDIES[f"regime:{name}"] for name in names}
    return {name: regime(study, experiment.read(experiment.committed(study.file))) for name, study in studies.items()}


def common(regimes: Mapping[str, Regime]) -> list[str]:
    """The labels that are complete in every regime."""
    first, *rest = (regime.tests for regime in regimes.values())
    return [label for label in first if all(label in tests for tests in rest)]


def default_by_development(regimes: Mapping[str, Regime]) -> dict[str, float]:
    """Mean OOD regret of each candidate for the default on the development rows, as a share, lowest first."""
    best = {name: max(row["ood"] for row in r.development.values()) for name, r in regimes.items()}
    found = {
        label: math.fsum(best[name] - r.development[label]["ood"] for name, r in regimes.items()) / len(regimes)
        for label in DEFAULTS
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def not_run(regimes: Mapping[str, Regime]) -> list[str]:
    """Labels that the study of at least one regime has and that are not complete in all of those."""
    return [
        label for label in DISPLAY if any(label in r.study.entries and label not in r.tests for r in regimes.values())
    ]


def competitor(regimes: Mapping[str, Regime]) -> str:
    """The label with the highest mean OOD accuracy on the development rows that is no relative of the default."""
    others = [label for label in common(regimes) if label not in RELATIVES]
    return max(others, key=lambda label: math.fsum(r.development[label]["ood"] for r in regimes.values()))


def averaged(regimes: Mapping[str, Regime], label: str, what: str) -> dict[int, float]:
    """Seed -> the label's entry `what` ("id" or "ood"), averaged over the regimes, as a share."""
    by_seed = [regime.tests[label].by_seed() for regime in regimes.values()]
    seeds = set.intersection(*(set(of) for of in by_seed))
    return {seed: math.fsum(of[seed][what] for of in by_seed) / len(by_seed) for seed in sorted(seeds)}


def difference(regimes: Mapping[str, Regime], ours: str, other: str, what: str) -> tuple[Mean, float]:
    """Ours minus the other's, averaged over the regimes: mean with 95 % interval over seeds, p of the paired t-test."""
    from scipy.stats import ttest_1samp

    mine, theirs = averaged(regimes, ours, what), averaged(regimes, other, what)
    pairs = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    return mean(pairs), float(ttest_1samp(pairs, 0.0).pvalue)


def contrasts(regimes: Mapping[str, Regime], ours: str) -> pd.DataFrame:
    """Ours minus every other complete label: ID and OOD in points, p of OOD Holm-corrected over the labels."""
    others = [label for label in common(regimes) if label != ours]
    ood = {label: difference(regimes, ours, label, "ood") for label in others}
    p = holm({label: found[1] for label, found in ood.items()})
    order = sorted(others, key=lambda label: ood[label][0].value)
    lines = [
        [DISPLAY[label], difference(regimes, ours, label, "id")[0], ood[label][0], f"{p[label]:.2g}"] for label in order
    ]
    return _frame(["minus", "Δ ID", "Δ OOD", "p of Δ OOD"], lines)


def regrets(regimes: Mapping[str, Regime]) -> dict[str, dict[str, Mean]]:
    """OOD regret of every label that all regimes have: by regime, and "mean" over them, with 95 % intervals over seeds.

    Regret is taken seed by seed against the label with the highest mean OOD accuracy in the regime.
    """
    labels, by_regime = common(regimes), dict[str, dict[str, dict[int, float]]]()
    for name, regime in regimes.items():
        best = max(labels, key=lambda label: regime.tests[label].of("ood").value)
        top = regime.tests[best].by_seed()
        by_regime[name] = {
            label: {seed: top[seed]["ood"] - row["ood"] for seed, row in regime.tests[label].by_seed().items()}
            for label in labels
        }
    found = {}
    for label in labels:
        of = {name: by_regime[name][label] for name in regimes}
        seeds = set.intersection(*(set(values) for values in of.values()))
        means = {name: mean([values[seed] for seed in sorted(seeds)]) for name, values in of.items()}
        over = [math.fsum(values[seed] for values in of.values()) / len(of) for seed in sorted(seeds)]
        found[label] = {**means, "mean": mean(over)}
    return dict(sorted(found.items(), key=lambda item: item[1]["mean"].value))


def regret_table(regimes: Mapping[str, Regime]) -> pd.DataFrame:
    """OOD regret in points with intervals, smallest mean first."""
    lines = [[DISPLAY[label], *of.values()] for label, of in regrets(regimes).items()]
    return _frame(["method", *regimes, "mean"], lines)


def table(regime: Regime, base: str) -> pd.DataFrame:
    """Every complete label of a regime: chosen setting, ID, OOD, and both minus those of `base`; best OOD first."""
    order = sorted(regime.tests.values(), key=lambda v: -v.of("ood").value)
    lines: list[list[Any]] = []
    edge, against = regime.at_edge(), regime.tests[base]
    for v in order:
        delta = ["", ""] if v.label == base else [paired(v, against, "id"), paired(v, against, "ood")]
        chosen = v.choice + (" (edge)" if v.label in edge else "")
        lines.append([DISPLAY[v.label], chosen, v.of("id"), v.of("ood"), *delta])
    return _frame(["method", "chosen", "ID", "OOD", "Δ ID", "Δ OOD"], lines)
