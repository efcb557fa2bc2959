"""The same run with a cold and a warm kernel cache, resumed, on other threads, and without kernels: bit by bit.

    PYTHONPATH=. python benchmarks/exactness.py --out results/robustness-exactness.jsonl

Every run is a process of its own. A row says, for a model, a method and a condition, whether all weights have the bits
of the run on one thread with a warm cache, and how far the farthest is away.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from tests.small import small_data, small_start
from tpgm.book.experiments import experiment
from tpgm.training.loop import TrainingRun, finetune

METHODS: dict[str, dict[str, Any]] = {
    "tpgm": {"optimizer": "sgd", "updates": 1},
    "tpgm-end": {"optimizer": "adamw", "updates": 12, "norm": "l2"},
    "ftp": {"optimizer": "sgd"},
    "digrap": {"optimizer": "adamw"},
}
MODELS = ("small", "icons-resnet")
STOP = 4  # boundary between steps at which a run that is resumed ends
WARM: dict[str, str] = {"OMP_NUM_THREADS": "1"}
CONDITIONS: dict[str, dict[str, str]] = {
    "again": WARM,
    "cold kernel cache": WARM,
    "resumed": WARM,
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "without kernels": {**WARM, "TPGM_COMPILED": "0"},
}


def one(model: str, method: str, folder: Path, stop: int) -> None:
    """A run in `folder`; with `stop` it ends, as if killed, at so many boundaries between steps."""
    passed, boundary = 0, TrainingRun.boundary

    def counted(self: TrainingRun, *arguments: Any, **named: Any) -> None:
        nonlocal passed
        passed += 1
        if passed == stop:
            os._exit(9)
        boundary(self, *arguments, **named)

    with mock.patch.object(TrainingRun, "boundary", counted):
        if model == "small":
            common: dict[str, Any] = {"epochs": 2, "batch_size": 8, "progress": False, "checkpoint_seconds": 0}
            finetune(small_start(), small_data(), method, out=folder, **common, **METHODS[method])
        else:
            config = {"source": "tiny", "train_per_class": 2, "val_per_class": 1, "size": 32, "model": model}
            settings = {"epochs": 2, "batch_size": 4, **METHODS[method]}
            experiment.run({**config, "method": method, "settings": settings}, out=folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def run(model: str, method: str, folder: Path, environment: dict[str, str], stop: int = 0) -> int:
    command = [sys.executable, __file__, "--one", model, method, str(folder), "--stop", str(stop)]
    log = folder.with_suffix(".log")
    with log.open("ab") as file:
        status = subprocess.run(command, env={**os.environ, **environment}, stdout=file, stderr=file, check=False)
    if status.returncode not in ((0, 9) if stop else (0,)):
        raise RuntimeError(log.read_text(encoding="utf8")[-3000:])
    return status.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", choices=MODELS, action="append", help="these only")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], given.one[1], Path(given.one[2]), given.stop)
        return 0
    with tempfile.TemporaryDirectory(prefix="tpgm-exactness-") as name:
        room = Path(name)
        for model in given.model or MODELS:
            for method in METHODS:
                first = room / f"{model}-{method}"
                run(model, method, first, WARM)
                wanted = weights(first)
                for condition, environment in CONDITIONS.items():
                    folder = room / f"{model}-{method}-{condition.replace(' ', '-')}"
                    own = dict(environment)
                    if condition == "cold kernel cache":
                        own["NUMBA_CACHE_DIR"] = str(folder.with_suffix(".cache"))
                    if condition == "resumed" and run(model, method, folder, own, stop=STOP) != 9:
                        raise RuntimeError("the run ended before it was stopped")
                    run(model, method, folder, own)
                    found = weights(folder)
                    apart = {n: (found[n].double() - w.double()).abs().max().item() for n, w in wanted.items()}
                    same = all(torch.equal(found[n], w) for n, w in wanted.items())
                    row = {"model": model, "method": method, "condition": condition, "identical": same}
                    row |= {"largest": max(apart.values()), "tensors": len(wanted)}
                    experiment.append(given.out, {**row, **experiment.provenance()})
                    print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
