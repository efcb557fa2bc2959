"""Zero-shot pre-training on icons and names: the loss, exact resume, an honest card, and the head it comes with."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import tpgm
from tpgm import cli, models
from tpgm.book import contrastive
from tpgm.book.contrastive import RECIPES, Contrastive, contrastive_loss, pretrain, texts_and_classes
from tpgm.book.experiments import experiment
from tpgm.book.experiments.icon_studies import ZERO_SHOT_STUDIES
from tpgm.book.icon_benchmark import icons, named_icons
from tpgm.book.icon_benchmark.icons import published
from tpgm.book.pretraining import accuracy
from tpgm.data import ImageArray
from tpgm.models import Architecture, load
from tpgm.training.evaluate import answers

pytest.importorskip("timm")
pytest.importorskip("safetensors")
pytest.importorskip("resvg_py")

SMALL = Architecture("icons-clip", {"backbone": "resnet10t", "channels": [16, 24, 32, 48]})
SHIPPED = sorted(set(RECIPES) & set(models.OFFLINE))
# labels whose rows have ratios, the head's among them
LEARNED = ["one ratio", "one ratio, 1 SE", "probe-anchored", "tpgm-end", "tpgm", "tpgm-late", "ftp"]
TINY = Contrastive(SMALL, steps=4, lr=5e-3, batch_size=32)


def run(path: Path, **changes: Any) -> dict[str, Any]:
    return pretrain(TINY, path, source="tiny", device="cpu", progress=False, **changes)


def test_the_loss_is_the_mean_of_both_directions_term_by_term() -> None:
    torch.manual_seed(0)
    features, texts = normalize(torch.randn(5, 7), dim=-1), normalize(torch.randn(5, 7), dim=-1)
    names = torch.tensor([3, 1, 3, 0, 2])
    texts[2] = texts[0]
    cosines = [[float(f @ t) for t in texts] for f in features]
    total = 0.0
    for i in range(5):
        same = [j for j in range(5) if names[j] == names[i]]
        for row in (cosines[i], [cosines[j][i] for j in range(5)]):  # names given the icon, icons given the name
            norm = math.log(sum(math.exp(4 * c) for c in row))
            total -= sum(4 * row[j] - norm for j in same) / len(same)
    found = contrastive_loss(features, texts, torch.tensor(4.0))
    assert found.item() == pytest.approx(total / 10, rel=1e-5)


def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "EVERY", 2)
    monkeypatch.setattr(contrastive, "SECONDS", 0.0)
    whole = run(tmp_path / "whole.safetensors")
    real, calls = contrastive.augmented, []

    def interrupted(images: torch.Tensor, size: int) -> torch.Tensor:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(size)
        return real(images, size)

    path = tmp_path / "parts.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(contrastive, "augmented", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    assert not path.exists()
    with pytest.raises(ValueError, match="another recipe, seed or data"):
        run(path, seed=1)
    monkeypatch.setattr(contrastive, "augmented", lambda images, size: (calls.append(size), real(images, size))[1])
    parts = run(path)
    assert len(calls) == 3 + 2, "the third step is taken again, the first two are not"
    ours, theirs = load(path), load(tmp_path / "whole.safetensors")
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name
    assert parts["loss"] == whole["loss"]
    assert sorted(p.name for p in tmp_path.glob("parts.*")) == ["parts.json", "parts.safetensors"]


def test_it_learns_names_of_designers_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "EVERY", 20)
    card = run(tmp_path / "m.safetensors", steps=160)
    assert card["loss"][-1] < 0.85 * card["loss"][0]
    found = load(tmp_path / "m.safetensors")
    texts, _, _ = texts_and_classes(named_icons(source="tiny").names, "tiny")
    names, data = named_icons(source="tiny").names, icons(source="tiny", designers="zero-shot")
    head = torch.stack([texts[names.index(name)] for name in data.class_names])
    with torch.no_grad():
        features = normalize(found.model.tower(found.preparation(data.id_test.images, torch.device("cpu"))), dim=-1)
    right = ((features @ head.T).argmax(dim=1) == data.id_test.labels).float().mean()
    assert right > 1 / 3, "six classes: guessing gives a sixth"


def test_the_stored_head_is_the_classes_embeddings_times_the_scale(tmp_path: Path) -> None:
    card = run(tmp_path / "m.safetensors")
    assert card == json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    found = load(tmp_path / "m.safetensors")
    _, classes, names = texts_and_classes(named_icons(source="tiny").names, "tiny")
    assert found.class_names == names
    assert found.exclude == (), "the head belongs to the anchor"
    assert torch.allclose(found.model.head.weight, card["logit_scale"] * classes, atol=0.02)
    assert not found.model.head.bias.any()
    data = icons(source="tiny", designers="development")
    right = answers(found.model(found.preparation(data.val.images, torch.device("cpu")))) == data.val.labels
    told = card["zero_shot_accuracy_on_development_designers"]["val"]
    assert (told["correct"], told["total"]) == (int(right.sum()), len(data.val))


def test_names_and_classes_are_centred_and_of_norm_one() -> None:
    texts, classes, names = texts_and_classes(("home", "star", "moon"), "tiny")
    assert texts.shape == (3, 384)
    assert classes.shape == (len(names), 384)
    for rows in (texts, classes):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)))


def test_an_experiment_keeps_the_models_own_head(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    run(path)
    config = {"model": str(path), "head": "own", "data": "icons-zero-shot", "source": "tiny", "size": 32}
    config |= {"train_per_class": 2, "val_per_class": 1, "method": "wise-ft", "settings": {"epochs": 1, "alpha": 0.0}}
    row = experiment.run(config)
    data = icons(source="tiny", designers="zero-shot")
    found = load(path)
    right = answers(found.model(found.preparation(data.id_test.images, torch.device("cpu")))) == data.id_test.labels
    assert row["id"] == pytest.approx(float(right.float().mean())), "ratio 0 is the zero-shot model"
    learned = experiment.run({**config, "method": "one-ratio", "settings": {"epochs": 1, "points": 2}})
    assert set(learned["ratios"]) == {name for name, _ in found.model.named_parameters()}, "the head is anchored too"
    with pytest.raises(ValueError, match="other classes than the data's"):
        experiment.run({**config, "model": "icons-resnet"})


def test_every_label_of_the_zero_shot_study_runs_from_its_own_head(tmp_path: Path) -> None:
    run(tmp_path / "m.safetensors")
    study = ZERO_SHOT_STUDIES["development:resnet"].shortened("smoke").at(model=str(tmp_path / "m.safetensors"))
    anchored = {}
    for label in study.entries:
        row = experiment.run(study.configs(label)[-1], store=tmp_path / "store")
        anchored[label] = "head.weight" in row["ratios"]
        assert row["accuracies"]["id_test"]["total"] == len(icons(source="tiny", designers="development").id_test)
    assert [label for label in anchored if anchored[label]] == LEARNED


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="'icons-clip-resnet'"):
        pretrain("icons-clip-mlp", tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"\.safetensors file"):
        run(tmp_path / "m.pth")
    with pytest.raises(ValueError, match="steps"):
        run(tmp_path / "m.safetensors", steps=0)
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"m\.safetensors"):
        run(tmp_path / "m.safetensors")
    with pytest.raises(FloatingPointError, match="lower lr"):
        run(tmp_path / "o.safetensors", lr=1e30)
    for arguments, words in (
        (["icons-clip-rsnet", "x.safetensors"], "icons-clip-resnet"),
        (["icons-clip-resnet", "x.safetensors", "--epochs", "2"], "--steps"),
        (["icons-resnet", "x.safetensors", "--steps", "2"], "--epochs"),
    ):
        assert cli.main(["pretrain", *arguments]) != 0
        assert words in capsys.readouterr().err


# --- the weights that ship


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_anchor_their_head_and_fit_their_card(name: str) -> None:
    found = load(name)
    constraint = tpgm.TPGM(found.model, anchor=found.anchor)
    assert set(constraint.radii) == {n for n, _ in found.model.named_parameters()}
    assert found.model(torch.zeros(2, 3, 32, 32)).shape == (2, 76)
    assert len(found.class_names or ()) == 76
    assert found.preparation.size == 32
    path = Path(models.__file__).parent / "weights" / f"{name}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert path.stat().st_size == card["weights"]["bytes"] <= 10_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["weights"]["sha256"]
    assert card["data"]["sha256"] == published()["named"]
    recipe = {"size": 32, "precision": "no", **card["recipe"]}  # fields that came after the first card
    assert recipe == json.loads(json.dumps(asdict(RECIPES[name]))), "the recipe in the code made these weights"
    assert found.model.head.weight.detach().norm(dim=1).numpy() == pytest.approx(card["logit_scale"], rel=1e-3)


@pytest.mark.network
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_have_the_accuracy_on_their_card(name: str) -> None:
    try:
        data = icons(designers="development", progress=False)
    except RuntimeError as error:
        pytest.skip(f"the icons are not in the cache and npm cannot fetch them: {error}")
    path = Path(models.__file__).parent / "weights" / f"{name}.json"
    card = json.loads(path.read_text(encoding="utf-8"))["zero_shot_accuracy_on_development_designers"]["duotone"]
    test = data.ood_tests["duotone"]
    assert isinstance(test, ImageArray)
    found = accuracy(load(name).model, test, 32, torch.device("cpu"))
    # another processor may round one close decision differently
    assert found.total == card["total"]
    assert abs(found.correct - card["correct"]) <= 1
