"""Radii over the course of training: where every-step TPGM collapses, and what a free start does about it.

    python benchmarks/ratchet.py --model icons-resnet --out results/ratchet-icons.jsonl

Fine-tunes on the icons as the study does, with the published start, without a constraint at first, and with training
free for its first half or first four fifths. After every projection update a row keeps three quartiles of the radii
over the tensors, and the share of tensors whose radius stands on its floor of 1e-8. A configuration that has a row in
the file is not run again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

import tpgm
from tpgm import models
from tpgm.book.experiments.experiment import append, provenance, read
from tpgm.book.experiments.icon_studies import BUDGET, TRIED
from tpgm.book.icon_benchmark import icons
from tpgm.constraint import EPS
from tpgm.methods.base import Context
from tpgm.methods.tpgm_each_step import TPGMEachStep
from tpgm.training.batches import derive

PUBLISHED = {**TRIED["tpgm"].settings, "radius_lr": 0.1}
RUNS: dict[str, dict[str, Any]] = {
    "published start": PUBLISHED,
    "no constraint at first": {**TRIED["tpgm-w"].settings, "radius_lr": 3e-4},
    "free for half the steps": {**PUBLISHED, "begin": 0.5},
    "free for four fifths": {**TRIED["tpgm-late"].settings, "radius_lr": 3e-5},
}


@dataclass(frozen=True, kw_only=True)
class Recorded(TPGMEachStep):
    """TPGM at every step that notes its radii after each projection update."""

    seen: ClassVar[dict[str, list[float]]] = {}
    at: ClassVar[list[int]] = [0]

    def after_step(self, context: Context, step: int) -> None:
        self.at[0] = step + 1
        super().after_step(context, step)

    def update(self, context: Context, number: int) -> None:
        super().update(context, number)
        radii = torch.tensor([r for r in context.learner.radii.values() if r < float("inf")])
        low, median, high = torch.quantile(radii, torch.tensor([0.25, 0.5, 0.75])).tolist()
        floor = float((radii <= 1.01 * EPS).float().mean())
        for name, value in (("step", self.at[0]), ("low", low), ("median", median), ("high", high), ("floor", floor)):
            self.seen.setdefault(name, []).append(float(f"{value:.4g}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="icons-resnet", help="icons-resnet (robust start) or efficientnet-lite0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to which the rows are added")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = [row["config"] for row in read(given.out)] if given.out.is_file() else []
    data = icons("solid", train_per_class=10, progress=False)
    for label in given.only:
        settings = {**BUDGET, **RUNS[label], "seed": given.seed}
        config = {"label": label, "model": given.model, "size": 64, "train_per_class": 10, "settings": settings}
        if config in done:
            continue
        torch.manual_seed(derive(given.seed, "head"))
        start = models.load(given.model, num_classes=len(data.class_names), size=64)
        Recorded.seen.clear()
        method = Recorded(workers=0, **settings)
        result = tpgm.finetune(start, data, method, progress=False)
        scores = {name: round(a.value, 5) for name, a in result.accuracies.items()}
        ood = [scores[name] for name in data.ood_tests]
        row = {
            "part": "ratchet",
            "config": config,
            "steps": method.at[0],
            "radii": dict(method.seen),
            "accuracies": scores,
        }
        row |= {"id": scores["id_test"], "ood": sum(ood) / len(ood), "seconds": round(result.seconds, 1)}
        print(given.model, label, method.seen["median"][-1], row["id"], row["ood"], flush=True)
        append(given.out, {**row, **provenance(("numba", "timm"))})


if __name__ == "__main__":
    main()
