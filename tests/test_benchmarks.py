"""The benchmarks run, keep what they promise to tell, and take no variant for fast that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engines import ROOT, Engine
from langchain_core.messages import BaseMessage

from chathistory_async import DynamoDBChatMessageHistory

if TYPE_CHECKING:
    from benchmarks.variants import Target

CHEAP = ["reading", "footprint", "turns", "tracing", "events"]

MEASURED = [
    "Making a handle",
    "CPU of importing LangChain's class ÷ importing what it cannot do without",
    "CPU of importing the store alone ÷ importing what it cannot do without",
    "CPU of an append of two messages on the stub ÷ of one",
    "CPU of a whole append of a message on the stub ÷ the put alone",
    "CPU that a tracer provider which samples nothing adds to an append on the stub",
    "CPU of an append on the stub without a tracer provider ÷ with tracing=False",
]


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to import the benchmarks from: beside them lies the working tree, and what is tested is the wheel."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.stress
def test_a_quick_run_tells_what_it_promises(importable: Path, engine: Engine) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", ",".join(CHEAP), "--no-report"]
    done = subprocess.run(
        [*command, "--endpoint", engine.endpoint_url, "--out", str(importable / "out")],
        # The profile of whoever measures is none of the run's.
        env=os.environ | {"PYTHONPATH": str(importable), "AWS_PROFILE": "mine"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((importable / "out" / "results.json").read_text())
    assert set(results) == {"date", "quick", "machine", "versions", "skipped", "wrong", "targets", "benchmarks"}
    assert (results["quick"], results["skipped"], results["wrong"]) == (True, [], [])
    assert set(results["benchmarks"]) == set(CHEAP)
    for rows in results["benchmarks"].values():
        assert rows
        assert all(set(value) == {"median", "q1", "q3"} for row in rows for value in row["values"].values())
    assert {(row["case"]["layout"], row["variant"]) for row in results["benchmarks"]["reading"]} >= {
        ("item collection, stored in twos", "ours"),
        *((layout, variant) for layout in ("single item", "item collection") for variant in ("ours", "aioboto3")),
    }
    [stages] = [row for row in results["benchmarks"]["reading"] if is_stages_of_ours(row)]
    assert set(stages["values"]) == set(stages["ratios"]) == {"json_ms", "conversion_ms", "construction_ms"}
    assert all(ratio["to"] == "aioboto3" for ratio in stages["ratios"].values())
    met = {target["target"]: target["met"] for target in results["targets"]}
    for target in MEASURED:
        assert met[target] in (True, False)
    assert met["Puts a second on the stub ÷ plain aioboto3's"] is None


def is_stages_of_ours(row: dict[str, Any]) -> bool:
    case = {"measured": "stages", "layout": "single item", "messages": 10}
    return bool(row["case"] == case and row["variant"] == "ours")


class Forgetful:
    """A peer that tells of every third append that it was stored, and stores it not."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer
        self._appends = 0

    async def append(self, session: str, messages: Sequence[BaseMessage]) -> None:
        self._appends += 1
        if self._appends % 3:
            await self._peer.append(session, messages)

    async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
        messages: list[BaseMessage] = await self._peer.read(session, limit)
        return messages


async def test_a_variant_that_loses_messages_is_wrong(importable: Path, engine: Engine) -> None:
    from benchmarks.results import Results
    from benchmarks.small_calls import many_writers
    from benchmarks.variants import AIOBOTO3, SINGLE_ITEM, Peer, Target, created_tables, open_peers

    async with created_tables(Target.of("engine", engine.endpoint_url)) as target, open_peers(target) as peers:
        honest = peers[SINGLE_ITEM, AIOBOTO3]
        variants: dict[tuple[str, str], Peer] = {
            (SINGLE_ITEM, AIOBOTO3): honest,
            (SINGLE_ITEM, "forgetful"): Forgetful(honest),
        }
        rows = await many_writers(target, variants)
    assert {row.variant: row.wrong for row in rows} == {AIOBOTO3: None, "forgetful": "lost 26 of 80 messages"}
    assert Results({"small_calls": rows}, [], quick=True).wrong() == [
        "forgetful, engine, single item, append to one session, 16: lost 26 of 80 messages"
    ]


