"""Time of the projection update, the projection and the optimizers, as ratios in one process; peak memory apart.

    python benchmarks/speed.py --model resnet50 --batch 16 --size 96 --out results/benchmarks-speed.jsonl
    python benchmarks/speed.py --model resnet50 --only update --kind loop
    python benchmarks/speed.py --model vit_base_patch16_224 --only optimizers
    python benchmarks/speed.py --model resnet50 --only memory

Medians over alternating repetitions; with --clock cpu of the processor's time of one thread, which other work on the
machine disturbs less. "update" is over a plain forward and backward pass of the same model and batch in eval mode, and
has two kinds. "freed": no other gradients exist meanwhile (rows without a kind are of this one). "loop": the training
gradients exist, between ``optimizer.step()`` and ``zero_grad``, and the pass is that of a turn without an update; the
ratio "turn" is what the turn with an update takes longer, its own training pass included. "faults" counts the pages of
memory that the system had to supply. "project" is the share of a copy's bandwidth (8 bytes a float32 weight) that the
projection in place reaches at 20 bytes a weight; AdamP and AdamSPD are over torch's fused AdamW, SGDP over fused SGD
with momentum and over torch's default form of it. Models are timm's without pre-trained weights, moved a little from
their anchor. A row of JSON with versions and hardware goes to --out. An older checkout is measured by its folder in
PYTHONPATH. Kernels are used where numba is installed,
unless TPGM_COMPILED=0 is set.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tpgm import TPGM
from tpgm.optim import SGDP, AdamP, AdamSPD

try:
    from tpgm._engine import passes
    from tpgm.book.experiments.experiment import append, provenance
except ImportError:  # an older checkout on PYTHONPATH, to be measured in the same sitting
    from tpgm.experiment import append, provenance  # type: ignore[import-not-found, no-redef]

    from tpgm import compiled  # type: ignore[attr-defined, no-redef]

    passes = None  # type: ignore[assignment]

PARTS = ("update", "project", "optimizers", "memory")
KINDS = ("freed", "loop")
PASS = "forward and backward"
KEPT = "tpgm, training gradients kept"
CLASSES = 100
CLOCK = "wall"


def measured(turns: Sequence[tuple[str, Callable[[], Any]]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds and faults of each piece, run in turn; unnamed ones are run only."""
    times: dict[str, list[float]] = {name: [] for name, _ in turns if name}
    faults: dict[str, list[int]] = {name: [] for name in times}
    for turn in range(repeats + 1):
        for name, piece in turns:
            synchronize()
            pages, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, now()
            piece()
            synchronize()
            if turn and name:  # the first warms up
                times[name].append(now() - began)
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages)
    return {
        what: {name: statistics.median(of) for name, of in values.items()}
        for what, values in (("seconds", times), ("faults", faults))
    }


