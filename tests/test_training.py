"""The training loop: every method against its plain twin, exact resume, and nothing lost when things go wrong."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from tests.plain_methods import plain
from tests.small import OneByOne, small_data, small_start
from tpgm.data import ImageArray, ImageFiles
from tpgm.files import own_folder
from tpgm.methods import METHODS, Context, resolve
from tpgm.methods.one_ratio import choose
from tpgm.methods.tpgm_each_step import TPGMEachStep
from tpgm.training.batches import content as content_of_data
from tpgm.training.evaluate import count
from tpgm.training.loop import finetune as run_finetune

FAST = {"epochs": 4, "batch_size": 8, "head_epochs": 1, "lr": 3e-2}
ADAM_ONLY = ("spd", "digrap")
OWN: dict[str, dict[str, Any]] = {
    "partial": {"train": ("block.0.weight",)},
    "tpgm": {"every": 2, "updates": 2, "tv": 0.01, "radius_lr": 0.05, "val_batch_size": 8},
    "tpgm-end": {"updates": 20, "radius_lr": 0.05},
    "tpgm-c": {"updates": 20, "norm": "l2"},
    "mars-sp": {"radius": 0.2},
    "mars-penalty": {"strength": 0.02},
    "wise-ft": {"alpha": 0.3},
    "one-ratio": {"points": 21, "rule": "one-se", "batchnorm": "eval", "lr": 0.2},
    "probe-anchored": {"rule": "one-se", "batchnorm": "eval", "lr": 0.4},
    "ftp": {"lr": 3e-3},
    "spd": {"lr": 3e-3},
    "digrap": {"lr": 3e-3},
}


def settings(method: str, **more: Any) -> dict[str, Any]:
    return {**FAST, "optimizer": "adamw" if method in ADAM_ONLY else "sgd", **OWN.get(method, {}), **more}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- the methods


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", list(METHODS))
def test_equal_to_the_plain_loop_over_50_steps(method: str, optimizer: str) -> None:
    if method in ADAM_ONLY and optimizer == "sgd":
        pytest.skip("an Adam method")
    start, data = small_start(), small_data()
    given = settings(method, optimizer=optimizer, **({"lr": 3e-3} if optimizer == "adamw" else {}))
    given |= {"begin": 0.25} if method == "tpgm" else {}
    before = copy.deepcopy(start.model.state_dict())
    result = run_finetune(start, data, method, progress=False, **given)
    expected = plain(start, data, method, resolve(method, given))
    assert (given["epochs"] + given["head_epochs"]) * -(-len(data.train) // given["batch_size"]) >= 50
    for name, p in result.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected.get_parameter(name).detach(), rtol=1e-6, atol=1e-6, msg=name)
    for name, tensor in start.model.state_dict().items():
        assert torch.equal(tensor, before[name])  # the model given is not the one trained
    moved = {name for name, p in result.model.named_parameters() if not torch.equal(p, before[name])}
    assert {"head.weight", "head.bias"} <= moved
    if method in ("linear-probe", "bitfit", "partial"):
        assert moved < set(before)
    if "ratios" in result.row() and method.startswith("tpgm"):
        assert set(result.ratios) == set(start.anchor)
        assert all(0 <= r <= 1 for r in result.ratios.values())


def test_methods_differ_from_vanilla() -> None:
    """Each constraint does something here; otherwise the comparison with the twin would say little."""
    start, data = small_start(), small_data()
    for method in METHODS:
        if method not in ("vanilla", "lp-ft"):
            given = settings(method)
            same = {name: given[name] for name in (*FAST, "optimizer")}
            vanilla = weights(run_finetune(start, data, "vanilla", progress=False, **same).model)
            other = weights(run_finetune(start, data, method, progress=False, **given).model)
            assert max((other[n] - vanilla[n]).abs().max().item() for n in vanilla) > 1e-3, method


def test_training_learns_and_the_result_says_so(tmp_path: Path) -> None:
    start, data = small_start(), small_data()
    result = run_finetune(start, data, "lp-ft", out=tmp_path / "run", progress=False, epochs=6, batch_size=8, lr=1e-2)
    assert set(result.accuracies) == {"val", "id_test", "dark"}
    assert result.accuracies["id_test"].value > 0.9
    assert result.accuracies["id_test"].total == len(data.id_test)
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert row["accuracies"]["id_test"]["correct"] == result.accuracies["id_test"].correct
    assert row["ood_mean"] == pytest.approx(result.ood["dark"].value)
    assert "| id_test |" in result.table()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "result.json",
        "report.html",
        "learning.png",
    }
    with pytest.raises(FileExistsError, match="finished run"):
        run_finetune(start, data, "lp-ft", out=tmp_path / "run")


def test_learned_ratios_are_drawn(tmp_path: Path) -> None:
    run_finetune(small_start(), small_data(), "tpgm", out=tmp_path, progress=False, **settings("tpgm", epochs=1))
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_wise_ft_path_ends_at_both_models() -> None:
    start, data = small_start(), small_data()
    result = run_finetune(start, data, "wise-ft", progress=False, path=3, alpha=1.0, **FAST)
    assert list(result.path) == [0.0, 0.5, 1.0]
    assert result.path[1.0] == result.accuracies


def test_patience_keeps_the_best_weights_and_their_radii(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation accuracies are made up, so that the best epoch is the third and two worse ones follow."""
    seen: list[tuple[dict[str, torch.Tensor], dict[str, float]]] = []
    last: list[Any] = []
    after_step = TPGMEachStep.after_step

    def watched(self: TPGMEachStep, context: Context, step: int) -> None:
        after_step(self, context, step)
        last[:] = [context]

    def told(net: nn.Module, *arguments: Any) -> torch.Tensor:
        if len(seen) == 5:  # the tests at the end
            return count(net, *arguments)
        seen.append((weights(net), last[0].learner.radii))
        right = (3, 4, 9, 8, 7)[len(seen) - 1]
        return torch.tensor([10 - right, right])

    monkeypatch.setattr(TPGMEachStep, "after_step", watched)
    monkeypatch.setattr("tpgm.training.loop.count", told)
    given = settings("tpgm", epochs=30, head_epochs=0, patience=2)
    result = run_finetune(small_start(), small_data(), "tpgm", progress=False, **given)
    assert [entry["val"] for entry in result.history] == [0.3, 0.4, 0.9, 0.8, 0.7]
    for name, p in result.model.named_parameters():
        assert torch.equal(p, seen[2][0][name])
        assert not torch.equal(p, seen[4][0][name])
    assert result.radii == seen[2][1]
    assert result.radii != seen[4][1]


