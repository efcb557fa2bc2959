"""What a Dask worker does with a job: compute it in a process of its own, then put its files where the sweep looks.

The process is forked from one that has imported everything once: a run has its log, its peak memory and its crash to
itself without paying seconds of imports. Where processes cannot be forked safely (not Linux) each run starts a new
interpreter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

from tpgm.book.sweep.cluster import end_is_interruption
from tpgm.book.sweep.jobs import ERROR, JOB, LOG, ROW, Job, compute
from tpgm.book.sweep.store import Store

FORKS = sys.platform == "linux"
OVER_LIMIT = "over the limit"
GRACE = 15.0  # seconds to end in
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_IMPORTS = (
    "tpgm.book.experiments.experiment",
    "tpgm.models",
    "tpgm.training.loop",
    "timm",
    "torchvision",
    "accelerate",
    "papermill",
)
_local = threading.local()  # nurseries by the number of threads of a run; each thread of a worker has its own


def perform(job: Job, url: str, threads: int, limit: float) -> str:
    """Compute one job, for `limit` seconds at most, and publish it; returns why it failed, "" if it did not.

    Only a broken store raises.
    """
    store = Store(url)
    if store.is_done(job.name):  # another computation was faster
        return ""
    attempt = uuid.uuid4().hex[:12]
    store.note(job.name, "started", attempt)
    with tempfile.TemporaryDirectory(prefix="tpgm-run-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / JOB).write_text(job.to_json(), encoding="utf8")
        error = _compute(folder, threads, limit)
        good = not error
        store.note(job.name, "finished" if good else "failed", attempt)
        if not good:
            (folder / ERROR).write_text(error, encoding="utf8")
        store.publish(job.name, folder, good=good)
    return error


def _compute(folder: Path, threads: int, limit: float) -> str:
    """Why it failed, "" if it did not."""
    nursery = _local.__dict__.setdefault(f"{threads} threads", Nursery(threads))
    try:
        status = nursery.compute(folder, limit)
    except RuntimeError as error:
        return str(error)
    if status == 0 and (folder / ROW).exists():
        return ""
    if (folder / ERROR).exists():
        return (folder / ERROR).read_text(encoding="utf8")
    why = f"signal {-status}" if status < 0 else f"status {status}"
    return f"the process ended with {why} and left no traceback; see the log (signal 9: out of memory?)"


class Nursery:
    """The worker's end: one computation at a time. If this process dies, so does the computation."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process: subprocess.Popen[str] | None = None

    def compute(self, folder: Path, limit: float) -> int:
        """Do the job in `folder` (see `tpgm.book.sweep.jobs.compute`); returns its exit status, below 0: a signal.

        Raises RuntimeError if it takes longer than `limit` seconds, or if the process that forks has ended.
        """
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self.threads))}
        if not FORKS:
            code = "from tpgm.book.sweep.work import *; sys.exit(not compute(Path(sys.argv[1])))"
            command = [sys.executable, "-c", code, str(folder)]
            with (folder / LOG).open("wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False, timeout=limit)
                return done.returncode
            raise RuntimeError(_too_long(limit))
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tpgm.book.sweep.work import serve; serve()"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the sweep, which then ends its workers
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{limit} {folder}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"the process that computes ended (status {self._process.wait()}); out of memory?")
        if answer == OVER_LIMIT:
            raise RuntimeError(_too_long(limit))
        return int(answer)


def _too_long(limit: float) -> str:
    return f"ended after the time limit of {limit:g} s (--limit) for one run; see the log"


def serve() -> None:
    """Read time limits and folders, answer exit statuses, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in _IMPORTS:
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    while line := sys.stdin.readline():
        limit, _, folder = line.rstrip("\n").partition(" ")
        reading, writing = os.pipe()  # the child alone holds the writing end: it closes when the child ends
        child = os.fork()
        if child == 0:
            os.close(reading)
            _run(Path(folder))
        os.close(writing)
        with contextlib.suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(child, child)
        ready, _, _ = select.select([reading, sys.stdin], [], [], float(limit))
        if not ready:  # the time is over: let it write how far it came
            os.kill(child, signal.SIGTERM)
            select.select([reading], [], [], GRACE)
        if reading not in ready:  # or the worker died
            os.killpg(child, signal.SIGKILL)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        if ready and reading not in ready:
            shutil.rmtree(folder, ignore_errors=True)
            return
        print(os.waitstatus_to_exitcode(status) if ready else OVER_LIMIT, file=answers, flush=True)


def _run(folder: Path) -> None:
    """In the child: compute and end, whatever happens."""
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with end_is_interruption():
            status = int(not compute(folder))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
