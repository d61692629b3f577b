"""Sort keys of records and ids of messages: time-ordered, of one width, unique; the proof of their order stands here.

A sort key is ``m#tttttttttttttttt-nnnnnnnnnnnnnnnn-pp``, all in lower-case hexadecimal digits:

- t, the tick: milliseconds since the epoch in its first 48 bits, a counter in its last 16;
- n, the nonce: 64 random bits;
- p, the part of the record, 00 unless the record is too large for one item.

A message has the id ``t-n-iiiiii``: its record, and its position in the record as it was appended. ``t-n`` is the id of
the whole record.

Order. DynamoDB orders text by its UTF-8 bytes, and digits of a fixed width are ordered so as their numbers are.

1. *A batch stays together and in order.* It is one record, whose messages share t and n, and have the order of their
   positions. Two records differ in t or in n, both of which come before the position, so all messages of one come
   before all of the other. The same holds for a record's parts.
2. *What was seen comes before what is written*, on any host's clock. A tick is taken from the hybrid logical clock
   (Kulkarni and others, 2014: https://cse.buffalo.edu/tech-reports/2014-04.pdf) of the session: it is the greater of
   the time and of one more than the latest tick that the process has read or written in it, hence greater than each of
   those. By 1, all messages that were seen come before all that are written.
   A process keeps the clocks of the sessions that it used last. What a clock that it drops had seen is at most the
   floor, from which every clock that is made later begins. So this holds for a session whose clock was dropped, too.
   The floor never rises to a tick that lies more than MAX_FLOOR_LEAD_MS ahead of the time: one session with a false
   time would give all others that time. Only such a session can lose what a dropped clock had seen, until it is read.
3. *A clock that goes back orders nothing backwards*, within a process: its time is the latest that the process has
   read, over all of its handles.
4. *What is moved here from another table comes first*: its records have one nonce, and their ticks grow from one that
   is MAX_MOVED less than that of the first record that was there, and so far back that no clock tells it any more. By 1
   and 2, it comes before what was there and before all that is written from then on, whenever it is stored itself.

A tick that lies more than MAX_LEAD_MS ahead of the time is impossible. No clock follows it, because a clock that did
could run out of ticks, and nothing is appended to a session while the latest record there has such a tick.

Two records of one tick are concurrent: neither's writer had seen the other's. n decides between them. That two records
have the same t and n happens once in 2**64 such pairs.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple
from weakref import WeakValueDictionary

from .._sync.fork import after_fork_in_child

PREFIX = "m#"
# Positions have six digits.
MAX_VALUES = 16**6
# Of messages that are moved to one session from another table.
MAX_MOVED = 16**6
_COUNTER_BITS = 16
_RECORD = r"[0-9a-f]{16}-[0-9a-f]{16}"
_FORM = re.compile(f"{PREFIX}{_RECORD}-[0-9a-f]{{2}}")
_FORM_OF_FIRST_PART = re.compile(f"{PREFIX}{_RECORD}-00")
_FORM_OF_ID = re.compile(f"({_RECORD})(?:-([0-9a-f]{{6}}))?")
_DAY_MS = 24 * 3600 * 1000
# A century: a clock that was never set stands in 1970, and may read what was written today. The 48 bits of a tick's
# time last until the year 10889.
MAX_LEAD_MS = 36_525 * _DAY_MS
# AWS refuses what is signed a quarter of an hour ahead of its own time, so that no honest clock comes near a day.
MAX_FLOOR_LEAD_MS = _DAY_MS
# The last second of the year 9999, at which Python's calendar ends.
_LAST_SECOND = 253_402_300_799


class SortKey(str):
    """A sort key: its text, which Python orders as DynamoDB does, and the fields in it, read when they are asked for.

    Every item that is read makes one: as a tuple of its fields it takes 1.25 times as long, as a dataclass 1.7 times.
    """

    __slots__ = ()

    def __new__(cls, tick: int, nonce: str, part: int = 0) -> SortKey:
        return str.__new__(cls, f"{PREFIX}{tick:016x}-{nonce}-{part:02x}")

    @classmethod
    def of(cls, text: str) -> SortKey:
        """Return the sort key of a text that has the form of one."""
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
        """The writer's time, in seconds since the epoch; ahead of its clock where it had seen a later message.

        Of a key that claims a time beyond the calendar it is the calendar's last second.
        """
        return min((self.tick >> _COUNTER_BITS) / 1000, _LAST_SECOND)

    def of_part(self, part: int) -> SortKey:
        return SortKey.of(f"{self[:-2]}{part:02x}")


def parse(text: str) -> SortKey | None:
    """Return the sort key that a text is, or None."""
    return SortKey.of(text) if _FORM.fullmatch(text) else None


def record_id_of(key: str) -> str:
    """Return the id of the record that the text of a sort key belongs to."""
    return key[len(PREFIX) : -3]


def message_id_of(key: str, position: int) -> str:
    """Return the id of the message at a position of the record that the text of a sort key belongs to."""
    return f"{key[len(PREFIX) : -3]}-{position:06x}"


class RecordPosition(NamedTuple):
    """What an id names: a record's sort key, and the position of a message in it, None for the whole record."""

    key: SortKey
    position: int | None


