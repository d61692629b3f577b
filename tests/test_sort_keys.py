"""The order of sort keys, on clocks of every kind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chathistory_async._item_collection import sort_keys
from chathistory_async._item_collection.sort_keys import (
    MAX_CLOCKS,
    MAX_LEAD_MS,
    MAX_VALUES,
    Clock,
    Clocks,
    RecordPosition,
    SortKey,
    message_id_of,
    parse,
    parse_id,
    record_id_of,
)
from chathistory_async._wall_clock import latest_ms, replaced

MINUTE_MS = 60_000

keys = st.builds(
    SortKey,
    st.integers(0, 2**63 - 1),
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.integers(0, 255),
)
positions = st.integers(0, MAX_VALUES - 1)


@given(keys, keys)
def test_text_is_ordered_by_its_bytes_as_the_fields_are(one: SortKey, other: SortKey) -> None:
    assert (str(one).encode() < str(other).encode()) == (one < other)
    assert len(str(one)) == len(str(other))


@given(keys)
def test_text_is_read_back(key: SortKey) -> None:
    assert parse(str(key)) == key
    assert parse(str(key)[2:]) is None
    assert parse(str(key).upper()) is None
    assert parse(str(key) + "0") is None


@given(keys, st.lists(st.integers(0, 255), min_size=2, max_size=9, unique=True), keys)
def test_no_other_key_comes_between_two_parts_of_a_record(first: SortKey, parts: list[int], other: SortKey) -> None:
    record = sorted(first.of_part(part) for part in parts)
    if (other.tick, other.nonce) != (first.tick, first.nonce):
        assert not record[0] < other < record[-1]


@given(keys, positions, keys, positions)
def test_ids_are_ordered_as_messages_are(one: SortKey, position: int, other: SortKey, other_position: int) -> None:
    ids = message_id_of(one, position), message_id_of(other, other_position)
    places = (one.tick, one.nonce, position), (other.tick, other.nonce, other_position)
    assert (ids[0] < ids[1]) == (places[0] < places[1])


@given(keys, positions)
def test_ids_are_read_back(key: SortKey, position: int) -> None:
    assert parse_id(message_id_of(key, position)) == RecordPosition(key.of_part(0), position)
    assert parse_id(record_id_of(key)) == RecordPosition(key.of_part(0), None)
    for text in (message_id_of(key, position)[:-1], record_id_of(key)[1:], str(key), f"{record_id_of(key)}-", 5, None):
        with pytest.raises(ValueError, match="is not an id of a message, nor a cursor"):
            parse_id(text)


def frozen() -> int:
    return 1_700_000_000_000


def backward() -> Callable[[], int]:
    now = frozen()

    def tell() -> int:
        nonlocal now
        now -= 1000
        return now

    return tell


@pytest.mark.parametrize("clock", [frozen, backward(), latest_ms], ids=["frozen", "backward", "wall"])
def test_what_a_handle_wrote_comes_before_what_it_writes(clock: Callable[[], int]) -> None:
    handle = Clock(clock)
    written = [handle.next_key() for _ in range(70_000)]
    assert written == sorted(written)
    assert len({key.tick for key in written}) == len(written)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-5 * MINUTE_MS, 5 * MINUTE_MS)), min_size=1, max_size=30))
def test_what_was_read_comes_before_what_is_written_on_any_hosts_clock(turns: list[tuple[int, int]]) -> None:
    """Each turn, a host whose clock differs by up to five minutes reads all and writes."""
    now = frozen()
    offsets = [0, 0, 0, 0]
    hosts = [Clock(lambda host=host: now + offsets[host]) for host in range(4)]  # type: ignore[misc]
    session: list[SortKey] = []
    for host, offset in turns:
        now += 1
        offsets[host] = offset
        for key in session:
            hosts[host].see(key)
        session.append(hosts[host].next_key())
    assert session == sorted(session)
    assert len(set(session)) == len(session)


def test_a_wall_clock_that_goes_back_is_not_followed_by_any_handle() -> None:
    before = Clock().next_key()
    with replaced(lambda: time.time_ns() - 3600 * 10**9):
        assert Clock().next_key().tick >= before.tick


def test_the_time_is_the_writers_unless_it_saw_a_later_one() -> None:
    clock = Clock(frozen)
    assert clock.next_key().created_at == frozen() / 1000
    clock.see(SortKey((frozen() + MINUTE_MS) << 16, "0" * 16))
    assert clock.next_key().created_at == (frozen() + MINUTE_MS) / 1000


def at(milliseconds: int) -> SortKey:
    return SortKey(milliseconds << 16, "f" * 16)


YEAR_9999_MS = 253_402_300_799_000


@pytest.mark.parametrize("tick", [2**64 - 1, 2**63, at(YEAR_9999_MS).tick, at(frozen() + MAX_LEAD_MS + 1).tick])
def test_a_time_that_no_clock_can_tell_is_not_followed(tick: int) -> None:
    clock = Clock(frozen)
    impossible = SortKey(tick, "f" * 16)
    assert not clock.is_possible(impossible)
    before = clock.next_key()
    clock.see(impossible)
    flags = [clock.saw_impossible_key]
    clock.recover()
    assert [*flags, clock.saw_impossible_key] == [True, False]
    after = clock.next_key()
    assert after.created_at == frozen() / 1000
    assert after > before, "what is possible is not forgotten"


@pytest.mark.parametrize("minutes", [5, 60, 24 * 60, 365 * 24 * 60, 56 * 365 * 24 * 60])
def test_a_clock_that_is_wrong_is_followed(minutes: int) -> None:
    clock = Clock(frozen)
    clock.see(at(frozen() + minutes * MINUTE_MS))
    assert not clock.saw_impossible_key
    assert clock.next_key() > at(frozen() + minutes * MINUTE_MS)


def test_a_key_that_claims_a_time_beyond_the_calendar_has_a_time_all_the_same() -> None:
    created_at = datetime.fromtimestamp(SortKey(2**64 - 1, "f" * 16).created_at, timezone.utc)
    assert created_at == datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)


class TestClocks:
    """The clocks of a process that uses more sessions than it keeps clocks of."""

    @pytest.fixture
    def clocks(self, monkeypatch: pytest.MonkeyPatch) -> Clocks:
        clocks = Clocks()
        monkeypatch.setattr(sort_keys, "_clocks", clocks)
        return clocks

    def use_others(self, clocks: Clocks, number: int = MAX_CLOCKS) -> None:
        for other in range(number):
            clocks.of("table", f"other {other}").next_key()

    @pytest.mark.parametrize("minutes", [0, 5, 60, 23 * 60])
    def test_order_what_a_dropped_one_had_seen_before_what_is_written(self, clocks: Clocks, minutes: int) -> None:
        seen = at(time.time_ns() // 1_000_000 + minutes * MINUTE_MS)
        clocks.of("table", "session").see(seen)
        self.use_others(clocks, 5000)
        assert clocks.of("table", "session").latest >= seen.tick
        assert clocks.of("table", "session").next_key() > seen

    def test_do_not_drop_what_a_handle_holds(self, clocks: Clocks) -> None:
        held = clocks.of("table", "session")
        held.see(at(frozen()))
        self.use_others(clocks)
        later = at(time.time_ns() // 1_000_000 + 60 * MINUTE_MS)
        held.see(later)
        assert clocks.of("table", "session") is held
        del held
        self.use_others(clocks)
        assert clocks.of("table", "session").next_key() > later

    def test_keep_no_more_than_they_should(self, clocks: Clocks) -> None:
        self.use_others(clocks, MAX_CLOCKS + 100)
        gc.collect()
        assert len(clocks) == MAX_CLOCKS

    # Named, because pytest-xdist wants the same names in each worker.
    @pytest.mark.parametrize(
        "tick",
        [2**64 - 1, 2**63 - 1, at(time.time_ns() // 1_000_000 + 10**9).tick],
        ids=["the last one", "half of them", "eleven days ahead"],
    )
    def test_do_not_take_over_one_sessions_false_time(self, clocks: Clocks, tick: int) -> None:
        clocks.of("table", "session").see(SortKey(tick, "f" * 16))
        self.use_others(clocks)
        first = clocks.of("table", "another").next_key()
        assert abs(first.created_at - time.time()) < 3600


def test_threads_get_ticks_of_their_own() -> None:
    clock, ticks = Clock(frozen), list[int]()

    def write() -> None:
        for _ in range(2000):
            ticks.append(clock.next_key().tick)  # each at its own time

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ticks)) == 8000
