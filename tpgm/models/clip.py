"""CLIP image towers of open_clip, with a new linear head or the zero-shot one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tpgm.batches import Preparation
from tpgm.models.architectures import CLIP_MEAN, CLIP_STD, Architecture, need, unknown
from tpgm.models.hubs import fetching
from tpgm.models.pretrained import Pretrained, filled


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
    with fetching(f"open_clip/{name}"):
        clip = open_clip.create_model(kind, pretrained=weights, force_image_size=size)
    tensors = {f"tower.{n}": t for n, t in clip.visual.state_dict().items()}
    zero_shot = num_classes is None
    if zero_shot:
        assert class_names is not None
        tensors["head.weight"] = zero_shot_weights(clip.eval(), open_clip.get_tokenizer(kind), class_names, templates)
        tensors["head.bias"] = torch.zeros(len(class_names))
    mean, std = getattr(clip.visual, "image_mean", CLIP_MEAN), getattr(clip.visual, "image_std", CLIP_STD)
    side = clip.visual.image_size
    return filled(
        f"open_clip/{name}",
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
        features = normalize(clip.encode_text(text), dim=-1).mean(dim=0)
        rows.append(clip.logit_scale.exp() * normalize(features, dim=0))
    return torch.stack(rows)
