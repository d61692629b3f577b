"""Damaged items of the session index: each is told of, healed where it can be, deleted, and in nobody else's way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from conftest import NewStore
from proxy import Fault, Proxy, Seen
from samples import humans

from chathistory_async import (
    ChatHistoryStore,
    ConfigurationError,
    DecryptionError,
    PurgeResult,
    SessionInfo,
    SessionNotFoundError,
    UndecodableItemError,
)
from chathistory_async._encryption.binding import Binding

NUMBER_OF_38_DIGITS = {"N": "9" * 38}
ABSENT = None

# An item with this damage cannot be read until the next append repairs it.
HEALED = [
    ("MessageCount", {"S": "1"}),
    ("MessageCount", NUMBER_OF_38_DIGITS),
    ("MessageCount", {"N": "-" + "9" * 38}),
    ("MessageCount", {"N": "1e125"}),
    ("MessageCount", {"M": {"a": {"B": b"\x00"}}}),
    ("MessageCount", ABSENT),
    ("CreatedAt", ABSENT),
    ("LastActive", {"S": "9999-99-99"}),
    ("LastActive", {"S": "0"}),
]
# An item with this damage cannot be read either, and no append notices it.
REPAIRED = [
    ("MessageCount", {"N": "1.5"}),
    ("CreatedAt", {"S": "then"}),
    ("CreatedAt", {"S": "2026-01-01T00:00:00"}),
    ("CreatedAt", {"N": "1"}),
]
# An append leaves this damage as it is, because the content is the user's.
CONTENT = [
    ("Title", {"N": "1"}),
    ("Title", {"L": []}),
    ("Title", {"NULL": True}),
    ("Metadata", {"S": "[]"}),
    ("Metadata", {"S": "{"}),
    ("Metadata", {"S": '{"$int": []}'}),
    ("Metadata", {"M": {}}),
]
ENCRYPTED = [
    ("Title", {"B": b"garbage"}),
    ("Metadata", {"B": b"\x02\x04\x78" + b"\xff" * 200}),
    ("Metadata", {"B": b"\x00"}),
]
# With this damage, an append does not know the format, and writes nothing.
FORMATS: list[tuple[str, Any]] = [("Format", {"N": "1"}), ("Format", {"S": ""}), ("Format", {"M": {}})]
# This damage disturbs nothing.
HARMLESS = [
    ("Revision", {"N": "1"}),
    ("Revision", ABSENT),
    ("DetailsRevision", {"N": "1"}),
    ("DetailsRevision", ABSENT),
    ("expireAt", {"S": "never"}),
    ("expireAt", {"N": "9" * 38}),
]


def named(cases: list[tuple[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "value"), cases, ids=[f"{name} {value}"[:40] for name, value in cases])


Damage = Callable[[str, str, Any], None]


@pytest.fixture
def damage(dynamodb: Any, collection_table: str) -> Damage:
    """Changes an attribute of a session's item, or removes it."""

    def damage(session: str, name: str, value: Any) -> None:
        dynamodb.update_item(
            TableName=collection_table,
            Key={"SessionId": {"S": session}, "MessageId": {"S": "session"}},
            UpdateExpression="REMOVE #name" if value is ABSENT else "SET #name = :value",
            ExpressionAttributeNames={"#name": name},
            **({} if value is ABSENT else {"ExpressionAttributeValues": {":value": value}}),
        )

    return damage


@pytest.fixture
async def sessions(new_store: NewStore, owner: str) -> list[str]:
    """Three sessions of the owner, the last one first; the second one is to be damaged."""
    store = new_store()
    names = [f"{owner}-{number}" for number in range(3)]
    for name in names:
        await store.session(name, owner=owner).aadd_messages(humans(1, 2, 3))
    return names[::-1]


def ids(sessions: list[SessionInfo]) -> list[Any]:
    return [info.session_id for info in sessions]


async def all_listed(store: ChatHistoryStore, owner: str, limit: int = 1) -> tuple[list[Any], dict[Any, Exception]]:
    """List all sessions, so many a page."""
    readable, unreadable, cursor = list[Any](), dict[Any, Exception](), None
    while True:
        page = await store.list_sessions(owner, limit, before=cursor)
        readable += ids(page.sessions)
        unreadable |= {one.session_id: one.error for one in page.unreadable}
        cursor = page.cursor
        if cursor is None:
            return readable, unreadable


