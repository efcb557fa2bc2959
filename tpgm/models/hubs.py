"""Weights that a library fetches when they are used first: timm's and torchvision's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tpgm.data.preparation import Preparation
from tpgm.models.architectures import Architecture, need, preparation_of, timm_name, torchvision_name
from tpgm.models.pretrained import Pretrained, filled

OFFLINE = ("efficientnet-lite0", "icons-resnet", "icons-vit", "icons-clip-resnet", "icons-clip-convnext")


def load_timm(name: str, num_classes: int | None, size: int | None) -> Pretrained:
    """name: of the model, a tag of its weights after a dot; see ``tpgm.models.load``."""
    timm = need("timm")
    timm_name(name)
    told = timm.get_pretrained_cfg(name) if name in timm.list_pretrained() or "." not in name else None
    if told is None or not told.has_weights:
        others = timm.list_pretrained(f"{name.partition('.')[0]}*")[:8]
        raise ValueError(f"timm has no weights {name!r}; it has {', '.join(others) or 'none of that model'}")
    fixed = size is not None and told.fixed_input_size
    options = {"img_size": size} if fixed else {}
    with fetching(f"timm/{name}"):
        model = timm.create_model(name, pretrained=True, **options)
    architecture = Architecture(f"timm/{name}", options)
    values = preparation_of(model)
    names = imagenet_names(model) if num_classes is None else None
    return filled(
        architecture.name, architecture, model.state_dict(), num_classes, preparation=values, class_names=names
    )


def load_torchvision(name: str, num_classes: int | None) -> Pretrained:
    """The model with its default weights; see ``tpgm.models.load``."""
    models = need("torchvision.models")
    weights = models.get_model_weights(torchvision_name(name)).DEFAULT
    with fetching(f"torchvision/{name}"):
        tensors = weights.get_state_dict(progress=True, check_hash=True)
    return filled(
        f"torchvision/{name}",
        Architecture(f"torchvision/{name}"),
        tensors,
        num_classes,
        preparation=_of_transforms(weights.transforms()),
        class_names=None if num_classes else tuple(weights.meta["categories"]),
    )


def from_hub(repo: str) -> Path:
    """The weights of "user/model", perhaps with "@revision", in the Hub's cache. Raises OSError if it has none."""
    name, _, revision = repo.partition("@")
    hub = need("huggingface_hub", "hub")
    with fetching(f"hf-hub:{repo}"):
        return Path(hub.hf_hub_download(name, "model.safetensors", revision=revision or None))


def imagenet_names(model: nn.Module) -> tuple[str, ...] | None:
    """The class names of a timm model whose own head is ImageNet's (1000 classes or a larger set), or None."""
    data = need("timm.data")
    subset = data.infer_imagenet_subset(model)
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else None


def _of_transforms(transforms: Any) -> Preparation:
    return Preparation(transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std))


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Whatever goes wrong while weights are fetched becomes one OSError that says what to do."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"the weights of {name} are not on this machine and could not be fetched "
            f"({type(error).__name__}: {reason}). Connect to a network; "
            "or fetch them elsewhere and give the file: load('weights.pth', architecture=…); "
            f"or use a model that needs none: {', '.join(OFFLINE)}"
        ) from error
