"""A session held against a plain Python list, in whatever order things happen to it."""

from __future__ import annotations

import time
import uuid
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from plain_values import same

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory, IdempotencyKeyReusedError
from chathistory_async._sync.bridge import run
from chathistory_async.json_session import JsonSession

HANDLES = 3
KEYS = ["a", "b"]

contents = st.text(st.characters(codec="utf-8"), max_size=10)
extras = st.dictionaries(st.text("ab.#", min_size=1), st.none() | st.integers(-5, 5) | st.just(0.5), max_size=2)
messages = st.builds(
    lambda kind, content, extra: kind(content=content, additional_kwargs=extra),
    st.sampled_from([HumanMessage, AIMessage, SystemMessage]),
    contents,
    extras,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=5) | contents | st.sets(st.integers()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(contents, inner, max_size=3),
    max_leaves=4,
)


class Messages:
    """A handle on a session of messages."""

    elements = messages

    def __init__(self, history: DynamoDBChatMessageHistory) -> None:
        self.history = history
        self.pop = history.pop_message
        self.replace = history.replace_message
        self.delete = history.delete_messages
        self.clear = history.clear

    def add(self, batch: list[Any], key: str | None, *, native: bool) -> None:
        if native:
            run(self.history.aadd_messages, batch, idempotency_key=key)
        else:
            self.history.add_messages(batch, idempotency_key=key)

    def read(self, **options: Any) -> list[Any]:
        return self.history.get_messages(**options) if options else self.history.messages

    def page(self, limit: int, before: str | None = None) -> tuple[list[tuple[str, Any]], str | None]:
        page = self.history.page(limit, before)
        return [(stored.id, stored.message) for stored in page.messages], page.cursor


class Values:
    """A handle on a session of JSON values, with the same methods."""

    elements = values

    def __init__(self, session: JsonSession) -> None:
        self.session = session
        self.pop = session.pop
        self.replace = session.replace
        self.delete = session.delete
        self.clear = session.clear
        self.read = session.get

    def add(self, batch: list[Any], key: str | None, *, native: bool) -> None:
        if native:
            run(self.session.aadd, batch, key)
        else:
            self.session.add(batch, key)

    def page(self, limit: int, before: str | None = None) -> tuple[list[tuple[str, Any]], str | None]:
        page = self.session.page(limit, before)
        return [(stored.id, stored.value) for stored in page.values], page.cursor


