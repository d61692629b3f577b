"""The types that users see. ``nox -s types`` checks this program, and nothing runs it.

``assert_type`` fails if a type changes. In ``misuse``, mypy reports each ``type: ignore`` that ignores nothing.
"""

from __future__ import annotations

from typing import assert_type  # Python 3.11

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, HumanMessage

from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    JsonSession,
    MigrationResult,
    Page,
    ValuePage,
)
from chathistory_async.local import local_engine


def get_session_history(session_id: str) -> BaseChatMessageHistory:
    return DynamoDBChatMessageHistory("t", session_id, ttl=5, key={"a": "b", "c": 1})


async def use() -> None:
    async with local_engine() as url, ChatHistoryStore("t", endpoint_url=url) as store:
        assert_type(url, str)
        assert_type(store, ChatHistoryStore)
        history = store.session("s")
        assert_type(history, DynamoDBChatMessageHistory)
        assert_type(await history.aget_messages(), list[BaseMessage])
        assert_type(history.messages, list[BaseMessage])
        assert_type(history.ttl, int | None)
        page = await history.apage(5)
        assert_type(page, Page)
        assert_type(page.messages[0].message, BaseMessage)
        assert_type([message async for message in history.aiter()], list[BaseMessage])
        assert_type(list(history.iter()), list[BaseMessage])
        assert_type(await history.apop_message(), BaseMessage | None)
        values = store.json_session("j", format="other")
        assert_type(values, JsonSession)
        await values.aadd([{"a": 1}, 2], idempotency_key="k")
        assert_type(await values.apage(), ValuePage)
        history.add_messages([HumanMessage("x")])
        old = ChatHistoryStore("old", endpoint_url=url, layout="single_item")
        moved = [session async for session in store.migrate_from(old, old.scan_session_ids(), dry_run=True)]
        assert_type(moved, list[MigrationResult])
    async with DynamoDBChatMessageHistory("t", "s") as single:
        assert_type(single, DynamoDBChatMessageHistory)
    try:
        single.clear()
    except ChatHistoryError as error:
        assert_type(error.table_name, str | None)


def misuse() -> None:
    DynamoDBChatMessageHistory("t")  # type: ignore[call-arg]
    DynamoDBChatMessageHistory("t", "s", ttl="1")  # type: ignore[arg-type]
    DynamoDBChatMessageHistory("t", "s", region="r")  # type: ignore[call-arg]
    DynamoDBChatMessageHistory("t", "s", key={"a": 1.5})  # type: ignore[dict-item]
    DynamoDBChatMessageHistory("t", "s").ttl = 5  # type: ignore[misc]
    DynamoDBChatMessageHistory("t", "s").add_messages("x")  # type: ignore[arg-type]
    ChatHistoryStore("t", "http://x")  # type: ignore[call-arg]