def test_batchnorm_statistics_stay_unless_asked_for() -> None:
    start, data = small_start(), small_data()
    for mode, same in (("eval", True), ("train", False)):
        result = run_finetune(start, data, "vanilla", progress=False, epochs=1, batch_size=8, batchnorm=mode)
        mean = result.model.get_buffer("block.1.running_mean")
        assert torch.equal(mean, start.model.get_buffer("block.1.running_mean")) is same


@pytest.mark.parametrize("method", ["tpgm", "tpgm-end", "wise-ft", "one-ratio"])
def test_statistics_of_projected_models_are_those_that_were_asked_for(method: str) -> None:
    """kept: as training left them; moved: between these and the anchor's; reestimated: of the training images."""
    start, data = small_start(), small_data()
    state = {n: t.clone() for n, t in start.model.state_dict().items() if t.is_floating_point()}
    anchor = {n: t for n, t in state.items() if not n.startswith("head")}
    start = dataclasses.replace(start, anchor=anchor)
    name, found = "block.1.running_mean", {}
    for buffers in ("keep", "move", "reestimate"):
        given = settings(method, batchnorm="train", epochs=3, head_epochs=0, buffers=buffers)
        given |= {"updates": 2, "radius_lr": 1e-3} if method == "tpgm-end" else {}  # too few to open the radii
        stale = method == "tpgm-end" and buffers == "keep"
        with pytest.warns(UserWarning, match="buffers='reestimate'") if stale else contextlib.nullcontext():
            result = run_finetune(start, data, method, progress=False, **given)
        found[buffers] = result.model.get_buffer(name).clone()
        if buffers == "reestimate":
            x = start.preparation(data.train.images, torch.device("cpu"))
            convolved = result.model.block[0](x).mean(dim=(0, 2, 3))
            torch.testing.assert_close(found[buffers], convolved, rtol=0.05, atol=0.02)
    trained = run_finetune(
        start,
        data,
        "vanilla",
        progress=False,
        **settings("vanilla", batchnorm="train", epochs=3, head_epochs=0, lr=given["lr"]),
    ).model.get_buffer(name)
    if method != "tpgm":
        assert torch.equal(found["keep"], trained)
    assert not torch.equal(found["move"], found["keep"])
    assert not torch.equal(found["reestimate"], found["keep"])


