"""What a zero-shot head is made of: texts by name, and class names as CLIP's text tower should read them."""

from __future__ import annotations

from collections.abc import Sequence

from tpgm.models.architectures import need


def prompts(name: str) -> tuple[str, ...]:
    """Templates by name: "photo" ("a photo of a {}.") or "imagenet", the 80 of CLIP's ImageNet evaluation."""
    if name == "photo":
        return ("a photo of a {}.",)
    if name == "imagenet":
        return tuple(template("{}") for template in need("open_clip", "clip").OPENAI_IMAGENET_TEMPLATES)
    raise ValueError(f"unknown templates {name!r}; choose photo or imagenet")


def spoken(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as CLIP's text tower should read them: ImageNet's for WordNet ids, others as they are."""
    wnids = need("timm.data").ImageNetInfo().label_names()
    if not set(class_names) <= set(wnids):
        return tuple(class_names)
    names = need("open_clip", "clip").IMAGENET_CLASSNAMES
    return tuple(names[wnids.index(wnid)] for wnid in class_names)
