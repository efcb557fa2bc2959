"""This project's own files: one safetensors file with weights, class names, preparation and architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm.data.preparation import Preparation
from tpgm.files import write_aside
from tpgm.models.architectures import Architecture, need
from tpgm.models.pretrained import Pretrained, filled

FORMAT = 1
KEY = "tpgm"


@check.keywords
def save(
    path: str | Path,
    start: Pretrained,
    model: nn.Module,
    class_names: Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a fine-tuned model so that ``load(path)`` gives it back with its class names and preparation.

    start: what the model was made from; model: of the same architecture; class_names: one for each output, by default
    those of `start`. dtype: in which matrices and convolutions are stored (float16 halves the file); vectors
    (normalization, biases, running statistics) keep theirs. notes: JSON values kept along. The file is whole or absent.
    Raises ValueError if the number of class names is not that of the classes or ``start.head`` is not in the model,
    OSError if the file cannot be written.
    """
    check.instance("start", start, Pretrained, "the Pretrained that tpgm.models.load returned")
    tensors = {n: t.detach().cpu() for n, t in check.module("model", model).state_dict().items()}
    names = start.class_names if class_names is None else check.sequence("class_names", class_names, "name")
    if dtype is not None:
        check.dtype("dtype", dtype)
    try:
        json.dumps(kept := dict(notes or {}))
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes must be JSON values: {error} in {check.shown(notes)}") from None
    weight = tensors.get(f"{start.head}.weight")
    if weight is None:
        raise ValueError(f"the model has no {start.head}.weight: start.head must name its classifier")
    if names is not None and len(names) != len(weight):
        raise ValueError(f"class_names has {len(names)} names for {len(weight)} classes: give one for each")
    if dtype is not None:
        tensors = {n: t.to(dtype) if t.ndim > 1 and t.is_floating_point() else t for n, t in tensors.items()}
    about = {
        "format": FORMAT,
        "name": start.name,
        "architecture": None if start.architecture is None else asdict(start.architecture),
        "head": start.head,
        "preparation": asdict(start.preparation),
        "class_names": names,
        "notes": kept,
    }
    # tied tensors would share memory, which the format refuses
    separate = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    content = need("safetensors.torch").save(separate, metadata={KEY: json.dumps(about)})
    with write_aside(Path(path)) as aside:
        aside.write_bytes(content)  # unlike safetensors' own writer it raises OSError when the disk is full


def restored(
    path: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    num_classes: int | None,
    architecture: Architecture | nn.Module | None,
    *,
    name: str | None = None,
) -> Pretrained:
    """What `save` wrote, as a pre-trained model. Raises ValueError for a newer format or an unknown architecture."""
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has format {about.get('format')}, this version of tpgm reads {FORMAT}: update tpgm")
    if architecture is None and about["architecture"] is None:
        raise ValueError(f"{path} holds a model of the user's own: give it as architecture=…, with its classes' number")
    values = about["preparation"]
    names = about["class_names"]
    return filled(
        name or about["name"],
        Architecture(**about["architecture"]) if architecture is None else architecture,
        {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()},
        num_classes,
        preparation=Preparation(values["size"], tuple(values["mean"]), tuple(values["std"])),
        class_names=None if names is None or num_classes is not None else tuple(names),
        head=about["head"],
    )
