"""Images in class folders: the user's own ID data and any number of OOD folders; what the other readers share."""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from tpgm import check
from tpgm.data.images import SUFFIXES, broken_images, check_header, readable
from tpgm.data.splits import DataSplits, ImageFiles, hold_out, label_fraction

_PART = re.compile(
    "(?P<train>train(ing)?)|(?P<val>val(id(ation)?)?|dev|eval(uation)?)|(?P<test>test(ing)?)", re.IGNORECASE
)
_KIND = re.compile("([ _-]?(set|data|images|split))?", re.IGNORECASE)  # may follow, as in "training_set"
_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")  # are no one's images

Extra = Literal["refuse", "ignore"]


@check.keywords
def image_folder(
    id_folder: str | Path,
    ood: Mapping[str, str | Path] | None = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    train_transform: Callable[[Any], Any] | None = None,
    val_share: float = 0.15,
    test_share: float = 0.15,
    fraction: float = 100,
    seed: int = 0,
    ood_extra: Extra = "refuse",
    skip_broken: bool = False,
) -> DataSplits:
    """Your own images: one folder of ID images, and folders of OOD images of the same classes, each under a name.

    id_folder holds one folder per class (split here, class by class, by `val_share` and `test_share`), or the folders
    "train", "val" and "test" with the classes inside ("val" may be missing and is then held out from "train"; "Train",
    "valid", "validation", "test_set" and the like are known too). It is read as such a split if there are images in no
    other folder; beside others, folders of these names are classes, or refused if they hold class folders.
    Classes are the sorted folder names; an OOD folder may lack some of them. Images are found at any depth, through
    links too, by their endings. transform: PIL image (RGB) -> image; by default the shorter side becomes the model's
    size, and the centre is cut out, (3, size, size) uint8. train_transform: the same for the training images, by
    default `transform`. fraction: percentage of the training and validation labels to use. The split depends on the
    relative file names and the seed only. ood_extra: "ignore" leaves out images of an OOD folder whose class is not
    among the ID data's, "refuse" is an error. skip_broken: read every image now, and leave out what cannot be read.

    What is left out is counted, with examples, in one warning: hidden files, files that are no image by their ending or
    of a kind that cannot be read here, images outside the class folders, broken links, folders that links lead to a
    second time.
    Raises FileNotFoundError for a missing folder; ValueError, naming the folder, for a folder without classes, a
    class without images, one with too few to split, an image of two classes or in two parts, an OOD class that is not
    an ID class; OSError naming the first file
    that is no image. Only headers are looked at here; an image broken further on raises OSError when it is read.
    """
    root, left = check.path("id_folder", id_folder), LeftOut()
    for what, share in (("val_share", val_share), ("test_share", test_share)):
        check.number(what, share, 0, 1, above=True, below=True)
    if val_share + test_share >= 1:
        raise ValueError(f"val_share {val_share} and test_share {test_share} must sum to below 1")
    check.number("fraction", fraction, 0, 100, above=True)
    check.number("seed", seed, whole=True)
    for what, change in (("transform", transform), ("train_transform", train_transform)):
        if change is not None:
            check.instance(what, change, Callable, "a function from a PIL image to an image")
    check.choice("ood_extra", ood_extra, get_args(Extra))
    check.flag("skip_broken", skip_broken)
    ood = check.mapping("ood", {} if ood is None else ood, "from names of OOD tests to their folders")
    if absent := [f"{name}={folder}" for name, folder in ood.items() if not Path(folder).is_dir()]:
        raise FileNotFoundError(f"ood {absent[0]}: no such folder; it must hold a folder of images for each class")
    if found := _parts(root):
        class_names = class_folders(found["train"], left)
        parts = {
            "train": labelled_images(found["train"], class_names, left),
            "test": same_classes(found["test"], class_names, left),
        }
        if "val" in found:
            parts["val"] = same_classes(found["val"], class_names, left)
        else:
            parts["train"], parts["val"] = split_off(parts["train"], root, val_share, seed)
    else:
        class_names = class_folders(root, left)
        everything = labelled_images(root, class_names, left)
        _require_three(everything[1], class_names, root)
        rest, test = split_off(everything, root, test_share, seed)
        # the share is of all images, and the test images are gone
        train, val = split_off(rest, root, val_share / (1 - test_share), seed)
        parts = {"train": train, "val": val, "test": test}
    folders = {name: check.path(f"the folder of the OOD test {name!r}", folder) for name, folder in ood.items()}
    shifted = {name: same_classes(folder, class_names, left, ood_extra) for name, folder in folders.items()}
    if skip_broken:
        broken = broken_images(path for paths, _ in (*parts.values(), *shifted.values()) for path in paths)
        if broken:
            left["that cannot be read"] += [path.name for path in broken]
        parts, shifted = ({name: _without(found, broken) for name, found in of.items()} for of in (parts, shifted))
        if absent := [n for label, n in enumerate(class_names) if label not in parts["train"][1]]:
            raise ValueError(
                f"{root} has no training image of {absent[0]!r} that can be read: {next(iter(broken.values()))}"
            )
    warn_of(left, root)
    _refuse_repeated(parts)
    for name, images in shifted.items():
        _refuse_repeated({**parts, f"OOD {name}": images})
    for paths, _ in () if skip_broken else (*parts.values(), *shifted.values()):
        for path in paths:
            check_header(path)
    for name in ("train", "val"):
        parts[name] = thin(parts[name], root, fraction, seed)
    return DataSplits(
        name=root.resolve().name,
        id_domain=root.resolve().name,
        class_names=tuple(class_names),
        train=ImageFiles(*parts["train"], train_transform or transform),
        val=ImageFiles(*parts["val"], transform),
        id_test=ImageFiles(*parts["test"], transform),
        ood_tests={name: ImageFiles(*found, transform) for name, found in shifted.items()},
    )


