"""Full-scale recipes: a dry run from checkpoint file to table, settings with their origin, the page's tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trees import domainnet_tree, imagenet_tree, moco_layout
from tpgm.book.domainnet import DOMAIN_SIZES
from tpgm.book.experiments import full_scale
from tpgm.book.experiments.experiment import read, resolve
from tpgm.book.experiments.full_scale import RECIPES, placed, recipe_frame, run_recipe, settings_frame, stated
from tpgm.book.imagenet import SHIFTS
from tpgm.book.notebook import markdown
from tpgm.cli import main
from tpgm.methods import METHODS, options

PAGE = Path(__file__).resolve().parent.parent / "book" / "full_scale.md"
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


def small_moco(folder: Path) -> tuple[Path, str]:
    """A ResNet of a hundredth of the width in MoCo-v3's layout."""
    import timm

    path = folder / "moco.pth.tar"
    torch.save(moco_layout(timm.create_model("test_resnet").state_dict()), path)
    return path, "timm/test_resnet"


def small_clip(folder: Path) -> tuple[Path, str]:
    """A CLIP with both towers, of one block each, under an architecture name that open_clip learns here."""
    open_clip = pytest.importorskip("open_clip")
    kind = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    (folder / "tpgm-test-clip.json").write_text(json.dumps(kind))
    open_clip.add_model_config(folder / "tpgm-test-clip.json")
    path = folder / "clip.pt"
    extra = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    torch.save({**open_clip.create_model("tpgm-test-clip").state_dict(), **extra}, path)
    return path, "open_clip/tpgm-test-clip"


def clip_resnet50(folder: Path) -> Path:
    """The real shapes of CLIP's ResNet-50 image tower, weights random."""
    pytest.importorskip("open_clip")
    from open_clip.modified_resnet import ModifiedResNet

    tower = ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64)
    path = folder / "RN50.pt"
    torch.save({f"visual.{n}": t.half() for n, t in tower.state_dict().items()}, path)
    return path


def moco_resnet50(folder: Path) -> Path:
    """The real shapes of MoCo-v3's ResNet-50, weights random."""
    from torchvision.models import resnet50

    path = folder / "r-50.pth.tar"
    torch.save(moco_layout(resnet50().state_dict()), path)
    return path


def table(recipe: str, rows: list[dict[str, Any]]) -> str:
    return markdown(recipe_frame(recipe, rows))


def configs(
    recipe: str, root: str = "data", checkpoint: str = "weights.pth", *, labels: Any = (), **how: Any
) -> list[dict[str, Any]]:
    study = placed(recipe, root, checkpoint, **how)
    return [config for label in study.known(labels) for config in study.configs(label)]


def use(monkeypatch: pytest.MonkeyPatch, recipe: str, architecture: str) -> None:
    """The recipe with another architecture in the place of its own."""
    found = RECIPES[recipe]
    changed = dataclasses.replace(found, config={**found.config, "checkpoint_of": architecture})
    monkeypatch.setitem(RECIPES, recipe, changed)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int]]:
    """Class names and number of templates that the zero-shot head was made of."""
    import tpgm.models.clip as clip

    seen, real = [], clip.zero_shot_weights

    def noted(model: Any, tokenizer: Any, class_names: Any, templates: Any) -> torch.Tensor:
        seen.append((tuple(class_names), len(templates)))
        return real(model, tokenizer, class_names, templates)

    monkeypatch.setattr(clip, "zero_shot_weights", noted)
    return seen


def assert_whole(recipe: str, rows: list[dict[str, Any]], tests: set[str]) -> None:
    for row in rows:
        assert {"val", "id_test"} | tests == set(row["accuracies"])
        assert 0 <= row["id"] <= 1
        assert resolve(row["config"]) == row["config"]
        if row["config"]["method"] in ("tpgm", "tpgm-end", "tpgm-c", "ftp"):
            assert all(0 <= r <= 1 for r in row["ratios"].values())
            assert row["radii"]
    text = table(recipe, rows)
    assert text.count("dry run, no result") == len(rows)
    assert text.count("not run yet") == len(RECIPES[recipe].entries) - len(rows)


