"""The training loop, from a pre-trained model and data to a checked, resumable result. It reads from top to bottom.

A run goes through the stages that its method names. Stages that train are the same for all methods; what a method adds
it adds by its hooks (``tpgm.methods.base``), which stand there in the order in which they are called here.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from tpgm import check, models
from tpgm.anchor import copy_of
from tpgm.buffers import more_than_one, with_statistics
from tpgm.data import DataSplits
from tpgm.files import own_folder, sealed, write_aside
from tpgm.methods.base import DEFAULT, Context, Method, Stage, make, options, ordinary_optimizer, refuse_schedule_free
from tpgm.names import aliases, chosen
from tpgm.provenance import provenance
from tpgm.training.batches import content, content_of, derive, index_batches, per_epoch, read, share, warm_cosine
from tpgm.training.checkpoint import Checkpoints, Progress
from tpgm.training.evaluate import Accuracy, count
from tpgm.training.interruption import stop_requests
from tpgm.training.result import Result, origin
from tpgm.training.stages import StageStore

LOGS = ("csv", "tensorboard", "wandb")
DEVICE = "ACCELERATE_TORCH_DEVICE"  # where accelerate looks which device is wanted


def finetune(
    model: str | Path | models.Pretrained,
    data: DataSplits,
    method: str | Method = DEFAULT,
    *,
    out: str | Path | None = None,
    size: int | None = None,
    progress: bool = True,
    store: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    device: str | torch.device | None = None,
    architecture: str | None = None,
    log: str | Sequence[str] = (),
    command: str = "",
    **settings: Any,
) -> Result:
    """Fine-tune a pre-trained model by any method of ``tpgm.methods.METHODS``.

    model: a name or path for ``tpgm.models.load``, or what that returned (it is copied). data: splits as ``tpgm.data``
    gives them; only training data move the weights, only ID validation data choose anything, OOD data are looked at
    once, at the end. method: a name, or a `tpgm.methods.Method` with its settings. settings: of the method, see
    ``tpgm.methods.options(method)``; they come before those that a `Method` has.

    out: a folder for the checkpoint while running and, when done, for what `tpgm.models.save_pretrained` writes,
    ``result.json``, ``report.html``, ``learning.png`` and, where ratios are learned, ``ratios.png``; the same call
    continues an interrupted run exactly, bit for bit on a CPU. checkpoint_seconds: of training between two checkpoints;
    there is one at the end of each stage too. size: height and width in pixels at which images enter the model, by
    default the model's own. store: a folder in which stages that are the same for several methods (the head; ordinary
    fine-tuning before WiSE-FT or radii learned at the end) are kept and taken from: what computing them again would
    give. device: such as "cpu" or "cuda:1", by default a GPU if there is one. architecture: what a checkpoint of other
    projects goes into, as for `tpgm.models.load`. progress: bars, and on each epoch a line with ID validation accuracy
    and the time left, on stderr. log: the same numbers go to "csv" (``history.csv`` in `out`), "tensorboard" or "wandb"
    as well. command: what repeats the run, kept in ``result.json``; by default this call.

    Raises ValueError for an unknown method or setting, data or a checkpoint that do not fit, FileExistsError if `out`
    holds a finished run, RuntimeError if another run is using it, OSError if it cannot be written, FloatingPointError
    if the loss is not finite, KeyboardInterrupt after saving on Ctrl-C or SIGTERM.
    """
    made = make(method, settings)
    folder = None if out is None else check.path("out", out)
    of = "a name or file for tpgm.models.load, or the Pretrained it returned (which takes your module as architecture)"
    check.instance("model", model, models.Pretrained | str | Path, of)
    check.instance("data", data, DataSplits, "the DataSplits of tpgm.data, such as image_folder(…)")
    if len(data.class_names) < 2:
        raise ValueError(f"data have {len(data.class_names)} class, {data.class_names}: there is nothing to tell apart")
    if size is not None:
        check.number("size", size, 1, whole=True)
    check.flag("progress", progress)
    check.number("checkpoint_seconds", checkpoint_seconds, 0)
    place = None if device is None else check.device("device", device)
    logs = (log,) if isinstance(log, str) else tuple(log)
    for one in logs:
        check.choice("log", one, LOGS)
    if logs and folder is None:
        raise ValueError(f"log {', '.join(logs)} needs a folder (out)")
    if absent := [one for one in logs if one != "csv" and find_spec(one) is None]:
        raise ImportError(f"log {absent[0]!r} needs this package: pip install {absent[0]}")
    shared = None if store is None else StageStore(check.path("store", store))
    if folder is not None and (folder / "result.json").exists():
        raise FileExistsError(f"{folder} holds a finished run; choose another folder or delete it")
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerator_of(made.precision, place, logs, folder))
        if folder is not None and accelerator.is_main_process:
            stack.enter_context(own_folder(folder))
        # the caller's random numbers stay
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        torch.manual_seed(derive(made.seed, "head"))
        start = beginning(model, data, size, made.seed, architecture)
        run = TrainingRun(
            accelerator, start, data.at_size(start.preparation.size), made, folder, progress, checkpoint_seconds
        )
        run.csv = folder / "history.csv" if folder is not None and "csv" in logs else None
        if logs and accelerator.is_main_process:
            simple = {n: v for n, v in made.settings.items() if isinstance(v, int | float | str)}
            accelerator.init_trackers("fine-tuning", {"method": made.name, "model": start.name, **simple})
            stack.callback(accelerator.end_training)
        run.train(shared, kept=folder is not None)
        result = run.finish()
        result.about = {**origin(start, data), **provenance(), "command": command or _call(start, made, out)}
        if folder is not None and accelerator.is_main_process:
            _save(folder, start, result)
            run.checkpoints.delete()
    return result


def beginning(
    model: str | Path | models.Pretrained,
    data: DataSplits,
    size: int | None,
    seed: int,
    architecture: str | None = None,
) -> models.Pretrained:
    """What a run starts from: the model, loaded with a new head drawn from `seed` where a name or file is given."""
    if isinstance(model, models.Pretrained):
        return model if size is None else replace(model, preparation=replace(model.preparation, size=size))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "head"))
        return models.load(model, num_classes=len(data.class_names), size=size, architecture=architecture)


class TrainingRun:
    """One call of `finetune`: the network on its way through the stages."""

    def __init__(
        self,
        accelerator: Accelerator,
        start: models.Pretrained,
        data: DataSplits,
        method: Method,
        folder: Path | None,
        progress: bool,
        checkpoint_seconds: float,
    ) -> None:
        self.accelerator, self.start, self.data, self.method = accelerator, start, data, method
        self.device = accelerator.device
        self.format = torch.channels_last if method.channels_last else torch.contiguous_format
        self.net: nn.Module = copy_of(start.model).to(self.device)
        self.net = self.net.to(memory_format=self.format)
        head = frozenset(chosen(aliases(self.net), [f"{start.head}.*"]))
        if not head:
            raise ValueError(f"the model has no parameter under its head's name, {start.head!r}: load it anew")
        outputs, classes = len(self.net.get_parameter(f"{start.head}.weight")), len(data.class_names)
        if outputs != classes:
            raise ValueError(f"the model's head has {outputs} outputs, the data have {classes} classes: load it anew")
        anchor = {name: tensor.to(self.device) for name, tensor in start.anchor.items()}
        self.context = Context(
            self.net, anchor, start.exclude, head, self.batch, self.inputs, self.validation, accelerator.autocast
        )
        # BatchNorm cannot take the statistics of one image
        alone = method.batchnorm == "train" or getattr(method, "buffers", "") == "reestimate"
        self.least = accelerator.num_processes + 1 if alone and with_statistics(self.net) else 1
        self.epoch = per_epoch(len(data.train), method.batch_size, self.least)  # training steps in it
        self.stages = [stage for stage in method.stages(self.epoch) if stage.steps]
        self.show = progress and accelerator.is_main_process
        self.bars = self.show and sys.stderr.isatty()
        self.csv: Path | None = None
        self.at, self.saved = Progress(), dict[str, Any]()
        self.best: dict[str, Tensor] | None = None
        self.probed: dict[str, Tensor] | None = None
        self.began = content_of(self.net.state_dict().values())
        self.checkpoints = Checkpoints(folder, self.identity(), checkpoint_seconds, accelerator.is_main_process)
        self.resume()

    # --- the run

    def train(self, store: StageStore | None, kept: bool) -> None:
        """Go through the stages that are left."""
        self.accelerator.wait_for_everyone()
        with stop_requests(kept) as stop:
            self.clock = time.monotonic() - self.at.seconds
            while self.at.stage < len(self.stages):
                stage = self.stages[self.at.stage]
                usable = store is not None and stage.shared and not self.method.patience and not self.at.step
                file = store.file(self.stages[: self.at.stage + 1], self.identity()) if store and usable else None
                if file is not None and file.exists():
                    self.take(StageStore.read(file, self.device))
                else:
                    began, before = self.at.seconds, len(self.at.history)
                    if stage.name in ("head", "weights"):
                        self.training_stage(stage, stop)
                    else:
                        self.own_stage(stage, stop)
                    if file is not None and self.accelerator.is_main_process:
                        history, seconds = self.at.history[before:], self.at.seconds - began
                        state = {"model": self.net.state_dict(), "history": history, "seconds": seconds}
                        StageStore.write(file, state)
                self.at.stage, self.at.step = self.at.stage + 1, 0
                self.context.learner = self.context.optimizer = None
                if stage.name == "head" and self.method.anchor_head:
                    now = aliases(self.net)
                    self.anchor_head({name: now[name].detach().clone() for name in self.context.head})
                self.boundary(stop, force=True)

    def training_stage(self, stage: Stage, stop: Event) -> None:
        """Train the head or the weights by SGD or Adam, with what the method adds in the stage "weights"."""
        method, context, full = self.method, self.context, stage.name == "weights"
        trainable = method.trainable(context) if full else set(context.head)
        highest = method.lr if full else method.head_lr
        parameters = {name: p for name, p in aliases(self.net).items() if name in trainable}
        for name, p in aliases(self.net).items():
            p.requires_grad_(name in trainable)
        once = {id(p): name for name, p in reversed(parameters.items())}  # a tied parameter under its first name
        parameters = {name: parameters[name] for name in once.values()}
        net = context.net = self.accelerator.prepare_model(self.net)
        made = method.make_optimizer(context, parameters, highest) if full else None
        refuse_schedule_free(made)
        optimizer = self.accelerator.prepare_optimizer(made or ordinary_optimizer(method, parameters, highest))
        context.optimizer, context.steps = optimizer, stage.steps
        context.learner = method.enter(context, stage.name) if full else None
        self.continue_stage()
        self.set_modes(net, train=trainable != context.head)

        order = derive(method.seed, stage.name)
        batches = index_batches(len(self.data.train), method.batch_size, order, self.at.step, self.least)
        images_and_labels = read(self.data.train, self.mine(batches), method.workers)
        bar = tqdm(total=stage.steps, initial=self.at.step, desc=stage.name, disable=not self.bars)
        for step in range(self.at.step, stage.steps):
            torch.manual_seed(derive(method.seed, stage.name, step, self.accelerator.process_index))
            for group in optimizer.param_groups:
                group["lr"] = highest * warm_cosine(step, stage.steps, method.warmup)
            generator = torch.Generator().manual_seed(torch.initial_seed()) if method.augment else None
            images, labels = next(images_and_labels)
            x, y = self.input(images, generator), labels.to(self.device)
            with self.accelerator.autocast(), more_than_one():
                loss = cross_entropy(net(x), y)
            extra = method.extra_loss(context) if full else None
            if extra is not None:
                loss = loss + extra
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"the training loss is {loss.item()} at step {step} of stage {stage.name!r}: lower lr (now "
                    f"{highest}), train the head first (head_epochs)"
                )
            optimizer.zero_grad()
            self.accelerator.backward(loss)
            optimizer.step()
            if full:
                method.after_step(context, step)
            self.at.step = step + 1
            bar.update()
            if self.at.step % self.epoch == 0 and self.end_of_epoch(stage, loss.item()):
                break
            self.boundary(stop)
        bar.close()
        if full and self.best is None:
            self.at.learned = method.learned(context)
        self.unwrap(net)
        if self.best is not None:
            self.net.load_state_dict(self.best)
            self.best = None

    def own_stage(self, stage: Stage, stop: Event) -> None:
        """A stage in which the method does something else than train."""
        for p in self.net.parameters():
            p.requires_grad_(True)
        net = self.context.net = self.accelerator.prepare_model(self.net)
        self.context.steps = stage.steps
        self.set_modes(net, train=True)  # as training left them, also where it was resumed or taken from the store
        self.context.learner = self.method.enter(self.context, stage.name)
        self.continue_stage()
        numbers = range(self.at.step, stage.steps)
        self.say(f"{stage.name}: {len(numbers)} steps")
        for number in tqdm(numbers, stage.name, stage.steps, initial=self.at.step, disable=not self.bars):
            self.method.own_step(self.context, stage.name, number)
            self.at.step = number + 1
            self.boundary(stop)
        self.method.leave(self.context, stage.name)
        self.at.learned = self.method.learned(self.context)
        self.unwrap(net)

    def finish(self) -> Result:
        """The result, tested."""
        path = {}
        for number, net in self.method.further(self.context):
            path[number] = {n: self.accuracy(net, d, f"{n} at {number:.2f}") for n, d in self.tests().items()}
        self.net = self.method.finish(self.context)
        return Result(
            method=self.method.name,
            settings=self.method.settings,
            model=self.net.eval(),
            class_names=self.data.class_names,
            accuracies={name: self.accuracy(self.net, data, name) for name, data in self.tests().items()},
            history=self.at.history,
            ratios=self.at.learned[0],
            radii=self.at.learned[1],
            path=path,
            seconds=self.at.seconds,
        )

    # --- between steps, epochs and stages

    def boundary(self, stop: Event, force: bool = False) -> None:
        """Between two steps: save if it is time to, and leave if asked to."""
        self.at.seconds = time.monotonic() - self.clock
        self.checkpoints.save(self.at, self.state, force or stop.is_set())
        if stop.is_set():
            kept = (
                "the same call continues the run"
                if self.checkpoints.path
                else "without a folder (out) nothing was kept"
            )
            raise KeyboardInterrupt(f"stopped between two steps; {kept}")

    def end_of_epoch(self, stage: Stage, loss: float) -> bool:
        """Validate and tell; keep the best weights if there is a patience; say whether to stop."""
        accuracy = self.accuracy(self.net, self.data.val, "val").value
        epoch = self.at.step // self.epoch
        self.at.history.append({"stage": self.at.stage, "epoch": epoch, "loss": loss, "val": accuracy})
        self.tell(stage, epoch)
        if stage.name == "head" or not self.method.patience:
            return False
        if accuracy > self.at.best:
            self.at.best, self.at.since_best = accuracy, 0
            self.best = self.net.state_dict()  # not a plain dict: versions of modules go along
            self.best.update({name: t.detach().clone() for name, t in self.best.items()})
            self.at.learned = self.method.learned(self.context)
        else:
            self.at.since_best += 1
        if self.at.since_best < self.method.patience:
            return False
        self.say(f"stopped early after {self.at.since_best} epochs without a better ID validation accuracy")
        return True

    def tell(self, stage: Stage, epoch: int) -> None:
        """One line on the epoch that ended, with the time that is left; the same to the logs."""
        now = self.at.history[-1]
        seconds = time.monotonic() - self.clock
        before = sum(s.steps for s in self.stages[: self.at.stage]) + self.at.step
        left = seconds / before * (sum(s.steps for s in self.stages) - before)
        self.say(
            f"{stage.name}, epoch {epoch} of {stage.steps // self.epoch}: loss {now['loss']:.3f}, "
            f"ID validation {100 * now['val']:.1f} %, {duration(seconds)}, about {duration(left)} left"
        )
        values = {"loss": now["loss"], "validation": now["val"]}
        self.accelerator.log(values, step=len(self.at.history))
        if self.csv is not None and self.accelerator.is_main_process:
            lines = [
                f"{self.stages[int(h['stage'])].name},{h['epoch']},{h['loss']},{h['val']}" for h in self.at.history
            ]
            with write_aside(self.csv) as aside:
                aside.write_text("\n".join(["stage,epoch,loss,validation", *lines, ""]), encoding="utf-8")

    def say(self, line: str) -> None:
        """A line for people, above the bars."""
        if self.show:
            tqdm.write(line, file=sys.stderr)

    def unwrap(self, net: nn.Module) -> None:
        """Take the network out of what the accelerator put around it."""
        self.net = self.context.net = self.accelerator.unwrap_model(net, keep_fp32_wrapper=False)

    def anchor_head(self, tensors: dict[str, Tensor]) -> None:
        """From here on the anchor holds this head too, by parameter name."""
        self.probed = tensors
        self.context.anchor = {**self.context.anchor, **tensors}
        self.context.exclude = tuple(sorted(chosen(aliases(self.net), self.context.exclude) - self.context.head))

    def take(self, stage: dict[str, Any]) -> None:
        """A stage's result from the store, as if it had been computed here."""
        self.net.load_state_dict(stage["model"])
        self.at.history += stage["history"]
        self.clock -= stage["seconds"]

    # --- data

    def mine(self, batches: Iterator[list[int]], pad: bool = True) -> Iterator[list[int]]:
        return share(batches, self.accelerator.process_index, self.accelerator.num_processes, pad)

    def input(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Prepared images on the device, in the memory format of the model."""
        return self.start.preparation(images, self.device, generator).contiguous(memory_format=self.format)

    def batch(self, part: str, size: int, number: int) -> tuple[Tensor, Tensor]:
        """What `Context.batch` promises."""
        data = {"val": self.data.val, "train": self.data.train}[part]
        batches = index_batches(len(data), size, derive(self.method.seed, "val"), number, self.least)
        images, labels = next(read(data, [next(self.mine(batches))], 0))
        return self.input(images), labels.to(self.device)

    def inputs(self) -> Iterator[Tensor]:
        """What `Context.inputs` promises; of several processes each takes its share."""
        size, count = self.method.batch_size, len(self.data.train)
        starts = range(0, size * per_epoch(count, size, self.least), size)
        batches = [list(range(i, min(i + size, count))) for i in starts]
        for images, _ in read(self.data.train, list(self.mine(iter(batches))), self.method.workers):
            yield self.input(images)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What `Context.validation` promises."""
        count = len(self.data.val)
        batches = [list(range(i, min(i + 256, count))) for i in range(0, count, 256)]
        for images, labels in read(self.data.val, batches, self.method.workers):
            yield self.input(images), labels.to(self.device)

    # --- evaluation

    def set_modes(self, net: nn.Module, train: bool) -> None:
        """Train mode or, for a frozen backbone, eval mode; BatchNorm stays in eval mode if asked for."""
        net.train(train)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and self.method.batchnorm == "eval":
                module.eval()

    def tests(self) -> dict[str, Any]:
        return {"val": self.data.val, "id_test": self.data.id_test, **self.data.ood_tests}

    def accuracy(self, net: nn.Module, data: Any, label: str) -> Accuracy:
        """Over all processes, in eval mode."""
        batches = [list(range(i, min(i + 256, len(data)))) for i in range(0, len(data), 256)]
        loader = read(data, list(self.mine(iter(batches), pad=False)), self.method.workers)
        bar = tqdm(loader, desc=f"test {label}", disable=not self.bars, leave=False)
        inputs = ((self.input(images), labels.to(self.device)) for images, labels in bar)
        with self.accelerator.autocast():
            found = count(net, inputs, len(self.data.class_names), data, self.device)
        return Accuracy.of(self.accelerator.reduce(found, "sum").cpu())

    # --- resume

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in self.method.settings.items()}
        return {
            "method": self.method.name,
            "settings": settings,
            "data": [self.data.name, self.data.id_domain, len(self.data.train), len(self.data.val)],
            "labels": int(derive(0, *self.data.train.labels.tolist())),
            "content": [content(part) for part in (self.data.train, self.data.val)],
            "weights": self.began,
            "model": self.start.name,
            "preparation": json.loads(json.dumps(asdict(self.start.preparation))),
            "classes": list(self.data.class_names),
            "anchor": sum(t.detach().cpu().double().sum().item() for t in self.start.anchor.values()),
            "processes": self.accelerator.num_processes,
        }

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides `Progress`."""
        optimizer, learner = self.context.optimizer, self.context.learner
        return {
            "model": self.accelerator.unwrap_model(self.net).state_dict(),
            "best": self.best,
            "probed": self.probed,
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "learner": None if learner is None else learner.state_dict(),
        }

    def resume(self) -> None:
        """Take up what an earlier call left in the folder."""
        found = self.checkpoints.load(self.device)
        if found is not None:
            self.at, self.saved = found
            self.net.load_state_dict(self.saved["model"])
            self.best = self.saved["best"]
            if probed := self.saved.get("probed"):
                self.anchor_head(probed)

    def continue_stage(self) -> None:
        """Optimizer and learner of the stage in which the checkpoint was made go on from their states there."""
        state, self.saved = self.saved, {}
        if state.get("optimizer") is not None and self.context.optimizer is not None:
            self.context.optimizer.load_state_dict(state["optimizer"])
        if state.get("learner") is not None and self.context.learner is not None:
            self.context.learner.load_state_dict(state["learner"])


def _call(start: models.Pretrained, method: Method, out: str | Path | None) -> str:
    """The call of `finetune`, without settings at their defaults."""
    changed = {name: v for name, v in method.settings.items() if v != options(method.name)[name][0]}
    given = {**({} if out is None else {"out": str(out)}), "size": start.preparation.size, **changed}
    return f"tpgm.finetune({start.name!r}, data, {method.name!r}, {', '.join(f'{n}={v!r}' for n, v in given.items())})"


def duration(seconds: float) -> str:
    """A time for people: "48 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def accelerator_of(
    precision: str, device: torch.device | None, logs: Sequence[str] = (), folder: Path | None = None
) -> Iterator[Accelerator]:
    """An accelerator of this precision. Accelerate keeps its state for a whole process; the caller's is put back."""
    kept = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState, GradientState)]
    AcceleratorState._reset_state()
    before = os.environ.get(DEVICE)
    try:
        if device is not None:
            PartialState._reset_state()
            os.environ[DEVICE] = str(device)
        trackers = [one for one in logs if one != "csv"]
        cpu = device is not None and device.type == "cpu"
        yield Accelerator(mixed_precision=precision, cpu=cpu, log_with=trackers or None, project_dir=folder)
    finally:
        if device is not None:
            os.environ.pop(DEVICE)
            os.environ.update({} if before is None else {DEVICE: before})
        for kind, state in kept:
            kind._shared_state.clear()
            kind._shared_state.update(state)


def _save(folder: Path, start: models.Pretrained, result: Result) -> None:
    """Model, figure and, last, the row that says the run is finished."""
    from tpgm.reporting import learning_curve, page, ratios_by_depth

    row = result.row()
    models.save_pretrained(folder, start, result.model, result.class_names, result=row)
    figures = {"learning": learning_curve(result.history)}
    if result.ratios:
        figures["ratios"] = ratios_by_depth(result.ratios, result.model)
    for name, figure in figures.items():
        with write_aside(folder / f"{name}.png") as aside:
            figure.savefig(aside, format="png")
    with write_aside(folder / "report.html") as aside:
        aside.write_text(page(row, figures.values()), encoding="utf-8")
    with write_aside(folder / "result.json") as aside:
        aside.write_text(sealed(json.dumps(row, indent=1)), encoding="utf-8")
