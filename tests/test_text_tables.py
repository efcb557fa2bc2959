"""What the text chapter computes from rows, and the committed rows themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from matplotlib.figure import Figure

from tpgm.book.experiments import experiment, frames, variants
from tpgm.book.experiments.study import SEARCH_SEED, SEEDS
from tpgm.book.experiments.text_study import TEXT
from tpgm.book.experiments.variants import Variant
from tpgm.book.notebook import markdown
from tpgm.book.plots import topic_scores as plots
from tpgm.book.text.topics import OOD_TEST, TEST, TOPICS, VAL
from tpgm.training.evaluate import Accuracy


def made(label: str, right: dict[int, int]) -> Variant:
    """Rows of two topics with 10 tweets each, 6 of the first label; right: correct ID answers by seed."""
    rows = []
    for seed, n in right.items():
        inside, outside = Accuracy(n, 10, ((n, 6 - n), (4, 0))), Accuracy(4, 10, ((0, 6), (0, 4)))
        rows.append(
            {
                "config": {"seed": seed, "label": label},
                "accuracies": {"val": inside.counts, "id_test": inside.counts, "apple": outside.counts},
                "id": inside.value, "ood": outside.value, "id_f1": inside.macro_f1, "ood_f1": outside.macro_f1,
            }
        )  # fmt: skip
    return Variant(label, "lr=1", tuple(rows))


MADE = {"a": made("a", {0: 6, 1: 5, 2: 5}), "b": made("b", {0: 4, 1: 3, 2: 3}), "c": made("c", {0: 1, 1: 6, 2: 5})}


def test_differences_are_paired_by_seed_and_say_what_is_clear() -> None:
    always = variants.paired(MADE["a"], MADE["b"], "id")
    assert (always.value, always.half, always.count) == (pytest.approx(0.2), pytest.approx(0, abs=1e-12), 3)
    assert variants.verdict(MADE, "a", "id") == "a is above b; level with c"
    assert variants.verdict(MADE, "b", "id") == "b is below a; level with c"
    assert variants.verdict(MADE, "a", "ood") == "a is level with b, c"
    lines = markdown(frames.gains(MADE, ["a"])).splitlines()
    assert lines[2].startswith("| a | b | **20.0 ± 0.0** | 0.0 ± 0.0 |")
    assert not lines[3].startswith("| a | c | **")
    one = made("d", {0: 6})
    assert math.isnan(variants.paired(one, MADE["b"], "id").half)
    assert "of one seed only beside b" in variants.verdict({"d": one, "b": MADE["b"]}, "d", "id")


def test_the_topic_table_shows_what_one_answer_would_score() -> None:
    lines = markdown(frames.by_topic(MADE, "accuracy")).splitlines()
    assert lines[0] == "| method | airlines (ID) | apple |"
    assert lines[-2:] == ["| *most frequent label* | 60.0 | 60.0 |", "| *tweets* | 10 | 10 |"]
    # of six and four: F1 of the first label 2 * 6 / 16, of the other 0
    assert markdown(frames.by_topic(MADE, "macro-F1")).splitlines()[-2] == "| *most frequent label* | 37.5 | 37.5 |"
    assert markdown(frames.accuracies(MADE, ["accuracy", "macro-F1"])).count("\n") == 4


def test_figures_show_every_method_and_the_builds_own_runs() -> None:
    figure = plots.id_against_ood(MADE, {"b": MADE["b"].rows[0], "new": MADE["a"].rows[0]})
    assert isinstance(figure, Figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", "c", "this build, shorter"]
    assert [a.get_title() for a in figure.axes] == ["accuracy", "macro-F1"]
    axes = plots.by_topic(MADE).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["airlines (ID)", "apple"]


def rows() -> list[dict[str, Any]]:
    return experiment.read(experiment.committed("text.jsonl"))


def test_committed_rows_are_of_the_protocol_and_count_what_it_says() -> None:
    allowed = {experiment.key(c) for label in TEXT.entries for seed in SEEDS for c in TEXT.configs(label, seed)}
    keys = [experiment.key(row["config"]) for row in rows()]
    assert len(keys) == len(set(keys))
    assert set(keys) <= allowed
    for row in rows():
        totals = {name: of["total"] for name, of in row["accuracies"].items()}
        outside = {topic: OOD_TEST for topic in TOPICS if topic != "airlines"}
        assert totals == {"val": VAL, "id_test": TEST, **outside}
        scores = {name: Accuracy(of["correct"], of["total"], of["confusion"]) for name, of in row["accuracies"].items()}
        assert row["id_f1"] == pytest.approx(scores["id_test"].macro_f1)
        assert row["ood_f1"] == pytest.approx(sum(scores[topic].macro_f1 for topic in outside) / 5)
        assert row["images"] == {"train": 666, "val": VAL}
        assert len(row["commit"]) == 12, "run from a clean checkout"


def test_settings_were_chosen_on_id_validation_data() -> None:
    searched = [row for row in rows() if row["config"]["seed"] == SEARCH_SEED]
    for label, summary in TEXT.chosen(rows()).items():
        best = max(row["val"] for row in searched if row["config"]["label"] == label)
        assert next(r for r in summary.rows if r["config"]["seed"] == SEARCH_SEED)["val"] == best
