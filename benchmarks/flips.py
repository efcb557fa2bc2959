"""Change one bit, or cut the end off, in each kind of file that tpgm writes and reads; count what is noticed.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/flips.py --out results/robustness-flips.jsonl

Of every kind one file is made, damaged 100 times (70 changed bits, 30 cuts, at places that follow from --seed) and read
through the door that reads it in use; a result, which nothing here reads again, by its checksum. Accepted is what
brings neither an error nor a warning. One row of JSON a kind; the status is 1 if any damage was accepted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from tests.small import small_data, small_start
from tpgm import models
from tpgm.book import pretraining
from tpgm.book.experiments import experiment
from tpgm.book.icon_benchmark.cache import build_once
from tpgm.book.sweep import Job, Store
from tpgm.files import sealed, unsealed
from tpgm.models.architectures import Architecture
from tpgm.training.loop import finetune

FLIPS, CUTS = 70, 30
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "head_epochs": 1, "optimizer": "sgd", "progress": False}
CONFIG: dict[str, Any] = {"source": "tiny", "train_per_class": 2, "val_per_class": 1, "size": 32}
CONFIG |= {"method": "linear-probe", "settings": {"epochs": 1, "batch_size": 32}}


class Kind(NamedTuple):
    """A kind of file, one of it, and what reads it."""

    name: str
    path: Path
    read: Callable[[], Any]


class Stopped(Exception):
    """Instead of the end of a run."""


def stop(*_: Any, **__: Any) -> Any:
    raise Stopped


def checkpoint(room: Path) -> Kind:
    folder = room / "run"

    def run() -> None:
        finetune(small_start(), small_data(), "tpgm", out=folder, **QUICK)

    with mock.patch("tpgm.models.save_pretrained", stop):  # the run ends, its files are not written
        unfinished(run)
    # what goes on from a good checkpoint would train: that it got so far is acceptance
    target = "tpgm.training.loop.TrainingRun.train"
    return Kind("checkpoint of a run", folder / "checkpoint.pt", lambda: patched(target, run))


def patched(target: str, act: Callable[[], Any]) -> None:
    with mock.patch(target, stop):
        unfinished(act)


def unfinished(act: Callable[[], Any]) -> None:
    try:
        act()
    except Stopped:
        return


def stages(room: Path) -> list[Kind]:
    store = room / "store"

    def run() -> None:
        finetune(small_start(), small_data(), "wise-ft", store=store, **QUICK)

    run()
    found = {path.name.split("-")[0]: path for path in store.glob("*.pt")}
    return [
        Kind("stage in a store: head", found["head"], run),
        Kind("stage in a store: weights", found["weights"], run),
    ]


def finished(room: Path) -> list[Kind]:
    folder = room / "experiment"
    experiment.run(CONFIG, out=folder)
    result = folder / "result.json"
    return [
        Kind("result of a run", result, lambda: unsealed(result.read_bytes(), str(result))),
        Kind("row of an experiment", folder / "row.json", lambda: experiment.run(CONFIG, out=folder)),
        Kind("fine-tuned model", folder / "model.safetensors", lambda: models.load(folder / "model.safetensors")),
    ]


def sweep(room: Path) -> list[Kind]:
    store, job = Store(room / "sweep"), Job.of_experiment(CONFIG)
    row = {"run": job.name, **experiment.run(CONFIG)}
    store.write(sealed(json.dumps(row)).encode(), job.name, "row.json")
    store.note(job.name, "finished", "one")
    folder = room / "sweep" / job.name
    (note,) = (folder / "attempts").iterdir()
    rows = room / "rows.jsonl"
    for _ in range(3):
        experiment.append(rows, row)
    return [
        Kind("row of a sweep", folder / "row.json", lambda: store.row(job.name)),
        Kind("note of a sweep", note, lambda: store.notes(job.name)),
        Kind("file of rows", rows, lambda: experiment.read(rows)),
    ]


def pretrained(room: Path) -> Kind:
    plan = pretraining.Pretraining(Architecture("icons-vit"), epochs=1, small_epochs=1, lr=1e-3, weight_decay=0.0)

    def run() -> None:
        pretraining.pretrain(plan, room / "own.safetensors", source="tiny", progress=False)

    patched("tpgm.book.pretraining._store", run)
    read = mock.patch("tpgm.book.pretraining._Pretraining._epoch", stop)

    def go_on() -> None:
        with read, mock.patch("tpgm.book.pretraining._store", stop):
            unfinished(run)

    return Kind("checkpoint of a pre-training", room / "own.checkpoint", go_on)


def cached(room: Path) -> Kind:
    target = room / "cache" / "data.npz"

    def build(folder: Path) -> Path:
        torch.save(torch.arange(999), folder / "data")
        return folder / "data"

    build_once(target, build)
    return Kind("data in the cache", target, lambda: build_once(target, build))


def trainer(room: Path) -> list[Kind]:
    try:
        from tpgm.integrations.transformers import _decoded, _encoded
    except ImportError:
        return []
    path = room / "state.txt"  # as it stands in trainer_state.json
    path.write_text(_encoded({"radii": {"w": torch.rand(9)}, "steps": 4}), encoding="utf8")
    return [Kind("radii in a Trainer's checkpoint", path, lambda: _decoded(path.read_bytes().decode("latin1")))]


def complaint(kind: Kind) -> str | None:
    """What reading says of a damaged file, beginning with the kind of error; None if it says nothing."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            kind.read()
        except Exception as error:
            warned = "".join(f"; {warning.message}" for warning in said)
            return f"{type(error).__name__}: {error}{warned}"
    return f"{said[0].category.__name__}: {said[0].message}" if said else None


def damaged(content: bytes, draw: random.Random, cut: bool) -> bytes:
    if cut:
        return content[: draw.randrange(len(content))]
    place = draw.randrange(8 * len(content))
    return content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]


def tried(kind: Kind, seed: int) -> dict[str, Any]:
    content, draw = kind.path.read_bytes(), random.Random(f"{seed}:{kind.name}")
    said: Counter[str] = Counter()
    named, accepted = 0, list[str]()
    if (before := complaint(kind)) is not None:
        raise RuntimeError(f"{kind.name}: the whole file is not read: {before}")
    for number in range(FLIPS + CUTS):
        cut = number >= FLIPS
        kind.path.write_bytes(damaged(content, draw, cut))
        found = complaint(kind)
        if found is None:
            accepted.append("cut" if cut else "bit")
        else:
            said[found.split(":")[0]] += 1
            named += str(kind.path.name) in found or "trainer_state.json" in found
        kind.path.write_bytes(content)
    if (after := complaint(kind)) is not None:
        raise RuntimeError(f"{kind.name}: the whole file is not read any more: {after}")
    counts = {"flips": FLIPS, "cuts": CUTS, "accepted": dict(Counter(accepted)), "errors": dict(said), "named": named}
    return {"kind": kind.name, "bytes": len(content), **counts, "seed": seed}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds whose name has this in it")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="tpgm-flips-") as name:
        room = Path(name)
        kinds = [checkpoint(room), *stages(room), *finished(room), *sweep(room)]
        kinds += [pretrained(room), cached(room), *trainer(room)]
        for kind in kinds:
            if given.only is None or given.only in kind.name:
                row = tried(kind, given.seed)
                bad += sum(row["accepted"].values())
                experiment.append(given.out, {**row, **experiment.provenance()})
                print(row, flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
