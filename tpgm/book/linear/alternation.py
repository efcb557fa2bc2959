"""TPGM's two approximations of the bi-level problem, on the linear model: once at the end, and at every step.

The second runs the package's own `tpgm.TPGM` on a torch model in float64. Book chapter 5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tpgm.book.linear.bilevel import Bilevel
from tpgm.book.linear.problem import Array, displacement_matrix
from tpgm.book.linear.ratios import solve_outer_qp
from tpgm.constraint import TPGM


def end_of_training(problem: Bilevel) -> Array:
    """Ratios ``α``, (L,), of TPGM once at the end: the outer loss of ``Dα`` minimised over [0, 1]^L (statement 1)."""
    matrix = displacement_matrix(problem.displacement, problem.sizes)
    return solve_outer_qp(matrix.T @ problem.outer_gram @ matrix, matrix.T @ problem.outer_moment)


STEP_SIZE = 0.5


def two_weights(correlation: float, train: tuple[float, float], validation: tuple[float, float]) -> Bilevel:
    """Two layers of one weight each; train, validation: half the negative gradients ``c`` and ``b`` at the anchor.

    Training and validation inputs have unit second moments and the same `correlation` ``ρ`` in (−1, 1); the validation
    loss has minimum 0.
    """
    gram = np.array([[1.0, correlation], [correlation, 1.0]])
    moment, outer = np.array(train), np.array(validation)
    return Bilevel(gram, moment, gram, outer, float(outer @ np.linalg.solve(gram, outer)), (1, 1))


def hidden_need() -> Bilevel:
    """Layer 2's constraint hides layer 1's need: alternation from small radii stays near the anchor for ever.

    The two inputs nearly cancel (``ρ = −0.95``), so both weights must grow together; neither gains much alone.
    """
    return two_weights(-0.95, (0.01, 0.1), (0.11, -0.02))


def needs_differ() -> Bilevel:
    """Uncorrelated layers; validation wants layer 1 at its anchor and layer 2 where training takes it."""
    return two_weights(0.0, (0.5, 0.5), (0.0, 0.5))


class LinearLayers(nn.Module):
    """Displacements of P linear models with the same layer sizes, one float64 parameter ``p{k}_l{l}`` a layer.

    All start at their anchor, 0.
    """

    def __init__(self, problems: Sequence[Bilevel]) -> None:
        super().__init__()
        self.shape = (len(problems), sum(problems[0].sizes))
        for k, problem in enumerate(problems):
            for l, size in enumerate(problem.sizes):
                self.register_parameter(f"p{k}_l{l}", nn.Parameter(torch.zeros(size, dtype=torch.float64)))

    def forward(self, gram: Tensor, moment: Tensor) -> Tensor:
        """``vᵀGv − 2cᵀv`` of every model, (P,), for gram (P, d, d) and moment (P, d)."""
        v = torch.cat(list(self.parameters())).reshape(self.shape)
        return torch.einsum("pi,pij,pj->p", v, gram, v) - 2 * (moment * v).sum(dim=1)


class Trajectory(NamedTuple):
    """What alternation did, after every step's projection, and the displacement (P, d) at the end.

    radii, ratios: (steps, P, L); outer_loss: (steps, P). A ratio is what that step's projection multiplied the layer's
    displacement by: the fraction kept of a single training step's overshoot, not of full fine-tuning's displacement.
    """

    radii: Array
    ratios: Array
    outer_loss: Array
    displacement: Array


@contextmanager
def collapse_expected() -> Iterator[None]:
    """Without the warning that a constraint has collapsed: here collapses are what is studied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the constraint has collapsed")
        yield


@collapse_expected()
def alternate(
    problems: Sequence[Bilevel],
    *,
    steps: int,
    radius_lr: float,
    step_size: float = STEP_SIZE,
    tv: float = 0.0,
    warmup: int = 0,
) -> Trajectory:
    """TPGM at every step: a gradient step on the training loss, one `TPGM.update` on the outer loss, `TPGM.project_`.

    The P problems (same layer sizes) run as one model, which is the same as running each alone: their losses add, and
    Adam treats every radius by itself. step_size: of gradient descent, in units of ``1 / 2 λ_max(G)``, so below 2;
    radius_lr: Adam's step on the radii; tv: strength of the total variation of the ratios over a problem's layers;
    warmup: training steps without constraint before the first of `steps`, so that radii start larger.
    Raises ValueError if the layer sizes differ.
    """
    if len({problem.sizes for problem in problems}) != 1:
        raise ValueError("all problems must have the same layer sizes")
    model, count = LinearLayers(problems), len(problems)
    gram, moment, outer_gram, outer_moment = (
        torch.from_numpy(np.stack([getattr(problem, name) for problem in problems]))
        for name in ("gram", "moment", "outer_gram", "outer_moment")
    )
    scale = 1 / (2 * torch.linalg.eigvalsh(gram)[:, -1])  # gives every problem the same relative step
    constraint = TPGM(model, norm="l2", lr=radius_lr, tv=tv, groups=[[f"p{k}_l*"] for k in range(count)])
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size)
    radii, ratios, loss = [], [], []
    for step in range(-warmup, steps):
        optimizer.zero_grad()
        (scale * model(gram, moment)).sum().backward()
        optimizer.step()
        if step < 0:
            continue
        constraint.update(lambda: model(outer_gram, outer_moment).sum())
        constraint.project_()
        radii.append(list(constraint.radii.values()))
        ratios.append(list(constraint.ratios().values()))
        with torch.no_grad():
            loss.append(model(outer_gram, outer_moment).numpy())
    per_layer = (steps, count, -1)
    return Trajectory(
        np.reshape(radii, per_layer),
        np.reshape(ratios, per_layer),
        np.stack(loss) + np.array([problem.outer_constant for problem in problems]),
        torch.cat([p.detach() for p in model.parameters()]).reshape(model.shape).numpy(),
    )
