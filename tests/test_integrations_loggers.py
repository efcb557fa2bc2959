"""That ratios reach TensorBoard and W&B themselves, through either trainer: what stands in their files is read back."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WANDB_QUIET = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DISABLE_CODE": "true"}


def tensorboard_series(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar of the event files below a folder: name -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for path in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({e.step: e.value for e in events.Scalars(name)})
    return found


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a run's file: a LevelDB log after 7 bytes of W&B's own. In blocks of 32 KiB stand pieces, each
    after its checksum (4 bytes), length (2) and kind (1: whole; 2, 3, 4: first, middle, last piece of a record)."""
    data, at, block, kept = path.read_bytes(), 7, 2**15, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little room for a header: the rest of the block is empty
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        piece, at = data[at + 7 : at + 7 + length], at + 7 + length
        kept = piece if kind in (1, 2) else kept + piece
        if kind in (1, 4):
            yield kept


def wandb_series(folder: Path) -> dict[str, list[float]]:
    """The history of the one offline run below a folder, from the file that `wandb sync` would send."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.finish()
    wandb.teardown()  # the process that writes the file has ended
    (path,) = folder.rglob("run-*.wandb")
    found: dict[str, list[float]] = {}
    for data in wandb_records(path):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            found.setdefault(item.key or ".".join(item.nested_key), []).append(json.loads(item.value_json))
    return found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    for name, value in {**WANDB_QUIET, "WANDB_DIR": str(tmp_path), "WANDB_PROJECT": "tpgm"}.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    wandb.teardown()


def of_transformers(folder: Path, report_to: str) -> Any:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    from tests.test_integrations_transformers import constrained

    trainer, callback = constrained(folder, changes={"report_to": [report_to]}, every=2)
    trainer.train()
    return callback.constraint


def of_lightning(folder: Path, logger: Any) -> Any:
    from tests.test_integrations_lightning import run

    return run(folder, epochs=1, logger=logger)[2].constraint


def test_tensorboard_from_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    constraint = of_transformers(tmp_path, "tensorboard")
    series = tensorboard_series(tmp_path)
    ratio = series["train/tpgm/ratio"]
    assert sorted(ratio) == sorted(series["train/loss"]) == [2, 4, 6]
    assert ratio[6] == pytest.approx(mean(constraint.ratios()), abs=1e-6)
    assert "train/tpgm/ratio/bert.encoder.layer.1" in series


def test_wandb_from_transformers(offline: Path) -> None:
    constraint = of_transformers(offline, "wandb")
    series = wandb_series(offline)
    assert len(series["train/tpgm/ratio"]) == len(series["train/loss"]) == 3
    assert series["train/tpgm/ratio"][-1] == pytest.approx(mean(constraint.ratios()), abs=1e-6)
    assert "train/tpgm/ratio/bert.encoder.layer.1" in series


def lightning(name: str) -> Any:
    pytest.importorskip("lightning", reason="needs the extra lightning")
    from lightning.pytorch import loggers

    return getattr(loggers, name)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers:UserWarning")
def test_tensorboard_from_lightning(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    constraint = of_lightning(tmp_path / "run", lightning("TensorBoardLogger")(tmp_path / "board"))
    ratio = tensorboard_series(tmp_path)["tpgm/ratio"]
    assert sorted(ratio) == [2, 4]
    assert ratio[4] == pytest.approx(mean(constraint.ratios()), abs=1e-6)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers:UserWarning")
def test_wandb_from_lightning(offline: Path) -> None:
    logger = lightning("WandbLogger")(save_dir=offline, offline=True, project="tpgm")
    constraint = of_lightning(offline / "run", logger)
    ratio = wandb_series(offline)["tpgm/ratio"]
    assert len(ratio) == 2
    assert ratio[-1] == pytest.approx(mean(constraint.ratios()), abs=1e-6)


def mean(ratios: dict[str, float]) -> float:
    return math.fsum(ratios.values()) / len(ratios)