def machine(
    dynamodb: Any, settings: dict[str, Any], kind: type[Messages] | type[Values] = Messages
) -> type[RuleBasedStateMachine]:
    """A session of such settings, which may be in either layout, and of messages or of JSON values."""
    table, collection, indexed = settings["table_name"], "sort_key_name" in settings, "session_index" in settings
    elements, of_a_store = kind.elements, indexed or kind is Values
    # Some hundred are compressed. A single item takes long to read with so many.
    times = st.sampled_from([1, 1, 1, 1, 17, 60] if collection else [1])
    batches = st.builds(lambda batch, times: batch * times, st.lists(elements, max_size=6), times)

    class Session(RuleBasedStateMachine):
        handles: list[Messages] | list[Values]

        @initialize(size=st.none() | st.integers(1, 4), ttl=st.none() | st.just(1000))
        def begin(self, size: int | None, ttl: int | None) -> None:
            self.session_id = f"model-{uuid.uuid4().hex}"
            self.size = size
            self.expected: list[Any] = []
            self.stored_by_key: dict[str, list[Any]] = {}
            options = settings | {"history_size": size, "ttl": ttl}
            if of_a_store:
                self.store = ChatHistoryStore(**options)
            self.handles = [self.new_handle(options) for _ in range(HANDLES)]

        def new_handle(self, options: dict[str, Any]) -> Any:
            if kind is Values:
                return Values(self.store.json_session(self.session_id))
            if of_a_store:
                return Messages(self.store.session(self.session_id))
            return Messages(DynamoDBChatMessageHistory(session_id=self.session_id, **options))

        @rule(handle=st.integers(0, HANDLES - 1), batch=batches, native=st.booleans())
        def add(self, handle: int, batch: list[Any], native: bool) -> None:
            self.handles[handle].add(batch, None, native=native)
            self.expect(batch)

        @rule(handle=st.integers(0, HANDLES - 1), key=st.sampled_from(KEYS), batch=batches, native=st.booleans())
        def add_once(self, handle: int, key: str, batch: list[Any], native: bool) -> None:
            stored = self.stored_by_key.get(key)
            if stored is not None:
                self.handles[handle].add(stored, key, native=native)
            elif batch:
                self.handles[handle].add(batch, key, native=native)
                self.expect(batch)
                self.stored_by_key[key] = batch

        @rule(handle=st.integers(0, HANDLES - 1), key=st.sampled_from(KEYS), element=elements, at_end=st.booleans())
        def reuse_a_key(self, handle: int, key: str, element: Any, at_end: bool) -> None:
            stored = self.stored_by_key.get(key)
            if stored is not None:
                with pytest.raises(IdempotencyKeyReusedError):
                    self.handles[handle].add([*stored, element] if at_end else [element, *stored], key, native=True)

        def expect(self, batch: list[Any]) -> None:
            self.expected += batch
            if self.size is not None:
                self.expected = self.expected[-self.size :]

        @rule(handle=st.integers(0, HANDLES - 1))
        def read(self, handle: int) -> None:
            assert alike(self.handles[handle].read(), self.expected)

        @rule(handle=st.integers(0, HANDLES - 1))
        def clear(self, handle: int) -> None:
            self.handles[handle].clear()
            self.expected = []
            if not collection:
                # A single item holds its keys.
                self.stored_by_key = {}

        @precondition(lambda self: indexed)
        @rule()
        def delete(self) -> None:
            run(self.store.delete_session, self.session_id)
            self.expected = []
            self.stored_by_key = {}

        # Within the slack of history_size, what is removed makes room for what had fallen out.
        @precondition(lambda self: collection and self.size is None)
        @rule(handle=st.integers(0, HANDLES - 1))
        def pop(self, handle: int) -> None:
            assert alike(self.handles[handle].pop(), self.expected.pop() if self.expected else None)

        @precondition(lambda self: collection and self.size is None and self.expected)
        @rule(handle=st.integers(0, HANDLES - 1), element=elements, data=st.data())
        def replace(self, handle: int, element: Any, data: st.DataObject) -> None:
            ids = self.ids(handle)
            position = data.draw(st.integers(0, len(ids) - 1))
            self.handles[handle].replace(ids[position], element)
            self.expected[position] = element
            assert self.ids(handle) == ids

        @precondition(lambda self: collection and self.size is None and self.expected)
        @rule(handle=st.integers(0, HANDLES - 1), data=st.data())
        def remove(self, handle: int, data: st.DataObject) -> None:
            ids = self.ids(handle)
            positions = st.sets(st.integers(0, len(ids) - 1), min_size=1, max_size=8)
            # One of them, several, or every second one.
            gone = data.draw(positions | st.just(set(range(0, len(ids), 2))))
            self.handles[handle].delete([ids[position] for position in gone])
            left = [position for position in range(len(ids)) if position not in gone]
            self.expected = [self.expected[position] for position in left]
            assert self.ids(handle) == [ids[position] for position in left]

        @precondition(lambda self: collection and self.size is None and self.expected)
        @rule(handle=st.integers(0, HANDLES - 1), limit=st.none() | st.integers(1, 5), data=st.data())
        def read_up_to(self, handle: int, limit: int | None, data: st.DataObject) -> None:
            ids = self.ids(handle)
            position = data.draw(st.integers(0, len(ids) - 1))
            read = self.handles[handle].read(up_to=ids[position], limit=limit)
            assert alike(read, self.expected[: position + 1][-(limit or 0) :])

        @precondition(lambda self: collection and self.size is None)
        @rule(handle=st.integers(0, HANDLES - 1), limit=st.integers(1, 7))
        def page_back(self, handle: int, limit: int) -> None:
            expected = self.expected[-12 * limit :]
            found: list[Any] = []
            page, cursor = self.handles[handle].page(limit)
            while page:
                found = [element for _, element in page] + found
                if cursor is None or len(found) >= len(expected):
                    break
                assert len(page) == limit
                page, cursor = self.handles[handle].page(limit, cursor)
            assert alike(found, expected)

        def ids(self, handle: int) -> list[str]:
            page, _ = self.handles[handle].page(max(1, len(self.expected)))
            assert alike([element for _, element in page], self.expected)
            return [name for name, _ in page]

        @rule(handle=st.integers(0, HANDLES - 1), limit=st.integers(1, 5))
        def read_the_latest(self, handle: int, limit: int) -> None:
            assert alike(self.handles[handle].read(limit=limit), self.expected[-limit:])

        @rule(seconds_ago=st.integers(0, 10**6))
        def expire(self, seconds_ago: int) -> None:
            if self.expected:
                for key in self.keys():
                    self.set_attribute(key, "expireAt", {"N": str(int(time.time()) - seconds_ago)})
                self.expected = []
                # They expire with what was stored by them.
                self.stored_by_key = {}

        @rule()
        def another_adds_an_attribute(self) -> None:
            if self.expected and not collection:
                self.set_attribute({"SessionId": {"S": self.session_id}}, "title", {"S": "x"})

        @precondition(lambda self: indexed)
        @invariant()
        def the_index_counts_them(self) -> None:
            if hasattr(self, "handles"):
                info = run(self.store.get_session_info, self.session_id)
                assert (0 if info is None else info.message_count) == len(self.expected)

        @invariant()
        def all_handles_read_the_same(self) -> None:
            if hasattr(self, "handles"):
                assert alike(self.handles[0].read(), self.expected)

        def teardown(self) -> None:
            if of_a_store and hasattr(self, "handles"):
                self.store.close()

        def keys(self) -> list[dict[str, Any]]:
            answer = dynamodb.query(
                TableName=table,
                KeyConditionExpression="SessionId = :session",
                ExpressionAttributeValues={":session": {"S": self.session_id}},
                ProjectionExpression="SessionId, MessageId" if collection else "SessionId",
            )
            keys: list[dict[str, Any]] = answer["Items"]
            return keys

        def set_attribute(self, key: dict[str, Any], name: str, value: dict[str, str]) -> None:
            dynamodb.update_item(
                TableName=table,
                Key=key,
                UpdateExpression="SET #name = :value",
                ExpressionAttributeNames={"#name": name},
                ExpressionAttributeValues={":value": value},
            )

    return Session


