"""The protocol of the experiments as data: what is run, with which settings tried, and how one is chosen.

The chapter on the protocol says it in words and was committed before the runs it governs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpgm.book.experiments.experiment import Config, Row, key, missing, read, run_each

SEEDS = (0, 1, 2)
SEARCH_SEED = 0

# what every run on the icons shares
BASE: Config = {"data": "icons", "size": 64, "train_per_class": 10}
BUDGET: dict[str, Any] = {
    "epochs": 5,
    "head_epochs": 4,
    "head_lr": 1e-2,
    "lr": 3e-4,
    "batch_size": 32,
    "channels_last": True,
}
_RADII: dict[str, Any] = {"val_batch_size": 32, "norm": "mars"}
_END: dict[str, Any] = {**_RADII, "updates": 100}
_BATCH: dict[str, Any] = {"batchnorm": "train"}
_FAST: dict[str, Any] = {**_BATCH, "head_epochs": 0, "epochs": 7, "lr": 3e-3}
_WEIGHT: dict[str, Any] = {"unit": "weight", "start": "largest"}

# regime: model; "upstream" has seen all styles (of other concepts), "imagenet" has not
REGIMES = {"resnet": {"upstream": "icons-resnet", "imagenet": "efficientnet-lite0"}, "vit": {"upstream": "icons-vit"}}


def _of(method: str, settings: Mapping[str, Any], name: str, values: Sequence[Any]) -> tuple[str, list[dict[str, Any]]]:
    shared = {**BUDGET, **settings}
    if not shared["head_epochs"]:
        del shared["head_lr"]  # of a stage that these methods do not have
    return method, [{**shared, name: value} for value in values]


# label: (method, the three settings tried)
TRIED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "linear-probe": _of("linear-probe", {"head_epochs": 0, "epochs": 7}, "lr", (1e-3, 3e-3, 1e-2)),
    "vanilla": _of("vanilla", {"head_epochs": 0, "epochs": 7}, "lr", (1e-4, 3e-4, 1e-3)),
    # added when vanilla was seen to break down: a failure of optimization is no evidence about forgetting
    "vanilla-bn": _of("vanilla", {"head_epochs": 0, "epochs": 7, "batchnorm": "train"}, "lr", (3e-4, 1e-3, 3e-3)),
    "lp-ft": _of("lp-ft", {}, "lr", (1e-4, 3e-4, 1e-3)),
    "wise-ft": _of("wise-ft", {}, "alpha", (0.25, 0.5, 0.75)),
    "l2-sp": _of("l2-sp", {}, "strength", (0.01, 0.1, 1.0)),
    "tpgm": _of("tpgm", _RADII, "radius_lr", (1e-2, 1e-1, 1.0)),
    "tpgm-end": _of("tpgm-end", _END, "radius_lr", (1e-2, 1e-1, 1.0)),
    # this project's variant: Adam's step on a radius is for each weight, and there is no constraint at first
    "tpgm-w": _of("tpgm", {**_RADII, **_WEIGHT}, "radius_lr", (1e-4, 3e-4, 1e-3)),
    "tpgm-end-w": _of("tpgm-end", {**_END, **_WEIGHT}, "radius_lr", (3e-5, 1e-4, 3e-4)),
    # with batch statistics, added after vanilla-bn's search, at learning rates around the one that it chose
    "lp-ft-bn": _of("lp-ft", _BATCH, "lr", (1e-3, 3e-3, 1e-2)),
    # from the weights of vanilla-bn
    "wise-ft-bn": _of("wise-ft", _FAST, "alpha", (0.25, 0.5, 0.75)),
    "tpgm-end-bn": _of("tpgm-end", {**_END, **_FAST}, "radius_lr", (1e-2, 1e-1, 1.0)),
    # radii's steps in proportion to the higher learning rate
    "tpgm-end-bn-w": _of("tpgm-end", {**_END, **_WEIGHT, **_FAST}, "radius_lr", (3e-4, 1e-3, 3e-3)),
    # at every step of the last fifth of training: the weights leave their anchor first
    "tpgm-late": _of("tpgm", {**_RADII, **_WEIGHT, "begin": 0.8}, "radius_lr", (3e-5, 1e-4, 3e-4)),
    "ftp": _of("ftp", {}, "kappa", (1.0, 0.5, 0.0)),
    "spd": _of("spd", {}, "strength", (0.3, 1.0, 3.0)),
}
# strategies without any choice, which a user could follow blindly
FIXED = {
    "vanilla": {"lr": 3e-4},
    "linear-probe": {"lr": 3e-3},
    "wise-ft": {"alpha": 0.5},
}
LABELS = {
    "resnet": tuple(TRIED),
    "vit": ("linear-probe", "lp-ft", "wise-ft", "tpgm", "tpgm-end", "tpgm-w", "tpgm-end-w", "tpgm-late"),
}


# --- beside the comparison: one run for each seed, nothing is chosen

_BASE_END: dict[str, Any] = {**BUDGET, **_END, "radius_lr": 1e-1}
_BASE_EVERY: dict[str, Any] = {**BUDGET, **_RADII, "radius_lr": 1e-1}
# group -> label -> (method, settings, changes to the data)
ABLATIONS: dict[str, dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "at the end": {
        "base: MARS, 100 updates": ("tpgm-end", _BASE_END, {}),
        "norm L2": ("tpgm-end", {**_BASE_END, "norm": "l2"}, {}),
        "25 updates": ("tpgm-end", {**_BASE_END, "updates": 25}, {}),
        "start without constraint": ("tpgm-end", {**_BASE_END, "start": "largest"}, {}),
        "total variation 0.1": ("tpgm-end", {**_BASE_END, "tv": 0.1}, {}),
        "1 validation icon a class": ("tpgm-end", _BASE_END, {"val_per_class": 1}),
        "radii from training data": ("tpgm-end", {**_BASE_END, "val_data": "train"}, {}),
        "entropy, no labels": ("tpgm-end", {**_BASE_END, "outer_loss": "entropy"}, {}),
    },
    "every step": {
        "base: MARS, each step": ("tpgm", _BASE_EVERY, {}),
        "norm L2": ("tpgm", {**_BASE_EVERY, "norm": "l2"}, {}),
        "each 4th step": ("tpgm", {**_BASE_EVERY, "every": 4}, {}),
        "total variation 0.1": ("tpgm", {**_BASE_EVERY, "tv": 0.1}, {}),
        "start without constraint": ("tpgm", {**_BASE_EVERY, "start": "largest"}, {}),
    },
    "5 labels a class": {
        "lp-ft": ("lp-ft", BUDGET, {"train_per_class": 5}),
        "tpgm-end": ("tpgm-end", _BASE_END, {"train_per_class": 5}),
    },
}
PENALTIES = (1e-4, 1e-3, 1e-2)
PATH_POINTS = 6


def extras(what: str, model: str) -> list[Config]:
    """Configurations beside the comparison, seeds outermost. what: "ablations"; "paths" (accuracy along the line from
    the anchor to lp-ft's weights); "controlled" (TPGM-C with several penalties)."""
    if what == "ablations":
        runs = [(f"{g}: {n}", *of) for g, variants in ABLATIONS.items() for n, of in variants.items()]
    elif what == "paths":
        runs = [("path", "wise-ft", {**BUDGET, "alpha": 0.5, "path": PATH_POINTS}, {})]
    elif what == "controlled":
        runs = [(f"tpgm-c, μ={mu:g}", "tpgm-c", {**_BASE_END, "penalty": mu}, {}) for mu in PENALTIES]
    else:
        raise ValueError(f"unknown extra {what!r}; choose 'ablations', 'paths' or 'controlled'")
    return [
        {**BASE, **changes, "label": label, "model": model, "method": method, "seed": seed, "settings": settings}
        for seed in SEEDS
        for label, method, settings, changes in runs
    ]


def configs(part: str, regime: str, label: str, seed: int) -> list[Config]:
    """The configurations tried for a label: one for each of its settings. part: "resnet" or "vit"."""
    if part not in REGIMES:
        raise ValueError(f"unknown part {part!r}; choose one of {', '.join(REGIMES)}")
    method, tried = TRIED[label]
    model = REGIMES[part][regime]
    return [
        {**BASE, "label": label, "model": model, "method": method, "seed": seed, "settings": settings}
        for settings in tried
    ]


def reduced(config: Config, profile: str) -> Config:
    """The same with fewer epochs and updates, for a chapter's own run; at "smoke" on synthetic images."""
    shorter = {"epochs": 2, "head_epochs": 1, "updates": 25}
    if config["settings"]["head_epochs"] == 0:
        shorter = {"epochs": 3}
    settings = {n: min(v, shorter[n]) if n in shorter else v for n, v in config["settings"].items()}
    if profile != "smoke":
        return {**config, "settings": settings}
    settings = {n: min(v, 2) if n in ("epochs", "updates", "path") else v for n, v in settings.items()}
    return {**config, "source": "tiny", "train_per_class": 4, "val_per_class": 2, "settings": settings}


def choose(candidates: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Config:
    """The configuration with the highest ID validation accuracy; among equals the first. OOD data have no say.

    Raises ValueError if a candidate has no row.
    """
    by_key = {key(row["config"]): row for row in rows}
    absent = [c for c in candidates if key(c) not in by_key]
    if absent:
        raise ValueError(f"{len(absent)} of {len(candidates)} candidates of {absent[0]['label']!r} have not been run")
    return dict(max(candidates, key=lambda c: by_key[key(c)]["val"]))


def due(part: str, regime: str, rows: Sequence[Row], labels: Sequence[str] = ()) -> Iterator[Config]:
    """What is still to run, in order: for each label the search on one seed, then the chosen setting on the others.

    `rows` may grow while this is iterated over.
    """
    for label in labels or LABELS[part]:
        candidates = configs(part, regime, label, SEARCH_SEED)
        yield from missing(candidates, rows)
        chosen = choose(candidates, rows)
        finals = [{**chosen, "seed": seed} for seed in SEEDS if seed != SEARCH_SEED]
        fixed = [
            {**c, "seed": seed}
            for c in candidates
            if label in FIXED and FIXED[label].items() <= c["settings"].items()
            for seed in SEEDS
        ]
        yield from missing([*finals, *(c for c in fixed if key(c) not in {key(f) for f in finals})], rows)


def run_all(
    part: str, regime: str, out: str | Path, *, labels: Sequence[str] = (), store: str | Path | None = None
) -> int:
    """Run what no row of the file `out` is of yet, adding a row for each; returns how many were run.

    part and regime of the comparison, or "ablations", "paths" or "controlled" and the name of a model.
    """
    path = Path(out)
    rows = read(path) if path.is_file() else []
    todo = due(part, regime, rows, labels) if part in REGIMES else missing(extras(part, regime), rows)

    def tell(row: Row) -> str:
        config = row["config"]
        named = {n for _, tried in TRIED.values() for n in tried[0]} | {"penalty"}
        own = {n: v for n, v in config["settings"].items() if n in named and BUDGET.get(n) != v}
        return (
            f"{regime} {config['label']} seed {config['seed']} {own}: val {100 * row['val']:.1f} "
            f"ID {100 * row['id']:.1f} OOD {100 * row['ood']:.1f} in {row['seconds']:.0f} s"
        )

    return run_each(todo, path, rows, tell, store=store)
