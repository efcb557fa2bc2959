"""One reader of images: what a file's pixels become, and files that cannot be read, named with the cure."""

from __future__ import annotations

import re
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tpgm import cli, models
from tpgm.data import Preparation, image_folder, images, resize_and_crop
from tpgm.data.images import _shortened, check_header, read_image, rgb
from tpgm.training.batches import read

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
EIGHT = (RAMP.astype(np.int64) * 255 + 32767) // 65535


def header(width: int, height: int) -> bytes:
    """A PNG that says it is so large; its pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


# --- values


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    assert np.array_equal(pixels(read_image(tmp_path / name)), np.repeat(EIGHT[..., None], 3, 2))


def test_sixteen_bits_that_are_transparent_or_white_at_zero_are_read_as_marked(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "grey.png", transparency=0)
    expected = EIGHT.copy()
    expected[RAMP == 0] = 255
    assert np.array_equal(pixels(read_image(tmp_path / "grey.png"))[..., 0], expected)
    Image.fromarray(RAMP).save(tmp_path / "negative.tif", tiffinfo={262: 0})
    assert np.array_equal(pixels(read_image(tmp_path / "negative.tif"))[..., 0], 255 - EIGHT)


def test_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x08, 0x00])  # 0, 4095, 2048, 2048
    entries = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    start = 8 + len(packed)
    (tmp_path / "scan.tif").write_bytes(
        b"II*\x00" + struct.pack("<I", start) + packed + struct.pack("<H", len(entries)) + directory + bytes(4)
    )
    with Image.open(tmp_path / "scan.tif") as image:
        assert np.asarray(image).ravel().tolist() == [0, 4095, 2048, 2048]
    assert pixels(read_image(tmp_path / "scan.tif"))[0, :, 0].tolist() == [0, 255, 128, 128]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_range_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "depth.tif"
    Image.new(mode, (4, 4), 1).save(path)
    for read_it in (read_image, check_header):
        with pytest.raises(OSError, match=rf"{re.escape(str(path))}.*unknown range.*8 or 16 bits.*remove the file"):
            read_it(path)
    with pytest.raises(ValueError, match="unknown range"):
        rgb(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(tmp_path: Path, orientation: int) -> None:
    # where the upper left pixel of the stored image is shown, as the EXIF standard says
    corner = [(0, 0), (0, -1), (-1, -1), (-1, 0), (0, 0), (0, -1), (-1, -1), (-1, 0)][orientation - 1]
    stored = np.zeros((2, 3, 3), dtype=np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    shown = pixels(read_image(tmp_path / "photo.png"))
    assert shown.shape == ((2, 3, 3) if orientation < 5 else (3, 2, 3))
    assert shown[corner].tolist() == [255] * 3
    assert shown.sum() == 3 * 255


def transparent(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """Half black, half transparent black: a shape that is lost where transparency is."""
    alpha = np.zeros((8, 8), dtype=np.uint8)
    alpha[:, 4:] = 255
    zero = np.zeros_like(alpha)
    if mode == "P":
        image = Image.fromarray(alpha // 255).convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        return image, {"transparency": 0}
    layers = {"LA": [zero, alpha], "RGBA": [zero] * 3 + [alpha], "L": [alpha // 255], "RGB": [alpha // 255] * 3}[mode]
    key = {"L": 0, "RGB": (0, 0, 0)}.get(mode)
    return Image.merge(mode, [Image.fromarray(x) for x in layers]), {} if key is None else {"transparency": key}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_images_are_on_white_at_every_door(tmp_path: Path, mode: str) -> None:
    image, options = transparent(mode)
    for k in range(3):
        (tmp_path / "shape").mkdir(exist_ok=True)
        image.save(tmp_path / "shape" / f"{k}.png", **options)
    path = tmp_path / "shape" / "0.png"
    seen = pixels(read_image(path))
    assert (seen[:, :4] == 255).all()
    assert (seen[:, 4:] <= 1).all()
    data = image_folder(tmp_path, transform=lambda read: pixels(read))
    for part in (data.train, data.val, data.id_test):
        assert np.array_equal(part[0][0], seen)
    taken: list[torch.Tensor] = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            taken.append(x)
            return x.mean((1, 2, 3))[:, None]

    model = models.Pretrained("", Net(), {}, (), Preparation(8, (0.0,) * 3, (1.0,) * 3))
    model.predict(path)
    with Image.open(path) as opened:
        model.predict(opened)
    for x in taken:
        assert np.array_equal((x[0] * 255).round().long().permute(1, 2, 0).numpy(), seen)


def test_images_and_icons_are_put_on_white_alike() -> None:
    from tpgm.book.icon_benchmark.render import on_white

    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    assert np.array_equal(pixels(rgb(Image.fromarray(rgba))), on_white(rgba[None])[0].transpose(1, 2, 0))


def test_other_kinds_of_images(tmp_path: Path) -> None:
    def colour(name: str, image: Image.Image, **options: object) -> list[int]:
        image.save(tmp_path / name, **options)
        return pixels(read_image(tmp_path / name))[2, 2].tolist()  # type: ignore[no-any-return]

    frames = [Image.new("RGB", (6, 6), c) for c in ("red", "blue")]
    assert colour("cmyk.tif", Image.new("CMYK", (6, 6), (0, 255, 255, 0))) == [255, 0, 0]
    assert colour("moving.gif", frames[0], save_all=True, append_images=frames[1:]) == [255, 0, 0]
    assert colour("pages.tif", frames[0], save_all=True, append_images=frames[1:]) == [255, 0, 0]
    assert colour("palette.png", frames[1].convert("P")) == [0, 0, 255]
    assert colour("one-bit.png", Image.new("1", (6, 6), 1)) == [255] * 3
    assert colour("photo.jfif", frames[0], format="JPEG")[0] > 250


# --- what cannot be read


def cut(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(header(30_000, 30_000)), "exceeds limit.*make it smaller.*MAX_IMAGE_PIXELS"),
        (lambda path: path.write_bytes(b""), "it is no image.*replace or remove"),
        (cut, "truncated.*replace or remove"),
        (lambda path: path.unlink(), "no such file; check the path"),
        (lambda path: path.write_bytes(header(0, 5)[:30]), "replace or remove"),
    ],
)
def test_a_broken_image_is_named_with_the_cure(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(path)
    spoil(path)
    with pytest.raises(OSError, match=f"cannot read the image {re.escape(str(path))}: .*{words}"):
        read_image(path)


def test_a_huge_header_is_one_line_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{k}.png").write_bytes(header(30_000, 30_000))
    assert cli.main(["finetune", "icons-resnet", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(rf"tpgm: cannot read the image {re.escape(str(tmp_path / 'cat'))}/\d.png: .*make it smaller", line)


def test_an_image_broken_within_is_one_line_from_worker_processes_too(tmp_path: Path) -> None:
    for k in range(5):
        (tmp_path / "cat").mkdir(exist_ok=True)
        cut(tmp_path / "cat" / f"{k}.png")
    data = image_folder(tmp_path).train
    for workers in (0, 1):
        with pytest.raises(OSError, match=r"^cannot read the image .*; replace or remove the file$") as caught:
            list(read(data, [[0]], workers))
        assert "\n" not in str(caught.value)


def test_heic_is_read_where_its_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    package = types.SimpleNamespace(register_heif_opener=lambda: called.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    images._pillow.cache_clear()
    assert images.readable(".png")
    assert called == [True]
    images._pillow.cache_clear()


def test_a_long_thin_image_takes_no_more_memory_than_its_middle() -> None:
    """One of 1 x 65000 pixels was resized to 9 GB before its middle was cut out."""
    for size in ((1, 60001), (60001, 1)):
        image = Image.new("RGB", size, "red")
        assert tuple(resize_and_crop(8)(image).shape) == (3, 8, 8)
    plain = Image.effect_noise((640, 10), 50).convert("RGB")
    assert _shortened(plain) is plain
    longer = Image.new("RGB", (6400, 10), "red")
    assert _shortened(longer).size == (640, 10)


def test_premultiplied_grey_lies_on_white_too() -> None:
    assert rgb(Image.new("La", (2, 2))).getpixel((0, 0)) == (255, 255, 255)
