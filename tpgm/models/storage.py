"""This project's own files: one safetensors file with weights, class names, preparation and architecture."""

from __future__ import annotations

import hashlib
import json
import re
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

FORMAT = 2  # 1 had no checksum and no versions of modules
KEY = "tpgm"
_BLANK = b"0" * 64
_SUM = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')  # in the file's header, JSON within JSON


class Damaged(ValueError):
    """A file of this project that is not as it was written."""


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
    (normalization, biases, running statistics) keep theirs. notes: JSON values kept along. The file is whole or absent,
    and carries a format version and a checksum, by which `load` knows a damaged one.
    Raises ValueError if the number of class names is not that of the classes or ``start.head`` is not in the model,
    OSError if the file cannot be written.
    """
    check.instance("start", start, Pretrained, "the Pretrained that tpgm.models.load returned")
    check.path("path", path)
    state = check.module("model", model).state_dict()
    if other := [name for name, t in state.items() if not isinstance(t, Tensor)]:
        raise ValueError(
            f"the file holds tensors only, the model's state has also {', '.join(other[:3])}: leave it out"
        )
    tensors = {n: t.detach().cpu() for n, t in state.items()}
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
    cure = "load weights from before the training diverged, or leave out dtype, whose range may be too small"
    check.finite({f"the model's {n}": t for n, t in tensors.items() if t.is_floating_point()}, cure)
    about = {
        "format": FORMAT,
        "name": start.name,
        "architecture": None if start.architecture is None else asdict(start.architecture),
        "head": start.head,
        "preparation": asdict(start.preparation),
        "class_names": names,
        "notes": kept,
        "versions": {n: v["version"] for n, v in state._metadata.items() if "version" in v},  # type: ignore[attr-defined]
        "sha256": _BLANK.decode(),  # of the whole file while these are zeros
    }
    # tied tensors would share memory, which the format refuses
    separate = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    content = need("safetensors.torch").save(separate, metadata={KEY: json.dumps(about)})
    at = _place(content)
    assert at is not None
    # unlike safetensors' own writer this raises OSError when the disk is full
    with write_aside(Path(path)) as aside, aside.open("wb") as file:
        file.write(content[: at.start] + hashlib.sha256(content).hexdigest().encode())
        file.write(memoryview(content)[at.stop :])


def _place(header: bytes | bytearray) -> slice | None:
    """Where a file's beginning has its checksum: the last such entry, the others are the user's notes."""
    places = [found.span(1) for found in _SUM.finditer(header, 0, 8 + int.from_bytes(header[:8], "little"))]
    return slice(*places[-1]) if places else None


def check_sum(path: Path, about: dict[str, Any] | None) -> dict[str, Any] | None:
    """`about` again, what a safetensors file says of itself. Raises Damaged, naming the file and the cure, if it has
    changed since `save` wrote it; files of others, and those of format 1, have no checksum."""
    with path.open("rb") as file:
        size = file.read(8)
        header = bytearray(size + file.read(int.from_bytes(size, "little")))
        at = _place(header)
        wrong = at is None and about is not None and about.get("format") == FORMAT
        if at is not None:
            told, header[at] = bytes(header[at]), _BLANK
            digest = hashlib.sha256(header)
            while piece := file.read(2**20):
                digest.update(piece)
            wrong = about is None or digest.hexdigest().encode() != told
    if wrong:
        raise Damaged(f"{path} is damaged: its checksum is wrong; write it anew, or take another copy of it")
    return about


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
    if about.get("format") not in (1, FORMAT):
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
        versions={n: {"version": v} for n, v in about.get("versions", {}).items()},
    )
