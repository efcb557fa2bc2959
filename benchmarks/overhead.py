"""Time of whole fine-tuning runs over plain fine-tuning, in one process.

    python benchmarks/overhead.py --out results/benchmarks-overhead.jsonl

The icons' small ResNet with the protocol's budget and without a head stage; medians over alternating repetitions after
a warm-up. With --clock cpu the processor's time of
one thread counts, which other work on the machine disturbs less. Tests are made on one image only; evaluation on the
validation data after each epoch counts. A row of JSON with versions and hardware goes to --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tpgm import TPGM, finetune, models
from tpgm.book.experiments.experiment import append, provenance
from tpgm.book.experiments.icon_studies import BUDGET

EVERY: dict[str, Any] = {"radius_lr": 0.1, "val_batch_size": BUDGET["batch_size"]}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain fine-tuning": ("vanilla", {}),
    "tpgm, each step": ("tpgm", EVERY),
    "tpgm, each 4th step": ("tpgm", {**EVERY, "every": 4}),
    "tpgm, last fifth": ("tpgm", {**EVERY, "begin": 0.8}),
    "tpgm at the end, 100 updates": ("tpgm-end", {**EVERY, "updates": 100}),
    "ftp": ("ftp", {}),
    "spd": ("spd", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="icons-resnet")
    parser.add_argument("--epochs", type=int, default=BUDGET["epochs"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--source", default="", help='"tiny": synthetic images, to try this script')
    parser.add_argument("--out", type=Path, help="file of JSON lines to which the row is added")
    given = parser.parse_args()
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    if given.clock == "cpu":
        torch.set_num_threads(1)

    from tpgm.book.icon_benchmark import icons
    from tpgm.data import ImageArray

    data = icons("solid", train_per_class=10, source=given.source or None, progress=False)
    few = ImageArray(data.id_test.images[:1], data.id_test.labels[:1])
    data = dataclasses.replace(data, id_test=few, ood_tests={})
    start = models.load(given.model, num_classes=len(data.class_names), size=64)
    common = {k: BUDGET[k] for k in ("lr", "batch_size", "channels_last")} | {"epochs": given.epochs, "workers": 0}
    updates = {"n": 0}
    update = TPGM.update

    def counted(self: TPGM, closure: Callable[[], torch.Tensor]) -> float:
        updates["n"] += 1
        return update(self, closure)

    TPGM.update = counted  # type: ignore[method-assign]
    finetune(start, data, "vanilla", progress=False, **{**common, "epochs": 1})  # warms up
    times: dict[str, list[float]] = {label: [] for label in RUNS}
    made = {}
    for _ in range(given.repeats):
        for label, (method, own) in RUNS.items():
            updates["n"], began = 0, clock()
            finetune(start, data, method, progress=False, **common, **own)
            times[label].append(clock() - began)
            made[label] = updates["n"]
            print(f"{label}: {times[label][-1]:.1f} s, {made[label]} updates", flush=True)
    seconds = {label: statistics.median(of) for label, of in times.items()}
    base = seconds["plain fine-tuning"]
    row = {
        "part": "overhead",
        "config": {
            "model": given.model,
            "epochs": given.epochs,
            "repeats": given.repeats,
            "clock": given.clock,
            "settings": common,
        },
        "times": times,
        "seconds": seconds,
        "updates": made,
        "ratios": {label: s / base for label, s in seconds.items()},
        **provenance(),
    }
    if given.out:
        append(given.out, row)


if __name__ == "__main__":
    main()
