"""How the package's zero-shot models are made: icons and their names, as CLIP learned from images and captions."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from tpgm.book.icon_benchmark import NamedIcons, icons, named_icons
from tpgm.book.icon_benchmark.iconify import concepts
from tpgm.book.pretraining import _in_memory, accuracy, augmented, decayed, planned, resumable, write_card
from tpgm.book.text.sentences import embeddings
from tpgm.data.preparation import Preparation
from tpgm.files import write_state
from tpgm.models.architectures import Architecture, Tower, need
from tpgm.models.pretrained import Pretrained
from tpgm.models.storage import save
from tpgm.training.batches import derive, index_batches, warm_cosine

CHECKPOINT = 1  # version of the checkpoints' content
EVERY = 100  # steps between two values of the loss that are kept
SECONDS = 60.0  # of training between two checkpoints, at least
_SCALE = (1 / 0.07, 100.0)  # of the logits, at first and at most: CLIP's


@dataclass(frozen=True)
class Contrastive:
    """Everything a zero-shot pre-training run depends on besides data and seed.

    steps: of AdamW at batches of `batch_size` icons, gradient norms clipped to 1; lr rises over the share `warmup` of
    the steps and falls as a cosine; weight_decay applies to matrices and convolutions only. size: 32 or 64 pixels.
    precision: of the tower's forward pass, float32 ("no") or bfloat16 by autocast.
    """

    architecture: Architecture
    steps: int
    lr: float
    weight_decay: float = 0.05
    batch_size: int = 256
    warmup: float = 0.05
    size: int = 32
    precision: Literal["no", "bf16"] = "no"


RECIPES = {
    "icons-clip-resnet": Contrastive(
        Architecture("icons-clip", {"backbone": "resnet10t", "channels": [48, 96, 192, 384]}), steps=1600, lr=2e-3
    ),
    # LayerNorm in place of BatchNorm: no running statistics for a ratio to leave behind
    "icons-clip-convnext": Contrastive(
        Architecture("icons-clip", {"backbone": "convnext_atto", "patch_size": 2}), steps=4000, lr=2e-3
    ),
    # for a GPU: three minutes of one; as large as what is fine-tuned in practice, so their weights do not ship
    "icons-clip-resnet50": Contrastive(
        Architecture("icons-clip", {"backbone": "resnet50", "pool": True}),
        steps=1500, lr=2e-3, batch_size=1024, size=64, precision="bf16",
    ),
    "icons-clip-vit-small": Contrastive(
        Architecture("icons-clip", {"backbone": "vit_small_patch8_224", "img_size": 64}),
        steps=2000, lr=1e-3, batch_size=1024, warmup=0.1, size=64, precision="bf16",
    ),
}  # fmt: skip


def pretrain(
    recipe: str | Contrastive,
    out: str | Path,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    source: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Train an image tower on icons and their names; leave ``out`` (a .safetensors file) and its card beside it.

    The loss is CLIP's, symmetric between icons and names (Radford et al. 2021). Names are embedded once by a frozen
    sentence model, centred and scaled to norm 1. The head of the stored model is the zero-shot classifier of the 76
    downstream classes: the embeddings of each class's words, averaged, times the logit scale. Arguments, resumption and
    errors as for ``tpgm.book.pretraining.pretrain``; the card has the zero-shot accuracies on validation designers and
    on development designers, and none of a test designer.
    """
    path, name, plan = planned(recipe, RECIPES, out, changes)
    if plan.steps < 1:
        raise ValueError(f"steps must be at least 1, got {plan.steps}")
    data = named_icons(size=plan.size, source=source, progress=progress)
    run = _Run(name, plan, data, seed, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), source)
    run.train(path.with_suffix(".checkpoint"), progress)
    card = run.store(path)
    path.with_suffix(".checkpoint").unlink()
    return card


