"""The codec, without an engine: what is stored reads back equal, and what would not is refused."""

from __future__ import annotations

import base64
import copy
import enum
import json
import math
import uuid
import warnings
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from hypothesis import assume, given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    messages_from_dict,
    messages_to_dict,
)
from samples import EVERY_TYPE, FLOATS, described

from chathistory_async import MessageNotStorableError, UndecodableItemError
from chathistory_async._codec import (
    Undecodable,
    _is_built_by_validation,
    decode_message,
    encode_message,
    for_request,
    rebuild,
    size_of,
)

text = st.text(st.characters(codec="utf-8"))
storable_floats = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: number == 0 or 1e-130 <= abs(number) < 9.99e125
)
scalars = st.none() | st.booleans() | st.integers(-(10**38) + 1, 10**38 - 1) | storable_floats | text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(text.filter(bool), inner) | st.sets(text, min_size=1),
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

        monkeypatch.setattr("chathistory_async._codec.messages_from_dict", record)
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
        monkeypatch.setattr("chathistory_async._codec._KINDS", {})
        with pytest.raises(Undecodable) as long:
            rebuild(form)
        assert str(short.value) == str(long.value)

    def test_is_not_short_for_a_class_that_is_built_in_another_way(self) -> None:
        class Later(HumanMessage):
            def __init__(self, content: str, content_blocks: Any = None, *, other: int = 0, **kwargs: Any) -> None:
                super().__init__(content, content_blocks, **kwargs)

        assert _is_built_by_validation(HumanMessage)
        assert not _is_built_by_validation(Later)


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
def test_any_storable_value_reads_back_equal(value: Any) -> None:
    message = AIMessage("", additional_kwargs={"value": value})
    stored = encode_message(message, 0)
    assert decode_message(as_plain_json(stored), 0) == message
    assert for_request(as_plain_json(stored)) == stored


@given(st.floats() | st.integers() | st.decimals(), st.booleans())
def test_any_number_reads_back_equal_or_is_refused(number: Any, negative: bool) -> None:
    assume(not (isinstance(number, Decimal) and number.is_snan()))
    message = HumanMessage("", additional_kwargs={"n": -number if negative else number})
    try:
        stored = encode_message(message, 0)
    except MessageNotStorableError:
        return
    digits = stored["M"]["data"]["M"]["additional_kwargs"]["M"]["n"]["N"]
    assert TypeDeserializer().deserialize({"N": digits}).is_finite()
    back = decode_message(stored, 0).additional_kwargs["n"]
    assert back == message.additional_kwargs["n"]
    assert type(back) in {int, float}


@pytest.mark.parametrize("number", FLOATS)
def test_floats_in_dynamodbs_range_are_not_refused(number: float) -> None:
    message = HumanMessage("", additional_kwargs={"n": number})
    assert decode_message(encode_message(message, 0), 0) == message


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def test_subclasses_of_storable_types_are_stored_by_their_value() -> None:
    message = HumanMessage("", additional_kwargs={"color": Color.RED, "level": Level.HIGH})
    stored = encode_message(message, 0)["M"]["data"]["M"]["additional_kwargs"]["M"]
    assert stored == {"color": {"S": "red"}, "level": {"N": "3"}}


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("extra", "path", "reason"),
    [
        ({"a": math.nan}, ".additional_kwargs.a", "DynamoDB has no number for NaN"),
        ({"a": [1, {"b": -math.inf}]}, ".additional_kwargs.a[1].b", "DynamoDB has no number for NaN and infinity"),
        ({"a": 1e126}, ".additional_kwargs.a", "outside DynamoDB's range"),
        ({"a": 1e-131}, ".additional_kwargs.a", "outside DynamoDB's range"),
        ({"a": 5e-324}, ".additional_kwargs.a", "outside DynamoDB's range"),
        ({"a": 10**38 + 1}, ".additional_kwargs.a", "more than DynamoDB's 38 digits"),
        ({"a": 10**40}, ".additional_kwargs.a", "would come back as another number"),
        ({"a": Decimal("0.1")}, ".additional_kwargs.a", "would come back as another number"),
        ({"a": (1, 2)}, ".additional_kwargs.a", "a tuple would come back as a list"),
        ({"a b": {"c.d": object()}}, ".additional_kwargs['a b']['c.d']", "object has no stored form"),
        ({"when": datetime(2026, 1, 1)}, ".additional_kwargs.when", "datetime has no stored form"),
        ({"id": uuid.UUID(int=0)}, ".additional_kwargs.id", "UUID has no stored form"),
        ({1: "a"}, ".additional_kwargs[1]", "keys must be text, not int"),
        ({"": "a"}, ".additional_kwargs['']", "no empty names"),
        ({"a": set()}, ".additional_kwargs.a", "none that is empty"),
        ({"a": {1, "b"}}, ".additional_kwargs.a", "sets of text, of numbers and of bytes only"),
        ({"a": {None}}, ".additional_kwargs.a", "sets of text, of numbers and of bytes only"),
        ({"a": Decimal("NaN12345")}, ".additional_kwargs.a", "no number for NaN and infinity"),
        ({"a": "\ud800"}, ".additional_kwargs.a", "lone surrogate"),
        ({"a": nested(28)}, ".additional_kwargs.a" + "[0]" * 27, "nested deeper than DynamoDB's 32 levels"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(extra: dict[Any, Any], path: str, reason: str) -> None:
    message = HumanMessage("").model_copy(update={"additional_kwargs": extra})
    text = refusal(message)
    assert text.startswith(f"messages[3]{path} cannot be stored: ")
    assert reason in text


def test_the_deepest_nesting_that_dynamodb_takes_is_not_refused() -> None:
    message = HumanMessage("", additional_kwargs={"a": nested(27)})
    assert decode_message(encode_message(message, 0), 0) == message


def test_the_content_itself_can_be_at_fault() -> None:
    assert refusal(HumanMessage([{"type": "x", "at": math.nan}])).startswith("messages[3].content[0].at cannot")


class Mine(HumanMessage):
    pass


class Unknown(BaseMessage):
    type: str = "unknown"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Mine(content="x"), "a Mine would come back as a HumanMessage"),
        (Unknown(content="x"), "this langchain-core does not know its type"),
        ("text", "str is not a langchain_core message"),
        (("human", "text"), "tuple is not a langchain_core message"),
        (HumanMessage("x").model_copy(update={"content": 5}), "langchain-core refuses it: content.str: string_type"),
    ],
)
def test_a_message_that_would_not_come_back_is_refused(message: Any, reason: str) -> None:
    assert reason in refusal(message)


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
