"""One training loop for every method, from a pre-trained model and data to a checked, resumable result."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import tpgm.models as models
from tpgm.baselines import l2_sp, mars_penalty, norm_and_bias_names, project_fixed
from tpgm.constraint import TPGM
from tpgm.data import DataSplits
from tpgm.files import write_aside
from tpgm.interpolation import interpolate
from tpgm.methods import COMMON, Settings, resolve
from tpgm.names import aliases, matches, require_match
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP
from tpgm.schedule import Adaptive
from tpgm.training.batches import derive, index_batches, read, warm_cosine
from tpgm.training.evaluate import Accuracy, answers
from tpgm.training.result import Result

CHECKPOINT_SECONDS = 60.0
MOMENTUM = 0.9
ORDINARY = ("vanilla", "lp-ft", "wise-ft", "tpgm-end", "tpgm-c")  # their weights stage is plain fine-tuning


@dataclass
class Progress:
    """Where a run is; with the model's, the optimizer's and the constraint's state this is all there is to resume."""

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def finetune(
    model: str | Path | models.Pretrained,
    data: DataSplits,
    method: str = "tpgm",
    *,
    out: str | Path | None = None,
    size: int | None = None,
    progress: bool = True,
    store: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Fine-tune a pre-trained model by any method of ``tpgm.methods.METHODS``.

    model: a name or path for ``tpgm.models.load``, or what that returned (it is copied). data: splits as ``tpgm.data``
    gives them; only training data move the weights, only ID validation data choose anything, OOD data are looked at
    once, at the end. out: a folder for the checkpoint while running and for ``model.safetensors``, ``result.json`` and
    ``ratios.png`` when done; the same call continues an interrupted run exactly, bit for bit on a CPU. size: height and
    width in pixels at which images enter the model, by default the model's own. store: a folder in which stages that
    are the same for several methods (the head; ordinary fine-tuning before WiSE-FT or radii learned at the end) are
    kept and taken from: what computing them again would give. settings: see ``tpgm.methods.options(method)``.

    Raises ValueError for an unknown method or setting, data or a checkpoint that do not fit, FileExistsError if `out`
    holds a finished run, FloatingPointError if the loss is not finite, KeyboardInterrupt after saving on Ctrl-C.
    """
    config = resolve(method, settings)
    folder = None if out is None else Path(out)
    if folder is not None and (folder / "result.json").exists():
        raise FileExistsError(f"{folder} holds a finished run; choose another folder or delete it")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # the caller's random numbers stay
        torch.manual_seed(derive(config["seed"], "head"))
        if isinstance(model, models.Pretrained):
            start = model if size is None else replace(model, preparation=replace(model.preparation, size=size))
        else:
            start = models.load(model, num_classes=len(data.class_names), size=size)
        run = _Run(start, data, method, config, folder, progress, None if store is None else Path(store))
        run.resume()
        result = run.train()
        if folder is not None and run.accelerator.is_main_process:
            run.save(result)
    AcceleratorState._reset_state()
    return result


class _Run:
    def __init__(
        self,
        start: models.Pretrained,
        data: DataSplits,
        method: str,
        config: Settings,
        folder: Path | None,
        progress: bool,
        store: Path | None = None,
    ) -> None:
        self.store = store
        self.start, self.data, self.method, self.config, self.folder = start, data, method, config, folder
        AcceleratorState._reset_state()  # accelerate keeps one precision for a process; each run here has its own
        self.accelerator = Accelerator(mixed_precision=config["precision"])
        self.device = self.accelerator.device
        self.format = torch.channels_last if config["channels_last"] else torch.contiguous_format
        self.net = copy.deepcopy(start.model).to(self.device, memory_format=self.format)
        self.anchor = {name: tensor.to(self.device) for name, tensor in start.anchor.items()}
        self.head = {name for name in aliases(self.net) if matches(name, [f"{start.head}.*"])}
        if not self.head:
            raise ValueError(f"the model has no parameter under its head's name, {start.head!r}")
        outputs, classes = len(self.net.get_submodule(start.head).weight), len(data.class_names)
        if outputs != classes:
            raise ValueError(f"the model's head has {outputs} outputs, the data have {classes} classes: load it anew")
        self.at = Progress()
        self.best: dict[str, Tensor] | None = None
        self.constraint: TPGM | None = None
        self.schedule: Adaptive | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.saved: dict[str, Any] | None = None
        self.show = progress and self.accelerator.is_main_process
        self.per_epoch = -(-len(data.train) // config["batch_size"])
        self.stages = self._plan()

    # --- the loop

    def train(self) -> Result:
        self.accelerator.wait_for_everyone()
        began, before = time.monotonic(), self.at.seconds
        with _interruption() as interrupted:

            def boundary(force: bool = False) -> None:
                """Between two steps: save if it is time to, and leave if asked to."""
                self.at.seconds = before + time.monotonic() - began
                if force or interrupted.is_set() or self.at.seconds - self.last_save > CHECKPOINT_SECONDS:
                    self.checkpoint()
                if interrupted.is_set():
                    saved = (
                        "the same call continues the run" if self.folder else "without a folder (out) nothing was kept"
                    )
                    raise KeyboardInterrupt(f"stopped between two steps; {saved}")

            self.last_save = before
            while self.at.stage < len(self.stages):
                name, steps = self.stages[self.at.stage]
                shared, entered = self._shared(), before + time.monotonic() - began
                if shared is not None and shared.exists():
                    before += self._take(shared)
                else:
                    getattr(self, f"_stage_{name}")(steps, boundary)
                    self._keep_learned()
                    if shared is not None:
                        self._keep(shared, before + time.monotonic() - began - entered)
                self.at.stage, self.at.step = self.at.stage + 1, 0
                self.optimizer = self.constraint = self.schedule = None
                boundary(force=True)
            self.at.seconds = before + time.monotonic() - began
        return self._finish()

    def _plan(self) -> list[tuple[str, int]]:
        c = self.config
        plan = [("head", c["head_epochs"] * self.per_epoch), ("weights", c["epochs"] * self.per_epoch)]
        if self.method in ("tpgm-end", "tpgm-c"):
            plan.append(("radii", c["updates"]))
        return [(name, steps) for name, steps in plan if steps]

    def _stage_head(self, steps: int, boundary: Callable[[], None]) -> None:
        self._train_stage("head", self.head, self.config["head_lr"], steps, boundary)

    def _stage_weights(self, steps: int, boundary: Callable[[], None]) -> None:
        self._train_stage("weights", self._trainable(), self.config["lr"], steps, boundary)

    def _train_stage(
        self, stage: str, trainable: set[str], lr: float, steps: int, boundary: Callable[[], None]
    ) -> None:
        c = self.config
        for name, p in aliases(self.net).items():
            p.requires_grad_(name in trainable)
        net = self.accelerator.prepare_model(self.net)
        full = stage == "weights"
        optimizer = self.optimizer = self.accelerator.prepare_optimizer(self._optimizer(trainable, lr, full))
        if full and self.method == "tpgm":
            self.constraint = self._constraint(net)
            self.schedule = Adaptive(c["tolerance"]) if c["every"] == "auto" else None
        self._load_stage()
        self._set_modes(net, full and self.method != "linear-probe")
        batches = index_batches(len(self.data.train), c["batch_size"], derive(c["seed"], stage), self.at.step)
        train = read(self.data.train, self._mine(batches), c["workers"])
        bar = tqdm(total=steps, initial=self.at.step, desc=stage, disable=not self.show)
        for step in range(self.at.step, steps):
            torch.manual_seed(derive(c["seed"], stage, step, self.accelerator.process_index))
            for group in optimizer.param_groups:
                group["lr"] = lr * warm_cosine(step, steps, c["warmup"])
            generator = torch.Generator().manual_seed(torch.initial_seed()) if c["augment"] else None
            images, labels = next(train)
            x, y = self._input(images, generator), labels.to(self.device)
            with self.accelerator.autocast():
                loss = cross_entropy(net(x), y)
            if full:
                loss = loss + self._regularizer()
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"the training loss is {loss.item()} at step {step} of stage {stage!r}: lower lr (now {lr}), train "
                    "the head first (head_epochs)"
                )
            optimizer.zero_grad()
            self.accelerator.backward(loss)
            optimizer.step()
            if full:
                self._after_step(net, step)
            self.at.step = step + 1
            bar.update()
            if self.at.step % self.per_epoch == 0 and self._end_of_epoch(stage, loss.item(), bar):
                break
            boundary()
        bar.close()
        self.net = self.accelerator.unwrap_model(net, keep_fp32_wrapper=False)
        if self.best is not None:
            self.net.load_state_dict(self.best)
            self.best = None

    def _stage_radii(self, steps: int, boundary: Callable[[], None]) -> None:
        for p in self.net.parameters():
            p.requires_grad_(True)
        net = self.accelerator.prepare_model(self.net)
        self.constraint = self._constraint(net)
        self._load_stage()
        for step in tqdm(
            range(self.at.step, steps), desc="radii", disable=not self.show, initial=self.at.step, total=steps
        ):
            self._radius_update(net, step)
            self.at.step = step + 1
            boundary()
        self.constraint.project_()
        self.net = self.accelerator.unwrap_model(net, keep_fp32_wrapper=False)

    # --- what the methods add

    def _trainable(self) -> set[str]:
        names = set(aliases(self.net))
        if self.method == "linear-probe":
            return self.head
        if self.method == "bitfit":
            return self.head | norm_and_bias_names(self.net)
        if self.method == "partial":
            for pattern in self.config["train"]:
                require_match(pattern, names, "train")
            return self.head | {name for name in names if matches(name, self.config["train"])}
        return names

    def _optimizer(self, trainable: set[str], lr: float, full: bool) -> torch.optim.Optimizer:
        c = self.config
        named = {name: p for name, p in aliases(self.net).items() if name in trainable}
        unique = {id(p): (name, p) for name, p in reversed(named.items())}
        common = {"lr": lr, "weight_decay": c["weight_decay"]}
        if not (full and self.method in ("ftp", "spd", "digrap")):
            parameters = [p for _, p in unique.values()]
            if c["optimizer"] == "sgd":
                return torch.optim.SGD(parameters, momentum=MOMENTUM, nesterov=True, **common)
            return torch.optim.AdamW(parameters, **common)
        new, kept = [], []
        for name, p in unique.values():
            (new if matches(name, self.start.exclude) else kept).append((name, p))
        groups = [{"params": kept, "anchor": self.anchor}, *([{"params": new, "anchor": False}] if new else [])]
        if self.method == "spd":
            return AdamSPD(groups, strength=c["strength"], **common)
        if self.method == "digrap":
            return DiGraP(groups, omega_lr=c["omega_lr"], **common)
        own = {"kappa": c["kappa"], "norm": c["norm"], "radius_lr": c["radius_lr"]}
        if c["optimizer"] == "sgd":
            return SGDP(groups, momentum=MOMENTUM, **own, **common)
        return AdamP(groups, **own, **common)

    def _constraint(self, net: nn.Module) -> TPGM:
        c = self.config
        return TPGM(
            net,
            anchor=self.anchor,
            norm=c["norm"],
            exclude=self.start.exclude,
            lr=c["radius_lr"],
            penalty=c["penalty"],
            tv=c["tv"],
            unit=c["unit"],
            start=c["start"],
            buffers="keep",
        )

    def _regularizer(self) -> Tensor | float:
        c = self.config
        if self.method == "l2-sp":
            return l2_sp(self.net, self.anchor, c["strength"], c["head_strength"])
        if self.method == "mars-penalty":
            return mars_penalty(self.net, self.anchor, c["strength"], c["norm"])
        return 0.0

    def _after_step(self, net: nn.Module, step: int) -> None:
        c = self.config
        if self.method == "mars-sp":
            project_fixed(self.net, self.anchor, c["radius"], c["norm"])
        if self.method == "tpgm" and step + 1 <= c["begin"] * self.per_epoch * c["epochs"]:
            return  # the weights leave their anchor first, so that there is a displacement to judge
        if self.schedule is not None:
            self._after_scheduled_step(net, step)
        elif self.method == "tpgm" and (step + 1) % c["every"] == 0:
            assert self.constraint is not None
            for update in range(c["updates"]):
                self._radius_update(net, (step + 1) // c["every"] * c["updates"] + update)
            self.constraint.project_(unmoved=True)

    def _after_scheduled_step(self, net: nn.Module, step: int) -> None:
        """every=auto: an update where one is due; what an epoch leaves behind is projected in any case."""
        assert self.constraint is not None
        assert self.schedule is not None
        due = self.schedule.step()
        if due:
            first = (self.schedule.updates + 1) * self.config["updates"]
            for update in range(self.config["updates"]):
                self._radius_update(net, first + update)
            self.schedule.observe(self.constraint)
        if due or (step + 1) % self.per_epoch == 0:
            self.constraint.project_(unmoved=due)

    def _radius_update(self, net: nn.Module, number: int) -> None:
        """One projection update on validation batch `number`."""
        c = self.config
        data = self.data.val if c["val_data"] == "val" else self.data.train
        chosen = index_batches(len(data), c["val_batch_size"], derive(c["seed"], "val"), number)
        images, labels = next(read(data, [next(self._mine(chosen))], 0))
        x, y = self._input(images), labels.to(self.device)

        def closure() -> Tensor:
            with self.accelerator.autocast():
                logits = net(x)
                if c["outer_loss"] == "entropy":
                    return cross_entropy(logits, logits.softmax(dim=1))  # the mean entropy of the predictions
                return cross_entropy(logits, y)

        assert self.constraint is not None
        covers = {"covers": self.schedule.since, "limit": self.schedule.tolerance} if self.schedule else {}
        self.constraint.update(closure, **covers)

    def _keep_learned(self, at_best: bool = False) -> None:
        """Note ratios and radii of the weights that are kept: the best ones, or those at the end of the stage."""
        weights = self.stages[self.at.stage][0] == "weights"
        if weights and self.config["patience"] and not at_best:
            return
        source = self.constraint or getattr(
            self.optimizer, "optimizer", None
        )  # FTP's optimizers learn radii themselves
        if source is not None and hasattr(source, "radii"):
            self.learned = (source.ratios(), dict(source.radii))

    learned: tuple[dict[str, float], dict[str, float]] = ({}, {})

    def _input(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Prepared images on the device, in the memory format of the model."""
        return self.start.preparation(images, self.device, generator).contiguous(memory_format=self.format)

    # --- evaluation

    def _set_modes(self, net: nn.Module, full: bool) -> None:
        """Train mode; BatchNorm stays in eval mode if asked for, and a frozen backbone does altogether."""
        net.train(full)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and self.config["batchnorm"] == "eval":
                module.eval()

    @torch.no_grad()
    def _accuracy(self, net: nn.Module, data: Any, label: str) -> Accuracy:
        modes = [(m, m.training) for m in net.modules()]
        net.eval()
        batches = [list(range(i, min(i + 256, len(data)))) for i in range(0, len(data), 256)]
        classes, keep = len(self.data.class_names), getattr(data, "keep_confusion", False)
        # how many are wrong and right; with the confusion how many of label i were answered j, at i·classes + j
        counts = torch.zeros(classes**2 if keep else 2, dtype=torch.int64, device=self.device)
        loader = read(data, list(self._mine(iter(batches), pad=False)), self.config["workers"])
        for images, labels in tqdm(loader, desc=f"test {label}", disable=not self.show, leave=False):
            with self.accelerator.autocast():
                logits = net(self._input(images))
            wanted, found = labels.to(self.device), answers(logits, data.class_subset)
            cells = wanted * classes + found if keep else (wanted == found).long()
            counts += torch.bincount(cells, minlength=len(counts))
        for module, training in modes:
            module.training = training
        counts = self.accelerator.reduce(counts, "sum").cpu()
        if not keep:
            return Accuracy(int(counts[1]), int(counts.sum()))
        table = counts.view(classes, classes)
        return Accuracy(int(table.trace()), int(table.sum()), tuple(map(tuple, table.tolist())))

    def _end_of_epoch(self, stage: str, loss: float, bar: tqdm) -> bool:
        """Validate; keep the best weights if there is a patience; say whether to stop."""
        accuracy = self._accuracy(self.net, self.data.val, "val").value
        self.at.history.append(
            {"stage": self.at.stage, "epoch": self.at.step // self.per_epoch, "loss": loss, "val": accuracy}
        )
        bar.set_postfix(val=f"{100 * accuracy:.1f} %")
        if stage == "head" or not self.config["patience"]:
            return False
        if accuracy > self.at.best:
            self.at.best, self.at.since_best = accuracy, 0
            self.best = {name: t.detach().clone() for name, t in self.net.state_dict().items()}
            self._keep_learned(at_best=True)
        else:
            self.at.since_best += 1
        return self.at.since_best >= self.config["patience"]

    def _tests(self) -> dict[str, Any]:
        return {"val": self.data.val, "id_test": self.data.id_test, **self.data.ood_tests}

    def _finish(self) -> Result:
        path = {}
        if self.method == "wise-ft":
            whole, count = self.net, self.config["path"]
            for i in range(count):
                alpha = i / max(1, count - 1)
                wise = interpolate(whole, self.anchor, alpha, exclude=self.start.exclude)
                path[alpha] = {n: self._accuracy(wise, d, f"{n} α={alpha:.2f}") for n, d in self._tests().items()}
            self.net = interpolate(whole, self.anchor, self.config["alpha"], exclude=self.start.exclude)
        accuracies = {name: self._accuracy(self.net, data, name) for name, data in self._tests().items()}
        return Result(
            method=self.method,
            settings=self.config,
            model=self.net.eval(),
            class_names=self.data.class_names,
            accuracies=accuracies,
            history=self.at.history,
            ratios=self.learned[0],
            radii=self.learned[1],
            path=path,
            seconds=self.at.seconds,
        )

    # --- stages that several methods share

    def _shared(self) -> Path | None:
        """The file of the present stage, named by everything its result depends on; None if it is this method's own."""
        name, _ = self.stages[self.at.stage]
        own = name == "radii" or (name == "weights" and self.method not in ORDINARY)
        if self.store is None or own or self.config["patience"] or self.at.step:
            return None
        identity = {**self._identity(), "method": None, "stages": self.stages[: self.at.stage + 1]}
        only = [key for key in COMMON if name == "weights" or key not in ("epochs", "lr")]
        identity["settings"] = {key: identity["settings"][key] for key in only if key != "workers"}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self.store / f"{name}-{digest[:24]}.pt"

    def _take(self, shared: Path) -> float:
        """Take a stage's result from its file; returns the seconds it took when it was computed."""
        state = torch.load(shared, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["model"])
        self.at.history += state["history"]
        return state["seconds"]

    def _keep(self, shared: Path, seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        shared.parent.mkdir(parents=True, exist_ok=True)
        history = [entry for entry in self.at.history if entry["stage"] == self.at.stage]
        own = shared.with_name(f"{shared.stem}.{os.getpid()}")  # another process may be writing the same
        with write_aside(own) as aside:
            torch.save({"model": self.net.state_dict(), "history": history, "seconds": seconds}, aside)
        os.replace(own, shared)

    # --- files

    def _mine(self, batches: Iterator[list[int]], pad: bool = True) -> Iterator[list[int]]:
        """This process's share of every batch."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for index in batches:
            # every process gets as many, if need be some of the batch twice, so that their means weigh the same
            short = -len(index) % world if pad else 0
            padded = index + (index * short)[:short]
            if share := padded[rank::world]:
                yield share

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return {
            "method": self.method,
            "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in self.config.items()},
            "data": [self.data.name, self.data.id_domain, len(self.data.train), len(self.data.val)],
            "labels": int(derive(0, *self.data.train.labels.tolist())),
            "model": self.start.name,
            "preparation": json.loads(json.dumps(asdict(self.start.preparation))),
            "classes": list(self.data.class_names),
            "anchor": sum(t.detach().cpu().double().sum().item() for t in self.anchor.values()),
            "processes": self.accelerator.num_processes,
        }

    def checkpoint(self) -> None:
        self.last_save = self.at.seconds
        if self.folder is None or not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity(),
            "progress": asdict(self.at),
            "model": self.accelerator.unwrap_model(self.net).state_dict(),
            "best": self.best,
            "learned": list(self.learned),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "constraint": None if self.constraint is None else self.constraint.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }
        content = io.BytesIO()  # torch.save's own errors would not tell that the disk is full
        torch.save(state, content)
        with write_aside(self.folder / "checkpoint.pt") as aside:
            aside.write_bytes(content.getbuffer())

    def resume(self) -> None:
        """Take up what an earlier call left in the folder. Raises ValueError if that was another run."""
        path = None if self.folder is None else self.folder / "checkpoint.pt"
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it to begin again") from error
        ours, theirs = self._identity(), state["identity"]
        if ours != theirs:
            different = [key for key in ours if ours[key] != theirs.get(key)]
            raise ValueError(
                f"{path} is of another run (different: {', '.join(different)}); choose another folder or delete it"
            )
        self.at = Progress(**state["progress"])
        self.net.load_state_dict(state["model"])
        self.best, self.learned, self.saved = state["best"], tuple(state["learned"]), state

    def _load_stage(self) -> None:
        """The optimizer's and the constraint's state, in the stage in which the checkpoint was made."""
        state, self.saved = self.saved, None
        if state is None:
            return
        if self.optimizer is not None and state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.constraint is not None and state["constraint"] is not None:
            self.constraint.load_state_dict(state["constraint"])
        if self.schedule is not None and state.get("schedule") is not None:
            self.schedule.load_state_dict(state["schedule"])

    def save(self, result: Result) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        models.save(self.folder / "model.safetensors", self.start, result.model, result.class_names)
        if result.ratios:
            from tpgm.reporting import ratios_by_depth

            at_end = self.method in ("tpgm-end", "tpgm-c")
            title = "Learned ratios by depth" if at_end else "Ratios of the last of many projections"
            with write_aside(self.folder / "ratios.png") as aside:
                ratios_by_depth(result.ratios, result.model, title).savefig(aside, format="png")
        with write_aside(self.folder / "result.json") as aside:
            aside.write_text(json.dumps(result.row(), indent=1), encoding="utf-8")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request to stop between two steps; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
