"""A model in use: classes of images, accuracies on folders, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tpgm import evaluate, models, predict
from tpgm.cli import main
from tpgm.data.preparation import Preparation
from tpgm.inference import summary
from tpgm.models import Architecture, Pretrained

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


class Means(nn.Module):
    """Logits: ten times the mean of each colour, in the order of COLOURS."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3, eps=0.0)  # leaves its input as it is, in eval mode only
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.eye(3).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x.mean(dim=(2, 3))))
        return logits


def start(names: tuple[str, ...] | None = tuple(COLOURS)) -> Pretrained:
    return Pretrained("means", Means().train(), {}, (), Preparation(8, (0.0,) * 3, (1.0,) * 3), "head", names)


def painted(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), COLOURS[colour]).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of two classes, one of which looks like the third class."""
    for number, colour in enumerate(("green", "green", "blue")):
        painted(tmp_path / "test" / "green" / f"{number}.png", colour)
    for number in range(2):
        painted(tmp_path / "test" / "red" / f"{number}.png", "red")
    return tmp_path / "test"


def finished_run(folder: Path) -> Path:
    """The folder of a run: a tiny model of the classes of COLOURS."""
    torch.manual_seed(0)
    architecture = Architecture("icons-vit", {"size": 16, "width": 16, "depth": 1, "heads": 2})
    model, preparation = architecture.build(3), Preparation(16, (0.5,) * 3, (0.5,) * 3)
    given = Pretrained("tiny", model, {}, (), preparation, "head", tuple(COLOURS), architecture)
    folder.mkdir(parents=True)
    models.save(folder / "model.safetensors", given, model)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path / "run")


# --- predict


def test_classes_and_probabilities_of_files_and_folders(folder: Path, tmp_path: Path) -> None:
    single = painted(tmp_path / "single.png", "red")
    found = predict(start(), [single, folder / "green"], top=2, batch_size=2)
    assert [file for file, _ in found] == [single, *sorted((folder / "green").iterdir())]
    assert [best[0][0] for _, best in found] == ["red", "green", "green", "blue"]
    means = [10 * value / 255 for value in COLOURS["red"][::-1]]  # blue, green, red
    share = math.exp(means[2]) / sum(map(math.exp, means))
    assert found[0][1][0][1] == pytest.approx(share, rel=1e-5)
    assert [len(best) for _, best in found] == [2] * 4


def test_every_way_of_asking_gives_the_same(folder: Path) -> None:
    one = start().predict(folder / "green" / "2.png", top=3)
    many = predict(start(), folder, top=3, batch_size=64)
    assert dict(dict(many)[folder / "green" / "2.png"]) == {name: pytest.approx(p, rel=1e-5) for name, p in one}
    for (file, best), (again, others) in zip(many, predict(start(), str(folder), top=9, batch_size=1), strict=True):
        assert (file, dict(best)) == (again, {name: pytest.approx(p, rel=1e-5) for name, p in others})


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    given = start()
    predict(given, folder)
    evaluate(given, folder)
    assert given.model.training
    assert given.model.norm.training


def test_a_model_without_names_answers_with_numbers(folder: Path) -> None:
    assert [best[0][0] for _, best in predict(start(None), folder / "red")] == ["2", "2"]


# --- evaluate


def test_accuracy_confusion_and_scores_by_hand(folder: Path) -> None:
    found = evaluate(start(), folder, batch_size=2)
    assert (found.accuracy.correct, found.accuracy.total) == (4, 5)
    assert found.accuracy.confusion == ((0, 0, 0), (1, 2, 0), (0, 0, 2))
    green, red = found.by_class()
    assert green == ("green", 3, 2 / 3, 1.0, pytest.approx(0.8))
    assert red == ("red", 2, 1.0, 1.0, 1.0)
    assert found.macro_f1 == pytest.approx(0.9), "over the classes of the folder, blue is none"
    (worst,) = found.worst()
    assert found.files[worst] == folder / "green" / "2.png"
    low, high = (100 * bound for bound in found.accuracy.interval)
    assert f"| a\\|b | 80.0 | {low:.1f} to {high:.1f} | 90.0 | 5 |" in summary({"a|b": found})


def test_a_class_that_was_never_answered_has_no_precision(tmp_path: Path) -> None:
    painted(tmp_path / "t" / "red" / "0.png", "green")
    (red,) = evaluate(start(), tmp_path / "t").by_class()
    assert red == ("red", 1, 0.0, None, 0.0)


def test_the_most_confident_wrong_answers_come_first(tmp_path: Path) -> None:
    for number, value in enumerate((120, 250, 180)):
        path = tmp_path / "t" / "red" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (0, value, 0)).save(path)
    found = evaluate(start(), tmp_path / "t")
    assert [found.files[i].name for i in found.worst()] == ["1.png", "2.png", "0.png"]
    assert len(found.worst(2)) == 2


def test_figures_show_the_classes_that_occur_and_the_wrong_images(folder: Path) -> None:
    found = evaluate(start(), folder)
    axes = found.confusion_figure().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blue", "green", "red"]
    shares = axes.images[0].get_array()
    assert shares.tolist() == [[0, 0, 0], [pytest.approx(1 / 3), pytest.approx(2 / 3), 0], [0, 0, 1]]
    titles = [cell.get_title() for cell in found.worst_figure().axes]
    assert titles[0].startswith("green\n→ blue (")
    with pytest.raises(ValueError, match="no answer was wrong"):
        evaluate(start(), _only(folder, "red")).worst_figure()


def _only(folder: Path, name: str) -> Path:
    out = folder.parent / "only"
    out.mkdir()
    (folder / name).rename(out / name)
    return out


# --- what is refused


def test_broken_images_are_named_or_left_out_and_counted(folder: Path) -> None:
    broken = folder / "red" / "broken.png"
    broken.write_bytes((folder / "red" / "0.png").read_bytes()[:45])  # the header is whole
    with pytest.raises(OSError, match=r"broken\.png.*--skip-broken"):
        predict(start(), folder)
    with pytest.warns(UserWarning, match=r"1 of 6 images cannot be read and are left out; the first: .*broken\.png"):
        assert len(predict(start(), folder, skip_broken=True)) == 5
    with pytest.warns(UserWarning, match="1 of 6"):
        assert evaluate(start(), folder, skip_broken=True).accuracy.total == 5
    with pytest.raises(OSError, match="none of 1 images can be read"):
        predict(start(), broken, skip_broken=True)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: predict(start(), f / "nothing"), FileNotFoundError, "nothing: no such file or folder"),
        (lambda f: predict(start(), []), ValueError, "no images in nothing"),
        (lambda f: predict(start(), f, top=0), ValueError, "top .*at least 1"),
        (lambda f: predict(start(), f, batch_size=0), ValueError, "batch_size .*at least 1"),
        (lambda f: predict(f, f), FileNotFoundError, r"model\.safetensors: no such file; give"),
        (lambda f: predict("icons-rsnet", f), ValueError, "did you mean .*icons-resnet"),
        (lambda f: evaluate(start(None), f), ValueError, "has no class names"),
        (lambda f: evaluate(start(("a", "b", "c")), f), ValueError, "green, red; rename or remove"),
        (lambda f: evaluate(start(), f / "green"), ValueError, "has no class folders"),
    ],
)  # fmt: skip
def test_errors_name_cause_and_cure(folder: Path, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(folder)


# --- the commands


def test_predict_writes_csv_and_json(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), str(folder), "--top", "2", "--quiet"]) == 0
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows[0] == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert len(rows) == 6
    wanted = predict(run, folder, top=2)
    assert [row[1] for row in rows[1:]] == [best[0][0] for _, best in wanted]
    out = folder.parent / "answers.json"
    assert main(["predict", str(run / "model.safetensors"), str(folder), "--out", str(out), "--quiet"]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    assert [one["classes"][0]["class"] for one in told] == [best[0][0] for _, best in wanted]
    assert main(["predict", str(run), str(folder), "--out", "answers.txt"]) == 1
    assert "--out must end in .csv or .json" in capsys.readouterr().err


def test_a_warning_is_one_line_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    told, before = [], warnings.formatwarning

    def warned(*_: Any, **__: Any) -> list[Any]:
        told.append(warnings.formatwarning(UserWarning("two files"), UserWarning, "check.py", 189))
        return [(Path("a.png"), [("red", 0.5)])]

    monkeypatch.setattr("tpgm.inference.predict", warned)
    assert main(["predict", "icons-vit", "a.png"]) == 0
    assert told == ["tpgm: two files\n"]
    assert warnings.formatwarning is before


def test_evaluate_prints_a_table_and_writes_what_it_is_made_of(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "evaluation"
    arguments = ["evaluate", str(run), str(folder), f"again={folder}", "--out", str(out), "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| test |" in printed
    assert "| again |" in printed
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    wanted = evaluate(run, folder)
    assert told["test"]["correct"] == told["again"]["correct"] == wanted.accuracy.correct
    assert told["test"]["confusion"] == [list(row) for row in wanted.accuracy.confusion]
    assert [one["name"] for one in told["test"]["classes"]] == ["green", "red"]
    assert (out / told["test"]["confusion_figure"]).is_file()
    assert main(["evaluate", str(run), "nothing", "--quiet"]) == 1
    assert "nothing: no such folder" in capsys.readouterr().err
