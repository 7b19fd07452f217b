"""Requests to end that wait until something short is done: a lock that is half released would stay behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Answer requests to end after the ``with`` block, in their order; handlers run in the main thread alone, so only there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))

    # None: a handler that was not set by Python, which cannot be put back.
    before: dict[int, Any] = {one: signal.getsignal(one) for one in _REQUESTS if signal.getsignal(one) is not None}
    for one in before:
        signal.signal(one, wait)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number, frame in waiting:
            if callable(before[number]):
                before[number](number, frame)
            elif before[number] == signal.SIG_DFL:
                signal.raise_signal(number)
