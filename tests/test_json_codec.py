"""Messages as JSON text, without an engine: what is stored reads back equal, and what would not is refused."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, messages_to_dict
from samples import EVERY_TYPE, NESTED, described

from chathistory_async import MessageNotStorableError, UndecodableItemError
from chathistory_async._json_codec import MAX_NESTING, decode_json, encode_json

SECRET = "the launch code is 0000"
MARKS = ["$bytes", "$set", "$int", "$$set", "$$$int", "$other", "$"]

text = st.text(st.characters(codec="utf-8"))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.dictionaries(text | st.sampled_from(MARKS), inner) | st.sets(text | numbers | st.binary())
    ),
    max_leaves=20,
)


def refusal(message: Any) -> str:
    with pytest.raises(MessageNotStorableError) as caught:
        encode_json(message, 3)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "its text could hold content"
    return str(caught.value)


@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
def test_every_type_reads_back_equal(message: BaseMessage) -> None:
    back = decode_json(encode_json(message, 0), 0)
    assert back == message
    assert type(back) is type(message)


# NESTED holds integers beyond 64 bits.
PLAIN = [message for message in EVERY_TYPE if NESTED not in vars(message).values()]


@pytest.mark.parametrize("message", PLAIN, ids=described)
def test_the_text_is_that_of_message_to_dict(message: BaseMessage) -> None:
    [form] = messages_to_dict([message])
    assert json.loads(encode_json(message, 0)) == json.loads(json.dumps(form))


@given(values)
def test_any_storable_value_reads_back_equal(value: Any) -> None:
    message = AIMessage("", additional_kwargs={"value": value})
    back = decode_json(encode_json(message, 0), 0)
    assert back == message
    assert type(back.additional_kwargs["value"]) is type(value)


@given(st.decimals())
def test_a_decimal_reads_back_equal_or_is_refused(number: Decimal) -> None:
    assume(not number.is_snan())
    message = HumanMessage("", additional_kwargs={"n": number})
    try:
        back = decode_json(encode_json(message, 0), 0).additional_kwargs["n"]
    except MessageNotStorableError:
        return
    assert back == number
    assert type(back) in {int, float}


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"\xff", {"$bytes": "/w=="}),
        (bytearray(b"\xff"), {"$bytes": "/w=="}),
        ({1}, {"$set": [1]}),
        (set(), {"$set": []}),
        (2**63 - 1, 2**63 - 1),
        (2**64 - 1, 2**64 - 1),
        (2**64, {"$int": str(2**64)}),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, {"$int": str(-(2**63) - 1)}),
        (Decimal("0E+400"), 0),
        ({"$set": [1]}, {"$$set": [1]}),
        ({"$$int": b""}, {"$$$int": {"$bytes": ""}}),
        ({"$set": [1], "more": 2}, {"$set": [1], "more": 2}),
        ({"$price": 5}, {"$price": 5}),
        ("$set", "$set"),
        (1e300, 1e300),
        (3.0, 3.0),
        (Decimal("1.5"), 1.5),
        (Decimal(10) ** 20, {"$int": "1" + "0" * 20}),
    ],
    ids=str,
)
def test_what_json_has_no_form_for_is_marked(value: Any, form: Any) -> None:
    message = HumanMessage("", additional_kwargs={"v": value})
    stored = encode_json(message, 0)
    assert json.loads(stored)["data"]["additional_kwargs"]["v"] == form
    assert decode_json(stored, 0) == message


def nested(levels: int) -> Any:
    value: Any = b"x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("extra", "path", "reason"),
    [
        ({"a": math.nan}, ".additional_kwargs.a", "JSON has no number for nan"),
        ({"a": [1, {"b": -math.inf}]}, ".additional_kwargs.a[1].b", "JSON has no number for -inf"),
        ({"a": Decimal("-Infinity")}, ".additional_kwargs.a", "JSON has no number for NaN and infinity"),
        ({"a": Decimal("1e400")}, ".additional_kwargs.a", "too large for a float"),
        ({"a": Decimal("0.1")}, ".additional_kwargs.a", "would come back as another number"),
        ({"a": 10**5000}, ".additional_kwargs.a", "more digits than Python converts"),
        ({"a": (1, 2)}, ".additional_kwargs.a", "a tuple would come back as a list"),
        ({"a": {(1, 2)}}, ".additional_kwargs.a", "a tuple would come back as a list"),
        ({"a b": {"c.d": object()}}, ".additional_kwargs['a b']['c.d']", "object has no stored form"),
        ({"id": uuid.UUID(int=0)}, ".additional_kwargs.id", "UUID has no stored form"),
        ({1: "a"}, ".additional_kwargs[1]", "keys must be text, not int"),
        ({"a": "\ud800"}, ".additional_kwargs.a", "lone surrogate"),
        ({"a": nested(MAX_NESTING)}, ".additional_kwargs.a" + "[0]" * (MAX_NESTING - 2), "nested deeper than 200"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(extra: dict[Any, Any], path: str, reason: str) -> None:
    text = refusal(HumanMessage("").model_copy(update={"additional_kwargs": extra}))
    assert text.startswith(f"messages[3]{path} cannot be stored: ")
    assert reason in text


def test_the_deepest_nesting_is_not_refused() -> None:
    message = HumanMessage("", additional_kwargs={"a": nested(MAX_NESTING - 2)})
    assert decode_json(encode_json(message, 0), 0) == message


class Mine(HumanMessage):
    pass


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Mine(content="x"), "a Mine would come back as a HumanMessage"),
        ("text", "str is not a langchain_core message"),
        (HumanMessage("x").model_copy(update={"content": 5}), "langchain-core refuses it: content.str: string_type"),
    ],
)
def test_a_message_that_would_not_come_back_is_refused(message: Any, reason: str) -> None:
    assert reason in refusal(message)


def test_no_refusal_quotes_content() -> None:
    assert SECRET not in refusal(AIMessage(SECRET, additional_kwargs={"a": [SECRET, object()]}))
    for card in ("4111111111111111E+300", "NaN4111111111111111", "0.4111111111111111"):
        assert "4111" not in refusal(AIMessage("", additional_kwargs={"card": Decimal(card)}))


def deep_in_the_stack(frames: int, work: Callable[[], Any]) -> Any:
    return work() if frames == 0 else deep_in_the_stack(frames - 1, work)


def test_what_is_stored_is_read_from_deep_in_the_stack_and_what_is_too_deep_is_refused() -> None:
    message = HumanMessage("", additional_kwargs={"a": nested(MAX_NESTING - 2)})
    stored = encode_json(message, 0)
    assert deep_in_the_stack(600, lambda: decode_json(stored, 0)) == message
    assert "nested" in deep_in_the_stack(700, lambda: refusal(message))
    value: Any = frozenset()
    for _ in range(3000):
        value = frozenset([value])
    assert "nested" in refusal(HumanMessage("").model_copy(update={"additional_kwargs": {"a": value}}))


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"", "it is not the JSON text of a message"),
        (b"\xff", "it is not the JSON text of a message"),
        (b"[]", "langchain-core fails on it with TypeError"),
        (b"{}", "it has no 'type'"),
        (b'{"type": "human"}', "it has no 'data'"),
        (b'{"type": "alien", "data": {}}', "this langchain-core does not know its type"),
        (b'{"type": "human", "data": {"content": {"$int": "x"}}}', "it has a $int of another form"),
        (b'{"type": "human", "data": {"content": {"$bytes": "x"}}}', "it has a $bytes of another form"),
        (b'{"type": "human", "data": {"content": {"$set": [[]]}}}', "it has a $set of another form"),
        (
            b'{"type": "human", "data": ' + b'{"$a": ' * 9999 + b"1" + b"}" * 10000,
            "it is not the JSON text of a message",
        ),
        (
            json.dumps({"type": "human", "data": {"content": [1, SECRET]}}).encode(),
            "langchain-core refuses it: content",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_message_is_an_error_that_says_why_and_quotes_nothing(stored: bytes, reason: str) -> None:
    with pytest.raises(UndecodableItemError) as caught:
        decode_json(stored, 7)
    assert f"stored message 7 cannot be decoded: {reason}" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None