def alike(found: Any, expected: Any) -> bool:
    """Equal messages, or JSON values of the same types, among which NaN is equal to itself."""
    return found == expected or same(found, expected)


@pytest.mark.sampled
# Two minutes on two cores that eight programs shared.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("examples", [4, pytest.param(20, marks=pytest.mark.stress)])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            "single item", marks=pytest.mark.real_engine("moto fails on the size of an attribute that is not there")
        ),
        "item collection",
        "item collection in parts",
        "item collection of JSON",
        "indexed item collection",
        "indexed item collection of JSON",
    ],
)
def test_a_session_is_like_a_list(
    request: pytest.FixtureRequest,
    dynamodb: Any,
    kms_key: str,
    layout: str,
    encrypted: bool,
    examples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if layout.endswith("in parts"):
        monkeypatch.setattr("chathistory_async._item_collection.records.PART_BYTES", 2_000)
    collection: dict[str, Any] = {} if layout == "single item" else {"sort_key_name": "MessageId"}
    if layout.startswith("indexed"):
        collection["session_index"] = True
    table = request.getfixturevalue("collection_table" if collection else "table")
    run_state_machine_as_test(
        machine(
            dynamodb,
            {"table_name": table, **collection, **({"kms_key_id": kms_key} if encrypted else {})},
            Values if layout.endswith("of JSON") else Messages,
        ),
        settings=settings(max_examples=examples, stateful_step_count=20, suppress_health_check=list(HealthCheck)),
    )
