"""The command line, from image files to a printed table, and its errors."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tpgm
from tests.small import small_data
from tpgm import cli, comparing, models
from tpgm.cli import main
from tpgm.methods import options
from tpgm.models.architectures import Architecture
from tpgm.models.pretrained import Pretrained, preparation_of
from tpgm.training.rehearsal import rehearse

COLORS = {"red": (200, 40, 40), "green": (40, 200, 40)}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A tiny vision transformer in a file of this package."""
    torch.manual_seed(0)
    architecture = Architecture("icons-vit", {"size": 16, "width": 16, "depth": 1, "heads": 2})
    model = architecture.build(5)
    start = Pretrained("tiny", model, {}, (), preparation_of(model, 16), "head", tuple("abcde"), architecture)
    models.save(tmp_path / "tiny.safetensors", start, model)
    return tmp_path / "tiny.safetensors"


def paint(folder: Path, light: float, count: int = 12) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = torch.randint(0, 50, (16, 16, 3), generator=generator)
            pixels = ((torch.tensor(color) + noise) * light).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


def test_from_image_files_to_a_table_and_a_model(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, dark = paint(tmp_path / "photos", 1.0), paint(tmp_path / "dark", 0.4)
    out = tmp_path / "run"
    settings = ["--set", "epochs=6", "--set", "batch_size=4", "--set", "lr=1e-2", "--set", "norm=l2"]
    status = main(
        [
            "finetune",
            str(backbone),
            str(photos),
            "--ood",
            f"dark={dark}",
            "--method",
            "tpgm",
            "--out",
            str(out),
            "--quiet",
            *settings,
        ]
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "| id_test |" in printed.out
    assert "| dark |" in printed.out
    row = json.loads((out / "result.json").read_text())
    assert row["settings"]["lr"] == 1e-2
    assert (out / "ratios.png").exists()
    # inference afterwards: class names and preprocessing come with the file
    tuned = models.load(out / "model.safetensors")
    assert tuned.class_names == ("green", "red")
    assert tuned.predict(photos / "red" / "3.png")[0][0] == "red"
    assert main(["finetune", str(backbone), str(photos), "--out", str(out)]) == 1
    assert "holds a finished run" in capsys.readouterr().err


def test_an_image_that_breaks_off_is_named_and_the_checkpoint_stays(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = paint(tmp_path / "photos", 1.0, count=30)
    path = photos / "red" / "7.png"
    path.write_bytes(path.read_bytes()[:200])  # the header is whole
    arguments = [
        "finetune",
        str(backbone),
        str(photos),
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--checkpoint-seconds",
        "0",
    ]
    assert main([*arguments, "--set", "workers=0", "--set", "batch_size=1"]) == 1
    assert f"cannot read the image {path}" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint.pt").exists()  # of the steps before it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "icons", "--out", "x", "--method", "tpmg"], "did you mean 'tpgm'?"),
        (["m", "icons", "--out", "x", "--set", "lr"], "--set takes NAME=VALUE"),
        (["m", "icons", "--out", "x", "--set", "lr=fast"], "lr must be a number"),
        (["m", "icons", "--out", "x", "--set", "epoch=3"], "did you mean 'epochs'?"),
        (["m", "icons", "--out", "x", "--ood", "a=b"], "--ood goes with a folder"),
        (["m", "photos", "--out", "x", "--train-per-class", "3"], "--train-per-class goes with the icons"),
        (["m", "no-such-folder", "--out", "x"], "no-such-folder"),
        (["m", "p", "--out", "x", "--set", "lr=1", "--set", "lr=2"], "--set gives lr twice ('1' and '2')"),
        (["m", "p", "--out", "x", "--ood", "sk=a", "--ood", "sk=b"], "--ood gives sk twice ('a' and 'b')"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_commands'"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def add(commands, debug): raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("def add(commands, debug): commands.add_parser('finetune')", "finetune"),
        ("add = 3", "TypeError: 'int' object is not callable"),
    ],
)
def test_a_package_with_broken_commands_takes_no_other_command_along(
    text: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = tmp_path / "broken_commands-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-commands\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tpgm.commands]\nthird = broken_commands:add\n")
    if text is not None:
        (tmp_path / "broken_commands.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_commands", raising=False)
    assert main(["methods"]) == 0
    printed = capsys.readouterr()
    assert "vanilla" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("tpgm: left out the commands 'third' (broken_commands:add): ")
    assert reason in line


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        main(["finetune", "m", "icons", "--out", "x", "--method", "tpmg", "--debug"])


def test_methods_are_listed_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "arXiv 2303.10720" in capsys.readouterr().out
    assert main(["methods", "ftp"]) == 0
    printed = capsys.readouterr().out
    assert "kappa = 1.0" in printed
    assert "float, between 0 and 1" in printed
    assert "l2 or mars" in printed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("identity"), "unexpected KeyError: 'identity'; the same command with --debug"),
        (AssertionError(), "unexpected AssertionError: ; the same command with --debug"),
        (AttributeError("no x"), "unexpected AttributeError: no x"),
        (MemoryError("3 GB"), "out of memory (3 GB): lower batch_size"),
    ],
)
def test_an_unexpected_error_is_one_line_too(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tpgm.methods.options", fail)
    assert main(["methods", "ftp"]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "m", "photos", "--out", ""],
        ["finetune", "m", "", "--out", "x"],
        ["finetune", "", "photos", "--out", "x"],
        ["pretrain", "icons-vit", " "],
        ["experiment", "seed=1", "--out", ""],
        ["experiment", "seed=1", "--out", "x", "--store", ""],
        ["results", ""],
        ["results", "x", "--plot", ""],
        ["recipe", "r", "--root", "", "--checkpoint", "c", "--out", "x"],
        ["recipe", "r", "--root", "d", "--checkpoint", "", "--out", "x"],
        ["run", ""],
        ["run", "03_ratios", "--out", ""],
        ["sweep", "seeds", "--out", " "],
        ["sweep", "seeds", "--scheduler", "", "--out", "x"],
    ],
)
def test_an_empty_path_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert re.search("the (path|name) is empty: name a file or folder", capsys.readouterr().err)


