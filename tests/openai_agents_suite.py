"""Runs the OpenAI Agents SDK's own tests on our sessions: a pytest plugin for ``nox -s openai_agents``."""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from engines import found_engine, started

from chathistory_async import ChatHistoryStore
from chathistory_async._sync.bridge import run
from chathistory_async.integrations.openai_agents import DynamoDBSession

stores: list[ChatHistoryStore] = []

CONNECTIONS = "it looks at SQLite's connections, locks or transactions"
ROWS = "it reads, damages or locks rows by SQL"
SKIPS = "SQLiteSession skips what it cannot decode; our sessions raise UndecodableItemError"
SNAPSHOT = "it needs _get_compaction_snapshot, a private hook of the SDK's SQLite sessions for compacting a part"
POP = "EncryptedSession tests an item before it is removed by a private method of SQLite sessions only"
SQLALCHEMY = "it is about SQLAlchemy"

# The tests that are left out, by the beginnings of their names, and why.
LEFT_OUT = {
    "memory/test_session.py": {
        "test_sqlite_session_close_closes_worker_thread_connections": CONNECTIONS,
        "test_sqlite_session_close_retries_quarantined_connection": CONNECTIONS,
        "test_sqlite_session_closed_rejects_empty_add_items": "a session of ours is not closed; its store is",
        "test_sqlite_session_closes_retired_connections_before_the_next_allocation": CONNECTIONS,
        "test_sqlite_session_failed_add_items_releases_write_lock": CONNECTIONS,
        "test_sqlite_session_failed_clear_session_rolls_back": CONNECTIONS,
        "test_sqlite_session_failed_pop_item_releases_write_lock": CONNECTIONS,
        "test_sqlite_session_file_lock_is_shared_across_instances": CONNECTIONS,
        "test_sqlite_session_get_items_limit_skips_corrupt_newest_rows": SKIPS,
        "test_sqlite_session_get_items_session_settings_limit_skips_corrupt_rows": SKIPS,
        "test_sqlite_session_keeps_connections_of_live_worker_threads": CONNECTIONS,
        "test_sqlite_session_pop_item_returns_none_after_dropping_only_corrupt_rows": SKIPS,
        "test_sqlite_session_pop_item_skips_corrupt_most_recent": SKIPS,
        "test_sqlite_session_post_commit_cancellation_propagates_after_known_outcome": CONNECTIONS,
        "test_sqlite_session_reaps_connections_from_exited_worker_threads": CONNECTIONS,
        "test_sqlite_session_rollback_failure_evicts_connection": CONNECTIONS,
    },
    "memory/test_compaction_model_visibility.py": {
        "test_automatic_compaction_does_not_reload_unbounded_hidden_history": SNAPSHOT,
        "test_backend_read_limit_cannot_hide_retained_history_from_compaction": SNAPSHOT,
        "test_expired_read_overhead_does_not_authorize_hidden_history": SNAPSHOT,
    },
    "memory/test_compaction_suffix.py": {
        "test_cancelled_suffix_transaction_settles_before_newer_append": SNAPSHOT,
        "test_expired_prefix_does_not_block_full_live_window": SNAPSHOT,
        "test_failed_encrypted_suffix_transaction_preserves_original_tokens": ROWS,
        "test_new_backend_write_invalidates_snapshot": SNAPSHOT,
        "test_partial_compaction_does_not_split_tool_call_and_output": SNAPSHOT,
        "test_partial_compaction_preserves_reasoning_and_its_follower": SNAPSHOT,
        "test_prefix_cleanup_stops_before_retained_history": SNAPSHOT,
        "test_repeated_ttl_bursts_do_not_accumulate_expired_rows": SNAPSHOT,
        "test_suffix_transaction_rolls_back_failed_insert": ROWS,
        "test_unverifiable_rows_inside_snapshot_are_retained": SNAPSHOT,
    },
    "memory/test_openai_responses_compaction_session.py": {
        "test_automatic_compaction_rollback_budget[True]": SNAPSHOT,
        "test_settled_clear_failure_invalidates_response_chain": CONNECTIONS,
        "test_settled_pop_failure_invalidates_response_chain": CONNECTIONS,
    },
    "extensions/memory/test_encrypt_session.py": {
        "test_encrypted_compaction_skips_unencrypted_stored_history": SNAPSHOT,
        "test_encrypted_pop_authentication_is_atomic_with_concurrent_mutations": ROWS,
        "test_encrypted_pop_cancellation_waits_for_authentication_rollback": POP,
        "test_encrypted_pop_preserves_sqlalchemy_history": SQLALCHEMY,
        "test_encrypted_pop_rechecks_authentication_after_expired_tail": POP,
        "test_encrypted_pop_wrong_key_preserves_recoverable_history": POP,
        "test_encrypted_pop_wrong_key_preserves_row_identity": ROWS,
        "test_encrypted_session_scan_budget_rejects_negative_limit_before_read": "a negative limit is all of SQLite",
    },
    "test_run_impl_resume_paths.py": {
        "test_handoff_resume_after_cancelled_compaction_commits": ROWS,
    },
}


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
    with found_engine() as found, started(found) as engine:
        stores.append(ChatHistoryStore(f"sdk-{uuid.uuid4().hex}", endpoint_url=engine.endpoint_url))
        run(stores[0].create_table)
        result = yield
        run(stores[0].delete_table)
        stores[0].close()
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Leave out what is in the list, and the tests that name no session."""
    found: set[tuple[str, str]] = set()
    chosen: list[pytest.Function] = []
    for item in items:
        file = item.path.relative_to(config.rootpath / "tests").as_posix()
        listed = {(file, name) for name in LEFT_OUT.get(file, {}) if item.name.startswith(name)}
        found |= listed
        if not listed and "session" in inspect.getsource(item.function).lower():
            chosen.append(item)
    files = {item.path.relative_to(config.rootpath / "tests").as_posix() for item in items}
    gone = {(file, name) for file in files for name in LEFT_OUT.get(file, {})} - found
    if gone:
        raise pytest.UsageError(f"This release of the SDK has no such tests: {sorted(gone)}")
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
