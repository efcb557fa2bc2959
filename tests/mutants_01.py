"""Chapter 1: what its checks catch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mutants import Mutant
from tpgm.book.linear import verify_problem as verify
from tpgm.book.linear.checks import Check
from tpgm.book.linear.inner import Inner, norms_by_layer, solve_inner
from tpgm.book.linear.problem import Array
from tpgm.book.plain.radii import ReferenceTPGM
from tpgm.projection import project


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _projects_the_free_solution(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    def projected(gram: Array, moment: Array, radii: Array, sizes: tuple[int, ...]) -> Inner:
        free, multipliers = solve_inner(gram, moment, np.full_like(radii, np.inf), sizes)
        ratios = np.minimum(1, radii / norms_by_layer(free, sizes))
        return Inner(free * np.repeat(ratios, sizes, axis=-1), multipliers)

    monkeypatch.setattr(verify, "solve_inner", projected)
    return verify.wider_radii_fit_better(200, _rng())


class _StartsAtTheSmallestNorm(ReferenceTPGM):
    def clip_radii(self, start: bool) -> None:
        before = self.gamma.isinf()
        super().clip_radii(start)
        with torch.no_grad():
            self.gamma[before] *= 2


class _DoesNotClipBeforeProjecting(ReferenceTPGM):
    @torch.no_grad()
    def project_(self) -> None:
        for l, name in enumerate(self.anchor):
            delta, n = self.displacement(name)
            kept = (self.gamma[l] / (n + 1e-8)).clamp(0, 1)
            self.model.get_parameter(name).copy_(self.anchor[name] + kept * delta)


class _ValidatesUnprojected(ReferenceTPGM):
    def project(self, name: str, radius: Tensor) -> tuple[Tensor, Tensor]:
        weight, ratio = super().project(name, radius)
        free = self.model.get_parameter(name).detach()
        return (weight if not torch.is_grad_enabled() else free + weight - weight.detach()), ratio


def _algorithm(twin: type[ReferenceTPGM], monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    monkeypatch.setattr(verify, "ReferenceTPGM", twin)
    return verify.algorithm_as_written(2, _rng(), steps=4)


def _narrower_ball(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    def narrower(weight: Tensor, anchor: Tensor, radius: Tensor) -> Tensor:
        return project(weight, anchor, 0.9 * radius)

    monkeypatch.setattr(verify, "project", narrower)
    return verify.projection_inside(10, _rng())


def _momentum_in_one_copy_only(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    plain_sgd, made = torch.optim.SGD, []

    def sgd(parameters: object, lr: float, momentum: float) -> torch.optim.SGD:
        made.append(lr)
        return plain_sgd(parameters, lr=lr, momentum=momentum * (len(made) % 2))  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "SGD", sgd)
    return verify.algorithm_as_written(1, _rng(), steps=3)


MUTANTS = [
    Mutant(
        1,
        "def-bilevel",
        "the projection of the unconstrained solution in place of the inner minimiser",
        _projects_the_free_solution,
    ),
    Mutant(
        1,
        "alg-tpgm",
        "radii start at the smallest row norm instead of half of it",
        lambda m: _algorithm(_StartsAtTheSmallestNorm, m),
    ),
    Mutant(
        1,
        "alg-tpgm",
        "no clip of the radii before the projection of step 3",
        lambda m: _algorithm(_DoesNotClipBeforeProjecting, m),
    ),
    Mutant(
        1,
        "alg-tpgm",
        "validation gradient at the weights before the projection",
        lambda m: _algorithm(_ValidatesUnprojected, m),
    ),
    Mutant(1, "alg-tpgm", "momentum in one of the two copies only", _momentum_in_one_copy_only),
    Mutant(1, "eq-chain", "the map stops at nine tenths of the radius", _narrower_ball),
]
