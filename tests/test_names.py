"""Groups found from the names of real models."""

from __future__ import annotations

from torchvision.models import resnet18

from tpgm.names import default_groups


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
