"""Files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Write to a neighbour of `path` inside the context; on success it takes the name of `path`, else it is removed.

    An OSError (a full disk) names `path`; what stood there before is untouched.
    """
    aside = path.with_name(f".{path.name}.part")  # one name: what a killed process left is written over
    try:
        aside.touch()
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
