"""Image folders, DomainNet and ImageNet: tiny trees in the official layouts, and errors that name the file."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trees import WNIDS, domainnet_tree, imagenet_tree, write_classes, write_image
from tpgm.data import (
    DataSplits,
    ImageArray,
    ImageFiles,
    broken_images,
    domainnet,
    image_folder,
    imagenet,
    resize_and_crop,
)
from tpgm.data.splits import hold_out, label_fraction, shuffled
from tpgm.training import finetune


def paths_of(data: Any) -> set[Path]:
    return set(data.paths)


# --- choices that hashes make


def test_choices_depend_on_key_and_seed_only() -> None:
    keys = [f"image {k}" for k in range(100)]
    order = shuffled(keys, 0)
    assert sorted(order) == list(range(100))
    assert order != list(range(100))
    assert [keys[k] for k in order] == [keys[::-1][k] for k in shuffled(keys[::-1], 0)]
    assert shuffled(keys, 1) != order
    # a value that another machine must reproduce
    assert order[:5] == [19, 17, 74, 63, 77]


def test_label_fractions_are_nested_and_keep_every_class() -> None:
    labels = [0] * 200 + [1] * 30
    keys = [str(k) for k in range(230)]
    chosen = [set(label_fraction(labels, keys, percent, 3)) for percent in (1, 5, 10, 20, 50, 100)]
    assert [len(c) for c in chosen] == [2 + 1, 10 + 2, 20 + 3, 40 + 6, 100 + 15, 230]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    with pytest.raises(ValueError, match="percentage"):
        label_fraction(labels, keys, 101, 0)


def test_held_out_images_are_of_every_class_that_can_spare_one() -> None:
    labels = [0] * 20 + [1] * 2 + [2]
    kept, held = hold_out(labels, [str(k) for k in range(23)], 0.1, 0)
    assert sorted(kept + held) == list(range(23))
    assert sorted(labels[k] for k in held) == [0, 0, 1]
    with pytest.raises(ValueError, match="between 0 and 1"):
        hold_out(labels, [str(k) for k in range(23)], 1.0, 0)


# --- the shape that all data have


def test_image_array_checks_shapes_and_types() -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    image, label = ImageArray(images, labels)[1]
    assert image.shape == (3, 4, 4)
    assert type(label) is int
    with pytest.raises(TypeError, match="uint8"):
        ImageArray(images.float(), labels)
    with pytest.raises(ValueError, match="labels"):
        ImageArray(images, labels[:1])
    with pytest.raises(ValueError, match="2 paths but 1 labels"):
        ImageFiles([Path("a"), Path("b")], [0], lambda x: x)


def test_splits_refuse_empty_parts_and_labels_out_of_range() -> None:
    good = ImageArray(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    empty = ImageArray(good.images[:0], good.labels[:0])
    with pytest.raises(ValueError, match="'shifted' has no images"):
        DataSplits("x", "x", ("a", "b"), good, good, good, {"shifted": empty})
    with pytest.raises(ValueError, match=r"labels of 'train' are 0 to 1, must be 0 to 0"):
        DataSplits("x", "x", ("a",), good, good, good, {})


def test_default_transform_gives_a_square_of_bytes() -> None:
    image = Image.fromarray(np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3))
    out = resize_and_crop(16)(image)
    assert out.shape == (3, 16, 16)
    assert out.dtype == torch.uint8


# --- the user's own folders


def test_one_folder_is_split_by_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", ["cat", "dog"], 20)
    write_classes(tmp_path / "drawings", ["dog"], 3)
    data = image_folder(tmp_path / "photos", {"drawings": tmp_path / "drawings"})
    assert data.class_names == ("cat", "dog")
    assert data.id_domain == "photos"
    assert [p.labels.bincount().tolist() for p in (data.train, data.val, data.id_test)] == [[14, 14], [3, 3], [3, 3]]
    parts = [paths_of(part) for part in (data.train, data.val, data.id_test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 40
    assert data.ood_tests["drawings"].labels.tolist() == [1, 1, 1]
    image, label = data.train[0]
    assert image.shape == (3, 224, 224)
    assert image.dtype == torch.uint8
    assert label == 0
    again = image_folder(tmp_path / "photos")
    assert again.train.paths == data.train.paths
    assert image_folder(tmp_path / "photos", seed=1).train.paths != data.train.paths


def test_a_moved_folder_is_split_alike(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", ["cat", "dog"], 9)
    first = [p.relative_to(tmp_path / "a") for p in image_folder(tmp_path / "a").train.paths]
    (tmp_path / "a").rename(tmp_path / "b")
    assert [p.relative_to(tmp_path / "b") for p in image_folder(tmp_path / "b").train.paths] == first


def test_the_users_own_split_is_kept(tmp_path: Path) -> None:
    for part, count in {"train": 10, "val": 4, "test": 2}.items():
        write_classes(tmp_path / part, ["cat", "dog"], count)
    data = image_folder(tmp_path, transform=lambda image: image.size)
    assert [len(part) for part in (data.train, data.val, data.id_test)] == [20, 8, 4]
    assert data.val[0] == ((12, 10), 0)
    assert all("train" in path.parts for path in data.train.paths)
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'val' / 'cat'} has no images")):
        image_folder(tmp_path)


def test_validation_is_held_out_of_train_if_there_is_none(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / part, ["cat", "dog"], 10)
    data = image_folder(tmp_path, val_share=0.2, fraction=50, train_transform=lambda image: "augmented")
    assert [len(part) for part in (data.train, data.val, data.id_test)] == [8, 2, 20]
    assert all("train" in path.parts for path in data.val.paths)
    assert data.train[0] == ("augmented", 0)


def test_grey_transparent_and_palette_images_become_rgb(tmp_path: Path) -> None:
    for k, mode in enumerate(["L", "RGBA", "RGB"]):
        write_image(tmp_path / "cat" / f"{k}.png", mode=mode)
    data = image_folder(tmp_path, transform=lambda image: image.mode)
    assert {part[0][0] for part in (data.train, data.val, data.id_test)} == {"RGB"}


def test_folder_errors_name_what_is_wrong(tmp_path: Path) -> None:
    photos, drawings = tmp_path / "photos", tmp_path / "drawings"
    with pytest.raises(FileNotFoundError, match=re.escape(str(photos))):
        image_folder(photos)
    photos.mkdir()
    with pytest.raises(ValueError, match="no class folders"):
        image_folder(photos)
    write_classes(photos, ["cat", "dog"], 5)
    (photos / "cow").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{photos / 'cow'} has no images")):
        image_folder(photos)
    write_classes(photos, ["cow"], 2)
    with pytest.raises(ValueError, match=re.escape(f"{photos / 'cow'} has 2 images")):
        image_folder(photos)
    write_classes(photos, ["cow"], 5)
    write_classes(drawings, ["cat", "horse", "zebra"], 1)
    with pytest.raises(ValueError, match=r"drawings has classes .* horse, zebra"):
        image_folder(photos, {"drawings": drawings})
    (photos / "dog" / "02.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=re.escape(f"cannot read the image {photos / 'dog' / '02.png'}: it is no image")):
        image_folder(photos)


def test_an_image_cut_off_within_is_named_when_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for k in range(3):
        (tmp_path / "cat").mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cat" / f"{k}.png")
    data = image_folder(tmp_path)
    path = data.train.paths[0]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(OSError, match=re.escape(f"cannot read the image {path}")):
        data.train[0]


# --- which folders are classes, which files are images


def flat(root: Path, *folders: str, count: int = 3) -> None:
    for folder in folders:
        write_classes(root, [folder], count)


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("bus", "test", "train"), ("bus", "test", "train", "val")])
def test_classes_may_be_called_as_parts_are(tmp_path: Path, names: tuple[str, ...]) -> None:
    flat(tmp_path, *names)
    assert image_folder(tmp_path).class_names == names


def test_a_class_called_train_may_have_folders_within(tmp_path: Path) -> None:
    flat(tmp_path, "bus", "train", "train/steam")
    data = image_folder(tmp_path)
    assert data.class_names == ("bus", "train")
    assert sum(p.labels.sum().item() for p in (data.train, data.val, data.id_test)) == 6


@pytest.mark.parametrize("other", ["bus", "bus/red"])
@pytest.mark.parametrize("part", ["train", "Test", "valid"])
def test_class_folders_in_a_part_beside_other_images_are_refused(tmp_path: Path, part: str, other: str) -> None:
    flat(tmp_path, f"{part}/cat", f"{part}/dog", other)
    with pytest.raises(ValueError, match=rf"two ways: {part}/ holds class folders.* images in bus/ too. Keep train"):
        image_folder(tmp_path)


def test_a_folder_without_images_beside_a_split_is_no_class(tmp_path: Path) -> None:
    flat(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("")
    assert image_folder(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "valid", "TEST"), ("training", "validation", "testing"), ("train_set", "val-images", "test_data")],
)
def test_parts_are_known_by_other_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    for part, count in {train: 4, val: 3, test: 2}.items():
        flat(tmp_path, f"{part}/cat", f"{part}/dog", count=count)
    data = image_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.id_test)] == [8, 6, 4]


def test_a_split_that_lacks_a_part_or_has_one_twice_is_refused(tmp_path: Path) -> None:
    flat(tmp_path, "train/cat")
    with pytest.raises(FileNotFoundError, match="has no test/"):
        image_folder(tmp_path)
    flat(tmp_path, "test/cat", "val/cat", "valid/cat")
    with pytest.raises(ValueError, match="has val and valid: keep one"):
        image_folder(tmp_path)
    flat(tmp_path / "x", "train", "test")
    with pytest.raises(ValueError, match="train has no class folders"):
        image_folder(tmp_path / "x")


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    flat(tmp_path / "elsewhere", "more", "dogs")
    flat(tmp_path / "photos", "cat")
    photos = tmp_path / "photos"
    (photos / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (photos / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (photos / "cat" / "one.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    write_image(tmp_path / "elsewhere" / "one.png")
    data = image_folder(photos)
    assert [sum(len(p.paths) for p in (data.train, data.val, data.id_test))] == [10]
    assert data.class_names == ("cat", "dog")
    (photos / "cat" / "again").symlink_to(photos / "cat")
    (photos / "dog" / "all").symlink_to(photos)
    (photos / "cat" / "most").symlink_to(tmp_path / "elsewhere" / "more")
    (photos / "cat" / "gone.png").symlink_to(photos / "nothing.png")
    with pytest.warns(UserWarning, match=r"4 files or folders are left out: 3 links to a folder .*, 1 broken links"):
        again = image_folder(photos)
    assert again.train.paths == data.train.paths


def test_endings_that_are_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    (tmp_path / "cat").mkdir()
    for name, kind in {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.JPG": "JPEG", "d.avif": "AVIF", "e.WebP": "WEBP"}.items():
        image.save(tmp_path / "cat" / name, format=kind)
    data = image_folder(tmp_path)
    assert sum(map(len, (data.train, data.val, data.id_test))) == 5


def test_everything_left_out_is_counted_in_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpgm.data.folders.readable", lambda suffix: suffix == ".png")  # a Pillow that reads no more
    flat(tmp_path / "photos", "cat", "dog")
    flat(tmp_path / "drawings", "cat")
    cat = tmp_path / "photos" / "cat"
    for name in ("1.heic", "2.HEIC", "notes.txt", "LICENCE", ".hidden.png", "Thumbs.db", ".DS_Store"):
        (cat / name).write_bytes(b"")
    write_image(cat / ".thumbnails" / "00.png")
    write_image(tmp_path / "photos" / "no-class.png")
    write_image(tmp_path / "drawings" / "no-class.png")
    (tmp_path / "drawings" / "cat" / "more.txt").write_text("")
    with pytest.warns(UserWarning, match="left out") as caught:
        image_folder(tmp_path / "photos", {"drawn": tmp_path / "drawings"})
    (message,) = {str(w.message) for w in caught}
    assert message == (
        f"{tmp_path / 'photos'}: 9 files or folders are left out: 2 outside the class folders (no-class.png, "
        "no-class.png), 2 hidden (.hidden.png, .thumbnails), 2 .heic that Pillow cannot read here (pip install "
        "pillow-heif) (1.heic, 2.HEIC), 2 .txt (notes.txt, more.txt), 1 without an ending (LICENCE)"
    )
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_class_of_unreadable_files_says_what_they_are(tmp_path: Path) -> None:
    flat(tmp_path, "dog")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.raw").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat has no images .*; left out: 1 \.raw"):
        image_folder(tmp_path)


def test_an_ood_test_is_not_called_as_a_part_is(tmp_path: Path) -> None:
    flat(tmp_path / "photos", "cat")
    flat(tmp_path / "other", "cat")
    with pytest.raises(ValueError, match="'val' is a part of the ID data: give the OOD test another name"):
        image_folder(tmp_path / "photos", {"val": tmp_path / "other"})


# --- DomainNet


@pytest.fixture
def domainnet_root(tmp_path: Path) -> Path:
    return domainnet_tree(tmp_path)


def test_domainnet_follows_the_official_lists(domainnet_root: Path) -> None:
    data = domainnet(domainnet_root)
    assert data.class_names == ("aircraft_carrier", "airplane", "alarm clock")
    assert data.id_domain == "real"
    assert list(data.ood_tests) == ["sketch", "painting", "infograph", "clipart"]
    assert [len(part) for part in (data.train, data.val, data.id_test)] == [54, 6, 9]
    assert all("_test" in path.name and "sketch" in path.parts for path in data.ood_tests["sketch"].paths)
    assert not paths_of(data.train) & paths_of(data.val)
    assert all("_train" in path.name for path in data.train.paths + data.val.paths)
    assert data.val.labels.bincount().tolist() == [2, 2, 2]
    image, label = data.ood_tests["clipart"][8]
    assert image.shape == (3, 224, 224)
    assert label == 2


def test_domainnet_fractions_pay_for_validation_too(domainnet_root: Path) -> None:
    sizes = {}
    for fraction in (10, 20, 50, 100):
        data = domainnet(domainnet_root, "clipart", ["quickdraw"], fraction=fraction)
        sizes[fraction] = (len(data.train), len(data.val))
        assert len(data.id_test) == 9
    assert sizes == {10: (3, 3), 20: (9, 3), 50: (27, 3), 100: (54, 6)}


def test_one_label_a_class_leaves_nothing_to_validate_on(domainnet_root: Path) -> None:
    with pytest.raises(ValueError, match="'val' has no images"):
        domainnet(domainnet_root, fraction=1)


def test_domainnet_arguments(domainnet_root: Path) -> None:
    with pytest.raises(ValueError, match="unknown domain 'photo'"):
        domainnet(domainnet_root, "photo")
    with pytest.raises(ValueError, match="both ID and OOD"):
        domainnet(domainnet_root, "sketch")


@pytest.mark.parametrize("missing", ["sketch_test.txt", "real_train.txt"])
def test_domainnet_says_what_to_download(domainnet_root: Path, missing: str) -> None:
    (domainnet_root / missing).unlink()
    domain = missing.split("_")[0]
    with pytest.raises(FileNotFoundError, match=rf"{missing} is missing.*{domain}\.zip \(about .* GB\)"):
        domainnet(domainnet_root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("real/airplane/x.jpg 3", r"line 61: label 3 is outside 0\.\.2"),
        ("real/airplane/x.jpg 0", "line 61: label 0 is 'aircraft_carrier', but the file is in 'airplane'"),
        ("real/airplane/x.jpg", "line 61: expected"),
        ("real/airplane/x.jpg -1", "line 61: expected"),
    ],
)
def test_domainnet_names_the_bad_line(domainnet_root: Path, line: str, words: str) -> None:
    path = domainnet_root / "real_train.txt"
    good = path.read_text()
    path.write_text(good + line + "\n")
    with pytest.raises(ValueError, match=rf"real_train\.txt, {words}"):
        domainnet(domainnet_root)
    path.write_text(good)
    test = domainnet_root / "sketch_test.txt"
    test.write_text(test.read_text() + line.replace("real", "sketch") + "\n")
    with pytest.raises(ValueError, match=rf"sketch_test\.txt, {words.replace('61', '10')}"):
        domainnet(domainnet_root)


# --- ImageNet


@pytest.fixture
def imagenet_root(tmp_path: Path) -> Path:
    return imagenet_tree(tmp_path)


def test_imagenet_labels_are_the_sorted_wnids(imagenet_root: Path) -> None:
    data = imagenet(imagenet_root, val_share=0.2)
    assert data.class_names == tuple(WNIDS)
    assert [len(part) for part in (data.train, data.val, data.id_test)] == [32, 8, 8]
    assert list(data.ood_tests) == ["v2", "a", "r", "sketch"]
    for part in (data.train, data.val, data.id_test, data.ood_tests["a"], data.ood_tests["r"]):
        assert [WNIDS[k] for k in part.labels.tolist()] == [path.parent.name for path in part.paths]
    v2 = data.ood_tests["v2"]
    assert v2.labels.tolist() == [int(path.parent.name) for path in v2.paths]


def test_class_subsets_of_a_and_r(imagenet_root: Path) -> None:
    tests = imagenet(imagenet_root).ood_tests
    assert tests["a"].class_subset.tolist() == [1, 2]
    assert tests["r"].class_subset.tolist() == [0, 2]
    assert tests["v2"].class_subset is None
    assert tests["sketch"].class_subset is None


def test_ten_or_more_numbered_folders_sort_as_numbers(tmp_path: Path) -> None:
    wnids = [f"n{k:08d}" for k in range(12)]
    for folder, classes in {"train": wnids, "val": wnids, "imagenetv2-matched-frequency-format-val": range(12)}.items():
        write_classes(tmp_path / folder, map(str, classes), 2)
    v2 = imagenet(tmp_path, ["v2"], val_share=0.5).ood_tests["v2"]
    assert [int(path.parent.name) for path in v2.paths] == v2.labels.tolist()
    assert v2.labels.bincount().tolist() == [2] * 12


def test_imagenet_errors(imagenet_root: Path) -> None:
    with pytest.raises(ValueError, match="unknown shift 'c'"):
        imagenet(imagenet_root, ["c"])
    (imagenet_root / "imagenet-a" / "n99999999").mkdir()
    with pytest.raises(ValueError, match=r"imagenet-a has classes .*n99999999"):
        imagenet(imagenet_root)
    assert set(imagenet(imagenet_root, ["sketch"]).ood_tests) == {"sketch"}
    (imagenet_root / "sketch").rename(imagenet_root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"sketch is missing: download ImageNet-Sketch\.zip \(about 7\.6 GB\)"):
        imagenet(imagenet_root, ["sketch"])


# --- one image, one place


def test_an_image_in_two_parts_or_of_two_classes_is_refused(tmp_path: Path) -> None:
    """A tested image that was trained on would flatter, and one under two labels cannot be learned."""
    photos, sketches = tmp_path / "photos", tmp_path / "sketches"
    write_classes(photos, ["cat", "dog"], 9)
    write_classes(sketches, ["cat", "dog"], 2)
    image_folder(photos, ood={"sk": sketches, "again": sketches})  # two OOD tests may share images
    with pytest.raises(
        ValueError, match=r"leads to an image in '(train|val|test)' and in 'OOD same': give each image one"
    ):
        image_folder(photos, ood={"same": photos})
    (photos / "wolf").symlink_to(photos / "dog")
    with pytest.raises(ValueError, match=r"leads to an image (of two classes in|in '(train|val|test)' and in)"):
        image_folder(photos)


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    write_classes(tmp_path, ["cat"], 6)
    with pytest.raises(ValueError, match=r"data have 1 class, \('cat',\): there is nothing to tell apart"):
        finetune("icons-resnet", image_folder(tmp_path))


@pytest.mark.parametrize("name", ["", " ", "OOD mean"])
def test_an_ood_test_has_a_name_that_no_table_uses(name: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", ["cat", "dog"], 9)
    write_classes(tmp_path / "sk", ["cat"], 1)  # one of the classes will do
    assert image_folder(tmp_path / "photos", ood={"sk": tmp_path / "sk"}).ood_tests
    with pytest.raises(ValueError, match="an OOD test cannot be called"):
        image_folder(tmp_path / "photos", ood={name: tmp_path / "sk"})


def cut_short(path: Path) -> Path:
    """An image whose header is whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:400])
    return path


