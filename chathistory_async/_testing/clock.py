"""A clock that stands still until a test advances it."""

from __future__ import annotations

import time
from types import TracebackType

from .._wall_clock import replaced

_NS = 1_000_000_000


class FakeClock:
    """A clock that stands still until a test advances it. The library reads it while its context runs.

    Messages expire by this clock, and get their ``created_at`` and their order from it, in every thread and event loop
    of this process. Time-outs, retries and the five minutes of a KMS data key follow the real time. So do the SDK, the
    engine and other processes: a message that has expired by this clock is still in the table.

    The clock begins at the next whole second, because the expiry time is stored in whole seconds. A message with
    ``ttl=60`` therefore expires exactly at ``advance(60)``.
    """

    def __init__(self) -> None:
        self._time_ns = (time.time_ns() // _NS + 1) * _NS
        self._context = replaced(lambda: self._time_ns)

    def time(self) -> float:
        """Return the time, in seconds since the epoch, as ``time.time`` does."""
        return self._time_ns / _NS

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: ``seconds`` is negative. The library never writes a message before one that it has read.
        """
        if seconds < 0:
            raise ValueError(f"The clock cannot go back: {seconds} seconds")
        self._time_ns += round(seconds * _NS)

    def __enter__(self) -> FakeClock:
        """Have the library read this clock."""
        self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Have the library read the clock that it read before."""
        self._context.__exit__(kind, error, traceback)