Labelled = tuple[list[Path], list[int]]


def _refuse_repeated(parts: Mapping[str, Labelled]) -> None:
    """Raise ValueError for one file in two parts, or under two labels: by links, or a folder that is given twice."""
    seen: dict[Path, tuple[str, int]] = {}
    for part, (paths, labels) in parts.items():
        for path, label in zip(paths, labels, strict=True):
            before = seen.setdefault(path.resolve(), (part, label))
            if before != (part, label):
                how = f"in {before[0]!r} and in {part!r}" if before[0] != part else f"of two classes in {part!r}"
                raise ValueError(f"{path} leads to an image {how}: give each image one place")


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` by name, without hidden ones. Raises FileNotFoundError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it must hold a folder of images for each class")
    return sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] != "." and f.name not in _SYSTEM)


def _parts(root: Path) -> dict[str, Path]:
    """The folders of a split by part; none if those in `root` are classes. Raises ValueError if they could be both."""
    named: dict[str, list[Path]] = {}
    others = []
    for folder in _folders(root):
        word = _PART.match(folder.name)
        if word and _KIND.fullmatch(folder.name, word.end()):
            named.setdefault(str(word.lastgroup), []).append(folder)
        elif _has_images(folder):
            others.append(folder)
    if not named:
        return {}
    if others:
        for folder in (f for folders in named.values() for f in folders):
            if _has_images(folder) and not _images_in(folder):
                raise ValueError(
                    f"{root} can be read in two ways: {folder.name}/ holds class folders, as a part of a split does, "
                    f"but there are images in {others[0].name}/ too. Keep train, val and test in a folder of their "
                    f"own; if {folder.name} is a class, put its images into {folder.name}/ itself"
                )
        return {}
    for part in ("train", "test"):
        if part not in named:
            raise FileNotFoundError(f"{root} is split, but has no {part}/: add it, or give one folder of all classes")
    for folders in named.values():
        if len(folders) > 1:
            raise ValueError(f"{root} has {' and '.join(f.name for f in folders)}: keep one of them")
    return {part: folders[0] for part, folders in named.items()}


def class_folders(folder: Path, left: LeftOut) -> list[str]:
    """The sorted names of the folders in `folder`. Raises FileNotFoundError, or ValueError if there are none.

    left: counts images beside them, by reason why they are left out.
    """
    names = [f.name for f in _folders(folder)]
    if not names:
        raise ValueError(f"{folder} has no class folders; put each class's images in a folder of the class's name")
    if outside := _images_in(folder):
        left["outside the class folders"] += outside
    return names


def _is_image(name: str) -> bool:
    return name[0] != "." and readable(os.path.splitext(name)[1].lower())


def _images_in(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if _is_image(name)]


def _has_images(folder: Path) -> bool:
    return any(True for _ in _images_below(folder, LeftOut()))


def _images_below(folder: Path, left: LeftOut) -> Iterator[Path]:
    """Images at any depth, through links too, each real folder once; left: counts the other files by reason."""
    seen = {place.resolve() for start in (folder.absolute(), folder.resolve()) for place in (start, *start.parents)}
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name in _SYSTEM:
                    continue
                if entry.name[0] == ".":
                    left["hidden"].append(entry.name)
                elif entry.is_dir():
                    real = Path(entry.path).resolve() if entry.is_symlink() else None
                    if real in seen:
                        left["links to a folder that is read already"].append(entry.name)
                    else:
                        seen.add(real or Path(entry.path).resolve())
                        waiting.append(entry.path)
                elif not entry.is_file():
                    left["broken links"].append(entry.name)
                elif _is_image(entry.name):
                    yield Path(entry.path)
                else:
                    suffix = Path(entry.name).suffix.lower()
                    cure = " that Pillow cannot read here (pip install pillow-heif)" if suffix in SUFFIXES else ""
                    left[f"{suffix or 'without an ending'}{cure}"].append(entry.name)


class LeftOut(defaultdict[str, list[str]]):
    """Names of files and folders that are left out, by reason."""

    def __init__(self) -> None:
        super().__init__(list)

    def __str__(self) -> str:
        """Counts, the largest first, each with two names."""
        order = sorted(self.items(), key=lambda item: -len(item[1]))
        return ", ".join(f"{len(n)} {reason} ({', '.join(n[:2])}{', …' * (len(n) > 2)})" for reason, n in order)


def warn_of(left: LeftOut, root: Path) -> None:
    """One warning with counts and names, if anything was left out."""
    if left:
        count = sum(map(len, left.values()))
        warnings.warn(f"{root}: {count} files or folders are left out: {left}", stacklevel=4)


def labelled_images(
    folder: Path, class_names: Sequence[str], left: LeftOut, present: Sequence[str] | None = None
) -> Labelled:
    """Paths, sorted by class and name, and labels. Raises ValueError for a class folder without images.

    left: counts the files that are left out, by reason.
    """
    paths: list[Path] = []
    labels: list[int] = []
    index = {name: label for label, name in enumerate(class_names)}
    for name in present or class_names:
        own = LeftOut()
        found = sorted(_images_below(folder / name, own))
        if not found:
            instead = f"; left out: {own}" if own else ""
            raise ValueError(f"the class folder {folder / name} has no images ({', '.join(SUFFIXES)}){instead}")
        for reason, names in own.items():
            left[reason] += names
        paths += found
        labels += [index[name]] * len(found)
    return paths, labels


def same_classes(folder: Path, class_names: Sequence[str], left: LeftOut, extra: Extra = "refuse") -> Labelled:
    """The images of another folder; extra: what becomes of classes that are not among `class_names`."""
    present = class_folders(folder, left)
    if unknown := sorted(set(present) - set(class_names)):
        present = [name for name in present if name in class_names]
        if extra == "refuse" or not present:
            listed = ", ".join(unknown[:10]) + (", …" if len(unknown) > 10 else "")
            cure = "rename or remove them, or leave them out of an OOD test by ood_extra='ignore' (--ood-extra ignore)"
            raise ValueError(f"{folder} has classes that the ID training data do not have: {listed}; {cure}")
        left["classes that the ID training data do not have"] += unknown
    return labelled_images(folder, class_names, left, present)


def labelled_folder(folder: Path, class_names: Sequence[str], extra: Extra = "refuse") -> Labelled:
    """The images of a folder of class folders and their labels; one warning counts what is left out. Raises
    FileNotFoundError, and ValueError for a folder without classes or, unless `extra` is "ignore", an unknown class."""
    left = LeftOut()
    found = same_classes(folder, class_names, left, extra)
    warn_of(left, folder)
    return found


def images_in(places: Iterable[Path]) -> list[Path]:
    """These files, and for a folder the images in it at any depth, by name; one warning for a folder counts the others.

    Raises FileNotFoundError for a missing place, ValueError if there are no images.
    """
    found: list[Path] = []
    for place in (places := list(places)):
        if place.is_dir():
            left = LeftOut()
            found += sorted(_images_below(place, left))
            warn_of(left, place)
        elif place.exists():
            found.append(place)
        else:
            raise FileNotFoundError(f"{place}: no such file or folder; check the path")
    if not found:
        where = ", ".join(map(str, places)) or "nothing"
        raise ValueError(f"no images in {where}: name image files ({', '.join(SUFFIXES)}) or folders with some")
    return found


def _require_three(labels: Sequence[int], class_names: Sequence[str], root: Path) -> None:
    for label, name in enumerate(class_names):
        if (count := labels.count(label)) < 3:
            raise ValueError(
                f"{root / name} has {count} images; a class needs at least 3 to be split into train, val and test"
            )


def keys_of(paths: Sequence[Path], root: Path) -> list[str]:
    """Relative names with forward slashes: what a split depends on, so that it is the same on every machine."""
    return [path.relative_to(root).as_posix() for path in paths]


def split_off(images: Labelled, root: Path, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Kept and held-out images, class by class."""
    kept, held = hold_out(images[1], keys_of(images[0], root), share, seed)
    return _take(images, kept), _take(images, held)


def thin(images: Labelled, root: Path, percent: float, seed: int) -> Labelled:
    """`percent` % of the images of each class, at least one."""
    if percent == 100:
        return images
    return _take(images, label_fraction(images[1], keys_of(images[0], root), percent, seed))


def _without(images: Labelled, broken: Container[Path]) -> Labelled:
    return _take(images, [i for i, path in enumerate(images[0]) if path not in broken])


def _take(images: Labelled, index: Sequence[int]) -> Labelled:
    return [images[0][i] for i in index], [images[1][i] for i in index]
