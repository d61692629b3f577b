"""7. 1,000 concurrent sessions for a minute: throughput, latency, threads, open sockets and memory.

Each variant has a process of its own, so that its memory and threads are its own: ``python -m benchmarks.soak``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from array import array
from dataclasses import asdict
from typing import Any

from .honesty import fault_in_session
from .measure import Row, percentile
from .messages import message_of, new_message, number_of
from .setup import Setup
from .variants import AIOBOTO3, ITEM_COLLECTION, OURS, SINGLE_ITEM, UPSTREAM, Key, Peer, Target, open_peers

BASELINE = AIOBOTO3
SESSIONS = 1_000
LATEST = 20
KEYS = ((ITEM_COLLECTION, OURS), (ITEM_COLLECTION, AIOBOTO3), (SINGLE_ITEM, UPSTREAM))


async def run(setup: Setup) -> list[Row]:
    """Soak one variant after the other."""
    engine = setup.needs_engine("many sessions for a while")
    if engine is None:
        return []
    sessions = SESSIONS // 10 if setup.quick else SESSIONS
    return [await _soak_apart(engine, key, sessions, setup.soak_seconds) for key in KEYS]


async def _soak_apart(engine: Target, key: Key, sessions: int, seconds: float) -> Row:
    task = json.dumps([asdict(engine), key, sessions, seconds])
    command = (sys.executable, "-W", "ignore", "-m", __name__, task)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"The process of {key} ended with status {process.returncode}")
    figures, wrong = json.loads(output)
    return Row({"layout": key[0], "sessions": sessions, "seconds": int(seconds)}, key[1], figures=figures, wrong=wrong)


class _Soak:
    """Sessions that are all in use at once, each appending a message and reading its latest, again and again."""

    def __init__(self, peer: Peer, prefix: str, sessions: int) -> None:
        self._peer = peer
        self._prefix = prefix
        # The messages' numbers only: the messages themselves would be most of the memory.
        self._stored = [array("L") for _ in range(sessions)]
        self._latencies = {"append": array("d"), "read": array("d")}
        self._over = False

    async def use(self, seconds: float) -> dict[str, float]:
        """Use all sessions for so long, and return the figures of the time after a tenth of that."""
        before = _resources()
        users = [asyncio.create_task(self._use(number)) for number in range(len(self._stored))]
        # Until then connections and handles are made.
        await asyncio.sleep(seconds / 10)
        start, started = _resources(), time.perf_counter()
        for latencies in self._latencies.values():
            del latencies[:]
        await asyncio.sleep(seconds)
        lasted = time.perf_counter() - started
        end = _resources()
        measured = {name: array("d", values) for name, values in self._latencies.items()}
        self._over = True
        await asyncio.gather(*users)
        figures = {"operations_per_second": sum(len(values) for values in measured.values()) / lasted}
        for name, values in measured.items():
            figures |= {f"{name}_p50_ms": percentile(values, 50), f"{name}_p99_ms": percentile(values, 99)}
        memory = {"before": before["memory_mb"], "start": start["memory_mb"], "end": end["memory_mb"]}
        figures |= {f"memory_{when}_mb": megabytes for when, megabytes in memory.items()}
        figures["grown_mb"] = memory["end"] - memory["start"]
        return figures | {"threads": end["threads"], "sockets": end["sockets"]}

    async def fault(self, reader: Peer) -> str | None:
        """Return the first thing that is wrong with what is stored."""
        for number, stored in enumerate(self._stored):
            if fault := await fault_in_session(reader, self._session(number), [message_of(one) for one in stored]):
                return fault
        return None

    async def _use(self, number: int) -> None:
        while not self._over:
            message = new_message()
            self._stored[number].append(number_of(message))
            started = time.perf_counter()
            await self._peer.append(self._session(number), [message])
            appended = time.perf_counter()
            await self._peer.read(self._session(number), LATEST)
            self._latencies["append"].append(1000 * (appended - started))
            self._latencies["read"].append(1000 * (time.perf_counter() - appended))

    def _session(self, number: int) -> str:
        return f"soak-{self._prefix}-{number}"


def _resources() -> dict[str, float]:
    import psutil

    gc.collect()
    process = psutil.Process()
    return {
        "memory_mb": process.memory_info().rss / 2**20,
        "threads": process.num_threads(),
        "sockets": len(process.net_connections("inet")),
    }


async def _main(target: dict[str, Any], key: Key, sessions: int, seconds: float) -> None:
    engine = Target(**target)
    async with open_peers(engine) as peers:
        soak = _Soak(peers[key], key[1], sessions)
        figures = await soak.use(seconds)
        print(json.dumps([figures, await soak.fault(peers[key[0], AIOBOTO3])]))


if __name__ == "__main__":
    _target, _key, _sessions, _seconds = json.loads(sys.argv[1])
    asyncio.run(_main(_target, (_key[0], _key[1]), _sessions, _seconds))
