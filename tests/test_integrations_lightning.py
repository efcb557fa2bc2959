"""The callback in the real Trainer of Lightning."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs the extra lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests.callbacks import calls_of, inside
from tests.conftest import TinyTransformer
from tpgm.integrations.lightning import TPGMCallback

pytestmark = [
    # of Lightning itself, in versions of 2026, about torch's newer names
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # advice that a tiny run on a CPU does not need
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning"),
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log.. but:UserWarning"),
]


def data(n: int, seed: int) -> TensorDataset:
    tokens = torch.randint(0, 11, (n, 5), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(tokens, (tokens == 3).sum(dim=1).clamp(max=2))


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = TinyTransformer()
        self.seen: set[tuple[bool, torch.dtype]] = set()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.seen.add((self.training, logits.dtype))
        return logits

    def training_step(self, batch: Any, index: int) -> Tensor:
        # Lightning's checkpoints keep no generator's state; so dropout after a resume is what it would have been
        torch.manual_seed(1000 * self.current_epoch + index)
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def loss(module: pl.LightningModule, batch: Any) -> Tensor:
    return cross_entropy(module(batch[0]), batch[1])


def run(folder: Path, resume: Path | None = None, epochs: int = 2, **changes: Any) -> tuple[pl.Trainer, Module, Any]:
    pl.seed_everything(0, verbose=False)
    settings = {"exclude": ["net.head.*"], "lr": 0.02, "batch_size": 8, **changes.pop("settings", {})}
    callback = TPGMCallback(data(24, 2), loss, **settings)
    module = Module()
    trainer = pl.Trainer(
        **{
            "default_root_dir": folder, "max_epochs": epochs, "accelerator": "cpu", "devices": 1,
            "accumulate_grad_batches": 2, "logger": CSVLogger(folder, flush_logs_every_n_steps=1),
            "log_every_n_steps": 2, "enable_progress_bar": False, "enable_model_summary": False,
            "callbacks": [callback, ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)],
            **changes,
        }
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(64, 1), batch_size=8), ckpt_path=resume)
    return trainer, module, callback


def test_projects_after_each_optimizer_step_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(monkeypatch)
    trainer, module, callback = run(tmp_path, settings={"every": 2})
    # 8 optimizer steps of 2 batches each
    assert calls == ["update", *["project_"] * 2] * 3 + ["update", "project_"]
    assert trainer.global_step == 8
    assert inside(callback.constraint, module)
    assert "net.head.weight" not in callback.constraint.radii
    with open(Path(trainer.logger.log_dir) / "metrics.csv", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["tpgm/ratio"]] == [2, 4, 6, 8]
    assert 0 < float(rows[-1]["tpgm/ratio/net.blocks.1"]) <= 1
    assert module.training


def test_resuming_from_lightnings_own_checkpoint_is_exact(tmp_path: Path) -> None:
    _, whole, first = run(tmp_path / "a", settings={"every": 2})
    trainer, again, second = run(tmp_path / "b", tmp_path / "a" / "step=4.ckpt", settings={"every": 2})
    assert trainer.global_step == 8
    theirs = dict(whole.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in again.named_parameters())
    assert second.constraint.radii == first.constraint.radii
    assert second.constraint.ratios() == first.constraint.ratios()
    assert (second.driver.steps, second.driver.updated) == (first.driver.steps, first.driver.updated) == (8, 4)


def test_bfloat16(tmp_path: Path) -> None:
    _, module, callback = run(tmp_path, epochs=1, precision="bf16-mixed")
    assert module.seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert inside(callback.constraint, module)


def test_fitting_again_goes_on(tmp_path: Path) -> None:
    trainer, module, callback = run(tmp_path, epochs=1)
    constraint = callback.constraint
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, DataLoader(data(64, 1), batch_size=8))
    assert callback.constraint is constraint
    assert callback.driver.steps == trainer.global_step == 8


class Normalised(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Embedding(11, 6), torch.nn.Flatten(), torch.nn.BatchNorm1d(30), torch.nn.Linear(30, 3)
        )


@pytest.mark.parametrize("way", ["move", "reestimate"])
def test_running_statistics(tmp_path: Path, way: str) -> None:
    pl.seed_everything(0, verbose=False)
    callback = TPGMCallback(data(24, 2), loss, exclude=["net.3.*"], lr=0.02, batch_size=8, buffers=way)
    module = Normalised()
    held: list[Tensor] = []
    module.net[2].register_forward_pre_hook(
        lambda m, given: held.append(given[0].detach()) if m.momentum is None else None
    )
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(data(64, 1), batch_size=8))
    assert callback.constraint.buffers == way
    assert len(held) == (8 if way == "reestimate" else 0)
    if held:
        torch.testing.assert_close(module.net[2].running_mean, torch.cat(held).mean(dim=0))
    assert set(callback._anchor) == {n for n, _ in module.named_parameters() if "net.3" not in n} | {
        "net.2.running_mean", "net.2.running_var",
    }  # fmt: skip


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must have a length"):
        TPGMCallback(iter([]), loss)
    with pytest.raises(ValueError, match="updates must be a whole number"):
        TPGMCallback(data(4, 0), loss, updates=0)
    plain = pl.Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    plain.fit(Module(), DataLoader(data(16, 1), batch_size=8))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="holds no radii"):
        run(tmp_path, tmp_path / "plain.ckpt")