class TestAllAtOnce:
    """A session of each damage, and sound ones among them."""

    @pytest.fixture
    async def damaged(self, new_store: NewStore, owner: str, damage: Damage) -> dict[str, tuple[str, Any]]:
        """Sessions of three messages, and what is wrong with them; nothing with the one of the name ""."""
        store = new_store()
        cases = dict(enumerate([*HEALED, *REPAIRED, *CONTENT, *ENCRYPTED, *HARMLESS, ("", None)]))
        sessions = {f"{owner}-{number}-{name}": (name, value) for number, (name, value) in cases.items()}
        await asyncio.gather(*(store.session(one, owner=owner).aadd_messages(humans(1, 2, 3)) for one in sessions))
        for session, (name, value) in sessions.items():
            if name:
                damage(session, name, value)
        return sessions

    async def test_are_told_of_and_keep_no_other_from_being_listed(
        self, new_store: NewStore, owner: str, damaged: dict[str, tuple[str, Any]], kms_key: str
    ) -> None:
        store = new_store(kms_key_id=kms_key)
        readable, unreadable = await all_listed(store, owner, 7)
        harmless = [session for session, case in damaged.items() if case in [*HARMLESS, ("", None)]]
        assert sorted(readable) == sorted(harmless)
        assert sorted([*readable, *unreadable]) == sorted(damaged)
        for session, error in unreadable.items():
            name, value = damaged[session]
            assert isinstance(error, UndecodableItemError)
            assert re.escape(session) in re.escape(str(error))
            if (name, value) not in ENCRYPTED:
                assert re.search(rf"damaged \(its .*{name}.*\): .*, delete_session\(\) deletes the session", str(error))
            with pytest.raises(type(error), match=re.escape(str(error))):
                await store.get_session_info(session)

    async def test_are_purged(self, new_store: NewStore, owner: str, damaged: dict[str, tuple[str, Any]]) -> None:
        assert await new_store().purge_owner(owner) == PurgeResult(len(damaged), 3 * len(damaged))
        assert await all_listed(new_store(), owner, 50) == ([], {})

    async def test_are_deleted(self, new_store: NewStore, owner: str, damaged: dict[str, tuple[str, Any]]) -> None:
        store = new_store()
        assert set(await asyncio.gather(*map(store.delete_session, damaged))) == {3}
        assert [await store.get_session_info(session) for session in damaged] == [None] * len(damaged)

    @pytest.mark.stress
    async def test_take_appends_and_edits(
        self, new_store: NewStore, damage: Damage, damaged: dict[str, tuple[str, Any]]
    ) -> None:
        store = new_store()

        async def use(session: str) -> None:
            history = store.session(session)
            await history.apop_message()
            await history.aadd_messages(humans(4))
            await history.adelete_messages([(await history.apage(1)).messages[0].id])
            assert len(await history.aget_messages()) == 2
            name, value = damaged[session]
            if name:
                damage(session, name, value)
            await history.aclear()
            assert await history.aget_messages() == []

        await asyncio.gather(*map(use, damaged))


class TestHealing:
    @named(HEALED)
    async def test_is_an_appends_and_counts_the_messages(
        self, new_store: NewStore, owner: str, sessions: list[str], damage: Damage, name: str, value: Any
    ) -> None:
        store = new_store()
        damage(sessions[1], name, value)
        await store.session(sessions[1]).aadd_messages(humans(4, 5))
        info = await store.get_session_info(sessions[1])
        assert info is not None
        assert info.message_count == 5
        assert info.created_at <= info.last_active_at
        readable, unreadable = await all_listed(store, owner)
        assert (len(readable), unreadable) == (3, {})

    @named([("MessageCount", {"S": "1"}), ("MessageCount", ABSENT), ("Revision", ABSENT)])
    async def test_is_a_pops_too(
        self, new_store: NewStore, sessions: list[str], damage: Damage, name: str, value: Any
    ) -> None:
        store = new_store()
        damage(sessions[1], name, value)
        await store.session(sessions[1]).apop_message()
        info = await store.get_session_info(sessions[1])
        assert info is not None
        assert info.message_count == 2

    @named(HEALED + REPAIRED + [case for case in CONTENT + ENCRYPTED if case[0] == "Title"] + HARMLESS)
    async def test_is_a_new_title(
        self, new_store: NewStore, sessions: list[str], damage: Damage, name: str, value: Any
    ) -> None:
        store = new_store()
        damage(sessions[1], name, value)
        await store.set_title(sessions[1], "new")
        info = await store.get_session_info(sessions[1])
        assert info is not None
        assert (info.title, info.message_count) == ("new", 3)
        assert info.created_at <= info.last_active_at

    @pytest.mark.parametrize("conflict", [False, True])
    async def test_is_followed_by_a_pause_only_if_another_writer_was_faster(
        self,
        store_through: NewStore,
        sessions: list[str],
        damage: Damage,
        proxy: Proxy,
        pauses: list[float],
        conflict: bool,
    ) -> None:
        def schedule(seen: Seen) -> Fault:
            if conflict and proxy.operations().count("UpdateItem") == 1:
                damage(sessions[1], "Revision", {"S": "another writer's"})
            return Fault.NONE

        damage(sessions[1], "MessageCount", {"S": "1"})
        proxy.schedule = schedule
        await store_through().set_title(sessions[1], "new")
        assert proxy.operations() == ["GetItem", "UpdateItem"] * (3 if conflict else 2)
        assert len(pauses) == conflict

    async def test_spares_the_next_attempt_its_pause_and_no_other(
        self, new_store: NewStore, sessions: list[str], pauses: list[float]
    ) -> None:
        history: Any = new_store().session(sessions[0])
        attempts = history._session.access.attempts()
        await attempts.begin()
        attempts.retry_at_once()
        await attempts.begin()
        assert pauses == []
        await attempts.begin()
        assert len(pauses) == 1

    async def test_of_metadata_is_the_users(self, new_store: NewStore, sessions: list[str], damage: Damage) -> None:
        store = new_store()
        damage(sessions[1], "Metadata", {"S": "{"})
        with pytest.raises(UndecodableItemError, match="Metadata"):
            await store.update_metadata(sessions[1], {"a": 1})
        # A title that nobody can read is not in the way of metadata.
        damage(sessions[0], "Title", {"N": "1"})
        assert await store.update_metadata(sessions[0], {"a": 1}) == {"a": 1}


