"""What BatchNorm's running statistics should do when weights go back: kept, moved along, or estimated anew.

    python benchmarks/buffers.py --model icons-resnet --seed 0 --out results/buffers-icons.jsonl

Fine-tunes all weights on the icons with BatchNorm in train mode (lr 3e-3), then goes back from there: interpolation at
α = .5, and TPGM once at the end with two learning rates of the radii. A row of JSON for each way to treat buffers:
"update" says what the validation loss of an update saw ("batch": the statistics of its own batch), "buffers" what the
projected model is tested with. Re-estimation takes the training images, once and without augmentation. With --every,
TPGM at every step instead, whose statistics follow the projected weights anyway. Counts of right answers are of
validation icons, ID test icons and the four OOD styles; nothing is chosen here.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpgm
from tpgm import TPGM, buffers, models
from tpgm.book.experiments.experiment import append, provenance
from tpgm.book.experiments.protocol import TRIED
from tpgm.data import DataSplits, icons
from tpgm.training.batches import derive, index_batches

BATCH, UPDATES, ALPHA = 32, 100, 0.5
RADIUS_LRS = (1e-2, 1e-1)
SETTINGS = TRIED["vanilla-bn"][1][-1]  # all weights, batch statistics, lr 3e-3


def images_of(start: models.Pretrained, data: Any, index: list[int]) -> Tensor:
    x: Tensor = start.preparation(data.images[index], torch.device("cpu"), None)
    return x.contiguous(memory_format=torch.channels_last)


def training_batches(start: models.Pretrained, data: DataSplits) -> Iterator[Tensor]:
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0)).tolist()
    for i in range(0, len(order) - 1, BATCH):
        yield images_of(start, data.train, order[i : i + BATCH])


@torch.no_grad()
def counts(model: nn.Module, start: models.Pretrained, data: DataSplits) -> dict[str, Any]:
    """Right answers and totals by set, and the accuracies of the validation and ID tests and the mean OOD accuracy."""
    was = [m.training for m in model.modules()]
    model.eval()
    found = {}
    for name, part in {"val": data.val, "id_test": data.id_test, **data.ood_tests}.items():
        right = 0
        for i in range(0, len(part), 256):
            index = list(range(i, min(i + 256, len(part))))
            right += int((model(images_of(start, part, index)).argmax(dim=1) == part.labels[index]).sum())
        found[name] = {"correct": right, "total": len(part)}
    for m, training in zip(model.modules(), was, strict=True):
        m.training = training
    shares = {name: c["correct"] / c["total"] for name, c in found.items()}
    ood = [shares[name] for name in data.ood_tests]
    return {"accuracies": found, "val": shares["val"], "id": shares["id_test"], "ood": sum(ood) / len(ood)}


def learned(
    model: nn.Module, start: models.Pretrained, data: DataSplits, update: buffers.Buffers, lr: float, seed: int
) -> TPGM:
    """Radii after UPDATES updates on validation batches; the model keeps its weights."""
    constraint = TPGM(model, anchor=start.anchor, exclude=start.exclude, lr=lr, buffers=update)
    batches = index_batches(len(data.val), BATCH, derive(seed, "val"))
    for _ in range(UPDATES):
        index = next(batches)
        x, y = images_of(start, data.val, index), data.val.labels[index]
        constraint.update(lambda x=x, y=y: cross_entropy(model(x), y))  # type: ignore[misc]
    return constraint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="icons-resnet", help="icons-resnet (robust start) or efficientnet-lite0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true", help="TPGM at every step instead")
    parser.add_argument("--store", type=Path, help="a folder that keeps the fine-tuned weights")
    parser.add_argument("--out", type=Path, help="file of JSON lines to which the rows are added")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = icons("solid", train_per_class=10, progress=False)
    torch.manual_seed(derive(given.seed, "head"))
    start = models.load(given.model, num_classes=len(data.class_names), size=64)
    base = {"model": given.model, "seed": given.seed, "settings": SETTINGS, "threads": 1, "batch": BATCH}
    common = {**SETTINGS, "seed": given.seed, "workers": 0}

    def report(model: nn.Module, began: float, **config: Any) -> None:
        row = {"part": "buffers", "config": {**base, **config}, **counts(model, start, data)}
        row["seconds"] = time.monotonic() - began
        print(config, *(f"{what} {100 * row[what]:.1f}" for what in ("val", "id", "ood")), flush=True)
        if given.out:
            append(given.out, {**row, **provenance(("numba", "timm"))})

    def both(model: nn.Module, **config: Any) -> None:
        """Tested with the statistics there are, and with statistics of its own."""
        began = time.monotonic()
        report(model, began, **config)
        again = copy.deepcopy(model)
        buffers.reestimate(again, training_batches(start, data))
        report(again, began, **{**config, "buffers": "reestimate"})

    if given.every:
        for lr in RADIUS_LRS:
            settings = {**common, "radius_lr": lr, "val_batch_size": BATCH}
            result = tpgm.finetune(start, data, "tpgm", progress=False, **settings)
            both(result.model, method="tpgm", radius_lr=lr, update="keep", buffers="keep")
        return
    result = tpgm.finetune(start, data, "vanilla", progress=False, store=given.store, **common)
    model = result.model
    both(model, method="vanilla", buffers="keep")
    back = (model, start.anchor, ALPHA)
    both(tpgm.interpolate(*back, exclude=start.exclude, buffers="keep"), method="wise-ft", alpha=ALPHA, buffers="keep")
    wise = tpgm.interpolate(*back, exclude=start.exclude, buffers="move")
    report(wise, time.monotonic(), method="wise-ft", alpha=ALPHA, buffers="move")
    ways: tuple[buffers.Buffers, ...] = ("keep", "move", "reestimate")
    for lr in RADIUS_LRS:
        for way in ways:
            config = {"method": "tpgm-end", "radius_lr": lr, "updates": UPDATES}
            constraint = learned(model, start, data, way, lr, given.seed)
            ratios = constraint.ratios().values()
            config |= {"update": "batch" if way == "reestimate" else way, "ratio": sum(ratios) / len(ratios)}
            if way == "reestimate":
                with constraint.projected(batches=training_batches(start, data)):
                    report(model, time.monotonic(), **config, buffers=way)
            else:
                with constraint.projected():
                    both(model, **config, buffers=way)


if __name__ == "__main__":
    main()
