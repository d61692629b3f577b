"""8. CPU of appending a turn of two messages beside one message, and of a whole append beside its put alone."""

from __future__ import annotations

from collections import defaultdict

from chathistory_async import ChatHistoryStore

from .honesty import fault_on_stub
from .measure import Operation, Row, block, interleave
from .messages import content_of, new_message, new_number, new_turn, number_of, session_of
from .setup import Setup
from .variants import ITEM_COLLECTION, OURS, OurSender, new_store, our_options

PUT = "ours, the put alone"
ONE = "ours, append of one"
TWO = "ours, append of two"
BASELINE = PUT
_TIMES = 10


async def run(setup: Setup) -> list[Row]:
    """Measure on the stub, one at a time."""
    # Ours reads this once, before its first append to a table.
    await setup.stub.teach("GetItem", session_of(0), b"{}")
    async with new_store(setup.on_stub, ITEM_COLLECTION, **our_options()[OURS]) as store:
        rounds = setup.rounds(60)
        # The first round warms up.
        writer = _Writer(store, OurSender(store, setup.on_stub), (1 + rounds) * _TIMES)
        ways: dict[str, Operation] = {PUT: writer.put, ONE: writer.append_one, TWO: writer.append_two}
        await setup.stub.seen()
        setup.stub.pin(together=True)
        timed = await interleave({name: block(way, _TIMES) for name, way in ways.items()}, rounds)
        setup.stub.pin(together=False)
        seen = await setup.stub.seen()
    case: dict[str, str | int] = {"on": setup.on_stub.name, "layout": ITEM_COLLECTION}
    return [one.row(name, case, fault_on_stub(seen, writer.sent[name])) for name, one in timed.items()]


class _Writer:
    """Appends to a known session in each way that is compared, and records which messages were sent.

    Handles and messages are made beforehand: an append is of messages that are there.

    Args:
        store: makes the handles.
        sender: puts items.
        times: how often each way is called.

    Attributes:
        sent: the numbers of the messages, by the way.
    """

    def __init__(self, store: ChatHistoryStore, sender: OurSender, times: int) -> None:
        self.sent: dict[str, list[int]] = defaultdict(list)
        self._sender = sender
        self._one, self._two = store.session("turns-one"), store.session("turns-two")
        self._messages = iter([new_message() for _ in range(times)])
        self._turns = iter([new_turn() for _ in range(times)])

    async def put(self, _: int) -> None:
        """Put an item with a message's text."""
        number = new_number()
        self.sent[PUT].append(number)
        await self._sender.send("put_item", content_of(number))

    async def append_one(self, _: int) -> None:
        """Append one message."""
        message = next(self._messages)
        self.sent[ONE].append(number_of(message))
        await self._one.aadd_messages([message])

    async def append_two(self, _: int) -> None:
        """Append a person's message and the model's answer."""
        turn = next(self._turns)
        self.sent[TWO] += map(number_of, turn)
        await self._two.aadd_messages(turn)
