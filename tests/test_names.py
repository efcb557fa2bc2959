"""Groups found from the names of real models, and patterns that are names themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from tpgm import TPGM, interpolate, model_stock
from tpgm.methods.base import Context, anchor_groups
from tpgm.methods.lines import LiNeS
from tpgm.methods.one_ratio import Losses, OneRatio
from tpgm.methods.partial import Partial
from tpgm.names import chosen, default_groups, names_left, require_match


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


class Tied(nn.Sequential):
    """The head shares the first weight; the layer between is in a wrapper of torch's."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
        self[2].weight = self[0].weight
        self[1] = nn.ModuleDict({"_orig_mod": self[1]})


def test_what_is_tied_to_an_excluded_head_is_left_out_at_every_door() -> None:
    anchor = Tied()
    models = [copy.deepcopy(anchor) for _ in range(2)]
    with torch.no_grad():
        for p in (p for model in models for p in model.parameters()):
            p.add_(torch.randn_like(p))
    net, free = models[0], ["1.weight", "1.bias"]
    assert names_left(net, ["2.*"]) == list(TPGM(net, exclude=["2.*"]).radii) == free
    mixed, ratios = model_stock(models, anchor, exclude=["2.*"])
    assert list(ratios) == free
    torch.testing.assert_close(mixed[0].weight, (models[0][0].weight + models[1][0].weight) / 2)
    none: Any = None
    start = {name.replace("_orig_mod.", ""): p for name, p in anchor.named_parameters()}
    context = Context(net, start, ("2.*",), frozenset(), none, none, none, none)
    context.learner = Losses(chosen=0.5)
    assert OneRatio().learned(context) == (dict.fromkeys(free, 0.5), {})
    back = LiNeS(shallow=0.0, deep=0.0).finish(context)
    assert torch.equal(back.get_parameter("1._orig_mod.weight"), anchor.get_parameter("1._orig_mod.weight"))
    assert torch.equal(back[0].weight, net[0].weight)
    groups = anchor_groups(context, {"0.weight": net[0].weight})
    assert [len(group["params"]) for group in groups] == [0, 1]
