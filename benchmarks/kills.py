"""Kill at random moments, go on, compare with what was never interrupted; one row of JSON a kill.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/kills.py --out results/robustness-kills.jsonl --cases 200

Places: "training" (any moment of a run), "checkpoint", "store" and "row" (while such a file is being written, slowed
down so that a moment can fall into it), "sweep" (the sweep, its worker or the process of one run). Signals: SIGKILL and
SIGTERM. A cold case starts every process with an empty cache of numba's kernels. Moments follow from --seed and the
case's number. Cases that the file has are not run again; the status is 1 if a result was not the same. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from tests.small import small_data, small_start
from tpgm.book.experiments import experiment
from tpgm.book.sweep import read_grid
from tpgm.training.loop import finetune

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
SHARES = {"training": 30, "checkpoint": 20, "store": 15, "row": 10, "sweep": 25}  # per cent
COLD = 8  # one of so many cases that are no sweeps
SETTINGS: Row = {"epochs": 1, "batch_size": 8, "head_epochs": 1, "progress": False}
METHODS: dict[str, Row] = {
    "tpgm": {"optimizer": "sgd", "updates": 1},
    "tpgm-end": {"optimizer": "sgd", "updates": 12},
    "wise-ft": {"optimizer": "sgd"},
    "ftp": {"optimizer": "adamw"},
    "spd": {"optimizer": "adamw"},
    "digrap": {"optimizer": "adamw"},
    "l2-sp": {"optimizer": "sgd"},
}
STORED = ("tpgm-end", "wise-ft")  # methods with stages that are kept for others
FIXED: Row = {"source": "tiny", "train_per_class": 2, "val_per_class": 1, "size": 32}
FIXED["settings"] = {"epochs": 1, "batch_size": 32}
RUNS: Row = {"experiment": True, "fixed": FIXED, "product": {"seed": [*range(6)], "method": ["linear-probe", "tpgm"]}}
KINDS = {"checkpoint.pt": "checkpoint", "head-": "store", "weights-": "store"}  # else "row"
PIECES, PAUSE = 4, 0.0015  # seconds


# --- a process that tells where it is


class Board:
    """Memory shared with a child: what it is writing, how far it is, and how many files of each kind it has begun."""

    NAMES = ("", "checkpoint", "store", "row")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    def begin(self, kind: str) -> None:
        number = self.NAMES.index(kind)
        self.memory[2 + number] = min(255, self.memory[2 + number] + 1)
        self.memory[0] = number

    def piece(self, number: int) -> None:
        self.memory[1] = number

    def end(self) -> None:
        self.memory[0] = 0

    def begun(self, kind: str) -> int:
        return self.memory[2 + self.NAMES.index(kind)]

    def __str__(self) -> str:
        kind, piece = self.NAMES[self.memory[0]], self.memory[1]
        return f"{kind}, {piece} of {PIECES} pieces" if kind else "between files"


class Slow:
    """A file that takes its time."""

    def __init__(self, file: Any, board: Board) -> None:
        self.file, self.board = file, board

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        step = -(-len(content) // PIECES)
        for number in range(PIECES):
            self.file.write(content[number * step : (number + 1) * step])
            self.file.flush()
            self.board.piece(number + 1)
            time.sleep(PAUSE)
        return len(content)


def slow_files(board: Board) -> None:
    """In the child: what is written aside is written piece by piece, and renamed after a pause."""
    real_open, real_replace = pathlib.Path.open, os.replace

    def opened(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = real_open(self, mode, *more, **named)
        if not (self.name.endswith(".part") and "w" in mode):
            return file
        kind = next((k for start, k in KINDS.items() if self.name[1:].startswith(start)), "row")
        board.begin(kind)
        board.piece(0)
        return Slow(file, board)

    def replaced(source: Any, target: Any, **named: Any) -> None:
        time.sleep(PAUSE)
        real_replace(source, target, **named)
        time.sleep(PAUSE)
        board.end()

    pathlib.Path.open = opened  # type: ignore[assignment, method-assign]
    os.replace = replaced


def forked(work: Callable[[], Any], board: Board, log: Path, cache: Path | None) -> int:
    """The number of a process that does the work; it ends with status 0 if that went well."""
    if child := os.fork():
        return child
    status = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if cache is not None:
            os.environ["NUMBA_CACHE_DIR"] = str(cache)
        slow_files(board)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(child: int, wait: bool = True) -> int | None:
    """The exit status, below 0 a signal; None while it runs."""
    found, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


# --- one run


def train(method: str, folder: Path) -> None:
    store = {"store": folder.parent / "store"} if method in STORED else {}
    given = {**SETTINGS, **METHODS[method], **store}
    finetune(small_start(), small_data(), method, out=folder, checkpoint_seconds=0, **given)


def compute_row(method: str, folder: Path) -> None:
    experiment.run({**FIXED, "method": method, "seed": 3}, out=folder)


def work_of(place: str, method: str, folder: Path) -> Callable[[], None]:
    return lambda: (compute_row if place == "row" else train)(method, folder)


def told(row: Row) -> Row:
    """What of a row must be the same again."""
    varying = ("seconds", "time", "peak_memory_mb", "commit", "hardware", "command", "sha256")
    return {name: value for name, value in row.items() if name not in varying}


def facts(folder: Path) -> str:
    """A hash of the bits of all weights and of the rows."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    for path in (folder / "result.json", folder / "row.json"):
        if path.exists():
            digest.update(json.dumps(told(json.loads(path.read_text(encoding="utf8"))), sort_keys=True).encode())
    return digest.hexdigest()


