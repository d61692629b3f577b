"""An independent checker of what several processes saw that used one session at once. It knows nothing of storage.

A history is a list of operations, each with the time of its call and of its return on one monotonic clock. Every
message has a text of its own. ``violations`` compares all that was read with what the library promises:

- Acknowledged exactly once: a read that begins after an append returned has its messages, once, unless a removal may
  have taken them. A removal is a clear that had not ended before the append began, or a pop.
- Once by a key: appends of one idempotency key count as one append, which began with the first of them and was
  acknowledged when one of them was. Only one of the batches that are sent with a key is stored.
- All or nothing: the messages of one batch stand together and in order. All are there or none, unless pops have taken
  the last ones. A clear takes all of them or none.
- Causal order: what a process had read or written comes before what it writes.
- One order: two reads never disagree on the order of two messages.
- No revival: what was acknowledged before a clear began is not there after the clear returned; what was popped neither.
- Nothing from nowhere: a read returns only what somebody wrote, and nothing whose append was refused for certain.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Operation:
    """A call of one process, which makes one call at a time.

    Attributes:
        process: the process that called.
        invoked: when it called, in seconds.
        ended: when the call could have no effect any more; infinite where nobody knows.
        outcome: "ok"; "refused" where the library says that nothing was written; "unknown" where the call was cancelled
            or failed otherwise, or the process was killed.
        written: the batch of an append.
        key: the idempotency key of an append, None without one.
        returned: what a read or a pop returned.
    """

    process: str
    kind: Literal["append", "read", "clear", "pop"]
    invoked: float
    ended: float = math.inf
    outcome: Literal["ok", "refused", "unknown"] = "unknown"
    written: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    key: str | None = None


def violations(history: Sequence[Operation], *, stored_anew: bool = False) -> list[str]:
    """Return a sentence for each promise that a history breaks; of many of one kind the first few.

    Args:
        history: the operations.
        stored_anew: whether an append that is still being retried when a clear removes its messages may store them
            once more, and then in another place. A single item has no tombstones that would prevent it.
    """
    facts = _Facts(history, stored_anew)
    checks = (_doubled, _lost, _torn, _unordered, _disagreeing, _revived, _popped_twice, _reused, _from_nowhere)
    return [sentence for check in checks for sentence in itertools.islice(check(facts), 5)]


class _Facts:
    """A history, sorted by what its operations are.

    Attributes:
        appends: one for each batch, however often it was sent.
        sent_again: the first messages of the batches that several appends have sent.
        cleared_from: when the first clear began that may have removed messages of an append; infinite where none did.
        moved: the messages that may have been stored, removed and stored once more.
    """

    def __init__(self, history: Sequence[Operation], stored_anew: bool) -> None:
        self.history = sorted(history, key=lambda operation: operation.invoked)
        sent = [operation for operation in self.history if operation.kind == "append"]
        by_batch: dict[tuple[str, ...], list[Operation]] = {}
        for append in sent:
            by_batch.setdefault(append.written, []).append(append)
        self.appends = [_as_one(appends) for appends in by_batch.values()]
        self.sent_again = {written[0] for written, appends in by_batch.items() if len(appends) > 1}
        self.clears = [operation for operation in self.history if operation.kind == "clear"]
        self.cleared_from = {append: self._cleared_from(append) for append in self.appends}
        cut = [append for append in self.appends if self.cleared_from[append] < append.ended]
        self.moved = {text for append in cut for text in append.written} if stored_anew else set[str]()
        self.reads = [operation for operation in self.history if operation.kind == "read" and operation.outcome == "ok"]
        pops = [operation for operation in self.history if operation.kind == "pop"]
        self.pops = [pop for pop in pops if pop.outcome == "ok" and pop.returned]
        self.pops_of_unknown_outcome = sum(pop.outcome == "unknown" for pop in pops)
        self.popped = Counter(text for pop in self.pops for text in pop.returned)

    def _cleared_from(self, append: Operation) -> float:
        began = [clear.invoked for clear in self.clears if clear.outcome != "refused" and clear.ended > append.invoked]
        return min(began, default=math.inf)


def _as_one(appends: Sequence[Operation]) -> Operation:
    """Return what the appends of one batch are together."""
    acknowledged = [append.ended for append in appends if append.outcome == "ok"]
    if acknowledged:
        return replace(appends[0], outcome="ok", ended=min(acknowledged))
    unknown = [append.ended for append in appends if append.outcome == "unknown"]
    return replace(appends[0], outcome="unknown", ended=max(unknown)) if unknown else appends[0]


def _doubled(facts: _Facts) -> Iterator[str]:
    for read in facts.reads:
        for text, times in Counter(read.returned).items():
            if times > 1:
                yield f"{text} is there {times} times for {read.process} at {read.invoked:.3f}"


def _lost(facts: _Facts) -> Iterator[str]:
    missing: dict[str, str] = {}
    for read in facts.reads:
        there = {*read.returned, *facts.popped}
        for append, cleared_from in facts.cleared_from.items():
            if append.outcome == "ok" and append.ended < read.invoked and read.ended < cleared_from:
                for text in append.written:
                    if text not in there:
                        missing[text] = f"{text} was acknowledged and is lost for {read.process} at {read.invoked:.3f}"
    # Each pop whose outcome nobody knows may have taken one message.
    if len(missing) > facts.pops_of_unknown_outcome:
        yield from missing.values()


def _torn(facts: _Facts) -> Iterator[str]:
    for read in facts.reads:
        places = {text: place for place, text in enumerate(read.returned)}
        for append in facts.appends:
            found = [places[text] for text in append.written if text in places]
            if found and found != list(range(found[0], found[0] + len(found))):
                yield f"{append.written} do not stand together for {read.process} at {read.invoked:.3f}"
            gone = [text for text in append.written if text not in places]
            popped = sum(text in facts.popped for text in gone) + facts.pops_of_unknown_outcome
            is_cut = append.written[0] not in places or append.written[len(found) - 1] not in places
            if found and (is_cut or popped < len(gone)):
                yield f"{append.written} are there in part for {read.process} at {read.invoked:.3f}"


def _unordered(facts: _Facts) -> Iterator[str]:
    for read in facts.reads:
        places = {text: place for place, text in enumerate(read.returned) if text not in facts.moved}
        known: dict[str, int] = {}
        for operation in facts.history:
            latest = known.get(operation.process, -1)
            first = places.get(operation.written[0], math.inf) if operation.written else math.inf
            # If several processes have sent a batch, it is not known which of them has stored it.
            if first < latest and operation.written[0] not in facts.sent_again:
                yield f"{operation.written[0]} stands before what {operation.process} had read when it wrote it"
            if operation.outcome == "ok":
                news = [places[text] for text in (*operation.written, *operation.returned) if text in places]
                known[operation.process] = max(latest, *news) if news else latest


def _disagreeing(facts: _Facts) -> Iterator[str]:
    for one, other in zip(facts.reads, facts.reads[1:], strict=False):
        common = (set(one.returned) & set(other.returned)) - facts.moved
        if [text for text in one.returned if text in common] != [text for text in other.returned if text in common]:
            yield f"the reads at {one.invoked:.3f} and {other.invoked:.3f} have different orders"


def _revived(facts: _Facts) -> Iterator[str]:
    removed_at: dict[str, float] = {text: pop.ended for pop in facts.pops for text in pop.returned}
    for append in facts.appends:
        done = append.ended if append.outcome == "ok" else math.inf
        ends = [clear.ended for clear in facts.clears if clear.outcome == "ok" and clear.invoked > done]
        for text in append.written if ends else ():
            removed_at[text] = min(removed_at.get(text, math.inf), *ends)
    for read in facts.reads:
        for text in read.returned:
            if removed_at.get(text, math.inf) < read.invoked:
                yield f"{text} was removed and is there again for {read.process} at {read.invoked:.3f}"


def _popped_twice(facts: _Facts) -> Iterator[str]:
    for text, times in facts.popped.items():
        if times > 1:
            yield f"{text} was returned by {times} pops"


def _reused(facts: _Facts) -> Iterator[str]:
    returned = {text for operation in facts.history for text in operation.returned}
    stored = [append for append in facts.appends if append.outcome == "ok" or returned & {*append.written}]
    for key, times in Counter(append.key for append in stored if append.key is not None).items():
        if times > 1:
            yield f"{times} batches were stored with the idempotency key {key}"


def _from_nowhere(facts: _Facts) -> Iterator[str]:
    written = {text for append in facts.appends if append.outcome != "refused" for text in append.written}
    for operation in facts.history:
        for text in operation.returned:
            if text not in written:
                yield f"{text} was never written, or its append was refused, and {operation.process} has read it"
