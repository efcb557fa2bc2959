"""Images in class folders: the user's own ID data and any number of OOD folders; what the other readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpgm import check
from tpgm.data.splits import DataSplits, ImageFiles, hold_out, label_fraction

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def resize_and_crop(size: int = 224) -> Callable[[Any], Any]:
    """PIL image -> (3, size, size) uint8 tensor: shorter side to size, bicubic, and the centre square of it."""
    from torchvision.transforms import v2

    size = check.number("size", size, 1, whole=True)
    resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC)
    chain: Callable[[Any], Any] = v2.Compose([resize, v2.CenterCrop(size), v2.PILToTensor()])
    return chain


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
) -> DataSplits:
    """Your own images: one folder of ID images, and folders of OOD images of the same classes, each under a name.

    id_folder holds one folder per class (split here, class by class, by `val_share` and `test_share`), or the folders
    "train", "val" and "test" with the classes inside ("val" may be missing and is then held out from "train").
    Classes are the sorted folder names; an OOD folder may lack some of them. transform: PIL image (RGB) -> image, by
    default :func:`resize_and_crop` to (3, 224, 224) uint8; train_transform: the same for the training images, by
    default `transform`. fraction: percentage of the training and validation labels to use. The split depends on the
    relative file names and the seed only.

    Raises FileNotFoundError for a missing folder; ValueError, naming the folder, for a folder without classes, a class
    without images, a class with too few to split, an OOD class that is not an ID class; OSError naming the first file
    that is no image. Only headers are looked at here; an image broken further on raises OSError when it is read.
    """
    root = check.path("id_folder", id_folder)
    for what, share in (("val_share", val_share), ("test_share", test_share)):
        check.number(what, share, 0, 1, above=True, below=True)
    if val_share + test_share >= 1:
        raise ValueError(f"val_share {val_share} and test_share {test_share} must sum to below 1")
    check.number("fraction", fraction, 0, 100, above=True)
    check.number("seed", seed, whole=True)
    for what, change in (("transform", transform), ("train_transform", train_transform)):
        if change is not None:
            check.instance(what, change, Callable, "a function from a PIL image to an image")
    ood = check.mapping("ood", {} if ood is None else ood, "from names of OOD tests to their folders")
    if (root / "train").is_dir():
        class_names = class_folders(root / "train")
        parts = {
            "train": labelled_images(root / "train", class_names),
            "test": same_classes(root / "test", class_names),
        }
        if (root / "val").is_dir():
            parts["val"] = same_classes(root / "val", class_names)
        else:
            parts["train"], parts["val"] = split_off(parts["train"], root, val_share, seed)
    else:
        class_names = class_folders(root)
        everything = labelled_images(root, class_names)
        _require_three(everything[1], class_names, root)
        rest, test = split_off(everything, root, test_share, seed)
        # the share is of all images, and the test images are gone
        train, val = split_off(rest, root, val_share / (1 - test_share), seed)
        parts = {"train": train, "val": val, "test": test}
    shifted = {name: same_classes(Path(folder), class_names) for name, folder in ood.items()}
    for paths, _ in (*parts.values(), *shifted.values()):
        check_headers(paths)
    for name in ("train", "val"):
        parts[name] = thin(parts[name], root, fraction, seed)
    transform = transform or resize_and_crop()
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


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders in `folder`. Raises FileNotFoundError, or ValueError if there are none."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it must hold a folder of images for each class")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no class folders; put each class's images in a folder of the class's name")
    return names


def labelled_images(folder: Path, class_names: Sequence[str], present: Sequence[str] | None = None) -> Labelled:
    """Paths, sorted by class and name, and labels. Raises ValueError for a class folder without images."""
    paths: list[Path] = []
    labels: list[int] = []
    index = {name: label for label, name in enumerate(class_names)}
    for name in present or class_names:
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        if not found:
            raise ValueError(f"the class folder {folder / name} has no images ({', '.join(SUFFIXES)})")
        paths += found
        labels += [index[name]] * len(found)
    return paths, labels


def same_classes(folder: Path, class_names: Sequence[str]) -> Labelled:
    """The images of another folder, whose classes must be among `class_names`."""
    present = class_folders(folder)
    if unknown := sorted(set(present) - set(class_names)):
        listed = ", ".join(unknown[:10]) + (", …" if len(unknown) > 10 else "")
        raise ValueError(f"{folder} has classes that the ID training data do not have: {listed}; rename or remove them")
    return labelled_images(folder, class_names, present)


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


def _take(images: Labelled, index: Sequence[int]) -> Labelled:
    return [images[0][i] for i in index], [images[1][i] for i in index]


def check_headers(paths: Sequence[Path]) -> None:
    """Raise OSError naming the first file whose header is not an image's."""
    from PIL import Image

    for path in paths:
        try:
            Image.open(path).close()
        except (OSError, SyntaxError, ValueError) as error:
            raise OSError(f"{path} is not a readable image; replace or remove the file") from error