OOD = {"domainnet": {"sketch", "painting", "infograph", "clipart"}, "imagenet": {"v2", "a", "r", "sketch"}}


def test_every_method_on_domainnet_in_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = domainnet_tree(tmp_path / "domainnet")
    path, architecture = small_moco(tmp_path)
    use(monkeypatch, "domainnet-moco-rn50", architecture)
    out = tmp_path / "rows.jsonl"
    rows = run_recipe("domainnet-moco-rn50", root, path, out=out, dry_run=True, progress=False)
    assert [row["config"]["method"] for row in rows] == list(RECIPES["domainnet-moco-rn50"].entries)
    assert_whole("domainnet-moco-rn50", rows, OOD["domainnet"])
    tpgm = next(row for row in rows if row["config"]["method"] == "tpgm")
    assert not any(name.startswith("fc.") for name in tpgm["radii"]), "the new head is excluded"
    assert "conv1.0.weight" in tpgm["radii"]
    # what is there is not run again
    before = out.read_bytes()
    again = run_recipe("domainnet-moco-rn50", root, path, out=out, dry_run=True, progress=False, labels=["ftp"])
    assert out.read_bytes() == before
    assert again == [row for row in read(out) if row["config"]["method"] == "ftp"]
    # a crash between the end of a run and the note of its row loses nothing
    lines = before.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:-1]))
    (last,) = run_recipe(
        "domainnet-moco-rn50", root, path, out=out, dry_run=True, progress=False, labels=[rows[-1]["config"]["method"]]
    )
    assert (last, out.read_bytes()) == (rows[-1], before)


def test_every_method_on_imagenet_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, texts: list[Any]
) -> None:
    root = imagenet_tree(tmp_path / "imagenet", train=20)
    path, architecture = small_clip(tmp_path)
    use(monkeypatch, "imagenet-clip-vitb16", architecture)
    caplog.clear()
    rows = run_recipe("imagenet-clip-vitb16", root, path, out=tmp_path / "rows.jsonl", dry_run=True, progress=False)
    assert [row["config"]["method"] for row in rows] == list(RECIPES["imagenet-clip-vitb16"].entries)
    assert_whole("imagenet-clip-vitb16", rows, OOD["imagenet"])
    assert texts[0] == (("tench", "goldfish", "great white shark", "tiger shark"), 80)
    assert not caplog.records, "open_clip would say that weights are random, which are not"
    end = next(row for row in rows if row["config"]["method"] == "tpgm-end")
    assert {"head.weight", "tower.positional_embedding"} < set(end["radii"]), "the zero-shot head is kept and bounded"


@pytest.mark.parametrize(
    ("recipe", "make"), [("domainnet-clip-rn50", clip_resnet50), ("domainnet-moco-rn50", moco_resnet50)]
)
def test_the_real_resnet50_in_a_dry_run(recipe: str, make: Any, tmp_path: Path) -> None:
    root, path = domainnet_tree(tmp_path / "domainnet"), make(tmp_path)
    rows = run_recipe(recipe, root, path, out=tmp_path / "r.jsonl", dry_run=True, progress=False, labels=["tpgm"])
    assert_whole(recipe, rows, OOD["domainnet"])
    # MoCo-v3: 161 tensors less the head's two; CLIP: its own stem and pooling
    assert len(rows[0]["radii"]) >= 159


def test_the_command_runs_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, architecture = small_moco(tmp_path)
    use(monkeypatch, "domainnet-moco-rn50", architecture)
    given = ["recipe", "domainnet-moco-rn50", "--checkpoint", str(path), "--out", str(tmp_path / "r.jsonl")]
    given += ["--root", str(domainnet_tree(tmp_path / "domainnet")), "--method", "l2-sp", "--dry-run", "--quiet"]
    assert main(given) == 0
    assert "dry run, no result" in capsys.readouterr().out
    assert main([*given, "--method", "magic"]) == 1
    assert "no label 'magic'" in capsys.readouterr().err


