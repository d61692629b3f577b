"""Stored items are damaged at random, in any attribute: each call stays bounded, and nothing else suffers."""

from __future__ import annotations

import random
import secrets
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from conftest import Make
from langchain_core.messages import AIMessage, HumanMessage
from proxy import Proxy
from samples import humans, texts

from chathistory_async import ChatHistoryError, DynamoDBChatMessageHistory
from chathistory_async._item_collection.sort_keys import message_id_of

SEEDS = range(5)
LAYOUTS = ["single item", "item collection", "encrypted item collection", "indexed item collection"]
# More than any call takes on three sound messages; 50 and more where a call tries again in vain.
MOST_REQUESTS = 25
REMOVED = object()

ANYTHING: list[Any] = [
    REMOVED,
    {"S": ""},
    {"S": "x" * 3000},
    {"S": "9" * 38},
    {"N": "0"},
    {"N": "-1"},
    {"N": "2"},
    {"N": "1.5"},
    {"N": "9" * 38},
    {"N": "9.9E+125"},
    {"N": "1E-130"},
    {"B": b""},
    {"B": b"\x00\xff" * 50},
    {"B": zlib.compress(b"{}")},
    {"BOOL": True},
    {"NULL": True},
    {"L": []},
    {"L": [{"N": "1"}, {"S": "x"}]},
    {"M": {}},
    {"M": {"type": {"S": "human"}}},
    {"SS": ["a", "b"]},
    {"NS": ["1", "9.9E+125"]},
    {"BS": [b"a"]},
]
JSON_TEXTS = [
    "",
    "null",
    "[]",
    '"text"',
    "1e999",
    "[" * 100_000,
    '{"type": 5, "data": {}}',
    '{"type": "human"}',
    '{"type": "human", "data": {}}',
    '{"type": "human", "data": []}',
    '{"type": "human", "data": {"content": 5}}',
    '{"type": "unheard of", "data": {"content": "x"}}',
    '{"type": "chat", "data": {"content": "x"}}',
    '{"type": "ai", "data": {"content": "x", "tool_calls": 5}}',
    '{"type": "ai", "data": {"content": "x", "tool_calls": [5]}}',
    '{"type": "ai", "data": {"content": "x", "additional_kwargs": {"tool_calls": {"a": 1}}}}',
    '{"type": "ai", "data": {"content": "x", "usage_metadata": "many"}}',
    '{"type": "tool", "data": {"content": {"$bytes": "?"}, "tool_call_id": []}}',
    '{"type": "human", "data": {"content": {"$set": [[]]}}}',
    '{"type": "human", "data": {"content": {"$int": "' + "9" * 5000 + '"}}}',
]


@pytest.fixture(params=LAYOUTS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def layout(kind: str, table: str, collection_table: str) -> dict[str, Any]:
    if kind == "single item":
        return {"table_name": table}
    indexed = {"session_index": True} if kind.startswith("indexed") else {}
    return {"table_name": collection_table, "sort_key_name": "MessageId", **indexed}


@pytest.fixture
def encryption(kind: str, kms_key: str) -> dict[str, Any]:
    return {"kms_key_id": kms_key} if kind.startswith("encrypted") else {}


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container inside an item's attributes that holds an attribute value, with the value's name in it."""
    for name, element in value.items():
        yield value, name
        if "M" in element:
            yield from places_in(element["M"])
        for at, inner in enumerate(element.get("L", ())):
            yield element["L"], at
            if "M" in inner:
                yield from places_in(inner["M"])


def damage(item: dict[str, Any], chance: random.Random) -> None:
    """Change an attribute of an item, or a value in it, that is no part of its key."""
    attributes = {name: value for name, value in item.items() if name not in ("SessionId", "MessageId")}
    # Half of the time a whole attribute: most of the places are deep in a message.
    names = [(attributes, name) for name in attributes]
    container, name = chance.choice(names if chance.random() < 0.5 else list(places_in(attributes)))
    if name == "History" and chance.random() < 0.5:
        value: Any = {"S": chance.choice(JSON_TEXTS)}
    elif "B" in container[name] and chance.random() < 0.5:
        data = bytearray(container[name]["B"])
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        value = {"B": bytes(data)}
    else:
        value = chance.choice(ANYTHING)
    if value is REMOVED:
        del container[name]
    else:
        container[name] = value
    for name in [name for name in item if name not in attributes and name not in ("SessionId", "MessageId")]:
        del item[name]
    item |= attributes


def message_items(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item.get("MessageId", {}).get("S", "m#").startswith("m#")]


def calls_on(history: DynamoDBChatMessageHistory, message_ids: list[str]) -> dict[str, Callable[[], Awaitable[Any]]]:
    async def iterate() -> None:
        async for _ in history.aiter():
            pass

    return {
        "read": history.aget_messages,
        "read one": lambda: history.aget_messages(limit=1),
        "iterate": iterate,
        "page": lambda: history.apage(2),
        "append one": lambda: history.aadd_messages(humans("new")),
        "append two": lambda: history.aadd_messages(humans("new", "newer")),
        "copy": lambda: history.acopy_to(f"{history.session_id}-copy"),
        "replace": lambda: history.areplace_message(message_ids[0], HumanMessage("other")),
        "pop": history.apop_message,
        "delete": lambda: history.adelete_messages(message_ids[1:2]),
    }


@pytest.mark.sampled
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_call_is_bounded_and_what_is_damaged_can_be_removed(
    seed: int,
    make: Make,
    through: Callable[..., DynamoDBChatMessageHistory],
    items: Callable[[], list[dict[str, Any]]],
    layout: dict[str, Any],
    dynamodb: Any,
    proxy: Proxy,
    session_id: str,
) -> None:
    chance = random.Random(seed)
    in_items = "sort_key_name" in layout
    large = secrets.token_hex(300_000 if in_items else 3000)
    messages = [HumanMessage("one"), AIMessage(large, response_metadata={"a": [1, 2.5]}), HumanMessage("so on " * 999)]
    beside = make(session=f"{session_id}-beside")
    await beside.aadd_messages(humans("beside"))
    await make(ttl=9000).aadd_messages(messages)
    stored = message_items(items())
    for _ in range(chance.randint(1, 2)):
        item = chance.choice(stored)
        damage(item, chance)
        dynamodb.put_item(TableName=layout["table_name"], Item=item)

    keys = [item["MessageId"]["S"] for item in stored if in_items]
    message_ids = [message_id_of(key, 0) for key in keys if key.endswith("-00")] or [
        "0" * 16 + "-" + "0" * 16 + "-000000"
    ]
    calls = list(calls_on(through(ttl=9000), message_ids).items())
    # The calls that change the session come last, in any order.
    for name, call in chance.sample(calls[:4], 4) + chance.sample(calls[4:], len(calls) - 4):
        proxy.seen.clear()
        with suppress(ChatHistoryError):
            await call()
        assert len(proxy.seen) <= MOST_REQUESTS, name
    assert await beside.aget_messages() == humans("beside")

    if in_items:
        for _ in messages:
            try:
                await make().aget_messages()
            except ChatHistoryError as error:
                await make().adelete_messages([error.message_id or "the error names no message"])
        await make().aget_messages()
    proxy.seen.clear()
    await through().aclear()
    assert len(proxy.seen) <= MOST_REQUESTS
    assert await make().aget_messages() == []
    assert not [item for item in message_items(items()) if "History" in item]
    await make().aadd_messages(humans("anew"))
    assert texts(await make().aget_messages()) == ["anew"]
