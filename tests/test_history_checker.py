"""The checker finds each kind of fault, and nothing where there is none."""

from __future__ import annotations

import pytest
from history_checker import Operation, violations


def append(process: str, invoked: float, ended: float, *written: str, outcome: str = "ok") -> Operation:
    return Operation(process, "append", invoked, ended, outcome, written)  # type: ignore[arg-type]


def read(process: str, invoked: float, ended: float, *returned: str) -> Operation:
    return Operation(process, "read", invoked, ended, "ok", returned=returned)


def clear(process: str, invoked: float, ended: float, outcome: str = "ok") -> Operation:
    return Operation(process, "clear", invoked, ended, outcome)  # type: ignore[arg-type]


def pop(process: str, invoked: float, ended: float, *returned: str, outcome: str = "ok") -> Operation:
    return Operation(process, "pop", invoked, ended, outcome, returned=returned)  # type: ignore[arg-type]


def once(process: str, invoked: float, ended: float, *written: str, outcome: str = "ok") -> Operation:
    return Operation(process, "append", invoked, ended, outcome, written, key="k")  # type: ignore[arg-type]


AB = append("p", 0, 1, "a", "b")
C = append("q", 2, 3, "c")

GOOD = {
    "nothing": [],
    "a batch and another": [AB, C, read("p", 4, 5, "a", "b", "c")],
    "not acknowledged yet": [AB, append("q", 2, 6, "c"), read("p", 3, 4, "a", "b")],
    "concurrent appends in either order": [append("p", 0, 2, "a"), append("q", 1, 3, "b"), read("r", 4, 5, "b", "a")],
    "an append of unknown outcome that was stored": [append("p", 0, 1, "a", outcome="unknown"), read("q", 2, 3, "a")],
    "an append of unknown outcome that was not": [append("p", 0, 1, "a", outcome="unknown"), read("q", 2, 3)],
    "a clear": [AB, clear("q", 2, 3), read("p", 4, 5)],
    "a whole batch beside a clear": [AB, clear("q", 2, 5), read("p", 3, 4, "a", "b")],
    "a clear that was cancelled": [AB, clear("q", 2, 3, "unknown"), read("p", 4, 5, "a", "b")],
    "a batch that two have sent": [once("p", 0, 1, "a"), once("q", 2, 3, "a"), read("r", 4, 5, "a")],
    "a batch that is sent again after a clear": [once("p", 0, 1, "a"), clear("q", 2, 3), once("q", 4, 5, "a")],
    "a batch that is sent again after its sender has written": [
        once("p", 0, 1, "a"),
        append("q", 0, 1, "c"),
        once("q", 2, 3, "a"),
        read("r", 4, 5, "a", "c"),
    ],
    "another batch that was refused": [once("p", 0, 1, "a"), once("q", 2, 3, "b", outcome="refused")],
    "an append after a clear": [AB, clear("q", 2, 3), append("q", 4, 5, "c"), read("p", 6, 7, "c")],
    "a pop": [AB, pop("q", 2, 3, "b"), read("p", 4, 5, "a")],
    "a pop of unknown outcome": [AB, pop("q", 2, 3, outcome="unknown"), read("p", 4, 5, "a")],
}
BAD = {
    "lost": [AB, read("q", 2, 3)],
    "lost after a clear that had ended": [clear("q", -3, -2), AB, read("q", 2, 3)],
    "lost beside a pop of another": [AB, C, pop("q", 4, 5, "c"), read("q", 6, 7, "a")],
    "more lost than pops explain": [AB, pop("q", 2, 3, outcome="unknown"), read("p", 4, 5)],
    "doubled": [AB, read("q", 2, 3, "a", "b", "a")],
    "in part beside a clear": [AB, clear("q", 2, 5), read("p", 3, 4, "b")],
    "in part, and not the beginning": [AB, pop("q", 2, 3, "a"), read("p", 4, 5, "b")],
    "in more parts than pops explain": [
        append("p", 0, 1, "a", "b", "c"),
        pop("q", 2, 3, outcome="unknown"),
        read("p", 4, 5, "a"),
    ],
    "doubled by a key": [once("p", 0, 1, "a"), once("q", 2, 3, "a"), read("r", 4, 5, "a", "a")],
    "lost by a key": [once("p", 0, 1, "a", outcome="unknown"), once("q", 2, 3, "a"), read("r", 4, 5)],
    "revived by a key": [once("p", 0, 1, "a"), clear("q", 2, 3), once("q", 4, 5, "a"), read("r", 6, 7, "a")],
    "two batches of a key": [once("p", 0, 1, "a"), once("q", 2, 3, "b")],
    "two batches of a key, one of them unacknowledged": [
        once("p", 0, 1, "a"),
        once("q", 2, 3, "b", outcome="unknown"),
        read("r", 4, 5, "b", "a"),
    ],
    "before what its writer had written by a key": [
        once("p", 0, 1, "a"),
        once("q", 2, 3, "a"),
        append("q", 4, 5, "c"),
        read("r", 6, 7, "c", "a"),
    ],
    "in part": [append("p", 0, 1, "a", "b", outcome="unknown"), read("q", 2, 3, "a")],
    "reversed within a batch": [AB, read("q", 2, 3, "b", "a")],
    "divided": [append("p", 0, 5, "a", "b"), append("q", 1, 5, "c"), read("q", 6, 7, "a", "c", "b")],
    "before what its writer had written": [AB, append("p", 2, 3, "d"), read("q", 4, 5, "d", "a", "b")],
    "before what its writer had read": [AB, read("q", 1.2, 1.5, "a", "b"), C, read("p", 4, 5, "c", "a", "b")],
    "two orders": [
        append("p", 0, 3, "a"),
        append("q", 0, 3, "b"),
        read("r", 4, 5, "a", "b"),
        read("s", 6, 7, "b", "a"),
    ],
    "revived after a clear": [AB, clear("q", 2, 3), read("p", 4, 5, "a", "b")],
    "revived after a pop": [AB, pop("q", 2, 3, "b"), read("p", 4, 5, "a", "b")],
    "popped twice": [AB, pop("q", 2, 3, "b"), pop("p", 2, 3, "b")],
    "never written": [AB, read("q", 2, 3, "a", "b", "x")],
    "stored though refused": [append("p", 0, 1, "a", outcome="refused"), read("q", 2, 3, "a")],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD.keys())
def test_nothing_is_found_in(history: list[Operation]) -> None:
    assert violations(history) == []


def test_where_there_are_no_tombstones_what_a_clear_removes_may_be_stored_anew() -> None:
    history = [
        append("p", 0, 9, "a"),
        append("r", 1, 2, "b", outcome="unknown"),
        read("q", 3, 4, "a"),
        clear("r", 5, 6),
        append("q", 7, 8, "c"),
        read("r", 10, 11, "c", "a"),
    ]
    assert violations(history) != []
    assert violations(history, stored_anew=True) == []


@pytest.mark.parametrize("history", BAD.values(), ids=BAD.keys())
def test_a_fault_is_found(history: list[Operation]) -> None:
    assert violations(history) != []
