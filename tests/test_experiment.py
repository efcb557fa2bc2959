"""Configurations, rows, their files, and what is computed from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tpgm.book.experiments import experiment, frames, variants
from tpgm.book.experiments.catalogue import STUDIES, find_study
from tpgm.book.experiments.full_scale import RECIPES, placed
from tpgm.book.experiments.icon_studies import BESIDE, REGIME_STUDIES, SETTLED, TRIED, ZERO_SHOT_STUDIES, beside
from tpgm.book.experiments.study import SEEDS, Entry, Study
from tpgm.book.experiments.variants import seedless
from tpgm.book.notebook import Markup, markdown
from tpgm.book.plots import comparison as plots
from tpgm.cli import main
from tpgm.methods import options

ROOT = Path(__file__).resolve().parent.parent

TINY: dict[str, Any] = {
    "source": "tiny",
    "train_per_class": 4,
    "val_per_class": 2,
    "settings": {"epochs": 1, "head_epochs": 1, "batch_size": 16},
}


@pytest.fixture(scope="module")
def row() -> experiment.Row:
    more = {"updates": 2, "val_batch_size": 8, "unit": "weight", "start": "largest", "radius_lr": 1e-3}
    config = {**TINY, "method": "tpgm-end", "settings": {**TINY["settings"], **more}}
    return experiment.run(config)


def test_a_row_tells_where_it_comes_from(row: experiment.Row) -> None:
    assert json.loads(json.dumps(row)) == row
    assert row["config"] == experiment.resolve(row["config"])
    assert row["config"]["settings"]["unit"] == "weight"
    assert set(row["accuracies"]) == {"val", "id_test", "outline", "duotone", "color", "emoji"}
    ood = [a["correct"] / a["total"] for n, a in row["accuracies"].items() if n not in ("val", "id_test")]
    assert row["ood"] == pytest.approx(sum(ood) / 4)
    assert row["id"] == row["accuracies"]["id_test"]["correct"] / row["accuracies"]["id_test"]["total"]
    assert set(row["ratios"]) == set(row["kinds"]) == set(row["radii"])
    assert all(0 <= r <= 1 for r in row["ratios"].values())
    assert row["peak_memory_mb"] > 100
    assert {"torch", "tpgm", "python"} <= set(row["versions"])


def test_same_configuration_same_row(row: experiment.Row) -> None:
    again = experiment.run(row["config"])
    for what in ("accuracies", "ratios", "radii", "history"):
        assert again[what] == row[what]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modle": "x"}, "no 'modle'; did you mean 'model'"),
        ({"method": "tpgn"}, "unknown method 'tpgn'; did you mean 'tpgm'"),
        ({"settings": {"epoch": 3}}, "no setting 'epoch'; did you mean 'epochs'"),
        ({"seed": "1"}, "seed must be of type int"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"size": 0}, "size must be at least 1"),
        ({"settings": {"seed": 1}}, "give the seed as"),
    ],
)
def test_bad_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment.run(config)


def test_bad_data_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="domainnet needs root"):
        experiment.run({"data": "domainnet"})
    with pytest.raises(ValueError, match="go with the icons only"):
        experiment.run({"data": str(tmp_path), "source": "tiny"})


def test_a_setting_without_effect_does_not_count() -> None:
    config = {**TINY, "method": "tpgm", "label": "mine", "settings": {"tolerance": 0.25}}
    assert experiment.key(config) == experiment.key({**TINY, "method": "tpgm", "settings": {}})
    assert experiment.key(config) != experiment.key({**config, "settings": {"radius_lr": 0.5}})


@pytest.mark.parametrize(
    "config",
    [
        {"method": "tpgm", "settings": {"every": "auto", "tolerance": 0.5, "gone": 1}},
        {"method": "a-method-that-is-gone", "settings": {}},
        {"method": "vanilla", "settings": {}, "key_that_is_gone": 1},
    ],
)
def test_rows_of_what_no_longer_exists_are_read_and_shown(config: dict[str, Any]) -> None:
    full = {**experiment.resolve({"method": "vanilla"}), **config}
    row = {"config": full, "id": 0.5, "ood": 0.4, "seconds": 1.0}
    rows = [row, {**row, "config": {**full, "seed": 1}}, {**row, "config": {**full, "settings": {"gone": 2}}}]
    assert [len(v.rows) for v in variants.grouped(rows).values()] == [2, 1]
    assert "50.0" in markdown(frames.overview(rows))
    assert len(variants.select(rows, full)) == 2
    assert experiment.missing([{"method": "vanilla"}], rows)


def test_every_committed_row_has_a_key() -> None:
    paths = sorted((ROOT / "results").glob("**/*.jsonl"))
    keys = [experiment.key(r["config"]) for p in paths for r in experiment.read(p) if "accuracies" in r]
    assert len(keys) > 300


def test_rows_survive_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    experiment.append(path, {"a": 1})
    experiment.append(path, {"a": "é"})
    assert experiment.read(path) == [{"a": 1}, {"a": "é"}]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="line 2 is no whole row"):
        assert experiment.read(path) == [{"a": 1}]
    experiment.append(path, {"a": 3})
    with pytest.warns(UserWarning, match="line 2 is no whole row"):
        assert experiment.read(path) == [{"a": 1}, {"a": 3}]
    with pytest.raises(FileNotFoundError, match="no such file of result rows"):
        experiment.read(tmp_path / "absent.jsonl")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["experiment", "source=tiny", "train_per_class=2", "val_per_class=1", "method=lp-ft", "settings.epochs=1"]
    command += ["settings.head_epochs=1", "settings.augment=false", "--out", str(out), "--quiet"]
    assert main(command) == 0
    assert main(command) == 0
    assert "has this row already" in capsys.readouterr().out
    (row,) = experiment.read(out)
    assert row["config"]["settings"]["augment"] is False
    assert main(["results", str(out), "--plot", str(tmp_path / "plot.png")]) == 0
    assert "| icons-resnet | lp-ft | 1 |" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["results", str(out), "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("label,model,data,seed")
    assert main(["experiment", "seed=x", "--out", str(out)]) == 1
    assert "seed must be of type int, got 'x'" in capsys.readouterr().err
    assert main(["experiment", "--protocol", "vit:imagenet", "--out", str(out)]) == 1
    assert "choose one of resnet:upstream" in capsys.readouterr().err
    assert main(["results", str(tmp_path / "no.jsonl")]) == 1


# --- studies


def made(config: dict[str, Any], val: float, id_: float, ood: float) -> experiment.Row:
    full = experiment.resolve(config)
    return {"config": full, "val": val, "id": id_, "ood": ood, "seconds": 1.0, "peak_memory_mb": 1.0}


def essence(config: dict[str, Any]) -> str:
    """What of a configuration is not a default: the same whatever settings the library has gained or lost."""
    full = experiment.resolve(config)
    of = options(full["method"])
    settings = {n: v for n, v in full["settings"].items() if v != of[n][0] and n != "tolerance"}
    rest = {k: v for k, v in full.items() if k != "settings" and v != experiment.KEYS[k][0]}
    return json.dumps({**rest, "method": full["method"], "settings": settings}, sort_keys=True)


def all_configs(name: str) -> list[dict[str, Any]]:
    name, _, dry = name.partition(" ")
    if name not in RECIPES:
        study = find_study(name)
        return [c for label in study.entries for seed in SEEDS for c in study.configs(label, seed)]
    studies = [placed(name, "data", "weights", seed=seed, dry_run=bool(dry)) for seed in SEEDS]
    return [c for study in studies for label in study.entries for c in study.configs(label)]


FROZEN = json.loads((Path(__file__).parent / "frozen_studies.json").read_text(encoding="utf8"))


@pytest.mark.parametrize("name", FROZEN)
def test_configurations_are_those_that_the_committed_rows_were_made_with(name: str) -> None:
    """Number and checksum of each study's configurations, written down before there was one schema for them."""
    found = sorted({essence(config) for config in all_configs(name)})
    assert [len(found), hashlib.sha256("\n".join(found).encode()).hexdigest()] == FROZEN[name]


