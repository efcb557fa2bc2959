"""A configuration in, a result row with its provenance out; rows are lines of JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tpgm import methods
from tpgm.check import hint, shown
from tpgm.cli import pairs
from tpgm.data import DataSplits, ImageArray
from tpgm.data.splits import by_class
from tpgm.files import sealed, unsealed, write_aside
from tpgm.provenance import peak_memory
from tpgm.provenance import provenance as provenance_of

if TYPE_CHECKING:
    from tpgm.models.pretrained import Pretrained
    from tpgm.training.result import Result

Config = dict[str, Any]
Row = dict[str, Any]

# key: (default, meaning)
KEYS: dict[str, tuple[Any, str]] = {
    "label": ("", "what tables call this variant; by default the method"),
    "model": ("icons-resnet", "what tpgm.models.load knows; for tweets minilm"),
    "checkpoint_of": ("", "architecture that a model given as a file goes into, such as timm/resnet50"),
    "head": (
        "new",
        "new; own: the model's, kept, for the same classes; zero-shot: made of the class names by a CLIP's text tower",
    ),
    "templates": ("photo", "texts of the zero-shot head: photo (one) or imagenet (the 80 of CLIP's evaluation)"),
    "data": (
        "icons",
        "icons, icons:STYLE (also icons-zero-shot, icons-development: the `designers` of icons), domainnet, "
        "domainnet:DOMAIN, imagenet, tweets, or a folder of class folders",
    ),
    "root": ("", "folder of DomainNet's or ImageNet's official layout"),
    "ood": ({}, "for a folder: name -> folder of an OOD test"),
    "source": ("", "icons, tweets: '' for the real ones, 'tiny' for synthetic ones that need no network"),
    "size": (64, "image height and width in pixels, or tokens of a text at most"),
    "train_per_class": (0, "icons only: at most so many training images of each class; 0: all"),
    "fraction": (100.0, "percentage of the labels"),
    "val_per_class": (0, "images in memory only: at most so many validation images of each class; 0: all"),
    "method": ("tpgm", "one of tpgm.methods.METHODS"),
    "seed": (0, "of head, order, augmentation"),
    "data_seed": (0, "of the choice of training images where not all are used"),
    "settings": ({}, "settings of the method, see tpgm.methods.options"),
}
PACKAGES = ("torch", "timm", "accelerate", "numpy", "numba", "tpgm")
TEXT_PACKAGES = ("transformers", "tokenizers")


def resolve(config: Mapping[str, Any]) -> Config:
    """The whole configuration, JSON values only: what is given, checked, and defaults for the rest.

    Raises ValueError listing the valid ones for an unknown key, method or setting, or an impossible value.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping from keys to values, got {config!r}")
    for key in config:
        if key not in KEYS:
            raise ValueError(f"a configuration has no {key!r}; {hint(key, KEYS)}Keys: {', '.join(KEYS)}")
    full = {key: config.get(key, default) for key, (default, _) in KEYS.items()}
    for key, value in full.items():
        kind = type(KEYS[key][0])
        if kind is float and type(value) is int:
            full[key] = value = float(value)
        if type(value) is not kind and not (kind is dict and isinstance(value, Mapping)):
            raise ValueError(f"{key} must be of type {kind.__name__}, got {value!r} ({KEYS[key][1]})")
    for key in ("size", "train_per_class", "val_per_class", "seed", "data_seed"):
        if full[key] < (1 if key == "size" else 0):
            raise ValueError(f"{key} must be at least {int(key == 'size')}, got {full[key]}")
    for key, choices in (("head", ("new", "own", "zero-shot")), ("templates", ("photo", "imagenet"))):
        if full[key] not in choices:
            raise ValueError(f"{key} must be one of {', '.join(choices)}, got {full[key]!r}")
    if "seed" in full["settings"]:
        raise ValueError("give the seed as the configuration's 'seed', not among the settings")
    settings = methods.resolve(full["method"], {**full["settings"], "seed": full["seed"]})
    del settings["seed"]
    full["settings"] = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
    full["label"] = full["label"] or full["method"]
    return full


