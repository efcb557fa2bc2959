"""DomainNet (Peng et al., ICCV 2019): 345 classes in six styles, read from the official layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tpgm.data.folders import Labelled, split_off, thin
from tpgm.data.images import resize_and_crop
from tpgm.data.splits import DataSplits, ImageFiles

# domain -> size of its archive in GB, as the project page states it
DOMAIN_SIZES = {"clipart": 1.3, "infograph": 4.0, "painting": 3.7, "quickdraw": 0.44, "real": 5.6, "sketch": 2.5}


def domainnet(
    root: str | Path,
    id_domain: str = "real",
    ood: Sequence[str] = ("sketch", "painting", "infograph", "clipart"),
    *,
    fraction: float = 100,
    val_share: float = 0.1,
    seed: int = 0,
    transform: Callable[[Any], Any] | None = None,
    train_transform: Callable[[Any], Any] | None = None,
) -> DataSplits:
    """DomainNet with one domain as ID and others as OOD tests; the defaults are the TPGM paper's (arXiv 2303.10720).

    root holds the official lists ("real_train.txt", "real_test.txt", …: a path and a label on each line) and the
    unpacked archives ("real/aircraft_carrier/…"). fraction: percentage of the training list's labels, of each class,
    at least one image (the paper's: 1, 5, 10, 20, 50, 100); choices of one seed are nested. Validation data are
    `val_share` of what is then left, class by class: the label budget pays for them too. (How the paper held out its
    validation data is not known here.) ID test and OOD tests are the official test lists. transform, train_transform
    and dtypes as in :func:`tpgm.data.image_folder`; files are looked at when read, not here.

    Raises FileNotFoundError saying what to download and where to put it; ValueError naming list and line for a
    malformed line, a label outside the classes or a path of another class.
    """
    root = Path(root)
    for domain in (id_domain, *ood):
        if domain not in DOMAIN_SIZES:
            raise ValueError(f"unknown domain {domain!r}; choose among {', '.join(DOMAIN_SIZES)}")
    if id_domain in ood:
        raise ValueError(f"{id_domain!r} cannot be both ID and OOD")
    for domain in (id_domain, *ood):
        _require(root, domain)
    class_names = _class_names(root / f"{id_domain}_train.txt")
    labelled = thin(_read(root, f"{id_domain}_train.txt", class_names), root, fraction, seed)
    train, val = split_off(labelled, root, val_share, seed)
    transform = transform or resize_and_crop()
    tests = {d: ImageFiles(*_read(root, f"{d}_test.txt", class_names), transform) for d in (id_domain, *ood)}
    return DataSplits(
        name="domainnet",
        id_domain=id_domain,
        class_names=tuple(class_names),
        train=ImageFiles(*train, train_transform or transform),
        val=ImageFiles(*val, transform),
        id_test=tests.pop(id_domain),
        ood_tests=tests,
    )


def _require(root: Path, domain: str) -> None:
    for name in (f"{domain}_train.txt", f"{domain}_test.txt", domain):
        if not (root / name).exists():
            raise FileNotFoundError(
                f"{root / name} is missing: from the DomainNet project page (M3SDA, Boston University) download "
                f"{domain}.zip (about {DOMAIN_SIZES[domain]} GB), {domain}_train.txt and {domain}_test.txt, put the "
                f"two lists into {root} and unpack the archive there, so that {root / domain} holds the class folders"
            )


def _lines(path: Path) -> list[tuple[int, str, int]]:
    """Line number, relative image path and label of each line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.rpartition(" ")
        if name.count("/") < 2 or not label.isdecimal():
            raise ValueError(f"{path}, line {number}: expected 'domain/class/file label', got {line!r}")
        rows.append((number, name, int(label)))
    return rows


def _class_names(path: Path) -> list[str]:
    """Class folder of each label, from the ID training list, which must number its classes 0, 1, …"""
    rows = _lines(path)
    count = len({name.split("/")[1] for _, name, _ in rows})
    names: dict[int, str] = {}
    for number, name, label in rows:
        _check_label(path, number, label, count)
        folder = name.split("/")[1]
        if names.setdefault(label, folder) != folder:
            raise ValueError(f"{path}, line {number}: label {label} is {names[label]!r}, but the file is in {folder!r}")
    return [names[label] for label in sorted(names)]


def _read(root: Path, name: str, class_names: Sequence[str]) -> Labelled:
    path, paths, labels = root / name, [], []
    for number, image, label in _lines(path):
        _check_label(path, number, label, len(class_names))
        if (folder := image.split("/")[1]) != class_names[label]:
            raise ValueError(
                f"{path}, line {number}: label {label} is {class_names[label]!r}, but the file is in {folder!r}"
            )
        paths.append(root / image)
        labels.append(label)
    return paths, labels


def _check_label(path: Path, number: int, label: int, count: int) -> None:
    if label >= count:
        raise ValueError(f"{path}, line {number}: label {label} is outside 0..{count - 1}")
