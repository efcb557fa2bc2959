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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpgm
from tpgm import TPGM, buffers, models
from tpgm.book.experiments.experiment import append, provenance
from tpgm.book.experiments.icon_studies import BUDGET
from tpgm.book.icon_benchmark import icons
from tpgm.data import DataSplits
from tpgm.training.batches import derive, index_batches

BATCH, UPDATES, ALPHA = 32, 100, 0.5
# the study's vanilla-bn
SETTINGS = {k: BUDGET[k] for k in ("batch_size", "channels_last")}
SETTINGS |= {"epochs": 7, "head_epochs": 0, "lr": 3e-3, "batchnorm": "train"}


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
    parser.add_argument("--radius-lr", type=float, nargs="+", default=[1e-2, 1e-1], help="of the radii's Adam")
    parser.add_argument("--ways", nargs="+", default=get_args(buffers.Buffers), help="of TPGM at the end")
    parser.add_argument("--only-tpgm", action="store_true", help="without the fine-tuned model and interpolation")
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

    def report(model: nn.Module, **config: Any) -> None:
        row = {"part": "buffers", "config": {**base, **config}, **counts(model, start, data)}
        print(config, *(f"{what} {100 * row[what]:.1f}" for what in ("val", "id", "ood")), flush=True)
        if given.out:
            append(given.out, {**row, **provenance(("numba", "timm"))})

    def both(model: nn.Module, **config: Any) -> None:
        """Tested with the statistics there are, and with statistics of its own."""
        report(model, **config)
        again = copy.deepcopy(model)
        buffers.reestimate(again, training_batches(start, data))
        report(again, **{**config, "buffers": "reestimate"})

    if given.every:
        for lr in given.radius_lr:
            settings = {**common, "radius_lr": lr, "val_batch_size": BATCH}
            result = tpgm.finetune(start, data, "tpgm", progress=False, **settings)
            both(result.model, method="tpgm", radius_lr=lr, update="keep", buffers="keep")
        return
    result = tpgm.finetune(start, data, "vanilla", progress=False, store=given.store, **common)
    model = result.model
    if not given.only_tpgm:
        both(model, method="vanilla", buffers="keep")
        for way in ("keep", "move"):
            wise = tpgm.interpolate(model, start.anchor, ALPHA, exclude=start.exclude, buffers=way)
            test = both if way == "keep" else report
            test(wise, method="wise-ft", alpha=ALPHA, buffers=way)
    for lr in given.radius_lr:
        for way in given.ways:
            config = {"method": "tpgm-end", "radius_lr": lr, "updates": UPDATES}
            constraint = learned(model, start, data, way, lr, given.seed)
            ratios = constraint.ratios().values()
            config |= {"update": "batch" if way == "reestimate" else way, "ratio": sum(ratios) / len(ratios)}
            if way == "reestimate":
                with constraint.projected(batches=training_batches(start, data)):
                    report(model, **config, buffers=way)
            else:
                with constraint.projected():
                    both(model, **config, buffers=way)


if __name__ == "__main__":
    main()
