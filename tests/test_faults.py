"""Many writers on a bad day: everything that can happen between the library and DynamoDB happens, often."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import Make
from proxy import Fault, Proxy, Seen
from samples import humans, texts
from variants import (
    AsyncVariant,
    CollectionVariant,
    EncryptedCollectionVariant,
    EncryptedVariant,
    IndexedVariant,
    SdkCollectionVariant,
    SdkVariant,
    SyncCollectionVariant,
    SyncVariant,
    Variant,
    in_stress,
)

from chathistory_async import ChatHistoryError, DynamoDBChatMessageHistory

VARIANTS = [
    IndexedVariant,
    AsyncVariant,
    CollectionVariant,
    *in_stress(SdkVariant, SyncVariant, EncryptedVariant),
    *in_stress(SdkCollectionVariant, SyncCollectionVariant, EncryptedCollectionVariant),
]
pytestmark = pytest.mark.usefixtures("fast_path_always_open")
WRITERS = 8
MANY = pytest.param(15, marks=pytest.mark.stress)
FAULTS = [fault for fault in Fault if fault not in {Fault.NONE, Fault.DENIED}]


def at_random(rate: float, seed: int, faults: Sequence[Fault]) -> Callable[[Seen], Fault]:
    chance = random.Random(seed)
    return lambda seen: chance.choice(faults) if chance.random() < rate else Fault.NONE


async def write_all(histories: list[Variant], appends: int) -> tuple[list[str], list[str]]:
    """Append from all writers at once; return what was acknowledged and what was not."""
    acknowledged, failed = [], []

    async def write(writer: int) -> None:
        for number in range(appends):
            text = f"{writer}:{number:02}"
            try:
                await histories[writer].add(humans(text, f"{text}b"))
            except ChatHistoryError:
                failed.append(text)
            else:
                acknowledged.append(text)

    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    return acknowledged, failed


@pytest.mark.sampled("variant")
# Each value of one meets each value of the others once.
@pytest.mark.parametrize(
    ("attempts", "rate", "appends"),
    [
        (2, 0.33, 6),
        *(pytest.param(*one, marks=pytest.mark.stress) for one in ((2, 0.1, 15), (10, 0.33, 15), (10, 0.1, 6))),
    ],
)
async def test_every_acknowledged_message_is_there_exactly_once(
    variant: type[Variant],
    through: Callable[..., DynamoDBChatMessageHistory],
    make: Make,
    proxy: Proxy,
    attempts: int,
    rate: float,
    appends: int,
) -> None:
    proxy.schedule = at_random(rate, seed=int(rate * 100) + attempts, faults=FAULTS)
    acknowledged, failed = await write_all([variant(through(attempts)) for _ in range(WRITERS)], appends)
    await asyncio.to_thread(proxy.wait_for_late_requests)
    stored = texts(await make().aget_messages())

    assert len(acknowledged) + len(failed) == WRITERS * appends
    assert len(acknowledged) > WRITERS * appends / 2
    assert [text for text in stored if not text.endswith("b")] == stored[::2], "batches are contiguous"
    assert stored[1::2] == [f"{text}b" for text in stored[::2]], "batches are whole"
    counts = Counter(stored[::2])
    assert {text: counts[text] for text in acknowledged} == dict.fromkeys(acknowledged, 1)
    assert all(counts[text] <= 1 for text in failed)
    for writer in range(WRITERS):
        # A request that was given up may still arrive later, because the network held it back.
        own = [text for text in stored[::2] if text.startswith(f"{writer}:") and text in set(acknowledged)]
        assert own == sorted(own)


@pytest.mark.sampled("variant")
@pytest.mark.parametrize("appends", [6, MANY])
async def test_history_size_is_exact_all_the_same(
    variant: type[Variant], through: Callable[..., DynamoDBChatMessageHistory], make: Make, proxy: Proxy, appends: int
) -> None:
    proxy.schedule = at_random(0.33, seed=7, faults=[*FAULTS, *[Fault.LOST_RESPONSE] * 10])
    acknowledged, _ = await write_all([variant(through(10, history_size=20)) for _ in range(WRITERS)], appends)
    await asyncio.to_thread(proxy.wait_for_late_requests)
    stored = texts(await make(history_size=20 if variant.collection else None).aget_messages())
    assert len(stored) == 20
    assert len(set(stored)) == 20
    assert stored[1::2] == [f"{text}b" for text in stored[::2]]
    for writer in range(WRITERS):
        own = [text for text in stored[::2] if text.startswith(f"{writer}:") and text in set(acknowledged)]
        written = sorted(text for text in acknowledged if text.startswith(f"{writer}:"))
        assert own == written[len(written) - len(own) :], "what is left of a writer is its latest"


@pytest.mark.sampled("variant")
async def test_reads_and_clears_survive_too(
    variant: type[Variant], through: Callable[..., DynamoDBChatMessageHistory], make: Make, proxy: Proxy
) -> None:
    history: Any = variant(through(10))
    proxy.schedule = at_random(0.33, seed=3, faults=[fault for fault in FAULTS if fault is not Fault.LATE_REQUEST])
    for number in range(20):
        await history.add(humans(number))
        assert texts(await history.read()) == [str(number)]
        await history.clear()
        assert await history.read() == []
