"""A pre-trained model with what fine-tuning and inference need to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm._engine.gradients import eval_mode
from tpgm.anchor import _listing
from tpgm.data.preparation import Preparation
from tpgm.models.architectures import Architecture, head_of, preparation_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Pretrained:
    """What `load` returns.

    name: of the model; model: in eval mode, (B, 3, H, W) float32 images as `preparation` makes them to (B, C) logits.
    anchor: the pre-trained tensors by name, parameters and floating-point buffers, copies; without the head if that is
    new. exclude: patterns of the parameters that have no anchor (the new head), for ``tpgm.TPGM(..., exclude=...)``.
    preparation: from uint8 images to the model's input. head: prefix of the classifier's parameter names, new or not.
    class_names: of the C logits, or None. architecture: what rebuilds the model, or None for one of the user's own.
    """

    name: str
    model: nn.Module
    anchor: dict[str, Tensor]
    exclude: tuple[str, ...]
    preparation: Preparation
    head: str = "head"
    class_names: tuple[str, ...] | None = None
    architecture: Architecture | None = None

    @torch.no_grad()
    def predict(self, image: Image | Tensor | str | Path, top: int = 5) -> list[tuple[str, float]]:
        """The `top` most probable classes of one image, most probable first, with their probabilities in [0, 1].

        image: a PIL image, a file or a (3, H, W) uint8 tensor; files and PIL images are read as those of the training
        are (`tpgm.data.images.rgb`), the longer side is cropped. A class without a name is called by its number.
        Raises OSError naming a file that is not an image, TypeError for another tensor.
        """
        check.number("top", top, 1, whole=True)
        pixels = image if isinstance(image, Tensor) else _pixels(image, self.preparation.size)
        if pixels.ndim != 3:
            raise ValueError(f"predict takes an image of shape (3, H, W), got {tuple(pixels.shape)}")
        device = next(self.model.parameters()).device
        with eval_mode(self.model):
            shares = self.model(self.preparation(pixels[None], device)).softmax(dim=1)[0]
        names = self.class_names or tuple(map(str, range(len(shares))))
        best = shares.topk(min(top, len(shares)))
        return [(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _pixels(image: Image | str | Path, size: int) -> Tensor:
    from tpgm.data.images import read_image, resize_and_crop, rgb

    if not (isinstance(image, str | Path) or hasattr(image, "convert")):
        raise TypeError(f"image must be a PIL image, a path or a (3, H, W) uint8 tensor, got {check.shown(image)}")
    pixels: Tensor = resize_and_crop(size)(read_image(image) if isinstance(image, str | Path) else rgb(image))
    return pixels


def filled(
    name: str,
    architecture: Architecture | nn.Module,
    tensors: Mapping[str, Tensor],
    num_classes: int | None,
    *,
    preparation: Preparation | None = None,
    class_names: tuple[str, ...] | None = None,
    head: str | None = None,
    versions: Mapping[str, Any] | None = None,
) -> Pretrained:
    """Put pre-trained tensors into an architecture, or into the module given in its place.

    num_classes: of a new head; None keeps the head that `tensors` has. versions: see `load_tensors`. Raises ValueError
    listing tensors that are missing, unexpected or of another shape.
    """
    plan = None if isinstance(architecture, nn.Module) else architecture
    model = architecture if isinstance(architecture, nn.Module) else architecture.build(num_classes or 1)
    head = head or head_of(model)
    weight = tensors.get(f"{head}.weight")
    if num_classes is not None:
        classes = num_classes
    elif weight is not None:
        classes = len(weight)
    else:
        raise ValueError(
            f"{name} has no classifier of its own ({head}.weight is not among its tensors): give num_classes for a "
            "new one"
        )
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"class_names has {len(class_names)} names for {classes} classes: give one for each")
    if plan is not None and num_classes is None:
        model = plan.build(classes)
    exclude = () if num_classes is None else (f"{head}.*",)
    if plan is None and (found := len(model.get_parameter(f"{head}.weight"))) != classes:
        raise ValueError(f"the given module's {head} has {found} outputs for {classes} classes")
    given = {n: t for n, t in tensors.items() if num_classes is None or not n.startswith(f"{head}.")}
    load_tensors(name, model, given, skip=head if exclude else None, versions=versions)
    state = model.state_dict()
    return Pretrained(
        name=name,
        model=model.eval(),
        anchor={n: state[n].clone() for n in given if n in state and state[n].is_floating_point()},
        exclude=exclude,
        preparation=preparation or preparation_of(model),
        head=head,
        class_names=class_names,
        architecture=plan,
    )


def load_tensors(
    name: str,
    model: nn.Module,
    tensors: Mapping[str, Any],
    skip: str | None = None,
    versions: Mapping[str, Any] | None = None,
) -> None:
    """Copy tensors into a model, all but those under `skip`. Raises ValueError listing what does not fit.

    versions: what a state dict says of its modules (its ``_metadata``), by which some of them (torchvision's MnasNet)
    read tensors; by default the model's own.
    """
    wanted = {n: t for n, t in model.state_dict().items() if skip is None or not n.startswith(f"{skip}.")}
    problems = {
        "it lacks": [f"{n} {tuple(t.shape)}" for n, t in wanted.items() if n not in tensors],
        "the model does not have": [f"{n} {tuple(t.shape)}" for n, t in tensors.items() if n not in wanted],
        "of another shape": [
            f"{n}: {tuple(tensors[n].shape)}, the model's {tuple(t.shape)}"
            for n, t in wanted.items()
            if n in tensors and tensors[n].shape != t.shape
        ],
        "NaN or infinite": [n for n in wanted if n in tensors and not bool(tensors[n].isfinite().all())],
    }
    if any(problems.values()):
        found = "\n".join(f"{what} ({len(names)}):{_listing(names)}" for what, names in problems.items() if names)
        raise ValueError(f"the tensors of {name} do not fit {type(model).__name__}\n{found}")
    state = model.state_dict()  # for its metadata; no tensor of it is kept
    metadata = {**state._metadata, **(versions or {})}  # type: ignore[attr-defined]
    state.clear()
    state.update(tensors)
    state._metadata = metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=False)
