"""Several methods on the same data: equal budgets, the table, what is kept, and going on after an interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import tpgm
from tests.small import small_data, small_start
from tests.test_cli import backbone, paint  # noqa: F401
from tpgm import comparing, models
from tpgm.cli import main
from tpgm.comparing import Compared, FinishedRun
from tpgm.data import splits
from tpgm.methods import make
from tpgm.training.evaluate import Accuracy

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "lr": 3e-3, "progress": False}


def compared(out: Path, *methods: str, **more: Any) -> Compared:
    return tpgm.compare(small_data(), small_start(), methods, out=out, **{**QUICK, **more})


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text()) for p in sorted((out / "runs").glob("*/result.json"))}


def test_every_method_has_the_same_budget_and_a_run_equals_one_made_alone(tmp_path: Path) -> None:
    found = compared(tmp_path, "vanilla", "wise-ft", "tpgm-end", own={"tpgm-end": {"updates": 3}})
    settings = [row["settings"] for row in rows(tmp_path).values()]
    assert {(s["epochs"], s["lr"], s["seed"], s["batch_size"]) for s in settings} == {(1, 3e-3, 0, 16)}
    assert rows(tmp_path)["small-tpgm-end"]["settings"]["updates"] == 3
    alone = tpgm.finetune(small_start(), small_data(), "wise-ft", **QUICK)
    (entry,) = [e for e in found.entries if e.method == "wise-ft"]
    assert {n: a.correct for n, a in entry.accuracies.items()} == {n: a.correct for n, a in alone.accuracies.items()}
    # ordinary fine-tuning was computed once for all three
    assert [p.name.partition("-")[0] for p in (tmp_path / "store").iterdir()] == ["weights"]


def test_the_best_by_validation_is_kept_alone_unless_asked_otherwise(tmp_path: Path) -> None:
    found = compared(tmp_path / "one", "vanilla", "linear-probe")
    kept = [p.parent.name for p in (tmp_path / "one" / "runs").glob("*/model.safetensors")]
    assert kept == [found.best.folder.name]
    assert (tmp_path / "one" / "best").resolve() == found.best.folder.resolve()
    every = compared(tmp_path / "all", "vanilla", "linear-probe", keep="all")
    assert len(list((tmp_path / "all" / "runs").glob("*/model.safetensors"))) == 2
    values = [e.accuracies["val"].value for e in every.entries]
    assert every.best is every.entries[values.index(max(values))]
    # a later call takes nothing away that an earlier one kept
    compared(tmp_path / "all", "vanilla", "linear-probe")
    assert len(list((tmp_path / "all" / "runs").glob("*/model.safetensors"))) == 2


def entry(method: str, val: int, ood: int) -> FinishedRun:
    parts = {"val": Accuracy(val, 10), "id_test": Accuracy(7, 10), "a|b": Accuracy(ood, 10), "snow": Accuracy(4, 10)}
    return FinishedRun("net", method, Path("runs") / method, parts, (2, 5), 12.4)


def test_tests_have_no_say_in_the_choice_and_every_one_has_its_column() -> None:
    found = Compared((entry("low", 6, 10), entry("first", 8, 2), entry("second", 8, 9)), {})
    assert found.best.method == "first"
    head, _, *lines = found.table().splitlines()
    assert head == "| model | method | ID val | ID test | a\\|b | snow | OOD mean | epochs | s |"
    assert lines[1] == "| net | **first** | 80.0 | 70.0 | 20.0 | 40.0 | 30.0 | 2 + 5 | 12 |"
    table = list(csv.DictReader(found.csv().splitlines()))
    assert [row["best"] for row in table] == ["0", "1", "0"]
    assert float(table[2]["a|b"]) == 0.9
    assert float(table[2]["a|b_low"]) == pytest.approx(Accuracy(9, 10).interval[0])


def test_the_figure_cuts_no_label_and_has_a_panel_for_every_test() -> None:
    found = Compared(tuple(entry(f"a method with a long name {n}", n, n) for n in range(8)), {})
    figure = found.figure()
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == ["ID test", "a|b", "snow"]
    for axes in figure.axes:
        names = axes.get_yticklabels() if axes is figure.axes[0] else []
        for text in (*names, axes.title, axes.xaxis.label):
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y0 >= 0
            assert box.y1 <= figure.bbox.y1


def test_what_is_finished_is_not_run_again_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = comparing.finetune

    def counted(model: Any, data: Any, method: Any, **more: Any) -> Any:
        calls.append(method.name)
        if method.name == "l2-sp" and calls.count("l2-sp") == 1:
            raise KeyboardInterrupt
        return real(model, data, method, **more)

    monkeypatch.setattr(comparing, "finetune", counted)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, "vanilla", "l2-sp")
    found = compared(tmp_path, "vanilla", "l2-sp")
    assert calls == ["vanilla", "l2-sp", "l2-sp"]
    again = compared(tmp_path, "vanilla", "l2-sp")
    assert len(calls) == 3
    assert again == found
    with pytest.raises(ValueError, match=r"small-vanilla holds a run that differs in the settings: choose another"):
        compared(tmp_path, "vanilla", lr=1e-3)
    with pytest.raises(ValueError, match="differs in the data"):
        tpgm.compare(small_data(80), small_start(), ["vanilla"], out=tmp_path, **QUICK)
    other = small_start()
    other.anchor["conv.weight"] += 1
    with pytest.raises(ValueError, match="differs in the model"):
        tpgm.compare(small_data(), other, ["vanilla"], out=tmp_path, **QUICK)


def test_a_run_that_diverges_is_left_out_by_name(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="small, vanilla is left out: the training loss is"):
        found = tpgm.compare(
            small_data(), small_start(), ["vanilla", "linear-probe"], out=tmp_path,
            **QUICK | {"epochs": 3}, own={"vanilla": {"lr": 1e30}},
        )  # fmt: skip
    assert [e.method for e in found.entries] == ["linear-probe"]
    assert list(found.failed) == ["small, vanilla"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["vanilla", "tpgm-ende"]}, "did you mean 'tpgm-end'"),
        ({"methods": ["vanilla"], "epoch": 2}, "no method has the setting 'epoch'; did you mean 'epochs'"),
        ({"methods": ["vanilla", "vanilla"]}, "name one twice"),
        ({"methods": []}, "at least one entry"),
        ({"own": {"ftp": {"lr": 1}}}, "'ftp' has settings but is not compared"),
        ({"models": "no-such-model"}, "unknown model"),
        ({"keep": "none"}, "keep must be one of"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tpgm.compare(small_data(), **{"models": small_start(), "out": tmp_path / "out", **given})
    assert not (tmp_path / "out").exists()


def test_labels_tell_variants_of_one_method_apart(tmp_path: Path) -> None:
    variants = {"near": make("wise-ft", {"alpha": 0.2}), "far": make("wise-ft", {"alpha": 0.8})}
    found = tpgm.compare(small_data(), small_start(), variants, out=tmp_path, **QUICK)
    assert [e.method for e in found.entries] == ["near", "far"]
    assert [row["settings"]["alpha"] for row in rows(tmp_path).values()] == [0.8, 0.2]


def test_from_folders_to_a_table_by_one_command(
    backbone: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, dark = paint(tmp_path / "photos", 1.0), paint(tmp_path / "dark", 0.4)
    out = tmp_path / "out"
    call = ["compare", str(photos), "--ood", f"dark={dark}", "--models", str(backbone), "--out", str(out), "--quiet"]
    call += ["--methods", "vanilla", "tpgm-end", "--epochs", "2", "--lr", "0.01", "--batch-size", "4"]
    call += ["--set", "workers=0", "--set", "tpgm-end.updates=4", "--set", "norm=l2"]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "| ID val | ID test | dark | OOD mean |" in printed
    assert f"model: {out / 'best'}" in printed
    result = rows(out)["tiny-tpgm-end"]
    assert (result["settings"]["updates"], result["settings"]["norm"]) == (4, "l2")
    assert result["command"].startswith("tpgm compare ")
    assert (out / "comparison.svg").read_text().startswith("<?xml")
    # the model that is kept answers as in its run's own test
    found = tpgm.evaluate(out / "best", dark)
    best = json.loads((out / "best" / "result.json").read_text())
    assert found.accuracy.correct == best["accuracies"]["dark"]["correct"]
    assert main(["predict", str(out / "best"), str(dark / "red"), "--quiet"]) == 0


def test_pixels_of_a_training_are_those_of_later_answers(backbone: Path, tmp_path: Path) -> None:  # noqa: F811
    """Files are read at the model's size, in training, tests and `predict` alike."""
    photos = paint(tmp_path / "photos", 1.0, count=3)
    data = tpgm.data.image_folder(photos).at_size(16)
    start = models.load(backbone)
    image, _ = data.train[0]
    assert image.shape == (3, 16, 16)
    own = start.predict(data.train.paths[0], top=1)
    assert own == start.predict(image, top=1)
    assert tpgm.data.image_folder(photos).train[0][0].shape == (3, 224, 224)
    cut = tpgm.data.image_folder(photos, transform=lambda image: image.size).at_size(16)
    assert cut.train[0][0] == (16, 16)


def test_a_training_reads_files_at_the_size_of_its_model(
    backbone: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: set[int] = set()
    real = splits.resize_and_crop
    monkeypatch.setattr(splits, "resize_and_crop", lambda size: sizes.add(size) or real(size))
    data = tpgm.data.image_folder(paint(tmp_path / "photos", 1.0, count=4))
    tpgm.finetune(backbone, data, "vanilla", workers=0, **QUICK)
    assert sizes == {16}