def test_a_zero_shot_head_needs_a_text_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = imagenet_tree(tmp_path / "imagenet", train=20)
    path, architecture = small_moco(tmp_path)
    use(monkeypatch, "imagenet-clip-vitb16", architecture)
    with pytest.raises(ValueError, match="no text tower"):
        run_recipe("imagenet-clip-vitb16", root, path, out=tmp_path / "r.jsonl", dry_run=True, labels=["vanilla"])
    assert not (tmp_path / "r.jsonl").exists()


def test_absent_data_and_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"real_train\.txt is missing"):
        run_recipe("domainnet-clip-rn50", tmp_path, "RN50.pt", out=tmp_path / "r.jsonl")
    root = domainnet_tree(tmp_path / "domainnet")
    with pytest.raises(FileNotFoundError, match=r"RN50\.pt: no such file"):
        run_recipe("domainnet-clip-rn50", root, tmp_path / "RN50.pt", out=tmp_path / "r.jsonl")


# --- settings


def test_the_published_settings() -> None:
    training = {"optimizer": "sgd", "epochs": 50, "batch_size": 256, "weight_decay": 5e-4, "warmup": 0.0}
    training |= {"batchnorm": "train"}
    radii = {"norm": "mars", "every": 1, "updates": 1, "radius_lr": 1e-2, "val_batch_size": 64, "buffers": "keep"}
    for recipe, lr in (("domainnet-clip-rn50", 1e-3), ("domainnet-moco-rn50", 5e-2)):
        for method, expected in (
            ("vanilla", {**training, "lr": lr}),
            ("tpgm", {**training, **radii, "lr": 1e-2}),
            ("ftp", {**training, "lr": 1e-2, "weight_decay": 0.0, "kappa": 1.0}),
        ):
            found = stated(recipe, method)
            assert {name: found[name] for name in expected} == {name: (v, True) for name, v in expected.items()}
        # what the authors did not run is not said to be published
        for method in ("linear-probe", "lp-ft", "wise-ft", "l2-sp"):
            assert not any(stated(recipe, method)[name][1] for name in (*training, "lr"))
        assert not any(stated(recipe, "tpgm")[name][1] for name in ("augment", "patience", "penalty", "tv"))
    for method in ("tpgm-end", "tpgm-c"):
        found = stated("imagenet-clip-vitb16", method)
        assert (found["updates"], found["norm"], found["val_batch_size"]) == ((200, True), ("l2", True), (64, True))
        assert not any(found[name][1] for name in ("epochs", "lr", "weight_decay", "batch_size"))
    assert stated("imagenet-clip-vitb16", "ftp")["lr"] == (1e-4, True)


@each_recipe
def test_configurations_are_valid_and_complete(recipe: str) -> None:
    found = RECIPES[recipe]
    for dry_run in (False, True):
        for config in configs(recipe, seed=3, dry_run=dry_run):
            assert resolve(config)["seed"] == 3
            assert set(stated(recipe, config["method"])) == set(options(config["method"])) - {"seed", "tolerance"}
    whole, dry = (configs(recipe, dry_run=d) for d in (False, True))
    assert all(a["settings"]["epochs"] > b["settings"]["epochs"] == 1 for a, b in zip(whole, dry, strict=True))
    assert {"vanilla", "linear-probe", "lp-ft", "wise-ft", "l2-sp", "ftp", "spd"} < set(found.entries)
    # every setting a recipe names is one that some method of it has: a misspelt one would be ignored
    for name in found.budget:
        assert any(name in options(entry.method) for entry in found.entries.values()), name
    assert found.published <= set(found.budget)
    for label, entry in found.entries.items():
        assert entry.method in METHODS
        assert set(entry.settings) <= set(options(entry.method)), label
        assert entry.published <= set(entry.settings)


