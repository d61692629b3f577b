"""Sort keys of records and ids of messages: time-ordered, unique, all of one width. This text proves their order.

A sort key is ``m#tttttttttttttttt-nnnnnnnnnnnnnnnn-pp``, all in lower-case hexadecimal digits:

- t, the tick: milliseconds since the epoch in its first 48 bits, a counter in its last 16;
- n, the nonce: 64 random bits;
- p, the part of the record, 00 unless the record is too large for one item.

A message has the id ``t-n-iiiiii``: the id of its record, ``t-n``, and its position in the record when the record was
appended.

Order. DynamoDB orders text by its UTF-8 bytes. Digits of a fixed width have the same order as their numbers.

1. *A batch stays together and in order.* A batch is one record. Its messages share t and n, and are ordered by their
   positions. Two records differ in t or in n, both of which come before the position. So all messages of one record
   come before all messages of the other. The same holds for a record's parts.
2. *Messages that a process has seen come before messages that it writes*, whatever the hosts' clocks say. A tick is
   taken from the session's hybrid logical clock (Kulkarni and others, 2014:
   https://cse.buffalo.edu/tech-reports/2014-04.pdf). The tick is the greater of the current time and of one more than
   the latest tick that the process has read or written in the session. So the tick is greater than all of those. By 1,
   all messages that were seen come before all messages that are written.
   A process keeps only the clocks of the sessions that changed last. When it drops a clock, it raises the floor to the
   latest tick of that clock. Every new clock begins at the floor, so the order also holds for a session whose clock was
   dropped. The floor never rises to a tick that is more than MAX_FLOOR_LEAD_MS ahead of the time, because then one
   session with a wrong time would pass that time on to all other sessions. Only a session with such a tick can forget
   what its dropped clock had seen, until the session is read again.
3. *A clock that goes back reverses no order* within a process. The process uses the latest time that any of its handles
   has read.
4. *Messages that are moved here from another table come first.* Their records have one nonce. Their ticks grow from a
   tick that is so far back that no host's clock shows it any more, and at least MAX_MOVED less than the tick of the
   first record that was there. By 1 and 2, moved messages come before the messages that were there, and before all
   messages that are written from then on, no matter when the moved messages are stored.

A tick that is more than MAX_LEAD_MS ahead of the time is impossible. No clock follows such a tick, because the clock
could run out of ticks. Nothing is appended to a session while its latest record has an impossible tick.

Two records with the same tick are concurrent: neither writer had seen the other's record. Their order is that of n. One
in 2**64 such pairs has the same n too.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple
from weakref import WeakValueDictionary

from .._sync.fork import after_fork_in_child
from .._wall_clock import latest_ms

PREFIX = "m#"
# Positions have six hexadecimal digits.
MAX_VALUES = 16**6
# How many messages can be moved to one session from another table.
MAX_MOVED = 16**6
_COUNTER_BITS = 16
_RECORD = r"[0-9a-f]{16}-[0-9a-f]{16}"
_FORM = re.compile(f"{PREFIX}{_RECORD}-[0-9a-f]{{2}}")
_FORM_OF_FIRST_PART = re.compile(f"{PREFIX}{_RECORD}-00")
_FORM_OF_ID = re.compile(f"({_RECORD})(?:-([0-9a-f]{{6}}))?")
_DAY_MS = 24 * 3600 * 1000
# A century: a host whose clock was never set is in 1970, and must be able to read messages that are written today. The
# 48 bits of a tick's time last until the year 10889.
MAX_LEAD_MS = 36_525 * _DAY_MS
# AWS refuses a request that is signed a quarter of an hour ahead of AWS's time, so the clock of a working host is never
# near a day ahead.
MAX_FLOOR_LEAD_MS = _DAY_MS
# The last second of the year 9999, at which Python's calendar ends.
_LAST_SECOND = 253_402_300_799


class SortKey(str):
    """A sort key as text, which Python orders as DynamoDB does. The properties parse its fields on demand.

    Reading an item makes a sort key. A tuple of the fields would take 1.25 times as long, a dataclass 1.7 times.
    """

    __slots__ = ()

    def __new__(cls, tick: int, nonce: str, part: int = 0) -> SortKey:
        return str.__new__(cls, f"{PREFIX}{tick:016x}-{nonce}-{part:02x}")

    @classmethod
    def of(cls, text: str) -> SortKey:
        """Return a text as a sort key. The text must have the form of a sort key, which is not checked."""
        return str.__new__(cls, text)

    @property
    def tick(self) -> int:
        return int(self[2:18], 16)

    @property
    def nonce(self) -> str:
        return self[19:35]

    @property
    def part(self) -> int:
        return int(self[-2:], 16)

    @property
    def is_first_part(self) -> bool:
        return self.endswith("-00")

    @property
    def created_at(self) -> float:
        """The writer's time, in seconds since the epoch.

        It is ahead of the writer's clock if the writer had seen a later message. For a time after the year 9999, it is
        the last second of that year.
        """
        return min((self.tick >> _COUNTER_BITS) / 1000, _LAST_SECOND)

    def of_part(self, part: int) -> SortKey:
        return SortKey.of(f"{self[:-2]}{part:02x}")


def parse(text: str) -> SortKey | None:
    """Return a text as a sort key, or None if it does not have the form of a sort key."""
    return SortKey.of(text) if _FORM.fullmatch(text) else None


def record_id_of(key: str) -> str:
    """Return the id of the record that has this sort key."""
    return key[len(PREFIX) : -3]


def message_id_of(key: str, position: int) -> str:
    """Return the id of the message at a position of the record that has this sort key."""
    return f"{key[len(PREFIX) : -3]}-{position:06x}"


class RecordPosition(NamedTuple):
    """The parsed form of an id: a record's sort key, and a message's position in it or None for the whole record."""

    key: SortKey
    position: int | None


def parse_id(text: object) -> RecordPosition:
    """Parse the id of a message or record.

    Raises:
        ValueError: the text is not an id.
    """
    found = _FORM_OF_ID.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{text!r} is not an id of a message, nor a cursor")
    key = SortKey.of(f"{PREFIX}{found[1]}-00")
    return RecordPosition(key, None if found[2] is None else int(found[2], 16))


def are_of_first_parts(texts: Iterable[str]) -> bool:
    """Return whether all texts are sort keys of first parts."""
    return all(map(_FORM_OF_FIRST_PART.fullmatch, texts))


_lock = threading.Lock()


class Clock:
    """The hybrid logical clock of one session in one process.

    Args:
        now_ms: returns the time, in milliseconds since the epoch.
        latest: the tick after which the clock begins.

    Attributes:
        latest: the greatest tick that the clock has seen or made.
        saw_impossible_key: whether the clock has seen an impossible sort key, which no clock can have made.
    """

    __slots__ = ("__weakref__", "_now_ms", "latest", "saw_impossible_key")

    def __init__(self, now_ms: Callable[[], int] = latest_ms, latest: int = 0) -> None:
        self._now_ms = now_ms
        self.latest = latest
        self.saw_impossible_key = False

    def is_possible(self, key: SortKey) -> bool:
        """Return whether a sort key is at most MAX_LEAD_MS ahead of the time."""
        return key.tick >> _COUNTER_BITS <= self._now_ms() + MAX_LEAD_MS

    def see(self, key: SortKey) -> None:
        """Move the clock past a sort key, so that later keys come after it. An impossible key is only remembered."""
        if self.is_possible(key):
            with _lock:
                self.latest = max(self.latest, key.tick)
        else:
            self.saw_impossible_key = True
        _clocks.keep(self)

    def recover(self) -> None:
        """Forget that an impossible sort key was seen, because the session has none any more."""
        self.saw_impossible_key = False

    def next_key(self) -> SortKey:
        """Return the sort key of a new record, which comes after all keys that were seen or made."""
        now = self._now_ms() << _COUNTER_BITS
        with _lock:
            self.latest = tick = max(self.latest + 1, now)
        _clocks.keep(self)
        return SortKey(tick, secrets.token_hex(8))


def key_of_first_moved(first: SortKey | None, seconds: int) -> SortKey:
    """Return the sort key of the first record that is moved here from another table.

    Args:
        first: the sort key of the session's first record, or None. The result is more than MAX_MOVED ticks before it.
        seconds: how many seconds before the current time the result is at least.
    """
    tick = (latest_ms() - 1000 * seconds) << _COUNTER_BITS
    if first is not None:
        tick = min(tick, max(0, first.tick - 1 - MAX_MOVED))
    return SortKey(tick, secrets.token_hex(8))


# Each takes less than 1 KB.
MAX_CLOCKS = 4_096


class Clocks:
    """The clocks of a process, one per session: all that a handle holds, and those of the rest that changed last."""

    def __init__(self) -> None:
        self._of_session: WeakValueDictionary[tuple[str, str], Clock] = WeakValueDictionary()
        self._changed_last: OrderedDict[Clock, None] = OrderedDict()
        self._floor = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._of_session)

    def of(self, table_name: str, session: str) -> Clock:
        """Return the clock of a session, or a new one that begins at the floor.

        All handles share the clock, because one handle may read the session and another one write to it.
        """
        with self._lock:
            clock = self._of_session.get((table_name, session))
            if clock is None:
                clock = self._of_session[table_name, session] = Clock(latest=self._floor)
            return clock

    def keep(self, clock: Clock) -> None:
        """Keep a clock that has changed. Above MAX_CLOCKS, drop the clock that has not changed for the longest time.

        A clock that is dropped while a handle holds it remains the session's clock, and is kept again when it changes.
        """
        with self._lock:
            self._changed_last[clock] = None
            self._changed_last.move_to_end(clock)
            if len(self._changed_last) > MAX_CLOCKS:
                dropped, _ = self._changed_last.popitem(last=False)
                if dropped.latest >> _COUNTER_BITS <= latest_ms() + MAX_FLOOR_LEAD_MS:
                    self._floor = max(self._floor, dropped.latest)

    def forget_lock(self) -> None:
        """Replace the lock, because a fork may have copied it while a thread held it."""
        self._lock = threading.Lock()


_clocks = Clocks()
clock_of = _clocks.of


def _forget_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _clocks.forget_lock()


after_fork_in_child(_forget_in_child)
