"""The style-shift benchmark: one concept drawn by many designers in five styles.

An icon set belongs to its designer, and a designer is wholly in train, validation or test; the styles are the
domains. Everything is decided by the names, the sets' metadata and the pixels, without a random number.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tpgm.book.icon_benchmark import tiny
from tpgm.book.icon_benchmark.cache import build_once, cache_dir, npm_pack, require, verify_integrity
from tpgm.book.icon_benchmark.designers import SPLITS, designer, designer_splits
from tpgm.book.icon_benchmark.iconify import Icon, IconSet, Subset, class_of_word, concepts, read_package
from tpgm.book.icon_benchmark.render import DOMAINS, DROPPED, MIXED, draw, first_of_each, on_white, styles
from tpgm.data.splits import DataSplits, ImageArray, by_class, hold_out, label_fraction

Designers = Literal["all", "zero-shot", "development"]
_CHUNK = 512  # icons drawn before their pixels are looked at


class Checked(Protocol):
    """What is made of a built file."""

    @property
    def checksum(self) -> str: ...


Built = TypeVar("Built", bound=Checked)


@dataclass(frozen=True)
class IconCollection:
    """Every icon of one subset, whatever its style or split.

    images: (N, 3, 64, 64) uint8, RGB on white; labels, domains, splits, sets: (N,) int64, indices into class_names,
    DOMAINS, SPLITS and set_info; names: N icon names; checksum: SHA-256 of the arrays. A domain one beyond DOMAINS
    means between solid and outline: upstream only, downstream leaves such icons out.
    """

    images: Tensor
    labels: Tensor
    domains: Tensor
    splits: Tensor
    sets: Tensor
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    set_info: tuple[IconSet, ...]
    checksum: str

    def keys(self) -> list[str]:
        """Each icon's full name, "set:icon"."""
        return [f"{self.set_info[s].prefix}:{name}" for s, name in zip(self.sets.tolist(), self.names, strict=True)]


def icons(
    id_domain: str = "solid",
    *,
    train_per_class: int | None = None,
    fraction: float = 100,
    seed: int = 0,
    designers: Designers = "all",
    source: str | Path | None = None,
    progress: bool = True,
) -> DataSplits:
    """The benchmark with one style as ID and the four others as OOD tests.

    Built into the user's cache on first use (about a minute, 104 MB fetched with npm; 8 MB stay).
    id_domain: one of "solid", "outline", "duotone", "color", "emoji". train_per_class: at most this many training
    icons of each class. fraction: percentage of the labels, of training and validation data alike. seed: of these two
    choices only; choices of one seed are nested. designers: with "zero-shot", training data are of designers of whom no
    icon is in :func:`named_icons`, and all tests are of the test split; "development" has the same training data, and
    tests on six of the validation designers, for what is decided before the tests. source: None for the real data; the
    path of the package's tarball, where npm cannot be used; "tiny" for a synthetic sample of the same shape that needs
    no network.

    Classes without a training, a validation and a test icon in the ID style are left out (none for "solid"; only those
    without a training icon where `designers` are chosen). An OOD test holds the icons of all designers who drew none of
    the training or validation data of this ID style. Images:
    uint8 (3, 64, 64); see :class:`tpgm.data.DataSplits`. Raises ValueError for an unknown style or a wrong number;
    RuntimeError if the package cannot be fetched or its checksum is wrong; ImportError if the extra `data` is not
    installed; OSError if the disk is full. A UserWarning says so if the arrays differ from the published checksum.
    """
    if id_domain not in DOMAINS:
        raise ValueError(f"unknown id_domain {id_domain!r}; choose one of {', '.join(map(repr, DOMAINS))}")
    if train_per_class is not None and train_per_class < 1:
        raise ValueError(f"train_per_class must be at least 1, got {train_per_class}")
    data = icon_collection("downstream", source=source, progress=progress)
    keys, labels = data.keys(), data.labels
    in_id = data.domains == DOMAINS.index(id_domain)
    places = _places(data, designers, source)
    part = {name: in_id & (places == SPLITS.index(name)) for name in SPLITS}
    needed = list(part.values()) if designers == "all" else [part["train"]]  # a zero-shot head has all classes
    kept = [c for c in range(len(data.class_names)) if all(bool((labels[m] == c).any()) for m in needed)]
    known = torch.isin(labels, torch.tensor(kept))
    relabel = torch.full((len(data.class_names),), -1)
    relabel[kept] = torch.arange(len(kept))

    def take(mask: Tensor, percent: float = 100, most: int | None = None) -> ImageArray:
        index = torch.nonzero(mask & known).flatten().tolist()
        if percent != 100:
            chosen = label_fraction(labels[index].tolist(), [keys[i] for i in index], percent, seed)
            index = [index[i] for i in chosen]
        if most is not None:
            groups = by_class(labels[index].tolist(), [keys[i] for i in index], seed)
            index = sorted(index[i] for group in groups for i in group[:most])
        return ImageArray(data.images[index], relabel[labels[index]])

    if designers == "all":
        houses = _houses(data)
        seen = {houses[s] for s in data.sets[part["train"] | part["val"]].tolist()}
        tested = torch.tensor([house not in seen for house in houses])[data.sets]
    else:
        tested = places == SPLITS.index("test")
    return DataSplits(
        name="icons",
        id_domain=id_domain,
        class_names=tuple(data.class_names[c] for c in kept),
        train=take(part["train"], fraction, train_per_class),
        val=take(part["val"], fraction),
        id_test=take(part["test"]),
        ood_tests={
            name: take(tested & (data.domains == number)) for number, name in enumerate(DOMAINS) if name != id_domain
        },
    )


