"""Tests without an event loop."""

from __future__ import annotations

import asyncio
import uuid

import aioboto3

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async.testing import StoreFactory


def test_a_conversation(chathistory_store: ChatHistoryStore) -> None:
    history = chathistory_store.session("alice")
    history.add_user_message("Hello!")
    history.add_ai_message("Hi, how can I help?")
    assert [message.text for message in history.messages] == ["Hello!", "Hi, how can I help?"]


def test_the_table_is_new(chathistory_store: ChatHistoryStore) -> None:
    assert chathistory_store.session("alice").messages == []


def test_stores_are_apart(chathistory_store_factory: StoreFactory) -> None:
    one, other = chathistory_store_factory(), chathistory_store_factory(layout="single_item")
    one.session("alice").add_user_message("Hello!")
    assert other.session("alice").messages == []


def test_a_table_of_our_own(chathistory_endpoint_url: str, chathistory_boto3_session: aioboto3.Session) -> None:
    engine = {"endpoint_url": chathistory_endpoint_url, "boto3_session": chathistory_boto3_session}
    # LocalStack keeps tables when the tests have ended.
    table = f"chats-{uuid.uuid4().hex}"
    store = ChatHistoryStore(table, **engine, layout="single_item")
    store.create_table_sync()
    DynamoDBChatMessageHistory(table, "alice", **engine).add_user_message("Hello!")
    assert len(DynamoDBChatMessageHistory(table, "alice", **engine).messages) == 1
    asyncio.run(store.delete_table())
