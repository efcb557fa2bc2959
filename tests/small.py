"""A small convolutional model, "pre-trained" in the sense of having an anchor, and data it can learn in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tpgm.data import DataSplits, ImageArray
from tpgm.data.preparation import Preparation
from tpgm.models import Pretrained


class SmallNet(nn.Module):
    """Two convolutions, one with BatchNorm, and a head for 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.conv = nn.Conv2d(6, 8, 3)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.conv(self.block(x)).relu().mean(dim=(2, 3))))


def small_start() -> Pretrained:
    torch.manual_seed(3)
    model = SmallNet()
    anchor = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("head")}
    return Pretrained(
        name="small",
        model=model,
        anchor=anchor,
        exclude=("head.*",),
        preparation=Preparation(12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    )


class OneByOne(Dataset):
    """The same images read one at a time, as files are."""

    def __init__(self, data: ImageArray) -> None:
        self.data, self.labels, self.class_subset = data, data.labels, None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data[index]


def small_data(n_train: int = 83) -> DataSplits:
    """Three colours under noise; out of distribution the same, darker."""
    generator = torch.Generator().manual_seed(5)

    def part(n: int, light: float = 1.0) -> ImageArray:
        labels = torch.arange(n) % 3
        images = torch.randint(0, 90, (n, 3, 12, 12), generator=generator)
        images[torch.arange(n), labels] += 90
        return ImageArray((images * light).to(torch.uint8), labels)

    return DataSplits(
        "small", "light", ("red", "green", "blue"), part(n_train), part(30), part(60), {"dark": part(60, 0.5)}
    )
