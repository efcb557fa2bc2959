"""Ctrl-C and SIGTERM as a request to stop where nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# SIGTERM is what batch systems send before a time limit
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requests(saved: bool) -> Iterator[threading.Event]:
    """Under this context the first Ctrl-C or SIGTERM sets the event and says at once what follows.

    The second one does what it would do without the context. saved: whether what was computed will be kept. In a thread
    other than the main one signals are left alone.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kept = (
        "the run is saved then, and the same call continues it" if saved else "without a folder (out) nothing is kept"
    )

    owner = os.getpid()

    def request(number: int, _: object) -> None:
        if os.getpid() != owner:
            return  # a process that reads images: the terminal's Ctrl-C comes to all, and one of them answers
        event.set()
        restore()
        name = signal.Signals(number).name
        print(f"\n{name}: stopping after this step; {kept}. Once more stops at once.", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, request) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield event
    finally:
        restore()
