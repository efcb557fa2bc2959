"""The callback in the real Trainer of transformers, on a small BERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="needs the extra transformers")

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.callbacks import calls_of, inside
from tpgm.integrations.transformers import TPGMCallback


class Items(torch.utils.data.Dataset):
    """Token ids whose label is whether token 3 is among them."""

    def __init__(self, n: int, seed: int) -> None:
        self.ids = torch.randint(1, 12, (n, 6), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": (self.ids[i] == 3).any().long()}


class Recorder(TrainerCallback):
    """Stands where TensorBoard and W&B stand: among the callbacks that the Trainer reports to."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(logs)


def trainer_in(folder: Path, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    settings = {
        "output_dir": str(folder), "max_steps": 6, "save_steps": 3, "logging_steps": 2, "learning_rate": 5e-3,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = TrainingArguments(**{**settings, **changes})
    return Trainer(
        model=BertForSequenceClassification(config),
        args=arguments,
        train_dataset=Items(64, 1),
        callbacks=[Recorder()],
    )


def constrained(folder: Path, validation: Any = None, changes: Any = None, **settings: Any) -> tuple[Trainer, Any]:
    trainer = trainer_in(folder, **(changes or {}))
    own = {"exclude": ["classifier.*"], "lr": 0.02, "batch_size": 8, **settings}
    callback = TPGMCallback(trainer, Items(24, 2) if validation is None else validation, **own)
    trainer.add_callback(callback)
    return trainer, callback


def recorded(trainer: Trainer) -> list[dict[str, float]]:
    return next(cb for cb in trainer.callback_handler.callbacks if isinstance(cb, Recorder)).logs


def test_projects_after_each_optimizer_step_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, callback = constrained(tmp_path, every=2, updates=3)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    calls = calls_of(monkeypatch)
    trainer.train()
    three = ["update"] * 3
    # 6 optimizer steps of 2 micro-steps each; nothing to project with before the first update
    assert calls == [*three, "project_", "project_", *three, "project_", "project_", *three, "project_"]
    assert inside(callback.constraint, trainer.model)
    moved = dict(trainer.model.named_parameters())
    for name, tensor in callback.constraint.anchor.items():
        assert torch.equal(tensor, start[name])
    assert "classifier.weight" not in callback.constraint.radii
    assert not torch.equal(moved["classifier.weight"], start["classifier.weight"])
    ratios = [logs for logs in recorded(trainer) if "tpgm/ratio" in logs]
    assert len(ratios) == 3, "as often as the loss"
    assert {"tpgm/ratio/bert", "tpgm/ratio/bert.encoder.layer.1"} <= set(ratios[0])
    assert ratios[-1]["tpgm/ratio"] < 1
    assert any(entry.get("tpgm/ratio") and entry["step"] == 6 for entry in trainer.state.log_history)


def test_resuming_from_the_trainers_own_checkpoint_is_exact(tmp_path: Path) -> None:
    whole, first = constrained(tmp_path / "a", every=2)
    whole.train()
    again, second = constrained(tmp_path / "b", every=2)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert again.state.global_step == 6
    ours, theirs = (dict(t.model.named_parameters()) for t in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.constraint.radii == first.constraint.radii
    assert second.constraint.ratios() == first.constraint.ratios()
    assert (second.driver.steps, second.driver.updated) == (first.driver.steps, first.driver.updated) == (6, 3)


def test_bfloat16(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    trainer, callback = constrained(tmp_path, changes={"bf16": True, "max_steps": 2})
    layer = trainer.model.bert.encoder.layer[0].output.dense
    layer.register_forward_hook(lambda module, given, out: seen.append((module.training, out.dtype)))
    trainer.train()
    assert (False, torch.bfloat16) in seen, "the validation loss is under the Trainer's autocast"
    assert inside(callback.constraint, trainer.model)


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    val, calls = Items(16, 3), []

    def loss() -> Tensor:
        calls.append(1)
        labels = torch.stack([val[i]["labels"] for i in range(16)])
        return trainer.model(input_ids=val.ids, labels=labels).loss

    trainer, callback = constrained(tmp_path, loss, {"max_steps": 2}, log="nothing")
    trainer.train()
    assert len(calls) == 2
    assert inside(callback.constraint, trainer.model)
    assert not any("tpgm/ratio" in logs for logs in recorded(trainer))


class Normalised(torch.nn.Module):
    """A model with BatchNorm, called as the Trainer calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(12, 8), torch.nn.BatchNorm1d(48)
        self.classifier = torch.nn.Linear(48, 2)
        self.held: list[Tensor] = []

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(input_ids).flatten(1)
        if self.norm.momentum is None:  # statistics are being estimated
            self.held.append(hidden.detach())
        logits = self.classifier(self.norm(hidden))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("way", ["move", "reestimate"])
def test_running_statistics(tmp_path: Path, way: str) -> None:
    arguments = trainer_in(tmp_path, max_steps=4, save_strategy="no").args
    model = Normalised()
    trainer = Trainer(model=model, args=arguments, train_dataset=Items(64, 1))
    settings = {"exclude": ["classifier.*"], "lr": 0.02, "batch_size": 8, "buffers": way}
    callback = TPGMCallback(trainer, Items(24, 2), **settings)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.constraint.buffers == way
    assert len(model.held) == (8 if way == "reestimate" else 0)
    if model.held:
        torch.testing.assert_close(model.norm.running_mean, torch.cat(model.held).mean(dim=0))
    weights = {name for name, _ in model.named_parameters() if "classifier" not in name}
    assert set(callback._anchor) == weights | {"norm.running_mean", "norm.running_var"}
    trainer.train()  # once more, with the same anchor


def test_wrong_use_is_named(tmp_path: Path) -> None:
    for validation, settings, error, message in (
        (iter([]), {}, TypeError, "must have a length"),
        ([], {}, ValueError, "are empty"),
        (None, {"every": 0}, ValueError, "every must be a whole number"),
        (None, {"log": "all"}, ValueError, "log must be one of 'blocks'"),
    ):
        with pytest.raises(error, match=message):
            constrained(tmp_path, validation, **settings)
    with pytest.raises(ValueError, match="the radii resume by themselves"):
        constrained(tmp_path, changes={"restore_callback_states_from_checkpoint": True})
    plain = trainer_in(tmp_path, max_steps=3)
    plain.train()
    trainer, _ = constrained(tmp_path)
    with pytest.raises(ValueError, match="holds no radii"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
