"""Files that are whole or absent, and that are known to be damaged when they are."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAGIC = b"tpgm state\n"


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Write to a neighbour of `path` inside the context; on success it takes the name of `path`, else it is removed.

    An OSError (a full disk) names `path`; what stood there before is untouched.
    """
    aside = path.with_name(f".{path.name}.part")  # one name: what a killed process left is written over
    try:
        aside.unlink(missing_ok=True)  # also a link that somebody planted: it is not followed
        aside.touch(exist_ok=False)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}; choose another path or folder, or make room"
        raise OSError(error.errno, reason) from error
    finally:
        with suppress(OSError):  # what went wrong first is told
            aside.unlink(missing_ok=True)


def make_folder(folder: Path, name: str = "output") -> None:
    """Make a folder and those above it. Raises OSError naming it, what it is for, and the cure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the folder {folder} for the {name} cannot be made ({error.strerror or error}): choose another folder"
        raise OSError(error.errno, reason) from error


def write_state(path: Path, version: int, state: dict[str, Any]) -> None:
    """Write what ``torch.load(weights_only=True)`` reads, with a format version and a checksum before it.

    Raises OSError, naming the file, if it cannot be written; what stood there before is untouched then.
    """
    import torch

    content = io.BytesIO()  # torch.save's own errors would not tell that the disk is full
    torch.save(state, content)
    payload = content.getbuffer()
    head = MAGIC + f"{version} {hashlib.sha256(payload).hexdigest()}\n".encode()
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write(head)
        file.write(payload)


def read_state(path: Path, version: int, device: Any = "cpu") -> dict[str, Any]:
    """What `write_state` wrote, tensors on `device`.

    Raises ValueError, naming the file and the cure, for a file of another format or version and for a damaged one.
    """
    import torch

    content = path.read_bytes()
    cure = f"delete {path} to begin again"
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} cannot be read: it is damaged, or not a state of this version of tpgm; {cure}")
    line, _, payload = content[len(MAGIC) :].partition(b"\n")
    written, _, checksum = line.decode(errors="replace").partition(" ")
    if hashlib.sha256(payload).hexdigest() != checksum:
        raise ValueError(f"{path} cannot be read: its checksum is wrong, the file is damaged; {cure}")
    if written != str(version):
        raise ValueError(f"{path} has format {written}, this version of tpgm reads {version}; {cure}")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); {cure}") from error
    return state


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
