"""Measuring side by side: short blocks in shuffled rounds, medians with quartiles, ratios within a round.

A machine changes its speed by a half for minutes at a time. Blocks of one round ran at one speed, so it is the
ratios within rounds that can be trusted, and repeated.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

K = TypeVar("K", bound=Hashable)

# Runs operations and returns how many seconds each of them took.
Block: TypeAlias = Callable[[], Awaitable[list[float]]]
# Takes the number of the worker that runs it.
Operation: TypeAlias = Callable[[int], Awaitable[object]]


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    q1: float
    q3: float


@dataclass
class Row:
    """The measurements of one variant in one case.

    Attributes:
        case: what was asked of it, the same for all variants that are compared.
        variant: who did it.
        rounds: values by their name and unit, one for each round.
        figures: values of the whole, such as a percentile.
        wrong: what it did to the data instead of storing or reading it, None where that was right.
    """

    case: dict[str, str | int]
    variant: str
    rounds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    wrong: str | None = None

    def spread(self, name: str) -> Spread:
        """Return the median of a value over the rounds, and its quartiles; a figure has none."""
        return spread(self.rounds[name] if name in self.rounds else [self.figures[name]])


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, q1, q3)


def ratio(one: Row, other: Row, name: str) -> Spread:
    """Return the median over the rounds of one row's value over the other's of the same round, and its quartiles."""
    # A value that is the difference of two times may be zero in a round.
    return spread([value / base for value, base in zip(one.rounds[name], other.rounds[name], strict=True) if base])


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def find(rows: Iterable[Row], variant: str, **case: str | int) -> Row | None:
    """Return the row of a variant in the case of these properties, if it was measured."""
    matching = (row for row in rows if row.variant == variant and case.items() <= row.case.items())
    return next(matching, None)


def as_json(rows: Sequence[Row], baseline: str) -> list[dict[str, Any]]:
    """Return rows for the JSON file, each with its ratios to the baseline variant of its case, where there is one."""
    return [_row_as_json(row, find(rows, baseline, **row.case)) for row in rows]


def _row_as_json(row: Row, base: Row | None) -> dict[str, Any]:
    values = {name: row.spread(name)._asdict() for name in row.rounds}
    ratios = {}
    if base is not None and base is not row:
        ratios = {
            name: {**ratio(row, base, name)._asdict(), "to": base.variant} for name in row.rounds if name in base.rounds
        }
    return {
        "case": row.case,
        "variant": row.variant,
        "wrong": row.wrong,
        "values": values,
        "ratios": ratios,
        "figures": row.figures,
    }


@dataclass
class Timed:
    """The times of one contestant, in milliseconds.

    Attributes:
        cpu: this process's CPU time for each operation, one value a round; all its threads count.
        wall: the time that passed for each operation, one value a round; with many at a time a share of it.
        latencies: how long each operation took, of all rounds.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def row(self, variant: str, case: Mapping[str, str | int], wrong: str | None = None) -> Row:
        """Return the row of these times."""
        return Row(
            dict(case),
            variant,
            {"cpu_ms": self.cpu, "wall_ms": self.wall, "per_second": [1000 / wall for wall in self.wall]},
            {"p50_ms": percentile(self.latencies, 50), "p99_ms": percentile(self.latencies, 99)},
            wrong,
        )


def block(operation: Operation, times: int, at_once: int = 1) -> Block:
    """Return a block that runs an operation so many times, so many at once, each worker with its own number."""

    async def run() -> list[float]:
        left = iter(range(times))
        seconds: list[float] = []

        async def work(worker: int) -> None:
            for _ in left:
                started = time.perf_counter()
                await operation(worker)
                seconds.append(time.perf_counter() - started)

        await asyncio.gather(*(work(worker) for worker in range(at_once)))
        return seconds

    return run


async def interleave(
    blocks: Mapping[K, Block],
    rounds: int,
    after_each: Callable[[], object] = lambda: None,
    before_each: Callable[[K], object] = lambda _: None,
) -> dict[K, Timed]:
    """Run all blocks once to warm up, and then so many rounds, each in another order.

    Args:
        blocks: what takes turns.
        rounds: how many.
        after_each: called after each block, outside of the time.
        before_each: called with the block's name before each block, outside of the time.
    """
    for name, run in blocks.items():
        before_each(name)
        await run()
        after_each()
    timed = {name: Timed() for name in blocks}
    with frozen_garbage():
        for _ in range(rounds):
            for name in random.sample(list(blocks), len(blocks)):
                # A block does not pay for the garbage that the others have left, such as the messages that they read.
                before_each(name)
                gc.collect()
                gc.freeze()
                await _time(blocks[name], timed[name])
                after_each()
    return timed


async def _time(run: Block, timed: Timed) -> None:
    started, cpu_started = time.perf_counter(), time.process_time()
    seconds = await run()
    cpu, wall = time.process_time() - cpu_started, time.perf_counter() - started
    timed.cpu.append(1000 * cpu / len(seconds))
    timed.wall.append(1000 * wall / len(seconds))
    timed.latencies += [1000 * one for one in seconds]


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Keep what lives already out of the collections, which would charge one variant with the clients of all."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
