"""Time of whole fine-tuning runs over plain fine-tuning, in one process.

    python benchmarks/overhead.py --out results/benchmarks-overhead.jsonl

The icons' small ResNet with the protocol's budget and without a head stage; medians over alternating repetitions after
a warm-up. With --clock cpu the processor's time of
one thread counts, which other work on the machine disturbs less. Evaluation on the tests is not counted, that on the
validation data after each epoch is. A row of JSON with versions and hardware goes to --out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tpgm import finetune, models
from tpgm.book.experiments.experiment import append, provenance
from tpgm.book.experiments.icon_studies import BUDGET
from tpgm.training.loop import _Run

EVERY: dict[str, Any] = {"radius_lr": 0.1, "val_batch_size": BUDGET["batch_size"]}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain fine-tuning": ("vanilla", {}),
    "tpgm, each step": ("tpgm", EVERY),
    "tpgm, each 4th step": ("tpgm", {**EVERY, "every": 4}),
    "tpgm, automatic k": ("tpgm", {**EVERY, "every": "auto"}),
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

    from tpgm.data import icons

    data = icons("solid", train_per_class=10, source=given.source or None, progress=False)
    start = models.load(given.model, num_classes=len(data.class_names), size=64)
    common = {k: BUDGET[k] for k in ("lr", "batch_size", "channels_last")} | {"epochs": given.epochs, "workers": 0}
    updates = {"n": 0}
    tested = {"s": 0.0}
    update, tests = _Run._radius_update, _Run._finish

    def counted(self: Any, *arguments: Any) -> None:
        updates["n"] += 1
        update(self, *arguments)

    def timed(self: Any) -> Any:
        began = clock()
        try:
            return tests(self)
        finally:
            tested["s"] = clock() - began

    _Run._radius_update, _Run._finish = counted, timed  # type: ignore[method-assign]
    finetune(start, data, "vanilla", progress=False, **{**common, "epochs": 1})  # warms up
    times: dict[str, list[float]] = {label: [] for label in RUNS}
    made = {}
    for _ in range(given.repeats):
        for label, (method, own) in RUNS.items():
            updates["n"], began = 0, clock()
            finetune(start, data, method, progress=False, **common, **own)
            times[label].append(clock() - began - tested["s"])
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
