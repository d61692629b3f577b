"""The codec, without an engine: what is stored reads back equal, and what would not is refused."""

from __future__ import annotations

import base64
import copy
import enum
import json
import math
import warnings
from decimal import Decimal
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)
from plain_values import EXACT, OBJECTS, REFUSED, nested, same
from pydantic import BaseModel, field_serializer
from samples import EVERY_TYPE, FLOATS, described

from chathistory_async import MessageNotStorableError, UndecodableItemError
from chathistory_async._codec.attribute_values import Undecodable, for_request, size_of
from chathistory_async._codec.keys import encode_key
from chathistory_async._codec.message_attribute_values import decode_message, encode_message
from chathistory_async._codec.messages import _is_built_by_validation, rebuild
from chathistory_async._codec.plain import MAX_NESTING

MARKS = ["$chathistory", "$$chathistory", "$float", "$other", "$", ""]

text = st.text()
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.dictionaries(text | st.sampled_from(MARKS), inner) | st.sets(text | st.integers())
    ),
    max_leaves=20,
)


def as_plain_json(value: dict[str, Any]) -> Any:
    """An attribute value as it stands in a response's body."""
    return json.loads(json.dumps(value, default=lambda data: base64.b64encode(data).decode()))


def refusal(message: BaseMessage) -> str:
    with pytest.raises(MessageNotStorableError) as caught:
        encode_message(message, 3)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "its text could hold content"
    return str(caught.value)


