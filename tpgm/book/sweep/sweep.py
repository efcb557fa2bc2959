"""Run a plan: skip what is done, spread the rest over workers, retry, report."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpgm.book.sweep.cluster import connect
from tpgm.book.sweep.grid import Plan
from tpgm.book.sweep.jobs import Job
from tpgm.book.sweep.store import Store
from tpgm.book.sweep.work import TOPIC, Outcome, perform

if TYPE_CHECKING:
    from distributed import Client, Future


@dataclass
class Summary:
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
        rows = {row["run"]: row for row in self.rows}
        width = max(map(len, self.states), default=3)
        lines = [f"{'run':{width}}  state   tries  seconds     ID    OOD"]
        for name, state in self.states.items():
            row = rows.get(name, {})
            seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
            id_, ood = (f"{100 * row[key]:.1f}" if row.get(key) is not None else "" for key in ("id", "ood"))
            lines.append(f"{name:{width}}  {state:6}  {self.tries[name]:5}  {seconds:>7}  {id_:>5}  {ood:>5}".rstrip())
        count = Counter(self.states.values())
        before = sum(s == "done" and not self.tries[n] for n, s in self.states.items())
        lines.append(
            f"{count['done']} done ({before} of them before), {count['failed']} failed, in {self.seconds:.0f} s"
        )
        return "\n".join(lines)


def sweep(
    plan: Plan,
    out: str | Path,
    *,
    retries: int = 1,
    scheduler: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Summary:
    """Compute what has no row in `out` yet; returns what became of every run.

    out: a folder or fsspec URL that this process and all workers can reach; the whole state is there, so a sweep that
    was killed goes on when called again, and what failed is tried again. retries: further computations of a run that
    fails. scheduler: address (or JSON file) of a Dask cluster; by default this machine with `workers` processes, one
    run at a time in each, `threads` for each run. A run whose worker dies is given to another worker.

    Raises ValueError for impossible numbers, RuntimeError if another sweep is at work in the same folder.
    """
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    store, summary, began = Store(out), Summary(), time.perf_counter()
    with _alone(store):
        store.tidy()
        rows = store.gather([])
        with _Display(progress) as display, _workers(scheduler, workers, threads) as start:
            while due := [job for job in plan.due(rows) if job.name not in summary.states]:
                done = store.done()
                for job in due:
                    if job.name in done:
                        summary.states[job.name] = "done"
                todo = [job for job in due if job.name not in done]
                display.expect(len(due), len(due) - len(todo))
                if todo:
                    client, each, gpu = start()
                    _run(client, todo, store, retries, each, gpu, summary, display)
                rows = store.gather([job.name for job in due])
        summary.rows = store.gather(list(summary.states))
    summary.seconds = time.perf_counter() - began
    return summary


def _run(
    client: Client,
    jobs: list[Job],
    store: Store,
    retries: int,
    threads: int,
    gpu: bool,
    summary: Summary,
    display: _Display,
) -> None:
    from distributed import as_completed

    def submit(job: Job) -> Future:
        summary.tries[job.name] += 1
        # on a shared cluster the same key is the same task: a second client waits for it instead of computing again
        key = f"{job.name}-{summary.tries[job.name]}"
        resources = {"GPU": 1} if gpu else None
        return client.submit(perform, job, store.url, threads, key=key, pure=False, resources=resources)

    display.watch(client)
    running = {future.key: (job, future) for job in jobs for future in [submit(job)]}
    queue = as_completed([future for _, future in running.values()])
    for future in queue:
        job, _ = running.pop(future.key)
        outcome = _outcome(job, future)
        if outcome.state == "failed" and summary.tries[job.name] <= retries:
            again = submit(job)
            running[again.key] = (job, again)
            queue.add(again)
            display.say(f"{job.name} failed, tried again: {outcome.error.strip().splitlines()[-1]}")
            continue
        failed = outcome.state == "failed"
        summary.states[job.name] = "failed" if failed else "done"
        if failed:
            summary.errors[job.name] = outcome.error
        display.ended(job.name, failed)


def _outcome(job: Job, future: Future) -> Outcome:
    """What a task came to; an error here is no run's own, but a worker's that died again and again, or the store's."""
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else None
    return Outcome(job.name, "failed", f"{type(error).__name__}: {error}" if error else f"the task was {future.status}")


class _Display:
    """Live: done, running, failed, time left. A bar on a terminal, else a line for each run that ends."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.live = shown, shown and sys.stderr.isatty()
        self.running: set[str] = set()
        self.done = self.failed = self.total = self.before = 0
        self.began = time.perf_counter()

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            print(file=sys.stderr)

    def expect(self, due: int, before: int) -> None:
        """So many runs more, so many of them done before."""
        self.total += due
        self.done += before
        self.before += before
        self._draw()

    def watch(self, client: Client) -> None:
        client.subscribe_topic(TOPIC, self._event)

    def _event(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        (self.running.add if message["started"] else self.running.discard)(message["name"])
        self._draw()

    def ended(self, name: str, failed: bool) -> None:
        self.running.discard(name)
        self.failed += failed
        self.done += not failed
        self._draw()
        if self.shown and not self.live:
            print(f"{name} {'failed' if failed else 'done'}; {self.line()}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self.shown:
            print(f"\r\x1b[K{text}" if self.live else text, file=sys.stderr, flush=True)

    def line(self) -> str:
        now = self.done + self.failed - self.before
        left = self.total - self.done - self.failed
        seconds = (time.perf_counter() - self.began) / now * left if now else None
        time_left = "" if seconds is None else f", about {_duration(seconds)} left"
        return f"{self.done} of {self.total} done, {len(self.running)} running, {self.failed} failed{time_left}"

    def _draw(self) -> None:
        if self.live:
            print(f"\r\x1b[K{self.line()}", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def _workers(
    scheduler: str | None, workers: int | None, threads: int | None
) -> Iterator[Callable[[], tuple[Client, int, bool]]]:
    """What starts or finds the workers when first asked: a sweep with nothing to do needs none."""
    with ExitStack() as stack:
        found: list[tuple[Client, int, bool]] = []

        def start() -> tuple[Client, int, bool]:
            if not found:
                found.append(stack.enter_context(connect(scheduler, workers, threads)))
            return found[0]

        yield start


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process; behind a URL nothing can be locked."""
    if not store.local:
        yield
        return
    from filelock import FileLock, Timeout

    Path(store.root).mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(Path(store.root) / ".lock").acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"another sweep is at work in {store.url}; wait for it or end it") from None
    with lock:
        yield
