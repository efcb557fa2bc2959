"""Every method's name, settings and published defaults; settings are checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tpgm.names import hint

Settings = dict[str, Any]

# settings of every method; a comment each, which the command line shows as help
COMMON: dict[str, tuple[Any, str]] = {
    "epochs": (5, "passes over the training data (after head_epochs)"),
    "batch_size": (64, "training images a step, over all processes"),
    "optimizer": ("adamw", "adamw or sgd (momentum 0.9)"),
    "lr": (3e-4, "highest learning rate"),
    "weight_decay": (0.0, "decoupled for adamw; part of the gradient for sgd"),
    "warmup": (0.1, "share of the steps over which the learning rate rises; then it falls as a cosine"),
    "head_epochs": (0, "epochs in which the new head alone is trained first (linear probing)"),
    "head_lr": (3e-3, "learning rate of those epochs"),
    "augment": (True, "mirror and shift training images"),
    "batchnorm": ("eval", "eval: keep the pre-trained running statistics; train: update them"),
    "patience": (0, "stop after so many epochs without a better ID validation accuracy, keep the best; 0: never"),
    "precision": ("no", "no (float32) or bf16 (autocast)"),
    "channels_last": (False, "keep images and convolutions channels last: faster for convolutional nets"),
    "workers": (2, "processes that read image files"),
    "seed": (0, "of the new head, the order of the data, augmentation and dropout"),
}

_RADII: dict[str, tuple[Any, str]] = {
    "norm": ("mars", "mars (L1 norm of each row) or l2 (Euclidean norm of the tensor)"),
    "radius_lr": (1e-2, "learning rate of Adam on the radii"),
    "val_batch_size": (64, "validation images of a projection update"),
    "tv": (0.0, "strength of the total variation of neighbouring ratios"),
    "penalty": (0.0, "strength of the squared radii (TPGM-C)"),
    "unit": ("norm", "norm: radius_lr in the unit of the norm (published); weight: for each weight of a row or tensor"),
    "start": ("half-smallest", "first radius: half-smallest (published) or largest row norm (no constraint at first)"),
    "val_data": ("val", "what radii are learned on: val, or train (for the ablation that asks whether it matters)"),
    "outer_loss": ("labels", "labels (cross-entropy) or entropy (of the predictions, without labels)"),
}


@dataclass(frozen=True)
class Method:
    """about: one line; own: settings of this method alone, with default and help; defaults: other common defaults."""

    about: str
    own: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "vanilla": Method("fine-tune all weights"),
    "linear-probe": Method("train the new head only", defaults={"lr": 3e-3}),
    "lp-ft": Method("the head first, then all weights (arXiv 2202.10054)", defaults={"head_epochs": 2}),
    "partial": Method(
        "fine-tune a named part and the head",
        {"train": ((), "fnmatch patterns of the parameters to train besides the head, separated by commas")},
    ),
    "bitfit": Method("fine-tune biases, normalization layers and the head (arXiv 2106.10199)"),
    "l2-sp": Method(
        "penalty a/2 ‖θ − θ⁰‖² on the backbone and b/2 ‖θ‖² on the head (arXiv 1802.01483)",
        {"strength": (0.1, "a"), "head_strength": (0.01, "b")},
    ),
    "mars-sp": Method(
        "projection on balls of one fixed radius after every step (arXiv 2002.08253)",
        {"norm": _RADII["norm"], "radius": (1.0, "of every tensor, in the unit of the norm")},
    ),
    "mars-penalty": Method(
        "penalty λ Σ ‖θ_l − θ⁰_l‖, the largest row norm of each tensor (arXiv 2002.08253)",
        {"norm": _RADII["norm"], "strength": (1e-3, "λ")},
    ),
    "wise-ft": Method(
        "one ratio for all weights after fine-tuning (arXiv 2109.01903)",
        {
            "alpha": (0.5, "the ratio: 0 is the pre-trained model, 1 the fine-tuned one"),
            "path": (0, "evaluate so many ratios between 0 and 1 as well"),
        },
    ),
    "tpgm": Method(
        "radii learned on validation data along with the weights (arXiv 2303.10720)",
        {
            **_RADII,
            "every": (1, "training steps between projections; auto: as many as the radii's speed allows"),
            "tolerance": (0.5, "of every=auto: the share by which ratios may move between two updates"),
            "updates": (1, "projection updates before each projection"),
            "begin": (0.0, "share of the training steps that are free, before the first projection update"),
        },
    ),
    "tpgm-end": Method(
        "radii learned on validation data once, after fine-tuning (arXiv 2303.10720)",
        {**_RADII, "updates": (200, "projection updates before the projection")},
    ),
    "tpgm-c": Method(
        "tpgm-end with a penalty on the radii, to trade ID for OOD accuracy (arXiv 2303.10720)",
        {**_RADII, "updates": (200, "projection updates before the projection"), "penalty": (1e-2, "μ of μ Σ γ²")},
    ),
    "ftp": Method(
        "radii learned from the training gradient inside the optimizer: AdamP or SGDP (arXiv 2310.19182)",
        {
            "norm": _RADII["norm"],
            "radius_lr": _RADII["radius_lr"],
            "kappa": (1.0, "in [0, 1]; smaller lets constraints loosen"),
        },
    ),
    "spd": Method(
        "AdamSPD: decay towards the anchor where the gradient asks to come back (arXiv 2411.01713)",
        {"strength": (1.0, "λ")},
    ),
    "digrap": Method(
        "a learned share of the gradient that leads away from the anchor is projected out (arXiv 2502.15895)",
        {"omega_lr": (1e-2, "learning rate of Adam on the share")},
    ),
}

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "batchnorm": ("eval", "train"),
    "precision": ("no", "bf16"),
    "norm": ("mars", "l2"),
    "unit": ("norm", "weight"),
    "start": ("half-smallest", "largest"),
    "val_data": ("val", "train"),
    "outer_loss": ("labels", "entropy"),
}
_WORDS = {"every": "auto"}  # which a number may be replaced with
_AT_LEAST_ONE = ("epochs", "batch_size", "every", "updates", "val_batch_size")
_AT_MOST_ONE = ("warmup", "kappa", "begin")


def options(method: str) -> dict[str, tuple[Any, str]]:
    """Every setting of a method: name to (default, help). Raises ValueError for an unknown method."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; {hint(method, METHODS)}Methods: {', '.join(METHODS)}")
    chosen = METHODS[method]
    common = {name: (chosen.defaults.get(name, default), about) for name, (default, about) in COMMON.items()}
    return {**common, **chosen.own}


