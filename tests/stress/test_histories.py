"""Several processes use one session at once on a bad day. An independent checker reads what they have written down.

Their clocks are minutes apart. The proxy makes requests fail, calls are cancelled at any await, processes are killed.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import created_table
from history_checker import Operation, violations
from proxy import Fault, Proxy, Seen
from session_worker import session_in, work

from chathistory_async import ChatHistoryStore
from chathistory_async._sync.bridge import run

pytestmark = pytest.mark.stress
PROCESSES = 4
CALLS = 80
KILLS = 6
SECONDS_BETWEEN_KILLS = (0.5, 2.0)
FAULT_RATE = 0.1
READS = {"GetItem", "Query"}
SKEWS_SECONDS = (-300, 300, 0, 120)
OWNER = "somebody"
# A request that the proxy forwards late, and what DynamoDB needs for it.
LATE_SECONDS = 3.0
FAULTS = [fault for fault in Fault if fault not in {Fault.NONE, Fault.DENIED}]
# A late first write of a handle that has not read can undo a clear of a single item: see _single_item/changes.py.
FAULTS_OF_A_SINGLE_ITEM = [fault for fault in FAULTS if fault is not Fault.LATE_REQUEST]


@dataclass(frozen=True)
class Setting:
    """How a session is stored, and how often each call is made."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    encrypted: bool = False
    mix: dict[str, float] = field(
        default_factory=lambda: {"append": 5, "append once": 2, "read": 3, "clear": 0.3, "pop": 0.7}
    )
    json_values: bool = False
    part_bytes: int | None = None


SINGLE_ITEM = {"layout": "single_item"}
SINGLE_ITEM_MIX = {"append": 6, "read": 3, "clear": 0.3}
# Some thirty of them are cancelled.
CONTENDED_SINGLE_ITEM: dict[str, float] = {"append": 6, "read": 1, "clear": 3}
CONTENDED: dict[str, float] = {"append": 4, "append once": 2, "read": 1, "clear": 3}
# Four of them have a batch of forty.
SMALL_PARTS = 600
SDK = {"fast_path": False}
INDEXED = {"session_index": True}
SETTINGS = [
    Setting("single item", SINGLE_ITEM, mix=SINGLE_ITEM_MIX),
    Setting("single item, SDK", SINGLE_ITEM | SDK, mix=SINGLE_ITEM_MIX),
    Setting("single item, encrypted", SINGLE_ITEM, encrypted=True, mix=SINGLE_ITEM_MIX),
    Setting("item collection"),
    Setting("item collection, SDK", SDK),
    Setting("item collection, encrypted", encrypted=True),
    Setting("item collection, nothing removed", mix={"append": 2, "append once": 1, "read": 1}),
    Setting("indexed", INDEXED),
    Setting("indexed, SDK", INDEXED | SDK),
    Setting("indexed, encrypted", INDEXED, encrypted=True),
    Setting("item collection, in parts", part_bytes=SMALL_PARTS),
    Setting("item collection, in parts, contended clears", mix=CONTENDED, part_bytes=SMALL_PARTS),
    Setting("JSON", json_values=True),
    Setting("JSON, indexed, encrypted", INDEXED, encrypted=True, json_values=True),
    Setting("JSON, indexed, contended clears", INDEXED, mix=CONTENDED, json_values=True),
    Setting("single item, contended clears", SINGLE_ITEM, mix=CONTENDED_SINGLE_ITEM),
    Setting("item collection, contended clears", mix=CONTENDED),
    Setting("indexed, contended clears", INDEXED, mix=CONTENDED),
    Setting("indexed, SDK, contended clears", INDEXED | SDK, mix=CONTENDED),
    Setting("indexed, encrypted, contended clears", INDEXED, encrypted=True, mix=CONTENDED),
]