class _Run:
    def __init__(
        self,
        name: str,
        plan: Contrastive,
        data: NamedIcons,
        seed: int,
        device: torch.device,
        source: str | Path | None,
    ) -> None:
        self.name, self.plan, self.data, self.seed, self.device, self.source = name, plan, data, seed, device, source
        invented = "tiny" if source == "tiny" else None
        self.texts, self.classes, self.class_names = texts_and_classes(data.names, invented)
        self.texts, self.images = self.texts.to(device), data.images.to(device)
        torch.manual_seed(derive(seed, "weights"))
        net = plan.architecture.build(len(self.class_names))
        assert isinstance(net, Tower)
        self.net = net.to(device).to(memory_format=torch.channels_last)  # a fifth faster on a CPU
        self.log_scale = nn.Parameter(torch.tensor(math.log(_SCALE[0]), device=device))
        groups = decayed([*net.tower.parameters(), self.log_scale])
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr, weight_decay=plan.weight_decay)
        self.step, self.seconds = 0, 0.0
        self.history: list[float] = []

    def train(self, checkpoint: Path, progress: bool) -> None:
        self.resume(checkpoint)
        plan, data = self.plan, self.data
        batches = index_batches(len(data), plan.batch_size, derive(self.seed, "order"), self.step, plan.batch_size)
        began, sofar, losses = time.monotonic(), self.seconds, []
        saved = began
        with need("tqdm").tqdm(total=plan.steps, initial=self.step, desc=self.name, disable=not progress) as bar:
            while self.step < plan.steps:
                losses.append(self._take(next(batches)))
                self.step += 1
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update()
                if self.step % EVERY == 0 or self.step == plan.steps:
                    self.seconds = sofar + time.monotonic() - began
                    self.history.append(math.fsum(losses) / len(losses))
                    losses = []
                    if time.monotonic() - saved >= SECONDS or self.step == plan.steps:
                        self._keep(checkpoint)
                        saved = time.monotonic()

    def _take(self, index: list[int]) -> float:
        """One step; returns the loss."""
        plan = self.plan
        self.net.train()
        torch.manual_seed(derive(self.seed, "step", self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr * warm_cosine(self.step, plan.steps, plan.warmup)
        where = torch.tensor(index, device=self.device)
        x = augmented(self.images[where], plan.size).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            features = self.net.tower(x)
        texts = self.texts[self.data.texts[index].to(self.device)]
        loss = contrastive_loss(normalize(features.float(), dim=-1), texts, self.log_scale.exp())
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}: lower lr (now {plan.lr})")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.tower.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(_SCALE[1]))
        return loss.item()

    def _identity(self) -> dict[str, Any]:
        return {"recipe": json.dumps(asdict(self.plan)), "seed": self.seed, "data": self.data.checksum}

    def _keep(self, checkpoint: Path) -> None:
        state = {
            "identity": self._identity(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "tower": self.net.tower.state_dict(),
            "log_scale": self.log_scale.detach(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_state(checkpoint, CHECKPOINT, state)

    def resume(self, checkpoint: Path) -> None:
        state = resumable(checkpoint, CHECKPOINT, self._identity(), self.device)
        if not state:
            return
        self.net.tower.load_state_dict(state["tower"])
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            self.log_scale.copy_(state["log_scale"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def store(self, path: Path) -> dict[str, Any]:
        """Write weights and card; the accuracies are those of the weights as they are read back."""
        from tpgm.models.loading import load

        with torch.no_grad():
            self.net.head.weight.copy_(self.log_scale.exp() * self.classes.to(self.device))
            self.net.head.bias.zero_()
        plan, net = self.plan, self.net.eval()
        preparation = Preparation(plan.size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        start = Pretrained(self.name, net, {}, (), preparation, "head", self.class_names, plan.architecture)
        save(path, start, net, dtype=torch.float16)
        stored = load(path).model.to(self.device)

        def right(part: Any) -> dict[str, int]:
            found = accuracy(stored, _in_memory(part), plan.size, self.device)
            return {"correct": found.correct, "total": found.total}

        seen = icons(designers="development", source=self.source, progress=False)
        parts = {"val": seen.val, "id": seen.id_test, **seen.ood_tests}
        card = {
            "name": self.name,
            "recipe": asdict(plan),
            "seed": self.seed,
            "data": {"name": "named icons", "sha256": self.data.checksum, "icons": len(self.data)},
            "zero_shot_accuracy_on_development_designers": {what: right(part) for what, part in parts.items()},
            "loss": [round(loss, 4) for loss in self.history],
            "logit_scale": self.log_scale.exp().item(),
        }
        return write_card(path, net, self.seconds, self.device, card)


def texts_and_classes(names: tuple[str, ...], source: str | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """(N, 384) embeddings of the names and (C, 384) of the downstream classes, all minus the names' mean and of norm 1;
    the classes' names. A class's embedding is the mean over its words'."""
    present = icons(designers="zero-shot", source=source, progress=False).class_names
    words = [concepts()["downstream"][name] for name in present]
    found = embeddings([*names, *(word for of in words for word in of)], source)
    mean = found[: len(names)].mean(dim=0)
    found = normalize(found - mean, dim=-1)
    groups = found[len(names) :].split([len(of) for of in words])
    return found[: len(names)], normalize(torch.stack([of.mean(dim=0) for of in groups]), dim=-1), present


def contrastive_loss(features: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss of B icons and B names: the mean of the cross-entropies of names given icons and icons given names.

    features, texts: (B, D) of norm 1; scale: of the cosines. Scalar. Equal names have equal texts; a target that they
    share would give the same loss.
    """
    logits, own = scale * linear(features, texts), torch.arange(len(texts), device=texts.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