def _houses(data: IconCollection) -> list[str]:
    """The designer of every set."""
    return [designer(info.author) for info in data.set_info]


def _places(data: IconCollection, designers: Designers, source: str | Path | None) -> Tensor:
    """(N,) int64: where an icon stands, an index into SPLITS, or -1 for nowhere."""
    if designers not in (known := ("all", "zero-shot", "development")):
        raise ValueError(f"unknown designers {designers!r}; choose one of {', '.join(map(repr, known))}")
    if designers == "all":
        return data.splits
    tiny_ones = {"zero_shot_designers": tiny.ZERO_SHOT_DESIGNERS, "development_designers": tiny.DEVELOPMENT_DESIGNERS}
    lists: Mapping[str, Any] = tiny_ones if source == "tiny" else concepts()

    def of(name: str) -> Tensor:
        return torch.tensor([house in lists[name] for house in _houses(data)])[data.sets]

    test = SPLITS.index("test")
    places = torch.where(of("zero_shot_designers"), -1, data.splits)
    if designers == "development":
        places[places == test] = -1
        places[of("development_designers")] = test
    return places


def icons_upstream(*, source: str | Path | None = None, progress: bool = True) -> DataSplits:
    """Icons of 182 other concepts in all styles, to pre-train on; no OOD tests.

    id_test holds the designers of the test split of :func:`icons`, so that whoever drew its ID test icons drew nothing
    that is trained on here; of the others' icons, 10 % of each class are val, the rest train. Arguments, dtypes and
    errors as there.
    """
    data = icon_collection("upstream", source=source, progress=progress)
    test = data.splits == SPLITS.index("test")
    index = torch.nonzero(~test).flatten()
    keys = data.keys()
    train, val = hold_out(data.labels[index].tolist(), [keys[i] for i in index.tolist()], 0.1, seed=0)
    parts = [ImageArray(data.images[i], data.labels[i]) for i in (index[train], index[val], test)]
    return DataSplits("icons-upstream", "all", data.class_names, parts[0], parts[1], parts[2], {})


def icon_collection(
    subset: Literal["downstream", "upstream"] = "downstream", *, source: str | Path | None = None, progress: bool = True
) -> IconCollection:
    """All icons of a subset with style, split and set: what :func:`icons` chooses from. Arguments as there."""
    if subset not in ("downstream", "upstream"):
        raise ValueError(f"unknown subset {subset!r}; choose 'downstream' or 'upstream'")
    if source == "tiny":
        return _tiny(subset)
    # another word list, rule or renderer publishes another checksum, and so makes another file
    target = cache_dir() / "icons" / f"{subset}-{published()[subset][:16]}.npz"
    build_once(target, lambda folder: _build_file(folder, subset, source, progress))
    return _load(target, subset)


def _build_file(folder: Path, subset: Subset, source: str | Path | None, progress: bool) -> Path:
    tarball = package_file(folder, source)
    # Any: the type that NumPy gives this writer takes every name for one of its own options
    arrays: dict[str, Any] = dict(build(tarball, subset, designer_splits(), progress=progress))
    built = folder / "built.npz"
    np.savez_compressed(built, **arrays)
    return built


def package_file(folder: Path, source: str | Path | None) -> Path:
    """The icon package, whole and of the pinned version: fetched into `folder`, or the file `source`.

    Raises ImportError for another version of the renderer, else as :func:`icons` does.
    """
    pinned, found = published()["resvg-py"], version_of("resvg-py")
    if found != pinned:
        raise ImportError(f"the icons are drawn with resvg-py {pinned}, found {found}: pip install resvg-py=={pinned}")
    package = concepts()["source"]
    if source is None:
        tarball = npm_pack(package["npm_package"], package["version"], folder)
    elif not (tarball := Path(source)).is_file():
        raise FileNotFoundError(
            f"{tarball}: no such file; give the tarball of {package['npm_package']} {package['version']}"
        )
    verify_integrity(tarball, package["integrity"])
    return tarball