def test_bf16_runs() -> None:
    result = run_finetune(small_start(), small_data(), "tpgm", progress=False, precision="bf16", **settings("tpgm"))
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.accuracies["id_test"].value > 0.5


def test_shared_stages_give_what_computing_them_again_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, data = small_start(), small_data()
    steps = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *given: (steps.append(1), step(self, *given))[1])
    for method, trained in (("lp-ft", True), ("wise-ft", False), ("tpgm-end", False), ("tpgm", True)):
        given = settings(method)
        alone = run_finetune(start, data, method, progress=False, **given)
        steps.clear()
        shared = run_finetune(start, data, method, progress=False, store=tmp_path, **given)
        assert bool(steps) is trained, method
        for name, p in shared.model.named_parameters():
            assert torch.equal(p, alone.model.get_parameter(name)), (method, name)
        assert shared.history == alone.history
        assert shared.ratios == alone.ratios
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["head", "weights"]
    steps.clear()
    run_finetune(start, data, "lp-ft", progress=False, store=tmp_path, **settings("lp-ft", seed=1))
    assert steps, "another seed is another run"


# --- resume


@pytest.mark.parametrize(
    ("method", "files"),
    [
        ("tpgm", False),
        ("tpgm", True),
        *((m, False) for m in ("tpgm-end", "ftp", "spd", "digrap", "lp-ft", "l2-sp", "probe-anchored", "auto-rgn")),
    ],
)
def test_killed_anywhere_and_resumed_is_bit_identical(
    method: str, files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at many moments, mid-step ones too; each time a new call goes on from the last checkpoint."""
    start, data = small_start(), small_data()
    if files:
        data = dataclasses.replace(data, train=OneByOne(data.train), val=OneByOne(data.val))
    given = settings(method, patience=3, workers=0)
    expected = run_finetune(start, data, method, progress=False, **given)
    calls = {"n": 0}
    victim = nn.Conv2d.forward

    def dying(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] % 41 == 0:
            raise SystemExit  # as if killed: nothing gets to tidy up
        return victim(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", dying)
    deaths = 0
    while True:
        try:
            result = run_finetune(
                start, data, method, out=tmp_path / "run", progress=False, checkpoint_seconds=0, **given
            )
            break
        except SystemExit:
            deaths += 1
    assert deaths >= 3
    for name, p in result.model.named_parameters():
        assert torch.equal(p, expected.model.get_parameter(name)), name
    assert result.radii == expected.radii
    assert result.ratios == expected.ratios
    assert result.history == expected.history
    assert result.accuracies == expected.accuracies


_SCRIPT = """
import sys, time
from tests.small import OneByOne, small_data, small_start
import tpgm
from tpgm.methods.tpgm_each_step import TPGMEachStep
after = TPGMEachStep.after_step
def slow(self, context, step):
    after(self, context, step)
    print("step", step, flush=True)
    time.sleep(0.05)
TPGMEachStep.after_step = slow
settings = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "checkpoint_seconds": 0}
tpgm.finetune(small_start(), small_data(), "tpgm", out=sys.argv[1], progress=False, **settings)
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_loses_nothing(kill: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5"):
            process.send_signal(kill)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    if kill != signal.SIGKILL:
        assert f"{kill.name}: stopping after this step; the run is saved" in errors
        assert "stopped between two steps" in errors
    assert (out / "checkpoint.pt").exists()
    assert not (out / "result.json").exists()
    fast = {"epochs": 2, "batch_size": 8, "optimizer": "sgd"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = run_finetune(small_start(), small_data(), "tpgm", out=out, progress=False, **fast)
        expected = run_finetune(small_start(), small_data(), "tpgm", progress=False, **fast)
    finally:
        torch.set_num_threads(threads)
    for name, p in resumed.model.named_parameters():
        assert torch.equal(p, expected.model.get_parameter(name))
    assert resumed.radii == expected.radii


def leave_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a run whose result could not be written."""
    with monkeypatch.context() as patch:
        patch.setattr("tpgm.models.save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run_finetune(small_start(), small_data(), "vanilla", out=folder, progress=False, **FAST)


def test_another_runs_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, data = small_start(), small_data()
    leave_a_checkpoint(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"another run .different: settings"):
        run_finetune(start, data, "vanilla", out=tmp_path, progress=False, **{**FAST, "lr": 1e-3})
    with pytest.raises(ValueError, match="different: preparation"):
        run_finetune(start, data, "vanilla", out=tmp_path, size=24, progress=False, **FAST)
    with pytest.raises(ValueError, match="different: method"):
        run_finetune(start, data, "lp-ft", out=tmp_path, progress=False, **FAST)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short, or with one bit changed anywhere."""
    start, data = small_start(), small_data()
    leave_a_checkpoint(tmp_path, monkeypatch)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    damaged = [whole[:1000], whole[:5], b""]
    for position in torch.randint(0, 8 * len(whole), (100,), generator=generator).tolist():
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} .*delete {path} to begin again"):
            run_finetune(start, data, "vanilla", out=tmp_path, progress=False, **FAST)
    path.write_bytes(whole)
    run_finetune(start, data, "vanilla", out=tmp_path, progress=False, **FAST)


# --- things go wrong


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_the_end_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, data = small_start(), small_data()
    expected = run_finetune(start, data, "tpgm", progress=False, **settings("tpgm"))
    with monkeypatch.context() as patch:
        patch.setattr("tpgm.models.save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run_finetune(start, data, "tpgm", out=tmp_path, progress=False, **settings("tpgm"))
    assert (tmp_path / "checkpoint.pt").exists()
    trained = []
    monkeypatch.setattr(TPGMEachStep, "after_step", lambda *_: trained.append(1))
    again = run_finetune(start, data, "tpgm", out=tmp_path, progress=False, **settings("tpgm"))
    assert not trained  # only the tests and the files were repeated
    assert again.radii == expected.radii
    assert again.accuracies == expected.accuracies


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"training loss is nan at step \d+ of stage 'weights': lower lr"):
        run_finetune(
            small_start(), small_data(), "vanilla", out=tmp_path, progress=False, epochs=9, lr=1e18, optimizer="sgd"
        )


def test_a_full_disk_at_a_checkpoint_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: No space left"):
        run_finetune(small_start(), small_data(), "vanilla", out=tmp_path, progress=False, **FAST)
    assert list(tmp_path.iterdir()) == []


_TWO = """
import sys, torch
torch.set_num_threads(1)
from tests.small import small_data, small_start
from tpgm.training.loop import finetune
result = finetune(small_start(), small_data(int(sys.argv[1])), "tpgm", out=sys.argv[2], progress=False, epochs=2,
                  batch_size=8, val_batch_size=15, optimizer="sgd", augment=False)
"""


def test_two_processes(tmp_path: Path) -> None:
    """81 images leave one for the last batch: both processes take it. 80 split evenly: the result is one process's."""
    for n in (80, 81):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
        script = tmp_path / "two.py"
        script.write_text(_TWO)
        out = subprocess.run(
            [*command, sys.executable, str(script), str(n), str(tmp_path / str(n))],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ".", "ACCELERATE_USE_CPU": "true"},
            timeout=200,
        )
        assert out.returncode == 0, out.stderr[-2000:]
    row = json.loads((tmp_path / "81" / "result.json").read_text())
    assert row["accuracies"]["id_test"]["total"] == 60


