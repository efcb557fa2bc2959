"""A run in little: three steps of each stage, from which time and memory of the whole are told."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import torch

from tpgm import check, models
from tpgm._engine.gradients import eval_mode
from tpgm.data import DataSplits
from tpgm.methods.base import DEFAULT, Method, Stage, make, options
from tpgm.provenance import peak_memory
from tpgm.training.loop import TrainingRun, accelerator_of, beginning, duration

STEPS = 3  # the first is slower than the others


class _Rehearsal(TrainingRun):
    """Three steps of every stage, without validation and checkpoints; ticks: when they ended."""

    def begin(self) -> list[Stage]:
        """The stages as they would be; from here on they are short."""
        planned, self.ticks = self.stages, dict[int, list[float]]()
        self.stages = [stage._replace(steps=min(stage.steps, STEPS)) for stage in planned]
        return planned

    def boundary(self, stop: Event, force: bool = False) -> None:
        if not force:
            self.ticks.setdefault(self.at.stage, []).append(time.monotonic())
        super().boundary(stop, force)

    def end_of_epoch(self, stage: Stage, loss: float) -> bool:
        return False


@check.keywords
def rehearse(
    model: str | Path | models.Pretrained,
    data: DataSplits,
    method: str | Method = DEFAULT,
    *,
    size: int | None = None,
    device: str | torch.device | None = None,
    architecture: str | None = None,
    settings: dict[str, Any] | None = None,
) -> str:
    """What `tpgm.finetune` would do with these arguments, in lines of text; nothing is written.

    Three steps of every stage are taken, and one batch is tested: seconds and memory of the whole are estimates from
    these on this machine. Raises what `tpgm.finetune` raises.
    """
    made = make(method, settings or {})
    place = None if device is None else check.device("device", device)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerator_of(made.precision, place))
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        start = beginning(model, data, size, made.seed, architecture)
        run = _Rehearsal(accelerator, start, data.at_size(start.preparation.size), made, None, False, 1e9)
        planned = run.begin()
        began = time.monotonic()
        run.train(None, kept=False)
        lines, training = [], 0.0
        for number, stage in enumerate(planned):
            ticks = [began, *run.ticks[number]]
            each = ticks[-1] - ticks[-2]
            began, training = ticks[-1], training + each * stage.steps
            epochs = f"{stage.steps // run.epoch} x {run.epoch}" if stage.name in ("head", "weights") else stage.steps
            lines.append(f"stage {stage.name}: {epochs} steps of {each:.2g} s")
        tested = _seconds_an_image(run)
        trained = sum(stage.steps // run.epoch for stage in planned if stage.name in ("head", "weights"))
        tests = tested * sum(len(part) for part in run.tests().values())
        training += tested * len(data.val) * trained
        weights = sum(p.numel() for p in run.net.parameters())
        peak = peak_memory(run.device)
    changed = {name: v for name, v in made.settings.items() if v != options(made.name)[name][0]}
    images = ", ".join(f"{name} {len(part)}" for name, part in {"train": data.train, **run.tests()}.items())
    kind = "a GPU" if run.device.type == "cuda" else "this process"
    return "\n".join(
        [
            f"model: {start.name}, {start.preparation.size} pixels, {weights:,} weights, on {run.device}",
            f"data: {data.name}, {len(data.class_names)} classes; images: {images}",
            f"method: {made.name}, {', '.join(f'{n}={v}' for n, v in changed.items()) or 'at its defaults'}",
            *lines,
            f"time: about {duration(training)} of training and {duration(tests)} of tests at the end",
            f"memory: {'unknown' if peak is None else f'{peak / 1e9:.1f} GB'} at most so far in {kind}",
            f"files: about {4 * weights / 1e6:.0f} MB for the model, up to {16 * weights / 1e6:.0f} MB for checkpoints",
        ]
    )


@torch.no_grad()
def _seconds_an_image(run: TrainingRun) -> float:
    """Of a forward pass on validation images, their reading included; the first batch warms up."""
    count = min(64, len(run.data.val))
    with eval_mode(run.net), run.accelerator.autocast():
        for number in (0, 1):
            began = time.monotonic()
            run.net(run.batch("val", count, number)[0]).sum().item()
    return (time.monotonic() - began) / count
