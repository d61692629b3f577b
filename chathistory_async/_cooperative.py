"""Work on many values: in slices between which the event loop runs, or concurrently."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# A message takes 10 to 30 µs to convert and 70 to 100 µs to encrypt or decrypt (250 µs if it has 300 KB). A message
# with a large artifact takes milliseconds. So a slice is limited by time, not by a number of messages.
SLICE_SECONDS = 0.002


class Slices:
    """Cuts work into slices of SLICE_SECONDS, between which the event loop runs."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    async def checkpoint(self) -> None:
        """Let the loop run if the slice is over."""
        if time.perf_counter() - self._started > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._started = time.perf_counter()


async def in_slices(convert: Callable[[In, int], Out], values: Iterable[In], first: int = 0) -> list[Out]:
    """Return ``convert(value, position)`` for all values, and let the loop run every SLICE_SECONDS.

    Args:
        convert: takes a value and its position.
        values: the values.
        first: the position of the first value.
    """
    converted: list[Out] = []
    # Slices is not used: a call for each value would take longer than the rest of the loop.
    clock = time.perf_counter
    over = clock() + SLICE_SECONDS
    for position, value in enumerate(values, first):
        converted.append(convert(value, position))
        if clock() > over:
            await asyncio.sleep(0)
            over = clock() + SLICE_SECONDS
    return converted


async def at_most(number: int, work: Callable[[In], Coroutine[Any, Any, Out]], values: Iterable[In]) -> list[Out]:
    """Return ``work(value)`` for all values, in order, up to ``number`` at once. If one fails, cancel the others."""
    turns = asyncio.Semaphore(number)

    async def in_turn(value: In) -> Out:
        async with turns:
            return await work(value)

    tasks = [asyncio.create_task(in_turn(value)) for value in values]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_order(
    number: int, work: Callable[[In], Coroutine[Any, Any, Out]], values: Iterable[In] | AsyncIterable[In]
) -> AsyncGenerator[Out, None]:
    """Yield ``work(value)`` for all values, in order, with up to ``number`` under way.

    A value is taken only when its work can begin. If one fails, or the caller closes this generator, the others are
    cancelled.
    """
    tasks: deque[asyncio.Task[Out]] = deque()
    try:
        async with aclosing(_each(values)) as each:
            async for value in each:
                tasks.append(asyncio.create_task(work(value)))
                if len(tasks) == number:
                    yield await tasks.popleft()
        while tasks:
            yield await tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _each(values: Iterable[In] | AsyncIterable[In]) -> AsyncGenerator[In, None]:
    if isinstance(values, AsyncIterable):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value
