"""6. Encrypted against plain; sync methods against async ones, and against langchain-community's sync methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aioboto3
import orjson
from langchain_core.messages import BaseMessage

from chathistory_async.local import local_engine

from .honesty import fault_in_messages, fault_in_session, fault_on_stub
from .measure import Row, Timed, block, interleave
from .messages import item_collection, new_message, new_messages, new_turn, number_of, session_of, single_item
from .setup import Setup
from .variants import OURS, SINGLE_ITEM, UPSTREAM, Key, Ours, Peer, Target, Upstream, new_store

BASELINE = OURS
ENCRYPTED = "ours, encrypted"
SYNC = "ours, sync"
UPSTREAM_SYNC = f"{UPSTREAM}, sync"
SYNC_METHODS = "sync methods"
SHORT = 20
_TIMES = 10


class Sync:
    """The synchronous methods: they block the event loop that calls them, which has nothing else to do here."""

    def __init__(self, handles: Ours | Upstream) -> None:
        self._handles = handles

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind what is there."""
        self._handles.handle(session).add_messages(messages)

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        """Return a session's latest messages; ours and langchain-community's have no limit in common."""
        messages: list[BaseMessage] = self._handles.handle(session).messages
        return messages[-(limit or 0) :]


async def run(setup: Setup) -> list[Row]:
    """Compare sync methods on the stub, and encryption on the engine."""
    rows = await _sync_methods(setup)
    if engine := setup.needs_engine("encrypted against plain"):
        rows += await _encryption(setup, engine)
    return rows


async def _sync_methods(setup: Setup) -> list[Row]:
    short = new_messages(SHORT)
    await setup.stub.teach("GetItem", session_of(SHORT), orjson.dumps(single_item(short)))
    await setup.stub.teach("Query", session_of(SHORT), orjson.dumps(item_collection(short)))
    async with AsyncExitStack() as stack:
        peers: dict[Key, Peer] = {(SINGLE_ITEM, UPSTREAM_SYNC): Sync(Upstream(setup.on_stub))}
        for layout in setup.on_stub.tables:
            ours = Ours(await stack.enter_async_context(new_store(setup.on_stub, layout)))
            peers |= {(layout, OURS): ours, (layout, SYNC): Sync(ours)}
        users = {key: _User(peer, session_of(SHORT)) for key, peer in peers.items()}
        await setup.stub.seen()
        setup.stub.pin(together=True)
        appends = await interleave({key: block(one.append, _TIMES) for key, one in users.items()}, setup.rounds(30))
        seen = await setup.stub.seen()
        reads = await interleave({key: block(one.read, _TIMES) for key, one in users.items()}, setup.rounds(30))
        setup.stub.pin(together=False)
    rows = []
    for key, user in users.items():
        fault = fault_on_stub(seen, [*map(number_of, user.sent)])
        rows.append(_row(SYNC_METHODS, "append", key, appends, fault))
        rows.append(_row(SYNC_METHODS, "read", key, reads, fault_in_messages(user.found, short)))
    return rows


async def _encryption(setup: Setup, engine: Target) -> list[Row]:
    async with AsyncExitStack() as stack:
        kms = await stack.enter_async_context(_kms())
        peers: dict[Key, Peer] = {}
        for layout in engine.tables:
            for name, options in ((OURS, {}), (ENCRYPTED, kms)):
                peers[layout, name] = Ours(await stack.enter_async_context(new_store(engine, layout, **options)))
        users = {key: _User(peer, f"encryption-{key[1]}") for key, peer in peers.items()}
        for user in users.values():
            await user.fill(SHORT)
        rounds = setup.rounds(20)
        reads = await interleave({key: block(one.read, _TIMES) for key, one in users.items()}, rounds)
        read_faults = {key: fault_in_messages(one.found, one.sent) for key, one in users.items()}
        appends = await interleave({key: block(one.append, _TIMES) for key, one in users.items()}, rounds)
        begins = await interleave({key: block(one.begin, _TIMES) for key, one in users.items()}, rounds)
        rows = []
        for key, user in users.items():
            fault = await fault_in_session(peers[key], user.session, user.sent)
            rows.append(_row("encryption", "append", key, appends, fault))
            rows.append(_row("encryption", "first append", key, begins, await user.fault_at_the_beginning()))
            rows.append(_row("encryption", "read", key, reads, read_faults[key]))
        return rows


@asynccontextmanager
async def _kms() -> AsyncIterator[dict[str, Any]]:
    """Run a KMS with a key, and yield what a store needs to encrypt with it."""
    async with local_engine() as url, aioboto3.Session().client("kms", endpoint_url=url) as client:
        key = await client.create_key()
        yield {"kms_key_id": key["KeyMetadata"]["Arn"], "kms_endpoint_url": url}


class _User:
    """Appends to a session of a variant and reads it, and knows which messages were sent."""

    def __init__(self, peer: Peer, session: str) -> None:
        self.session = session
        self.sent: list[BaseMessage] = []
        self.found: list[BaseMessage] = []
        self._peer = peer
        self._begun: dict[str, BaseMessage] = {}

    async def fill(self, number: int) -> None:
        """Append so many messages in turns of two."""
        for _ in range(number // 2):
            turn = new_turn()
            self.sent += turn
            await self._peer.append(self.session, turn)

    async def append(self, _: int) -> None:
        """Append one message."""
        self.sent.append(new_message())
        await self._peer.append(self.session, self.sent[-1:])

    async def begin(self, _: int) -> None:
        """Begin another session with a message."""
        session = f"{self.session}-begun-{len(self._begun)}"
        self._begun[session] = new_message()
        await self._peer.append(session, [self._begun[session]])

    async def read(self, _: int) -> None:
        """Read all messages."""
        self.found = await self._peer.read(self.session)

    async def fault_at_the_beginning(self) -> str | None:
        """Return what is wrong with the sessions that were begun."""
        for session, message in self._begun.items():
            if fault := await fault_in_session(self._peer, session, [message]):
                return fault
        return None


def _row(compared: str, operation: str, key: Key, timed: dict[Key, Timed], fault: str | None) -> Row:
    layout, name = key
    row = timed[key].row(name, {"compared": compared, "layout": layout, "operation": operation}, fault)
    if name == SYNC:
        row.rounds["added_ms"] = [
            sync - twin for sync, twin in zip(timed[key].wall, timed[layout, OURS].wall, strict=True)
        ]
    return row
