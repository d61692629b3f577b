"""The commands that delete: they show counts, ask, and leave nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from command_line import fails, run_command, succeeds
from proxy import Fault, Proxy, Seen
from samples import humans, texts

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._sync.bridge import run


@pytest.fixture
def alices(store: ChatHistoryStore, session_id: str, owner: str) -> str:
    store.session(session_id, owner=owner).add_messages(humans(1, 2))
    return session_id


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_nothing_is_deleted_unasked(
    answer: str, alices: str, owner: str, options: list[str], store: ChatHistoryStore
) -> None:
    [first, _] = store.session(alices).page().messages
    for command, asked in (
        (["delete", alices], f"Delete the session '{alices}' with 2 messages?"),
        (["delete-message", alices, first.id], f"Delete 1 message of the session '{alices}'?"),
        (["purge", owner], f"Delete 1 session of '{owner}' with 2 messages?"),
    ):
        done = run_command(*command, *options, typed=answer)
        assert (done.code, done.output) == (1, "")
        assert done.error.startswith(asked)
        assert done.error.splitlines()[-1] == "Error: Nothing was done"
    assert texts(store.session(alices).messages) == ["1", "2"]


def test_a_session(alices: str, options: list[str], items_in: Callable[[str], Any], collection_table: str) -> None:
    assert (
        succeeds("delete", alices, *options, typed="y\n").output == f"Deleted the session {alices} with 2 messages.\n"
    )
    # Young records leave empty items for half an hour.
    assert all("History" not in item and "Title" not in item for item in items_in(collection_table))
    assert fails("delete", alices, "--yes", *options) == f"Error: There is no session '{alices}'"


def test_a_session_that_is_not_in_the_index(collection_table: str, session_id: str, options: list[str]) -> None:
    ChatHistoryStore(collection_table).session(session_id).add_messages(humans(1))
    assert succeeds("delete", session_id, "--yes", "--json", *options).json() == {"session": session_id, "messages": 1}


def test_a_session_with_a_damaged_entry(alices: str, options: list[str], collection_table: str, dynamodb: Any) -> None:
    key = {"SessionId": {"S": alices}, "MessageId": {"S": "session"}}
    change: dict[str, Any] = {"UpdateExpression": "SET Title = :x", "ExpressionAttributeValues": {":x": {"N": "1"}}}
    dynamodb.update_item(TableName=collection_table, Key=key, **change)
    assert succeeds("delete", alices, "--yes", "--json", *options).json()["messages"] == 2


def test_a_single_item(table: str, session_id: str) -> None:
    history = DynamoDBChatMessageHistory(table, session_id)
    history.add_messages(humans(1, 2, 3))
    options = ["--table", table, "--layout", "single_item"]
    assert "with 3 messages" in succeeds("delete", session_id, "--yes", *options).output
    assert history.messages == []
    fails("delete", session_id, "--yes", *options)


def test_messages_by_their_ids(alices: str, options: list[str], store: ChatHistoryStore) -> None:
    [first, second] = store.session(alices).page().messages
    done = succeeds("delete-message", alices, first.id, second.id, "--yes", *options)
    assert done.output == "Deleted what was stored under 2 ids.\n"
    assert store.session(alices).messages == []
    info = run(store.get_session_info, alices)
    assert info is not None
    assert info.message_count == 0


def test_values_of_a_json_session(session_id: str, options: list[str], store: ChatHistoryStore) -> None:
    values = store.json_session(session_id, format="my-agent")
    values.add(["a", "b"])
    [first, _] = values.page().values
    told = succeeds("delete-message", session_id, first.id, "--yes", "--json", *options).json()
    assert told == {"session": session_id, "ids": [first.id]}
    assert values.get() == ["b"]
    assert "is not an id of a message" in fails("delete-message", session_id, "x", "--yes", *options, code=2)


def test_a_purge_leaves_a_receipt(
    alices: str, owner: str, options: list[str], store: ChatHistoryStore, dynamodb: Any
) -> None:
    store.json_session(f"{alices}-2", owner=owner).add(["x"])
    store.session(f"{alices}-3", owner=owner).add_messages(humans(1))
    # It has expired: it is not listed, and DynamoDB has not deleted it yet.
    key = {"SessionId": {"S": f"{alices}-3"}, "MessageId": {"S": "session"}}
    change: dict[str, Any] = {"UpdateExpression": "SET expireAt = :x", "ExpressionAttributeValues": {":x": {"N": "1"}}}
    dynamodb.update_item(TableName=options[1], Key=key, **change)
    assert len(run(store.list_sessions, owner).sessions) == 2
    receipt = succeeds("purge", owner, "--yes", *options).json()
    assert (receipt["owner"], receipt["table"], receipt["complete"]) == (owner, options[1], True)
    assert (receipt["sessions"], receipt["messages"]) == (3, 4)
    assert receipt["began_at"] <= receipt["ended_at"]
    # LocalStack may run without STS.
    assert receipt["identity"].startswith(("arn:aws:", "not known ("))
    assert any("backups" in text for text in receipt["not_covered"])
    assert run(store.list_sessions, owner).sessions == []
    assert succeeds("purge", owner, "--yes", *options).json()["sessions"] == 0


def test_a_purge_that_failed_says_how_far_it_came_and_can_be_repeated(
    alices: str, owner: str, options: list[str], store: ChatHistoryStore, proxy: Proxy
) -> None:
    store.session(f"{alices}-2", owner=owner).add_messages(humans(1, 2, 3))
    deleted = 0

    def refuse_the_second(seen: Seen) -> Fault:
        nonlocal deleted
        deleted += seen.operation == "DeleteItem"
        return Fault.DENIED if seen.operation == "DeleteItem" and deleted > 1 else Fault.NONE

    proxy.schedule = refuse_the_second
    done = run_command("purge", owner, "--yes", *options, "--endpoint-url", proxy.url)
    assert done.code == 1
    assert done.error.splitlines()[-1].startswith("Error: AWS refused DeleteItem")
    first = done.json()
    assert (first["complete"], first["sessions"], first["messages"]) == (False, 1, 3)
    second = succeeds("purge", owner, "--yes", *options).json()
    assert (second["complete"], second["sessions"]) == (True, 1)


def test_a_purge_without_an_identity(alices: str, owner: str, options: list[str]) -> None:
    nowhere = {"AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    receipt = succeeds("purge", owner, "--yes", *options, environment=nowhere).json()
    assert receipt["identity"] == "not known (EndpointConnectionError)"
    assert receipt["complete"] is True


def test_a_purge_does_not_wait_for_an_identity(
    alices: str, owner: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chathistory_async.cli.delete._IDENTITY_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silence = {"AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        receipt = succeeds("purge", owner, "--yes", *options, environment=silence).json()
    assert receipt["identity"] == "not known (ReadTimeoutError)"
    assert receipt["complete"] is True
