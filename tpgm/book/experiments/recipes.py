"""Full-scale experiments as data: DomainNet and ImageNet at the paper's settings, for whoever has data and a GPU.

Each setting says whether a paper states it or this project chose it. Published accuracies stand beside what was run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from tpgm import methods as known
from tpgm.book.experiments.experiment import Config, Row, append, key, missing, read, resolve, run

Settings = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One model on one data set.

    about: in words; weights: what the checkpoint is. config: keys of `tpgm.book.experiments.experiment.KEYS` that all
    methods share. published, chosen: settings of all methods that have them, as papers state them or as this
    project chose them.
    methods: by method its own (published, chosen), which come before the shared ones.
    """

    about: str
    weights: str
    config: Mapping[str, Any]
    published: Mapping[str, Any]
    chosen: Mapping[str, Any]
    methods: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)


# TPGM's algorithm (arXiv 2303.10720), on either architecture
_RADII: Settings = {
    "radius_lr": 1e-2,
    "unit": "norm",
    "start": "half-smallest",
    "val_data": "val",
    "outer_loss": "labels",
}
_CHOSEN: Settings = {
    "epochs": 10,
    "weight_decay": 0.0,
    "warmup": 0.1,
    "head_epochs": 0,
    "head_lr": 3e-3,
    "augment": True,
    "batchnorm": "eval",
    "patience": 0,
    "precision": "no",
    "workers": 8,
    "penalty": 0.0,
    "tv": 0.0,
}
_SGD: Settings = {"optimizer": "sgd", "lr": 1e-2}
_FTP: Settings = {"kappa": 1.0, "norm": "mars"}  # arXiv 2310.19182
_LP_FT: Settings = {"head_epochs": 2, "epochs": 8}  # as many epochs in all as the others
_RN50: dict[str, Any] = {
    "published": _RADII,
    "chosen": {**_CHOSEN, **_SGD, "batch_size": 64, "val_batch_size": 64, "channels_last": True},
    "methods": {
        "vanilla": ({}, {}),
        "linear-probe": ({}, {"optimizer": "adamw", "lr": 3e-3}),
        "lp-ft": ({}, _LP_FT),
        "wise-ft": ({}, {"alpha": 0.5, "path": 11}),
        "l2-sp": ({}, {"strength": 0.1, "head_strength": 0.01}),
        "tpgm": ({**_SGD, "norm": "mars", "every": 1, "updates": 1}, {}),
        "ftp": ({**_SGD, **_FTP}, {}),
        "spd": ({"optimizer": "adamw"}, {"lr": 1e-4, "strength": 1.0}),
    },
}
_REAL: dict[str, Any] = {"data": "domainnet:real", "fraction": 100.0, "size": 224}

RECIPES: dict[str, Recipe] = {
    "domainnet-clip-rn50": Recipe(
        about="CLIP's ResNet-50 on DomainNet: ID Real; OOD Sketch, Painting, Infograph, Clipart; new head",
        weights="CLIP's ResNet-50 (OpenAI's RN50, the state dict)",
        config={**_REAL, "checkpoint_of": "clip-resnet50"},
        **_RN50,
    ),
    "domainnet-moco-rn50": Recipe(
        about="MoCo-v3's ResNet-50 on DomainNet: ID Real; OOD Sketch, Painting, Infograph, Clipart; new head",
        weights="MoCo-v3's ResNet-50 (r-50-1000ep.pth.tar)",
        config={**_REAL, "checkpoint_of": "torchvision/resnet50"},
        **_RN50,
    ),
    "imagenet-clip-vitb16": Recipe(
        about="CLIP's ViT-B/16 on ImageNet: OOD ImageNetV2, -A, -R, -Sketch; zero-shot head, fine-tuned along",
        weights="CLIP's ViT-B/16 with its text tower (OpenAI's ViT-B-16, the state dict)",
        config={
            "data": "imagenet",
            "size": 224,
            "checkpoint_of": "open_clip/ViT-B-16-quickgelu",  # the activation that OpenAI's weights were trained with
            "head": "zero-shot",
            "templates": "imagenet",
        },
        published=_RADII,
        chosen={
            **_CHOSEN,
            "optimizer": "adamw",
            "lr": 1e-5,
            "norm": "mars",
            "batch_size": 256,
            "val_batch_size": 256,
            "channels_last": False,
        },
        methods={
            "vanilla": ({}, {}),
            "linear-probe": ({}, {"lr": 1e-4}),
            "lp-ft": ({}, {**_LP_FT, "head_lr": 1e-4}),
            "wise-ft": ({}, {"alpha": 0.5, "path": 11}),
            "l2-sp": ({}, {"strength": 0.1, "head_strength": 0.0}),
            "tpgm-end": ({"updates": 200}, {}),
            "tpgm-c": ({"updates": 200}, {"penalty": 1e-2}),
            "ftp": ({"optimizer": "adamw", "lr": 1e-4, **_FTP}, {}),
            "spd": ({"optimizer": "adamw"}, {"strength": 1.0}),
        },
    ),
}

