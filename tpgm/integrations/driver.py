"""What every integration does after an optimizer step, and what it saves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm.anchor import Anchor
from tpgm.buffers import reestimate
from tpgm.constraint import TPGM
from tpgm.names import aliases, blocks, canonical
from tpgm.training.batches import derive, index_batches

BATCHES = 100  # of training data, from which running statistics are estimated when training ends
Log = Literal["blocks", "tensors", "nothing"]


class Batches:
    """Validation batches as a pure function of their number, so that a resumed run sees the same ones. A last batch of
    one item, of which BatchNorm could take no statistics, is left out.

    dataset: has a length and is indexed by position; collate: makes a batch of a list of its items. Random numbers
    drawn meanwhile (a collator that masks tokens) come from the seed and leave the run's own untouched.
    Raises TypeError for a dataset without length or index, ValueError for an empty one.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], batch_size: int, seed: int) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                "validation data must have a length and be indexed by position, got "
                f"{check.shown(dataset)}, a {type(dataset).__name__}; "
                "from a stream or a loader make a function without arguments that returns the loss"
            )
        if not len(dataset):
            raise ValueError("the validation data are empty: give at least one item")
        check.instance("collate", collate, Callable, "a function that makes a batch of a list of items")
        batch_size = check.number("batch_size", batch_size, 1, whole=True)
        check.number("seed", seed, whole=True)
        self.dataset, self.collate, self.batch_size, self.seed = dataset, collate, batch_size, seed

    def __call__(self, number: int, process: int = 0) -> Any:
        """Batch `number` of one of several processes, each of which has its own order."""
        seed = derive(self.seed, "val", process)
        index = next(index_batches(len(self.dataset), self.batch_size, seed, number, least=2))
        device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=device):
            torch.manual_seed(derive(seed, number))
            return self.collate([self.dataset[i] for i in index])


class Driver:
    """Counts optimizer steps, updates the radii every so many of them and projects after each."""

    def __init__(self, every: int, updates: int, log: Log, settings: Mapping[str, Any]) -> None:
        every, updates = check.number("every", every, 1, whole=True), check.number("updates", updates, 1, whole=True)
        check.choice("log", log, get_args(Log))
        check.known_keywords("TPGM", settings, list(inspect.signature(TPGM).parameters))
        self.every, self.updates, self.log, self.settings = every, updates, log, dict(settings)
        self.constraint: TPGM | None = None
        self.steps = self.updated = 0
        self.saved: Mapping[str, Any] | None = None
        self._loss: Callable[[int], Tensor] | None = None

    def start(self, model: nn.Module, anchor: Anchor, loss: Callable[[int], Tensor]) -> None:
        """Build the constraint, or take up the one that was saved. loss: of validation batch number so-and-so."""
        self.constraint = TPGM(model, **{"anchor": anchor, **self.settings})
        self._loss, self.steps, self.updated = loss, 0, 0
        if self.saved is not None:
            saved, self.saved = self.saved, None
            self.constraint.load_state_dict(saved["constraint"])
            self.steps, self.updated = saved["steps"], saved["updated"]

    def after_step(self) -> None:
        """To be called once after every step of the optimizer."""
        constraint, loss = self.constraint, self._loss
        assert constraint is not None
        assert loss is not None
        self.steps += 1
        if self.steps % self.every == 0:
            for _ in range(self.updates):
                number = self.updated
                constraint.update(partial(loss, number))
                self.updated += 1
        if self.updated:
            constraint.project_()

    def finish(self, passes: Callable[[], Any]) -> None:
        """To be called when training has ended. passes: forward passes of the model on `BATCHES` training batches."""
        constraint = self.constraint
        if constraint is not None and constraint.buffers == "reestimate":
            reestimate(constraint.model, passes)

    def anchor(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `copied` gave, with the constraint's own copy of the weights in place of another."""
        assert self.constraint is not None
        parameters = aliases(self.constraint.model)
        return {n: t for n, t in given.items() if canonical(n) not in parameters} | self.constraint.anchor

    def state(self) -> dict[str, Any]:
        """Plain containers, numbers and tensors: the constraint's state and how far it is."""
        assert self.constraint is not None
        return {"constraint": self.constraint.state_dict(), "steps": self.steps, "updated": self.updated}

    def metrics(self) -> dict[str, float]:
        """Mean ratio over all tensors, and by block or tensor as asked for; nothing before the first update."""
        if self.constraint is None or not self.updated or self.log == "nothing":
            return {}
        ratios = self.constraint.ratios()
        found = {"tpgm/ratio": sum(ratios.values()) / len(ratios)}
        if self.log == "tensors":
            return found | {f"tpgm/ratio/{name}": ratio for name, ratio in ratios.items()}
        for block, names in blocks(ratios).items():
            found[f"tpgm/ratio/{block or 'model'}"] = sum(ratios[name] for name in names) / len(names)
        return found


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's trainable parameters and floating-point buffers of this moment: the anchor unless one is given."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}
    for name, tensor in model.state_dict().items():
        if name not in parameters and isinstance(tensor, Tensor) and tensor.is_floating_point():
            found[name] = tensor.detach().clone()
    return found