class TestRebuilding:
    """The short way to a message, by validation alone, leads where messages_from_dict does."""

    @pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
    def test_of_every_type_is_that_of_langchain_core(self, message: BaseMessage) -> None:
        [form] = messages_to_dict([message])
        [theirs] = messages_from_dict(copy.deepcopy([form]))
        ours = rebuild(copy.deepcopy(form))
        assert (ours, type(ours)) == (theirs, type(theirs))
        assert ours.model_fields_set == theirs.model_fields_set
        assert ours.model_dump() == theirs.model_dump()
        assert ours.model_extra == theirs.model_extra
        assert vars(ours).keys() == vars(theirs).keys()

    @pytest.fixture
    def the_long_way(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The types that went it."""
        went: list[str] = []

        def record(forms: list[dict[str, Any]]) -> list[BaseMessage]:
            went.extend(form["type"] for form in forms)
            return messages_from_dict(forms)

        monkeypatch.setattr("chathistory_async._codec.messages.messages_from_dict", record)
        return went

    def test_is_short_for_all_that_only_validate(self, the_long_way: list[str]) -> None:
        for form in messages_to_dict(EVERY_TYPE):
            rebuild(form)
        assert set(the_long_way) == {"remove"}

    @pytest.mark.parametrize(
        "form",
        [
            {"type": "ai", "data": {"content_blocks": [{"type": "tool_call", "name": "f", "args": {}, "id": "1"}]}},
            {"type": "human", "data": {"content": "x", "content_blocks": None}},
        ],
    )
    def test_is_the_long_way_where_the_content_comes_as_blocks(
        self, form: dict[str, Any], the_long_way: list[str]
    ) -> None:
        assert rebuild(form) == messages_from_dict([form])[0]
        assert the_long_way == [form["type"]]

    @pytest.mark.parametrize("name", ["human", "ai", "tool"])
    @pytest.mark.parametrize(
        "data", [{}, {"content": 5}, {"content": None}, [], None, "x", {"content": "x", "type": "y"}]
    )
    def test_fails_as_the_long_way_does(self, name: str, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        form = {"type": name, "data": data}
        with pytest.raises(Undecodable) as short:
            rebuild(form)
        monkeypatch.setattr("chathistory_async._codec.messages._KINDS", {})
        with pytest.raises(Undecodable) as long:
            rebuild(form)
        assert str(short.value) == str(long.value)

    def test_is_not_short_for_a_class_that_is_built_in_another_way(self) -> None:
        class Later(HumanMessage):
            def __init__(self, content: Any, **kwargs: Any) -> None:
                super().__init__(f"{content}!", **kwargs)

        assert _is_built_by_validation(HumanMessage)
        assert not _is_built_by_validation(Later)
        assert not _is_built_by_validation(RemoveMessage)


@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
def test_every_type_reads_back_equal(message: BaseMessage) -> None:
    back = decode_message(encode_message(message, 0), 0)
    assert back == message
    assert type(back) is type(message)


@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
def test_the_stored_form_is_that_of_langchain_community(message: BaseMessage) -> None:
    [theirs] = messages_to_dict([message])
    assert encode_message(message, 0) == TypeSerializer().serialize(theirs)


@given(values)
@example({"$chathistory": "1"})
@example([{"$$chathistory": {"": {"$chathistory": "x"}}}])
def test_any_plain_value_reads_back_equal(value: Any) -> None:
    message = AIMessage("", additional_kwargs={"value": value})
    stored = encode_message(message, 0)
    assert same(value, decode_message(as_plain_json(stored), 0).additional_kwargs["value"])
    assert for_request(as_plain_json(stored)) == stored


@given(values)
def test_langchain_core_reads_past_any_value(value: Any) -> None:
    stored = encode_message(AIMessage("text", additional_kwargs={"value": value}), 0)
    [back] = messages_from_dict([TypeDeserializer().deserialize(stored)])
    assert back.content == "text"
    again = TypeSerializer().serialize(messages_to_dict([back])[0])
    assert same(value, decode_message(again, 0).additional_kwargs["value"]), "also when it has written it anew"


@given(st.decimals())
def test_a_decimal_comes_back_as_the_number_that_is_next_to_it(number: Decimal) -> None:
    back = decode_message(encode_message(HumanMessage("", additional_kwargs={"n": number}), 0), 0).additional_kwargs
    if number.is_nan():
        assert math.isnan(back["n"])
    else:
        assert float(back["n"]) == float(number)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_that_dynamodb_has_are_stored_as_such(number: Any) -> None:
    stored = encode_message(HumanMessage("", additional_kwargs={"n": number}), 0)
    value = stored["M"]["data"]["M"]["additional_kwargs"]["M"]["n"]
    if not number or 1e-130 <= abs(number) < 1e38:
        assert TypeDeserializer().deserialize(value).is_finite()
        assert not isinstance(number, int) or value == {"N": str(number)}


@pytest.mark.parametrize(("value", "expected"), OBJECTS.values(), ids=OBJECTS)
def test_an_object_comes_back_in_its_plain_form(value: Any, expected: Any) -> None:
    message = ToolMessage("", tool_call_id="1", artifact=value, additional_kwargs={"a": [value]})
    back = decode_message(encode_message(message, 0), 0)
    assert isinstance(back, ToolMessage)
    assert same(expected, back.artifact)
    assert same([expected], back.additional_kwargs["a"])


@pytest.mark.parametrize("value", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("field", ["additional_kwargs", "response_metadata", "args", "content"])
def test_a_plain_value_comes_back_exactly_in_every_place(field: str, value: Any) -> None:
    message = AIMessage(
        [{"type": "x", "v": value}] if field == "content" else "text",
        tool_calls=[{"name": "f", "args": {"v": value}, "id": "1"}] if field == "args" else [],
        **{field: {"v": value}} if field in ("additional_kwargs", "response_metadata") else {},
    )
    stored = encode_message(message, 0)
    [theirs] = messages_from_dict([TypeDeserializer().deserialize(stored)])
    assert theirs.text == message.text
    back = decode_message(stored, 0)
    assert isinstance(back, AIMessage)
    assert same(message.model_dump()["content"], back.content)
    assert same(message.additional_kwargs, back.additional_kwargs)
    assert same(message.response_metadata, back.response_metadata)
    assert same([call["args"] for call in message.tool_calls], [call["args"] for call in back.tool_calls])


@pytest.mark.parametrize(
    ("message", "field", "expected"),
    [
        (HumanMessage("x\udc80y"), "content", "x\ufffdy"),
        (HumanMessage("pair \ud835\udcb3"), "content", "pair \U0001d4b3"),
        (HumanMessage("x", name="\ud800"), "name", "\ufffd"),
        (ToolMessage("x", tool_call_id="\udc80"), "tool_call_id", "\ufffd"),
    ],
)
def test_text_that_cannot_be_a_mark_is_stored_without_its_surrogates(
    message: BaseMessage, field: str, expected: str
) -> None:
    message.additional_kwargs["kept"] = ["\ud800", math.inf]
    stored = encode_message(message, 0)
    back = decode_message(stored, 0)
    assert getattr(back, field) == expected
    assert back.additional_kwargs == {"kept": ["\ud800", math.inf]}
    assert getattr(messages_from_dict([TypeDeserializer().deserialize(stored)])[0], field) == expected


def test_a_call_whose_name_cannot_be_a_mark_keeps_its_arguments() -> None:
    message = AIMessage("", tool_calls=[{"name": "\ud800", "args": {"a": math.inf, "": "\ud800"}, "id": "1"}])
    back = decode_message(encode_message(message, 0), 0)
    assert isinstance(back, AIMessage)
    assert [(call["name"], call["args"]) for call in back.tool_calls] == [("\ufffd", {"a": math.inf, "": "\ufffd"})]


@pytest.mark.parametrize("number", FLOATS)
def test_floats_in_dynamodbs_range_are_not_refused(number: float) -> None:
    message = HumanMessage("", additional_kwargs={"n": number})
    assert decode_message(encode_message(message, 0), 0) == message


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def test_keys_may_be_of_subclasses() -> None:
    assert encode_key({"a": Color.RED, "b": Level.HIGH}) == {"a": {"S": "red"}, "b": {"N": "3"}}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (5, "5"),
        ("5.0", "5"),
        ("5E0", "5"),
        ("1E2", "100"),
        ("-1.50", "-1.5"),
        ("0.010", "0.01"),
        ("-0.0", "0"),
        ("0E-200", "0"),
        ("1.10E-130", "1.1E-130"),
        ("12345678901234567890123456789012345678.0", "12345678901234567890123456789012345678"),
    ],
)
def test_keys_of_equal_numbers_are_equal(number: int | str, text: str) -> None:
    assert encode_key({"a": Decimal(number)}) == {"a": {"N": text}}


def test_subclasses_of_storable_types_are_stored_by_their_value() -> None:
    message = HumanMessage("", additional_kwargs={"color": Color.RED, "level": Level.HIGH})
    stored = encode_message(message, 0)["M"]["data"]["M"]["additional_kwargs"]["M"]
    assert stored == {"color": {"S": "red"}, "level": {"N": "3"}}


@pytest.mark.parametrize(("extra", "path", "reason"), REFUSED)
def test_what_has_no_plain_form_is_refused_with_its_path(extra: dict[Any, Any], path: str, reason: str) -> None:
    message = HumanMessage("").model_copy(update={"additional_kwargs": extra})
    text = refusal(message)
    assert text.startswith(f"messages[3].additional_kwargs{path} cannot be stored: ")
    assert reason in text


def test_names_of_a_messages_own_fields_have_to_be_dynamodbs() -> None:
    assert refusal(HumanMessage("", **{"": 1})).startswith("messages[3][''] cannot be stored: DynamoDB has no empty")


@pytest.mark.parametrize("levels", [26, 27, 28, 60, MAX_NESTING - 3])
@pytest.mark.parametrize("innermost", ["x", math.nan, {"a": 1}, {}, set()], ids=str)
def test_what_is_deeper_than_dynamodb_allows_comes_back_equal(levels: int, innermost: Any) -> None:
    value = nested(levels, innermost)
    stored = encode_message(HumanMessage("", additional_kwargs={"a": value}), 0)
    assert same(value, decode_message(stored, 0).additional_kwargs["a"])
    assert depth(stored) <= 30, "the list of messages and what is innermost are two more"
    native = innermost == "x" or isinstance(innermost, dict)
    assert ("$chathistory" in json.dumps(stored)) == (not native or levels + isinstance(innermost, dict) > 27)


def depth(value: dict[str, Any]) -> int:
    """How many levels of lists and maps there are."""
    ((kind, content),) = value.items()
    inner = content if kind == "L" else content.values() if kind == "M" else []
    return (kind in "LM") + max(map(depth, inner), default=0)


class Sloppy(BaseModel):
    x: int = 1

    def __eq__(self, other: Any) -> bool:
        return bool(self.x == other.x)


def test_an_object_that_cannot_be_compared_is_stored() -> None:
    stored = encode_message(AIMessage("", additional_kwargs={"a": Sloppy()}), 0)
    assert decode_message(stored, 0).additional_kwargs == {"a": {"x": 1}}


class Mine(HumanMessage):
    extra: int = 1


class Other(AIMessage):
    """A subclass that another field of its own does not tell apart."""


class Unknown(BaseMessage):
    type: str = "unknown"


class Failing(HumanMessage):
    when: int = 1

    @field_serializer("when")
    def fail(self, value: int) -> int:
        raise KeyError(SECRET)


@pytest.mark.parametrize("message", [Mine(content="x"), Other(content="x", id="1")], ids=described)
def test_a_subclass_comes_back_as_the_class_that_its_dump_names(message: BaseMessage) -> None:
    back = decode_message(encode_message(message, 0), 0)
    assert type(back) is type(message).__mro__[1]
    assert back.model_dump() == message.model_dump()


def test_tool_calls_that_were_taken_away_do_not_come_back() -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}, "type": "function"}]
    message = AIMessage("", additional_kwargs={"tool_calls": calls})
    assert message.tool_calls
    assert decode_message(encode_message(message, 0), 0) == message
    message.tool_calls = []
    assert decode_message(encode_message(message, 0), 0) == message


def test_a_tool_call_without_a_type_gets_one_from_langchain_core() -> None:
    message = AIMessage("")
    message.tool_calls = [{"name": "f", "args": {"a": 1}, "id": "1"}]
    back = decode_message(encode_message(message, 0), 0)
    assert back == AIMessage("", tool_calls=message.tool_calls)


@pytest.mark.parametrize(
    ("message", "place", "reason"),
    [
        (Unknown(content="x"), ".type", "this langchain-core does not know its type"),
        ("text", "", "str is not a langchain_core message"),
        (("human", "text"), "", "tuple is not a langchain_core message"),
        (Failing(content="x"), ".when", "its serializer fails with PydanticSerializationError"),
        (
            HumanMessage("x").model_copy(update={"content": 5}),
            ".content",
            "langchain-core refuses it: content.str: string_type",
        ),
        (
            AIMessage("x").model_copy(update={"usage_metadata": {"input_tokens": 10**40}}),
            ".usage_metadata",
            "DynamoDB cannot represent a value in it, and langchain-core cannot read a mark here",
        ),
        (
            AIMessage("x").model_copy(update={"tool_calls": [{"name": "f", "args": {}, "id": "1", "more": 2}]}),
            ".tool_calls",
            "nothing could read it back (langchain-core fails on it with TypeError)",
        ),
        (
            ToolMessage("x", tool_call_id="5").model_copy(update={"tool_call_id": 5}),
            ".tool_call_id",
            "langchain-core would read it back changed",
        ),
        (
            ChatMessage(content="x", role="r").model_copy(update={"role": None, "more": object()}),
            ".more",
            "an object has no plain form",
        ),
    ],
)
def test_a_message_that_would_not_come_back_is_refused(message: Any, place: str, reason: str) -> None:
    text = refusal(message)
    assert text.startswith(f"messages[3]{place} cannot be stored: ")
    assert reason in text


SECRET = "the launch code is 0000"


@pytest.mark.parametrize("broken", [{"content": {SECRET: object()}}, {"additional_kwargs": {"a": [SECRET, object()]}}])
def test_no_refusal_and_no_warning_quotes_content(broken: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = refusal(AIMessage(SECRET).model_copy(update={**broken, "tool_calls": SECRET}))
    assert SECRET not in text.replace(f"['{SECRET}']", ""), "names on the path are no content"
    assert not caught


def stored(**data: Any) -> dict[str, Any]:
    return {"M": {"type": {"S": "human"}, "data": TypeSerializer().serialize(data)}}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"S": SECRET}, "it is of the DynamoDB type S, not a map"),
        ({"B": "AAAA"}, "it is of the DynamoDB type B, not a map"),
        ({"M": {"data": {"M": {}}}}, "it has no 'type'"),
        ({"M": {"type": {"S": "human"}}}, "it has no 'data'"),
        ({"M": {"type": {"S": "alien"}, "data": {"M": {}}}}, "this langchain-core does not know its type"),
        (stored(content=[1, SECRET], name=[SECRET]), "langchain-core refuses it: content"),
        (stored(name="n"), "langchain-core refuses it: content"),
        (stored(content={number * 2**61 - number for number in range(1000)}), "it has a set in which too many numbers"),
        ({"M": {"type": {"S": "human"}, "data": {"S": SECRET}}}, "langchain-core fails on it with TypeError"),
    ],
)
def test_what_is_no_message_is_an_error_that_says_why_and_quotes_nothing(value: Any, reason: str) -> None:
    with pytest.raises(UndecodableItemError) as caught:
        decode_message(value, 7)
    assert f"stored message 7 cannot be decoded: {reason}" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("message", EVERY_TYPE, ids=described)
def test_decoding_does_not_change_its_input(message: BaseMessage) -> None:
    value = encode_message(message, 0)
    before = copy.deepcopy(value)
    decode_message(value, 0)
    assert value == before


def test_messages_of_older_releases_are_read() -> None:
    value = stored(content="hi", additional_kwargs={}, type="human", example=False)
    assert decode_message(value, 0) == messages_from_dict([{"type": "human", "data": {"content": "hi"}}])[0].model_copy(
        update={"example": False}
    )


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": "abc"}, 3),
        ({"S": "né"}, 3),
        ({"B": b"abcd"}, 4),
        ({"B": base64.b64encode(b"abcd").decode()}, 4),
        ({"NULL": True}, 1),
        ({"BOOL": False}, 1),
        ({"N": "12345"}, 4),
        ({"L": []}, 3),
        ({"L": [{"S": "ab"}]}, 6),
        ({"M": {"name": {"S": "ab"}}}, 10),
        ({"SS": ["ab", "c"]}, 3),
        ({"NS": ["12", "3"]}, 5),
        ({"BS": [b"a"]}, 1),
    ],
)
def test_sizes_follow_awss_rules(value: dict[str, Any], size: int) -> None:
    assert size_of(value) == size