# what a dry run changes: the whole path on a tenth of the labels, small images and few updates
DRY: dict[str, Any] = {"size": 64, "fraction": 10.0}
DRY_SETTINGS: Settings = {"epochs": 1, "updates": 1, "path": 2, "workers": 0}

# recipe -> method -> ID and mean OOD accuracy in per cent: the TPGM paper, arXiv 2303.10720, all of Real's labels
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "domainnet-clip-rn50": {"vanilla": (79.43, 33.17), "tpgm": (82.41, 39.02)},
    "domainnet-moco-rn50": {"vanilla": (82.00, 35.26), "tpgm": (81.30, 37.03)},
    "imagenet-clip-vitb16": {},  # none at hand
}
SOURCE = "Tian et al., CVPR 2023, arXiv 2303.10720"


def find(recipe: str) -> Recipe:
    """A recipe by name. Raises ValueError naming those there are."""
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def settings(recipe: str, method: str) -> dict[str, tuple[Any, bool]]:
    """Every setting of a method in a recipe (but the seed): (value, whether a paper states it).

    Raises ValueError for a method the recipe does not have.
    """
    found = find(recipe)
    if method not in found.methods:
        raise ValueError(f"{recipe} has no method {method!r}; choose among {', '.join(found.methods)}")
    published, chosen = found.methods[method]
    layers = ((published, True), (chosen, False), (found.published, True), (found.chosen, False))
    values: dict[str, tuple[Any, bool]] = {}
    for name, (default, _) in known.options(method).items():
        if name != "seed":
            values[name] = next(((layer[name], stated) for layer, stated in layers if name in layer), (default, False))
    return values


def configs(
    recipe: str,
    *,
    root: str | Path,
    checkpoint: str | Path,
    seed: int = 0,
    dry_run: bool = False,
    methods: Sequence[str] = (),
) -> list[Config]:
    """The configurations of a recipe for `experiment.run`, one for each method, all or those named.

    root: folder of the data's official layout. checkpoint: a file of the recipe's weights, or a name that
    `tpgm.models.load` knows. dry_run: the same path in little (see DRY). Raises ValueError for an unknown name.
    """
    found = find(recipe)
    wanted = []
    for method in methods or found.methods:
        values = {name: value for name, (value, _) in settings(recipe, method).items()}
        if dry_run:
            values |= {name: value for name, value in DRY_SETTINGS.items() if name in values}
            if values["head_epochs"]:
                values["head_epochs"] = 1
        shared = {**found.config, **(DRY if dry_run else {}), "root": str(root), "model": str(checkpoint)}
        wanted.append({**shared, "method": method, "label": method, "seed": seed, "settings": values})
    return wanted


