"""As LangChain uses it: RunnableWithMessageHistory, asynchronously and synchronously."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Make, created_table
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableFieldSpec, Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import BaseModel
from samples import humans, texts
from variants import ALL_VARIANTS, SDK_VARIANTS, Variant

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory

VARIANTS = [*ALL_VARIANTS, *SDK_VARIANTS]


def answer(messages: list[BaseMessage]) -> AIMessage:
    return AIMessage(f"{len(messages)} messages so far, the last is {messages[-1].content!r}")


def chat(get_history: Callable[[str], BaseChatMessageHistory]) -> Runnable[Any, Any]:
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
    return RunnableWithMessageHistory(
        prompt | RunnableLambda(lambda value: answer(value.to_messages())),
        get_history,
        input_messages_key="question",
        history_messages_key="history",
    )


def config(session_id: str) -> RunnableConfig:
    return {"configurable": {"session_id": session_id}}


TWO_TURNS = ["hello", "1 messages so far, the last is 'hello'", "again", "3 messages so far, the last is 'again'"]


def test_it_is_a_chat_message_history(make: Make) -> None:
    assert isinstance(make(), BaseChatMessageHistory)


async def test_ainvoke(collection_table: str, session_id: str) -> None:
    async with ChatHistoryStore(collection_table) as store:
        chain = chat(store.session)
        for question in ("hello", "again"):
            await chain.ainvoke({"question": question}, config(session_id))
        assert texts(await store.session(session_id).aget_messages()) == TWO_TURNS


def test_invoke(table: str, session_id: str) -> None:
    chain = chat(lambda session: DynamoDBChatMessageHistory(table, session))
    for question in ("hello", "again"):
        chain.invoke({"question": question}, config(session_id))
    assert texts(DynamoDBChatMessageHistory(table, session_id).messages) == TWO_TURNS


async def test_many_sessions_at_once(collection_table: str, session_id: str) -> None:
    async with ChatHistoryStore(collection_table) as store:
        chain = chat(store.session)

        async def converse(number: int) -> None:
            for question in ("hello", "again"):
                await chain.ainvoke({"question": question}, config(f"{session_id}-{number}"))

        await asyncio.gather(*(converse(number) for number in range(20)))
        for number in range(20):
            assert texts(await store.session(f"{session_id}-{number}").aget_messages()) == TWO_TURNS


async def test_a_streamed_answer_is_stored(collection_table: str, session_id: str) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("a streamed answer")]))
    async with ChatHistoryStore(collection_table) as store:
        chain = RunnableWithMessageHistory(model, store.session)
        chunks = [chunk async for chunk in chain.astream([HumanMessage("hello")], config(session_id))]
        assert len(chunks) > 1
        assert texts(await store.session(session_id).aget_messages()) == ["hello", "a streamed answer"]


@pytest.mark.parametrize("size", [2, 3])
async def test_history_size_bounds_the_prompt(collection_table: str, session_id: str, size: int) -> None:
    async with ChatHistoryStore(collection_table, history_size=size) as store:
        chain = chat(store.session)
        for _ in range(4):
            reply = await chain.ainvoke({"question": "more"}, config(session_id))
        assert reply.content.startswith(f"{size + 1} messages so far")


class Person(BaseModel):
    name: str


def answering(reply: AIMessage, make: Make) -> Runnable[Any, Any]:
    model: Runnable[Any, AIMessage] = RunnableLambda(lambda _: reply)
    return RunnableWithMessageHistory(model, lambda session_id: make(session=session_id))


def test_a_turn_with_objects_is_stored_whole(variant: type[Variant], make: Make, session_id: str) -> None:
    reply = AIMessage("Ada", additional_kwargs={"parsed": Person(name="Ada")}, response_metadata={"rows": [(1, "Ada")]})
    chain = answering(reply, make)
    assert chain.invoke([HumanMessage("who?")], config(session_id)).content == "Ada"
    question, answer = make(session=session_id).messages
    assert question == HumanMessage("who?")
    assert answer == AIMessage(
        "Ada", additional_kwargs={"parsed": {"name": "Ada"}}, response_metadata={"rows": [[1, "Ada"]]}
    )


def test_a_turn_that_cannot_be_stored_is_told_at_error(
    variant: type[Variant], make: Make, session_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    reply = AIMessage("Ada", additional_kwargs={"connection": [threading.Lock()]})
    chain = answering(reply, make)
    with caplog.at_level("ERROR", "chathistory_async"):
        assert chain.invoke([HumanMessage("who?")], config(session_id)) is reply, "the exception is swallowed"
    assert make(session=session_id).messages == []
    [record] = [record for record in caplog.records if record.name == "chathistory_async"]
    assert record.levelname == "ERROR"
    assert (
        "messages[1].additional_kwargs.connection[0] cannot be stored: a lock has no plain form" in record.getMessage()
    )
    assert f"session SessionId={session_id!r}" in record.getMessage()


@pytest.fixture(scope="module")
def indexed_table() -> Iterator[str]:
    with created_table(session_index=True) as name:
        yield name


@pytest.mark.parametrize("synchronous", [False, True])
async def test_the_owner_may_be_configurable(indexed_table: str, session_id: str, synchronous: bool) -> None:
    fields = [ConfigurableFieldSpec(id=name, annotation=str) for name in ("session_id", "owner")]
    model = GenericFakeChatModel(messages=iter([AIMessage("answer")]))
    async with ChatHistoryStore(indexed_table, session_index=True) as store:
        chain = RunnableWithMessageHistory(model, store.session, history_factory_config=fields)
        configured: RunnableConfig = {"configurable": {"session_id": session_id, "owner": f"{session_id}-owner"}}
        if synchronous:
            await asyncio.to_thread(chain.invoke, [HumanMessage("hello")], configured)
        else:
            await chain.ainvoke([HumanMessage("hello")], configured)
        [info] = (await store.list_sessions(f"{session_id}-owner")).sessions
        assert (info.session_id, info.message_count) == (session_id, 2)
        assert texts(await store.session(session_id).aget_messages()) == ["hello", "answer"]


async def test_a_session_may_have_a_whole_key_though_the_signature_does_not_tell(
    collection_table: str, session_id: str
) -> None:
    async with ChatHistoryStore(collection_table) as store:
        assert list(inspect.signature(store.session).parameters) == ["session_id", "owner"]
        tenants = store.session("s", key={"SessionId": ("tenant", session_id)})
        await tenants.aadd_messages(humans(1))
        assert tenants.key == {"SessionId": f"tenant#{session_id}"}