def resolve(method: str, given: Mapping[str, Any]) -> Settings:
    """All settings of a method, the given ones checked, the others at their defaults.

    Raises ValueError naming the valid ones for a setting the method does not have or a value that cannot be.
    """
    valid = options(method)
    for name in given:
        if name not in valid:
            raise ValueError(f"{method} has no setting {name!r}; {hint(name, valid)}Settings: {', '.join(valid)}")
    settings = {name: _checked(name, given.get(name, default), default) for name, (default, _) in valid.items()}
    if method == "partial" and not settings["train"]:
        raise ValueError("partial needs train: patterns of the parameters to train, such as train=['layer4.*']")
    if settings.get("tolerance") == 0:
        raise ValueError("tolerance must be above 0: for an update at every step set every to 1")
    if settings.get("begin") == 1:
        raise ValueError("begin must be below 1: radii learned after all training steps are the method 'tpgm-end'")
    if settings.get("begin") and settings["patience"]:
        raise ValueError("begin and patience do not go together: training could stop before the first projection")
    if method in ("spd", "digrap") and settings["optimizer"] != "adamw":
        raise ValueError(f"{method} is an Adam method: optimizer must be 'adamw'")
    return settings


def parse(method: str, name: str, text: str) -> Any:
    """A setting's value from the command line's text. Raises ValueError if it does not read as the right type."""
    default = options(method).get(name, (text, ""))[0]
    if text == _WORDS.get(name):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text.lower() == "true"
    if isinstance(default, tuple):
        return tuple(part for part in text.split(",") if part)
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            raise ValueError(f"{name} must be of type {_kind(name, type(default))}, got {text!r}") from None
    return text


def _kind(name: str, kind: type) -> str:
    return kind.__name__ + (f" or {_WORDS[name]!r}" if name in _WORDS else "")


def _checked(name: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if isinstance(value, str) and value == _WORDS.get(name):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be of type {_kind(name, kind)}, got {value!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, _CHOICES[name]))}, got {value!r}")
    if kind in (int, float):
        low = -math.inf if name == "alpha" else 1 if name in _AT_LEAST_ONE else 0
        high = 1 if name in _AT_MOST_ONE else math.inf
        if not (low <= value <= high and math.isfinite(value)):
            raise ValueError(
                f"{name} must be {f'between 0 and {high}' if high == 1 else f'at least {low}'}, got {value}"
            )
    return value