def run_recipe(
    recipe: str,
    root: str | Path,
    checkpoint: str | Path,
    *,
    out: str | Path,
    seed: int = 0,
    dry_run: bool = False,
    methods: Sequence[str] = (),
    progress: bool = True,
) -> list[Row]:
    """Run what the file `out` (JSON lines) has no row of yet, adding each row at once; returns all rows wanted.

    Beside `out`, in a folder of its name, each run keeps its checkpoint and its model, and an interrupted one goes on
    there; ordinary fine-tuning is done once for all methods that begin with it. Arguments as for `configs`.
    Raises what `experiment.run` raises, FileNotFoundError for data or checkpoint that are not there.
    """
    path = Path(out)
    folder = path.with_suffix(".runs")
    rows = read(path) if path.is_file() else []
    wanted = configs(recipe, root=root, checkpoint=checkpoint, seed=seed, dry_run=dry_run, methods=methods)
    for config in missing(wanted, rows):
        digest = hashlib.sha256(key(config).encode()).hexdigest()[:12]
        own = folder / f"{recipe}-{config['method']}-{seed}-{digest}"
        row = run(config, progress=progress, out=own, store=folder / "shared")
        append(path, row)
        rows.append(row)
    by_key = {key(row["config"]): row for row in rows}
    return [by_key[key(config)] for config in wanted]


# --- tables


def _without_place(config: Mapping[str, Any]) -> str:
    """Equal for the same experiment whatever the machine and the seed."""
    full = resolve(config)
    kept = {k: v for k, v in full.items() if k not in ("label", "root", "model", "seed")}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k != "workers"}
    return json.dumps(kept, sort_keys=True)


def table(recipe: str, rows: Sequence[Row]) -> str:
    """Published figures beside the rows of this recipe, as Markdown; accuracies in per cent, means over the seeds.

    "not run yet" where there is no row; a dry run is called one and is no result. Rows of other configurations do not
    count; how many there were is said below the table.
    """
    lines = [
        "| method | published ID | published OOD mean | here: ID | here: OOD mean | state |",
        "|---|---:|---:|---:|---:|---|",
    ]
    kept = [_without_place(row["config"]) for row in rows]
    used = 0
    for method in find(recipe).methods:
        published = PUBLISHED[recipe].get(method)
        cells = [f"{a:.2f}" for a in published] if published else ["none at hand"] * 2
        ours, state = ["–", "–"], "not run yet"
        for dry_run in (True, False):  # a full run covers a dry one
            (config,) = configs(recipe, root="", checkpoint="", dry_run=dry_run, methods=[method])
            same = [row for row, k in zip(rows, kept, strict=True) if k == _without_place(config)]
            used += len(same)
            if same:
                ours = [f"{100 * mean(row[part] for row in same):.2f}" for part in ("id", "ood")]
                seeds = len({row["config"]["seed"] for row in same})
                state = "dry run, no result" if dry_run else f"{seeds} seed{'s' * (seeds > 1)}"
        lines.append("| " + " | ".join([method, *cells, *ours, state]) + " |")
    if other := len(rows) - used:
        lines += ["", f"{other} row{'s' * (other > 1)} of other configurations left out."]
    return "\n".join(lines)


def settings_table(recipe: str) -> str:
    """Every setting of every method with where it comes from, as Markdown."""
    found = find(recipe)
    lines = ["| setting | value | methods | from |", "|---|---|---|---|"]
    for name, value in found.config.items():
        lines.append(f"| `{name}` | `{value}` | all | {_config_origin(name)} |")
    uses: dict[tuple[str, str, bool], list[str]] = {}
    for method in found.methods:
        for name, (value, stated) in settings(recipe, method).items():
            uses.setdefault((name, str(value), stated), []).append(method)
    order = list(dict.fromkeys(name for name, _, _ in uses))
    for (name, value, stated), of in sorted(uses.items(), key=lambda use: order.index(use[0][0])):
        which = "all" if len(of) == len(found.methods) else ", ".join(of)
        lines.append(f"| `{name}` | `{value}` | {which} | {'published' if stated else 'this project'} |")
    return "\n".join(lines)


def _config_origin(name: str) -> str:
    return "published" if name in ("data", "fraction", "checkpoint_of", "head") else "this project"