def test_a_number_outside_its_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "m", "icons", "--out", "x", "--size", "0"])
    assert "argument --size: must be a whole number at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "m", "photos", "--out", "x", "--out", "y"], "--out is given twice: give it once"),
        (["finetune", "m", "photos", "--out", "x", "--method", "tpgm", "--meth=lp-ft"], "--method is given twice"),
        (["pretrain", "icons-vit", "x", "--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["sweep", "seeds", "--out", "x", "--workers", "1", "--workers", "2"], "--workers is given twice"),
        (["run", "03_ratios", "-p", "seed", "1", "-p", "seed", "2"], "-p has seed twice"),
        (["experiment", "seed=1", "seed=2", "--out", "x"], "a configuration gives seed twice"),
        (["experiment", "settings.lr=1", "settings.lr=2", "--out", "x"], "a configuration gives settings.lr twice"),
        (["experiment", "data=photos", "ood=sk=a,sk=b", "--out", "x"], "ood gives sk twice ('a' and 'b')"),
        (["experiment", "data=photos", "ood=sk", "--out", "x"], "ood takes NAME=FOLDER, such as s=photos/s, got 'sk'"),
        (["results", "results/text.jsonl", "results/../results/text.jsonl"], "are one file: give it once"),
    ],
)
def test_nothing_that_is_given_twice_is_dropped(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = 0
    with contextlib.suppress(SystemExit):  # argparse's own end
        status = main(arguments)
    assert status in (0, 1)
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["experiment", "seed=1", "--out", "{}"], "choose another file"),
        (["experiment", "--protocol", "resnet:upstream", "--out", "{}"], "choose another file"),
        (["pretrain", "icons-vit", "{}.safetensors"], "choose another file"),
        (["run", "03_ratios", "--out", "{}"], "choose another file"),
        (["finetune", "m", "photos", "--out", "{}"], "choose another folder"),
    ],
)
@pytest.mark.parametrize("place", ["file/x", "folder"])
def test_what_cannot_be_written_is_named_before_any_work(
    arguments: list[str],
    cure: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.json").mkdir()  # the card's place
    if place == "folder" and arguments[0] == "finetune":
        pytest.skip("a folder is what it wants")
    for work in ("tpgm.book.experiments.experiment.run", "tpgm.book.pretraining.icons_upstream", "tpgm.models.load"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work was begun"))
    monkeypatch.setattr("tpgm.data.image_folder", lambda *_, **__: small_data())
    target = tmp_path / place
    assert main([argument.format(target) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / place.partition("/")[0]) in line
    assert cure in line


def test_a_row_that_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tpgm.book.experiments import experiment

    with pytest.raises(OSError, match=r"cannot write /dev/full: No space left.*the row stands on standard output"):
        experiment.append("/dev/full", {"id": 0.5, "name": "Zürich"})
    assert json.loads(capsys.readouterr().out) == {"id": 0.5, "name": "Zürich"}


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("tpgm 0.")


def test_defaults_of_the_commands_are_those_of_the_functions() -> None:
    """They stand twice, for the command line's help does not wait for torch."""
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    of = {name: commands.choices[name].get_default for name in ("finetune", "compare")}
    for function in (tpgm.finetune, rehearse):
        assert of["finetune"]("method") == inspect.signature(function).parameters["method"].default == "one-ratio"
    assert tuple(of["compare"]("methods")) == comparing.METHODS
    assert of["compare"]("models") == [inspect.signature(tpgm.compare).parameters["models"].default]
    for name, (default, about) in cli._COMMON.items():
        known, _ = options("vanilla")[name]
        assert known == default, (name, about)
