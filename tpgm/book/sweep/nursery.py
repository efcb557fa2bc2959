"""A process that has imported everything once and forks for each run.

A run then has a process of its own (its log, its peak memory, its crash) without paying seconds of imports. Where
processes cannot be forked safely (not Linux) each run starts a new interpreter.
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
import time
from pathlib import Path

from tpgm.book.sweep.jobs import LOG

FORKS = sys.platform == "linux"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Nursery:
    """The worker's end: one computation at a time. If this process dies, so does the computation."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process: subprocess.Popen[str] | None = None

    def compute(self, folder: Path) -> int:
        """Do the job in `folder` (see `tpgm.book.sweep.jobs.compute`); returns its exit status, below 0: a signal."""
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(self.threads))}
        if not FORKS:
            with (folder / LOG).open("wb") as log:
                command = [sys.executable, "-c", "from tpgm.book.sweep.jobs import main; main()", str(folder)]
                return subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tpgm.book.sweep.nursery import serve; serve()"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the sweep, which then ends its workers
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{folder}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the process that computes ended (status {self._process.wait()}); out of memory?")
        return int(answer)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # at the end of its input it ends
            self._process = None


def serve() -> None:
    """Read folders, answer exit statuses, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in (
        "tpgm.book.experiments.experiment",
        "tpgm.models",
        "tpgm.training.loop",
        "timm",
        "torchvision",
        "accelerate",
        "papermill",
    ):
        if importlib.util.find_spec(module):
            importlib.import_module(module)
    while line := sys.stdin.readline():
        folder = Path(line.rstrip("\n"))
        reading, writing = os.pipe()  # the child alone holds the writing end: it closes when the child ends
        child = os.fork()
        if child == 0:
            os.close(reading)
            _run(folder)
        os.close(writing)
        with contextlib.suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(child, child)
        ready, _, _ = select.select([reading, sys.stdin], [], [])
        if reading not in ready:  # the worker died
            os.killpg(child, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
            return
        os.close(reading)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(folder: Path) -> None:
    """In the child: compute and end, whatever happens."""
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from tpgm.book.sweep.jobs import compute

        began = time.perf_counter()
        good = compute(folder)
        print(f"{'done' if good else 'failed'} after {time.perf_counter() - began:.1f} s")
        status = 0 if good else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
