"""Tests without an event loop."""

from __future__ import annotations

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
    options = {"endpoint_url": chathistory_endpoint_url, "boto3_session": chathistory_boto3_session}
    ChatHistoryStore("Chats", **options, layout="single_item").create_table_sync()
    DynamoDBChatMessageHistory("Chats", "alice", **options).add_user_message("Hello!")
    assert len(DynamoDBChatMessageHistory("Chats", "alice", **options).messages) == 1
