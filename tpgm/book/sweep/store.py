"""A sweep's folder, here or behind an fsspec URL: the only thing its workers share and the only place of its state."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

from tpgm.book.sweep.jobs import ERROR, LOG, NOTEBOOK, ROW
from tpgm.files import sealed, unsealed

ROWS = "rows.jsonl"


class Store:
    """``<url>/<run>/`` holds a run: ``row.json`` (the last to be written: with it the run is done), ``notebook.ipynb``,
    ``log.txt``, after a failure ``error.txt``, and ``attempts/``, a file for every start and end of a computation.

    url: a folder, or what fsspec knows (``s3://bucket/sweep``; its package, here s3fs, must be installed).
    """

    def __init__(self, url: str | Path) -> None:
        import fsspec

        text = str(url)
        self.url = text if "://" in text else str(Path(text).expanduser().resolve())
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            cure = "give a folder, or a URL whose fsspec package is installed (s3fs for s3://)"
            raise ValueError(f"--out {self.url} cannot be opened: {error}; {cure}") from error
        self.local = "file" in self.fs.protocol if isinstance(self.fs.protocol, tuple) else self.fs.protocol == "file"

    def path(self, *parts: str) -> str:
        return "/".join([self.root.rstrip("/"), *parts])

    def done(self) -> set[str]:
        """The names of the runs that have a row."""
        self.fs.invalidate_cache()
        return {path.split("/")[-2] for path in self.fs.glob(self.path("*", ROW))}

    def is_done(self, run: str) -> bool:
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.path(run, ROW)))

    def row(self, run: str) -> dict[str, Any] | None:
        """The run's row. A file that holds none is set aside with a warning that names it; the run is then not done."""
        path = self.path(run, ROW)
        try:
            row = unsealed(self.fs.cat_file(path), path)
        except ValueError:
            row = {}
        if row.get("run") == run:
            return row
        self.fs.mv(path, f"{path}.broken")
        warnings.warn(f"{path} holds no row of {run} and is now {ROW}.broken; the run is due again", stacklevel=3)
        return None

    def write(self, content: bytes, *parts: str) -> None:
        """A whole file: under another name first where a reader could see half of it."""
        target = self.path(*parts)
        if self.local:
            folder = Path(target).parent
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f".{Path(target).name}.{uuid.uuid4().hex[:8]}.part"
            try:
                aside.write_bytes(content)
                os.replace(aside, target)
            finally:
                aside.unlink(missing_ok=True)
        else:
            self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self.fs.pipe_file(target, content)  # object stores show an object when it is whole

    def note(self, run: str, what: str, attempt: str, **more: Any) -> None:
        """Record that a computation "started", "finished" or "failed"; attempt: tells computations apart."""
        record = {"what": what, "host": socket.gethostname(), "process": os.getpid(), "time": time.time(), **more}
        self.write(sealed(json.dumps(record)).encode(), run, "attempts", f"{attempt}.{what}.json")

    def notes(self, run: str) -> list[dict[str, Any]]:
        """All records of a run's computations, in the order of time."""
        found = [unsealed(self.fs.cat_file(p), p) for p in self.fs.glob(self.path(run, "attempts", "*.json"))]
        return sorted(found, key=lambda record: record["time"])

    def publish(self, run: str, folder: Path, *, good: bool) -> None:
        """Copy what a computation left in `folder`; the row, which says that the run is done, comes last."""
        for name in (NOTEBOOK, LOG, ERROR, ROW) if good else (NOTEBOOK, LOG, ERROR):
            if (folder / name).exists():
                self.write((folder / name).read_bytes(), run, name)
        if good and self.fs.exists(self.path(run, ERROR)):
            self.fs.rm_file(self.path(run, ERROR))

    def gather(self, first: list[str]) -> list[dict[str, Any]]:
        """The rows of all runs that are done, those named `first` in their order before the others, written to
        ``<url>/rows.jsonl`` too."""
        done = self.done()
        order = [name for name in first if name in done]
        rows = [row for name in [*order, *sorted(done.difference(order))] if (row := self.row(name)) is not None]
        self.write(b"".join(sealed(json.dumps(row, ensure_ascii=False)).encode() + b"\n" for row in rows), ROWS)
        return rows

    def tidy(self) -> None:
        """Remove what killed processes left half-written (on a local disk only; elsewhere nothing is)."""
        if self.local:
            for left in Path(self.root).glob("**/.*.part"):
                left.unlink(missing_ok=True)
