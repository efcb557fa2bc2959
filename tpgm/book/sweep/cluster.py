"""The workers: this machine's, or a cluster that is there already."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client


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
    does one run at a time, on a GPU of its own if there is one (then workers are at most as many as GPUs).
    """
    devices, cores = gpus(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
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

    address: of a scheduler, or the path of its JSON file; None starts workers here and ends them afterwards.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError("a sweep needs Dask: pip install 'tpgm[batch]'") from error

    if address is not None:
        if workers is not None:
            raise ValueError("--workers is for this machine; a cluster has the workers it has")
        where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
        try:
            client = distributed.Client(**where, timeout=20)
        except (OSError, TimeoutError) as error:
            raise OSError(f"no Dask scheduler at {address}: {error}") from error
        with client:
            resources = [w.get("resources", {}) for w in client.scheduler_info(n_workers=-1)["workers"].values()]
            yield client, threads or 1, any("GPU" in resource for resource in resources)
        return
    options, each = plan_workers(workers, threads)
    common = {"silence_logs": logging.CRITICAL, "death_timeout": 60, "memory_limit": None}
    with _interrupts_held_back():
        cluster = distributed.SpecCluster(
            workers={i: {"cls": distributed.Nanny, "options": {**common, **o}} for i, o in enumerate(options)},
            scheduler={
                "cls": distributed.Scheduler,
                "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": None},
            },
            silence_logs=logging.CRITICAL,
        )
    with _quiet_when_interrupted(), cluster, distributed.Client(cluster) as client:
        yield client, each, "resources" in options[0]


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
