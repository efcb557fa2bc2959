"""Files that are whole or absent, and that are known to be damaged when they are."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAGIC = b"tpgm state\n"
ROW = 1  # format of sealed JSON
_SEAL = re.compile(rb', "format": (\d+), "sha256": "([0-9a-f]{64})"\}')


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Write to a neighbour of `path` inside the context; on success it takes the name of `path`, else it is removed.

    An OSError (a full disk) names `path`; what stood there before is untouched.
    """
    aside = path.with_name(f".{path.name}.part")  # one name: what a killed process left is written over
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is a folder, a device or a pipe, not a file")
        aside.unlink(missing_ok=True)  # also a link that somebody planted: it is not followed
        aside.touch(exist_ok=False)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        reason = f"cannot write {path}: {_why(path, error)}; choose another path, or make room if the disk is full"
        raise OSError(error.errno, reason) from error
    finally:
        with suppress(OSError):  # what went wrong first is told
            aside.unlink(missing_ok=True)


def make_folder(folder: Path, name: str = "output") -> None:
    """Make a folder and those above it. Raises OSError naming it, what it is for, and the cure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"folder {folder} for the {name} cannot be made ({_why(folder / 'x', error)}): choose another folder"
        raise OSError(error.errno, reason) from error


def _why(path: Path, error: OSError) -> str:
    """Why a file cannot be written; the system does not tell which file stands in the way where a folder should."""
    blocked = (f"{above} is a file, not a folder" for above in path.parents if os.path.isfile(above))
    return next(blocked, error.strerror or str(error))


def write_state(path: Path, version: int, state: dict[str, Any]) -> None:
    """Write what `packed` returns.

    Raises OSError, naming the file, if it cannot be written; what stood there before is untouched then.
    """
    head, payload = _parts(version, state)  # torch.save's own errors would not tell that the disk is full
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write(head)
        file.write(payload)


def read_state(path: Path, version: int, device: Any = "cpu") -> dict[str, Any]:
    """What `write_state` wrote, tensors on `device`.

    Raises ValueError, naming the file and the cure, for a file of another format or version and for a damaged one.
    """
    return unpacked(path.read_bytes(), version, str(path), f"delete {path} to begin again", device)


def packed(version: int, state: dict[str, Any]) -> bytes:
    """What ``torch.load(weights_only=True)`` reads, with a format version and a checksum before it."""
    return b"".join(_parts(version, state))


def _parts(version: int, state: dict[str, Any]) -> tuple[bytes, memoryview]:
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    payload = content.getbuffer()
    return MAGIC + f"{version} {hashlib.sha256(payload).hexdigest()}\n".encode(), payload


def unpacked(content: bytes, version: int, what: str, cure: str, device: Any = "cpu") -> dict[str, Any]:
    """What `packed` took. Raises ValueError, with `what` and `cure`, unless it is whole and of this version."""
    import torch

    if not content.startswith(MAGIC):
        raise ValueError(f"{what} cannot be read: it is damaged, or not a state of this version of tpgm; {cure}")
    line, _, payload = content[len(MAGIC) :].partition(b"\n")
    written, _, checksum = line.decode(errors="replace").partition(" ")
    if hashlib.sha256(payload).hexdigest() != checksum:
        raise ValueError(f"{what} cannot be read: its checksum is wrong, the file is damaged; {cure}")
    if written != str(version):
        raise ValueError(f"{what} has format {written}, this version of tpgm reads {version}; {cure}")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({error}); {cure}") from error
    return state


def sealed(text: str) -> str:
    """The JSON text of an object that has entries, with the format's version and a checksum as its last two."""
    body = f'{text[:-1].rstrip()}, "format": {ROW}'
    return f'{body}, "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"}}'


def unsealed(content: bytes, what: str) -> dict[str, Any]:
    """The object that `sealed` made text of. Raises ValueError, with `what`, if it is damaged or of another format."""
    seal = _SEAL.fullmatch(content, max(0, content.rfind(b', "format": ')))
    if seal is None or hashlib.sha256(content[: seal.end(1)]).hexdigest().encode() != seal[2]:
        raise ValueError(f"{what} is damaged: its checksum is wrong or missing")
    if int(seal[1]) != ROW:
        raise ValueError(f"{what} has format {int(seal[1])}, this version of tpgm reads {ROW}: update tpgm")
    found: dict[str, Any] = json.loads(content[: seal.end(1)] + b"}")
    del found["format"]
    return found


def require_writable(path: Path) -> None:
    """Make the folder of `path`, and raise OSError, with the cure, unless a file can be written there: to be called
    before hours are spent on what the file shall hold."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"out: cannot write {path}: {_why(path, error)}; choose another file") from error


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make `folder`, check that files can be written there, and keep other runs out while the context lasts.

    Raises OSError naming the folder if it cannot be written, RuntimeError if another run is using it.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"cannot write into {folder}: {error.strerror or error}; choose another folder for the output"
        raise OSError(error.errno, reason) from error
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another run is using {folder}: wait for it or choose another folder") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # still held: who waits does so for no longer than an instant
        lock.release()