@pytest.mark.parametrize(("key", "value"), [("head", "old"), ("templates", "many")])
def test_head_and_templates_are_checked(key: str, value: str) -> None:
    (config,) = configs("imagenet-clip-vitb16", labels=["vanilla"])
    with pytest.raises(ValueError, match=f"{key} must be one of"):
        resolve({**config, key: value})


def test_unknown_names_are_answered_with_known_ones() -> None:
    with pytest.raises(ValueError, match="domainnet-moco-rn50"):
        configs("domainnet")
    with pytest.raises(ValueError, match="tpgm-end"):
        configs("imagenet-clip-vitb16", labels=["tpgm"])


# --- tables


def row_of(config: dict[str, Any], id_: float, ood: float) -> dict[str, Any]:
    return {"config": resolve(config), "id": id_, "ood": ood}


def test_the_table_averages_seeds_and_counts_only_the_recipe() -> None:
    def of(recipe: str, seed: int, **other: Any) -> dict[str, Any]:
        (config,) = configs(recipe, root=f"r{seed}", checkpoint="w.pth", seed=seed, labels=["tpgm"])
        return {**config, **other}

    clip, moco = "domainnet-clip-rn50", "domainnet-moco-rn50"
    rows = [
        row_of(of(clip, 0), 0.80, 0.40),
        row_of(of(clip, 1), 0.82, 0.37),
        row_of(of(moco, 0), 0.1, 0.1),
        row_of(of(clip, 2, size=96), 0.1, 0.1),
    ]
    text = table(clip, rows)
    assert "| tpgm | 82.41 | 39.02 | 81.00 | 38.50 | 2 seeds |" in text
    assert text.endswith("2 rows of other configurations left out.")
    assert "| vanilla | 79.43 | 33.17 | – | – | not run yet |" in text
    assert "| tpgm | 81.30 | 37.03 | 10.00 | 10.00 | 1 seed |" in table(moco, rows)
    assert "| l2-sp | none at hand | none at hand | – | – | not run yet |" in text


def test_a_full_run_covers_a_dry_one() -> None:
    full, dry = (configs("domainnet-clip-rn50", dry_run=d, labels=["spd"])[0] for d in (False, True))
    assert "| 10.00 | 20.00 | dry run, no result |" in table("domainnet-clip-rn50", [row_of(dry, 0.1, 0.2)])
    both = table("domainnet-clip-rn50", [row_of(full, 0.3, 0.4), row_of(dry, 0.1, 0.2)])
    assert "| 30.00 | 40.00 | 1 seed |" in both
    assert "dry run" not in both
    assert "left out" not in both


@each_recipe
@pytest.mark.parametrize("kind", ["results", "settings"])
def test_the_page_shows_the_tables_that_the_code_makes(recipe: str, kind: str) -> None:
    want = table(recipe, []) if kind == "results" else markdown(settings_frame(recipe))
    block = f"<!-- {kind} of {recipe} -->\n{want}\n<!-- end -->"
    assert block in PAGE.read_text(encoding="utf8"), f"book/full_scale.md must hold, as it stands:\n{block}"


def test_the_page_names_every_recipe_its_weights_and_the_sizes_of_the_data() -> None:
    text = PAGE.read_text(encoding="utf8")
    for domain in ("real", *OOD["domainnet"]):
        assert f"{domain}.zip ({DOMAIN_SIZES[domain]} GB)" in text
    for folder, archive in SHIFTS.values():
        assert folder in text
        assert archive.rpartition("about ")[2].rstrip(")") in text
    for name, found in RECIPES.items():
        assert f"`{name}`" in text
        assert found.weights in text
    assert full_scale.SOURCE.rpartition(" ")[2] in text