def version_of(distribution: str) -> str:
    require(distribution.replace("-", "_"))
    return version(distribution)


@lru_cache(maxsize=1)
def published() -> dict[str, str]:
    """The SHA-256 of the arrays of each subset, and the version of the renderer they were made with."""
    found: dict[str, str] = json.loads(
        files("tpgm.book.icon_benchmark").joinpath("icon_checksums.json").read_text(encoding="utf-8")
    )
    return found


@lru_cache(maxsize=2)
def _load(path: Path, subset: Subset) -> IconCollection:
    return read_built(path, subset, _collection)


def read_built(path: Path, subset: str, make: Callable[[dict[str, np.ndarray]], Built]) -> Built:
    """What `make` makes of a built file's arrays. Raises OSError with the cure for a broken file; warns if the arrays
    have another checksum than the published one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data = make(dict(file))
    except (BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise OSError(f"{path} cannot be read ({error}); delete it and it is built again") from error
    found = data.checksum
    if found != published()[subset]:
        warnings.warn(
            f"the {subset} icons built on this machine have the checksum {found}, published is "
            f"{published()[subset]}: results may differ slightly from those of the book",
            stacklevel=4,
        )
    return data


@lru_cache(maxsize=2)
def _tiny(subset: Subset) -> IconCollection:
    with TemporaryDirectory() as folder:
        return _collection(build(tiny.package(Path(folder)), subset, tiny.DESIGNER_SPLITS, progress=False))


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the arrays in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        # strings by their bytes in UTF-8: NumPy's own are four bytes a character
        array = arrays[name]
        digest.update("\n".join(array.flatten()).encode() if array.dtype.kind == "U" else array.tobytes())
    return digest.hexdigest()


def _collection(arrays: dict[str, np.ndarray]) -> IconCollection:
    index = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in ("labels", "domains", "splits", "sets")}
    sets = []
    for prefix, name, author, url, terms, terms_url, category, palette, count in arrays["set_info"].tolist():
        sets.append(IconSet(prefix, name, author, url, terms, terms_url, category, palette == "True", int(count)))
    return IconCollection(
        images=torch.from_numpy(arrays["images"]),
        names=tuple(arrays["names"].tolist()),
        class_names=tuple(arrays["class_names"].tolist()),
        set_info=tuple(sets),
        checksum=checksum(arrays),
        **index,
    )


def build(tarball: Path, subset: Subset, splits: Mapping[str, str], *, progress: bool) -> dict[str, np.ndarray]:
    """Draw, sort into styles, drop duplicates and split. Returns the arrays of the file in the cache.

    splits: designer -> "train", "val" or "test"; who is not named there is in train.
    """
    found, sets = read_package(tarball, subset)
    rows: list[Icon] = []
    images, domains = [], []
    with require("tqdm").tqdm(total=len(found), desc=f"drawing {subset} icons", disable=not progress) as bar:
        for start in range(0, len(found), _CHUNK):
            chunk = found[start : start + _CHUNK]
            rgba = np.stack([draw(icon.svg) for icon in chunk])
            of = [sets[icon.prefix] for icon in chunk]
            style = styles(rgba, np.array([s.is_emoji for s in of]), np.array([s.palette for s in of]))
            kept = np.flatnonzero((style != DROPPED) & ((style != MIXED) | (subset == "upstream")))
            rows += [chunk[i] for i in kept]
            images.append(on_white(rgba[kept]))
            domains.append(style[kept])
            bar.update(len(chunk))
    pixels, style = np.concatenate(images), np.concatenate(domains)
    order = list(dict.fromkeys(class_of_word(subset).values()))
    present = {icon.concept for icon in rows}
    class_names = [name for name in order if name in present]
    labels = np.array([class_names.index(icon.concept) for icon in rows])
    unique = np.flatnonzero(first_of_each(pixels, labels.tolist()))
    rows, pixels, style, labels = [rows[i] for i in unique], pixels[unique], style[unique], labels[unique]
    count = Counter(icon.prefix for icon in rows)
    used = [replace(sets[prefix], count=count[prefix]) for prefix in sorted(count)]
    position = {info.prefix: number for number, info in enumerate(used)}
    split = [SPLITS.index(splits.get(designer(sets[icon.prefix].author), "train")) for icon in rows]
    return {
        "images": pixels,
        "labels": labels.astype(np.int16),
        "domains": style.astype(np.int8),
        "splits": np.array(split, dtype=np.int8),
        "sets": np.array([position[icon.prefix] for icon in rows], dtype=np.int16),
        "names": np.array([icon.name for icon in rows]),
        "class_names": np.array(class_names),
        "set_info": np.array([[str(value) for value in vars(info).values()] for info in used]),
    }
