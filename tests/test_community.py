"""langchain-community's class itself and ours on one table: each reads what the other wrote."""

from __future__ import annotations

import inspect
import json
from decimal import Decimal
from typing import Any

import pytest
from conftest import Make
from langchain_community.chat_message_histories import DynamoDBChatMessageHistory as Theirs
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from plain_values import EXACT, same
from pydantic import BaseModel
from samples import EVERY_TYPE, described, humans, texts
from variants import PLAIN_VARIANTS, Variant

from chathistory_async import DynamoDBChatMessageHistory, MessageNotStorableError

# Without the encrypted one, which langchain-community cannot read.
VARIANTS = PLAIN_VARIANTS


@pytest.fixture
def theirs(table: str, session_id: str) -> Theirs:
    return Theirs(table, session_id)


@pytest.mark.sampled
@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
async def test_each_reads_what_the_other_wrote(
    variant: type[Variant], make: Make, theirs: Theirs, message: BaseMessage
) -> None:
    theirs.add_messages([message])
    assert await variant(make()).read() == [message]
    await variant(make()).add([message])
    assert theirs.messages == [message, message]
    assert [type(back) for back in theirs.messages] == [type(message)] * 2


def test_both_store_the_same(make: Make, theirs: Theirs, item: Any) -> None:
    theirs.add_messages(EVERY_TYPE)
    stored_by_them = item()["History"]
    theirs.clear()
    make().add_messages(EVERY_TYPE)
    assert item()["History"] == stored_by_them


async def test_both_may_write_in_turn(variant: type[Variant], make: Make, theirs: Theirs, item: Any) -> None:
    ours = variant(make())
    await ours.add(humans(1))
    theirs.add_messages(humans(2))
    await ours.add(humans(3))
    theirs.add_messages(humans(4))
    assert texts(theirs.messages) == texts(await ours.read()) == ["1", "2", "3", "4"]
    theirs.clear()
    assert await ours.read() == []
    await ours.add(humans(5))
    await ours.clear()
    assert theirs.messages == []


async def test_settings_mean_the_same(variant: type[Variant], table: str, session_id: str) -> None:
    settings: dict[str, Any] = {
        "ttl": 100,
        "ttl_key_name": "goneAt",
        "history_size": 3,
        "history_messages_key": "Messages",
        "coerce_float_to_decimal": True,
    }
    theirs, ours = Theirs(table, session_id, **settings), DynamoDBChatMessageHistory(table, session_id, **settings)
    theirs.add_messages(humans(1, 2))
    await variant(ours).add(humans(3, 4))
    assert texts(theirs.messages) == ["2", "3", "4"]
    theirs.add_messages(humans(5))
    assert texts(await variant(ours).read()) == ["3", "4", "5"]


async def test_their_decimals_come_back_as_json_numbers(
    variant: type[Variant], make: Make, table: str, session_id: str
) -> None:
    theirs = Theirs(table, session_id, coerce_float_to_decimal=True)
    arguments = {"x": 1, "y": 0.5, "z": [1e-7, 12345678901234567890]}
    call = {"name": "f", "args": arguments, "id": "1", "type": "tool_call"}
    theirs.add_messages([AIMessage("", tool_calls=[call])])
    assert isinstance(theirs.messages[0].tool_calls[0]["args"]["y"], Decimal)  # type: ignore[attr-defined]
    [back] = await variant(make()).read()
    assert isinstance(back, AIMessage)
    assert back.tool_calls[0]["args"] == arguments
    assert json.loads(json.dumps(back.tool_calls[0]["args"])) == arguments


async def test_our_floats_can_be_read_by_them(variant: type[Variant], make: Make, theirs: Theirs) -> None:
    await variant(make()).add([HumanMessage("", additional_kwargs={"score": 0.5})])
    assert theirs.messages[0].additional_kwargs == {"score": Decimal("0.5")}