@pytest.mark.parametrize(
    ("name", "rest"), [("resnet:upstream", 2), ("resnet:imagenet", 2), ("vit:upstream", 8), ("text", 0)]
)
def test_committed_rows_are_found(name: str, rest: int) -> None:
    """rest: what was never run, so that a key which changes is seen."""
    study = find_study(name)
    rows = experiment.read(experiment.committed(study.file))
    assert len(list(study.due(rows))) == rest
    wanted = {experiment.key(config) for config in all_configs(name)}
    assert {experiment.key(row["config"]) for row in rows} <= wanted


@pytest.mark.parametrize(
    ("name", "rest"), [("ablations:icons-resnet", 3), ("paths:icons-vit", 0), ("controlled:icons-vit", 0)]
)
def test_committed_rows_beside_the_comparison_are_found(name: str, rest: int) -> None:
    rows = experiment.read(experiment.committed(find_study(name).file))
    assert len(list(find_study(name).due(rows))) == rest


def test_every_method_of_the_comparison_has_three_settings_that_can_be_run() -> None:
    for study in (study for name, study in STUDIES.items() if name not in {**ZERO_SHOT_STUDIES, **REGIME_STUDIES}):
        for label, entry in study.entries.items():
            assert len({experiment.key(c) for c in study.configs(label)}) == 3
            assert entry.fixed is None or entry.fixed in entry.values
    assert [label for label, entry in TRIED.items() if entry.fixed] == ["linear-probe", "vanilla", "wise-ft"]


