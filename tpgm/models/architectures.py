"""Architectures by name, with a head for any number of classes."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from tpgm.data.preparation import Preparation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# options by which timm and torchvision would load weights from any address that a file's metadata names
FETCHING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "weights", "weights_backbone"}


def need(module: str, extra: str = "models") -> ModuleType:
    """Import an optional package, or raise ImportError saying which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed for this model: pip install 'tpgm[{extra}]'") from error


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name nobody knows, with names that come close."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    most = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known[:8])} and others"
    return ValueError(f"unknown {what} {name!r}; {most}")


class Tower(nn.Module):
    """An image tower and a linear head on its features: (B, 3, H, W) to (B, classes).

    unit: whether the features are scaled to Euclidean norm 1 first, as a zero-shot head needs it.
    """

    def __init__(self, tower: nn.Module, features: int, classes: int, unit: bool) -> None:
        super().__init__()
        self.tower, self.unit = tower, unit
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.tower(images)
        logits: Tensor = self.head(normalize(features, dim=-1) if self.unit else features)
        return logits


@dataclass(frozen=True)
class Architecture:
    """What rebuilds a model without its weights.

    name: "timm/…", "torchvision/…", "open_clip/…", "clip-resnet50" (the image tower of CLIP's ResNet-50 and a linear
    head), "icons-vit" or "icons-clip"; options: keyword arguments of the builder, JSON values.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, classes: int) -> nn.Module:
        """The model with random weights. Raises ValueError for an unknown name or an option that loads
        weights, ImportError for a missing package."""
        if fetching := FETCHING & set(self.options):
            raise ValueError(f"an architecture is built without weights: options must not hold {sorted(fetching)}")
        source, _, name = self.name.partition("/")
        model: nn.Module
        if source == "timm":
            model = need("timm").create_model(timm_name(name), num_classes=classes, **self.options)
        elif source == "torchvision":
            model = need("torchvision.models").get_model(torchvision_name(name), num_classes=classes, **self.options)
        elif source == "open_clip":
            model = _open_clip_tower(name, classes, **self.options)
        elif self.name == "clip-resnet50":
            model = Tower(need("timm").create_model("resnet50_clip", num_classes=1024), 1024, classes, False)
        elif self.name == "icons-vit":
            model = icons_vit(classes, **self.options)
        elif self.name == "icons-clip":
            model = icons_clip(classes, **self.options)
        else:
            known = ["clip-resnet50", "icons-clip", "icons-vit", "timm/resnet50", "torchvision/resnet50"]
            raise unknown("architecture", self.name, known)
        return model


def timm_name(name: str) -> str:
    """The name (a tag of weights after a dot included) if timm has the model. Raises ValueError otherwise."""
    timm = need("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm model", name, timm.list_models())
    return name


def torchvision_name(name: str) -> str:
    """The name if torchvision has the classifier. Raises ValueError otherwise."""
    models = need("torchvision.models")
    known = models.list_models(module=models)
    if name.lower() not in known:
        raise unknown("torchvision model", name, known)
    return name.lower()


def head_of(model: nn.Module) -> str:
    """Prefix of the classifier's parameter names: what timm says, otherwise the last linear layer.

    Raises ValueError for a model with several classifiers or none.
    """
    told = getattr(model, "pretrained_cfg", {}).get("classifier")
    if isinstance(told, str):
        return told
    if told is not None:
        raise ValueError(f"a model with several classifiers ({', '.join(told)}) is not supported")
    linear: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the model has no linear layer that could be its classifier")
    return linear[-1]


def preparation_of(model: nn.Module, size: int | None = None) -> Preparation:
    """What the model's images go through: timm's own values where it has them, else ImageNet's at 224 pixels."""
    told = getattr(model, "pretrained_cfg", {})
    mean, std = told.get("mean", IMAGENET_MEAN), told.get("std", IMAGENET_STD)
    return Preparation(size or told.get("input_size", (3, 224, 224))[-1], tuple(mean), tuple(std))


def icons_vit(classes: int, size: int = 64, width: int = 128, depth: int = 6, heads: int = 4) -> nn.Module:
    """A small vision transformer: three stride-2 convolutions make tokens of 8 x 8 pixels, `depth` blocks follow.

    Takes (B, 3, H, W) with H and W multiples of 8; position embeddings, learned for `size`, are interpolated.
    """
    vit, hybrid = need("timm.models.vision_transformer"), need("timm.models.vision_transformer_hybrid")
    # LayerNorm, not BatchNorm, in the stem: no running statistics that fine-tuning would have to care for
    stem = hybrid.ConvStem(
        channels=(width // 4, width // 2, width), norm_layer=need("timm.layers").LayerNorm2d, act_layer=nn.GELU
    )
    model: nn.Module = vit.VisionTransformer(
        img_size=size,
        patch_size=1,  # of the stem's output
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=classes,
        dynamic_img_size=True,
        embed_layer=partial(hybrid.HybridEmbed, backbone=stem, proj=False),
    )
    return model


def icons_clip(
    classes: int, backbone: str = "resnet10t", features: int = 384, pool: bool = False, **options: Any
) -> nn.Module:
    """An image tower of timm, and a head on its features of norm 1, which embeddings of texts can fill.

    pool: whether a pooling after the stem stays; at 32 pixels it would leave a ResNet an image of 8. options: of timm's
    builder.
    """
    tower = need("timm").create_model(timm_name(backbone), num_classes=features, **options)
    if hasattr(tower, "maxpool") and not pool:
        tower.maxpool = nn.Identity()
    return Tower(tower, features, classes, unit=True)


def _open_clip_tower(name: str, classes: int, unit: bool = False, size: int | None = None) -> nn.Module:
    open_clip = need("open_clip", "clip")
    if name not in open_clip.list_models():
        raise unknown("open_clip model", name, open_clip.list_models())
    clip = open_clip_model(name, size)
    return Tower(clip.visual, clip.visual.output_dim, classes, unit)


def open_clip_model(name: str, size: int | None) -> Any:
    """Both towers with random weights. That they are random is no news here: others are put in at once."""
    open_clip, before = need("open_clip", "clip"), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(name, force_image_size=size)
    finally:
        logging.disable(before)
