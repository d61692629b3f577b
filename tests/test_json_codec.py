"""Messages as JSON text, without an engine: what is stored reads back equal, and what would not is refused."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)
from plain_values import (
    ADA,
    ADA_PLAIN,
    EXACT,
    OBJECTS,
    REFUSED,
    UNDECODABLE_NAME,
    cyclic,
    nested,
    same,
)
from pydantic import BaseModel, field_serializer
from samples import EVERY_TYPE, NESTED, described

from chathistory_async import MessageNotStorableError, UndecodableItemError
from chathistory_async._codec import messages
from chathistory_async._codec.json_text import to_text
from chathistory_async._codec.messages import decode_json, encode_json, plain_message
from chathistory_async._codec.plain import MAX_NESTING, plain_value

SECRET = "the launch code is 0000"
# A million of them, which compress well, take hours to become a set.
NUMBERS_OF_ONE_HASH = json.dumps([number * 2**61 - number for number in range(1000)]).encode()
MARKS = ["$bytes", "$set", "$int", "$float", "$text", "$dict", "$$set", "$$$int", "$other", "$"]

text = st.text()
# A plain value has one NaN, and so a set has it once.
numbers = st.integers() | st.floats(allow_nan=False) | st.just(math.nan)
scalars = st.none() | st.booleans() | numbers | text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.dictionaries(text | st.sampled_from(MARKS), inner) | st.sets(text | numbers | st.binary())
    ),
    max_leaves=20,
)


def refusal(message: Any, default: Any = None) -> str:
    with pytest.raises(MessageNotStorableError) as caught:
        encode_json(message, 3, default)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "its text could hold content"
    return str(caught.value)


@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
def test_every_type_reads_back_equal(message: BaseMessage) -> None:
    back = decode_json(encode_json(message, 0), 0)
    assert back == message
    assert type(back) is type(message)


NAN = {"p": {"$float": "nan"}}
# NESTED holds integers beyond 64 bits.
PLAIN = [message for message in EVERY_TYPE if NESTED not in vars(message).values()]


class TestTheShortForm:
    """Fields that langchain-core fills in are left out, and its own messages_from_dict reads the result too."""

    @pytest.mark.parametrize("message", PLAIN, ids=described)
    def test_is_message_to_dicts_with_fields_left_out(self, message: BaseMessage) -> None:
        form = json.loads(encode_json(message, 0))
        [full] = json.loads(json.dumps(messages_to_dict([message])))
        assert form["type"] == full["type"]
        assert form["data"].items() <= full["data"].items()
        left_out = full["data"].keys() - form["data"].keys()
        assert all(full["data"][name] in (None, [], {}, full["type"], "success") for name in left_out)
        [back] = messages_from_dict([form])
        assert (back, type(back)) == (message, type(message))

    @pytest.mark.parametrize(
        ("message", "data"),
        [
            (HumanMessage("x"), {"content": "x"}),
            (AIMessage("x", id="1"), {"content": "x", "id": "1"}),
            (SystemMessage("x"), {"content": "x"}),
            (ToolMessage("x", tool_call_id="1"), {"content": "x", "tool_call_id": "1"}),
            (
                ToolMessage("x", tool_call_id="1", status="error"),
                {"content": "x", "tool_call_id": "1", "status": "error"},
            ),
            (FunctionMessage(content="x", name="f"), {"content": "x", "name": "f"}),
            (ChatMessage(content="x", role="r"), {"content": "x", "role": "r"}),
            (HumanMessageChunk(content="x"), {"content": "x"}),
            (AIMessageChunk(content="x"), {"content": "x"}),
            (HumanMessage("x", name="", more=None), {"content": "x", "name": "", "more": None}),
            (HumanMessage("x", response_metadata={"p": math.nan}), {"content": "x", "response_metadata": NAN}),
        ],
    )
    def test_has_only_what_a_message_was_given(self, message: BaseMessage, data: dict[str, Any]) -> None:
        stored = encode_json(message, 0)
        assert json.loads(stored) == {"type": message.type, "data": data}
        assert plain_message(decode_json(stored, 0)) == plain_message(message)

    def test_of_a_short_message_is_short(self) -> None:
        text = "What is the weather like in Paris today?"
        for message in (HumanMessage(text), AIMessage(text)):
            assert len(encode_json(message, 0)) <= len(text) + 38
            assert len(json.dumps(messages_to_dict([message])[0])) >= len(text) + 130

    def test_is_not_that_of_what_is_only_equal_to_a_default(self) -> None:
        values: list[Any] = [0, False, 0.0, -0.0, "", [], {}, set(), b"", None]
        for value in values:
            message = ToolMessage("x", tool_call_id="1", artifact=value)
            back = decode_json(encode_json(message, 0), 0)
            assert isinstance(back, ToolMessage)
            assert repr(back.artifact) == repr(value)

    def test_tells_types_apart_that_are_equal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(messages._DEFAULTS["tool"], "artifact", False)
        stored = encode_json(ToolMessage("x", tool_call_id="1", artifact=0), 0)
        assert json.loads(stored)["data"] == {"content": "x", "tool_call_id": "1", "artifact": 0}

    @pytest.mark.parametrize("name", ["tool_calls", "invalid_tool_calls"])
    def test_keeps_calls_from_coming_back_that_were_taken_away(self, name: str) -> None:
        arguments = "{}" if name == "tool_calls" else "{"
        calls = [{"id": "1", "function": {"name": "f", "arguments": arguments}, "type": "function"}]
        message = AIMessage("", additional_kwargs={"tool_calls": calls})
        assert getattr(message, name)
        assert decode_json(encode_json(message, 0), 0) == message

    def test_tells_that_calls_were_taken_away(self) -> None:
        calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}, "type": "function"}]
        message = AIMessage("", additional_kwargs={"tool_calls": calls})
        message.tool_calls = []
        stored = encode_json(message, 0)
        assert json.loads(stored)["data"].keys() == {"content", "additional_kwargs", "tool_calls", "invalid_tool_calls"}
        assert decode_json(stored, 0) == message

    def test_is_given_up_where_it_would_not_read_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(messages._DEFAULTS["human"], "name", "not langchain-core's default")
        named = HumanMessage("x", name="not langchain-core's default")
        assert json.loads(encode_json(named, 0)) == json.loads(json.dumps(messages_to_dict([named])[0]))
        assert decode_json(encode_json(named, 0), 0) == named

    def test_of_a_subclass_is_that_of_the_class_that_its_dump_names(self) -> None:
        class Named(HumanMessage):
            name: str | None = "somebody"
            flag: bool = False

        for message in (Named(content="x"), Named(content="x", name=None), Named(content="x", flag=True)):
            back = decode_json(encode_json(message, 0), 0)
            assert type(back) is HumanMessage
            assert back.model_dump() == message.model_dump()

    def test_leaves_out_what_every_release_of_langchain_core_fills_in_alike(self) -> None:
        common: dict[str, Any] = {"additional_kwargs": {}, "response_metadata": {}, "name": None, "id": None}
        ai: dict[str, Any] = {"tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None}
        chunk: dict[str, Any] = {"tool_call_chunks": [], "chunk_position": None}
        tool: dict[str, Any] = {"artifact": None, "status": "success"}
        more: dict[str, dict[str, Any]] = {
            "ai": ai,
            "AIMessageChunk": ai | chunk,
            "tool": tool,
            "ToolMessageChunk": tool,
        }
        assert messages._DEFAULTS.keys() == {message.type for message in EVERY_TYPE} - {"remove"}
        for kind, defaults in messages._DEFAULTS.items():
            known = common | more.get(kind, {}) | {"type": kind}
            if kind.lower().startswith("function"):
                del known["name"]
            assert {name: defaults[name] for name in known} == known
            assert all(defaults[name] in (None, [], {}) for name in defaults.keys() - known.keys())


@given(values)
def test_any_plain_value_reads_back_equal(value: Any) -> None:
    back = decode_json(encode_json(AIMessage("", additional_kwargs={"value": value}), 0), 0)
    assert same(value, back.additional_kwargs["value"])
    assert type(back.additional_kwargs["value"]) is type(value)


@given(st.decimals())
def test_a_decimal_comes_back_as_the_number_that_is_next_to_it(number: Decimal) -> None:
    back = decode_json(encode_json(HumanMessage("", additional_kwargs={"n": number}), 0), 0).additional_kwargs["n"]
    if number.is_nan():
        assert math.isnan(back)
    else:
        assert float(back) == float(number)


@pytest.mark.parametrize(("value", "expected"), OBJECTS.values(), ids=OBJECTS)
def test_an_object_comes_back_in_its_plain_form(value: Any, expected: Any) -> None:
    message = ToolMessage("", tool_call_id="1", artifact=value, additional_kwargs={"a": [value]})
    back = decode_json(encode_json(message, 0), 0)
    assert isinstance(back, ToolMessage)
    assert same(expected, back.artifact)
    assert same([expected], back.additional_kwargs["a"])


@pytest.mark.parametrize("value", EXACT.values(), ids=EXACT)
def test_a_plain_value_comes_back_exactly(value: Any) -> None:
    message = ToolMessage([{"type": "x", "v": value}], tool_call_id="1", artifact=value)
    back = decode_json(encode_json(message, 0), 0)
    assert isinstance(back, ToolMessage)
    assert same(value, back.artifact)
    assert same([{"type": "x", "v": value}], back.content)


@pytest.mark.parametrize("value", ["\ud800", "\ud835\udcb3", UNDECODABLE_NAME])
def test_text_with_surrogates_comes_back_equal_in_every_field(value: str) -> None:
    message = HumanMessage(value, name=value, id=value, extra=value)
    back = decode_json(encode_json(message, 0), 0)
    assert back == message
    encode_json(message, 0).decode()


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
        (math.nan, {"$float": "nan"}),
        (math.inf, {"$float": "inf"}),
        (-math.inf, {"$float": "-inf"}),
        ("a\\\udc80", {"$text": "a\\\\\\udc80"}),
        ("\ud835\udcb3", {"$text": "\\ud835\\udcb3"}),
        ({"\udc80": b""}, {"$dict": [[{"$text": "\\udc80"}, {"$bytes": ""}]]}),
    ],
    ids=str,
)
def test_what_json_has_no_form_for_is_marked(value: Any, form: Any) -> None:
    message = HumanMessage("", additional_kwargs={"v": value})
    stored = encode_json(message, 0)
    assert json.loads(stored)["data"]["additional_kwargs"]["v"] == form
    assert same(plain_value(value), decode_json(stored, 0).additional_kwargs["v"])


def test_equal_sets_have_one_text() -> None:
    """An idempotency key has the digest of its batch, and sets of text have another order in every process."""
    one, other = set([0, 8]), set([8, 0])  # noqa: C405  # literals would be made in one order
    assert [*one] != [*other]
    for elements in (one, other, {8, 0}):
        assert to_text([elements, {b"x", "x", math.inf}]) == to_text([one, {math.inf, "x", b"x"}])


def test_an_integer_of_more_digits_than_python_writes_is_hexadecimal() -> None:
    message = HumanMessage("", additional_kwargs={"n": -(16**5000)})
    stored = encode_json(message, 0)
    assert json.loads(stored)["data"]["additional_kwargs"]["n"] == {"$int": "-0x1" + "0" * 5000}
    assert decode_json(stored, 0) == message


@pytest.mark.parametrize(("extra", "path", "reason"), REFUSED)
def test_what_has_no_plain_form_is_refused_with_its_path(extra: dict[Any, Any], path: str, reason: str) -> None:
    text = refusal(HumanMessage("").model_copy(update={"additional_kwargs": extra}))
    assert text.startswith(f"messages[3].additional_kwargs{path} cannot be stored: ")
    assert reason in text


@pytest.mark.parametrize(("dicts", "lists", "refused"), [(60, 10, False), (60, 100, True), (90, 1, True)])
def test_names_with_surrogates_count_as_three_levels(dicts: int, lists: int, refused: bool) -> None:
    value = nested(lists)
    for _ in range(dicts):
        value = {"\ud800": value}
    message = HumanMessage("", additional_kwargs={"a": value})
    if refused:
        assert refusal(message).startswith("messages[3].additional_kwargs.a['\\ud800']['\\ud800']")
    else:
        assert decode_json(encode_json(message, 0), 0) == message


def test_the_deepest_nesting_is_not_refused() -> None:
    message = HumanMessage("", additional_kwargs={"a": nested(MAX_NESTING - 2)})
    assert decode_json(encode_json(message, 0), 0) == message


class Mine(HumanMessage):
    extra: int = 1


def test_a_subclass_comes_back_as_the_class_that_its_dump_names() -> None:
    back = decode_json(encode_json(Mine(content="x"), 0), 0)
    assert type(back) is HumanMessage
    assert back.model_dump() == Mine(content="x").model_dump()


class Unknown(BaseMessage):
    type: str = "unknown"


@pytest.mark.parametrize(
    ("message", "place", "reason"),
    [
        (Unknown(content="x"), ".type", "this langchain-core does not know its type"),
        ("text", "", "str is not a langchain_core message"),
        (
            HumanMessage("x").model_copy(update={"content": 5}),
            ".content",
            "langchain-core refuses it: content.str: string_type",
        ),
    ],
)
def test_a_message_that_would_not_come_back_is_refused(message: Any, place: str, reason: str) -> None:
    text = refusal(message)
    assert text.startswith(f"messages[3]{place} cannot be stored: ")
    assert reason in text


class Account:
    def __repr__(self) -> str:
        return SECRET


def reveal(value: Any) -> Any:
    raise ValueError(SECRET, value)


def test_no_refusal_quotes_content() -> None:
    message = AIMessage(SECRET, additional_kwargs={"a": [SECRET, Account(), {Account(): SECRET}]})
    assert SECRET not in refusal(message)
    assert SECRET not in refusal(message, default=reveal)
    assert SECRET not in refusal(message, default=lambda value: {Account(): 1})


class TestDefault:
    def test_converts_what_nothing_else_can(self) -> None:
        message = AIMessage("", additional_kwargs={"a": [Account(), {"b": Account()}], "model": ADA})
        stored = encode_json(message, 0, lambda value: {"is": type(value).__name__})
        plain = {"is": "Account"}
        assert decode_json(stored, 0).additional_kwargs == {"a": [plain, {"b": plain}], "model": ADA_PLAIN}

    def test_may_return_what_is_converted_in_turn(self) -> None:
        class Wrapped:
            pass

        steps: dict[type, Callable[[], Any]] = {Account: lambda: (Wrapped(), ADA), Wrapped: lambda: b"\xff"}
        stored = encode_json(AIMessage("", additional_kwargs={"a": Account()}), 0, lambda value: steps[type(value)]())
        assert decode_json(stored, 0).additional_kwargs == {"a": [b"\xff", ADA_PLAIN]}

    def test_is_asked_for_a_model_whose_dump_fails(self) -> None:
        class Failing(BaseModel):
            when: int = 1

            @field_serializer("when")
            def fail(self, value: int) -> int:
                raise ValueError

        message = AIMessage("kept", additional_kwargs={"a": [Failing()], "b": ADA})
        assert "additional_kwargs.a[0].when cannot be stored: its serializer fails" in refusal(message)
        back = decode_json(encode_json(message, 0, lambda value: type(value).__name__), 0)
        assert back == AIMessage("kept", additional_kwargs={"a": ["Failing"], "b": ADA_PLAIN})

    def test_is_given_an_iterator_itself_wherever_it_is(self) -> None:
        """Pydantic's dump has one kind of iterator in the place of all: of cursors, files, generators and mocks."""

        class Holder(BaseModel):
            rows: Any

        one, other, mock = io.StringIO("a"), io.StringIO("b"), MagicMock()
        message = ToolMessage("", tool_call_id="1", artifact=one, additional_kwargs={"a": [Holder(rows=[other]), mock]})
        names = {id(one): "one", id(other): "other", id(mock): "mock"}
        back = decode_json(encode_json(message, 0, lambda value: names[id(value)]), 0)
        assert isinstance(back, ToolMessage)
        assert back.artifact == "one"
        assert back.additional_kwargs == {"a": [{"rows": ["other"]}, "mock"]}

    @pytest.mark.parametrize(
        ("default", "reason"),
        [
            (reveal, "default= fails on an Account with ValueError"),
            (lambda value: value, "default= returns the Account itself"),
            (lambda value: Account(), "nested deeper than 200 levels"),
        ],
    )
    def test_is_held_to_what_it_returns(self, default: Any, reason: str) -> None:
        text = refusal(AIMessage("", additional_kwargs={"a": [Account()]}), default=default)
        assert text.startswith("messages[3].additional_kwargs.a[0] cannot be stored: ")
        assert reason in text

    def test_the_path_goes_on_into_what_it_returns(self) -> None:
        text = refusal(AIMessage("", additional_kwargs={"a": Account()}), default=lambda value: {"b": [cyclic()]})
        assert text.startswith("messages[3].additional_kwargs.a.b[0].self[1] cannot")


