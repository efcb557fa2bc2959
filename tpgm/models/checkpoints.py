"""Checkpoints on disk: what they hold, and names put into the form of the architecture."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from tpgm.anchor import anchor_tensors
from tpgm.models.architectures import CLIP_MEAN, CLIP_STD, Architecture, Tower, need
from tpgm.models.clip import clip_from_tensors, is_clip
from tpgm.models.pretrained import Pretrained, filled
from tpgm.models.storage import KEY, Damaged, check_sum, restored

# under which training scripts keep the tensors; averages over training, such as timm's, where there is nothing else
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "ema_state_dict", "ema")


def load_checkpoint(
    path: Path,
    num_classes: int | None,
    architecture: Architecture | nn.Module | None,
    *,
    name: str | None = None,
    class_names: tuple[str, ...] | None = None,
    templates: Sequence[str] = (),
    size: int | None = None,
) -> Pretrained:
    """A model from a file; see ``tpgm.models.load``. The last three are for a CLIP with its text tower."""
    tensors, about, versions = read_tensors(path)
    if about is not None:
        return restored(path, tensors, about, num_classes, architecture, name=name)
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in anchor_tensors(tensors).items()}
    kind = architecture.name if isinstance(architecture, Architecture) else ""
    if kind.startswith("open_clip/") and is_clip(tensors):
        kind = kind.removeprefix("open_clip/")
        return clip_from_tensors(str(path), kind, tensors, num_classes, class_names, templates, size)
    if is_moco(tensors):
        architecture = architecture or Architecture("torchvision/resnet50")
        return filled(str(path), architecture, from_moco(tensors), num_classes)
    if is_clip_resnet(tensors):
        architecture = architecture or Architecture("clip-resnet50")
        model = architecture.build(num_classes or 1) if isinstance(architecture, Architecture) else architecture
        found = filled(str(path), architecture, from_clip_resnet(tensors, model), num_classes, head="head")
        return replace(found, preparation=replace(found.preparation, mean=CLIP_MEAN, std=CLIP_STD))
    if architecture is None:
        raise ValueError(
            f"{path} does not say which model it is of: give architecture=… (a name such as 'timm/resnet50' or a "
            f"module); its first tensors are {', '.join(list(tensors)[:3])}"
        )
    return filled(str(path), architecture, tensors, num_classes, versions=versions)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, Any]]:
    """The tensors of a file; if this project wrote it, what it says about them; versions of modules, where a state dict
    has them. No code of the file is run.

    Raises FileNotFoundError; ValueError if the file is broken, holds other things than tensors or no tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path, or give a name that tpgm.models.load knows")
    try:
        if path.suffix == ".safetensors":
            with need("safetensors").safe_open(path, framework="pt") as file:
                about = (file.metadata() or {}).get(KEY)
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
            return tensors, check_sum(path, about and json.loads(about)), {}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (ImportError, Damaged):
        raise
    except UnpicklingError as error:
        raise ValueError(
            f"{path} is broken, or holds objects besides tensors, which are not read because that could run code. If "
            "you trust it, save its state dict alone: torch.save(model.state_dict(), …)"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):  # the form in which OpenAI gives its CLIP models away
            raise ValueError(
                f"{path} is a program (TorchScript), not a checkpoint. If you trust it, take its tensors out once: "
                "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), 'weights.pth')"
            ) from error
        told = f": {error.strerror or error}" if isinstance(error, OSError) else ""
        raise ValueError(f"{path} is no checkpoint, or cut short (copy it anew){told}") from error
    while isinstance(content, Mapping) and (inner := [w for w in _WRAPPERS if _holds_tensors(content.get(w))]):
        if len(inner) > 1:
            told = f"{inner[0]} is taken; for another save it alone: torch.save(checkpoint[{inner[1]!r}], …)"
            warnings.warn(f"{path} holds {' and '.join(inner)}: {told}", stacklevel=5)
        content = content[inner[0]]
    entries = content if isinstance(content, Mapping) else {}
    tensors = {n: t for n, t in entries.items() if isinstance(t, Tensor)}
    if not tensors:
        told = f", only {', '.join(map(repr, list(entries)[:5]))}" if entries else ""
        raise ValueError(f"{path} holds no tensors by name{told}: save model.state_dict() alone")
    versions = {n.removeprefix("module."): about for n, about in getattr(content, "_metadata", {}).items()}
    return tensors, None, versions


def _holds_tensors(entry: Any) -> bool:
    return isinstance(entry, Mapping) and any(isinstance(t, Tensor | Mapping) for t in entry.values())


def is_moco(tensors: Mapping[str, Tensor]) -> bool:
    return any(n.startswith("base_encoder.") for n in tensors)


def from_moco(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base encoder of a MoCo-v3 checkpoint; its projector (fc), predictor and momentum encoder are left out."""
    base = {n.removeprefix("base_encoder."): t for n, t in tensors.items() if n.startswith("base_encoder.")}
    return {n: t for n, t in base.items() if not n.startswith("fc.")}


def is_clip_resnet(tensors: Mapping[str, Tensor]) -> bool:
    return any(n in tensors for n in ("visual.attnpool.c_proj.weight", "attnpool.c_proj.weight"))


def from_clip_resnet(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """CLIP's ResNet image tower under timm's names, for a `Tower`; the text tower is left out."""
    if not isinstance(model, Tower):
        raise ValueError(f"CLIP's ResNet goes into a Tower, got {type(model).__name__}")
    visual = {f"visual.{n.removeprefix('visual.')}": t for n, t in tensors.items() if _is_visual(n, tensors)}
    renamed = need("timm.models.byobnet").checkpoint_filter_fn(visual, model.tower)
    return {f"tower.{n}": t for n, t in renamed.items()}


def _is_visual(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return name.startswith("visual.") or "visual.conv1.weight" not in tensors
