"""JSON values as JSON text, without an engine, and the two formats behind their interface."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from plain_values import EXACT, OBJECTS, REFUSED, cyclic, nested, same

from chathistory_async import MessageNotStorableError, UndecodableItemError
from chathistory_async._codec import json_values
from chathistory_async._codec.attribute_values import Undecodable
from chathistory_async._codec.format import Format
from chathistory_async._codec.json_text import to_text
from chathistory_async._codec.json_values import decode_value, encode_value, json_format
from chathistory_async._codec.messages import LANGCHAIN
from chathistory_async._codec.plain import MAX_NESTING, plain_value

SECRET = "the launch code is 0000"
JSON = json_format()
MARKS = ["$bytes", "$set", "$int", "$float", "$text", "$dict", "$$set", "$other", "$"]

text = st.text()
# A plain value has one NaN, and so a set has it once.
numbers = st.integers() | st.floats(allow_nan=False) | st.just(math.nan)
scalars = st.none() | st.booleans() | numbers | text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(text | st.sampled_from(MARKS), inner)
        | st.sets(text | numbers | st.binary())
    ),
    max_leaves=20,
)


def strictly(value: Any) -> str:
    """Return a text that differs between values which differ in a type or a sign."""
    return repr(value)


@given(values)
@example([1, True, 1.0, 0, False, -0.0, None, math.nan, math.inf, (), [], {}, set()])
@example({"$set": [1]})
@example({"$set": 5, "a": {"$bytes": "x"}})
@example([2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
def test_any_value_has_the_text_of_its_plain_form(value: Any) -> None:
    plain = plain_value(value)
    assert encode_value(value, "value") == to_text(plain)
    back = decode_value(encode_value(value, "value"))
    assert same(plain, back)
    assert type(back) is type(plain)


TURN = {"role": "user", "content": [{"type": "input_text", "text": "né"}], "n": [1, True, 1.0, -0.0, None, 2**64 - 1]}


def test_values_of_jsons_types_need_no_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: Any, default: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(json_values, "plain_value", fail)
    assert strictly(decode_value(encode_value(TURN, "value"))) == strictly(TURN)
    others: list[Any] = [(1,), {"a": math.nan}, {"$set": []}, 2**64, "\ud800", {1: 2}]
    for other in others:
        with pytest.raises(AssertionError):
            encode_value(other, "value")


@pytest.mark.parametrize("value", EXACT.values(), ids=EXACT)
def test_a_plain_value_comes_back_exactly(value: Any) -> None:
    assert same(value, JSON.decode(JSON.encode(value, 0, None), 0))


@pytest.mark.parametrize(("value", "expected"), OBJECTS.values(), ids=OBJECTS)
def test_an_object_comes_back_in_its_plain_form(value: Any, expected: Any) -> None:
    assert same(expected, JSON.decode(JSON.encode(value, 0, None), 0))
    assert same([expected], JSON.decode(JSON.encode([value], 0, None), 0))


@pytest.mark.parametrize("value", [math.nan, float("nan"), -math.inf, None, "", [], {}, set(), b""], ids=repr)
def test_a_value_may_be_a_single_one(value: Any) -> None:
    assert same(value, JSON.decode(JSON.encode(value, 0, None), 0))


# But for those that begin with a message's dump, which goes once around a cycle and makes an iterator another one.
NO_PLAIN_FORM = [case for case in REFUSED if not any(part in case[2] for part in ("itself", "nested", "Iterator"))]


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        *NO_PLAIN_FORM,
        (cyclic(), ".self[1]", "it contains itself"),
        ({"a": iter([1])}, ".a", "a list_iterator has no plain form"),
        ({"a": nested(MAX_NESTING)}, ".a" + "[0]" * (MAX_NESTING - 2), "nested deeper than 200"),
    ],
)
def test_what_has_no_plain_form_is_refused_with_its_path(value: dict[Any, Any], path: str, reason: str) -> None:
    with pytest.raises(MessageNotStorableError) as caught:
        JSON.encode([value], 3, None)
    assert str(caught.value).startswith(f"values[3][0]{path} cannot be stored: ")
    assert reason in str(caught.value)
    assert caught.value.__context__ is None, "its text could hold content"


def test_default_converts_what_nothing_else_can() -> None:
    stored = JSON.encode({"a": [object()]}, 0, lambda value: type(value).__name__)
    assert JSON.decode(stored, 0) == {"a": ["object"]}


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"", "it is not the JSON text of a value"),
        (f'"{SECRET}'.encode(), "it is not the JSON text of a value"),
        (b'{"a": {"$int": "x"}}', "it has a malformed $int"),
        (b"[" * 9999 + b"]" * 9999, "it is not the JSON text of a value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_value_is_an_error_that_names_it_and_quotes_nothing(stored: bytes, reason: str) -> None:
    with pytest.raises(UndecodableItemError) as caught:
        JSON.decode(stored, "an-id")
    assert str(caught.value) == f"stored value an-id cannot be decoded: {reason}"
    assert caught.value.message_id == "an-id"
    assert caught.value.__context__ is None
    with pytest.raises(Undecodable):
        JSON.decode_array(b"[1,%b]" % stored)


class TestFormats:
    MESSAGES = (HumanMessage("é", id="1"), AIMessage("", response_metadata={"p": [math.nan, b"x", (1,)]}))
    BATCHES = ((LANGCHAIN, MESSAGES), (JSON, (TURN, "text", None, [b"x", {1, 2}], {"$set": [1]})))

    def test_have_names(self) -> None:
        assert (LANGCHAIN.name, JSON.name, json_format("mine").name) == ("langchain", "json", "mine")
        assert json_format("mine") == json_format("mine") != JSON

    @pytest.mark.parametrize(("codec", "batch"), BATCHES)
    def test_decode_an_array_as_they_do_each_value(self, codec: Format, batch: tuple[Any, ...]) -> None:
        texts = [codec.encode(value, position, None) for position, value in enumerate(batch)]
        array = b"[%b]" % b",".join(texts)
        each = [codec.decode(text, position) for position, text in enumerate(texts)]
        assert strictly(codec.decode_array(array)) == strictly(each)
        assert strictly(codec.decode_array(array.decode())) == strictly(each)
        assert codec.decode_array(b"[]") == []

    @pytest.mark.parametrize("codec", [LANGCHAIN, JSON])
    @pytest.mark.parametrize("stored", [b"", b"{}", b"[", b'[{"$int": "x"}]', b'{"$set": []}'])
    def test_refuse_what_is_no_array(self, codec: Format, stored: bytes) -> None:
        with pytest.raises(Undecodable):
            codec.decode_array(stored)

    def test_that_have_a_form_of_their_own_refuse_an_array_of_others(self) -> None:
        array = b"[%b,%b]" % (LANGCHAIN.encode(HumanMessage("x"), 0, None), json.dumps(TURN).encode())
        with pytest.raises(Undecodable, match="it has no 'type'"):
            LANGCHAIN.decode_array(array)

    def test_name_the_value_at_fault(self) -> None:
        with pytest.raises(
            MessageNotStorableError, match=r"^messages\[3\]\.additional_kwargs\.a\[0\] cannot be stored"
        ):
            LANGCHAIN.encode(HumanMessage("", additional_kwargs={"a": [object()]}), 3, None)
        with pytest.raises(MessageNotStorableError, match=r"^values\[3\]\.a\[0\] cannot be stored: an object has no"):
            JSON.encode({"a": [object()]}, 3, None)

    def test_know_types_and_turns_where_there_are_any(self) -> None:
        assert [LANGCHAIN.type_of(message) for message in self.MESSAGES] == ["human", "ai"]
        assert [LANGCHAIN.begins_turn(message) for message in self.MESSAGES] == [True, False]
        assert JSON.type_of(TURN) is None
        assert JSON.begins_turn(TURN)
