"""Every fine-tuning method as a short plain loop: what `tpgm.finetune` is held to.

One model, full control flow in sight, no accelerate, no checkpoints; only the order of the data, the augmentation and
the projection of one tensor come from the package.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tpgm.book.plain.radii import ReferenceTPGM
from tpgm.book.plain.steps import Adam, Projection, normalized
from tpgm.projection import project
from tpgm.training.batches import derive, index_batches


def plain(start: Any, data: Any, method: str, c: dict[str, Any]) -> nn.Module:
    """The model after fine-tuning by `method` with the resolved settings `c`."""
    net, device = copy.deepcopy(start.model), torch.device("cpu")
    anchor = dict(start.anchor)
    head = [name for name, _ in net.named_parameters() if name not in anchor]
    per_epoch = math.ceil(len(data.train) / c["batch_size"])
    bn = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    constraint = None

    def val_batch(number: int) -> tuple[Tensor, Tensor]:
        index = next(index_batches(len(data.val), c["val_batch_size"], derive(c["seed"], "val"), number))
        return start.preparation(data.val.images[index], device), data.val.labels[index]

    def reference() -> ReferenceTPGM:
        from tpgm.names import default_groups

        settings = {k: c[k] for k in ("norm", "penalty", "tv")}
        return ReferenceTPGM(net, anchor, lr=c["radius_lr"], groups=default_groups(anchor), **settings)

    def radius_update(number: int) -> None:
        x, y = val_batch(number)
        constraint.update(lambda model: cross_entropy(model(x), y))

    stages = [("head", c["head_epochs"], c["head_lr"], head)]
    names = [name for name, _ in net.named_parameters()]
    trained = {
        "linear-probe": head,
        "partial": [*head, "block.0.weight"],
        "bitfit": [*head, "block.0.bias", "block.1.weight", "block.1.bias", "conv.bias"],
    }.get(method, names)
    stages.append(("weights", c["epochs"], c["lr"], trained))
    for stage, epochs, lr, trainable in stages:
        full = stage == "weights"
        if full and c["anchor_head"]:
            anchor |= {name: net.get_parameter(name).detach().clone() for name in head}
        params = {name: net.get_parameter(name) for name in trainable}
        for name, p in net.named_parameters():
            p.requires_grad_(name in params)
        states: dict[str, dict[str, Any]] = {name: {} for name in params}
        optimizer = ordinary(c, params.values(), lr)
        own = {name: ordinary(c, [p], lr) for name, p in params.items()}
        if full and method == "tpgm":
            constraint = reference()
        net.train(full and method != "linear-probe")
        for m in bn:
            m.eval()
        batches = index_batches(len(data.train), c["batch_size"], derive(c["seed"], stage))
        steps = epochs * per_epoch
        for step, index in enumerate(itertools.islice(batches, steps)):
            seed = derive(c["seed"], stage, step, 0)
            torch.manual_seed(seed)
            rise = max(1, round(c["warmup"] * steps))
            scale = (step + 1) / rise
            if step >= rise:
                scale = (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
            generator = torch.Generator().manual_seed(seed) if c["augment"] else None
            x = start.preparation(data.train.images[index], device, generator)
            loss = cross_entropy(net(x), data.train.labels[index])
            if full and method == "l2-sp":
                for name, p in params.items():
                    a, b = c["strength"], c["head_strength"]
                    loss = loss + (
                        a / 2 * (p - anchor[name]).pow(2).sum() if name in anchor else b / 2 * p.pow(2).sum()
                    )
            if full and method == "mars-penalty":
                for name in anchor:
                    delta = params[name] - anchor[name]
                    rows = delta.flatten(1) if delta.dim() > 1 else delta[None]
                    loss = loss + c["strength"] * rows.abs().sum(1).max()
            optimizer.zero_grad()
            loss.backward()
            if full and method == "auto-rgn":
                for name, rate in relative_rates(params).items():
                    own[name].param_groups[0]["lr"] = rate * lr * scale
                    own[name].step()
            elif full and method in ("ftp", "spd", "digrap"):
                for name, p in params.items():
                    p.data = anchored_step(method, c, p.data, p.grad, anchor.get(name), states[name], lr * scale)
            else:
                optimizer.param_groups[0]["lr"] = lr * scale
                optimizer.step()
            if full and method == "mars-sp":
                for name, a in anchor.items():
                    params[name].data = project(params[name].data, a, c["radius"], c["norm"])
            free = method == "tpgm" and step < c["begin"] * steps
            if full and method == "tpgm" and not free and (step + 1) % c["every"] == 0:
                for update in range(c["updates"]):
                    radius_update((step + 1) // c["every"] * c["updates"] + update)
                constraint.project_()
    if method in ("tpgm-end", "tpgm-c"):
        constraint = reference()
        for number in range(c["updates"]):
            radius_update(number)
        constraint.project_()
    ratio = dict.fromkeys(anchor, 1.0)
    if method == "wise-ft":
        ratio = dict.fromkeys(anchor, c["alpha"])
    if method == "lines":  # SmallNet's blocks, from the input on
        ratio = {
            n: c["shallow"] + (c["deep"] - c["shallow"]) * depth / 2
            for n in anchor
            for depth, block in enumerate(("block.0", "block.1", "conv"))
            if n.startswith(block)
        }
    if method in ("one-ratio", "probe-anchored"):
        losses: list[list[float]] = []
        for i in range(c["points"]):
            tried = between(net, anchor, dict.fromkeys(anchor, i / (c["points"] - 1))).eval()
            with torch.no_grad():
                logits = tried(start.preparation(data.val.images, device))
            losses.append(
                [-row.log_softmax(0)[label].item() for row, label in zip(logits, data.val.labels, strict=True)]
            )
        best = min(range(c["points"]), key=lambda i: statistics.fmean(losses[i]))
        if c["rule"] == "one-se":
            best = next(i for i in range(best + 1) if indistinguishable(losses[i], losses[best]))
        ratio = dict.fromkeys(anchor, best / (c["points"] - 1))
    return between(net, anchor, ratio)


def ordinary(c: dict[str, Any], params: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if c["optimizer"] == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.0)


def indistinguishable(losses: list[float], best: list[float]) -> bool:
    """Whether the mean of the paired differences is within one standard error of 0, or below."""
    differences = [one - other for one, other in zip(losses, best, strict=True)]
    return statistics.fmean(differences) <= statistics.stdev(differences) / math.sqrt(len(differences))


def between(net: nn.Module, anchor: dict[str, Tensor], ratio: dict[str, float]) -> nn.Module:
    """A copy of the network with each parameter its own share of the way from its anchor."""
    found = copy.deepcopy(net)
    for name, a in anchor.items():
        p = found.get_parameter(name)
        p.data = a + ratio[name] * (p.data - a)
    return found


def relative_rates(params: dict[str, nn.Parameter]) -> dict[str, float]:
    """Auto-RGN: each tensor's ``‖g‖ / ‖θ‖`` as a share of the largest."""
    relative = {name: (p.grad.norm() / p.norm()).item() for name, p in params.items() if p.norm() > 0}
    return {name: relative[name] / max(relative.values()) if name in relative else 1.0 for name in params}


