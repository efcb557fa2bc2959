"""The studies of icons as data. The chapter on the protocol says them in words and was committed before the runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpgm.book.experiments.study import Entry, Study

# what every run on the icons shares
BASE: dict[str, Any] = {"data": "icons", "size": 64, "train_per_class": 10}
BUDGET: dict[str, Any] = {
    "epochs": 5,
    "head_epochs": 4,
    "head_lr": 1e-2,
    "lr": 3e-4,
    "batch_size": 32,
    "channels_last": True,
}
SMALL: dict[str, Any] = {
    "quick": ({}, {"epochs": 2, "head_epochs": 1, "updates": 25}),
    "smoke": (
        {"source": "tiny", "train_per_class": 4, "val_per_class": 2},
        {"epochs": 2, "head_epochs": 1, "updates": 2, "path": 2},
    ),
}
_RADII: dict[str, Any] = {"val_batch_size": 32, "norm": "mars"}
_END: dict[str, Any] = {**_RADII, "updates": 100}
_NO_HEAD: dict[str, Any] = {"head_epochs": 0, "epochs": 7}  # as much work without a stage for the head
_BATCH: dict[str, Any] = {"batchnorm": "train"}
_FAST: dict[str, Any] = {**_BATCH, **_NO_HEAD, "lr": 3e-3}
_WEIGHT: dict[str, Any] = {"unit": "weight", "start": "largest"}
_ALPHAS = (0.25, 0.5, 0.75)
_STEPS = (1e-2, 1e-1, 1.0)

# `fixed`: a strategy without any choice, which a user could follow blindly
TRIED: dict[str, Entry] = {
    "linear-probe": Entry("linear-probe", _NO_HEAD, "lr", (1e-3, 3e-3, 1e-2), fixed=3e-3),
    "vanilla": Entry("vanilla", _NO_HEAD, "lr", (1e-4, 3e-4, 1e-3), fixed=3e-4),
    # added when vanilla was seen to break down: a failure of optimization is no evidence about forgetting
    "vanilla-bn": Entry("vanilla", {**_NO_HEAD, **_BATCH}, "lr", (3e-4, 1e-3, 3e-3)),
    "lp-ft": Entry("lp-ft", {}, "lr", (1e-4, 3e-4, 1e-3)),
    "wise-ft": Entry("wise-ft", {}, "alpha", _ALPHAS, fixed=0.5),
    "l2-sp": Entry("l2-sp", {}, "strength", (0.01, 0.1, 1.0)),
    "tpgm": Entry("tpgm", _RADII, "radius_lr", _STEPS),
    "tpgm-end": Entry("tpgm-end", _END, "radius_lr", _STEPS),
    # this project's variant: Adam's step on a radius is for each weight, and there is no constraint at first
    "tpgm-w": Entry("tpgm", {**_RADII, **_WEIGHT}, "radius_lr", (1e-4, 3e-4, 1e-3)),
    "tpgm-end-w": Entry("tpgm-end", {**_END, **_WEIGHT}, "radius_lr", (3e-5, 1e-4, 3e-4)),
    # with batch statistics, added after vanilla-bn's search, at learning rates around the one that it chose
    "lp-ft-bn": Entry("lp-ft", _BATCH, "lr", (1e-3, 3e-3, 1e-2)),
    # from the weights of vanilla-bn
    "wise-ft-bn": Entry("wise-ft", _FAST, "alpha", _ALPHAS),
    "tpgm-end-bn": Entry("tpgm-end", {**_END, **_FAST}, "radius_lr", _STEPS),
    # radii's steps in proportion to the higher learning rate
    "tpgm-end-bn-w": Entry("tpgm-end", {**_END, **_WEIGHT, **_FAST}, "radius_lr", (3e-4, 1e-3, 3e-3)),
    # at every step of the last fifth of training: the weights leave their anchor first
    "tpgm-late": Entry("tpgm", {**_RADII, **_WEIGHT, "begin": 0.8}, "radius_lr", (3e-5, 1e-4, 3e-4)),
    "ftp": Entry("ftp", {}, "kappa", (1.0, 0.5, 0.0)),
    "spd": Entry("spd", {}, "strength", (0.3, 1.0, 3.0)),
}
_VIT = ("linear-probe", "lp-ft", "wise-ft", "tpgm", "tpgm-end", "tpgm-w", "tpgm-end-w", "tpgm-late")


def _comparison(name: str, about: str, model: str, entries: dict[str, Entry]) -> Study:
    return Study(name, about, {**BASE, "model": model}, BUDGET, entries, small=SMALL)


# regime "upstream" has seen all styles (of other concepts), "imagenet" has not
COMPARISONS: dict[str, Study] = {
    study.name: study
    for study in (
        _comparison("resnet:upstream", "a ResNet pre-trained on other icons", "icons-resnet", TRIED),
        _comparison("resnet:imagenet", "EfficientNet-Lite0 pre-trained on ImageNet", "efficientnet-lite0", TRIED),
        _comparison(
            "vit:upstream",
            "a vision transformer pre-trained on other icons",
            "icons-vit",
            {label: TRIED[label] for label in _VIT},
        ),
    )
}
REGIMES = {name.split(":")[1]: study for name, study in COMPARISONS.items() if name.startswith("resnet:")}

# --- beside the comparison: nothing is chosen

_BASE_END: dict[str, Any] = {**_END, "radius_lr": 1e-1}
_BASE_EVERY: dict[str, Any] = {**_RADII, "radius_lr": 1e-1}
PENALTIES = (1e-4, 1e-3, 1e-2)
PATH_POINTS = 6
# what: its entries, labelled "group: variant" where there are groups
BESIDE: dict[str, dict[str, Entry]] = {
    "ablations": {
        "at the end: base: MARS, 100 updates": Entry("tpgm-end", _BASE_END),
        "at the end: norm L2": Entry("tpgm-end", {**_BASE_END, "norm": "l2"}),
        "at the end: 25 updates": Entry("tpgm-end", {**_BASE_END, "updates": 25}),
        "at the end: start without constraint": Entry("tpgm-end", {**_BASE_END, "start": "largest"}),
        "at the end: total variation 0.1": Entry("tpgm-end", {**_BASE_END, "tv": 0.1}),
        "at the end: 1 validation icon a class": Entry("tpgm-end", _BASE_END, config={"val_per_class": 1}),
        "at the end: radii from training data": Entry("tpgm-end", {**_BASE_END, "val_data": "train"}),
        "at the end: entropy, no labels": Entry("tpgm-end", {**_BASE_END, "outer_loss": "entropy"}),
        "every step: base: MARS, each step": Entry("tpgm", _BASE_EVERY),
        "every step: norm L2": Entry("tpgm", {**_BASE_EVERY, "norm": "l2"}),
        "every step: each 4th step": Entry("tpgm", {**_BASE_EVERY, "every": 4}),
        "every step: total variation 0.1": Entry("tpgm", {**_BASE_EVERY, "tv": 0.1}),
        "every step: start without constraint": Entry("tpgm", {**_BASE_EVERY, "start": "largest"}),
        "5 labels a class: lp-ft": Entry("lp-ft", config={"train_per_class": 5}),
        "5 labels a class: tpgm-end": Entry("tpgm-end", _BASE_END, config={"train_per_class": 5}),
    },
    # accuracy along the line from the anchor to lp-ft's weights
    "paths": {"path": Entry("wise-ft", {"alpha": 0.5, "path": PATH_POINTS})},
    # TPGM-C with several penalties
    "controlled": {f"tpgm-c, μ={mu:g}": Entry("tpgm-c", {**_BASE_END, "penalty": mu}) for mu in PENALTIES},
}


# --- the zero-shot regime: the class head is made of the classes' names and belongs to the anchor

ZERO_SHOT: dict[str, Any] = {"head": "own", "size": 32, "train_per_class": 8}
_ZERO_SHOT_BUDGET: dict[str, Any] = {"epochs": 8, "head_epochs": 0, "batch_size": 32, "channels_last": True, **_BATCH}
_RATES: dict[str, tuple[Any, ...]] = {"lr": (3e-4, 1e-3, 3e-3, 1e-2)}
_MOVED: dict[str, Any] = {"buffers": "reestimate"}  # running statistics, anew after weights have moved


def _with_rates(method: str, settings: Any = None, tried: str = "", values: tuple[Any, ...] = ()) -> Entry:
    return Entry(method, settings or {}, tried, values, grid=_RATES)


# post-hoc methods go back from vanilla's weights; each in-training method tries two strengths at each learning rate
TRIED_ZERO_SHOT: dict[str, Entry] = {
    "start weights": Entry("wise-ft", {"alpha": 0.0, "lr": 1e-3}),
    "vanilla": _with_rates("vanilla"),
    "lp-ft": _with_rates("lp-ft", {"head_epochs": 2}, "head_lr", (1e-3, 1e-2)),
    "wise-ft": _with_rates("wise-ft", {}, "alpha", (0.2, 0.4, 0.6, 0.8)),
    "one ratio": _with_rates("one-ratio", {"rule": "best"}),
    "one ratio, 1 SE": _with_rates("one-ratio", {"rule": "one-se"}),
    "probe-anchored": _with_rates("probe-anchored", {"head_epochs": 2, "rule": "best"}),
    "lines": _with_rates("lines", {"deep": 1.0}, "shallow", (0.0, 0.5)),
    "tpgm-end": _with_rates("tpgm-end", {**_END, **_MOVED}, "radius_lr", (1e-2, 1e-1, 1.0)),
    "tpgm": _with_rates("tpgm", {**_RADII, **_MOVED}, "radius_lr", (1e-2, 1e-1)),
    "tpgm-late": _with_rates("tpgm", {**_RADII, **_WEIGHT, **_MOVED, "begin": 0.8}, "radius_lr", (1e-4, 1e-3)),
    "l2-sp": _with_rates("l2-sp", {}, "strength", (0.01, 0.1)),
    "mars-sp": _with_rates("mars-sp", {}, "radius", (1.0, 4.0)),
    "ftp": _with_rates("ftp", {}, "kappa", (1.0, 0.0)),
    "spd": _with_rates("spd", {}, "strength", (0.3, 1.0)),
    "digrap": _with_rates("digrap", {}, "omega_lr", (0.05, 0.5)),
    "auto-rgn": _with_rates("auto-rgn"),
}


# chosen on the development designers before any test designer was looked at
SETTLED: dict[str, dict[str, float]] = {
    "start weights": {},
    "vanilla": {"lr": 1e-3},
    "wise-ft": {"alpha": 0.8, "lr": 1e-3},
    "one ratio": {"lr": 1e-3},
    "one ratio, 1 SE": {"lr": 1e-3},
    "probe-anchored": {"lr": 1e-3},
    "lines": {"shallow": 0.5, "lr": 1e-3},
    "tpgm-end": {"radius_lr": 0.1, "lr": 1e-3},
}


def _settled(label: str) -> Entry:
    """The label with its chosen settings, and nothing left to choose."""
    entry = TRIED_ZERO_SHOT[label]
    return replace(entry, settings={**entry.settings, **SETTLED[label]}, tried="", values=(), grid={})


def _zero_shot(name: str, about: str, designers: str, entries: dict[str, Entry], seeds: tuple[int, ...]) -> Study:
    """Every seed draws its own eight training icons of each class."""
    config = {**ZERO_SHOT, "model": "icons-clip-resnet", "data": f"icons-{designers}"}
    return Study(name, about, config, _ZERO_SHOT_BUDGET, entries, seeds, seeds[0], SMALL, redraw=True)


_TEN = tuple(range(10))
_PATHS = {f"path, lr={lr:g}": Entry("wise-ft", {"alpha": 0.5, "path": PATH_POINTS, "lr": lr}) for lr in (1e-3, 3e-3)}
ZERO_SHOT_STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _zero_shot(
            "development:resnet",
            "the zero-shot model on development designers: what the tests are settled by",
            "development",
            TRIED_ZERO_SHOT,
            (100, 101, 102),
        ),
        _zero_shot(
            "zero-shot:resnet",
            "the zero-shot model on test designers, with the settings chosen on development designers",
            "zero-shot",
            {label: _settled(label) for label in SETTLED},
            _TEN,
        ),
        _zero_shot(
            "zero-shot-path:resnet",
            "accuracy along the line from the zero-shot model to vanilla's weights",
            "zero-shot",
            _PATHS,
            _TEN,
        ),
    )
}


# --- the regimes side by side, on a GPU: searched on development designers, run on test designers

_AT_SE: dict[str, Any] = {"rule": "one-se"}
# candidates for the default: without a number that a user could get wrong
DEFAULTS = tuple(f"{method}, 1 SE, lr={lr:g}" for method in ("one ratio", "probe-anchored") for lr in (1e-3, 3e-3))
_GPU: dict[str, Any] = {"epochs": 8, "head_epochs": 0, "batch_size": 32, "channels_last": True, **_BATCH}


def _regime_entries(rates: tuple[float, ...], new_head: bool, labels: tuple[str, ...] = ()) -> dict[str, Entry]:
    """Every method in one regime; each but the fixed ones tries all `rates`, in-training methods two strengths at each.

    With a new head its two epochs come first in every method but vanilla and the linear probe, which train two epochs
    more in their place.
    """
    head: dict[str, Any] = {"head_epochs": 2, "head_lr": 1e-2}
    start = head if new_head else {}
    longer: dict[str, Any] = {"epochs": 10} if new_head else {}

    def tried(method: str, settings: Any = None, name: str = "", values: tuple[Any, ...] = ()) -> Entry:
        return Entry(method, {**start, **(settings or {})}, name, values, grid={"lr": rates})

    def fixed(method: str, lr: float) -> Entry:
        anchored = head if method == "probe-anchored" else start
        return Entry(method, {**anchored, **_AT_SE, "lr": lr})

    alone = {} if new_head else {"start weights": Entry("wise-ft", {"alpha": 0.0, "lr": rates[0]})}
    entries = {
        "vanilla": Entry("vanilla", longer, grid={"lr": rates}),
        "lp-ft": Entry("lp-ft", head, grid={"lr": rates}),
        **alone,
        "linear-probe": Entry("linear-probe", longer, "lr", (1e-3, 3e-3, 1e-2, 3e-2)),
        "tpgm": tried("tpgm", {**_RADII, **_MOVED}, "radius_lr", (1e-2, 1e-1)),
        "tpgm-late": tried("tpgm", {**_RADII, **_WEIGHT, **_MOVED, "begin": 0.8}, "radius_lr", (1e-4, 1e-3)),
        "l2-sp": tried("l2-sp", {}, "strength", (0.01, 0.1)),
        "mars-sp": tried("mars-sp", {}, "radius", (1.0, 4.0)),
        "ftp": tried("ftp", {}, "kappa", (1.0, 0.0)),
        "spd": tried("spd", {}, "strength", (0.3, 1.0)),
        "digrap": tried("digrap", {}, "omega_lr", (0.05, 0.5)),
        "auto-rgn": tried("auto-rgn"),
        # from here on they go back from weights that others have trained
        "wise-ft": tried("wise-ft", {}, "alpha", (0.2, 0.4, 0.6, 0.8)),
        "one ratio": tried("one-ratio", {"rule": "best"}),
        "one ratio, 1 SE": tried("one-ratio", _AT_SE),
        "probe-anchored": tried("probe-anchored", {**head, "rule": "best"}),
        "probe-anchored, 1 SE": tried("probe-anchored", {**head, **_AT_SE}),
        "lines": tried("lines", {"deep": 1.0}, "shallow", (0.0, 0.5)),
        "tpgm-end": tried("tpgm-end", {**_END, **_MOVED}, "radius_lr", (1e-2, 1e-1, 1.0)),
        **{
            name: fixed("one-ratio" if name.startswith("one") else "probe-anchored", float(name.rpartition("=")[2]))
            for name in DEFAULTS
        },
    }
    return {label: entries[label] for label in labels or entries}


def _regime(
    name: str, about: str, config: dict[str, Any], entries: dict[str, Entry], seeds: tuple[int, ...] = _TEN
) -> Study:
    config = {"train_per_class": 8, "data": "icons-development", **config}
    final = {"data": "icons-zero-shot"}
    return Study(f"regime:{name}", about, config, _GPU, entries, seeds, 100, SMALL, redraw=True, final=final)


_SMALL_NETS, _LARGE_RESNET, _LARGE_VIT = (3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3, 3e-3), (1e-5, 3e-5, 1e-4, 3e-4)
_AT_SCALE = (
    "vanilla", "lp-ft", "start weights", "tpgm", "tpgm-late", "l2-sp", "ftp", "wise-ft", "one ratio", "one ratio, 1 SE",
    "probe-anchored", "probe-anchored, 1 SE", "lines", "tpgm-end",
)  # fmt: skip
REGIME_STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _regime(
            "zero-shot",
            "robust start, head of the classes' names",
            {"model": "icons-clip-resnet", "head": "own", "size": 32},
            _regime_entries(_SMALL_NETS, new_head=False),
        ),
        _regime(
            "upstream",
            "robust start, new head",
            {"model": "icons-resnet", "size": 64},
            _regime_entries(_SMALL_NETS, new_head=True),
        ),
        _regime(
            "imagenet",
            "non-robust start, new head",
            {"model": "efficientnet-lite0", "size": 64},
            _regime_entries(_SMALL_NETS, new_head=True),
        ),
        _regime(
            "convnext",
            "robust start, head of the classes' names, a network with LayerNorm",
            {"model": "icons-clip-convnext", "head": "own", "size": 32},
            _regime_entries(_LARGE_RESNET, new_head=False, labels=_AT_SCALE),
        ),
        _regime(
            "resnet50",
            "robust start, head of the classes' names, ResNet-50 at 64 pixels",
            {"model": "icons-clip-resnet50.safetensors", "head": "own", "size": 64},
            _regime_entries(_LARGE_RESNET, new_head=False, labels=_AT_SCALE),
            tuple(range(5)),
        ),
        _regime(
            "vit-small",
            "robust start, head of the classes' names, ViT-S/8 at 64 pixels",
            {"model": "icons-clip-vit-small.safetensors", "head": "own", "size": 64},
            _regime_entries(_LARGE_VIT, new_head=False, labels=_AT_SCALE),
            tuple(range(5)),
        ),
    )
}


def beside(what: str, model: str) -> Study:
    """The study `what` of BESIDE on a model. Raises ValueError for an unknown one."""
    if what not in BESIDE:
        raise ValueError(f"unknown study {what!r}; choose one of {', '.join(BESIDE)}")
    return _comparison(f"{what}:{model}", f"{what} beside the comparison", model, BESIDE[what])
