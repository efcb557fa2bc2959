"""Adapters: an anchor at zero, without a copy, against the plain path; and on the real peft."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tpgm
from tests.conftest import build
from tpgm.optim import AdamSPD


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_anchor_zero_is_the_plain_path_with_zeros(norm: str) -> None:
    runs = []
    for zero in (True, False):
        torch.manual_seed(0)
        model, x, y = build("conv")
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        settings = {"norm": norm, "lr": 0.05, "tv": 0.1, "penalty": 0.01, "buffers": "keep"}
        constraint = tpgm.TPGM(model, anchor="zero" if zero else zeros, **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            constraint.update(lambda model=model, x=x, y=y: cross_entropy(model(x), y))
            constraint.project_()
        runs.append((constraint, [p.detach().clone() for p in model.parameters()]))
    (ours, weights), (plain, expected) = runs
    # to rounding: zeros in memory may go another way than zeros that are not
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
    assert ours.radii == pytest.approx(plain.radii, rel=1e-5)
    assert ours.ratios() == pytest.approx(plain.ratios(), rel=1e-5)
    assert min(ours.ratios().values()) < 1
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(plain.state_dict())


def test_anchor_zero_keeps_no_copy_and_follows_the_model() -> None:
    model, x, y = build("mlp")
    constraint = tpgm.TPGM(model, anchor="zero")
    assert all(a.untyped_storage().nbytes() == 4 for a in constraint.anchor.values())
    model.double()
    constraint.update(lambda: cross_entropy(model(x.double()), y))
    assert {a.dtype for a in constraint.anchor.values()} == {torch.float64}
    assert all(a.untyped_storage().nbytes() == 8 for a in constraint.anchor.values())
    with pytest.raises(TypeError, match="or 'zero', got 'zeros'"):
        tpgm.TPGM(model, anchor="zeros")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matches no parameter"):
        tpgm.TPGM(model, anchor="zero", exclude=["hed.*"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_lora_of_peft_the_ratio_of_b_is_that_of_the_update(norm: str) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    _, x, y = build("mlp")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["first", "second"], modules_to_save=["head"])
    model = peft.get_peft_model(Net(), config)
    constraint = tpgm.TPGM(model, anchor="zero", norm=norm, exclude=["*lora_A*", "*modules_to_save*"], lr=1e-3)
    assert len(constraint.radii) == 2
    assert all("lora_B" in name for name in constraint.radii)
    assert all(a.untyped_storage().nbytes() == 4 for a in constraint.anchor.values()), "no copy"
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        constraint.update(lambda: cross_entropy(model(x[:12]), y[:12]))
        layer = model.base_model.model.first
        before = layer.get_delta_weight("default").detach().clone()
        constraint.project_()
        after = layer.get_delta_weight("default").detach()
        shrunk = after.norm(dim=1) / before.norm(dim=1)
        if norm == "l2":
            assert torch.allclose(shrunk, shrunk[0].expand_as(shrunk), rtol=1e-4), "one ratio for the whole update"
        assert torch.allclose(after, shrunk[:, None] * before, atol=1e-6), "rows of the update are only shortened"
        ratio = next(r for name, r in constraint.ratios().items() if "first" in name)
        assert float(shrunk.mean()) == pytest.approx(ratio, rel=1e-4)
    assert 0 < min(constraint.ratios().values()) < 1
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_lora_of_peft_with_an_optimizer_anchored_at_zero() -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    _, x, y = build("mlp")
    distances = []
    for strength in (0.0, 1.0):
        torch.manual_seed(0)
        model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["first", "second"]))
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = [
            {"params": [(n, p) for n, p in named.items() if "lora_B" in n], "anchor": "zero"},
            {"params": [(n, p) for n, p in named.items() if "lora_B" not in n], "anchor": False},
        ]
        optimizer = AdamSPD(groups, lr=0.3, strength=strength)
        for i in range(10):
            if i == 5:
                optimizer.load_state_dict(optimizer.state_dict())
            anchors = [optimizer.state[p]["anchor"] for n, p in named.items() if "lora_B" in n]
            assert all(a.untyped_storage().nbytes() == 4 for a in anchors), "no copy"
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        distances.append(sum(float(p.detach().norm()) for n, p in named.items() if "lora_B" in n))
    assert distances[1] < distances[0]
