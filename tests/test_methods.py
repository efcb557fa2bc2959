"""Settings are checked before any work starts; accuracies, batches and files do what they say."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from tpgm.data.preparation import Preparation
from tpgm.files import write_aside
from tpgm.methods import METHODS, options, parse, resolve
from tpgm.methods.auto_rgn import scale
from tpgm.methods.lines import by_depth
from tpgm.methods.one_ratio import choose
from tpgm.training.batches import derive, index_batches
from tpgm.training.evaluate import Accuracy, answers, mean_accuracy


@pytest.mark.parametrize("method", [name for name in METHODS if name != "partial"])
def test_every_method_has_valid_defaults_and_reads_them_back_from_text(method: str) -> None:
    settings = resolve(method, {})
    assert settings["epochs"] == 5
    for name, value in settings.items():
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        assert parse(method, name, text) == value


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("tpmg", {}, r"unknown method 'tpmg'; did you mean 'tpgm'\?"),
        ("vanilla", {"radius_lr": 0.1}, "vanilla has no setting 'radius_lr'"),
        ("tpgm", {"radius_rl": 0.1}, r"did you mean 'radius_lr'\?"),
        ("tpgm", {"lr": -1.0}, "lr must be a finite number at least 0"),
        ("tpgm", {"lr": float("nan")}, "lr must be a finite number at least 0"),
        ("tpgm", {"epochs": 0}, "epochs must be a whole number at least 1"),
        ("tpgm", {"epochs": 1.5}, "epochs must be a whole number"),
        ("tpgm", {"augment": 1}, "augment must be True or False"),
        ("tpgm", {"norm": "l1"}, "norm must be one of 'l2', 'mars'"),
        ("ftp", {"kappa": 1.5}, "kappa must be a finite number between 0 and 1"),
        ("wise-ft", {"alpha": float("nan")}, "alpha must be"),
        ("vanilla", {"precision": "fp16"}, "precision must be one of 'no', 'bf16'"),
        ("tpgm", {"begin": 1.0}, "begin must be a finite number at least 0 and below 1"),
        ("tpgm", {"begin": 0.5, "patience": 2}, "do not go together"),
        ("partial", {}, "partial needs train"),
        ("spd", {"optimizer": "sgd"}, "optimizer must be one of 'adamw', got 'sgd'"),
    ],
)
def test_bad_settings(method: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(method, given)


def test_one_standard_error_goes_as_near_to_the_anchor_as_validation_data_allow() -> None:
    """Paired differences to the best, the last row: 1 ± .2, .1 ± .2, -.0 ± 0 in mean and standard error."""
    best = torch.linspace(0, 3, 100, dtype=torch.float64)
    noise = torch.tensor([2.0, -2.0]).repeat(50)  # mean 0, standard error 2 / √99
    losses = torch.stack([best + 1 + noise, best + 0.19 + noise, best + 0.21 + noise, best])
    assert choose(losses, "best") == 3
    assert choose(losses, "one-se") == 1
    losses[1] += 0.02  # 0.21 is beyond one standard error, 0.201
    assert choose(losses, "one-se") == 3
    losses[3] = torch.nan
    assert choose(losses, "best") in (1, 2)
    with pytest.raises(FloatingPointError, match="not finite at any ratio"):
        choose(losses * torch.nan, "best")


def test_lines_rise_with_depth() -> None:
    names = ["stem.weight", "stem.bias", "layer1.0.conv.weight", "layer1.1.conv.weight", "layer2.0.bn.bias"]
    ratios = by_depth(names, 0.25, 1.0)
    assert ratios == dict(zip(names, (0.25, 0.25, 0.5, 0.75, 1.0), strict=True))
    assert by_depth(["only.weight"], 0.25, 1.0) == {"only.weight": 0.25}


def test_relative_gradient_norms_scale_learning_rates() -> None:
    tensors = [nn.Parameter(torch.full((4,), value)) for value in (1.0, 2.0, 0.0, 1.0)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.1} for p in tensors])
    for p, slope in zip(tensors, (1.0, 1.0, 5.0), strict=False):
        p.grad = torch.full((4,), slope)
    scale(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05, 0.1, 0.1])


def test_text_of_the_wrong_type() -> None:
    with pytest.raises(ValueError, match="epochs must be a whole number, got 'many'"):
        parse("tpgm", "epochs", "many")
    with pytest.raises(ValueError, match="augment must be true or false"):
        parse("tpgm", "augment", "yes")
    assert parse("partial", "train", "layer4.*,*.bias") == ("layer4.*", "*.bias")


def test_a_methods_own_defaults_come_before_the_common_ones() -> None:
    assert options("lp-ft")["head_epochs"][0] == 2
    assert options("vanilla")["head_epochs"][0] == 0


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (3, 7), (7, 7), (480, 500)])
def test_wilson_interval_is_that_of_scipy(correct: int, total: int) -> None:
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert Accuracy(correct, total).interval == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_accuracy_over_a_class_subset() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([2, 2, 2])
    assert (answers(logits) == labels).sum() == 1
    assert (answers(logits, torch.tensor([1, 2])) == labels).sum() == 2
    assert mean_accuracy({"a": Accuracy(1, 2), "b": Accuracy(30, 30)}) == 0.75


def test_batches_visit_everything_once_an_epoch_and_start_anywhere() -> None:
    first = list(itertools.islice(index_batches(10, 4, seed=3), 9))
    for epoch in range(3):
        assert sorted(itertools.chain.from_iterable(first[3 * epoch : 3 * epoch + 3])) == list(range(10))
    assert first[0] != first[3]
    for start in range(9):
        assert list(itertools.islice(index_batches(10, 4, seed=3, start=start), 9 - start)) == first[start:]
    assert derive(3, "a", 1) != derive(3, "a1")


def test_preparation_normalises_resizes_and_augments_repeatably() -> None:
    prepare = Preparation(4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    device = torch.device("cpu")
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(prepare(white, device), torch.ones(2, 3, 4, 4))
    assert prepare(torch.zeros(2, 3, 9, 7, dtype=torch.uint8), device).shape == (2, 3, 4, 4)
    images = torch.randint(0, 255, (64, 3, 16, 16), dtype=torch.uint8)
    plain, *augmented = (
        Preparation(16, (0, 0, 0), (1, 1, 1))(images, device, g)
        for g in (None, *(torch.Generator().manual_seed(seed) for seed in (1, 1, 2)))
    )
    assert torch.equal(augmented[0], augmented[1])
    assert not torch.equal(augmented[0], augmented[2])
    assert not torch.equal(augmented[0], plain)
    with pytest.raises(TypeError, match="uint8"):
        prepare(torch.zeros(2, 3, 4, 4), device)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail() -> None:
        with write_aside(path) as aside:
            aside.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*result\.json: No space left"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with write_aside(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """In a folder that others can write to, the name of the file aside is known."""
    precious = tmp_path / "precious"
    precious.write_text("keep")
    for path in (tmp_path / "result.json", tmp_path / "model.safetensors"):
        (tmp_path / f".{path.name}.part").symlink_to(precious)
        with write_aside(path) as aside:
            aside.write_text("new")
        assert path.read_text() == "new"
        assert not path.is_symlink()
    assert precious.read_text() == "keep"
