"""A fine-tuned model where others use it: its folder, its card, the Hub (never the network), timm alone, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from torch import Tensor

import tpgm
from tests.small import small_data, small_start
from tests.test_inference import finished_run
from tpgm import models
from tpgm.cli import main
from tpgm.data import Preparation
from tpgm.models import Architecture, Pretrained

NAMES = ("a cat", "dog", "x|y")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned ResNet of timm's, small, with BatchNorm's statistics that are not those of the start."""
    torch.manual_seed(0)
    architecture = Architecture("timm/resnet10t.c3_in1k", {"channels": [8, 8, 8, 8]})
    model = architecture.build(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    preparation = Preparation(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    start = Pretrained("timm/resnet10t.c3_in1k", model.eval(), {}, (), preparation, "fc", NAMES, architecture)
    folder = tmp_path_factory.mktemp("shared") / "model"
    models.save_pretrained(folder, start)
    return folder


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_timm_alone_gives_the_same_answers(folder: Path, images: Tensor) -> None:
    import timm
    from safetensors.torch import load_file

    own = models.from_pretrained(folder).model(images)
    assert own.std() > 1e-2
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    near(whole(images), own)
    assert tuple(whole.pretrained_cfg["mean"]) == (0.4, 0.5, 0.6)
    assert tuple(whole.pretrained_cfg["input_size"]) == (3, 32, 32)
    # the three lines of plain PyTorch
    model = timm.create_model("resnet10t", num_classes=3, channels=[8, 8, 8, 8])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    near(model.eval()(images), own)


def test_timm_prepares_images_as_the_training_did(folder: Path, tmp_path: Path) -> None:
    import timm
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    pixels = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "image.png")
    start = models.from_pretrained(folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    theirs = transform(Image.open(tmp_path / "image.png"))
    own = start.preparation(
        tpgm.data.resize_and_crop(32)(Image.open(tmp_path / "image.png"))[None], torch.device("cpu")
    )
    near(theirs, own[0])


@torch.no_grad()
def test_an_exported_program_gives_the_same_answers_for_any_batch(folder: Path, images: Tensor, tmp_path: Path) -> None:
    start = models.from_pretrained(folder)
    batch = torch.export.Dim("batch")
    program = torch.export.export(start.model, (images[:2],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    near(torch.export.load(tmp_path / "model.pt2").module()(images), start.model(images))


@torch.no_grad()
def test_onnx_gives_the_same_answers(folder: Path, images: Tensor, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    start = models.from_pretrained(folder)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(start.model, (images[:2],), tmp_path / "model.onnx", dynamic_shapes=(batch,), dynamo=True)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    near(torch.from_numpy(found), start.model(images))


def test_the_card_says_what_the_hub_reads_and_how_it_was_made(tmp_path: Path) -> None:
    tpgm.finetune(small_start(), small_data(), "vanilla", out=tmp_path, progress=False, epochs=1, lr=1e-3)
    row = json.loads((tmp_path / "result.json").read_text())
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "tpgm"
    assert [(r.dataset_split, r.metric_value) for r in card.data.eval_results] == [
        (test, round(row["accuracies"][test]["accuracy"], 4)) for test in ("id_test", "dark")
    ]
    assert row["command"] in card.text
    assert f"tpgm.finetune('small', data, 'vanilla', out={str(tmp_path)!r}, size=12, epochs=1, lr=0.001)" in card.text
    assert row["model"] == {"name": "small", "size": 12, "architecture": None, "checksum": row["model"]["checksum"]}
    assert row["data"]["images"] == {"train": 83, "val": 30, "id_test": 60, "dark": 60}
    assert torch.__version__.startswith(row["versions"]["torch"].partition("+")[0])


def test_the_card_of_a_timm_model_names_its_base_and_its_classes(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["base_model"] == "timm/resnet10t.c3_in1k"
    assert head["library_name"] == "timm"
    assert "3 classes: a cat, dog, x\\|y." in text


class Offline:
    """What `push_to_hub` may ask of huggingface_hub's HfApi."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, **about: Any) -> None:
        type(self).calls = []

    def create_repo(self, repo: str, **given: Any) -> None:
        self.calls.append((repo, given))

    def upload_folder(self, **given: Any) -> str:
        self.calls.append(("upload", given))
        return f"https://huggingface.co/{given['repo_id']}/commit/1"


def test_pushing_sends_the_folder_and_nothing_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    assert main(["push", str(folder), "user/model", "--private"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/user/model/commit/1\n"
    (repo, made), (_, sent) = Offline.calls
    assert (repo, made) == ("user/model", {"private": True, "exist_ok": True})
    assert (sent["repo_id"], sent["folder_path"]) == ("user/model", folder.resolve())
    there = ["model.safetensors", "README.md", "config.json", "result.json", "ratios.png", "checkpoint.pt", ".lock"]
    assert [*filter_repo_objects(there, allow_patterns=sent["allow_patterns"])] == there[:5]
    assert main(["push", str(finished_run(tmp_path / "bare")), "user/model"]) == 1
    assert "config.json: no such file; give a finished run, or save_pretrained first" in capsys.readouterr().err


def test_a_model_from_the_hub_is_the_one_that_was_put_there(
    folder: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, str | None]] = []

    def fetched(repo: str, file: str, revision: str | None = None) -> str:
        asked.append((repo, file, revision))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    found = models.from_pretrained("user/model", revision="v1")
    assert asked == [("user/model", "model.safetensors", "v1")]
    assert found.class_names == NAMES
    assert torch.equal(found.model(images), models.from_pretrained(folder).model(images))
    assert models.load("hf-hub:user/model").name == "hf-hub:user/model"
    assert models.from_pretrained("user/model", num_classes=5).model(images).shape == (3, 5)


def test_without_the_hub_the_error_says_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refused(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(OSError, match=r"hf-hub:user/model are not on this machine .*no route"):
        models.from_pretrained("user/model")


@torch.no_grad()
def test_the_recipes_of_the_page_run_as_they_are_printed(
    folder: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch
    import timm

    page = (Path(__file__).parent.parent / "book" / "use_it.md").read_text(encoding="utf8")
    recipes = page.partition("## The model in other libraries")[2].partition("\n## ")[0]
    blocks = [block.partition("```")[0] for block in recipes.split("```py\n")[1:]]
    alone, plain, export = (block.replace("num_classes=10", "num_classes=3, channels=[8] * 4") for block in blocks)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    want = models.from_pretrained(folder).model(images)
    for block in (alone, plain.replace("resnet50", "resnet10t")):
        names: dict[str, Any] = {"timm": timm, "safetensors": safetensors}
        exec(block, names)
        near(names["model"](images), want)
    exec("\n".join(line for line in export.splitlines() if "onnx" not in line), {"torch": torch, "tpgm": tpgm})
    near(torch.export.load(tmp_path / "model.pt2").module()(images), want)