def anchored_step(
    method: str, c: dict[str, Any], w: Tensor, g: Tensor, start: Tensor | None, state: dict[str, Any], lr: float
) -> Tensor:
    """One step of FTP, SPD or DiGraP for one tensor; without a start (a new head) that of the base optimizer."""
    if c["optimizer"] == "sgd":
        state["buffer"] = 0.9 * state.get("buffer", 0.0) + g
        new = w - lr * (g + 0.9 * state["buffer"])
    else:
        direction = g
        if method == "digrap" and start is not None:
            direction = without_conflict(c, w - start, g, state)
        new = w - lr * state.setdefault("adam", Adam())(direction)
    if start is None or method == "digrap":
        return new
    if method == "ftp":
        projection = state.setdefault("projection", Projection(start, c["kappa"], c["norm"], c["radius_lr"]))
        return projection(new, g)
    before, after = (w - start).norm(), (new - start).norm()
    if (g * (w - start)).sum() > 0 and after > before:
        new = new - c["strength"] * (after - before) / after * (new - start)
    return new


def without_conflict(c: dict[str, Any], delta: Tensor, g: Tensor, state: dict[str, Any]) -> Tensor:
    """DiGraP's gradient: a learned share of what leads away from the anchor is taken out."""
    slope = (normalized(g) * normalized(state.get("projection", torch.zeros_like(g)))).sum()
    omega = state.get("omega", 0.0) - c["omega_lr"] * state.setdefault("omega_adam", Adam())(slope)
    state["omega"] = torch.clamp(omega, 0, 1)
    unit = delta / delta.norm() if delta.norm() > 0 else delta
    state["projection"] = (g * unit).sum() * unit
    return g - state["omega"] * state["projection"] if (g * delta).sum() < 0 else g