def test_the_zero_shot_studies_try_every_learning_rate_and_draw_other_data_on_every_seed() -> None:
    development, tests = ZERO_SHOT_STUDIES["development:resnet"], ZERO_SHOT_STUDIES["zero-shot:resnet"]
    for label in development.entries:
        configs = [experiment.resolve(c) for c in development.configs(label)]
        assert len({experiment.key(c) for c in configs}) == len(configs)
        if label != "start weights":
            assert {c["settings"]["lr"] for c in configs} == {3e-4, 1e-3, 3e-3, 1e-2}
        assert {c["data"] for c in configs} == {"icons-development"}
    assert not set(development.seeds) & set(tests.seeds), "seeds of the search are not those of the tests"
    vanilla = development.configs("vanilla")
    rows = [{"config": c, "val": float(n == 2)} for n, c in enumerate(vanilla)]
    finals = [c for c in development.plan(rows, ["vanilla"]) if c["seed"] != development.search_seed]
    assert [(c["seed"], c["data_seed"]) for c in finals] == [(101, 101), (102, 102)]
    assert {c["settings"]["lr"] for c in finals} == {3e-3}
    rows += [{"config": c, "val": 0.0} for c in finals]
    chosen = development.chosen(rows, ["vanilla"])["vanilla"]
    assert (chosen.choice, len(chosen.rows)) == ("lr=0.003", 3), "redrawn data do not tell the runs of a setting apart"
    assert development.choice("wise-ft", development.configs("wise-ft")[5]) == "alpha=0.4, lr=0.001"


@pytest.mark.parametrize("name", REGIME_STUDIES)
def test_a_regime_is_searched_on_development_designers_and_run_on_test_designers(name: str) -> None:
    study = REGIME_STUDIES[name]
    for label in study.entries:
        configs = [experiment.resolve(c) for c in study.configs(label)]
        assert len({experiment.key(c) for c in configs}) == len(configs)
        assert {(c["data"], c["seed"], c["data_seed"]) for c in configs} == {("icons-development", 100, 100)}
        assert len({c["settings"]["lr"] for c in configs}) == (1 if "lr=" in label or label == "start weights" else 4)
    rows = [{"config": c, "val": float(n == 1)} for n, c in enumerate(study.configs("vanilla"))]
    finals = [c for c in study.plan(rows, ["vanilla"]) if c["data"] == "icons-zero-shot"]
    assert [c["seed"] for c in finals] == [c["data_seed"] for c in finals] == list(study.seeds)
    assert {c["settings"]["lr"] for c in finals} == {study.configs("vanilla")[1]["settings"]["lr"]}
    assert study.chosen(rows, ["vanilla"])["vanilla"].rows == (), "the row of the search is no result"
    rows += [{"config": c, "val": 1.0} for c in finals]
    assert len(study.chosen(rows, ["vanilla"])["vanilla"].rows) == len(study.seeds)


def test_the_tests_are_settled_by_the_development_rows() -> None:
    development, tests = ZERO_SHOT_STUDIES["development:resnet"], ZERO_SHOT_STUDIES["zero-shot:resnet"]
    rows = experiment.read(experiment.committed(development.file))
    for label, settled in SETTLED.items():
        chosen = development.choose(label, rows)["settings"]
        assert {name: chosen[name] for name in development.entries[label].searched} == settled
        (config,) = tests.configs(label)
        assert config["settings"] == chosen
        assert config["data"] == "icons-zero-shot"
        lr = settled.get("lr", 1e-3)
        assert 3e-4 < lr < 1e-2, "no learning rate lies at the edge of its grid"


