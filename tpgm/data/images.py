"""From a file to pixels: the one way in which images become RGB, for training, testing and `predict` alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tpgm import check

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".avif", ".heic", ".heif"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm"),
)
_WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa", "La")
READERS = 8  # threads; Pillow decodes outside the interpreter's lock
_SCALED = ("PNG", "PPM")  # of which Pillow gives 16 bits as 32, in 0 … 65535


@lru_cache(maxsize=1)
def _pillow() -> Any:
    """Pillow's module of images; if pillow-heif is installed, it reads .heic too."""
    from PIL import Image

    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    return Image


def readable(suffix: str) -> bool:
    """Whether a file with this ending, ".heic" say, is taken for an image and Pillow can read it here."""
    return suffix in SUFFIXES and _pillow().registered_extensions().get(suffix) in _pillow().OPEN


def rgb(image: Image) -> Image:
    """The image upright, in RGB with 8 bits a channel, on white where it is transparent; of an animation the first.

    It is turned as its EXIF orientation says. 16 bits a channel are scaled to 8, from the whole range that the file
    can hold. Colours are converted without regard to colour profiles.
    Raises ValueError for pixels that are 32-bit numbers: they have no range from which to scale.
    """
    from PIL import ImageOps

    _require_range(image)
    upright = ImageOps.exif_transpose(image)
    if image.mode[0] == "I":
        upright = _eight_bits(upright, image)
    if upright.mode in _WITH_ALPHA or "transparency" in upright.info:
        white = _pillow().new("RGBA", upright.size, "white")
        whole = upright.convert("LA") if upright.mode == "La" else upright  # which Pillow converts to nothing else
        upright = _pillow().alpha_composite(white, whole.convert("RGBA"))
    return upright.convert("RGB")


def read_image(path: str | Path) -> Image:
    """The image in a file, as `rgb` makes it. Raises OSError, naming the file and the cure, if it cannot be read."""
    with _opened(path) as image:
        return rgb(image)


def check_header(path: str | Path) -> None:
    """Raise OSError as `read_image` does, for what the file's first bytes tell."""
    with _opened(path) as image:
        _require_range(image)


def broken_images(paths: Iterable[str | Path]) -> dict[Path, str]:
    """The images that cannot be read, in order, each with the reason. Reads them all, to the last pixel."""

    def reason(path: Path) -> str:
        try:
            read_image(path)
        except OSError as error:
            return str(error)
        return ""

    files = list(map(Path, paths))
    with ThreadPoolExecutor(READERS) as readers:
        return {file: told for file, told in zip(files, readers.map(reason, files), strict=True) if told}


@contextmanager
def _opened(path: str | Path) -> Iterator[Image]:
    images, cure = _pillow(), "replace or remove the file"
    try:
        with images.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises errors of every kind for broken files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason, cure = "no such file", "check the path"
        elif isinstance(error, images.UnidentifiedImageError):
            reason = "it is no image, or one of a kind that Pillow does not know"
        elif isinstance(error, images.DecompressionBombError | MemoryError):
            cure = "make it smaller, or remove it; if you trust it, set PIL.Image.MAX_IMAGE_PIXELS higher"
        raise OSError(f"cannot read the image {path}: {reason.rstrip('.')}; {cure}") from error


def _require_range(image: Image) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format not in _SCALED):
        raise ValueError("its pixels are 32-bit numbers of unknown range (convert it to 8 or 16 bits a channel)")


def _eight_bits(upright: Image, source: Image) -> Image:
    """Grey values of 9 to 16 bits as 8, white where they are marked as transparent; source: as it was opened."""
    values = np.asarray(upright).astype(np.int64)
    tags = getattr(source, "tag_v2", {})
    top = 2 ** int(tags.get(258, (16,))[0]) - 1  # BitsPerSample
    grey = (values * 255 + top // 2) // top
    if tags.get(262) == 0:  # WhiteIsZero
        grey = 255 - grey
    if (key := source.info.get("transparency")) is not None:
        grey[values == key] = 255
    return _pillow().fromarray(grey.astype(np.uint8))  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def resize_and_crop(size: int = 224) -> Callable[[Any], Any]:
    """PIL image -> (3, size, size) uint8 tensor: shorter side to size, bicubic, and the centre square of it."""
    from torchvision.transforms import v2

    size = check.number("size", size, 1, whole=True)
    resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC)
    chain: Callable[[Any], Any] = v2.Compose([_shortened, resize, v2.CenterCrop(size), v2.PILToTensor()])
    return chain


def _shortened(image: Any) -> Any:
    """The middle of an image more than 64 times as long as wide: 1 x 65000 pixels would be resized to 9 GB."""
    (width, height), most = image.size, 64 * min(image.size)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, width - left, height - top)) if left or top else image
