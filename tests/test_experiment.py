"""Configurations, rows, their files, and what is computed from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tpgm.book.experiments import experiment, protocol, results
from tpgm.book.plots import experiments as plots
from tpgm.cli import main

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
    def key(**settings: Any) -> str:
        return experiment.key({**TINY, "method": "tpgm", "settings": settings})

    assert key(tolerance=0.25) == key(tolerance=0.5)
    assert key(every="auto", tolerance=0.25) != key(every="auto", tolerance=0.5)


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


# --- the protocol and what is computed


def made(config: dict[str, Any], val: float, id_: float, ood: float) -> experiment.Row:
    full = experiment.resolve(config)
    return {"config": full, "val": val, "id": id_, "ood": ood, "seconds": 1.0, "peak_memory_mb": 1.0}


def test_every_method_has_three_settings_that_can_be_run() -> None:
    for part, labels in protocol.LABELS.items():
        for regime in protocol.REGIMES[part]:
            for label in labels:
                candidates = protocol.configs(part, regime, label, 0)
                assert len({experiment.key(c) for c in candidates}) == 3
    for label, own in protocol.FIXED.items():
        assert sum(own.items() <= s.items() for s in protocol.TRIED[label][1]) == 1


def test_extras_can_be_run_and_differ() -> None:
    for what, count in (("ablations", 16), ("paths", 1), ("controlled", 3)):
        found = protocol.extras(what, "icons-resnet")
        assert len({experiment.key(c) for c in found}) == len(found) == 3 * count
    with pytest.raises(ValueError, match="unknown extra 'more'"):
        protocol.extras("more", "icons-resnet")


def test_the_choice_looks_at_id_validation_only_and_then_all_seeds_are_due() -> None:
    candidates = protocol.configs("resnet", "upstream", "wise-ft", 0)
    rows = [
        made(c, v, i, o)
        for c, v, i, o in zip(candidates, (0.5, 0.8, 0.8), (0.9, 0.1, 0.9), (0.9, 0.1, 0.9), strict=True)
    ]
    assert protocol.choose(candidates, rows)["settings"]["alpha"] == 0.5  # the first of the best on validation
    with pytest.raises(ValueError, match="1 of 3 candidates of 'wise-ft'"):
        protocol.choose(candidates, rows[:2])
    left = list(protocol.due("resnet", "upstream", rows, ["wise-ft"]))
    assert [(c["seed"], c["settings"]["alpha"]) for c in left] == [(1, 0.5), (2, 0.5)]
    rows += [made(c, 0.5, 0.6, 0.4) for c in left]
    assert not list(protocol.due("resnet", "upstream", rows, ["wise-ft"]))
    chosen = results.chosen("resnet", "upstream", rows)
    assert list(chosen) == ["wise-ft"]
    assert chosen["wise-ft"].choice == "alpha=0.5"
    assert [row["config"]["seed"] for row in chosen["wise-ft"].rows] == [0, 1, 2]
    assert list(results.fixed("resnet", "upstream", rows)) == ["wise-ft, alpha=0.5"]


def test_run_all_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def fake(config: dict[str, Any], **_: Any) -> experiment.Row:
        if len(ran) == 2:
            ran.append(None)
            raise SystemExit
        ran.append(config)
        return made(config, 0.5, 0.5, 0.5)

    monkeypatch.setattr(experiment, "run", fake)
    out = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit):
        protocol.run_all("resnet", "upstream", out, labels=["lp-ft"])
    assert protocol.run_all("resnet", "upstream", out, labels=["lp-ft"]) == 3
    rows = experiment.read(out)
    assert len({experiment.key(r["config"]) for r in rows}) == len(rows) == 5


def test_means_and_intervals() -> None:
    m = results.mean([0.1, 0.2, 0.3])
    # t with 2 degrees of freedom: 4.3027; standard deviation 0.1
    assert (m.value, m.half) == (pytest.approx(0.2), pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5))
    assert str(m) == "20.0 ± 24.8"
    assert str(results.mean([0.5])) == "50.0"
    with pytest.raises(ValueError, match="no values"):
        results.mean([])


def summaries(values: dict[str, float]) -> dict[str, results.Summary]:
    config = {**TINY, "method": "vanilla"}
    return {
        label: results.Summary(label, "x=1", tuple(made({**config, "seed": s}, 0.5, v + 0.1, v) for s in (0, 1)))
        for label, v in values.items()
    }


def test_regret_is_against_the_best_of_each_regime() -> None:
    by_regime = {"a": summaries({"x": 0.7, "y": 0.6, "only": 0.9}), "b": summaries({"x": 0.2, "y": 0.5})}
    regret = results.regrets(by_regime, {"a": ["x", "y"], "b": ["x", "y"]})
    assert set(regret) == {"x", "y"}
    assert regret["x"] == pytest.approx({"a": 0.0, "b": 0.3, "mean": 0.15})
    assert regret["y"] == pytest.approx({"a": 0.1, "b": 0.0, "mean": 0.05})
    assert results.regret_table(regret).splitlines()[2].startswith("| y | 10.0 | 0.0 | 5.0 |")
    assert results.accuracy_table(by_regime["a"]).splitlines()[2].startswith("| only | `x=1` | 100.0 ± 0.0 | 90.0")
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
    assert results.barrier(bent) == pytest.approx(0.3)  # the line is at 0.4 in the middle
    assert results.barrier(bent, "ood") == pytest.approx(0.0)
    line = results.barrier_table({"net": [bent]}).splitlines()[2]
    assert line == "| net | 30.0 | 0.0 | 2.00 | 1.00 | 1 |"


def test_ood_accuracy_at_equal_id_accuracy(row: experiment.Row) -> None:
    def at(id_: int, far: int) -> dict[str, Any]:
        share = {"val": 0, "id_test": id_, "far": far}
        return {name: {"correct": n, "total": 10} for name, n in share.items()}

    (path,) = figure_rows(row, at(2, 8), at(4, 6), at(3, 1))
    assert results.ood_at(path, 0.3) == pytest.approx(0.7)  # on the way up, not the 0.1 at the end
    assert results.ood_at(path, 0.41) is None
    better = {**penalized(row), "id": 0.3, "ood": 0.75}
    line = results.equal_id_table([path], [better]).splitlines()[2]
    assert line.endswith("| 30.0 | 75.0 | 5.0 | 1 of 1 |")
    assert results.equal_id_table([path], [{**better, "id": 0.9}]).splitlines()[2].endswith("| – | 0 of 1 |")


def test_tables_of_depth_kind_and_differences(row: experiment.Row) -> None:
    names = list(row["ratios"])
    rising = {**row, "ratios": {name: n / len(names) for n, name in enumerate(names)}}
    line = results.depth_table({"rising": [rising]}).splitlines()[2]
    half = len(names) // 2
    lower = sum(range(half)) / half / len(names)
    upper = sum(range(half, len(names))) / (len(names) - half) / len(names)
    assert line == f"| rising | 1.00 | {lower:.2f} | {upper:.2f} | 1 |"
    falling = {**row, "ratios": {name: -n for n, name in enumerate(names)}}
    assert "| -1.00 |" in results.depth_table({"falling": [falling]})
    lengths = results.row_lengths("icons-resnet")
    even = {**row, "radii": {name: 2e-3 * lengths[name] for name in names}}
    assert "| even | – | 2.00 | 2.00 |" in results.depth_table({"even": [even]}, what="radii")
    convolution = [n for n, kind in row["kinds"].items() if kind == "convolution"]
    ones = {**row, "ratios": {name: float(name in convolution) for name in names}}
    header, _, line = results.kind_table({"run": [ones]}).splitlines()
    cells = dict(zip(header.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
    assert (cells["convolution"], cells["normalization"]) == ("1.00", "0.00")
    groups = {"g": summaries({"base": 0.5, "other": 0.7})}
    assert "| g | other | 80.0 ± 0.0 | 70.0 ± 0.0 | 20.0 ± 0.0 | 20.0 ± 0.0 | 2 |" in results.difference_table(groups)
