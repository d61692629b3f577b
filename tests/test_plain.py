"""The plain form of messages, without an engine: what is compared, and where they differ."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage

from chathistory_async._codec.messages import are_equal
from chathistory_async._codec.unstorable import first_loss


def holding(value: Any) -> AIMessage:
    return AIMessage("x", response_metadata={"v": [value]})


def test_messages_are_equal_if_their_dumps_are_and_nan_equals_nan() -> None:
    assert are_equal(holding(float("nan")), holding(float("nan")))
    assert are_equal(holding((1, 2)), holding([1, 2]))
    assert not are_equal(holding(float("nan")), holding(float("inf")))
    assert not are_equal(holding(1), holding(2))
    assert not are_equal(AIMessage("x"), HumanMessage("x"))
    assert not are_equal(AIMessage("x"), AIMessageChunk(content="x"))


@pytest.mark.parametrize(
    ("value", "back", "path"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None, "more": 2}]}, None),
        ({"a": [1, {"b": None}]}, {"a": [1, {}]}, ".a[1].b"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ".a[1].b"),
        ({"a": [1, 2]}, {"a": [1]}, ".a"),
        ({"a": [1]}, {"a": {}}, ".a"),
        ({"a b": {"c": {}}}, {"a b": {"c": None}}, "['a b'].c"),
        (1, 2, ""),
    ],
)
def test_the_path_leads_to_what_was_lost(value: Any, back: Any, path: str | None) -> None:
    assert first_loss(value, back) == path
