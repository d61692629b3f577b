"""The pure part of LangChain's integration: which messages are whole, sent, stored, marked and loaded."""

from __future__ import annotations

from typing import Any

import pytest
from agents_langchain import calling, names
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from chathistory_async.integrations._agent_messages import (
    Entry,
    Mark,
    cursor,
    halves,
    past,
    sendable,
    unstored,
    with_ids,
)


def human(id: str | None = None) -> HumanMessage:
    return HumanMessage("question", id=id)


def ai(id: str | None = None, *calls: str) -> AIMessage:
    return calling(*calls).model_copy(update={"id": id})


def result(call: str, id: str | None = None, content: str = "result") -> ToolMessage:
    return ToolMessage(content, tool_call_id=call, id=id)


def unparsed(id: str | None, call: str | None) -> AIMessage:
    call_ = {"name": "x", "args": "{", "id": call, "error": "no JSON", "type": "invalid_tool_call"}
    return AIMessage("", id=id, invalid_tool_calls=[call_])


def summary(id: str | None = None) -> HumanMessage:
    return HumanMessage("summary", id=id, additional_kwargs={"lc_source": "summarization"})


SENDABLE: dict[str, tuple[list[BaseMessage], str]] = {
    "nothing": ([], ""),
    "whole": ([human(), ai("1", "a"), result("a"), ai("2")], "H AI(a) T AI"),
    "parallel": ([ai("1", "a", "b"), result("b"), result("a")], "AI(a,b) T T"),
    "no result": ([human(), ai("1", "a")], "H"),
    "one of two results": ([human(), ai("1", "a", "b"), result("a"), human()], "H H"),
    "no call": ([result("a"), human(), result("a"), ai("1"), result("a")], "H AI"),
    "a result too late": ([ai("1", "a"), human(), ai("2"), result("a")], "H AI"),
    "a message between": ([ai("1", "a", "b"), result("a"), human(), result("b")], "AI(a,b) T T H"),
    "the id of a call once more": ([ai("1", "a"), result("a"), ai("2", "a"), human()], "AI(a) T H"),
    "a call that could not be parsed": ([human(), unparsed("1", "a"), human()], "H H"),
    "one that was answered": ([human(), unparsed("1", "a"), result("a"), human()], "H AI T H"),
    "one without an id": ([unparsed("1", None), human()], "AI H"),
}


@pytest.mark.parametrize("case", SENDABLE)
def test_half_a_step_is_not_sent(case: str) -> None:
    messages, expected = SENDABLE[case]
    assert names(sendable(messages)) == expected


def test_of_two_results_the_latest_is_sent() -> None:
    sent = sendable([ai("1", "a"), result("a", content="first"), result("a", content="second")])
    assert [message.content for message in sent] == ["", "second"]


UNSTORED: dict[str, tuple[list[BaseMessage], set[str], str]] = {
    "nothing": ([], set(), ""),
    "all": ([human("1"), ai("2")], set(), "H AI"),
    "what follows": ([human("1"), ai("2"), human("3")], {"1", "2"}, "H"),
    "not what precedes": ([human("1"), ai("2"), human("3")], {"2"}, "H"),
    "waiting for a result": ([human("1"), ai("2", "a")], {"1"}, ""),
    "waiting for one of two": ([human("1"), ai("2", "a", "b"), result("a", "3")], {"1"}, ""),
    "complete": ([human("1"), ai("2", "a"), result("a", "3")], {"1"}, "AI(a) T"),
    "given up": ([human("1"), ai("2", "a"), human("3")], {"1"}, "H"),
    "no summary": ([summary("0"), human("1"), ai("2")], {"1"}, "AI"),
    "no summary that nothing precedes": ([summary("0"), human("1")], set(), "H"),
    "a call that could not be parsed": ([human("1"), unparsed("2", "a")], {"1"}, "AI"),
    "a client's own ids": ([human("loaded-1"), ai("loaded-2")], set(), "H AI"),
    "no ids": ([human(), ai()], {"1"}, "H AI"),
}


@pytest.mark.parametrize("case", UNSTORED)
def test_what_is_stored_next(case: str) -> None:
    messages, stored, expected = UNSTORED[case]
    assert names(unstored(messages, stored)) == expected


HALVES: dict[str, tuple[list[BaseMessage], list[str]]] = {
    "nothing": ([], []),
    "one": ([human()], []),
    "one step": ([ai("1", "a", "b"), result("a"), result("b")], []),
    "two steps": ([human(), ai(), human(), ai()], ["H AI", "H AI"]),
    "results stay": ([human(), ai("1", "a", "b"), result("a"), result("b"), ai()], ["H", "AI(a,b) T T AI"]),
}


