"""Run a plan: skip what is done, spread the rest over workers, retry, report."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpgm.book.sweep.cluster import connect, end_is_interruption
from tpgm.book.sweep.grid import Plan
from tpgm.book.sweep.jobs import Job
from tpgm.book.sweep.store import Store
from tpgm.book.sweep.work import perform
from tpgm.files import make_folder

if TYPE_CHECKING:
    from distributed import Client, Future

DAY = 86_400.0


@dataclass
class SweepReport:
    """What became of each run. states: "done" (before or now) or "failed", by name; tries: computations in this call;
    errors: of the failed, the failing cell's or the experiment's traceback; rows: of all runs that are done."""

    states: dict[str, str] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    errors: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> list[str]:
        return list(self.errors)

    def table(self) -> str:
        """A line a run: state, tries in this call, seconds, and ID and OOD accuracy where the row has them."""
        import pandas as pd

        rows, lines = {row["run"]: row for row in self.rows}, []
        for name, state in self.states.items():
            row = rows.get(name, {})
            seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
            scores = (f"{100 * row[key]:.1f}" if row.get(key) is not None else "" for key in ("id", "ood"))
            lines.append([name, state, self.tries[name], seconds, *scores])
        count = Counter(self.states.values())
        before = sum(s == "done" and not self.tries[n] for n, s in self.states.items())
        end = f"{count['done']} done ({before} of them before), {count['failed']} failed, in {self.seconds:.0f} s"
        frame = pd.DataFrame(lines, columns=["run", "state", "tries", "seconds", "ID", "OOD"])
        return f"{frame.to_string(index=False)}\n{end}" if lines else end


def sweep(
    plan: Plan,
    out: str | Path,
    *,
    retries: int = 1,
    scheduler: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    limit: float = DAY,
    progress: bool = True,
) -> SweepReport:
    """Compute what has no row in `out` yet; returns what became of every run.

    out: a folder or fsspec URL that this process and all workers can reach; the whole state is there, so a sweep that
    was killed goes on when called again, and what failed is tried again. retries: further computations of a run that
    fails. scheduler: address (or JSON file) of a Dask cluster; by default this machine with `workers` processes, one
    run at a time in each, `threads` for each run. limit: seconds after which one computation is ended and counts as
    failed. A run whose worker dies is given to another worker. SIGTERM is Ctrl-C.

    Raises ValueError for impossible numbers, RuntimeError if another sweep is at work in the same folder, OSError if
    no scheduler answers.
    """
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    if not limit > 0:
        raise ValueError(f"limit must be above 0 seconds, got {limit}")
    store, report, began = Store(out), SweepReport(), time.perf_counter()
    with end_is_interruption(), _alone(store), ExitStack() as stack:
        store.tidy()
        rows, workforce = store.gather([]), None
        while due := [job for job in plan.due(rows) if job.name not in report.states]:
            done = store.done()
            report.states |= {job.name: "done" for job in due if job.name in done}
            if todo := [job for job in due if job.name not in done]:
                if workforce is None:  # a sweep with nothing to do needs none
                    workforce = stack.enter_context(connect(scheduler, workers, threads))
                for line in _compute(todo, store, report, retries, limit, *workforce):
                    if progress:
                        print(line, file=sys.stderr, flush=True)
            rows = store.gather([job.name for job in due])
        report.rows = store.gather(list(report.states))
    report.seconds = time.perf_counter() - began
    return report


def _compute(
    jobs: list[Job], store: Store, report: SweepReport, retries: int, limit: float, client: Client, each: int, gpu: bool
) -> Iterator[str]:
    """Compute the jobs, noting in the report what became of them; a line of text for each that ends."""
    from distributed import as_completed

    def submit(job: Job) -> Future[str]:
        report.tries[job.name] += 1
        # on a shared cluster the same key is the same task: a second client waits for it instead of computing again
        key = f"{job.name}-{report.tries[job.name]}"
        resources = {"GPU": 1} if gpu else None
        return client.submit(perform, job, store.url, each, limit, key=key, pure=False, resources=resources)

    began, ended = time.perf_counter(), 0
    running = {future.key: (job, future) for job in jobs for future in [submit(job)]}
    queue = as_completed([future for _, future in running.values()])
    for future in queue:
        job, _ = running.pop(future.key)
        if future.status == "finished":
            error = future.result()
        else:  # no run's own error, but a worker's that died again and again, or the store's
            error = f"{future.status}: {future.exception() if future.status == 'error' else 'the task is gone'!r}"
        if error and report.tries[job.name] <= retries:
            again = submit(job)
            running[again.key] = (job, again)
            queue.add(again)
            yield f"{job.name} failed, tried again: {error.strip().splitlines()[-1]}"
            continue
        report.states[job.name] = "failed" if error else "done"
        if error:
            report.errors[job.name] = error
        ended += 1
        left = (time.perf_counter() - began) / ended * (len(jobs) - ended) / 60
        yield f"{job.name} {report.states[job.name]}; {ended} of {len(jobs)}, about {left:.0f} min left"


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process; behind a URL nothing can be locked."""
    if not store.local:
        yield
        return
    from filelock import FileLock, Timeout

    make_folder(Path(store.root))
    try:
        lock = FileLock(Path(store.root) / ".lock").acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"another sweep is at work in {store.url}; wait for it or end it") from None
    with lock:
        yield
