"""Sort keys of messages: time-ordered, of one width, unique; the proof of their order stands here.

A sort key is ``m#tttttttttttttttt-rrrrrrrrrrrrrrrr-iiiiii-pp``, all in lower-case hexadecimal digits:

- t, the tick: milliseconds since the epoch in its first 48 bits, a counter in its last 16;
- r, the batch: 64 random bits;
- i, the index of the message in its batch;
- p, the part of the message, 00 unless it is too large for one item.

Order. DynamoDB orders text by its UTF-8 bytes, and digits of a fixed width are ordered so as their numbers are.

1. *A batch stays together and in order.* Its messages share t and r and differ in i. Two batches differ in r or in t,
   both of which come before i, so all of one batch comes before all of the other. The same holds for a message's parts.
2. *What was seen comes before what is written*, on any host's clock. A tick is taken from the hybrid logical clock
   (Kulkarni and others, 2014: https://cse.buffalo.edu/tech-reports/2014-04.pdf) of the session: it is the greater of
   the time and of one more than the latest tick that the process has read or written in it, hence greater than each of
   those. By 1, all messages that were seen come before all that are written.
3. *A clock that goes back orders nothing backwards*, within a process: its time is the latest that the process has
   read, over all of its handles.
4. *What is moved here from another table comes first*: it is one batch, whose tick is less than that of the first
   message that was there, and so far back that no clock tells it any more. By 1 and 2, it comes before what was there
   and before all that is written from then on, whenever it is stored itself.

Two batches of one tick are concurrent: neither's writer had seen the other's. r decides between them. That two batches
have the same t and r happens once in 2**64 such pairs.
"""

from __future__ import annotations

import functools
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable

from ._fork import after_fork_in_child

PREFIX = "m#"
MAX_INDEX = 16**6
MAX_PARTS = 16**2
_COUNTER_BITS = 16
_MESSAGE = PREFIX + r"[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{6}"
_FORM = re.compile(_MESSAGE + "-[0-9a-f]{2}")
_FORM_OF_FIRST_PART = re.compile(_MESSAGE + "-00")
# Far beyond any clock, so that no tick of this size comes from one; and far below the last one that fits.
_MAX_TICK = 2**63


class SortKey(str):
    """A sort key: its text, which Python orders as DynamoDB does, and the fields in it, read when they are asked for.

    Every item that is read makes one: as a tuple of its fields it takes 1.25 times as long, as a dataclass 1.7 times.
    """

    __slots__ = ()

    def __new__(cls, tick: int, batch: str, index: int, part: int = 0) -> SortKey:
        return str.__new__(cls, f"{PREFIX}{tick:016x}-{batch}-{index:06x}-{part:02x}")

    @property
    def tick(self) -> int:
        return int(self[2:18], 16)

    @property
    def batch(self) -> str:
        return self[19:35]

    @property
    def part(self) -> int:
        return int(self[-2:], 16)

    @property
    def is_first_part(self) -> bool:
        return self.endswith("-00")

    @property
    def created_at(self) -> float:
        """The writer's time, in seconds since the epoch; ahead of its clock where it had seen a later message."""
        return (self.tick >> _COUNTER_BITS) / 1000

    def of_part(self, part: int) -> SortKey:
        return str.__new__(SortKey, f"{self[:-2]}{part:02x}")


def parse(text: str) -> SortKey | None:
    """Return the sort key that a text is, or None."""
    return str.__new__(SortKey, text) if _FORM.fullmatch(text) else None


def are_of_first_parts(texts: Iterable[str]) -> bool:
    """Tell whether all of these are sort keys, and of first parts."""
    return all(map(_FORM_OF_FIRST_PART.fullmatch, texts))


# Over all handles of the process: see 3 above.
_latest_time_ms = 0
_lock = threading.Lock()


def _wall_clock_ms() -> int:
    global _latest_time_ms
    with _lock:
        _latest_time_ms = max(_latest_time_ms, time.time_ns() // 1_000_000)
        return _latest_time_ms


class Clock:
    """The hybrid logical clock of one session in one process.

    Args:
        now_ms: tells the time, in milliseconds since the epoch.
    """

    def __init__(self, now_ms: Callable[[], int] = _wall_clock_ms) -> None:
        self._now_ms = now_ms
        self._latest = 0

    def see(self, key: SortKey) -> None:
        """Order what is written from now on after this."""
        with _lock:
            self._latest = max(self._latest, key.tick)

    def recover(self) -> None:
        """Begin anew if a sort key was seen that no clock can have made, because it is not there any more."""
        with _lock:
            if self._latest >= _MAX_TICK:
                self._latest = 0

    def next_batch(self) -> SortKey:
        """Return the sort key of the first message of a new batch.

        Raises:
            OverflowError: a sort key was seen that no clock can have made.
        """
        now = self._now_ms() << _COUNTER_BITS
        with _lock:
            self._latest = max(self._latest + 1, now)
            if self._latest >= _MAX_TICK:
                raise OverflowError("A stored message claims a time that no clock can have told")
            return SortKey(self._latest, secrets.token_hex(8), 0)


def batch_before(first: SortKey | None, seconds: int) -> SortKey:
    """Return the sort key of the first message of a new batch that comes before another and lies so far back."""
    tick = (_wall_clock_ms() - 1000 * seconds) << _COUNTER_BITS
    if first is not None:
        tick = min(tick, max(0, first.tick - 1))
    return SortKey(tick, secrets.token_hex(8), 0)


# About 1 KB each.
_MAX_CLOCKS = 4_096


@functools.lru_cache(_MAX_CLOCKS)
def clock_of(table_name: str, session: str) -> Clock:
    """Return the clock that all handles on a session share: one may be made to read, and another to write."""
    return Clock()


def _forget_in_child() -> None:
    global _lock
    _lock = threading.Lock()


after_fork_in_child(_forget_in_child)