def test_a_head_of_another_size_is_refused() -> None:
    start = small_start()
    start.model.head = nn.Linear(8, 5)
    with pytest.raises(ValueError, match="5 outputs, the data have 3 classes"):
        run_finetune(start, small_data(), "vanilla")


def test_random_numbers_of_the_caller_stay() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run_finetune(small_start_keeping(torch.get_rng_state()), small_data(), "linear-probe", progress=False, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def small_start_keeping(state: torch.Tensor) -> Any:
    start = small_start()
    torch.set_rng_state(state)
    return start


def test_a_model_without_a_head_is_refused() -> None:
    start = small_start()
    object.__setattr__(start, "head", "classifier")
    with pytest.raises(ValueError, match="no parameter under its head's name, 'classifier'"):
        run_finetune(start, small_data(), "vanilla")


@pytest.mark.parametrize("method", ["ftp", "tpgm", "linear-probe"])
def test_a_head_with_an_anchor_is_constrained_too(method: str) -> None:
    start = small_start()
    state = start.model.state_dict()
    kept = dataclasses.replace(
        start, exclude=(), anchor={n: t.clone() for n, t in state.items() if t.is_floating_point()}
    )
    result = run_finetune(kept, small_data(), method, progress=False, **settings(method, head_epochs=0))
    assert not torch.equal(result.model.get_parameter("head.weight"), start.model.get_parameter("head.weight"))
    assert ("head.weight" in result.ratios) is (method != "linear-probe")


def test_a_probed_head_belongs_to_the_anchor_also_after_a_resume(tmp_path: Path) -> None:
    """Halfway back, the head is halfway between the probed and the fine-tuned one; a run continued from a checkpoint
    that was made after the head's stage knows the probed head."""
    start, data, given = small_start(), small_data(), settings("wise-ft", alpha=0.5, anchor_head=True)
    common = {name: value for name, value in given.items() if name not in ("alpha", "anchor_head")}
    ends = [run_finetune(start, data, method, progress=False, **common) for method in ("linear-probe", "vanilla")]
    store = tmp_path / "store"
    for _ in range(2):  # computed, and taken from the store
        half = run_finetune(start, data, "wise-ft", progress=False, store=store, **given).model
        probed = run_finetune(start, data, "linear-probe", progress=False, **{**common, "epochs": 1, "lr": 0.0}).model
        middle = (probed.get_parameter("head.weight") + ends[1].model.get_parameter("head.weight")) / 2
        torch.testing.assert_close(half.get_parameter("head.weight"), middle)
    with pytest.raises(ValueError, match="head_epochs to 1 or more"):
        resolve("wise-ft", {"anchor_head": True})


def test_partial_pattern_that_matches_nothing() -> None:
    with pytest.raises(ValueError, match="matches no parameter"):
        run_finetune(small_start(), small_data(), "partial", progress=False, train=("layer9.*",))


def test_a_store_that_cannot_be_written_costs_nothing_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, data = small_start(), small_data()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):  # before any training
        run_finetune(start, data, "lp-ft", store=tmp_path / "file", progress=False, **FAST)
    monkeypatch.setattr("tpgm.training.stages.write_state", full_disk)
    with pytest.warns(UserWarning, match="the stage is not kept for other runs: .*No space left"):
        result = run_finetune(start, data, "lp-ft", store=tmp_path, progress=False, **FAST)
    assert result.accuracies["id_test"].total == len(data.id_test)


