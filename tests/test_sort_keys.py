"""The order of sort keys, on clocks of every kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chathistory_async import _sort_keys
from chathistory_async._sort_keys import MAX_INDEX, MAX_PARTS, Clock, SortKey, parse

MINUTE_MS = 60_000

keys = st.builds(
    SortKey,
    st.integers(0, 2**63 - 1),
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.integers(0, MAX_INDEX - 1),
    st.integers(0, MAX_PARTS - 1),
)


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


@given(keys, st.lists(st.integers(0, MAX_INDEX - 1), min_size=2, max_size=9, unique=True), keys)
def test_no_other_key_comes_between_two_of_a_batch(first: SortKey, indexes: list[int], other: SortKey) -> None:
    batch = sorted(SortKey(first.tick, first.batch, index) for index in indexes)
    if (other.tick, other.batch) != (first.tick, first.batch):
        assert not batch[0] < other < batch[-1]


def frozen() -> int:
    return 1_700_000_000_000


def backward() -> Callable[[], int]:
    now = frozen()

    def tell() -> int:
        nonlocal now
        now -= 1000
        return now

    return tell


@pytest.mark.parametrize("clock", [frozen, backward(), _sort_keys._wall_clock_ms], ids=["frozen", "backward", "wall"])
def test_what_a_handle_wrote_comes_before_what_it_writes(clock: Callable[[], int]) -> None:
    handle = Clock(clock)
    written = [handle.next_batch() for _ in range(70_000)]
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
        session.append(hosts[host].next_batch())
    assert session == sorted(session)
    assert len(set(session)) == len(session)


def test_a_wall_clock_that_goes_back_is_not_followed_by_any_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Clock().next_batch()
    ahead = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: ahead)
    assert Clock().next_batch().tick >= before.tick


def test_the_time_is_the_writers_unless_it_saw_a_later_one() -> None:
    clock = Clock(frozen)
    assert clock.next_batch().created_at == frozen() / 1000
    clock.see(SortKey((frozen() + MINUTE_MS) << 16, "0" * 16, 0))
    assert clock.next_batch().created_at == (frozen() + MINUTE_MS) / 1000


def test_a_time_that_no_clock_can_tell_is_an_error() -> None:
    clock = Clock(frozen)
    clock.see(SortKey(2**64 - 1, "f" * 16, 0))
    with pytest.raises(OverflowError):
        clock.next_batch()
    clock.recover()
    first = clock.next_batch()
    clock.recover()
    assert clock.next_batch() > first, "what is sound is not forgotten"


def test_threads_get_ticks_of_their_own() -> None:
    clock, ticks = Clock(frozen), list[int]()

    def write() -> None:
        for _ in range(2000):
            ticks.append(clock.next_batch().tick)  # each at its own time

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ticks)) == 8000