@named(FORMATS)
async def test_a_damaged_format_is_told_of_by_all_that_ask_for_it(
    new_store: NewStore, owner: str, sessions: list[str], damage: Damage, name: str, value: Any
) -> None:
    store = new_store()
    damage(sessions[1], name, value)
    text = r"damaged \(its Format\): .*cannot be restored, delete_session\(\) deletes the session"
    readable, unreadable = await all_listed(store, owner)
    assert readable == [sessions[0], sessions[2]]
    assert re.search(text, str(unreadable[sessions[1]]))
    with pytest.raises(UndecodableItemError, match=text):
        await store.get_session_info(sessions[1])
    for append in (store.session(sessions[1]).aadd_messages(humans(4)), store.json_session(sessions[1]).aadd([4])):
        with pytest.raises(UndecodableItemError, match=text):
            await append
    # The messages are still there.
    await store.session(sessions[1]).apop_message()
    assert len(await store.session(sessions[1]).aget_messages()) == 2
    assert await store.delete_session(sessions[1]) == 2


class TestEncrypted:
    @named(ENCRYPTED)
    async def test_garbage_is_told_of(
        self,
        new_store: NewStore,
        owner: str,
        sessions: list[str],
        damage: Damage,
        name: str,
        value: Any,
        kms_key: str,
    ) -> None:
        damage(sessions[1], name, value)
        readable, unreadable = await all_listed(new_store(kms_key_id=kms_key), owner)
        assert readable == [sessions[0], sessions[2]]
        assert isinstance(unreadable[sessions[1]], DecryptionError)
        # A reader without kms_key_id still gets the other sessions.
        readable, unreadable = await all_listed(new_store(), owner)
        assert readable == [sessions[0], sessions[2]]
        assert isinstance(unreadable[sessions[1]], ConfigurationError)

    @pytest.mark.parametrize("name", ["Title", "Metadata"])
    async def test_bytes_that_are_no_text_are_not_in_the_error(
        self, new_store: NewStore, owner: str, sessions: list[str], damage: Damage, kms_key: str, name: str
    ) -> None:
        store = new_store(kms_key_id=kms_key)
        session = store._indexed(sessions[1], None)
        binding = Binding("title" if name == "Title" else "metadata", "session")
        value = await session._value(b"secret\xff", 100, binding)
        damage(sessions[1], name, value)
        _, unreadable = await all_listed(store, owner)
        error: BaseException | None = unreadable[sessions[1]]
        assert isinstance(error, UndecodableItemError)
        while error is not None:
            assert "secret" not in repr(vars(error)) + repr(error.args)
            assert not isinstance(error, ValueError)
            error = error.__context__


@pytest.mark.parametrize("value", [{"S": "x"}, {"M": {"Deleted": {"S": "x"}}}, {"L": []}])
async def test_a_damaged_checkpoint_of_a_migration_keeps_no_session_from_being_deleted(
    new_store: NewStore, sessions: list[str], dynamodb: Any, collection_table: str, value: Any
) -> None:
    checkpoint = {"SessionId": {"S": sessions[0]}, "MessageId": {"S": "migration"}, "Migration": value}
    dynamodb.put_item(TableName=collection_table, Item=checkpoint)
    assert await new_store().delete_session(sessions[0]) == 3


@pytest.mark.parametrize("heals", ["a repair", "a count"])
async def test_what_is_healed_does_not_come_back_when_it_is_deleted_meanwhile(
    new_store: NewStore,
    store_through: NewStore,
    session_id: str,
    damage: Damage,
    proxy: Proxy,
    dynamodb: Any,
    collection_table: str,
    heals: str,
) -> None:
    await new_store().session(session_id).aadd_messages(humans(1))
    damage(session_id, "Revision", ABSENT)
    key: Any = {"TableName": collection_table, "Key": {"SessionId": {"S": session_id}, "MessageId": {"S": "session"}}}

    def schedule(seen: Seen) -> Fault:
        if proxy.operations().count("UpdateItem") == 1:
            dynamodb.delete_item(**key)
        return Fault.NONE

    proxy.schedule = schedule
    if heals == "a repair":
        with pytest.raises(SessionNotFoundError):
            await store_through().set_title(session_id, "title")
    else:
        await store_through().get_session_info(session_id)
    assert "UpdateItem" in proxy.operations()
    assert "Item" not in dynamodb.get_item(**key)
