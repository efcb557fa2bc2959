"""Small real models and settings shared by the tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

settings.register_profile("tpgm", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tpgm")


class TinyTransformer(nn.Module):
    """Embedding, two encoder layers, mean over tokens, linear head: (B, T) token ids to (B, classes)."""

    def __init__(self, vocabulary: int = 11, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean(dim=1))


def build(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A model of the kind "mlp", "conv" or "transformer", 24 inputs and labels that can be learned from them."""
    generator = torch.Generator().manual_seed(1)
    if kind == "mlp":
        model: nn.Module = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
        x = torch.randn(24, 6, generator=generator)
        return model, x, x[:, :3].argmax(dim=1)
    if kind == "conv":
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip
        x = torch.randn(24, 2, 8, 8, generator=generator)
        y = torch.arange(24) % 3
        return model, x + y[:, None, None, None] - 1, y
    tokens = torch.randint(0, 11, (24, 5), generator=generator)
    return TinyTransformer(), tokens, tokens.sum(dim=1).div(9, rounding_mode="floor").clamp(1, 3) - 1


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