def parse_id(text: object) -> RecordPosition:
    """Return what an id names.

    Raises:
        ValueError: it is not an id.
    """
    found = _FORM_OF_ID.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{text!r} is not an id of a message, nor a cursor")
    key = SortKey.of(f"{PREFIX}{found[1]}-00")
    return RecordPosition(key, None if found[2] is None else int(found[2], 16))


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
        latest: the tick to begin behind.

    Attributes:
        latest: the greatest tick that was seen or made.
        saw_impossible_key: whether a sort key was seen that no clock can have made.
    """

    __slots__ = ("__weakref__", "_now_ms", "latest", "saw_impossible_key")

    def __init__(self, now_ms: Callable[[], int] = _wall_clock_ms, latest: int = 0) -> None:
        self._now_ms = now_ms
        self.latest = latest
        self.saw_impossible_key = False

    def is_possible(self, key: SortKey) -> bool:
        """Tell whether a clock can have made a sort key."""
        return key.tick >> _COUNTER_BITS <= self._now_ms() + MAX_LEAD_MS

    def see(self, key: SortKey) -> None:
        """Order what is written from now on after this, unless no clock can have made it."""
        if self.is_possible(key):
            with _lock:
                self.latest = max(self.latest, key.tick)
        else:
            self.saw_impossible_key = True
        _clocks.keep(self)

    def recover(self) -> None:
        """Forget that an impossible sort key was seen, because none is there any more."""
        self.saw_impossible_key = False

    def next_key(self) -> SortKey:
        """Return the sort key of a new record."""
        now = self._now_ms() << _COUNTER_BITS
        with _lock:
            self.latest = tick = max(self.latest + 1, now)
        _clocks.keep(self)
        return SortKey(tick, secrets.token_hex(8))


def key_of_first_moved(first: SortKey | None, seconds: int) -> SortKey:
    """Return the sort key of the first record that is moved here, so far back and MAX_MOVED ticks before another."""
    tick = (_wall_clock_ms() - 1000 * seconds) << _COUNTER_BITS
    if first is not None:
        tick = min(tick, max(0, first.tick - 1 - MAX_MOVED))
    return SortKey(tick, secrets.token_hex(8))


# Of less than 1 KB each.
MAX_CLOCKS = 4_096


class Clocks:
    """The clocks of a process, one a session: all that somebody holds, and of the others those that changed last."""

    def __init__(self) -> None:
        self._of_session: WeakValueDictionary[tuple[str, str], Clock] = WeakValueDictionary()
        self._changed_last: OrderedDict[Clock, None] = OrderedDict()
        self._floor = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._of_session)

    def of(self, table_name: str, session: str) -> Clock:
        """Return the clock that all handles on a session share: one may be made to read, and another to write."""
        with self._lock:
            clock = self._of_session.get((table_name, session))
            if clock is None:
                clock = self._of_session[table_name, session] = Clock(latest=self._floor)
            return clock

    def keep(self, clock: Clock) -> None:
        """Keep a clock that has changed, and drop the one whose last change is the longest ago if there are too many.

        A clock that is dropped while somebody holds it stays the session's, and is kept again when it changes.
        """
        with self._lock:
            self._changed_last[clock] = None
            self._changed_last.move_to_end(clock)
            if len(self._changed_last) > MAX_CLOCKS:
                dropped, _ = self._changed_last.popitem(last=False)
                if dropped.latest >> _COUNTER_BITS <= _wall_clock_ms() + MAX_FLOOR_LEAD_MS:
                    self._floor = max(self._floor, dropped.latest)

    def forget_lock(self) -> None:
        """Begin with a new lock, because a fork may have copied one that was held."""
        self._lock = threading.Lock()


_clocks = Clocks()
clock_of = _clocks.of


def _forget_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _clocks.forget_lock()


after_fork_in_child(_forget_in_child)
