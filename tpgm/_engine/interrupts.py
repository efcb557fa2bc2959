"""Signals that would raise in the middle of an exchange wait until everything is in its place again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

# Ctrl-C, and what batch systems and timers send; those without a handler in Python cannot raise
_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
R = TypeVar("R")


class _Held:
    """Handlers of one region. open: signals pass on to the handlers of before; the first that raises closes it."""

    def __init__(self) -> None:
        self.open = False
        self.before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.waiting: list[tuple[int, FrameType | None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.open:
            self.waiting.append((number, frame))
            return
        self.open = False
        self.before[number](number, frame)
        self.open = True


_held: list[_Held] = []  # the region of the main thread, if one is entered


@contextmanager
def held() -> Iterator[None]:
    """Signals come when the context is left, and within `passing`. Only the main thread gets signals in Python.

    A region within a region is part of the outer one.
    """
    if _held or threading.current_thread() is not threading.main_thread():
        yield
        return
    region = _Held()
    try:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                region.before[number] = handler
                signal.signal(number, region)
        _held.append(region)
        yield
    finally:
        _held.clear()
        for number, handler in reversed(region.before.items()):
            if signal.getsignal(number) is region:  # a handler may have put another in its place
                signal.signal(number, handler)
        for number, frame in region.waiting:
            region.before[number](number, frame)


def passing(call: Callable[[], R]) -> R:
    """What `call` returns; within `held`, signals reach their handlers meanwhile."""
    if not _held or threading.current_thread() is not threading.main_thread():
        return call()
    region = _held[0]
    try:
        region.open = True
        deliver()
        return call()
    finally:
        region.open = False  # if a signal raises right here, its handler has closed the region


def deliver() -> None:
    """Give the signals that wait to their handlers; for a moment at which nothing is out of its place."""
    if _held and threading.current_thread() is threading.main_thread():
        region = _held[0]
        while region.waiting:
            number, frame = region.waiting.pop(0)
            region.before[number](number, frame)
