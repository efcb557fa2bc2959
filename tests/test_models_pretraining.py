"""Pre-training of the package's own backbones: exact resume, an honest card, and the weights that ship."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import tpgm
from tpgm import models
from tpgm.book import pretraining
from tpgm.book.icon_benchmark import DOMAINS, icon_collection, icons_upstream
from tpgm.book.icon_benchmark.icons import published
from tpgm.book.pretraining import RECIPES, Pretraining, accuracy, augmented, pretrain
from tpgm.data import ImageArray
from tpgm.models import Architecture, load

pytest.importorskip("timm")
pytest.importorskip("safetensors")
pytest.importorskip("resvg_py")

TINY = Pretraining(
    Architecture("icons-vit", {"width": 16, "depth": 1, "heads": 2}),
    epochs=3,
    small_epochs=2,
    lr=2e-3,
    weight_decay=0.05,
)


def run(path: Path, **changes: Any) -> dict[str, Any]:
    return pretrain(TINY, path, source="tiny", device="cpu", progress=False, **changes)


def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole" / "m.safetensors")
    real = pretraining.augmented

    def interrupted(images: torch.Tensor, size: int) -> torch.Tensor:
        if size == pretraining.SIZE:
            raise KeyboardInterrupt
        return real(images, size)

    path = tmp_path / "parts" / "m.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "augmented", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="another recipe, seed or data"):
        run(path, seed=1)
    calls = []
    monkeypatch.setattr(pretraining, "augmented", lambda images, size: (calls.append(size), real(images, size))[1])
    parts = run(path)
    assert set(calls) == {pretraining.SIZE}, "whole epochs are not repeated"
    assert parts["weights"] == whole["weights"]
    assert parts["history"] == whole["history"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.json", "m.safetensors"]


def test_the_card_tells_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    card = run(path, epochs=1, small_epochs=0, seed=3)
    assert card == json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["weights"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["recipe"]["epochs"] == len(card["history"]) == 1
    assert card["seed"] == 3
    assert card["data"]["sha256"] == icon_collection("upstream", source="tiny").checksum
    found, data = load(path), icons_upstream(source="tiny")
    right = accuracy(found.model, data.id_test, 64, torch.device("cpu"))
    assert card["accuracy"]["test"] == {"correct": right.correct, "total": right.total}
    assert right.total == len(data.id_test)
    assert set(card["accuracy"]["test_by_style"]) == {*DOMAINS, "mixed"}
    assert found.class_names == data.class_names
    assert found.preparation.size == 64


def test_it_learns(tmp_path: Path) -> None:
    small = Architecture("timm/resnet10t", {"channels": [16, 24, 32, 48]})
    card = run(tmp_path / "m.safetensors", architecture=small, epochs=7, small_epochs=7, lr=5e-3, batch_size=16)
    assert card["history"][-1]["loss"] < card["history"][0]["loss"]
    assert card["history"][-1]["val"] > 0.5, "4 classes: guessing gives a quarter"


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    cards = [run(tmp_path / f"{seed}.safetensors", epochs=1, small_epochs=1, seed=seed) for seed in (0, 1)]
    assert cards[0]["weights"]["sha256"] != cards[1]["weights"]["sha256"]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'icons-resnet'"):
        pretrain("icons-mlp", tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"\.safetensors file"):
        run(tmp_path / "m.pth")
    with pytest.raises(ValueError, match="small_epochs"):
        run(tmp_path / "m.safetensors", epochs=1)
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"m\.safetensors"):
        run(tmp_path / "m.safetensors")
    (tmp_path / "n.checkpoint").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"n\.checkpoint cannot be read"):
        run(tmp_path / "n.safetensors")
    with pytest.raises(FloatingPointError, match="lower lr"):
        run(tmp_path / "o.safetensors", lr=1e30)


def test_augmentation_moves_and_recolours_but_does_not_mirror() -> None:
    torch.manual_seed(0)
    images = torch.full((200, 3, 64, 64), 255, dtype=torch.uint8)
    images[:, :, 16:48, 16:24] = 0  # a bar left of the middle
    x = augmented(images, 32)
    assert x.shape == (200, 3, 32, 32)
    assert -1 <= float(x.min()) < float(x.max()) <= 1
    ink = (x - x[:, :, :1, :1]).abs().sum(dim=1)
    assert bool((ink[:, :, :16].sum(dim=(1, 2)) > ink[:, :, 16:].sum(dim=(1, 2))).float().mean() > 0.9)
    corners = x[:, :, 0, 0]
    plain = (corners == 1).all(dim=1).float().mean()
    assert 0.3 < plain < 0.5, "two fifths keep their colours"
    assert 0.1 < (corners.mean(dim=1) < 0).float().mean() < 0.3, "a fifth is light on dark"
    assert not torch.equal(x[0], x[1])


# --- the weights that ship


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_shipped_weights_fit_tpgm_and_their_card(name: str) -> None:
    found = load(name, num_classes=5)
    constraint = tpgm.TPGM(found.model, anchor=found.anchor, exclude=found.exclude)
    assert set(constraint.radii) == {n for n, _ in found.model.named_parameters() if not n.startswith(f"{found.head}.")}
    assert all(torch.equal(p, found.anchor[n]) for n, p in found.model.named_parameters() if n in constraint.radii)
    assert found.model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    path = Path(models.__file__).parent / "weights" / f"{name}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert path.stat().st_size == card["weights"]["bytes"] <= 10_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["weights"]["sha256"]
    assert card["data"]["sha256"] == published()["upstream"]
    assert card["recipe"] == json.loads(json.dumps(asdict(RECIPES[name]))), "the recipe in the code made these weights"
    assert len(load(name).class_names or ()) == card["data"]["classes"]


@pytest.mark.network
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_shipped_weights_have_the_accuracy_on_their_card(name: str) -> None:
    try:
        collection, test = icon_collection("upstream", progress=False), icons_upstream(progress=False).id_test
    except RuntimeError as error:
        pytest.skip(f"the icons are not in the cache and npm cannot fetch them: {error}")
    chosen = torch.nonzero(collection.domains[collection.splits == 2] == DOMAINS.index("duotone")).flatten()
    assert isinstance(test, ImageArray)
    part = ImageArray(test.images[chosen], test.labels[chosen])
    path = Path(models.__file__).parent / "weights" / f"{name}.json"
    card = json.loads(path.read_text(encoding="utf-8"))["accuracy"]["test_by_style"]["duotone"]
    found = accuracy(load(name).model, part, 64, torch.device("cpu"))
    # another processor may round one close decision differently
    assert found.total == card["total"]
    assert abs(found.correct - card["correct"]) <= 1