def test_holm_by_hand() -> None:
    assert variants.holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert variants.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_contrasts_are_paired_by_seed() -> None:
    def variant(label: str, values: list[float]) -> variants.Variant:
        rows = [{"config": {"seed": s}, "id": 0.5, "ood": v} for s, v in enumerate(values)]
        return variants.Variant(label, "", tuple(rows))

    of = {"a": variant("a", [0.5, 0.6, 0.7]), "b": variant("b", [0.51, 0.62, 0.71]), "c": variant("c", [0.7, 0.5, 0.6])}
    frame = frames.contrasts(of, "a", ["b", "c"])
    assert list(frame["minus a"]) == ["b", "c"]
    assert frame["Δ OOD"][0].value == pytest.approx(0.04 / 3)
    # mean 0.01333 over a standard error of 0.00333: t = 4 at two degrees of freedom, p = 0.0572; of two, doubled
    assert float(frame["p of Δ OOD"][0]) == pytest.approx(0.11, abs=0.005)
    with pytest.raises(ValueError, match="two seeds in common"):
        variants.p_value(variant("a", [0.1]), of["b"], "ood")


def test_data_drawn_apart_from_the_seed_are_another_setting() -> None:
    config = {"method": "vanilla", "seed": 3}
    assert seedless(config) == seedless({**config, "seed": 5})
    assert seedless({**config, "data_seed": 3}) == seedless({**config, "seed": 4, "data_seed": 4})
    assert seedless({**config, "data_seed": 2}) != seedless({**config, "data_seed": 3})


def test_studies_beside_can_be_run_and_differ() -> None:
    for what, count in (("ablations", 15), ("paths", 1), ("controlled", 3)):
        configs = all_configs(f"{what}:icons-resnet")
        assert len({experiment.key(c) for c in configs}) == len(configs) == 3 * count
        assert len(list(beside(what, "icons-resnet").plan([]))) == count == len(BESIDE[what])
    with pytest.raises(ValueError, match="unknown study 'more'"):
        beside("more", "icons-resnet")
    with pytest.raises(ValueError, match="did you mean 'resnet:upstream'"):
        find_study("resnet:upstraem")
    with pytest.raises(ValueError, match="no label 'wise'; did you mean 'wise-ft'"):
        list(STUDIES["text"].plan([], ["wise"]))


def test_a_misspelt_setting_is_refused_not_ignored() -> None:
    study = Study("s", "", {}, {"epochs": 1, "radius_lr": 0.1}, {"a": Entry("vanilla", {"epoch": 2})})
    (config,) = study.configs("a")
    assert "radius_lr" not in config["settings"], "of the budget counts what the method has"
    with pytest.raises(ValueError, match="no setting 'epoch'"):
        experiment.resolve(config)


def test_the_choice_looks_at_id_validation_only_and_then_all_seeds_are_due() -> None:
    study = STUDIES["resnet:upstream"]
    candidates = study.configs("wise-ft")
    rows = [
        made(c, v, i, o)
        for c, v, i, o in zip(candidates, (0.5, 0.8, 0.8), (0.9, 0.1, 0.9), (0.9, 0.1, 0.9), strict=True)
    ]
    assert study.choose("wise-ft", rows)["settings"]["alpha"] == 0.5  # the first of the best on validation
    with pytest.raises(ValueError, match="1 of 3 candidates of 'wise-ft'"):
        study.choose("wise-ft", rows[:2])
    assert len(list(study.plan(rows[:2], ["wise-ft"]))) == 3, "what follows is not known before the search is complete"
    left = list(study.due(rows, ["wise-ft"]))
    assert [(c["seed"], c["settings"]["alpha"]) for c in left] == [(1, 0.5), (2, 0.5)]
    rows += [made(c, 0.5, 0.6, 0.4) for c in left]
    assert not list(study.due(rows, ["wise-ft"]))
    chosen = study.chosen(rows)
    assert list(chosen) == ["wise-ft"]
    assert chosen["wise-ft"].choice == "alpha=0.5"
    assert [row["config"]["seed"] for row in chosen["wise-ft"].rows] == [0, 1, 2]
    assert list(study.fixed(rows)) == ["wise-ft, alpha=0.5"]


def test_a_fixed_setting_runs_on_every_seed_whatever_is_chosen() -> None:
    study = STUDIES["text"]
    rows = [made(c, val, 0.5, 0.5) for c, val in zip(study.configs("lp-ft"), (0.1, 0.2, 0.3), strict=True)]
    found = [(c["seed"], c["settings"]["lr"]) for c in study.due(rows, ["lp-ft"])]
    assert found == [(1, 3e-4), (2, 3e-4), (1, 1e-4), (2, 1e-4)]


