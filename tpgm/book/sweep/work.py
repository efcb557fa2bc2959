"""What a Dask worker does with a job: compute it aside, then put its files where the sweep looks for them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from tpgm.book.sweep.jobs import ERROR, JOB, ROW, Job
from tpgm.book.sweep.nursery import Nursery
from tpgm.book.sweep.store import Store

TOPIC = "tpgm-sweep"
# a worker process has as many nurseries as threads, one by default
_local = threading.local()


@dataclass(frozen=True)
class Outcome:
    """state: "done", "skipped" (another computation had been faster) or "failed" (then error says why)."""

    name: str
    state: str
    error: str = ""


def perform(job: Job, url: str, threads: int) -> Outcome:
    """Compute one job and publish it. A computation that fails is an outcome; only a broken store raises."""
    store = Store(url)
    if store.is_done(job.name):
        return Outcome(job.name, "skipped")
    attempt = uuid.uuid4().hex[:12]
    store.note(job.name, "started", attempt)
    _tell(job.name, started=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tpgm-run-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            (folder / JOB).write_text(job.to_json(), encoding="utf8")
            error = _compute(folder, threads)
            good = not error and (folder / ROW).exists()
            store.note(job.name, "finished" if good else "failed", attempt)
            if not good:
                (folder / ERROR).write_text(error, encoding="utf8")
            store.publish(job.name, folder, good=good)
    finally:
        _tell(job.name, started=False)
    return Outcome(job.name, "done" if good else "failed", error)


def _compute(folder: Path, threads: int) -> str:
    """Why it failed, "" if it did not."""
    nursery = getattr(_local, "nursery", None)
    if nursery is None or nursery.threads != threads:
        if nursery is not None:
            nursery.close()
        nursery = _local.nursery = Nursery(threads)
    try:
        status = nursery.compute(folder)
    except RuntimeError as error:
        return str(error)
    if status == 0:
        return ""
    if (folder / ERROR).exists():
        return (folder / ERROR).read_text(encoding="utf8")
    why = f"signal {-status}" if status < 0 else f"status {status}"
    return f"the process ended with {why} and left no traceback; see the log (signal 9: out of memory?)"


def _tell(name: str, *, started: bool) -> None:
    """For the live display only."""
    with contextlib.suppress(ImportError, ValueError):  # outside a worker
        from distributed import get_worker

        get_worker().log_event(TOPIC, {"name": name, "started": started})
