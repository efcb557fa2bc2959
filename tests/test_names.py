"""Groups found from the names of real models, and patterns that are names themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from tpgm import TPGM, interpolate
from tpgm.methods.base import Context, anchor_groups
from tpgm.methods.partial import Partial
from tpgm.names import chosen, default_groups, require_match


def grouped(names: list[str]) -> dict[str, int]:
    return {group[0]: len(group) for group in default_groups(names)}


def test_resnet_blocks() -> None:
    groups = default_groups(name for name, _ in resnet18().named_parameters())
    block = next(group for group in groups if "layer2.0.conv1.weight" in group)
    assert all(name.startswith("layer2.0.") for name in block)
    assert "layer2.0.downsample.0.weight" in block
    assert ["conv1.weight"] in groups
    assert ["fc.weight", "fc.bias"] in groups


def test_transformer_blocks_sequential_and_bare_parameters() -> None:
    names = ["cls_token", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "blocks.1.norm.weight", "head.weight"]
    assert grouped(names) == {
        "cls_token": 1,
        "blocks.0.attn.qkv.weight": 2,
        "blocks.1.norm.weight": 1,
        "head.weight": 1,
    }
    assert grouped(["0.weight", "0.bias", "2.weight"]) == {"0.weight": 3}


# --- patterns: exact names go before what a sign stands for


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("enc[0].*", ["enc[0].weight", "enc[0].bias"]),
        ("enc[0]*", ["enc[0].weight", "enc[0].bias"]),
        ("*[0].weight", ["enc[0].weight"]),
        ("a*.weight", ["a*.weight"]),
        ("a*.*", ["a*.weight", "a*.bias"]),
        ("a?.weight", ["a*.weight", "ab.weight"]),
        ("enc[12].*", ["enc1.weight"]),
        ("enc0.*", ["enc0.weight"]),
        ("*.bias", ["enc[0].bias", "a*.bias"]),
    ],
)
def test_a_literal_reading_goes_first(pattern: str, fits: list[str]) -> None:
    names = ["enc[0].weight", "enc[0].bias", "enc0.weight", "enc1.weight", "a*.weight", "a*.bias", "ab.weight"]
    assert chosen(names, [pattern]) == set(fits)
    assert chosen(["enc0.weight", "ab.weight"], ["enc[0].*", "a*.weight"]) == {"enc0.weight", "ab.weight"}
    require_match(pattern, names, "exclude")


class Keyed(nn.ModuleDict):
    """Modules whose names hold brackets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.values():
            x = module(x)
        return x


def keyed() -> Keyed:
    return Keyed({key: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for key in ("enc[0]", "enc0", "enc1")})


def test_every_door_reads_brackets_as_the_module_of_that_name() -> None:
    model = keyed()
    left = {name for name, _ in model.named_parameters() if not name.startswith("enc[0]")}
    constraint = TPGM(model, exclude=["enc[0].*"], buffers="move")
    assert set(constraint.radii) == left
    assert constraint._following is not None
    assert {held.name.split(".")[0] for held in constraint._following._held} == {"enc0", "enc1"}
    grouped = TPGM(model, groups=[["enc[0].*"]])
    names = list(grouped.radii)
    assert {names[i] for pair in grouped._pairs for i in pair} == {n for n in names if n.startswith("enc[0]")}
    other = {name: t + 1 for name, t in model.state_dict().items() if not name.startswith("enc[0]")}
    moved = interpolate(model, other, 0.0, exclude=["enc[0].*"])
    for name, tensor in moved.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name.startswith("enc[0]") or "tracked" in name), name


def test_so_do_the_methods_of_a_run() -> None:
    model, none = keyed(), dict[str, Any]()
    named = dict(model.named_parameters())
    literal = {name for name in named if name.startswith("enc[0]")}
    context = Context(
        model, named, ("enc[0].*",), frozenset(), **dict.fromkeys(("batch", "inputs", "validation", "autocast"), none)
    )
    kept, new = anchor_groups(context, named)
    assert {name for name, _ in new["params"]} == literal
    assert {name for name, _ in kept["params"]} == set(named) - literal
    assert Partial(train=("enc[0].*",)).trainable(context) == literal


@pytest.mark.parametrize("pattern", ["enc[0].*", "enc[0].1.*"])
def test_without_such_a_module_brackets_are_a_choice_of_characters(pattern: str) -> None:
    model = nn.ModuleDict({"enc0": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "enc1": nn.Linear(2, 2)})
    constraint = TPGM(model, exclude=[pattern])
    assert "enc1.weight" in constraint.radii
    assert "enc0.1.weight" not in constraint.radii
    with pytest.raises(ValueError, match=r"'enc\[5\]\.\*' matches no parameter"):
        TPGM(model, exclude=["enc[5].*"])
