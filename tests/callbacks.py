"""What the tests of the callbacks look at."""

from __future__ import annotations

import pytest
import torch

import tpgm
from tpgm.projection import row_norms


def inside(constraint: tpgm.TPGM, model: torch.nn.Module) -> bool:
    """Whether every row of every constrained tensor lies within its radius."""
    now = dict(model.named_parameters())
    return all(
        float(row_norms(now[name].detach() - start, constraint.norm).max())
        <= constraint.radii[name] * (1 + 1e-3) + 1e-7
        for name, start in constraint.anchor.items()
    )


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets "update" and "project_" as they are called from now on."""
    calls: list[str] = []
    for method in ("update", "project_"):
        real = getattr(tpgm.TPGM, method)
        spy = lambda self, *a, real=real, method=method: (calls.append(method), real(self, *a))[1]  # noqa: E731
        monkeypatch.setattr(tpgm.TPGM, method, spy)
    return calls
