"""10. A turn in a handler of events, as on AWS Lambda: a new event loop for each event, a kept one, or sync methods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import orjson
from langchain_core.messages import BaseMessage

from chathistory_async import ChatHistoryStore

from .honesty import fault_on_stub
from .measure import Operation, Row, block, interleave
from .messages import item_collection, new_messages, new_turn, number_of, session_of
from .setup import Setup
from .variants import ITEM_COLLECTION, new_store

NEW_LOOP = "asyncio.run for each event"
KEPT_LOOP = "one kept event loop"
SYNC_METHODS = "synchronous methods"
BASELINE = KEPT_LOOP
_LATEST = 20
_TIMES = 5


async def run(setup: Setup) -> list[Row]:
    """Measure on the stub, one event at a time, each on a thread without an event loop."""
    await setup.stub.teach("Query", session_of(_LATEST), orjson.dumps(item_collection(new_messages(_LATEST))))
    # Ours reads this once, before its first append to a table.
    await setup.stub.teach("GetItem", session_of(_LATEST), b"{}")
    kept = asyncio.new_event_loop()
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(new_store(setup.on_stub, ITEM_COLLECTION)) for _ in range(3)]
        events = {
            NEW_LOOP: _Events(lambda turn: asyncio.run(_turn(stores[0], turn))),
            KEPT_LOOP: _Events(lambda turn: kept.run_until_complete(_turn(stores[1], turn))),
            SYNC_METHODS: _Events(lambda turn: _sync_turn(stores[2], turn)),
        }
        await setup.stub.seen()
        setup.stub.pin(together=True)
        ways: dict[str, Operation] = {name: one.handle for name, one in events.items()}
        timed = await interleave({name: block(way, _TIMES) for name, way in ways.items()}, setup.rounds(30))
        setup.stub.pin(together=False)
        seen = await setup.stub.seen()
    kept.close()
    case: dict[str, str | int] = {"on": setup.on_stub.name, "layout": ITEM_COLLECTION}
    return [one.row(name, case, fault_on_stub(seen, events[name].sent)) for name, one in timed.items()]


async def _turn(store: ChatHistoryStore, turn: Sequence[BaseMessage]) -> None:
    history = store.session(session_of(_LATEST))
    await history.aget_messages(limit=_LATEST)
    await history.aadd_messages(turn)


def _sync_turn(store: ChatHistoryStore, turn: Sequence[BaseMessage]) -> None:
    history = store.session(session_of(_LATEST))
    history.get_messages(limit=_LATEST)
    history.add_messages(turn)


class _Events:
    """Handles events in one way.

    Attributes:
        sent: the numbers of the messages that were appended.
    """

    def __init__(self, handler: Callable[[Sequence[BaseMessage]], None]) -> None:
        self.sent: list[int] = []
        self._handler = handler

    async def handle(self, _: int) -> None:
        """Read a session's latest messages, and append a turn."""
        turn = new_turn()
        self.sent += map(number_of, turn)
        await asyncio.to_thread(self._handler, turn)
