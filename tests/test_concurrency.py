"""Any number of writers: tasks, handles, threads, event loops and processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter

import pytest
from conftest import Make
from samples import humans, texts
from variants import (
    SINGLE_ITEM_VARIANTS,
    CollectionVariant,
    EncryptedCollectionVariant,
    IndexedVariant,
    SyncCollectionVariant,
    Variant,
    in_stress,
)

from chathistory_async import DynamoDBChatMessageHistory

VARIANTS = [
    *SINGLE_ITEM_VARIANTS,
    CollectionVariant,
    *in_stress(IndexedVariant, SyncCollectionVariant, EncryptedCollectionVariant),
]


def in_order(stored: list[str], writers: int, appends: int) -> bool:
    expected = {str(writer): list(range(appends)) for writer in range(writers)}
    found: dict[str, list[int]] = {writer: [] for writer in expected}
    for text in stored:
        writer, number = text.split(":")
        found[writer].append(int(number))
    return found == expected


@pytest.mark.sampled("variant")
@pytest.mark.parametrize(("writers", "appends"), [(8, 10), pytest.param(50, 4, marks=pytest.mark.stress)])
@pytest.mark.parametrize("shared_handle", [False, True])
async def test_no_update_is_lost(
    variant: type[Variant], make: Make, writers: int, appends: int, shared_handle: bool
) -> None:
    one = variant(make())

    async def write(writer: int) -> None:
        history = one if shared_handle else variant(make())
        for number in range(appends):
            await history.add(humans(f"{writer}:{number}"))

    await asyncio.gather(*(write(writer) for writer in range(writers)))
    assert in_order(texts(await one.read()), writers, appends)


async def test_batches_stay_whole(variant: type[Variant], make: Make) -> None:
    await asyncio.gather(*(variant(make()).add(humans(*[writer] * 5)) for writer in range(20)))
    stored = texts(await make().aget_messages())
    assert stored == [text for text in stored[::5] for _ in range(5)]
    assert len(set(stored)) == 20


@pytest.mark.sampled("variant")
@pytest.mark.parametrize(
    "batch", [pytest.param(1, marks=pytest.mark.stress), 2, pytest.param(3, marks=pytest.mark.stress)]
)
async def test_history_size_is_exact_with_many_writers(variant: type[Variant], make: Make, batch: int) -> None:
    async def write(writer: int) -> None:
        history = variant(make(history_size=10))
        for number in range(10):
            await history.add(humans(*[f"{writer}:{number}"] * batch))
            assert len(await history.read()) <= 10

    await asyncio.gather(*(write(writer) for writer in range(8)))
    stored = texts(await make(history_size=10 if variant.collection else None).aget_messages())
    assert len(stored) == 10
    assert max(Counter(stored).values()) <= batch


async def test_what_was_read_is_ordered_before_what_is_written(make: Make) -> None:
    """A chain of questions and answers over two handles, on clocks that play no part."""
    asks, answers = make(), make()
    for number in range(10):
        await asks.aadd_messages(humans(f"question {number}"))
        seen = texts(await answers.aget_messages())[-1]
        await answers.aadd_messages(humans(f"answer to {seen}"))
    expected = [text for n in range(10) for text in (f"question {n}", f"answer to question {n}")]
    assert texts(await asks.aget_messages()) == expected


def test_one_handle_serves_several_event_loops_and_both_apis(make: Make) -> None:
    history = make()

    def own_loop(writer: int) -> None:
        async def write() -> None:
            for number in range(5):
                await history.aadd_messages(humans(f"{writer}:{number}"))

        asyncio.run(write())

    def own_thread(writer: int) -> None:
        for number in range(5):
            history.add_messages(humans(f"{writer}:{number}"))

    threads = [threading.Thread(target=(own_loop, own_thread)[n % 2], args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert in_order(texts(history.messages), 6, 5)


PROCESS = """
import sys
from langchain_core.messages import HumanMessage
from chathistory_async import DynamoDBChatMessageHistory
table, session, writer = sys.argv[1:]
history = DynamoDBChatMessageHistory(table, session)
for number in range(10):
    history.add_messages([HumanMessage(f"{writer}:{number}")])
"""


async def test_several_processes(make: Make, session_id: str) -> None:
    history: DynamoDBChatMessageHistory = make()
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, history.table_name, session_id, str(writer)])
        for writer in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert in_order(texts(await history.aget_messages()), 4, 10)
