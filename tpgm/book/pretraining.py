"""How the package's own two backbones are made: supervised pre-training on the upstream icons."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate

from tpgm.book.icon_benchmark import DOMAINS, icon_collection, icons_upstream
from tpgm.data import DataSplits, ImageArray, LabelledData
from tpgm.data.preparation import Preparation
from tpgm.files import read_state, require_writable, write_aside, write_state
from tpgm.models.architectures import Architecture, head_of, need
from tpgm.models.pretrained import Pretrained
from tpgm.models.storage import save
from tpgm.training.batches import derive, index_batches, warm_cosine
from tpgm.training.evaluate import Accuracy, answers

if TYPE_CHECKING:
    from tpgm.book.contrastive import Contrastive

Plan = TypeVar("Plan", "Pretraining", "Contrastive")
SIZE, SMALL_SIZE = 64, 32  # pixels
PREPARATION = Preparation(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_EVALUATION_BATCH = 256
CHECKPOINT = 1  # version of the checkpoints' content


@dataclass(frozen=True)
class Pretraining:
    """Everything a pre-training run depends on besides data and seed.

    epochs: passes over the training data, the first small_epochs of them at 32 pixels (a quarter of the work), the
    rest at 64. AdamW with gradient norms clipped to 1; lr rises over the share `warmup` of the steps and falls as a
    cosine; weight_decay applies to matrices and convolutions only; smoothing is that of the labels.
    """

    architecture: Architecture
    epochs: int
    small_epochs: int
    lr: float
    weight_decay: float
    batch_size: int = 64
    warmup: float = 0.1
    smoothing: float = 0.1


# Made to fit half an hour on a shared CPU. A schedule with only three (ResNet) and two (ViT) epochs at 64 pixels was
# tried before and reached 76.4 % and 40.8 % of the validation images, these 83.7 % and 51.4 %. The ViT is far from
# trained; with more time set small_epochs=0 and more epochs.
RECIPES = {
    # three quarters of the usual width: 2.9 million weights, 5.7 MB in float16
    "icons-resnet": Pretraining(
        Architecture("timm/resnet10t", {"channels": [48, 96, 192, 384]}),
        epochs=11, small_epochs=4, lr=2e-3, weight_decay=0.05,
    ),
    "icons-vit": Pretraining(Architecture("icons-vit"), epochs=11, small_epochs=6, lr=1.5e-3, weight_decay=0.05),
}  # fmt: skip


def pretrain(
    recipe: str | Pretraining,
    out: str | Path,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    source: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Train a backbone on the upstream icons; leave ``out`` (a .safetensors file) and its card beside it (.json).

    recipe: a name of RECIPES or a Pretraining; changes: its fields to change, such as ``epochs=3``. device: by default
    a GPU if there is one. source: where the icons come from, see ``tpgm.data.icons``. The same call continues an
    interrupted run from its last whole epoch. Returns the card: recipe, seed, checksum of the data, accuracies on
    designers who were not trained on (of the stored float16 weights; overall and by style), versions, time, hardware.

    Raises ValueError for an unknown recipe, a wrong number or a checkpoint of another run, FileExistsError if `out`
    exists, FloatingPointError if the loss is not finite, OSError if a file cannot be written.
    """
    path, name, plan = planned(recipe, RECIPES, out, changes)
    if not 0 <= plan.small_epochs <= plan.epochs or plan.epochs < 1:
        raise ValueError(f"need 0 <= small_epochs <= epochs and 1 <= epochs, got {plan.small_epochs}, {plan.epochs}")
    data = icons_upstream(source=source, progress=progress)
    run = _Pretraining(name, plan, data, seed, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    run.train(path.with_suffix(".checkpoint"), progress)
    start = Pretrained(name, run.net.eval(), {}, (), PREPARATION, head_of(run.net), data.class_names, plan.architecture)
    collection = icon_collection("upstream", source=source, progress=progress)
    card = _store(path, start, run, collection.checksum, collection.domains[collection.splits == 2])
    path.with_suffix(".checkpoint").unlink()
    return card


def planned(
    recipe: str | Plan, recipes: Mapping[str, Plan], out: str | Path, changes: Mapping[str, Any]
) -> tuple[Path, str, Plan]:
    """The file to write, the model's name and the recipe with its changes, once all three files can be written.

    Raises FileExistsError, ValueError or OSError, before any work, as `pretrain` says.
    """
    path = Path(out)
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another file or delete it")
    if path.suffix != ".safetensors":
        raise ValueError(f"out must name a .safetensors file, got {path}")
    if isinstance(recipe, str):
        if recipe not in recipes:
            raise ValueError(f"unknown recipe {recipe!r}; choose one of {', '.join(map(repr, recipes))}")
        name, plan = recipe, recipes[recipe]
    else:
        name, plan = path.stem, recipe
    for suffix in (".safetensors", ".json", ".checkpoint"):
        require_writable(path.with_suffix(suffix))
    return path, name, replace(plan, **changes)


def resumable(checkpoint: Path, version: int, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The state of an interrupted run, empty if there is none. Raises ValueError for another run's."""
    if not checkpoint.exists():
        return {}
    state = read_state(checkpoint, version, device)
    if state["identity"] != identity:
        raise ValueError(f"{checkpoint} is of another recipe, seed or data; delete it to begin again")
    return state


def write_card(
    path: Path, net: nn.Module, seconds: float, device: torch.device, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the card beside the stored weights and return it: `about`, then weights, time, hardware and versions."""
    card: dict[str, Any] = {
        **about,
        "weights": {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "parameters": sum(p.numel() for p in net.parameters()),
        },
        "training_seconds": round(seconds),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in ("torch", "timm", "tpgm")},
    }
    with write_aside(path.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return dict(json.loads(json.dumps(card)))  # lists where tuples were, as a reader of the file has them


class _Pretraining:
    def __init__(self, name: str, plan: Pretraining, data: DataSplits, seed: int, device: torch.device) -> None:
        self.name, self.plan, self.data, self.seed, self.device = name, plan, data, seed, device
        self.training, self.validation = _in_memory(data.train), _in_memory(data.val)
        torch.manual_seed(derive(seed, "weights"))
        self.net = plan.architecture.build(len(data.class_names)).to(device)
        groups = decayed(self.net.parameters())
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr, weight_decay=plan.weight_decay)
        self.epoch, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def train(self, checkpoint: Path, progress: bool) -> None:
        tqdm = need("tqdm").tqdm
        self.resume(checkpoint)
        while self.epoch < self.plan.epochs:
            began = time.monotonic()
            size = SMALL_SIZE if self.epoch < self.plan.small_epochs else SIZE
            count = math.ceil(len(self.training) / self.plan.batch_size)
            bar = tqdm(total=count, desc=f"epoch {self.epoch + 1}/{self.plan.epochs}", disable=not progress)
            loss = self._epoch(size, count, bar)
            self.epoch += 1
            self.seconds += time.monotonic() - began
            val = accuracy(self.net, self.validation, size, self.device).value
            bar.set_postfix(loss=f"{loss:.3f}", val=f"{100 * val:.1f} %", seconds=f"{self.seconds:.0f}")
            bar.close()
            self.history.append({"size": size, "loss": loss, "val": val})
            state = {
                "identity": self._identity(),
                "epoch": self.epoch,
                "seconds": self.seconds,
                "history": self.history,
                "model": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            write_state(checkpoint, CHECKPOINT, state)

    def _epoch(self, size: int, count: int, bar: Any) -> float:
        """One pass over the training data; returns the mean loss."""
        self.net.train()
        plan, data, total = self.plan, self.training, 0.0
        batches = index_batches(len(data), plan.batch_size, derive(self.seed, "order"), self.epoch * count)
        for step in range(self.epoch * count, (self.epoch + 1) * count):
            torch.manual_seed(derive(self.seed, "step", step))
            index = next(batches)
            for group in self.optimizer.param_groups:
                group["lr"] = plan.lr * warm_cosine(step, plan.epochs * count, plan.warmup)
            x = augmented(data.images[index].to(self.device), size)
            loss = cross_entropy(self.net(x), data.labels[index].to(self.device), label_smoothing=plan.smoothing)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower lr (now {plan.lr})")
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            total += loss.item()
            bar.update()
        return total / count

    def _identity(self) -> dict[str, Any]:
        plan = asdict(self.plan)
        return {"recipe": json.dumps(plan), "seed": self.seed, "train": len(self.training)}

    def resume(self, checkpoint: Path) -> None:
        state = resumable(checkpoint, CHECKPOINT, self._identity(), self.device)
        if not state:
            return
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]


def decayed(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices and convolutions with its weight decay, vectors without."""
    params = list(parameters)
    return [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _in_memory(part: LabelledData) -> ImageArray:
    """The same data, which the icons keep in memory, by their own type."""
    assert isinstance(part, ImageArray)
    return part


def augmented(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) uint8 to (B, 3, size, size) float32, normalised, with what an icon may look like elsewhere.

    Moved by up to an eighth, scaled by up to a fifth, turned by up to 10 degrees, and in 60 % of the cases recoloured:
    black and white become two random colours, swapped in a third of these. Not mirrored: an arrow would change.
    """
    count, device = len(images), images.device
    x = images.float() / 255
    if size != x.shape[-1]:
        x = interpolate(x, size=(size, size), mode="area")
    angle = (torch.rand(count, device=device) * 2 - 1) * math.radians(10)
    scale = 0.8 + 0.4 * torch.rand(count, device=device)
    shift = (torch.rand(count, 2, device=device) * 2 - 1) / 4  # the grid runs from -1 to 1
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = affine_grid(matrix, list(x.shape), align_corners=False)
    x = grid_sample(x, grid, padding_mode="border", align_corners=False)
    dark = 0.45 * torch.rand(count, 3, 1, 1, device=device)
    light = 0.65 + 0.35 * torch.rand(count, 3, 1, 1, device=device)
    swap = torch.rand(count, 1, 1, 1, device=device) < 1 / 3
    first, last = torch.where(swap, light, dark), torch.where(swap, dark, light)
    recolour = torch.rand(count, 1, 1, 1, device=device) < 0.6
    return (torch.where(recolour, first + (last - first) * x, x) - 0.5) / 0.5


@torch.no_grad()
def accuracy(net: nn.Module, data: ImageArray, size: int, device: torch.device) -> Accuracy:
    """Share of right answers of the model in eval mode at `size` pixels."""
    net.eval()
    prepare = replace(PREPARATION, size=size)
    correct = 0
    for at in range(0, len(data), _EVALUATION_BATCH):
        part = slice(at, at + _EVALUATION_BATCH)
        found = answers(net(prepare(data.images[part], device)))
        correct += int((found == data.labels[part].to(device)).sum())
    return Accuracy(correct, len(data))


def _store(path: Path, start: Pretrained, run: _Pretraining, checksum: str, domains: Tensor) -> dict[str, Any]:
    """Write weights and card; the accuracies are those of the weights as they are read back."""
    from tpgm.models.loading import load

    test = _in_memory(run.data.id_test)
    full = accuracy(run.net, test, SIZE, run.device)
    save(path, start, run.net, dtype=torch.float16)
    stored = load(path).model.to(run.device)
    styles = (*DOMAINS, "mixed")  # a plain icon between solid and outline
    parts: Mapping[str, Tensor] = {s: torch.nonzero(domains == i).flatten() for i, s in enumerate(styles)}
    by_style = {
        style: asdict(accuracy(stored, ImageArray(test.images[index], test.labels[index]), SIZE, run.device))
        for style, index in parts.items()
        if len(index)
    }
    card = {
        "name": run.name,
        "recipe": asdict(run.plan),
        "seed": run.seed,
        "data": {
            "name": run.data.name,
            "sha256": checksum,
            "classes": len(run.data.class_names),
            "train": len(run.training),
            "val": len(run.validation),
            "test": len(test),
        },
        "accuracy": {
            "val": asdict(accuracy(stored, run.validation, SIZE, run.device)),
            "test": {what: sum(part[what] for part in by_style.values()) for what in ("correct", "total")},
            "test_before_rounding": asdict(full),
            "test_by_style": by_style,
        },
        "history": run.history,
    }
    return write_card(path, run.net, run.seconds, run.device, card)
