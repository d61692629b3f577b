"""Work on many values: in slices, between which the event loop runs, or several at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# A message takes 10 to 30 µs to convert and 70 to 100 to encrypt or to open (250 where it has 300 KB), and one with a
# large artifact takes milliseconds: so slices are cut by time, not by number.
SLICE_SECONDS = 0.002


class Slices:
    """Cuts work into slices."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    async def checkpoint(self) -> None:
        """Let the loop run if the slice is over."""
        if time.perf_counter() - self._started > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._started = time.perf_counter()


async def in_slices(convert: Callable[[In, int], Out], values: Iterable[In], first: int = 0) -> list[Out]:
    """Return ``convert(value, position)`` of all values, and let the loop run now and then.

    Args:
        convert: takes a value and its position.
        values: the values.
        first: the position of the first one.
    """
    converted: list[Out] = []
    # Not by Slices: a call for each value takes longer than the rest of this.
    clock = time.perf_counter
    over = clock() + SLICE_SECONDS
    for position, value in enumerate(values, first):
        converted.append(convert(value, position))
        if clock() > over:
            await asyncio.sleep(0)
            over = clock() + SLICE_SECONDS
    return converted


async def at_most(number: int, work: Callable[[In], Coroutine[Any, Any, Out]], values: Iterable[In]) -> list[Out]:
    """Return ``work(value)`` of all values, so many at once, in order. Where one fails, none of the others goes on."""
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
    """Yield ``work(value)`` of all values, in order, with so many under way, and no more values taken than that.

    Where one fails or whoever iterates stops, none goes on.
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
