"""CLIP image towers of open_clip, with a new linear head or the zero-shot one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tpgm.data.preparation import Preparation
from tpgm.models.architectures import CLIP_MEAN, CLIP_STD, Architecture, need, open_clip_model, unknown
from tpgm.models.hubs import fetching
from tpgm.models.pretrained import Pretrained, filled, load_tensors

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # which OpenAI's state dicts hold besides


def load_open_clip(
    name: str,
    num_classes: int | None,
    class_names: tuple[str, ...] | None,
    templates: Sequence[str],
    size: int | None,
) -> Pretrained:
    """name: "ARCHITECTURE/WEIGHTS"; see ``tpgm.models.load``. The text tower serves once, for the head."""
    open_clip = need("open_clip", "clip")
    if num_classes is None and class_names is None:
        raise ValueError("open_clip needs num_classes (a new linear head) or class_names (the zero-shot head)")
    kind, _, weights = name.partition("/")
    if kind not in open_clip.list_models():
        raise unknown("open_clip model", kind, open_clip.list_models())
    if weights not in (known := open_clip.list_pretrained_tags_by_model(kind)):
        raise ValueError(f"open_clip/{kind} has no weights {weights!r}; write open_clip/{kind}/ and one of {known}")
    if open_clip.get_pretrained_cfg(kind, weights).get("quick_gelu") and f"{kind}-quickgelu" in open_clip.list_models():
        kind += "-quickgelu"  # the activation that these weights were trained with
    with fetching(f"open_clip/{name}"):
        clip = open_clip.create_model(kind, pretrained=weights, force_image_size=size)
    return _from_clip(f"open_clip/{name}", kind, clip, num_classes, class_names, templates, size)


def is_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds both towers under the names of OpenAI's and open_clip's files."""
    text = "text_projection" in tensors or "text.text_projection" in tensors
    return text and any(n.startswith("visual.") for n in tensors)


def clip_from_tensors(
    name: str,
    kind: str,
    tensors: Mapping[str, Tensor],
    num_classes: int | None,
    class_names: tuple[str, ...] | None,
    templates: Sequence[str],
    size: int | None,
) -> Pretrained:
    """Both towers of a checkpoint, put into open_clip's architecture `kind`; position embeddings are interpolated to
    `size`. Raises ValueError listing tensors that do not fit."""
    open_clip = need("open_clip", "clip")
    if num_classes is None and class_names is None:
        raise ValueError(f"{name} needs num_classes (a new linear head) or class_names (the zero-shot head)")
    if kind not in open_clip.list_models():
        raise unknown("open_clip model", kind, open_clip.list_models())
    clip = open_clip_model(kind, size)
    given = {n: t for n, t in tensors.items() if n not in _NOT_WEIGHTS}
    need("open_clip.model", "clip").resize_pos_embed(given, clip)
    load_tensors(name, clip, given)
    return _from_clip(name, kind, clip, num_classes, class_names, templates, size)


def _from_clip(
    name: str,
    kind: str,
    clip: Any,
    num_classes: int | None,
    class_names: tuple[str, ...] | None,
    templates: Sequence[str],
    size: int | None,
) -> Pretrained:
    open_clip = need("open_clip", "clip")
    tensors = {f"tower.{n}": t for n, t in clip.visual.state_dict().items()}
    zero_shot = num_classes is None
    if zero_shot:
        assert class_names is not None
        device = "cuda" if torch.cuda.is_available() else "cpu"  # 80 templates for 1,000 classes are many texts
        clip = clip.eval().to(device)
        tokenizer = open_clip.get_tokenizer(kind)
        tensors["head.weight"] = zero_shot_weights(clip, tokenizer, class_names, templates).cpu()
        tensors["head.bias"] = torch.zeros(len(class_names))
    mean, std = getattr(clip.visual, "image_mean", CLIP_MEAN), getattr(clip.visual, "image_std", CLIP_STD)
    side = clip.visual.image_size
    return filled(
        name,
        Architecture(f"open_clip/{kind}", {"unit": zero_shot, "size": size}),
        tensors,
        num_classes,
        preparation=Preparation(side if isinstance(side, int) else side[0], tuple(mean), tuple(std)),
        class_names=class_names,
        head="head",
    )


@torch.no_grad()
def zero_shot_weights(clip: Any, tokenizer: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, features): for each class the normalised mean of its normalised text features, times the logit scale."""
    if not templates or any("{}" not in template for template in templates):
        raise ValueError("every template needs a {} for the class name")
    rows = []
    for name in class_names:
        text = tokenizer([template.format(name.replace("_", " ")) for template in templates])
        features = normalize(clip.encode_text(text.to(clip.logit_scale.device)), dim=-1).mean(dim=0)
        rows.append(clip.logit_scale.exp() * normalize(features, dim=0))
    return torch.stack(rows)
