"""9. CPU that observing an append costs: with no tracer provider, with one that samples nothing, and recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from langchain_core.messages import BaseMessage
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from chathistory_async import DynamoDBChatMessageHistory
from chathistory_async._telemetry.providers import tracing_now

from .honesty import fault_on_stub
from .measure import Row, block, interleave
from .messages import new_message, number_of, session_of
from .setup import Setup
from .variants import ITEM_COLLECTION, new_store

OFF = "tracing=False"
UNSET = "no provider"
UNSAMPLED = "a provider that samples nothing"
RECORDED = "a provider that records all"
BASELINE = OFF
_TIMES = 20


async def run(setup: Setup) -> list[Row]:
    """Measure on the stub, one append at a time."""
    # Ours reads this once, before its first append to a table.
    await setup.stub.teach("GetItem", session_of(0), b"{}")
    recording = TracerProvider(sampler=ALWAYS_ON)
    # Nothing is exported: that is the application's cost, and happens on a thread of its own.
    recording.add_span_processor(SpanProcessor())
    providers = {OFF: recording, UNSET: None, UNSAMPLED: TracerProvider(sampler=ALWAYS_OFF), RECORDED: recording}
    rounds = setup.rounds(150)
    async with AsyncExitStack() as stack:
        writers: dict[str, _Writer] = {}
        for name in providers:
            options = {"tracing": False} if name == OFF else {}
            store = await stack.enter_async_context(new_store(setup.on_stub, ITEM_COLLECTION, **options))
            # The first round warms up.
            writers[name] = _Writer(store.session("traced"), (1 + rounds) * _TIMES)
        await setup.stub.seen()
        setup.stub.pin(together=True)
        blocks = {name: block(writer.append, _TIMES) for name, writer in writers.items()}
        timed = await interleave(blocks, rounds, before_each=_setting(providers))
        setup.stub.pin(together=False)
        seen = await setup.stub.seen()
    case: dict[str, str | int] = {"on": setup.on_stub.name, "layout": ITEM_COLLECTION}
    rows = [one.row(name, case, fault_on_stub(seen, writers[name].sent)) for name, one in timed.items()]
    for row in rows:
        if row.variant != OFF:
            pairs = zip(row.rounds["cpu_ms"], timed[OFF].cpu, strict=True)
            row.rounds["added_us"] = [1000 * (cpu - least) for cpu, least in pairs]
    return rows


def _setting(providers: dict[str, TracerProvider | None]) -> Callable[[str], None]:
    """Return what sets a variant's provider. An application can set one only once: this goes behind the API."""

    def set_provider(name: str) -> None:
        trace._TRACER_PROVIDER = providers[name]
        # The first call with a provider makes a tracer.
        tracing_now()

    return set_provider


class _Writer:
    """Appends messages that are made beforehand to one session, and records which were sent."""

    def __init__(self, handle: DynamoDBChatMessageHistory, times: int) -> None:
        self.sent: list[int] = []
        self._handle = handle
        self._messages = iter([new_message() for _ in range(times)])

    async def append(self, _: int) -> None:
        """Append one message."""
        message: BaseMessage = next(self._messages)
        self.sent.append(number_of(message))
        await self._handle.aadd_messages([message])
