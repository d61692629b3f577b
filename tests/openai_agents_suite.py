"""Runs the OpenAI Agents SDK's own tests on our sessions: a pytest plugin for ``nox -s openai_agents``."""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from engines import running_engine

from chathistory_async import ChatHistoryStore
from chathistory_async._sync.bridge import run
from chathistory_async.integrations.openai_agents import DynamoDBSession

stores: list[ChatHistoryStore] = []


class InsteadOfSQLite(DynamoDBSession):
    """Takes what ``SQLiteSession`` takes. Sessions with one file and one table of messages share their items."""

    def __init__(
        self,
        session_id: str,
        db_path: Any = ":memory:",
        sessions_table: str = "agent_sessions",
        messages_table: str = "agent_messages",
        session_settings: Any = None,
    ) -> None:
        place = uuid.uuid4().hex if str(db_path) == ":memory:" else f"{db_path}/{messages_table}"
        key = {"SessionId": f"{place}/{session_id}"}
        super().__init__(session_id, stores[0], key=key, session_settings=session_settings)

    def close(self) -> None: ...


class InsteadOfList(DynamoDBSession):
    """Takes what the ``SimpleListSession`` of the SDK's tests takes."""

    def __init__(self, session_id: str = "test", history: list[Any] | None = None) -> None:
        DynamoDBSession.__init__(self, session_id, stores[0], key={"SessionId": uuid.uuid4().hex})
        self._ignore_ids_for_matching = False
        self._session.add(history or [])

    @property
    def _items(self) -> list[Any]:
        return self._session.get()

    @property
    def saved_items(self) -> list[Any]:
        return self._items


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[Any]:
    with running_engine() as engine:
        stores.append(ChatHistoryStore(f"sdk-{uuid.uuid4().hex}", endpoint_url=engine.endpoint_url))
        run(stores[0].create_table)
        result = yield
        run(stores[0].delete_table)
        stores[0].close()
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Leave out what needs SQLite, and tests that name no session."""
    chosen = [item for item in items if "session" in inspect.getsource(item.function).lower()]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_configure() -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ[name] = "test"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    # It looks for SQLiteSession's private methods in sessions of that class, so it must know the class itself.
    import_module("agents.extensions.memory.encrypt_session")
    for module in ("agents.memory.sqlite_session", "agents.memory", "agents"):
        import_module(module).SQLiteSession = InsteadOfSQLite  # type: ignore[attr-defined]


def pytest_sessionstart() -> None:
    # The SDK's conftest has put the tests on the path by now.
    simple: Any = import_module("tests.utils.simple_session")
    # Other classes of the SDK's tests inherit from that class already, so the class itself changes.
    for name in ("__init__", "get_items", "add_items", "pop_item", "clear_session", "_items", "saved_items"):
        setattr(simple.SimpleListSession, name, getattr(InsteadOfList, name))