class References:
    """Runs that nothing interrupted, by place and method: a hash, seconds, how many files of each kind were begun."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.found: dict[tuple[str, str, bool], tuple[str, float, Board, set[str]]] = {}

    def of(self, place: str, method: str, cold: bool) -> tuple[str, float, Board, set[str]]:
        kind = "row" if place == "row" else "run"
        key = (kind, method, cold)
        if key not in self.found:
            folder = self.room / f"reference-{kind}-{method}-{cold}"
            board, log, cache = Board(), self.room / "reference.log", folder / "cache" if cold else None
            began = time.monotonic()
            if ended(forked(work_of(place, method, folder / "out"), board, log, cache)):
                raise RuntimeError(log.read_text(encoding="utf8"))
            names = {path.name for path in (folder / "out").iterdir()}
            self.found[key] = (facts(folder / "out"), time.monotonic() - began, board, names)
        return self.found[key]


def kill_a_run(case: Row, draw: random.Random, references: References, room: Path) -> Row:
    """One kill in a process of its own, and the run that goes on from what it left."""
    place, number = case["place"], getattr(signal, case["signal"])
    methods = STORED if place == "store" else (*METHODS,) if place != "row" else ("linear-probe", "tpgm")
    method = draw.choice(methods)
    wanted, seconds, files, names = references.of(place, method, case["cold"])
    for attempt in range(20):
        folder = room / f"{case['case']}-{attempt}"
        folder.mkdir()
        board, log = Board(), folder / "log"
        child = forked(work_of(place, method, folder / "out"), board, log, folder / "cache" if case["cold"] else None)
        if place == "training":
            moment = draw.uniform(0, seconds)
            time.sleep(moment)
        else:
            which, moment = draw.randint(1, files.begun(place)), draw.uniform(0, (PIECES + 3) * PAUSE)
            while board.begun(place) < which and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.001)
            time.sleep(moment)
        where = str(board)
        os.kill(child, number)  # not waited for yet: the number is still its own
        status = ended(child)
        if status:  # else it was faster
            break
    else:
        raise RuntimeError(f"case {case['case']}: no kill hit")
    cache = folder / "cold-again" if case["cold"] else None
    finished = (folder / "out" / ("row.json" if place == "row" else "result.json")).exists()
    finished = finished and (place != "row" or "accuracies" in (folder / "out" / "row.json").read_text("utf8"))
    again = 0 if finished else ended(forked(work_of(place, method, folder / "out"), Board(), log, cache))
    found = facts(folder / "out") if not again else ""
    same = found == wanted
    left = sorted({path.name for path in (folder / "out").iterdir()} - names) if same else []
    if same:
        shutil.rmtree(folder)
    return {
        "method": method,
        "moment": round(moment, 4),
        "where": where,
        "status": status,
        "finished": finished,
        "identical": same,
        "left": left,
        **({} if same else {"log": log.read_text(encoding="utf8")[-2000:]}),
    }


# --- sweeps


def sweep_command(room: Path, out: Path) -> list[str]:
    grid = room / "grid.yaml"
    grid.write_text(json.dumps(RUNS), encoding="utf8")
    return [sys.executable, "-m", "tpgm.cli", "sweep", str(grid), "--out", str(out), "--workers", "1", "--threads", "1"]


def swept(room: Path, out: Path, cache: Path | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    with (room / "sweep.log").open("ab") as log:
        return subprocess.Popen(sweep_command(room, out), env=environment, stdout=log, stderr=log)


def rows_of(out: Path) -> list[Row]:
    lines = (out / "rows.jsonl").read_text(encoding="utf8").splitlines()
    return sorted((told(json.loads(line)) for line in lines), key=lambda row: str(row["run"]))


def done(out: Path) -> int:
    return len(list(out.glob("*/row.json")))


def victim(sweeper: psutil.Process, kind: str) -> psutil.Process | None:
    """The sweep itself, its worker, or the process that computes one run; None if there is none now."""
    if kind == "sweep":
        return sweeper
    for process in sweeper.children(recursive=True):
        serving = [c for c in process.children() if any("serve()" in part for part in c.cmdline())]
        for nursery in serving:
            if kind == "worker":
                return process
            if runs := nursery.children():
                return runs[0]
    return None


def kill_sweeps(cases: list[Row], seed: int, wanted: list[Row], room: Path) -> Iterator[Row]:
    """Kills until all runs of a sweep are done; then its rows tell whether the kills did harm."""
    chain = 0
    while cases:
        out = room / f"sweep-{chain}"
        cold, hit = bool(chain % 3 == 2), list[Row]()
        process: subprocess.Popen[bytes] | None = None
        # until it ends by itself: one that is killed after the last run has not collected all rows yet
        while process is None or process.poll() != 0:
            if process is None or process.poll() is not None:
                cache = room / f"cache-{chain}-{time.monotonic_ns()}" if cold else None
                process = swept(room, out, cache)
            if len(hit) == len(cases):
                process.wait()
                continue
            case = cases[len(hit)]
            draw = random.Random(f"{seed}:{case['case']}")
            kind, more, moment = draw.choice(("sweep", "worker", "run")), draw.randint(0, 3), draw.uniform(0, 2)
            before, number = done(out), getattr(signal, case["signal"])
            while process.poll() is None and done(out) < before + more:
                time.sleep(0.01)
            time.sleep(moment)
            try:
                while process.poll() is None and (aim := victim(psutil.Process(process.pid), kind)) is None:
                    time.sleep(0.005)
                if process.poll() is not None:
                    continue  # it ended meanwhile
                family = psutil.Process(process.pid).children(recursive=True)
                aim.send_signal(number)
            except psutil.NoSuchProcess:
                continue
            hit.append({**case, "cold": cold, "victim": kind, "rows_before": done(out), "moment": round(moment, 4)})
            if kind == "sweep":
                hit[-1]["status"] = process.wait(120)
                _, alive = psutil.wait_procs(family, timeout=60)
                hit[-1]["left"] = [" ".join(p.cmdline())[:80] for p in alive]
        process.wait()
        found = rows_of(out)
        same = found == wanted
        for row in hit:
            yield {"left": [], **row, "identical": same, "runs": len(found)}
        if same:
            shutil.rmtree(out)
        cases, chain = cases[len(hit) :], chain + 1


# --- all cases


def plan(count: int, seed: int) -> list[Row]:
    places = [place for place, share in SHARES.items() for _ in range(round(share * count / 100))]
    draw = random.Random(seed)
    draw.shuffle(places)
    signals = ("SIGKILL", "SIGTERM")
    cold = [place != "sweep" and draw.random() < 1 / COLD for place in places]
    return [
        {"case": n, "place": place, "signal": draw.choice(signals), "cold": c, "seed": seed}
        for n, (place, c) in enumerate(zip(places, cold, strict=True))
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", action="append", choices=tuple(SHARES), help="these places only")
    parser.add_argument("--cold", choices=("yes", "no"), help="cases with a cold kernel cache only, or none of them")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    there = experiment.read(given.out) if given.out.exists() else []
    seen = {row["case"] for row in there}
    due = [
        case
        for case in plan(given.cases, given.seed)
        if case["case"] not in seen
        and (not given.place or case["place"] in given.place)
        and given.cold in (None, "yes" if case["cold"] else "no")
    ]
    experiment.splits(experiment.resolve(FIXED))  # drawn once, for all children
    bad = sum(not row["identical"] for row in there)

    def keep(row: Row) -> None:
        nonlocal bad
        bad += not row["identical"]
        experiment.append(given.out, {**row, **experiment.provenance()})
        print({k: v for k, v in row.items() if k != "log"}, flush=True)

    with tempfile.TemporaryDirectory(prefix="tpgm-kills-") as name:
        room = Path(name)
        references = References(room)
        runs = [case for case in due if case["place"] != "sweep"]
        assert "numba" not in sys.modules, "a cold cache needs an interpreter without kernels"
        for case in sorted(runs, key=lambda case: not case["cold"]):
            if not case["cold"] and "numba" not in sys.modules:  # children then need not read the cache
                warm = room / "warm"
                train("tpgm", warm / "out")
            keep({**case, **kill_a_run(case, random.Random(f"{given.seed}:{case['case']}"), references, room)})
        if sweeps := [case for case in due if case["place"] == "sweep"]:
            assert swept(room, room / "whole", None).wait() == 0
            wanted = rows_of(room / "whole")
            assert len(wanted) == len(read_grid(room / "grid.yaml").due())
            for row in kill_sweeps(sweeps, given.seed, wanted, room):
                keep(row)
    print(f"{len(plan(given.cases, given.seed))} cases, {bad} with another result")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