# --- beside others


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with own_folder(tmp_path), pytest.raises(RuntimeError, match=f"another run is using {tmp_path}"):
        run_finetune(small_start(), small_data(), "vanilla", out=tmp_path, progress=False, **FAST)
    run_finetune(small_start(), small_data(), "vanilla", out=tmp_path, progress=False, **FAST)


def test_a_folder_that_cannot_be_written_is_noticed_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"{tmp_path}/file is a file, not a folder.*choose another folder"):
            run_finetune(small_start(), small_data(), "vanilla", out=out, progress=False, **FAST)


def test_accelerates_state_is_left_as_it_was() -> None:
    """An Accelerator made before a run still prepares and trains after it."""
    accelerator = accelerate.Accelerator(cpu=True)
    run_finetune(small_start(), small_data(), "vanilla", progress=False, precision="bf16", **FAST)
    net = accelerator.prepare(nn.Linear(2, 1))
    accelerator.backward(net(torch.ones(1, 2)).sum())
    assert accelerator.mixed_precision == "no"
    assert net.weight.grad is not None


# --- methods from outside


def test_a_method_of_ones_own_is_trained_by_name_and_as_an_object() -> None:
    names: dict[str, Any] = {}
    page = (Path(__file__).parent.parent / "book" / "add_a_method.md").read_text(encoding="utf8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:1]
    try:
        exec(compile(block, "add_a_method.md", "exec", dont_inherit=True), names)
        start, data = small_start(), small_data()
        result = run_finetune(start, data, "pull", progress=False, **FAST)
        assert result.method == "pull"
        assert result.settings["rate"] == 0.01
        free = run_finetune(start, data, "vanilla", progress=False, **FAST)
        strong = run_finetune(start, data, METHODS["pull"](rate=1.0, **FAST), progress=False)
        far, near, none = (
            sum((r.model.get_parameter(n) - a).square().sum().item() for n, a in start.anchor.items())
            for r in (free, result, strong)
        )
        assert far > near > none == 0
        with pytest.raises(ValueError, match=r"rate must be a finite number between 0 and 1, got 2\.0"):
            run_finetune(start, data, "pull", rate=2.0)
    finally:
        METHODS.pop("pull", None)


def test_the_store_tells_other_data_and_other_weights_of_the_same_names(tmp_path: Path) -> None:
    """A stage of another split, or from another head, was taken: its training images may be test images here."""
    data, start = small_data(20), small_start()
    other_data = dataclasses.replace(data, train=ImageArray(255 - data.train.images, data.train.labels))
    other_start = dataclasses.replace(start, model=copy.deepcopy(start.model))
    nn.init.constant_(other_start.model.get_parameter("head.bias"), 3.0)
    settings: dict[str, Any] = {"epochs": 1, "head_epochs": 1, "batch_size": 10, "progress": False, "workers": 0}
    run_finetune(start, data, "vanilla", store=tmp_path, **settings)
    for model, images in ((other_start, data), (start, other_data)):
        kept = run_finetune(model, images, "vanilla", store=tmp_path, **settings).model
        alone = run_finetune(model, images, "vanilla", **settings).model
        assert all(torch.equal(p, q) for p, q in zip(kept.parameters(), alone.parameters(), strict=True))


def test_other_files_of_the_same_labels_are_other_data(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "a/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    first, second, third = (ImageFiles([tmp_path / n], [0], list) for n in ("a/1.png", "b/1.png", "a/2.png"))
    before = content_of_data(first)
    assert len({before, content_of_data(second), content_of_data(third)}) == 3
    (tmp_path / "a/1.png").write_bytes(b"longer than before")
    assert content_of_data(first) != before
    as_text = ImageFiles([str(path) for path in first.paths], [0], list)
    assert content_of_data(as_text) == content_of_data(first)
    someone_elses = OneByOne(small_data(9).train)
    someone_elses.paths = ["no file"]
    assert content_of_data(someone_elses) == content_of_data(OneByOne(small_data(9).train))


def test_an_anchored_head_leaves_other_exclusions_as_they_are() -> None:
    start = small_start()
    anchor = {name: t for name, t in start.anchor.items() if not name.startswith("conv")}
    start = dataclasses.replace(start, anchor=anchor, exclude=("head.*", "conv.*"))
    settings = {"epochs": 1, "head_epochs": 1, "anchor_head": True, "progress": False, "workers": 0}
    result = run_finetune(start, small_data(20), "tpgm-end", updates=1, **settings)
    assert {"head.weight", "head.bias"} < result.ratios.keys()
    assert "conv.weight" not in result.ratios


class Merging(nn.Linear):
    """Has a train method that does more than set a flag, as LoRA layers have."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)


def test_testing_puts_modes_back_by_the_modules_own_train() -> None:
    """After an epoch's validation LoRA layers stayed merged, and their factors had no gradients any more."""
    net = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2))
    net[1].eval()
    count(net, [(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))], 2, small_data(20).val, torch.device("cpu"))
    assert (net[0].merged, net[0].training, net[1].training) == (False, True, False)
    start = small_start()
    start.model.train()
    start.model.get_submodule("block.1").eval()
    start.predict(torch.zeros(3, 12, 12, dtype=torch.uint8))
    assert start.model.training
    assert not start.model.get_submodule("block.1").training


def test_one_ratio_of_one_image_or_of_losses_without_end() -> None:
    assert choose(torch.tensor([[2.0], [1.0], [3.0]]), "one-se") == 1
    with pytest.raises(FloatingPointError, match="not finite at any ratio"):
        choose(torch.full((3, 2), torch.inf), "best")
