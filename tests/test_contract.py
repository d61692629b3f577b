"""The promises of a history, which every variant keeps in every layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from conftest import Make
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from plain_values import EXACT, OBJECTS, UNDECODABLE_NAME, Holder, same
from proxy import Fault, Proxy, Seen
from samples import EVERY_TYPE, FLOATS, humans, texts
from variants import ALL_VARIANTS, SDK_VARIANTS, Variant

from chathistory_async import DynamoDBChatMessageHistory, MessageNotStorableError

Through = Callable[..., DynamoDBChatMessageHistory]
Stored = Callable[..., list[Any]]

VARIANTS = [*ALL_VARIANTS, *SDK_VARIANTS]
ODD_NAMES = ["Data", "ttl", "chat-history", "a.b", "with space", "#x", ":x", "[0]", "名前", "size", "AND"]


async def test_a_session_that_was_never_written_is_empty(variant: type[Variant], make: Make) -> None:
    assert await variant(make()).read() == []


async def test_messages_come_back_in_the_order_they_were_added(variant: type[Variant], make: Make) -> None:
    history = variant(make())
    await history.add(humans(1, 2, 3))
    await history.add(humans(4))
    await history.add(humans(5, 6))
    assert texts(await history.read()) == ["1", "2", "3", "4", "5", "6"]


async def test_every_type_of_message_comes_back_equal(variant: type[Variant], make: Make) -> None:
    await variant(make()).add(EVERY_TYPE)
    back = await variant(make()).read()
    assert back == EVERY_TYPE
    assert [type(message) for message in back] == [type(message) for message in EVERY_TYPE]


@pytest.mark.parametrize("coerce", [False, True])
async def test_floats_come_back_exactly_and_as_json_numbers(variant: type[Variant], make: Make, coerce: bool) -> None:
    history = make(coerce_float_to_decimal=coerce)
    message = AIMessage("", response_metadata={"floats": FLOATS}, additional_kwargs={"whole": 1e22})
    await variant(history).add([message])
    [back] = await variant(history).read()
    assert back == message
    # As DynamoDB's numbers, whole ones are ints again.
    kinds = {float} if variant.encrypted or variant.collection else {int, float}
    assert {type(number) for number in back.response_metadata["floats"]} == kinds


async def test_bytes_and_sets_come_back_equal(variant: type[Variant], make: Make) -> None:
    extra = {"bytes": b"\x00\xff", "empty": b"", "texts": {"a", "b"}, "numbers": {1, 2.5}, "blobs": {b"a", b"\xff"}}
    message = HumanMessage("x", additional_kwargs=extra)
    await variant(make()).add([message])
    assert await variant(make()).read() == [message]


async def test_objects_come_back_in_their_plain_form(variant: type[Variant], make: Make) -> None:
    given = {name: value for name, (value, _) in OBJECTS.items()}
    expected = {name: plain for name, (_, plain) in OBJECTS.items()}
    call: Any = {"name": "f", "args": {"objects": given}, "id": "1"}
    tool = ToolMessage("x", tool_call_id="1", artifact=[given], additional_kwargs=given, response_metadata=given)
    await variant(make()).add(
        [HumanMessage("before"), tool, AIMessage([{"type": "x", "objects": given}], tool_calls=[call])]
    )
    before, tool_back, answer = await variant(make()).read()
    assert before == HumanMessage("before")
    assert isinstance(tool_back, ToolMessage)
    assert isinstance(answer, AIMessage)
    assert same([expected], tool_back.artifact)
    assert same(expected, tool_back.additional_kwargs)
    assert same(expected, tool_back.response_metadata)
    assert same([{"type": "x", "objects": expected}], answer.content)
    assert same({"objects": expected}, answer.tool_calls[0]["args"])


async def test_plain_values_come_back_exactly(variant: type[Variant], make: Make) -> None:
    await variant(make()).add(
        [ToolMessage([{"type": "x", "v": value}], tool_call_id=name, artifact=value) for name, value in EXACT.items()]
    )
    for back in await variant(make()).read():
        assert isinstance(back, ToolMessage)
        assert same(EXACT[back.tool_call_id], back.artifact)
        assert same([{"type": "x", "v": EXACT[back.tool_call_id]}], back.content)


async def test_content_with_surrogates(variant: type[Variant], make: Make) -> None:
    messages = [HumanMessage(UNDECODABLE_NAME), AIMessage("a pair: \ud835\udcb3")]
    await variant(make()).add(messages)
    exact = variant.encrypted or variant.collection
    nearest = ["caf\ufffd.txt", "a pair: \U0001d4b3"]
    assert texts(await variant(make()).read()) == (texts(messages) if exact else nearest)


class Mine(AIMessage):
    mood: str = "calm"


async def test_a_subclass_comes_back_as_the_class_that_its_dump_names(variant: type[Variant], make: Make) -> None:
    await variant(make()).add([Mine(content="x", mood="merry")])
    [back] = await variant(make()).read()
    assert type(back) is AIMessage
    assert back.model_dump() == Mine(content="x", mood="merry").model_dump()


class Connection:
    pass


async def test_what_nothing_else_converts_is_converted_by_default(variant: type[Variant], make: Make) -> None:
    def convert(value: Any) -> Any:
        return {"kind": type(value).__name__, "rows": [(1, Decimal(2))]}

    await variant(make(default=convert)).add([ToolMessage("x", tool_call_id="1", artifact=[Connection()])])
    [back] = await variant(make()).read()
    assert isinstance(back, ToolMessage)
    assert back.artifact == [{"kind": "Connection", "rows": [[1, 2]]}]


async def test_what_has_no_plain_form_is_refused_before_any_write_and_logged(
    variant: type[Variant], through: Through, proxy: Proxy, session_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the launch code is 0000"
    bad = AIMessage(secret, additional_kwargs={"parsed": Holder(items=[secret, secret, 3, Connection()])})
    with pytest.raises(MessageNotStorableError) as caught:
        await variant(through()).add([HumanMessage(secret), bad, HumanMessage(secret)])
    assert not proxy.seen
    assert str(caught.value).startswith(
        "messages[1].additional_kwargs.parsed.items[3] cannot be stored: a Connection has no plain form"
    )
    [record] = [record for record in caplog.records if record.name == "chathistory_async"]
    assert record.levelname == "ERROR"
    assert record.getMessage() == f"Nothing was stored: {caught.value}"
    assert session_id in record.getMessage()
    assert secret not in caplog.text


async def test_every_write_waits_for_transactions_of_others(
    variant: type[Variant], through: Through, proxy: Proxy
) -> None:
    sent = Counter[str]()

    def two_conflicts_for_each_write(seen: Seen) -> Fault:
        if seen.operation in {"GetItem", "Query"}:
            return Fault.NONE
        request = seen.operation + json.dumps(seen.body)
        sent[request] += 1
        return Fault.CONFLICT if sent[request] <= 2 else Fault.NONE

    proxy.schedule = two_conflicts_for_each_write
    history = variant(through())
    await history.add(humans(1))
    await history.add(humans(2, 3))
    assert texts(await history.read()) == ["1", "2", "3"]
    await history.clear()
    assert await history.read() == []
    assert len(sent) >= 3
    assert set(sent.values()) == {3}


async def test_a_handle_sees_what_another_wrote(variant: type[Variant], make: Make) -> None:
    one, other = variant(make()), variant(make())
    await one.add(humans("from one"))
    await other.add(humans("from other"))
    assert texts(await one.read()) == texts(await other.read()) == ["from one", "from other"]


async def test_sessions_do_not_mix(variant: type[Variant], make: Make, session_id: str) -> None:
    await variant(make()).add(humans("mine"))
    other = variant(make(session=session_id + "-other"))
    assert await other.read() == []
    await other.clear()
    assert texts(await variant(make()).read()) == ["mine"]


async def test_clear_removes_all_messages_and_only_then(variant: type[Variant], make: Make, stored: Stored) -> None:
    history = variant(make())
    await history.add(humans(1, 2))
    assert len(stored()) == 2
    await history.clear()
    assert await history.read() == []
    assert stored() == []
    await history.add(humans(3))
    assert texts(await history.read()) == ["3"]


async def test_clearing_nothing_does_nothing(variant: type[Variant], make: Make, stored: Stored) -> None:
    await variant(make()).clear()
    assert stored() == []


async def test_a_session_cleared_by_another_handle_begins_anew(variant: type[Variant], make: Make) -> None:
    one, other = variant(make()), variant(make())
    await one.add(humans(1))
    await other.clear()
    await one.add(humans(2))
    assert texts(await other.read()) == ["2"]


async def test_adding_nothing_writes_nothing(variant: type[Variant], through: Through, proxy: Proxy) -> None:
    await variant(through()).add([])
    assert not proxy.seen


@pytest.mark.sampled
@pytest.mark.parametrize("name", ODD_NAMES)
async def test_attributes_may_have_any_name(variant: type[Variant], make: Make, stored: Stored, name: str) -> None:
    history = variant(make(history_messages_key=name, ttl_key_name=f"{name}2", ttl=60, history_size=2))
    await history.add(humans(1, 2))
    await history.add(humans(3))
    assert texts(await history.read()) == ["2", "3"]
    assert 2 <= len(stored(name)) <= 2 + variant.collection


async def test_an_eventually_consistent_read_is_asked_for_only_on_request(
    variant: type[Variant], through: Through, proxy: Proxy
) -> None:
    for consistent in (True, False):
        await variant(through(consistent_read=consistent)).read()
    assert [seen.body["ConsistentRead"] for seen in proxy.seen] == [True, False]


def kept(variant: type[Variant], size: int) -> dict[str, Any]:
    """The reader's option for reading only what is kept: an item collection stores a few messages more."""
    return {"history_size": size} if variant.collection else {}


