"""What `tpgm finetune` takes and tells: weights of others, a configuration file, a dry run, epochs, reports, logs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import tpgm
from tests.small import small_data, small_start
from tests.test_cli import backbone, paint  # noqa: F401
from tpgm.cli import main
from tpgm.models import Architecture
from tpgm.reporting import learning_curve
from tpgm.training.loop import duration
from tpgm.training.rehearsal import rehearse

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 3e-3}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return paint(tmp_path / "photos", 1.0)


def row(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


FAST = ["--epochs", "1", "--batch-size", "8", "--set", "workers=0", "--method", "vanilla", "--quiet"]


@pytest.mark.parametrize(
    "named",
    [
        ["WEIGHTS", "PHOTOS", "--architecture", "timm/resnet10t"],
        ["timm/resnet10t", "PHOTOS", "--checkpoint", "WEIGHTS"],
        ["--checkpoint", "WEIGHTS", "--architecture", "timm/resnet10t", "PHOTOS"],
    ],
)
def test_weights_of_others_go_into_a_named_architecture(named: list[str], photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Architecture("timm/resnet10t").build(7)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    here = {"WEIGHTS": str(tmp_path / "weights.pth"), "PHOTOS": str(photos)}
    out = tmp_path / "run"
    assert (
        main(["finetune", *(here.get(n, n) for n in named), "--size", "32", "--out", str(out), *FAST, "--lr", "0"]) == 0
    )
    tuned = tpgm.models.load(out)
    assert tuned.class_names == ("green", "red")
    assert row(out)["model"]["architecture"] == "timm/resnet10t"
    # nothing has moved at a learning rate of 0: the weights are the file's
    assert torch.equal(tuned.model.get_parameter("conv1.0.weight"), model.get_parameter("conv1.0.weight"))


def test_an_architecture_named_twice_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["finetune", "timm/a", str(photos), "--checkpoint", "w.pth", "--architecture", "timm/b", "--out", "x"]
    assert main(call) == 1
    assert "give one" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_gives_the_arguments_and_the_command_line_comes_first(
    suffix: str,
    backbone: Path,  # noqa: F811
    photos: Path,
    tmp_path: Path,
) -> None:
    dark = paint(tmp_path / "dark", 0.4)
    content = {
        "model": str(backbone), "data": str(photos), "out": str(tmp_path / "run"), "method": "wise-ft", "epochs": 3,
        "batch-size": 8, "ood": {"dark": str(dark)}, "set": {"workers": 0, "alpha": 0.25}, "quiet": True,
    }  # fmt: skip
    file = tmp_path / f"run.{suffix}"
    file.write_text(json.dumps(content))  # which is YAML too
    assert main(["finetune", "--config", str(file), "--epochs", "1"]) == 0
    found = row(tmp_path / "run")
    assert (found["method"], found["settings"]["alpha"], found["settings"]["epochs"]) == ("wise-ft", 0.25, 1)
    assert "dark" in found["accuracies"]
    content |= {"methods": ["vanilla"], "models": [str(backbone)], "out": str(tmp_path / "compared"), "epochs": 1}
    for name in ("model", "method", "set"):
        del content[name]
    file.write_text(json.dumps(content))
    assert main(["compare", "--config", str(file), "--set", "workers=0"]) == 0
    assert len(list((tmp_path / "compared" / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "has 'epoch', which this command has not; did you mean epochs?"),
        ("epochs: three", "epochs: must be a whole number"),
        ("epochs: [1, 2]", "epochs must be a single value"),
        ("quiet: 1", "quiet must be true or false, got 1"),
        ("log: paper", "log must be one of csv, tensorboard, wandb"),
        ("- a", "must hold names and values"),
        ("a: [", "is no YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["finetune", "--config", str(tmp_path / "run.yaml"), "m", "p", "--out", "x"])
    assert message in capsys.readouterr().err


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(
    backbone: Path,  # noqa: F811
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = ["finetune", str(backbone), str(photos), "--out", str(tmp_path / "run"), "--method", "tpgm-end", "--dry-run"]
    assert main([*call, "--epochs", "4", "--set", "workers=0", "--set", "head_epochs=2", "--batch-size", "8"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "model: tiny, 16 pixels, ",
        "data: photos, 2 classes; images: train 16, val 4, id_test 4",
        "method: tpgm-end, epochs=4, batch_size=8, head_epochs=2, workers=0",
        "stage head: 2 x 2 steps of ",
        "stage weights: 4 x 2 steps of ",
        "stage radii: 200 steps of ",
        "time: about ",
        "memory: ",
        "nothing was written",
    ):
        assert text in printed
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_model_and_random_numbers_alone() -> None:
    start = small_start()
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    state = torch.get_rng_state()
    assert "method: l2-sp, at its defaults" in rehearse(start, small_data(), "l2-sp")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.model.state_dict().items())
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        rehearse(start, small_data(), "l2-sp", settings={"epoch": 1})


def test_a_line_an_epoch_tells_accuracy_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    result = tpgm.finetune(small_start(), small_data(), "lp-ft", head_epochs=1, **QUICK)
    lines = [line for line in capsys.readouterr().err.splitlines() if ", epoch " in line]
    pattern = r"(\w+), epoch (\d) of (\d): loss (\d+\.\d{3}), ID validation ([\d.]+) %, \d+ s, about \d+ s left"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [m and m.group(1, 2, 3) for m in found] == [("head", "1", "1"), ("weights", "1", "2"), ("weights", "2", "2")]
    assert [m and m[5] for m in found] == [f"{100 * h['val']:.1f}" for h in result.history]
    assert lines[-1].endswith("about 0 s left")
    tpgm.finetune(small_start(), small_data(), "tpgm-end", updates=3, **QUICK)
    assert capsys.readouterr().err.splitlines()[-1] == "radii: 3 steps"
    tpgm.finetune(small_start(), small_data(), "vanilla", progress=False, **QUICK)
    assert capsys.readouterr().err == ""


def test_early_stopping_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    tpgm.finetune(small_start(), small_data(), "vanilla", **QUICK | {"lr": 0.0, "epochs": 9}, patience=2)
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "stopped early after 2 epochs without a better ID validation accuracy"
    assert len(told) == 4


def test_times_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 99, 600, 7200)] == ["0 s", "99 s", "10 min", "2.0 h"]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_the_report_needs_no_other_file_and_holds_all_accuracies(tmp_path: Path) -> None:
    data = small_data()
    given = {**QUICK, "out": tmp_path, "progress": False, "command": "tpgm <script>"}
    result = tpgm.finetune(small_start(), data, "tpgm-end", updates=3, **given)
    text = (tmp_path / "report.html").read_text()
    reader = _Tags()
    reader.feed(text)
    tags = [tag for tag, _ in reader.found]
    assert tags.count("svg") == 2
    assert not {"script", "img", "link"} & set(tags)
    assert not [a for _, of in reader.found for name, a in of.items() if name in ("src", "href") and a and a[0] != "#"]
    assert "<pre>tpgm &lt;script&gt;</pre>" in text
    for name, accuracy in result.accuracies.items():
        low, high = accuracy.interval
        assert f"<td>{name}</td><td>{100 * accuracy.value:.1f}</td><td>{100 * low:.1f} to {100 * high:.1f}</td>" in text
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_the_learning_curve_shows_every_epoch_and_where_a_stage_begins() -> None:
    history = [{"stage": s, "epoch": e, "loss": 1 / (e + s + 1), "val": 0.5} for s in (0, 1) for e in (1, 2)]
    losses, accuracies = learning_curve(history).axes
    curve, start = losses.lines
    assert curve.get_ydata().tolist() == [h["loss"] for h in history]
    assert start.get_xdata()[0] == 2.5
    assert accuracies.lines[0].get_ydata().tolist() == [50.0] * 4


def test_epochs_go_to_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = tpgm.finetune(
        small_start(), small_data(), "lp-ft", out=tmp_path, progress=False, log=["csv", "tensorboard"], head_epochs=1,
        **QUICK,
    )  # fmt: skip
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "stage,epoch,loss,validation"
    assert [line.split(",")[:2] for line in lines[1:]] == [["head", "1"], ["weights", "1"], ["weights", "2"]]
    assert [float(line.split(",")[3]) for line in lines[1:]] == [h["val"] for h in result.history]
    events = EventAccumulator(str(tmp_path / "fine-tuning"))
    events.Reload()
    assert [e.value for e in events.Scalars("validation")] == pytest.approx([h["val"] for h in result.history])
    with pytest.raises(ValueError, match="needs a folder"):
        tpgm.finetune(small_start(), small_data(), "vanilla", log="csv")
    with pytest.raises(ValueError, match="log must be one of 'csv'"):
        tpgm.finetune(small_start(), small_data(), "vanilla", log="cvs", out=tmp_path / "other")
    monkeypatch.setattr("tpgm.training.loop.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        tpgm.finetune(small_start(), small_data(), "vanilla", log="wandb", out=tmp_path / "other")


def test_the_device_is_the_one_asked_for_and_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    result = tpgm.finetune(small_start(), small_data(), "vanilla", device="cpu", progress=False, **QUICK)
    assert next(result.model.parameters()).device.type == "cpu"
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "meta"
    with pytest.raises(ValueError, match="device must be a device that is there"):
        tpgm.finetune(small_start(), small_data(), "vanilla", device="cuda:7", progress=False)


def test_check_names_every_broken_file_and_trains_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["finetune", "no-model-is-needed", str(photos), "--out", str(tmp_path / "run"), "--check"]
    assert main(call) == 0
    assert "24 images, 0 broken\n2 classes; images: train 16, val 4, id_test 4" in capsys.readouterr().out
    for number in (3, 5):
        path = photos / "red" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match=r"2 that cannot be read \("):
        assert main(call) == 1
    printed = capsys.readouterr()
    assert [f"cannot read the image {photos / 'red' / name}" in printed.out for name in ("3.png", "5.png")] == [
        True
    ] * 2
    assert "24 images, 2 broken; --skip-broken leaves them out" in printed.out
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="2 that cannot be read"):
        assert main(["compare", str(photos), "--out", str(tmp_path / "run"), "--check"]) == 1


def test_broken_images_and_extra_classes_are_left_out_of_a_run_and_of_an_evaluation(
    backbone: Path,  # noqa: F811
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dark = paint(tmp_path / "dark", 0.4, count=3)
    (dark / "red").rename(dark / "blue")
    path = photos / "red" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    call = ["finetune", str(backbone), str(photos), "--ood", f"dark={dark}", "--out", str(tmp_path / "run"), *FAST]
    with pytest.warns(UserWarning, match=r"do not have \(blue\), 1 that cannot be read \(3\.png\)"):
        assert main([*call, "--skip-broken", "--ood-extra", "ignore"]) == 0
    assert sum(row(tmp_path / "run")["data"]["images"].values()) == 23 + 3
    assert main(["evaluate", str(tmp_path / "run"), str(dark), "--quiet"]) == 1
    assert "--ood-extra ignore" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="1 classes that the ID training data do not have"):
        assert main(["evaluate", str(tmp_path / "run"), str(dark), "--quiet", "--ood-extra", "ignore"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 3 |")


def test_one_ctrl_c_is_answered_once_though_it_comes_to_the_readers_too(tmp_path: Path) -> None:
    """The terminal sends it to the whole group of processes."""
    script = """
import sys
from tests.small import OneByOne, small_data, small_start
from dataclasses import replace
from tpgm import finetune
data = small_data()
data = replace(data, train=OneByOne(data.train))
finetune(small_start(), data, "vanilla", out=sys.argv[1], epochs=100_000, batch_size=4, workers=2)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert "weights, epoch 1 of" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        told = process.stderr.read()
    assert told.count("SIGINT: stopping after this step") == 1
    assert "KeyboardInterrupt: stopped between two steps; the same call continues the run" in told
