"""Counts of bytes against tensors that are really there."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import build
from tpgm import TPGM
from tpgm.book.memory import SIZES, memory


@pytest.mark.parametrize("anchor", [None, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(anchor: torch.dtype | None) -> None:
    model, x, _ = build("mlp")
    count = sum(p.numel() for p in model.parameters())
    tpgm = TPGM(model, anchor_dtype=anchor)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    tpgm.update(lambda: model(x).square().mean())
    found = memory(count, anchor=anchor, keep_copy=True)
    assert found["anchor"] == sum(t.nbytes for t in [*tpgm.anchor.values(), *tpgm._exchange.copies])
    assert found["update"] == sum(p.nbytes for p in model.parameters())  # the gradients
    optimizer = torch.optim.AdamW(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    moments = sum(t.nbytes for s in optimizer.state.values() for n, t in s.items() if n != "step")
    assert found["vanilla"] == 2 * sum(p.nbytes for p in model.parameters()) + moments


def test_choices() -> None:
    full, half = memory(SIZES["70 G"]), memory(SIZES["70 G"], anchor=torch.bfloat16)
    host = memory(SIZES["70 G"], anchor="host")
    assert full["vanilla"] == 1120 * 10**9
    assert (full["beyond"], half["beyond"], host["beyond"], host["host"]) == (560e9, 420e9, 280e9, 280e9)
    assert memory(100, constrained=0.5)["beyond"] == 400
    with pytest.raises(ValueError, match="constrained in"):
        memory(10, constrained=1.5)
