"""The targets, compared with the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from . import footprint, tracing, turns
from .measure import Row, Spread, find, ratio, spread
from .put_peers import DYNAMOXY
from .reading import IN_TWOS
from .sync_and_encryption import ENCRYPTED, SHORT, SYNC, SYNC_METHODS
from .variants import AIOBOTO3, AIODYNAMO, ITEM_COLLECTION, OURS, SINGLE_ITEM, UPSTREAM

# The rows of each benchmark, by its name.
Results: TypeAlias = Mapping[str, Sequence[Row]]


@dataclass
class Goal:
    """A target.

    Attributes:
        text: what is meant.
        limit: what each value is held against.
        unit: of the values and the limit; empty for ratios.
        sense: whether values must be at most or at least the limit.
        values: what was measured, by what it is of; empty where it was not measured.
    """

    text: str
    sense: Literal["at most", "at least"]
    limit: float
    unit: str = ""
    values: dict[str, Spread] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether all medians keep to the limit, None where nothing was measured."""
        if not self.values:
            return None
        medians = [value.median for value in self.values.values()]
        return max(medians) <= self.limit if self.sense == "at most" else min(medians) >= self.limit

    def compare(self, label: str, one: Row | None, other: Row | None, name: str) -> None:
        """Take a ratio of two rows as a value, where both were measured."""
        if one is not None and other is not None:
            self.values[label] = ratio(one, other, name)

    def take(self, label: str, row: Row | None, name: str) -> None:
        """Take a value of a row, where it was measured."""
        if row is not None:
            self.values[label] = row.spread(name)

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        values = {label: value._asdict() for label, value in self.values.items()}
        limit = {"sense": self.sense, "limit": self.limit, "unit": self.unit}
        return {"target": self.text, **limit, "measured": values, "met": self.met}


def goals(results: Results) -> list[Goal]:
    """Return all targets with what was measured of them."""
    return [
        *_small_calls(results.get("small_calls", ())),
        *_reading(results.get("reading", ())),
        *_session_length(results.get("session_length", ())),
        _holds(results.get("loop_holds", ())),
        *_footprint(results.get("footprint", ())),
        _sync(results.get("sync_and_encryption", ())),
        _encryption(results.get("sync_and_encryption", ())),
        *_turns(results.get("turns", ())),
        *_tracing(results.get("tracing", ())),
    ]


def _small_calls(rows: Sequence[Row]) -> list[Goal]:
    of_plain = Goal("CPU of a small call on the stub ÷ plain aioboto3's", "at most", 0.30)
    of_aiodynamo = Goal("CPU of a small call on the stub ÷ aiodynamo's", "at most", 1)
    for operation, label in LABELS.items():
        case: dict[str, Any] = {"operation": operation, "at_once": 1}
        of_plain.compare(label, find(rows, OURS, **case), find(rows, AIOBOTO3, **case), "cpu_ms")
        of_aiodynamo.compare(label, find(rows, OURS, **case), find(rows, AIODYNAMO, **case), "cpu_ms")
    of_rust = [
        Goal(f"CPU of a put on the stub ÷ dynamoxy's, {at_once} at a time", "at most", limit)
        for at_once, limit in ((1, 1), (64, 1.25))
    ]
    for goal, at_once in zip(of_rust, (1, 64), strict=True):
        case = {"operation": "put_item", "at_once": at_once}
        goal.compare("", find(rows, OURS, **case), find(rows, DYNAMOXY, **case), "cpu_ms")
    throughput = Goal("Puts a second on the stub ÷ plain aioboto3's", "at least", 4)
    tail = Goal("p99 of puts on the stub ÷ their median", "at most", 3)
    for at_once in (64, 256):
        case, label = {"operation": "put_item", "at_once": at_once}, f"{at_once} at a time"
        throughput.compare(label, find(rows, OURS, **case), find(rows, AIOBOTO3, **case), "per_second")
        if row := find(rows, OURS, **case):
            tail.values[label] = spread([row.figures["p99_ms"] / row.figures["p50_ms"]])
    crowd = Goal("Appends a second, 256 at a time ÷ langchain-community's through its async methods", "at least", 4)
    for target in dict.fromkeys(str(row.case["on"]) for row in rows):
        case = {"on": target, "operation": "append", "layout": SINGLE_ITEM, "at_once": 256}
        crowd.compare(f"on {target}", find(rows, OURS, **case), find(rows, UPSTREAM, **case), "per_second")
    return [of_plain, of_aiodynamo, *of_rust, throughput, tail, crowd]


LABELS = {"put_item": "put", "update_item": "update", "get_item": "get", "query": "query of 20"}


