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
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._bridge import run

HANDLES = 3

contents = st.text(st.characters(codec="utf-8"), max_size=10)
extras = st.dictionaries(st.text("ab.#", min_size=1), st.none() | st.integers(-5, 5) | st.just(0.5), max_size=2)
messages = st.builds(
    lambda kind, content, extra: kind(content=content, additional_kwargs=extra),
    st.sampled_from([HumanMessage, AIMessage, SystemMessage]),
    contents,
    extras,
)


def machine(dynamodb: Any, settings: dict[str, Any]) -> type[RuleBasedStateMachine]:
    """A session of such settings, which may be in either layout."""
    table, collection, indexed = settings["table_name"], "sort_key_name" in settings, "session_index" in settings

    class Session(RuleBasedStateMachine):
        handles: list[DynamoDBChatMessageHistory]

        @initialize(size=st.none() | st.integers(1, 4), ttl=st.none() | st.just(1000))
        def begin(self, size: int | None, ttl: int | None) -> None:
            self.session_id = f"model-{uuid.uuid4().hex}"
            self.size = size
            self.expected: list[BaseMessage] = []
            options = settings | {"history_size": size, "ttl": ttl}
            if indexed:
                self.store = ChatHistoryStore(**options)
                self.handles = [self.store.session(self.session_id) for _ in range(HANDLES)]
            else:
                self.handles = [
                    DynamoDBChatMessageHistory(session_id=self.session_id, **options) for _ in range(HANDLES)
                ]

        @rule(handle=st.integers(0, HANDLES - 1), batch=st.lists(messages, max_size=6), native=st.booleans())
        def add(self, handle: int, batch: list[BaseMessage], native: bool) -> None:
            history = self.handles[handle]
            if native:
                run(history.aadd_messages, batch)
            else:
                history.add_messages(batch)
            self.expected += batch
            if self.size is not None:
                self.expected = self.expected[-self.size :]

        @rule(handle=st.integers(0, HANDLES - 1))
        def read(self, handle: int) -> None:
            assert self.handles[handle].messages == self.expected

        @rule(handle=st.integers(0, HANDLES - 1))
        def clear(self, handle: int) -> None:
            self.handles[handle].clear()
            self.expected = []

        # Within the slack of history_size, what is removed makes room for what had fallen out.
        @precondition(lambda self: collection and self.size is None)
        @rule(handle=st.integers(0, HANDLES - 1))
        def pop(self, handle: int) -> None:
            assert self.handles[handle].pop_message() == (self.expected.pop() if self.expected else None)

        @precondition(lambda self: collection and self.size is None and self.expected)
        @rule(handle=st.integers(0, HANDLES - 1), message=messages, data=st.data())
        def edit(self, handle: int, message: BaseMessage, data: st.DataObject) -> None:
            stored = self.handles[handle].page(len(self.expected)).messages
            assert [one.message for one in stored] == self.expected
            position = data.draw(st.integers(0, len(stored) - 1))
            if data.draw(st.booleans()):
                self.handles[handle].replace_message(stored[position].id, message)
                self.expected[position] = message
            else:
                self.handles[handle].delete_messages([stored[position].id])
                del self.expected[position]

        @rule(handle=st.integers(0, HANDLES - 1), limit=st.integers(1, 5))
        def read_the_latest(self, handle: int, limit: int) -> None:
            assert self.handles[handle].get_messages(limit=limit) == self.expected[-limit:]

        @rule(seconds_ago=st.integers(0, 10**6))
        def expire(self, seconds_ago: int) -> None:
            if self.expected:
                for key in self.keys():
                    self.set_attribute(key, "expireAt", {"N": str(int(time.time()) - seconds_ago)})
                self.expected = []

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
                assert self.handles[0].messages == self.expected

        def teardown(self) -> None:
            if indexed and hasattr(self, "handles"):
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


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            "single item", marks=pytest.mark.real_engine("moto fails on the size of an attribute that is not there")
        ),
        "item collection",
        "indexed item collection",
    ],
)
def test_a_session_is_like_a_list(
    request: pytest.FixtureRequest, dynamodb: Any, kms_key: str, layout: str, encrypted: bool
) -> None:
    collection: dict[str, Any] = {} if layout == "single item" else {"sort_key_name": "MessageId"}
    if layout.startswith("indexed"):
        collection["session_index"] = True
    table = request.getfixturevalue("collection_table" if collection else "table")
    run_state_machine_as_test(
        machine(dynamodb, {"table_name": table, **collection, **({"kms_key_id": kms_key} if encrypted else {})}),
        settings=settings(
            max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