async def test_they_read_past_what_dynamodb_has_no_form_for_and_keep_it(
    variant: type[Variant], make: Make, theirs: Theirs
) -> None:
    messages = [ToolMessage("text", tool_call_id=name, artifact=value) for name, value in EXACT.items()]
    await variant(make()).add(messages)
    assert texts(theirs.messages) == ["text"] * len(messages)
    assert "text" in str(theirs)
    theirs.add_messages(humans("written anew, with all that was there"))
    *back, _ = await variant(make()).read()
    for message in back:
        assert isinstance(message, ToolMessage)
        assert same(EXACT[message.tool_call_id], message.artifact)


async def test_objects_are_stored_as_they_store_them(
    variant: type[Variant], make: Make, theirs: Theirs, item: Any
) -> None:
    class Person(BaseModel):
        name: str
        tags: tuple[str, ...] = ("x",)

    person = Person(name="Ada")
    messages: list[BaseMessage] = [
        AIMessage("", additional_kwargs={"parsed": person}, response_metadata={"rows": [(1, "Ada"), (2, None)]}),
        ToolMessage("x", tool_call_id="1", artifact=[Document(page_content="x", metadata={"n": 1})]),
        Mine(content="x", mood="merry"),
    ]
    theirs.add_messages([message.model_copy(deep=True) for message in messages])
    stored_by_them = item()["History"]
    theirs.clear()
    await variant(make()).add(messages)
    assert item()["History"] == stored_by_them
    assert theirs.messages == await variant(make()).read()


async def test_a_subclass_that_they_could_not_read_again_is_refused(
    variant: type[Variant], make: Make, theirs: Theirs, item: Any
) -> None:
    with pytest.raises(
        MessageNotStorableError, match=r"messages\[1\].type cannot be stored: nothing could read it back"
    ):
        await variant(make()).add([HumanMessage("x"), Unknown(content="x")])
    assert item() is None
    theirs.add_messages([Unknown(content="x")])
    with pytest.raises(ValueError, match="unexpected message type"):
        _ = theirs.messages


class Mine(AIMessage):
    mood: str = "calm"


class Unknown(BaseMessage):
    type: str = "unknown"


async def test_their_dicts_are_never_taken_for_marks(variant: type[Variant], make: Make, theirs: Theirs) -> None:
    extra = {"a": {"$set": [1]}, "b": {"$float": "nan"}, "c": {"$dict": []}, "d": {"$chathistory": 1}}
    theirs.add_messages([HumanMessage("x", additional_kwargs=extra)])
    assert await variant(make()).read() == [HumanMessage("x", additional_kwargs=extra)]


def test_the_signature_is_theirs_and_ours_come_after() -> None:
    their_parameters = inspect.signature(Theirs).parameters
    our_parameters = inspect.signature(DynamoDBChatMessageHistory).parameters
    described = {name: (parameter.kind, parameter.default) for name, parameter in our_parameters.items()}
    expected = {name: (parameter.kind, parameter.default) for name, parameter in their_parameters.items()}
    assert list(our_parameters)[: len(their_parameters)] == list(their_parameters)
    assert {name: described[name] for name in expected} == expected
    ours_only = list(our_parameters.values())[len(their_parameters) :]
    assert [parameter.name for parameter in ours_only] == [
        "region_name",
        "config",
        "consistent_read",
        "kms_endpoint_url",
        "sort_key_name",
        "fast_path",
        "default",
        "tracing",
    ]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours_only)


def test_all_their_methods_and_settings_are_there(make: Make, theirs: Theirs) -> None:
    ours = make()
    their_names = {name for name in [*vars(theirs), *dir(Theirs)] if not name.startswith("_")}
    # A boto3 resource, which an asynchronous client does not have.
    assert {name for name in their_names if not hasattr(type(ours), name)} == {"table"}
    for name in ("session_id", "key", "ttl", "ttl_key_name", "history_size", "history_messages_key"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_key_may_be_given_as_they_take_it(table: str, session_id: str) -> None:
    key = {"SessionId": session_id}
    theirs = Theirs(table, "not used", key=key)
    ours = DynamoDBChatMessageHistory(table, "not used", None, "SessionId", key)
    ours.add_user_message("x")
    assert texts(theirs.messages) == ["x"]
    assert ours.key == theirs.key