def _reading(rows: Sequence[Row]) -> list[Goal]:
    found = []
    for layout, limit in READING_LIMITS.items():
        goal = Goal(
            f"CPU from an answer's bytes to 1,000 messages, {layout} ÷ the stock way's from a single item",
            "at most",
            limit,
        )
        case: dict[str, Any] = {"measured": "whole read", "messages": 1_000}
        stock = find(rows, AIOBOTO3, layout=SINGLE_ITEM, **case)
        goal.compare("", find(rows, OURS, layout=layout, **case), stock, "above_floor_ms")
        found.append(goal)
    return found


READING_LIMITS = {SINGLE_ITEM: 0.20, ITEM_COLLECTION: 0.12, IN_TWOS: 0.11}


def _session_length(rows: Sequence[Row]) -> list[Goal]:
    long = Goal("Time of langchain-community's append at 1,000 messages ÷ ours in the single item", "at least", 10)
    case: dict[str, Any] = {"operation": "append", "layout": SINGLE_ITEM, "messages": 1_000}
    long.compare("", find(rows, UPSTREAM, **case), find(rows, OURS, **case), "wall_ms")
    flat = Goal("Time of an append in an item collection ÷ that at 10 messages", "at most", 1.2)
    case = {"operation": "append", "layout": ITEM_COLLECTION}
    for messages in (1_000, 10_000):
        ours = find(rows, OURS, messages=messages, **case)
        flat.compare(f"at {messages:,}", ours, find(rows, OURS, messages=10, **case), "wall_ms")
    return [long, flat]


def _holds(rows: Sequence[Row]) -> Goal:
    goal = Goal("Longest hold of the event loop in CPU time, the worst of all rounds", "at most", 10, "ms")
    for row in rows:
        if row.variant == OURS:
            goal.take(f"{row.case['messages']:,} in the {row.case['layout']}", row, "worst_hold_cpu_ms")
    return goal


def _footprint(rows: Sequence[Row]) -> list[Goal]:
    making = Goal("Making a handle", "at most", 20, "µs")
    size = Goal("Memory of an idle handle on a session that is known", "at most", 2048, "bytes")
    for layout in (SINGLE_ITEM, ITEM_COLLECTION):
        row = find(rows, OURS, measured="handle", way=f"store.session(), {layout}")
        making.take(layout, row, "handle_us")
        size.take(layout, row, "bytes_known_session")
    package = Goal("CPU of importing LangChain's class ÷ importing what it cannot do without", "at most", 1.1)
    store = Goal("CPU of importing the store alone ÷ importing what it cannot do without", "at most", 1.2)
    imported = {name: find(rows, name, measured=footprint.IMPORT) for name in footprint.IMPORTS}
    package.compare("", imported[OURS], imported[footprint.WITHOUT], "import_ms")
    store.compare("", imported[footprint.STORE], imported[footprint.STORE_WITHOUT], "import_ms")
    return [making, size, package, store]


def _sync(rows: Sequence[Row]) -> Goal:
    goal = Goal("Time that the sync methods add to their async twins on the stub", "at most", 0.15, "ms")
    for layout in (SINGLE_ITEM, ITEM_COLLECTION):
        for operation in ("append", "read"):
            case: dict[str, Any] = {"compared": SYNC_METHODS, "layout": layout, "operation": operation}
            goal.take(f"{operation}, {layout}", find(rows, SYNC, **case), "added_ms")
    return goal


def _encryption(rows: Sequence[Row]) -> Goal:
    text = f"CPU of reading {SHORT} encrypted messages that are stored in twos, {ITEM_COLLECTION} ÷ plain ones"
    goal = Goal(text, "at most", 3.5)
    case: dict[str, Any] = {"compared": "encryption", "operation": "read", "layout": ITEM_COLLECTION}
    goal.compare("", find(rows, ENCRYPTED, **case), find(rows, OURS, **case), "cpu_ms")
    return goal


def _turns(rows: Sequence[Row]) -> list[Goal]:
    two = Goal("CPU of an append of two messages on the stub ÷ of one", "at most", 1.3)
    two.compare("", find(rows, turns.TWO), find(rows, turns.ONE), "cpu_ms")
    whole = Goal("CPU of a whole append of a message on the stub ÷ the put alone", "at most", 1.35)
    whole.compare("", find(rows, turns.ONE), find(rows, turns.PUT), "cpu_ms")
    return [two, whole]


def _tracing(rows: Sequence[Row]) -> list[Goal]:
    added = Goal("CPU that a tracer provider which samples nothing adds to an append on the stub", "at most", 25, "µs")
    added.take("", find(rows, tracing.UNSAMPLED), "added_us")
    unset = Goal("CPU of an append on the stub without a tracer provider ÷ with tracing=False", "at most", 1.02)
    unset.compare("", find(rows, tracing.UNSET), find(rows, tracing.OFF), "cpu_ms")
    return [added, unset]
