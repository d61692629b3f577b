"""How many messages the records of a session have, remembered so that the latest ones are read by one request."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

from .._sync.fork import after_fork_in_child

# A turn is a human's message and the answer.
_BEFORE_ANY = 2.0
# For some records that have fewer messages than the others.
_MARGIN = 1.1
# A person's message and an agent's steps may take turns: the last record alone tells nothing of the next ones.
_RECORDS_REMEMBERED = 4
# Of some hundred bytes each.
_MAX_SESSIONS = 4_096
# More than one request reads, however many messages its records have.
_MAX_ASKED = 10**12


_Name = TypeVar("_Name", str, tuple[str, str])


class TypicalCounts:
    """The numbers of values in the records of a process's sessions: moving averages of those read or written last.

    A session that is not known is taken for one like the last one of its table.
    """

    def __init__(self) -> None:
        self._of_session: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._of_table: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def see(self, table_name: str, session: str, counts: Sequence[int]) -> None:
        """Remember the numbers of values of some records."""
        if not counts:
            return
        with self._lock:
            _average_in(self._of_session, (table_name, session), counts)
            _average_in(self._of_table, table_name, counts)

    def records_for(self, table_name: str, session: str, values: int) -> int:
        """Return how many records to ask for, for so many values."""
        with self._lock:
            typical = self._of_session.get((table_name, session)) or self._of_table.get(table_name) or _BEFORE_ANY
        # A float holds no integer of 309 digits.
        return max(1, math.ceil(_MARGIN * min(values, _MAX_ASKED) / typical))

    def forget_lock(self) -> None:
        """Begin with a new lock, because a fork may have copied one that was held."""
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
