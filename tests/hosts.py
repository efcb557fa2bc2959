"""Training loops of others on two processes, started by test_integrations_processes.py."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import tpgm

CHECKS: dict[str, Callable[[int, Path], None]] = {}


def check(library: str) -> Callable[[Callable[[int, Path], None]], Callable[[int, Path], None]]:
    """A check that is made if the library is there."""

    def keep(function: Callable[[int, Path], None]) -> Callable[[int, Path], None]:
        if importlib.util.find_spec(library) is not None:
            CHECKS[library] = function
        return function

    return keep


def same_everywhere(value: Any) -> None:
    found: list[Any] = [None, None]
    dist.all_gather_object(found, value)
    assert found[0] == found[1]


def resumed_exactly(whole: nn.Module, first: tpgm.TPGM, again: nn.Module, second: tpgm.TPGM) -> None:
    assert isinstance(first.model, DistributedDataParallel)
    theirs = dict(whole.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in again.named_parameters())
    assert second.radii == first.radii
    assert second.ratios() == first.ratios()
    assert min(first.ratios().values()) < 1
    same_everywhere((first.radii, first.ratios(), [p.tolist() for p in whole.parameters()]))


@check("transformers")
def transformers(rank: int, folder: Path) -> None:
    from tests.test_integrations_transformers import constrained

    # leave DDP's search for unused parameters off: it warns that it found none
    changes = {"per_device_train_batch_size": 4, "ddp_find_unused_parameters": False, "save_on_each_node": False}
    whole, first = constrained(folder / "trainer", changes=changes, every=2)
    seen: list[int] = []
    batches = first._data
    whole.train()
    again, second = constrained(folder / "again", changes=changes, every=2)
    second._data = type("Recording", (), {
        "__len__": lambda self: len(batches), "__getitem__": lambda self, i: (seen.append(int(i)), batches[i])[1],
    })()  # fmt: skip
    again.train(resume_from_checkpoint=str(folder / "trainer" / "checkpoint-3"))
    resumed_exactly(whole.model, first.constraint, again.model, second.constraint)
    both: list[Any] = [None, None]
    dist.all_gather_object(both, seen)
    assert both[0] != both[1], "each process has its own validation batches"


@check("lightning")
def lightning(rank: int, folder: Path) -> None:
    from tests.test_integrations_lightning import run

    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    settings = {"devices": 2, "strategy": "ddp", "settings": {"every": 2}, "accumulate_grad_batches": 1}
    _, whole, first = run(folder / "lightning", **settings)
    trainer, again, second = run(folder / "again", folder / "lightning" / "step=4.ckpt", **settings)
    assert trainer.global_step == 8
    assert trainer.world_size == 2
    resumed_exactly(whole, first.constraint, again, second.constraint)


@check("accelerate")
def accelerate(rank: int, folder: Path) -> None:
    """The loop of the page "Use it on your model"."""
    from accelerate import Accelerator

    def run(steps: int, resume: bool, save_at: int | None = None) -> tuple[nn.Module, tpgm.TPGM]:
        torch.manual_seed(0)
        accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(64, 6, generator=generator)
        data = TensorDataset(x, x[:, :3].argmax(dim=1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        prepared, stepper, loader = accelerator.prepare(model, optimizer, DataLoader(data, 8))
        constraint = tpgm.TPGM(prepared, exclude=["2.*"], lr=0.02)
        accelerator.register_for_checkpointing(constraint)
        assert accelerator.num_processes == 2
        batches = itertools.cycle(list(loader))
        if resume:
            accelerator.load_state(str(folder / "accelerated"))
        val = x[rank::2]
        for step in range(save_at if resume else 0, steps):
            if step == save_at and not resume:
                accelerator.save_state(str(folder / "accelerated"))
            for inputs, labels in itertools.islice(batches, 2):
                with accelerator.accumulate(prepared):
                    accelerator.backward(cross_entropy(prepared(inputs), labels))
                    stepper.step()
                    stepper.zero_grad()
            assert accelerator.sync_gradients
            constraint.update(lambda: cross_entropy(prepared(val), val[:, :3].argmax(dim=1)))
            constraint.project_()
        return model, constraint

    whole, first = run(4, resume=False, save_at=2)
    again, second = run(4, resume=True, save_at=2)
    resumed_exactly(whole, first, again, second)