def medians(pieces: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each piece, run in turn."""
    return measured(list(pieces.items()), repeats)["seconds"]


def now() -> float:
    return time.process_time() if CLOCK == "cpu" else time.perf_counter()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def build(options: argparse.Namespace) -> nn.Module:
    import timm

    torch.manual_seed(0)
    size = {"img_size": options.size} if options.model.startswith("vit") else {}
    return timm.create_model(options.model, num_classes=CLASSES, **size).to(options.device)


def shift(model: nn.Module) -> None:
    """Move every weight a little, as training would."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3 * torch.randn_like(p))


def update(options: argparse.Namespace) -> dict[str, Any]:
    model = build(options).eval()
    x = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    y = torch.arange(options.batch, device=options.device) % CLASSES

    def loss() -> torch.Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            return cross_entropy(model(x), y)

    def plain() -> None:
        loss().backward()
        model.zero_grad(set_to_none=True)  # in its own time, not in that of the update which comes next

    constraints = {norm: TPGM(model, norm=norm) for norm in ("mars", "l2")}
    turns: list[tuple[str, Callable[[], Any]]] = [(PASS, plain)]
    if options.kind == "freed":
        turns += [(norm, partial(c.update, loss)) for norm, c in constraints.items()]
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def training(name: str) -> list[tuple[str, Callable[[], Any]]]:
            clear = partial(optimizer.zero_grad, set_to_none=True)
            return [("", clear), (name, lambda: loss().backward()), ("", optimizer.step)]

        turns = [*training(""), *training(PASS)]  # the first finds memory as an update has left it
        for norm, c in constraints.items():
            turns += [*training(f"{PASS}, {norm}"), (norm, partial(c.update, loss)), ("", c.project_)]
    shift(model)
    found = measured(turns, options.repeats)
    seconds = found["seconds"]
    ratios = {norm: seconds[norm] / seconds[PASS] for norm in constraints}
    if options.kind == "loop":
        for norm in constraints:
            ratios[f"{norm}, turn"] = (seconds[f"{PASS}, {norm}"] + seconds[norm]) / seconds[PASS] - 1
    return {"kind": options.kind, **found, "ratios": ratios}


def project(options: argparse.Namespace) -> dict[str, Any]:
    model = build(options)
    weights = list(model.parameters())
    constraints = {norm: TPGM(model, norm=norm) for norm in ("mars", "l2")}
    shift(model)
    start = [p.detach().clone() for p in weights]
    for c in constraints.values():  # radii begin at half the smallest norm: every row is shortened
        c.update(lambda: torch.stack([p.sum() for p in weights]).sum())
    states = {norm: copy.deepcopy(c.state_dict()) for norm, c in constraints.items()}
    count = sum(p.numel() for p in weights)
    source, target = torch.randn(count, device=options.device), torch.empty(count, device=options.device)
    pieces: dict[str, Callable[[], Any]] = {norm: c.project_ for norm, c in constraints.items()}
    # norms taken over from the update, as in a loop that projects after it
    after = {f"{norm}, after update": c for norm, c in constraints.items()}
    pieces |= {name: partial(c.project_, unmoved=True) for name, c in after.items()}
    pieces["copy"] = lambda: target.copy_(source)
    times: dict[str, list[float]] = {name: [] for name in pieces}
    for turn in range(options.repeats + 1):
        for name, piece in pieces.items():
            with torch.no_grad():  # as they were, out of the measured time
                torch._foreach_copy_(weights, start)
            if name != "copy":
                c = {**constraints, **after}[name]
                c.load_state_dict(states[name.split(",")[0]])
                c._measured_at = c._versions()
            synchronize()
            began = now()
            piece()
            synchronize()
            if turn:
                times[name].append(now() - began)
    seconds = {name: statistics.median(of) for name, of in times.items()}
    speed = {"copy": 8 * count / seconds["copy"], **{n: 20 * count / seconds[n] for n in pieces if n != "copy"}}
    return {
        "seconds": seconds,
        "bytes_per_second": speed,
        "ratios": {n: speed[n] / speed["copy"] for n in pieces if n != "copy"},
    }


def optimizers(options: argparse.Namespace) -> dict[str, Any]:
    made = {
        "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
        "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, fused=True),
        "SGD, default": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True),
        "AdamP": AdamP,
        "SGDP": lambda p: SGDP(p, lr=1e-3),
        "AdamSPD": AdamSPD,
    }
    pieces = {}
    for name, make in made.items():
        model = build(options)
        optimizer = make(model.parameters())
        for p in model.parameters():
            p.grad = 1e-2 * torch.randn_like(p)
        pieces[name] = optimizer.step
    seconds = medians(pieces, options.repeats)
    base = {"AdamP": "AdamW", "AdamSPD": "AdamW", "SGDP": "SGD"}
    ratios = {name: seconds[name] / seconds[of] for name, of in base.items()}
    return {"seconds": seconds, "ratios": {**ratios, "SGDP over default": seconds["SGDP"] / seconds["SGD, default"]}}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak of fresh processes, of which one fine-tunes only; on a GPU that of its allocator."""
    given = ("model", "batch", "size", "device")
    command = [sys.executable, __file__, *(f"--{name}={getattr(options, name)}" for name in given)]
    # glibc gives freed tensors back to the system then, so that the peak is one of what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    peaks = {}
    for how in ("vanilla without kernels", "vanilla", "tpgm", "tpgm, copy given back", "tpgm, bf16 anchor", KEPT):
        done = subprocess.run(
            [*command, f"--peak-of={how}"], capture_output=True, text=True, check=True, env=environment
        )
        peaks[how] = int(done.stdout)
    size = 4 * sum(p.numel() for p in build(options).parameters())
    beyond = {how: (peak - peaks["vanilla"]) / size for how, peak in peaks.items() if how.startswith("tpgm")}
    return {"bytes": peaks, "weights_bytes": size, "ratios": beyond}


def peak_of(options: argparse.Namespace) -> int:
    """Peak bytes of three training steps with AdamW, with a projection update after each unless vanilla.

    Training gradients are freed before the update, but for the way that says otherwise.
    """
    model, how = build(options), options.peak_of
    if how != "vanilla without kernels":  # numba's own memory, the same for every model
        small = nn.Linear(2, 2)
        TPGM(small).update(lambda: small(torch.ones(2)).sum())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    settings: dict[str, Any] = {"keep_copy": how != "tpgm, copy given back"}
    if how == "tpgm, bf16 anchor":
        settings["anchor_dtype"] = torch.bfloat16
    constraint = None if how.startswith("vanilla") else TPGM(model, **settings)
    x = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    y = torch.arange(options.batch, device=options.device) % CLASSES
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if how != KEPT:
            optimizer.zero_grad(set_to_none=True)
        if constraint is not None:
            constraint.update(lambda: cross_entropy(model(x), y))
            constraint.project_()
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of timm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch finds them")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="the passes under autocast")
    parser.add_argument("--kind", action="append", choices=KINDS, default=[], help="of the update (both)")
    parser.add_argument("--only", action="append", choices=PARTS, default=[], help="this part (all but memory)")
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    global CLOCK
    CLOCK = options.clock
    if options.clock == "cpu":
        options.threads = 1
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak_of(options))
        return
    kept = {k: v for k, v in vars(options).items() if k not in ("out", "only", "kind", "peak_of")}
    kernels = passes.kernels() is not None if passes else compiled.available()
    kept |= {"threads": torch.get_num_threads(), "compiled": options.device == "cpu" and kernels}
    kinds = options.kind or KINDS
    for name in options.only or PARTS[:3]:
        for options.kind in kinds if name == "update" else ("",):
            found = globals()[name](copy.copy(options))
            row = {"part": name, "config": kept, **found, **provenance(("numba",))}
            print(json.dumps(row, indent=1), flush=True)
            if options.out:
                append(options.out, row)


if __name__ == "__main__":
    main()