class Crowd:
    """The processes of one history, of which some are killed and replaced."""

    def __init__(self, folder: Path, store_options: dict[str, Any], options: dict[str, Any], seed: int) -> None:
        # A fork has the library imported, which takes a second of CPU. Windows, where it is collected only, has none.
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["chathistory_async.history", "chathistory_async.store"])
        self._arguments = (CALLS, store_options, options)
        self._folder = folder
        self._random = random.Random(seed)
        self._begun = 0
        self._killed_at: dict[str, float] = {}

    def run(self) -> None:
        running = [self._begin(place) for place in range(PROCESSES)]
        for _ in range(KILLS):
            time.sleep(self._random.uniform(*SECONDS_BETWEEN_KILLS))
            place = self._random.randrange(PROCESSES)
            name, process = running[place]
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), f"{name} had failed before it was killed"
            self._killed_at[name] = time.monotonic()
            running[place] = self._begin(place)
        for _, process in running:
            process.join()
        assert [process.exitcode for _, process in running] == [0] * PROCESSES

    def history(self) -> list[Operation]:
        """Return all calls that were written down; one without an end was cut off by a kill."""
        calls: dict[tuple[str, str], dict[str, Any]] = {}
        for journal in self._folder.glob("*.jsonl"):
            for line in journal.read_text().splitlines():
                entry = json.loads(line)
                calls.setdefault((journal.name, entry.pop("call")), {}).update(entry)
        return [self._operation(call) for call in calls.values()]

    def _operation(self, call: dict[str, Any]) -> Operation:
        process, outcome = call["process"], call.get("outcome", "unknown")
        ended = call["ended"] if "ended" in call else self._killed_at[process]
        return Operation(
            process=process,
            kind=call["kind"],
            invoked=call["invoked"],
            ended=ended if outcome == "ok" else ended + LATE_SECONDS,
            outcome=outcome,
            written=tuple(call["written"]),
            key=call["key"],
            returned=tuple(call.get("returned", ())),
        )

    def _begin(self, place: int) -> tuple[str, BaseProcess]:
        name = f"{place}-{self._begun}"
        self._begun += 1
        journal = str(self._folder / f"{name}.jsonl")
        arguments = (name, journal, SKEWS_SECONDS[place], *self._arguments)
        process = self._forks.Process(target=work, args=arguments, daemon=True)
        process.start()
        return name, process


@contextmanager
def faulty(proxy: Proxy, faults: Sequence[Fault], seed: int) -> Iterator[None]:
    chance = random.Random(seed)

    def schedule(seen: Seen) -> Fault:
        fault = chance.choice(faults) if chance.random() < FAULT_RATE else Fault.NONE
        # Only a write conflicts with a transaction.
        return Fault.NONE if fault is Fault.CONFLICT and seen.operation in READS else fault

    proxy.schedule = schedule
    yield
    proxy.wait_for_late_requests()
    proxy.schedule = lambda seen: Fault.NONE


@pytest.mark.timeout(300)
@pytest.mark.real_engine("moto answers one request at a time, and copies the table for each transaction")
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_all_have_seen_is_what_was_promised(
    setting: Setting, proxy: Proxy, kms_key: str, tmp_path: Path, session_id: str
) -> None:
    single = setting.options.get("layout") == "single_item"
    options = setting.options | ({"kms_key_id": kms_key} if setting.encrypted else {})
    indexed = "session_index" in options
    owner = OWNER if indexed else None
    with created_table(**setting.options) as table:
        seed = random.randrange(2**32)
        crowd = Crowd(
            tmp_path,
            {"table_name": table, "endpoint_url": proxy.url, **options},
            {
                "session_id": session_id,
                "owner": owner,
                "mix": setting.mix,
                "json_values": setting.json_values,
                "part_bytes": setting.part_bytes,
                "seed": seed,
            },
            seed,
        )
        with faulty(proxy, FAULTS_OF_A_SINGLE_ITEM if single else FAULTS, seed):
            crowd.run()
        store = ChatHistoryStore(table, **options)
        began = time.monotonic()
        left = run(session_in(store, session_id, None, json_values=setting.json_values).read)
        last = Operation("observer", "read", began, time.monotonic(), "ok", returned=tuple(left))
        history = [*crowd.history(), last]

        assert violations(history, stored_anew=single) == [], f"seed {seed}"
        outcomes = [operation.outcome for operation in history]
        assert outcomes.count("ok") > len(history) / 2
        assert outcomes.count("unknown") > KILLS, "something was cut off"
        if indexed:
            assert counts_in_index(store, session_id) == [len(left)] * 2, f"seed {seed}"
        store.close()


def counts_in_index(store: ChatHistoryStore, session_id: str) -> list[int]:
    """Return the counts in the index once all is quiet: asked for the session, and for all of its owner's."""
    info = run(store.get_session_info, session_id)
    listed = [session for session in run(store.list_sessions, OWNER, 10).sessions if session.session_id == session_id]
    return [0 if info is None else info.message_count, sum(session.message_count for session in listed)]