class TestHistorySize:
    async def test_keeps_the_latest(self, variant: type[Variant], make: Make, stored: Stored) -> None:
        history = variant(make(history_size=4))
        for number in range(10):
            await history.add(humans(number))
            kept = [str(n) for n in range(max(0, number - 3), number + 1)]
            assert texts(await history.read()) == kept
            assert len(kept) <= len(stored()) < len(kept) + variant.collection * 4 + 1

    @pytest.mark.sampled
    @pytest.mark.parametrize("batch", [2, 3, 4, 5, 9])
    async def test_with_batches(self, variant: type[Variant], make: Make, batch: int) -> None:
        history = variant(make(history_size=4))
        expected: list[str] = []
        for start in range(0, 5 * batch, batch):
            await history.add(humans(*range(start, start + batch)))
            expected = (expected + [str(n) for n in range(start, start + batch)])[-4:]
            assert texts(await variant(make(**kept(variant, 4))).read()) == expected

    async def test_bounds_what_is_read_of_a_longer_session_at_the_next_append_at_the_latest(
        self, variant: type[Variant], make: Make
    ) -> None:
        await variant(make()).add(humans(1, 2, 3))
        history = variant(make(history_size=2))
        assert texts(await history.read()) == ["1", "2", "3"][variant.collection :]
        await history.add(humans(4))
        assert texts(await history.read()) == ["3", "4"]

    @pytest.mark.sampled
    @pytest.mark.parametrize(("stored", "size", "batch"), [(9, 3, 2), (300, 20, 2), (300, 280, 150), (90, 95, 20)])
    async def test_set_on_a_session_that_outgrew_it(
        self, variant: type[Variant], make: Make, stored: int, size: int, batch: int
    ) -> None:
        blob = HumanMessage("with bytes", additional_kwargs={"bytes": b"\xff"})
        await variant(make()).add([*humans(*range(stored - 1)), blob])
        new = humans(*range(1000, 1000 + batch))
        expected = [*humans(*range(stored - 1)), blob, *new][-size:]
        await variant(make(history_size=size)).add(new)
        assert await variant(make(**kept(variant, size))).read() == expected

    @pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
    async def test_must_be_a_positive_integer(self, make: Make, size: Any) -> None:
        with pytest.raises(ValueError, match="history_size must be a positive integer"):
            make(history_size=size)


