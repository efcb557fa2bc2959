"""The workers: this machine's, or a cluster that is there already."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

SECONDS_TO_ANSWER = 20
LOOPBACK = "127.0.0.1"


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES must say for each GPU that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",") if name.strip()] if visible is not None else None
    count = torch.cuda.device_count()
    return names[:count] if names is not None else [str(number) for number in range(count)]


def plan_workers(workers: int | None, threads: int | None) -> tuple[list[dict[str, Any]], int]:
    """The options of each worker of this machine, and the threads that torch gets in each.

    By default one worker for each GPU, or without one for each CPU core; `threads` shares the cores out. Every worker
    does one run at a time, on a GPU of its own if there is one (then workers are at most as many as GPUs). Raises
    ValueError for less than one, or more than four for each core.
    """
    devices, cores = gpus(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and not 1 <= value <= 4 * cores:
            raise ValueError(f"{name} must be at least 1 and at most four for each of {cores} cores, got {value}")
    if devices and workers is not None and workers > len(devices):
        raise ValueError(f"{workers} workers need as many GPUs, there are {len(devices)}; hide them to run on the CPU")
    count = workers or len(devices) or max(1, cores // (threads or 1))
    options: list[dict[str, Any]] = [{"nthreads": 1} for _ in range(count)]
    for option, device in zip(options, devices, strict=False):
        option["resources"] = {"GPU": 1}
        option["env"] = {"CUDA_VISIBLE_DEVICES": device}
    return options, threads or max(1, cores // count)


@contextmanager
def connect(address: str | None, workers: int | None, threads: int | None) -> Iterator[tuple[Client, int, bool]]:
    """A client of the cluster, the threads of a run, and whether a run asks for a worker's resource "GPU".

    address: of a scheduler, or the path of its JSON file; None starts workers here and ends them afterwards. Workers
    started here listen on the loopback interface only, and speak TLS with a key that exists in this sweep's memory
    alone: whoever can connect can run code. Raises OSError if no scheduler answers within 20 s, ValueError for
    impossible numbers.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError("a sweep needs Dask: pip install 'tpgm[batch]'") from error

    if address is not None:
        if workers is not None:
            raise ValueError("--workers is for this machine; a cluster has the workers it has")
        with distributed.Client(_answering(address), timeout=SECONDS_TO_ANSWER) as client:
            resources = [w.get("resources", {}) for w in client.scheduler_info(n_workers=-1)["workers"].values()]
            yield client, threads or 1, any("GPU" in resource for resource in resources)
        return
    options, each = plan_workers(workers, threads)
    with _interrupts_held_back():
        cluster = _local(options)
    with _quiet_when_interrupted(), cluster, distributed.Client(cluster, security=cluster.security) as client:
        yield client, each, "resources" in options[0]


def _local(options: list[dict[str, Any]]) -> Any:
    import dask
    import distributed
    from distributed.security import Security

    common = {
        "host": LOOPBACK,
        "protocol": "tls://",
        "security": (security := Security.temporary()),
        "silence_logs": logging.CRITICAL,
        "death_timeout": 60,
        "memory_limit": None,
    }
    own = {"host": LOOPBACK, "protocol": "tls://", "port": 0, "security": security, "dashboard": False}
    # each process has an HTTP server, which cannot be left out: it shows nothing
    routes: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with dask.config.set(routes):
        return distributed.SpecCluster(
            workers={i: {"cls": distributed.Nanny, "options": {**common, **o}} for i, o in enumerate(options)},
            scheduler={"cls": distributed.Scheduler, "options": {**own, "dashboard_address": f"{LOOPBACK}:0"}},
            security=security,
            silence_logs=logging.CRITICAL,
        )


def _answering(address: str) -> str:
    """The address, read from the scheduler's file if it is one, of a scheduler that has just answered."""
    from distributed import rpc
    from distributed.security import Security

    where = address
    if address.endswith(".json"):
        try:
            where = str(json.loads(Path(address).read_text(encoding="utf8"))["address"])
        except OSError as error:
            cure = "check the path, or start the scheduler that writes it first"
            reason = f"the scheduler's file {address} cannot be read: {error.strerror}; {cure}"
            raise OSError(error.errno, reason) from error
        except (KeyError, TypeError, ValueError) as error:
            cure = "give the file that dask scheduler --scheduler-file wrote"
            raise ValueError(f"{address} is no scheduler's file (it holds no address): {cure}") from error

    async def ask() -> Any:
        async with rpc(where, connection_args=Security().get_connection_args("client")) as scheduler:
            return await scheduler.identity()

    try:  # the client's own timeout does not hold for a port that is silent or speaks something else
        answer = asyncio.run(asyncio.wait_for(ask(), SECONDS_TO_ANSWER))
    except Exception as error:  # whatever a stranger's answer is read as
        raise OSError(f"no Dask scheduler at {address}: {error or type(error).__name__}") from error
    if not isinstance(answer, dict) or answer.get("type") != "Scheduler":
        raise OSError(f"no Dask scheduler at {address}: something else answers there")
    return where


@contextmanager
def _quiet_when_interrupted() -> Iterator[None]:
    """Dask gives its loggers their level back while it closes; what a broken connection says then is of no use."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except KeyboardInterrupt:
        raise  # the level stays: messages may come until the process ends
    except BaseException:
        logger.setLevel(level)
        raise
    logger.setLevel(level)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Threads and processes begun in here never see Ctrl-C; this thread does afterwards.

    A terminal sends it to every process of its group. The workers leave it to the sweep, which ends them, also those
    that are started again later: they come from a thread begun in here.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would let Ctrl-C through again if it had to start later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def end_is_interruption() -> Iterator[None]:
    """SIGTERM, which Slurm and Kubernetes send before they kill, is Ctrl-C in here (in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
