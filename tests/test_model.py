"""A session held against a plain Python list, in whatever order things happen to it."""

from __future__ import annotations

import time
import uuid
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from chathistory_async import DynamoDBChatMessageHistory
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


def machine(table: str, dynamodb: Any, kms_key: str | None) -> type[RuleBasedStateMachine]:
    class Session(RuleBasedStateMachine):
        handles: list[DynamoDBChatMessageHistory]

        @initialize(size=st.none() | st.integers(1, 4), ttl=st.none() | st.just(1000))
        def begin(self, size: int | None, ttl: int | None) -> None:
            self.session_id = f"model-{uuid.uuid4().hex}"
            self.size = size
            self.expected: list[BaseMessage] = []
            self.handles = [
                DynamoDBChatMessageHistory(table, self.session_id, history_size=size, ttl=ttl, kms_key_id=kms_key)
                for _ in range(HANDLES)
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

        @rule(seconds_ago=st.integers(0, 10**6))
        def expire(self, seconds_ago: int) -> None:
            if self.expected:
                self.set_attribute("expireAt", {"N": str(int(time.time()) - seconds_ago)})
                self.expected = []

        @rule()
        def another_adds_an_attribute(self) -> None:
            if self.expected:
                self.set_attribute("title", {"S": "x"})

        @invariant()
        def all_handles_read_the_same(self) -> None:
            if hasattr(self, "handles"):
                assert self.handles[0].messages == self.expected

        def set_attribute(self, name: str, value: dict[str, str]) -> None:
            dynamodb.update_item(
                TableName=table,
                Key={"SessionId": {"S": self.session_id}},
                UpdateExpression="SET #name = :value",
                ExpressionAttributeNames={"#name": name},
                ExpressionAttributeValues={":value": value},
            )

    return Session


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_session_is_like_a_list(table: str, dynamodb: Any, kms_key: str, encrypted: bool) -> None:
    run_state_machine_as_test(
        machine(table, dynamodb, kms_key if encrypted else None),
        settings=settings(
            max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