def test_broken_images_are_left_out_by_name_and_the_others_stay_in_their_parts(tmp_path: Path) -> None:
    flat(tmp_path / "photos", "cat", "dog", count=8)
    flat(tmp_path / "drawings", "cat")
    before = image_folder(tmp_path / "photos", {"drawn": tmp_path / "drawings"})
    broken = [before.train.paths[0], before.ood_tests["drawn"].paths[1]]
    for path in broken:
        cut_short(path)
    assert list(broken_images([*before.train.paths, *before.ood_tests["drawn"].paths])) == broken
    with pytest.warns(UserWarning, match=r"2 files or folders are left out: 2 that cannot be read \(.*\.png"):
        after = image_folder(tmp_path / "photos", {"drawn": tmp_path / "drawings"}, skip_broken=True)
    assert after.train.paths == before.train.paths[1:]
    assert after.train.labels.tolist() == before.train.labels[1:].tolist()
    assert (after.val.paths, after.id_test.paths) == (before.val.paths, before.id_test.paths)
    assert len(after.ood_tests["drawn"]) == len(before.ood_tests["drawn"]) - 1
    for path in before.train.paths:
        if path.parent.name == "dog":
            cut_short(path)
    with pytest.raises(ValueError, match="no training image of 'dog' that can be read: cannot read the image"):
        image_folder(tmp_path / "photos", skip_broken=True)


def test_classes_that_only_an_ood_folder_has_are_left_out_when_asked(tmp_path: Path) -> None:
    flat(tmp_path / "photos", "cat", "dog")
    flat(tmp_path / "drawings", "cat", "yak", "zebra")
    ood = {"drawn": tmp_path / "drawings"}
    with pytest.raises(ValueError, match=r"do not have: yak, zebra; .*--ood-extra ignore"):
        image_folder(tmp_path / "photos", ood)
    with pytest.warns(UserWarning, match=r"2 classes that the ID training data do not have \(yak, zebra\)"):
        found = image_folder(tmp_path / "photos", ood, ood_extra="ignore")
    assert set(found.ood_tests["drawn"].labels.tolist()) == {0}
    flat(tmp_path / "others", "yak")
    with pytest.raises(ValueError, match="do not have: yak"):  # nothing would be left
        image_folder(tmp_path / "photos", {"others": tmp_path / "others"}, ood_extra="ignore")
    with pytest.raises(ValueError, match="ood_extra must be one of"):
        image_folder(tmp_path / "photos", ood, ood_extra="drop")  # type: ignore[arg-type]
