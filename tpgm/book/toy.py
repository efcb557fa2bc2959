"""A fine-tuning problem small enough to draw: points in the plane, two domains, one of them seen in fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tpgm.constraint import TPGM
from tpgm.names import in_markdown
from tpgm.projection import row_norms

Points = tuple[Tensor, Tensor]  # coordinates (n, 2) float32, labels (n,) int64
SIDES = {"left": -3.0, "right": 0.0}  # where each domain begins on the first axis; it is 3 wide and 4 high
UPSTREAM, DOWNSTREAM = 0.0, 0.5  # height of the class boundary in pre-training and in the task of fine-tuning


def boundary(first: Tensor, height: float) -> Tensor:
    """Second coordinate of the class boundary, ``sin(2 x_1) + height``; points above it have label 1."""
    return torch.sin(2 * first) + height


def sample(n: int, side: str, height: float, generator: torch.Generator, noise: float = 0.0) -> Points:
    """n points uniform in the domain "left" or "right"; noise: share of labels flipped."""
    x = torch.rand(n, 2, generator=generator) * torch.tensor([3.0, 4.0]) + torch.tensor([SIDES[side], -2.0])
    above = x[:, 1] > boundary(x[:, 0], height)
    return x, (above ^ (torch.rand(n, generator=generator) < noise)).long()


def join(*parts: Points) -> Points:
    """Several samples as one."""
    points, labels = zip(*parts, strict=True)
    return torch.cat(points), torch.cat(labels)


@dataclass(frozen=True)
class Task:
    """The fine-tuning task: the left domain is ID, the right one OOD, labels by the boundary of `height` in both.

    train, val: 60 points each, ID, 10 % of labels flipped; test_id, test_ood: 4 000 clean points each.
    """

    height: float
    train: Points
    val: Points
    test_id: Points
    test_ood: Points

    @classmethod
    def draw(cls, seed: int, height: float = DOWNSTREAM, n: int = 60, noise: float = 0.1) -> Task:
        generator = torch.Generator().manual_seed(seed)
        train, val = (sample(n, "left", height, generator, noise) for _ in range(2))
        return cls(height, train, val, *(sample(4000, side, height, generator) for side in SIDES))


def network(seed: int, width: int = 32) -> nn.Sequential:
    """A multilayer perceptron, 2 - width - width - 2, with ReLU; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)]
        return nn.Sequential(*layers)


def loss(model: nn.Module, points: Points) -> Tensor:
    """Mean cross-entropy."""
    return cross_entropy(model(points[0]), points[1])


@torch.no_grad()
def accuracy(model: nn.Module, points: Points) -> float:
    """Share of points classified correctly, in percent."""
    return 100 * float((model(points[0]).argmax(dim=1) == points[1]).float().mean())


def pretrain(seed: int, steps: int = 800) -> nn.Sequential:
    """A network trained on 2 000 clean upstream points of each domain, by Adam on batches of 128."""
    generator = torch.Generator().manual_seed(seed)
    x, y = join(*(sample(2000, side, UPSTREAM, generator) for side in SIDES))
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = torch.randint(len(y), (128,), generator=generator)
        optimizer.zero_grad()
        loss(model, (x[batch], y[batch])).backward()
        optimizer.step()
    return model


@torch.no_grad()
def distances(model: nn.Module, anchor: nn.Module) -> dict[str, float]:
    """Largest MARS row norm of the displacement, by parameter name."""
    pairs = zip(model.named_parameters(), anchor.parameters(), strict=True)
    return {name: float(row_norms(p - a, "mars").max()) for (name, p), a in pairs}


@dataclass(frozen=True)
class Run:
    """One fine-tuning run, looked at every few steps; accuracies in percent."""

    steps: list[int]
    accuracy_id: list[float]
    accuracy_ood: list[float]
    val_loss: list[float]
    distances: list[dict[str, float]]  # by parameter: MARS norm of the displacement from the pre-trained weights
    model: nn.Module

    @property
    def earliest_best(self) -> int:
        """Position of the smallest validation loss: where early stopping stops."""
        return self.val_loss.index(min(self.val_loss))


def fine_tune(
    pretrained: nn.Module, task: Task, constrained: bool, train: Points | None = None, steps: int = 300, every: int = 5
) -> Run:
    """Full-batch SGD (learning rate 0.05, momentum 0.9) on a copy of the model, with `tpgm.TPGM` if `constrained`.

    train: used in place of the task's training points; every: how many steps between two looks.
    """
    model = copy.deepcopy(pretrained)
    constraint = TPGM(model) if constrained else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = Run([], [], [], [], [], model)
    for step in range(steps + 1):
        if step % every == 0:
            run.steps.append(step)
            run.accuracy_id.append(accuracy(model, task.test_id))
            run.accuracy_ood.append(accuracy(model, task.test_ood))
            run.val_loss.append(float(loss(model, task.val).detach()))
            run.distances.append(distances(model, pretrained))
        optimizer.zero_grad()
        loss(model, task.train if train is None else train).backward()
        optimizer.step()
        if constraint is not None:
            constraint.update(lambda: loss(model, task.val))
            constraint.project_()
    return run


def accuracy_table(results: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Markdown: mean ID and OOD accuracy by method with 95 % t-intervals over seeds, and what the last method adds.

    results: by method, one (ID, OOD) pair in percent for each of at least two seeds, the same seeds for all.
    """
    *_, reference = results
    rows = [f"| method | ID | OOD | OOD: {in_markdown(reference)} minus this |", "|---|---:|---:|---:|"]
    for method, pairs in results.items():
        values = np.array(pairs)
        cells = [interval(values[:, 0]), interval(values[:, 1])]
        cells.append("" if method == reference else interval(np.array(results[reference])[:, 1] - values[:, 1]))
        rows.append(f"| {in_markdown(method)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def interval(values: np.ndarray) -> str:
    """Mean and 95 % t-interval of values over seeds, (seeds,), in words."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.1f} ± {half:.1f}".replace("-", "−")
