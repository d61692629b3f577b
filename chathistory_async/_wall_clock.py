"""The time of day, by which messages are ordered and expire. Time-outs, pauses and ages follow a monotonic clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import time_ns

from ._sync.fork import after_fork_in_child

_time_ns: Callable[[], int] = time_ns
_latest_ms = 0
_lock = threading.Lock()


def now() -> int:
    """Return the time, in seconds since the epoch."""
    return _time_ns() // 1_000_000_000


def latest_ms() -> int:
    """Return the latest time that this process has read here, in milliseconds since the epoch. It never goes back."""
    global _latest_ms
    with _lock:
        _latest_ms = max(_latest_ms, _time_ns() // 1_000_000)
        return _latest_ms


@contextmanager
def replaced(clock_ns: Callable[[], int]) -> Iterator[None]:
    """Have this process read another clock, for a test. When the context ends, the time of that clock is forgotten.

    Args:
        clock_ns: returns the time, in nanoseconds since the epoch.
    """
    global _time_ns, _latest_ms
    before = _time_ns, _latest_ms
    _time_ns = clock_ns
    try:
        yield
    finally:
        _time_ns, _latest_ms = before


def _forget_in_child() -> None:
    global _lock
    _lock = threading.Lock()


after_fork_in_child(_forget_in_child)
