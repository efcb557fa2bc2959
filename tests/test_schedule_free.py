"""Optimizers that train other weights than they evaluate: what projections do to them, and where they are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.small import small_data, small_start
from tpgm import TPGM
from tpgm.methods import METHODS
from tpgm.methods.base import Context, refuse_schedule_free
from tpgm.methods.vanilla import Vanilla
from tpgm.projection import row_norms
from tpgm.training.loop import finetune


class ScheduleFreeSGD(torch.optim.Optimizer):
    """Schedule-free SGD (arXiv 2405.15682): z takes the steps, x averages z; parameters hold y = (1 − β) z + β x, in
    eval mode x. The package schedulefree has the same surface."""

    def __init__(self, params: Any, lr: float, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "train_mode": True, "k": 0})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["z"] = p.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                z, beta = self.state[p]["z"], group["beta"]
                x = (p - (1 - beta) * z) / beta
                z -= group["lr"] * p.grad
                x += (z - x) / group["k"]
                p.copy_((1 - beta) * z + beta * x)

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        for group in self.param_groups:
            beta = group["beta"]
            for p in group["params"] if group["train_mode"] != train else []:
                z = self.state[p]["z"]
                p.copy_((1 - beta) * z + beta * p if train else (p - (1 - beta) * z) / beta)
            group["train_mode"] = train

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)


@pytest.mark.parametrize("every_step", [True, False])
def test_only_a_projection_at_the_end_holds_for_the_weights_that_are_evaluated(every_step: bool) -> None:
    """The claim of the page."""
    model = nn.Linear(4, 3, bias=False)
    x, val = torch.randn(32, 4), torch.randn(32, 4)
    target = torch.randn(3, 4)
    optimizer, constraint = ScheduleFreeSGD(model.parameters(), lr=0.3), TPGM(model, norm="l2", lr=1e-3)

    def loss(inputs: Tensor) -> Tensor:
        return (model(inputs) - inputs @ target.T).square().mean()

    for _ in range(60):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        if every_step:
            constraint.update(lambda: loss(val))
            constraint.project_()
    optimizer.eval()
    if not every_step:
        for _ in range(5):
            constraint.update(lambda: loss(val))
        constraint.project_()
    distance = float(row_norms(model.weight.detach() - constraint.anchor["weight"], "l2"))
    radius = constraint.radii["weight"]
    if every_step:  # the page's numbers
        assert (distance, radius) == (pytest.approx(4.2, abs=0.05), pytest.approx(0.46, abs=0.005))
    else:
        assert distance <= radius * (1 + 1e-6)


def test_it_is_told_apart_inside_the_wrappers_of_hosts_too() -> None:
    model = nn.Linear(2, 2)
    free = ScheduleFreeSGD(model.parameters(), lr=0.1)
    wrapped = type("Wrapper", (), {"optimizer": free})()
    for optimizer in (free, wrapped):
        with pytest.raises(
            ValueError, match=r"ScheduleFreeSGD trains other weights .* optimizer\.eval\(\), then update"
        ):
            refuse_schedule_free(optimizer)
    for fine in (torch.optim.SGD(model.parameters(), lr=0.1), None):
        refuse_schedule_free(fine)


def test_a_method_with_such_an_optimizer_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Free(Vanilla):
        def make_optimizer(self, context: Context, parameters: Any, lr: float) -> Any:
            return ScheduleFreeSGD(list(parameters.values()), lr)

    monkeypatch.setitem(METHODS, "free", Free)
    with pytest.raises(ValueError, match="ScheduleFreeSGD trains other weights"):
        finetune(small_start(), small_data(), "free", progress=False, epochs=1)


def test_the_callbacks_refuse_it(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from tpgm.integrations.lightning import TPGMCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.net(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return ScheduleFreeSGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(torch.ones(8, 2))
    callback = TPGMCallback(data, lambda module, batch: module.net(batch[0]).sum())
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(callbacks=[callback], max_epochs=1, default_root_dir=tmp_path, accelerator="cpu", **off)
    with pytest.warns(), pytest.raises(ValueError, match="ScheduleFreeSGD trains other weights"):
        trainer.fit(Module(), torch.utils.data.DataLoader(data, 4))


def test_the_callback_of_transformers_refuses_it(tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    from tests.test_integrations_transformers import constrained

    trainer, _ = constrained(tmp_path)
    trainer.optimizer = ScheduleFreeSGD(trainer.model.parameters(), lr=0.1)
    trainer.create_scheduler(6, trainer.optimizer)
    with pytest.raises(ValueError, match="ScheduleFreeSGD trains other weights"):
        trainer.train()
