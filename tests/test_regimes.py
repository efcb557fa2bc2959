"""The regimes side by side: what is complete, what the default is chosen by, contrasts and regret, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tpgm.book.experiments import regimes
from tpgm.book.experiments.icon_studies import DEFAULTS, REGIME_STUDIES
from tpgm.book.experiments.regimes import Regime, regime
from tpgm.book.experiments.variants import Variant

FIRST, SECOND = DEFAULTS[0], DEFAULTS[1]


def made(name: str, scores: dict[str, tuple[float, list[float]]]) -> Regime:
    """label -> (OOD on the development row, OOD on the tests by seed); ID is 0.8 everywhere."""

    def row(seed: int, ood: float) -> dict[str, Any]:
        return {"config": {"seed": seed}, "id": 0.8, "ood": ood}

    return Regime(
        REGIME_STUDIES[f"regime:{name}"],
        {label: row(100, dev) for label, (dev, _) in scores.items()},
        {label: Variant(label, "", tuple(row(s, v) for s, v in enumerate(of))) for label, (_, of) in scores.items()},
    )


@pytest.fixture
def two() -> dict[str, Regime]:
    others = {label: (0.1, [0.1, 0.1]) for label in DEFAULTS[2:]}
    return {
        "zero-shot": made(
            "zero-shot",
            {"vanilla": (0.6, [0.5, 0.6]), "lp-ft": (0.7, [0.4, 0.4]), FIRST: (0.8, [0.7, 0.7]), SECOND: (0.7, [0, 0])}
            | others,
        ),
        "upstream": made(
            "upstream",
            {"vanilla": (0.3, [0.3, 0.4]), "lp-ft": (0.1, [0.2, 0.3]), FIRST: (0.2, [0.1, 0.3]), SECOND: (0.2, [0, 0])}
            | others,
        ),
    }


def test_the_default_has_the_lowest_regret_on_the_development_rows(two: dict[str, Regime]) -> None:
    found = regimes.default_by_development(two)
    assert next(iter(found)) == FIRST
    assert found[FIRST] == pytest.approx((0.0 + 0.1) / 2), "against the best label of each regime, of any kind"
    assert found[SECOND] == pytest.approx((0.1 + 0.1) / 2)


def test_the_competitor_is_no_relative_and_chosen_on_development_rows(two: dict[str, Regime]) -> None:
    assert regimes.competitor(two) == "vanilla", "0.9 of two against 0.8, though a candidate has 1.0"


def test_a_difference_is_averaged_over_the_regimes_seed_by_seed(two: dict[str, Regime]) -> None:
    found, p = regimes.difference(two, FIRST, "vanilla", "ood")
    # seed 0: (0.7 + 0.1) / 2 - (0.5 + 0.3) / 2 = 0, seed 1: (0.7 + 0.3) / 2 - (0.6 + 0.4) / 2 = 0
    assert found.value == pytest.approx(0.0, abs=1e-12)
    found, _ = regimes.difference(two, "vanilla", "lp-ft", "ood")
    assert (found.value, found.count) == (pytest.approx((0.1 + 0.15) / 2), 2)
    assert not 0 <= p < 0.05
    assert regimes.difference(two, FIRST, "vanilla", "id")[0].value == pytest.approx(0.0)


def test_regret_is_taken_against_the_best_mean_of_each_regime_seed_by_seed(two: dict[str, Regime]) -> None:
    found = regimes.regrets(two)
    assert found["vanilla"]["zero-shot"].value == pytest.approx((0.2 + 0.1) / 2)
    assert found["vanilla"]["upstream"].value == 0.0
    assert found["vanilla"]["mean"].value == pytest.approx(0.075)
    # by seed (0.2 + 0) / 2 and (0.1 + 0) / 2: half the difference times t of one degree of freedom over the root of two
    assert found["vanilla"]["mean"].half == pytest.approx(12.706 * 0.05 / 2, rel=1e-3)
    assert next(iter(found)) == "vanilla", "lowest mean first"


def test_incomplete_labels_are_left_out_and_named() -> None:
    study = replace(REGIME_STUDIES["regime:zero-shot"], seeds=(0, 1))
    search = study.configs("vanilla")
    rows: list[dict[str, Any]] = [{"config": c, "val": float(n == 2), "ood": 0.5} for n, c in enumerate(search)]
    finals = [c for c in study.plan(rows, ["vanilla"]) if c["data"] == "icons-zero-shot"]
    rows.append({"config": finals[0], "val": 0.9, "ood": 0.4})
    assert not regime(study, rows).tests, "a seed is missing"
    rows += [{"config": finals[1], "val": 0.9, "ood": 0.4}, {"config": finals[1], "val": 0.9, "ood": 0.1}]
    found = regime(study, rows)
    assert list(found.tests) == ["vanilla"]
    assert [row["ood"] for row in found.tests["vanilla"].rows] == [0.4, 0.4], "a run twice counts once, the first time"
    assert found.development["vanilla"]["config"] == search[2]
    assert "vanilla" not in regimes.not_run({"zero-shot": found})
    assert "ftp" in regimes.not_run({"zero-shot": found})


def test_a_chosen_rate_at_the_edge_of_its_grid_is_told() -> None:
    study = replace(REGIME_STUDIES["regime:zero-shot"], seeds=(0,))
    for best, edge in ((0, ["vanilla"]), (1, []), (3, ["vanilla"])):
        rows: list[dict[str, Any]] = [
            {"config": c, "val": float(n == best)} for n, c in enumerate(study.configs("vanilla"))
        ]
        rows += [{"config": c, "val": 0.0} for c in study.plan(rows, ["vanilla"]) if c["data"] == "icons-zero-shot"]
        assert regime(study, rows).at_edge() == edge


def test_committed_rows_give_what_the_chapter_says() -> None:
    found = regimes.committed()
    default = next(iter(regimes.default_by_development(found)))
    assert default == "one ratio, 1 SE, lr=0.003"
    assert regimes.competitor(found) == "lp-ft"
    assert regimes.contrasts(found, default).shape[0] == len(regimes.common(found)) - 1
    best = {name: max(r.tests, key=lambda label: r.tests[label].of("ood").value) for name, r in found.items()}
    assert best["upstream"] == "linear-probe", "the table of 'How to choose' says so"
    assert best["imagenet"] == "vanilla", "as well"
