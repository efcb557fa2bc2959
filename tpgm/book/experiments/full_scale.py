"""Full-scale studies as data: DomainNet and ImageNet, for whoever has data and a GPU.

Each setting says whether it is published, in a paper or its authors' code, or this project's choice. Published
accuracies stand beside what was run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from tpgm import methods
from tpgm.book.experiments.experiment import Row, comparable, key, read
from tpgm.book.experiments.study import Entry, Settings, Study
from tpgm.book.notebook import code


def _entry(method: str, published: Settings, chosen: Settings) -> Entry:
    return Entry(method, {**published, **chosen}, published=frozenset(published))


# TPGM's algorithm (arXiv 2303.10720), on either architecture
_RADII: dict[str, Any] = {
    "radius_lr": 1e-2,
    "unit": "norm",
    "start": "half-smallest",
    "val_data": "val",
    "outer_loss": "labels",
}
_CHOSEN: dict[str, Any] = {
    "head_epochs": 0,
    "head_lr": 3e-3,
    "augment": True,
    "patience": 0,
    "precision": "no",
    "workers": 8,
    "penalty": 0.0,
    "tv": 0.0,
}
# how the authors train on DomainNet, by their code: vanilla and TPGM alike but for lr, FTP but for the weight decay too
_DOMAINNET: dict[str, Any] = {
    "optimizer": "sgd",
    "epochs": 50,
    "batch_size": 256,
    "weight_decay": 5e-4,
    "warmup": 0.0,
    "batchnorm": "train",
}
_FTP: dict[str, Any] = {"kappa": 1.0, "norm": "mars", "weight_decay": 0.0}  # arXiv 2310.19182


def _lp_ft(epochs: int) -> dict[str, Any]:
    """As many epochs in all as the others, a fifth of them for the head."""
    return {"head_epochs": epochs // 5, "epochs": epochs - epochs // 5}


# a dry run is the whole path on a tenth of the labels, small images and few updates
_DRY: dict[str, Any] = {
    "dry": ({"size": 64, "fraction": 10.0}, {"epochs": 1, "head_epochs": 1, "updates": 1, "path": 2, "workers": 0})
}


def _rn50(lr: float) -> dict[str, Any]:
    """lr: of vanilla fine-tuning, as published; of methods without a published one too."""
    tpgm = {**_DOMAINNET, "lr": 1e-2, "norm": "mars", "every": 1, "updates": 1, "val_batch_size": 64, "buffers": "keep"}
    return {
        "budget": {**_RADII, **_CHOSEN, **_DOMAINNET, "lr": lr, "val_batch_size": 64, "channels_last": True},
        "entries": {
            "vanilla": _entry("vanilla", {**_DOMAINNET, "lr": lr}, {}),
            "linear-probe": _entry("linear-probe", {}, {"optimizer": "adamw", "lr": 3e-3}),
            "lp-ft": _entry("lp-ft", {}, _lp_ft(50)),
            "wise-ft": _entry("wise-ft", {}, {"alpha": 0.5, "path": 11}),
            "l2-sp": _entry("l2-sp", {}, {"strength": 0.1, "head_strength": 0.01}),
            "tpgm": _entry("tpgm", tpgm, {}),
            "ftp": _entry("ftp", {**_DOMAINNET, "lr": 1e-2, **_FTP}, {}),
            "spd": _entry("spd", {"optimizer": "adamw"}, {"lr": 1e-4, "strength": 1.0, "weight_decay": 0.0}),
        },
        "published": frozenset(_RADII),
        "small": _DRY,
    }


_END: dict[str, Any] = {"updates": 200, "norm": "l2", "val_batch_size": 64, "buffers": "keep"}  # the authors' ViT code
_REAL: dict[str, Any] = {"data": "domainnet:real", "fraction": 100.0, "size": 224}

# `reported`: of the TPGM paper, all of Real's labels; none is at hand for ImageNet
SOURCE = "Tian et al., CVPR 2023, arXiv 2303.10720"
RECIPES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "domainnet-clip-rn50",
            "CLIP's ResNet-50 on DomainNet: ID Real; OOD Sketch, Painting, Infograph, Clipart; new head",
            config={**_REAL, "checkpoint_of": "clip-resnet50"},
            weights="CLIP's ResNet-50 (OpenAI's RN50, the state dict)",
            reported={"vanilla": (79.43, 33.17), "tpgm": (82.41, 39.02)},
            **_rn50(1e-3),
        ),
        Study(
            "domainnet-moco-rn50",
            "MoCo-v3's ResNet-50 on DomainNet: ID Real; OOD Sketch, Painting, Infograph, Clipart; new head",
            config={**_REAL, "checkpoint_of": "torchvision/resnet50"},
            weights="MoCo-v3's ResNet-50 (r-50-1000ep.pth.tar)",
            reported={"vanilla": (82.00, 35.26), "tpgm": (81.30, 37.03)},
            **_rn50(5e-2),
        ),
        Study(
            "imagenet-clip-vitb16",
            "CLIP's ViT-B/16 on ImageNet: OOD ImageNetV2, -A, -R, -Sketch; zero-shot head, fine-tuned along",
            config={
                "data": "imagenet",
                "size": 224,
                "checkpoint_of": "open_clip/ViT-B-16-quickgelu",  # the activation of OpenAI's training
                "head": "zero-shot",
                "templates": "imagenet",
            },
            budget={
                **_RADII,
                **_CHOSEN,
                "optimizer": "adamw",
                "lr": 1e-5,
                "epochs": 10,
                "weight_decay": 0.0,
                "warmup": 0.1,
                "batchnorm": "eval",
                "batch_size": 256,
                "val_batch_size": 64,
                "channels_last": False,
            },
            entries={
                "vanilla": Entry("vanilla"),
                "linear-probe": _entry("linear-probe", {}, {"lr": 1e-4}),
                "lp-ft": _entry("lp-ft", {}, {**_lp_ft(10), "head_lr": 1e-4}),
                "wise-ft": _entry("wise-ft", {}, {"alpha": 0.5, "path": 11}),
                "l2-sp": _entry("l2-sp", {}, {"strength": 0.1, "head_strength": 0.0}),
                "tpgm-end": _entry("tpgm-end", _END, {}),
                "tpgm-c": _entry("tpgm-c", _END, {"penalty": 1e-2}),
                "ftp": _entry("ftp", {"optimizer": "adamw", "lr": 1e-4, **_FTP}, {}),
                "spd": _entry("spd", {"optimizer": "adamw"}, {"strength": 1.0}),
            },
            published=frozenset(_RADII),
            small=_DRY,
            weights="CLIP's ViT-B/16 with its text tower (OpenAI's ViT-B-16, the state dict)",
        ),
    )
}


def find_recipe(recipe: str) -> Study:
    """A full-scale study by name. Raises ValueError naming those there are."""
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def stated(recipe: str, label: str) -> dict[str, tuple[Any, bool]]:
    """Every setting of a method in a recipe (but the seed): (value, whether a paper states it).

    Raises ValueError for a label the recipe does not have.
    """
    study = find_recipe(recipe)
    entry = study.entries[study.known([label])[0]]
    values: dict[str, tuple[Any, bool]] = {}
    for name, (default, _) in methods.options(entry.method).items():
        if name in entry.settings:
            values[name] = entry.settings[name], name in entry.published
        elif name not in ("seed", "tolerance"):  # the latter of the former every="auto"
            values[name] = study.budget.get(name, default), name in study.published
    return values


def placed(recipe: str, root: str | Path, checkpoint: str | Path, *, seed: int = 0, dry_run: bool = False) -> Study:
    """A recipe where its data and weights are, on one seed.

    root: folder of the data's official layout. checkpoint: a file of the recipe's weights, or a name that
    `tpgm.models.load` knows. dry_run: the same path in little. Raises ValueError for an unknown name.
    """
    study = find_recipe(recipe).at(root=str(root), model=str(checkpoint))
    return (study.shortened("dry") if dry_run else study).on(seed)


def run_recipe(
    recipe: str,
    root: str | Path,
    checkpoint: str | Path,
    *,
    out: str | Path,
    seed: int = 0,
    dry_run: bool = False,
    labels: Sequence[str] = (),
    progress: bool = True,
) -> list[Row]:
    """Run what the file `out` (JSON lines) has no row of yet, adding each row at once; returns all rows wanted.

    Beside `out`, in a folder of its name, each run keeps its checkpoint and its model, and an interrupted one goes on
    there; ordinary fine-tuning is done once for all methods that begin with it. Arguments as for `placed`; labels:
    these methods only. Raises what `experiment.run` raises, FileNotFoundError for absent data or checkpoint.
    """
    study, folder = placed(recipe, root, checkpoint, seed=seed, dry_run=dry_run), Path(out).with_suffix(".runs")
    study.run(out, labels=labels, store=folder / "shared", keep=folder, progress=progress)
    by_key = {key(row["config"]): row for row in read(out)}
    return [by_key[key(config)] for label in study.known(labels) for config in study.configs(label)]


# --- tables


def _without_place(config: Mapping[str, Any]) -> str:
    """Equal for the same experiment whatever the machine and the seed."""
    full = comparable(config)
    kept = {k: v for k, v in full.items() if k not in ("root", "model", "seed")}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k != "workers"}
    return json.dumps(kept, sort_keys=True)


def recipe_frame(recipe: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Published figures beside the rows of this recipe; accuracies in per cent, means over the seeds.

    "not run yet" where there is no row; a dry run is called one and is no result. Rows of other configurations do not
    count; how many there were is in the frame's ``attrs["note"]``.
    """
    study, kept, used, lines = find_recipe(recipe), [_without_place(row["config"]) for row in rows], 0, []
    for label in study.entries:
        published = study.reported.get(label, ("none at hand",) * 2)
        ours: list[Any] = [None, None]
        state = "not run yet"
        for dry_run in (True, False):  # a full run covers a dry one
            (config,) = placed(recipe, "", "", dry_run=dry_run).configs(label)
            same = [row for row, k in zip(rows, kept, strict=True) if k == _without_place(config)]
            used += len(same)
            if same:
                ours = [100 * mean(row[part] for row in same) for part in ("id", "ood")]
                seeds = len({row["config"]["seed"] for row in same})
                state = "dry run, no result" if dry_run else f"{seeds} seed{'s' * (seeds > 1)}"
        lines.append([label, *published, *ours, state])
    columns = ["method", "published ID", "published OOD mean", "here: ID", "here: OOD mean", "state"]
    frame = pd.DataFrame(lines, columns=columns, dtype=object)
    frame.attrs["digits"] = 2
    if other := len(rows) - used:
        frame.attrs["note"] = f"{other} row{'s' * (other > 1)} of other configurations left out."
    return frame


def settings_frame(recipe: str) -> pd.DataFrame:
    """Every setting of every method with where it comes from."""
    study = find_recipe(recipe)
    lines = [
        [code(name), code(value), "all", "published" if name in _PAPERS else "this project"]
        for name, value in study.config.items()
    ]
    uses: dict[tuple[str, str, bool], list[str]] = {}
    for label in study.entries:
        for name, (value, from_paper) in stated(recipe, label).items():
            uses.setdefault((name, str(value), from_paper), []).append(label)
    order = list(dict.fromkeys(name for name, _, _ in uses))
    for (name, text, from_paper), of in sorted(uses.items(), key=lambda use: order.index(use[0][0])):
        which = "all" if len(of) == len(study.entries) else ", ".join(of)
        lines.append([code(name), code(text), which, "published" if from_paper else "this project"])
    return pd.DataFrame(lines, columns=["setting", "value", "methods", "from"], dtype=object)


_PAPERS = ("data", "fraction", "size", "checkpoint_of", "head")  # keys of the configuration that are published