def parse(given: Mapping[str, str]) -> Config:
    """A configuration from the command line's texts; "settings.NAME" is a setting of the method.

    Raises ValueError as `resolve` does, and for a text that does not read as the right type.
    """
    config: Config = {"settings": {}}
    method = given.get("method", KEYS["method"][0])
    for name, text in given.items():
        if name.startswith("settings."):
            setting = name.removeprefix("settings.")
            config["settings"][setting] = methods.parse(method, setting, text)
        elif name in KEYS and isinstance(KEYS[name][0], int | float):
            try:
                config[name] = type(KEYS[name][0])(text)
            except ValueError:
                raise ValueError(f"{name} must be of type {type(KEYS[name][0]).__name__}, got {text!r}") from None
        elif name == "ood":
            config[name] = pairs(text.split(","), "ood") if text else {}
        else:
            config[name] = text
    resolve(config)
    return config


def run(
    config: Mapping[str, Any],
    *,
    progress: bool = False,
    out: str | Path | None = None,
    store: str | Path | None = None,
) -> Row:
    """Fine-tune and test as the configuration says; returns the row, JSON values only.

    config: see KEYS. out: a folder for checkpoint, model and row.json, where an interrupted run goes on and a finished
    one of the same configuration is not run again. store: see `tpgm.finetune`. The row holds the whole configuration,
    accuracies with counts, ratios, radii and kinds of the tensors in the order of the model's parameters, seconds of
    training, peak memory, versions, hardware and commit.
    Raises ValueError before any work for a configuration that cannot be; else what `tpgm.finetune` raises.
    """
    from tpgm.names import kinds
    from tpgm.training.loop import finetune

    full = resolve(config)
    kept = None if out is None else Path(out) / "row.json"
    if kept is not None:
        row = _kept(kept)
        if row is not None and key(row["config"]) == key(full):
            if "accuracies" in row:
                return row  # finished; only the caller's note of it was lost
            kept.with_name("result.json").unlink(missing_ok=True)  # ours, and ended before its row was written
        elif row is None and not kept.with_name("result.json").exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            _keep(kept, {"config": full})
    start, data = _start(full, progress)
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in full["settings"].items()}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = finetune(start, data, full["method"], out=out, progress=progress, store=store, seed=full["seed"], **given)
    found = result.row()
    of = kinds(result.model)
    accuracies = {name: a.counts for name, a in result.accuracies.items()}
    row = {
        "config": full,
        "accuracies": accuracies,
        "val": result.accuracies["val"].value,
        "id": result.accuracies["id_test"].value,
        "ood": found["ood_mean"],
        **_macro_f1(result),
        "path": found["path"],
        "history": found["history"],
        "ratios": {name: round(r, 5) for name, r in result.ratios.items()},
        "radii": {name: r and float(f"{r:.5g}") for name, r in found["radii"].items()},
        "kinds": {name: of[name] for name in result.ratios},
        "images": {"train": len(data.train), "val": len(data.val)},
        "seconds": round(result.seconds, 2),
        "peak_memory_mb": peak_memory_mb(),
        **provenance(TEXT_PACKAGES if full["data"] == "tweets" else ()),
    }
    if kept is not None:
        _keep(kept, row)
    return row


def _kept(path: Path) -> Row | None:
    """The row in a run's own folder, of an unfinished run its configuration alone; None if there is none."""
    try:
        row = unsealed(path.read_bytes(), "it")
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{path} holds no row: {error}", stacklevel=3)
        return None
    return row if isinstance(row.get("config"), dict) else None


def _keep(path: Path, row: Row) -> None:
    with write_aside(path) as aside:
        aside.write_text(sealed(json.dumps(row)), encoding="utf-8")