@pytest.mark.parametrize("case", HALVES)
def test_what_is_too_large_is_cut_between_steps(case: str) -> None:
    messages, expected = HALVES[case]
    assert [names(half) for half in halves(messages)] == expected


def some_message(kind: str, at: int) -> BaseMessage:
    kinds = {"H": human(str(at)), "A": ai(str(at)), "a": ai(str(at), "a"), "b": ai(str(at), "a", "b")}
    return kinds.get(kind) or result({"x": "a", "y": "b"}[kind], str(at))


conversations = st.text("HAabxy", max_size=12).map(
    lambda kinds: [some_message(kind, at) for at, kind in enumerate(kinds)]
)


@given(conversations)
def test_what_is_sent_is_valid(messages: list[BaseMessage]) -> None:
    sent = sendable(messages)
    assert sendable(sent) == sent
    waiting = set[str | None]()
    for message in sent:
        if isinstance(message, ToolMessage):
            assert message.tool_call_id in waiting
            waiting.remove(message.tool_call_id)
            continue
        assert not waiting
        waiting = {call["id"] for call in message.tool_calls} if isinstance(message, AIMessage) else set()
    assert not waiting
    assert [message for message in sent if isinstance(message, HumanMessage)] == [
        message for message in messages if isinstance(message, HumanMessage)
    ]


@given(conversations)
def test_step_by_step_as_much_is_stored_as_at_once(messages: list[BaseMessage]) -> None:
    stored: list[BaseMessage] = []
    for end in range(len(messages) + 1):
        if sendable(messages[:end]) != messages[:end]:
            return
        ids = {message.id for message in stored if message.id}
        stored += unstored(messages[:end], ids)
    assert stored == unstored(messages, set()) == messages


class TestMark:
    @pytest.mark.parametrize("begins_after", ["begin", "", None])
    def test_comes_back_from_the_state(self, begins_after: str | None) -> None:
        mark = Mark(begins_after, {"1", "2"})
        assert Mark.of(mark.value([human("2"), human("1"), human("3")])) == mark

    def test_forgets_what_is_not_in_the_state(self) -> None:
        assert Mark("", {"1", "2"}).value([human("2"), human("3"), human()]) == ["", "2"]

    @pytest.mark.parametrize("value", [None, []])
    def test_may_be_missing(self, value: Any) -> None:
        assert Mark.of(value) is None


ENTRIES = [Entry(f"entry-{at}", HumanMessage(str(at), id=str(at))) for at in range(4)]


def contents(messages: list[BaseMessage]) -> list[Any]:
    return [message.content for message in messages]


class TestPast:
    def test_is_what_is_not_in_the_state(self) -> None:
        assert contents(past(ENTRIES, {"3", "9"})) == ["0", "1", "2"]

    def test_ends_where_the_state_begins(self) -> None:
        assert contents(past(ENTRIES, {"3"}, up_to="entry-1")) == ["0", "1"]

    def test_has_nothing_that_follows_what_is_in_the_state(self) -> None:
        assert contents(past(ENTRIES, {"2"})) == ["0", "1"]
        assert contents(past(ENTRIES, {"1"}, limit=2)) == []

    def test_has_messages_without_ids(self) -> None:
        assert len(past([Entry("e", human())], {None})) == 1

    def test_of_a_limit_begins_with_a_human_message(self) -> None:
        entries = [*ENTRIES[:1], Entry("x", ai("x")), *ENTRIES[1:]]
        assert contents(past(entries, set(), limit=4)) == ["1", "2", "3"]
        assert contents(past(entries, set(), limit=9)) == ["0", "", "1", "2", "3"]
        assert past(entries[:2], set(), limit=1) == []

    def test_the_cursor_is_the_latest_entry_before_the_state(self) -> None:
        assert cursor(ENTRIES, {"3"}) == "entry-2"
        assert cursor(ENTRIES, {"1", "2"}) == "entry-0"
        assert cursor(ENTRIES, {"9", None}) == "entry-3"
        assert cursor(ENTRIES, {"0", "1", "2", "3"}) == ""
        assert cursor([], set()) == ""

    def test_gets_ids_and_keeps_those_that_are_there(self) -> None:
        one, other = with_ids([human(), human("1")])
        assert one.id
        assert other.id == "1"
        # The id that was given says that the message is stored.
        assert names(unstored([one, ai("2")], set())) == "AI"
        assert names(unstored([other, ai("2")], set())) == "H AI"
