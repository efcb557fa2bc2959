"""Tiny trees of image files in the official layouts of DomainNet and ImageNet, and tiny files of known checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]


def write_image(path: Path, shade: int = 100, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode in ("L", "I;16") else (shade,) * len(mode)).save(path)


def write_classes(folder: Path, classes: Iterable[str], count: int) -> None:
    for name in classes:
        for k in range(count):
            write_image(folder / name / f"{k:02d}.png", shade=k)


def domainnet_tree(root: Path) -> Path:
    """Three classes, 20 training and 3 test images a class and domain."""
    for domain in DOMAINS:
        for part, count in {"train": 20, "test": 3}.items():
            lines = []
            for label, name in enumerate(["aircraft_carrier", "airplane", "alarm clock"]):
                for k in range(count):
                    relative = f"{domain}/{name}/{domain}_{label:03d}_{part}{k:06d}.jpg"
                    write_image(root / relative)
                    lines.append(f"{relative} {label}")
            (root / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def imagenet_tree(root: Path, train: int = 10) -> Path:
    """Four classes, of which ImageNet-A and ImageNet-R hold two each; `train` training images a class."""
    write_classes(root / "train", WNIDS[::-1], train)
    write_classes(root / "val", WNIDS, 2)
    write_classes(root / "imagenetv2-matched-frequency-format-val", map(str, range(4)), 2)
    write_classes(root / "imagenet-a", WNIDS[1:3], 3)
    write_classes(root / "imagenet-r", WNIDS[::2], 3)
    write_classes(root / "sketch", WNIDS, 1)
    (root / "imagenet-r" / "README.txt").write_text("as in the official archive")
    return root


def spread(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors with statistics and scales that no initialisation has."""
    generator = torch.Generator().manual_seed(7)
    return {
        n: t + torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in model.state_dict().items()
    }


def moco_layout(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The keys of MoCo-v3's published files around a ResNet's tensors."""
    backbone = {n: t for n, t in tensors.items() if not n.startswith("fc.")}
    extra = {"fc.0.weight": torch.zeros(4, 4), "fc.4.running_mean": torch.zeros(4)}
    base = {f"module.base_encoder.{n}": t for n, t in {**backbone, **extra}.items()}
    momentum = {f"module.momentum_encoder.{n}": t + 1 for n, t in {**backbone, **extra}.items()}
    state = {**base, **momentum, "module.predictor.0.weight": torch.zeros(4, 4)}
    return {"epoch": 1000, "arch": "resnet50", "state_dict": state, "optimizer": {"param_groups": [{"lr": 0.1}]}}