def _start(full: Config, progress: bool) -> tuple[Pretrained, DataSplits]:
    """The pre-trained model and the data of a resolved configuration."""
    from tpgm import models

    if full["data"] == "tweets":
        from tpgm.book import text

        torch.manual_seed(full["seed"])
        return text.load(full)
    data = splits(full, progress=progress)
    torch.manual_seed(full["seed"])
    start = models.load(
        full["model"], size=full["size"], architecture=full["checkpoint_of"] or None, **_head(full, data.class_names)
    )
    if full["head"] == "own" and start.class_names != data.class_names:
        raise ValueError(f"the head of {full['model']} is of other classes than the data's: head must be 'new'")
    if full["head"] == "zero-shot" and start.exclude:
        raise ValueError(
            f"{full['model']} has no text tower, from which a zero-shot head could come: head must be 'new'"
        )
    return start, data


def _head(config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """The arguments of `tpgm.models.load` that say which head is wanted."""
    if config["head"] != "zero-shot":
        return {"num_classes": len(class_names) if config["head"] == "new" else None}
    from tpgm.book.zero_shot import prompts, spoken

    return {"class_names": spoken(class_names), "templates": prompts(config["templates"])}


def splits(config: Mapping[str, Any], *, progress: bool = False) -> DataSplits:
    """The data of a resolved configuration. Raises ValueError for keys that do not go together."""
    from tpgm import data

    name, _, domain = config["data"].partition(":")
    designers = {"icons": "all", "icons-zero-shot": "zero-shot", "icons-development": "development"}.get(name)
    if designers is not None:
        from tpgm.book.icon_benchmark import icons

        found = icons(
            domain or "solid",
            designers=designers,  # type: ignore[arg-type]
            train_per_class=config["train_per_class"] or None,
            fraction=config["fraction"],
            seed=config["data_seed"],
            source=config["source"] or None,
            progress=progress,
        )
    elif config["source"] or config["train_per_class"]:
        raise ValueError("source and train_per_class go with the icons only")
    else:
        common = {"fraction": config["fraction"], "seed": config["data_seed"]}
        transform = data.resize_and_crop(config["size"])
        if name in ("domainnet", "imagenet") and not config["root"]:
            raise ValueError(f"{name} needs root: the folder that holds its official layout")
        if name == "domainnet":
            from tpgm.book.domainnet import domainnet

            found = domainnet(config["root"], domain or "real", transform=transform, **common)
        elif name == "imagenet":
            from tpgm.book.imagenet import imagenet

            found = imagenet(config["root"], transform=transform, **common)
        else:
            found = data.image_folder(config["data"], ood=config["ood"], transform=transform, **common)
    return fewer_val(found, config["val_per_class"]) if config["val_per_class"] else found


def fewer_val(data: DataSplits, per_class: int) -> DataSplits:
    """The same data with at most `per_class` validation images of each class (nested choices)."""
    val = data.val
    if not isinstance(val, ImageArray):
        raise ValueError("val_per_class needs images in memory (the icons)")
    groups = by_class(val.labels.tolist(), [str(i) for i in range(len(val))], seed=0)
    index = sorted(i for group in groups for i in group[:per_class])
    return dataclasses.replace(data, val=ImageArray(val.images[index], val.labels[index]))


def _macro_f1(result: Result) -> Row:
    """ "id_f1" and "ood_f1", the mean over OOD tests, where the data keep the confusion."""
    if not result.accuracies["id_test"].confusion:
        return {}
    ood = [a.macro_f1 for a in result.ood.values()]
    return {"id_f1": result.accuracies["id_test"].macro_f1, "ood_f1": sum(ood) / len(ood)}


def peak_memory_mb() -> float:
    """Of the GPU's memory since the run began, else of this process since its start, in MB (10^6 bytes)."""
    return round((peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu")) or 0) / 1e6, 1)


def provenance(more: Sequence[str] = ()) -> Row:
    """When, with which versions, on what and from which commit.

    The commit is "" outside a checkout, where $TPGM_COMMIT does not say it; "+" stands for uncommitted changes.
    compiled: whether numba's kernels were at work.
    """
    found, gpu = provenance_of((*PACKAGES, *more)), torch.cuda.is_available()
    return {
        **found,
        "threads": torch.get_num_threads(),
        "blas": "".join(re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show())),
        **({"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if gpu else {}),
        "compiled": "numba" in found["versions"] and os.environ.get("TPGM_COMPILED", "1") != "0" and not gpu,
        "commit": os.environ.get("TPGM_COMMIT") or _commit(),
    }


def _commit() -> str:
    package = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "__init__.py"):  # some other repository around an installed package
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except OSError:
        return ""


# --- rows on disk


def append(path: str | Path, row: Row) -> None:
    """Add one row to a file of JSON lines, as one write, so that rows of several processes do not mix.

    If it cannot be written the row is printed, so that it is not lost, and OSError names the file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            # what a crash cut short stays a line of its own
            cut = path.stat().st_size and path.read_bytes()[-1:] != b"\n"
            file.write(b"\n" * bool(cut) + sealed(json.dumps(row, ensure_ascii=False)).encode() + b"\n")
    except OSError as error:
        print(json.dumps(row, ensure_ascii=False), flush=True)
        cure = "the row stands on standard output: add it to a file of rows"
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}; {cure}") from error


def read(*paths: str | Path) -> list[Row]:
    """The rows of files of JSON lines. A line cut short or damaged is left out, with a warning that names it.

    Rows of before there were checksums are taken as they are. Raises FileNotFoundError for a missing file.
    """
    rows = []
    for path in map(Path, paths):
        if not path.is_file():
            cure = f"check the path, or write it first: tpgm experiment … --out {path}"
            raise FileNotFoundError(f"{path}: no such file of result rows; {cure}")
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                old = b'"sha256": ' not in line and b'"format": ' not in line  # one changed bit leaves one of them
                rows.append(json.loads(line) if old else unsealed(line, str(path)))
            except ValueError:  # not JSON, cut inside a character, or another checksum
                warnings.warn(f"{path}, line {number} is no whole row and is left out", stacklevel=2)
    return rows


def check_rows(rows: Iterable[Any], where: str) -> None:
    """Raise ValueError, naming where they are from, for values that are no result rows."""
    for row in rows:
        if not (isinstance(row, dict) and isinstance(row.get("config"), dict)):
            raise ValueError(f"{where}: {shown(row)} is no result row: it has no config; remove the line")
        if lacks := [name for name in ("val", "id", "ood", "seconds") if name not in row]:
            raise ValueError(f"{where}: a result row lacks {', '.join(lacks)}; remove it: {shown(row)}")


def comparable(config: Mapping[str, Any]) -> Config:
    """The resolved configuration without the label and without settings that have no effect.

    A stored configuration that can no longer be run, because a method or setting is gone, is taken as it stands: its
    rows are read, grouped and shown, and no configuration that can be run equals it.
    """
    given = {name: value for name, value in config.items() if name != "label"}
    settings = dict(given.get("settings", {}))
    if settings.get("every") != "auto":
        settings.pop("tolerance", None)  # of the former every="auto"
    try:
        full = resolve({**given, "settings": settings})
    except (ValueError, TypeError):
        return given
    del full["label"]
    if full["settings"].get("every") != "auto":
        full["settings"].pop("tolerance", None)
    return full


def key(config: Mapping[str, Any]) -> str:
    """Equal for configurations that compute the same, see `comparable`."""
    return json.dumps(comparable(config), sort_keys=True)


def missing(configs: Iterable[Mapping[str, Any]], rows: Sequence[Row]) -> list[Config]:
    """Those configurations that no row is of."""
    if bad := [row for row in rows if "config" not in row]:
        raise ValueError(f"{shown(bad[0])} is no result row: it has no config; remove it or run tpgm experiment anew")
    done = {key(row["config"]) for row in rows}
    return [dict(config) for config in configs if key(config) not in done]


def committed(name: str) -> Path:
    """A file of the rows that come with the package (``results/`` of the repository).

    Raises FileNotFoundError naming those there are.
    """
    installed = Path(str(files("tpgm"))) / "_results"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "results"
    path = folder / name
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.jsonl"))) or "none"
        raise FileNotFoundError(f"no committed rows {name!r}; there are: {there}")
    return path