def deep_in_the_stack(frames: int, work: Callable[[], Any]) -> Any:
    return work() if frames == 0 else deep_in_the_stack(frames - 1, work)


def test_what_is_stored_is_read_from_deep_in_the_stack_and_what_is_too_deep_is_refused() -> None:
    message = HumanMessage("", additional_kwargs={"a": nested(MAX_NESTING - 2)})
    stored = encode_json(message, 0)
    assert deep_in_the_stack(600, lambda: decode_json(stored, 0)) == message
    assert "additional_kwargs.a[0][0][0]" in (text := deep_in_the_stack(700, lambda: refusal(message)))
    assert "it is nested too deeply" in text
    value: Any = frozenset()
    for _ in range(3000):
        value = frozenset([value])
    text = refusal(HumanMessage("").model_copy(update={"additional_kwargs": {"a": value}}))
    assert text.startswith("messages[3].additional_kwargs.a cannot be stored: it is nested")


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"", "it is not the JSON text of a message"),
        (b"\xff", "it is not the JSON text of a message"),
        (b"[]", "langchain-core fails on it with TypeError"),
        (b"{}", "it has no 'type'"),
        (b'{"type": "human"}', "it has no 'data'"),
        (b'{"type": "alien", "data": {}}', "this langchain-core does not know its type"),
        (b'{"type": "human", "data": {"content": {"$int": "x"}}}', "it has a malformed $int"),
        (b'{"type": "human", "data": {"content": {"$bytes": "x"}}}', "it has a malformed $bytes"),
        (b'{"type": "human", "data": {"content": {"$set": [[]]}}}', "it has a malformed $set"),
        (b'{"type": "human", "data": {"content": {"$float": "1"}}}', "it has a malformed $float"),
        (b'{"type": "human", "data": {"content": {"$text": 1}}}', "it has a malformed $text"),
        (b'{"type": "human", "data": {"content": {"$dict": [1]}}}', "it has a malformed $dict"),
        (b'{"type": "human", "data": {"content": {"$dict": [[1, 2]]}}}', "it has a malformed $dict"),
        (
            b'{"type": "human", "data": {"content": {"$set": %s}}}' % NUMBERS_OF_ONE_HASH,
            "it has a malformed $set",
        ),
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