def test_a_killed_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def fake(config: dict[str, Any], **_: Any) -> experiment.Row:
        if len(ran) == 2:
            ran.append(None)
            raise SystemExit
        ran.append(config)
        return made(config, 0.5, 0.5, 0.5)

    monkeypatch.setattr(experiment, "run", fake)
    out, study = tmp_path / "rows.jsonl", STUDIES["resnet:upstream"]
    with pytest.raises(SystemExit):
        study.run(out, labels=["lp-ft"])
    assert study.run(out, labels=["lp-ft"]) == 3
    rows = experiment.read(out)
    assert len({experiment.key(r["config"]) for r in rows}) == len(rows) == 5


# --- what is computed from rows


def test_means_and_intervals() -> None:
    m = variants.mean([0.1, 0.2, 0.3])
    # t with 2 degrees of freedom: 4.3027; standard deviation 0.1
    assert (m.value, m.half) == (pytest.approx(0.2), pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5))
    assert str(m) == "20.0 ± 24.8"
    assert str(variants.mean([0.5])) == "50.0"
    with pytest.raises(ValueError, match="no values"):
        variants.mean([])


def table(make: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    return markdown(make(*arguments, **more))


def variants_of(values: dict[str, float]) -> dict[str, variants.Variant]:
    config = {**TINY, "method": "vanilla"}
    return {
        label: variants.Variant(label, "x=1", tuple(made({**config, "seed": s}, 0.5, v + 0.1, v) for s in (0, 1)))
        for label, v in values.items()
    }


def test_regret_is_against_the_best_of_each_regime() -> None:
    by_regime = {"a": variants_of({"x": 0.7, "y": 0.6, "only": 0.9}), "b": variants_of({"x": 0.2, "y": 0.5})}
    regret = variants.regrets(by_regime, {"a": ["x", "y"], "b": ["x", "y"]})
    assert set(regret) == {"x", "y"}
    assert regret["x"] == pytest.approx({"a": 0.0, "b": 0.3, "mean": 0.15})
    assert regret["y"] == pytest.approx({"a": 0.1, "b": 0.0, "mean": 0.05})
    assert table(frames.regret, regret).splitlines()[2].startswith("| y | 10.0 | 0.0 | 5.0 |")
    assert table(frames.accuracies, by_regime["a"]).splitlines()[2].startswith("| only | `x=1` | 100.0 ± 0.0 | 90.0")
    for figure in (
        plots.id_against_ood(by_regime, {"a": {"x": by_regime["a"]["x"].rows[0]}}),
        plots.regret_bars(regret),
        plots.ablation(by_regime),
        plots.costs({"x": 1.0, "y": 2.0}, "x"),
    ):
        assert isinstance(figure, Figure)
    assert len(plots.id_against_ood(by_regime).axes) == 2


def test_figures_of_ratios_and_paths(row: experiment.Row) -> None:
    figure = plots.ratios_by_depth({"one": [row, row], "two": [row], "three": [row]})
    assert [a.get_title() for a in figure.axes if a.get_visible()] == ["one", "two", "three"]
    point = {
        "val": {"correct": 1, "total": 2},
        "id_test": {"correct": 3, "total": 4},
        "far": {"correct": 1, "total": 4},
    }
    figure = plots.paths({"net": [{**row, "path": {"0.0": point, "1.0": point}}]})
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn["ID"] == [75.0, 75.0]
    assert drawn["OOD mean"] == [25.0, 25.0]
    assert len(plots.trade_off({"net": figure_rows(row, point)}, {"net": [penalized(row)]}).axes) == 1


def penalized(row: experiment.Row) -> experiment.Row:
    settings = {**row["config"]["settings"], "penalty": 0.01}
    return {**row, "config": {**row["config"], "method": "tpgm-c", "settings": settings}}


def figure_rows(row: experiment.Row, *points: dict[str, Any]) -> list[experiment.Row]:
    return [{**row, "path": {str(float(n)): p for n, p in enumerate(points)}}]


def test_a_barrier_is_the_fall_below_the_straight_line(row: experiment.Row) -> None:
    def at(id_: int, far: int) -> dict[str, Any]:
        share = {"val": 0, "id_test": id_, "far": far}
        return {name: {"correct": n, "total": 10} for name, n in share.items()}

    (bent,) = figure_rows(row, at(2, 5), at(1, 9), at(6, 5))
    assert variants.barrier(bent) == pytest.approx(0.3)  # the line is at 0.4 in the middle
    assert variants.barrier(bent, "ood") == pytest.approx(0.0)
    line = table(frames.barriers, {"net": [bent]}).splitlines()[2]
    assert line == "| net | 30.0 | 0.0 | 2.00 | 1.00 | 1 |"


def test_ood_accuracy_at_equal_id_accuracy(row: experiment.Row) -> None:
    def at(id_: int, far: int) -> dict[str, Any]:
        share = {"val": 0, "id_test": id_, "far": far}
        return {name: {"correct": n, "total": 10} for name, n in share.items()}

    (path,) = figure_rows(row, at(2, 8), at(4, 6), at(3, 1))
    assert variants.ood_at(path, 0.3) == pytest.approx(0.7)  # on the way up, not the 0.1 at the end
    assert variants.ood_at(path, 0.41) is None
    better = {**penalized(row), "id": 0.3, "ood": 0.75}
    line = table(frames.equal_id, [path], [better]).splitlines()[2]
    assert line.endswith("| 30.0 | 75.0 | 5.0 | 1 of 1 |")
    assert table(frames.equal_id, [path], [{**better, "id": 0.9}]).splitlines()[2].endswith("| – | 0 of 1 |")


def test_tables_of_depth_kind_and_differences(row: experiment.Row) -> None:
    names = list(row["ratios"])
    rising = {**row, "ratios": {name: n / len(names) for n, name in enumerate(names)}}
    line = table(frames.depth, {"rising": [rising]}).splitlines()[2]
    half = len(names) // 2
    lower = sum(range(half)) / half / len(names)
    upper = sum(range(half, len(names))) / (len(names) - half) / len(names)
    assert line == f"| rising | 1.00 | {lower:.2f} | {upper:.2f} | 1 |"
    falling = {**row, "ratios": {name: -n for n, name in enumerate(names)}}
    assert "| -1.00 |" in table(frames.depth, {"falling": [falling]})
    lengths = variants.row_lengths("icons-resnet")
    even = {**row, "radii": {name: 2e-3 * lengths[name] for name in names}}
    assert "| even | – | 2.00 | 2.00 |" in table(frames.depth, {"even": [even]}, what="radii")
    convolution = [n for n, kind in row["kinds"].items() if kind == "convolution"]
    ones = {**row, "ratios": {name: float(name in convolution) for name in names}}
    header, _, line = table(frames.kinds, {"run": [ones]}).splitlines()
    cells = dict(zip(header.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
    assert (cells["convolution"], cells["normalization"]) == ("1.00", "0.00")
    groups = {"g": variants_of({"base": 0.5, "other": 0.7})}
    assert "| g | other | 80.0 ± 0.0 | 70.0 ± 0.0 | 20.0 ± 0.0 | 20.0 ± 0.0 | 2 |" in table(frames.differences, groups)


def test_a_frame_has_one_form_and_no_html_reaches_a_page() -> None:
    lines = [["<img onerror=x>", 1234, 0.25, None, variants.mean([0.5])]]
    lines += [["a|b", 5, math.nan, Markup("**1.0** <b> | c"), "2 of 3"], ["[x](http://y) $z$", 6, 0.5, "**1**", "\n"]]
    frame = pd.DataFrame(lines, columns=["1 name", "n", "x", "y", "z"], dtype=object)
    frame.attrs = {"digits": 2, "note": "so"}
    assert markdown(frame).splitlines() == [
        "| 1 name | n | x | y | z |",
        "|---|---:|---:|---:|---:|",
        "| &lt;img onerror=x&gt; | 1,234 | 0.25 | – | 50.0 |",
        "| a\\|b | 5 | – | **1.0** &lt;b> \\| c | 2 of 3 |",
        "| &#91;x&#93;(http://y) &#36;z&#36; | 6 | 0.50 | &#42;&#42;1&#42;&#42; |  |",
        "",
        "so",
    ]


def test_the_tried_settings_of_a_study_are_shown_with_their_rows() -> None:
    study = STUDIES["vit:upstream"]
    rows = experiment.read(experiment.committed(study.file))
    frame = frames.searched(study, rows, ["lp-ft", "tpgm-end", "absent"])
    assert list(frame["method"]) == ["lp-ft"] * 3 + ["tpgm-end"] * 3
    assert frame["mean ratio"].isna().tolist() == [True] * 3 + [False] * 3
    assert len(frames.tried(study)) == len(study.entries)
    assert list(frames.flat(experiment.read(experiment.committed(study.file))).columns)[:3] == [
        "label",
        "model",
        "data",
    ]