async def test_the_answers_of_the_stub_are_what_is_stored(importable: Path, engine: Engine) -> None:
    from benchmarks.honesty import fault_in_session, open_readers
    from benchmarks.messages import item_collection, new_messages
    from benchmarks.variants import ITEM_COLLECTION, OURS, Ours, Target, created_tables, new_store, store

    messages = new_messages(3)
    async with created_tables(Target.of("engine", engine.endpoint_url)) as target, open_readers(target) as readers:
        async with new_store(target, ITEM_COLLECTION) as ours:
            await store((ITEM_COLLECTION, OURS), Ours(ours), "in twos", messages)
            for message in messages:
                await ours.session("in ones").aadd_messages([message])
        for session, per_record in (("in twos", 2), ("in ones", 1)):
            items = await stored_items(target, session)
            assert items == bodies_of(item_collection(messages, per_record=per_record))
            assert items == bodies_of(item_collection(messages, per_record=per_record, newest_first=True))[::-1]
            reader = readers[ITEM_COLLECTION]
            assert await fault_in_session(reader, session, messages) is None
            assert await fault_in_session(reader, session, [*messages, *messages[:1]]) == "lost 1 of 4 messages"


async def stored_items(target: Target, session: str) -> list[dict[str, Any]]:
    """Return what a Query for all of a session gives, of what ours asks for."""
    from benchmarks.variants import ITEM_COLLECTION, aioboto3_client, query_request

    async with aioboto3_client(target) as client:
        return bodies_of(await client.query(**query_request(target.tables[ITEM_COLLECTION], session)))


def bodies_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items of an answer without what differs from one append to the next."""
    asked_for = ("History", "Encoding", "Parts", "Count", "Positions", "Format", "Revision")
    return [{name: item[name] for name in asked_for if name in item} for item in answer["Items"]]


async def test_a_variant_that_loses_part_of_a_turn_is_wrong(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import turns
    from benchmarks.setup import Setup
    from benchmarks.stub import running_stub
    from benchmarks.variants import Target

    # For the stub's process.
    monkeypatch.setenv("PYTHONPATH", str(importable))
    append = DynamoDBChatMessageHistory.aadd_messages

    async def forgetful(self: DynamoDBChatMessageHistory, messages: Sequence[BaseMessage]) -> None:
        await append(self, messages[:1])

    monkeypatch.setattr(DynamoDBChatMessageHistory, "aadd_messages", forgetful)
    async with running_stub() as stub:
        rows = await turns.run(Setup(stub, Target.of("stub", stub.url), None, quick=True, soak_seconds=0))
    wrong = {row.variant: row.wrong for row in rows}
    # Rounds and the one to warm up, of ten appends each.
    assert wrong == {turns.PUT: None, turns.ONE: None, turns.TWO: "lost 70 of 140 messages"}


async def test_each_read_is_looked_at(importable: Path) -> None:
    from benchmarks.measure import block, interleave
    from benchmarks.messages import new_messages
    from benchmarks.reading import Reads

    messages = new_messages(3)
    answers = [messages, messages[:2], messages]

    class Hasty:
        async def append(self, session: str, messages: Sequence[BaseMessage]) -> None: ...

        async def read(self, session: str, limit: int | None = None) -> list[BaseMessage]:
            return answers.pop(0)

    reads = Reads(messages)
    key = ("single item", "hasty")
    await interleave({key: block(reads.by(key, Hasty(), "session"), 1)}, 2, reads.check)
    assert reads.faults == {key: "lost 1 of 3 messages"}


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ([1, 2, 3], None),
        ([1, 3], "lost 1 of 3 messages"),
        ([1, 2, 3, 3], "has 1 messages too many"),
        ([1, 3, 2], "messages are changed or out of order"),
    ],
)
def test_faults_are_named(importable: Path, found: list[int], fault: str | None) -> None:
    from benchmarks.honesty import fault_in_messages
    from benchmarks.messages import message_of

    assert fault_in_messages([*map(message_of, found)], [*map(message_of, [1, 2, 3])]) == fault


def test_a_changed_message_is_a_fault(importable: Path) -> None:
    from benchmarks.honesty import fault_in_messages
    from benchmarks.messages import message_of

    changed = message_of(1).model_copy(update={"id": "other"})
    assert fault_in_messages([changed], [message_of(1)]) == "messages are changed or out of order"
