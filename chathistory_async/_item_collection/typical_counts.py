"""The typical number of messages in a session's records, so that one request usually reads enough of them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from .._sync.fork import after_fork_in_child

# The first guess: a turn is a human's message and the model's reply.
_BEFORE_ANY = 2.0
# A margin for records that have fewer messages than the average.
_MARGIN = 1.1
# An average of several records, because the last one alone is a bad guess: a person's message and an agent's steps may
# alternate.
_RECORDS_REMEMBERED = 4
# Each takes a few hundred bytes.
_MAX_SESSIONS = 4_096
# More messages than one request can read.
_MAX_ASKED = 10**12


_Name = TypeVar("_Name", str, tuple[str, str])


class TypicalCounts:
    """Moving averages of the number of values per record, for each session that the process reads or writes.

    An unknown session gets the average of its table. The first guess for an unknown table is 2 values.
    """

    def __init__(self) -> None:
        self._of_session: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._of_table: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def see(self, table_name: str, session: str, counts: Sequence[int]) -> None:
        """Add the numbers of values of some records to the averages."""
        if not counts:
            return
        with self._lock:
            _average_in(self._of_session, (table_name, session), counts)
            _average_in(self._of_table, table_name, counts)

    def records_for(self, table_name: str, session: str, values: int) -> int:
        """Return how many records to read to get ``values`` values, at least 1."""
        with self._lock:
            typical = self._of_session.get((table_name, session)) or self._of_table.get(table_name) or _BEFORE_ANY
        # A float cannot hold an integer of 309 digits.
        return max(1, math.ceil(_MARGIN * min(values, _MAX_ASKED) / typical))

    def forget_lock(self) -> None:
        """Replace the lock, because a fork may have copied it while a thread held it."""
        self._lock = threading.Lock()


def _average_in(averages: OrderedDict[_Name, float], name: _Name, counts: Sequence[int]) -> None:
    before = averages.get(name)
    known, number = (0.0, 0) if before is None else (before * _RECORDS_REMEMBERED, _RECORDS_REMEMBERED)
    averages[name] = (known + sum(counts)) / (number + len(counts))
    averages.move_to_end(name)
    if len(averages) > _MAX_SESSIONS:
        averages.popitem(last=False)


typical_counts = TypicalCounts()
after_fork_in_child(typical_counts.forget_lock)