class TestSyncConveniences:
    def test_add_one_message_each(self, make: Make) -> None:
        history = make()
        history.add_user_message("question")
        history.add_user_message(HumanMessage("named", name="n"))
        history.add_ai_message("answer")
        history.add_ai_message(AIMessage("built", id="1"))
        history.add_message(HumanMessage("any"))
        assert history.messages == [
            HumanMessage("question"),
            HumanMessage("named", name="n"),
            AIMessage("answer"),
            AIMessage("built", id="1"),
            HumanMessage("any"),
        ]

    def test_str_is_the_transcript(self, make: Make) -> None:
        history = make()
        history.add_messages([HumanMessage("question"), AIMessage("answer")])
        assert str(history) == "Human: question\nAI: answer"

    def test_messages_cannot_be_assigned(self, make: Make) -> None:
        with pytest.raises(NotImplementedError, match="Direct assignment to 'messages' is not allowed"):
            make().messages = []

    def test_settings_can_be_read(self, make: Make, session_id: str, table: str) -> None:
        history = make(ttl=5, history_size=3)
        assert (history.table_name, history.session_id, history.key) == (table, session_id, {"SessionId": session_id})
        assert (history.ttl, history.ttl_key_name, history.history_size) == (5, "expireAt", 3)
        assert (history.history_messages_key, history.coerce_float_to_decimal) == ("History", False)
