"""The operation that runs now, while it is observed: its counters, and its span and metrics if they are collected."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .providers import instruments_now, tracing_now

if TYPE_CHECKING:
    from .instruments import Instruments
    from .spans import Tracing

Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])
Value = TypeVar("Value")


class Operation:
    """One call of a public method, which is traced, measured, or both.

    Args:
        name: the name of its span.
        layout: the layout of its session or store.
        tracing: starts its spans, or None if it is not traced.
        instruments: record its measurements, or None if it is not measured.

    Attributes:
        messages: how many messages it was given, has returned or has removed; None if that is not known.
        has_spans: whether its calls have spans.
        has_calls: whether its calls are told of, or at least hidden from instrumentors. If not, they are sent as they
            are.
    """

    __slots__ = (
        "_attempts",
        "_bytes",
        "_conflicts",
        "_context",
        "_layout",
        "_name",
        "_span",
        "has_calls",
        "has_spans",
        "instruments",
        "messages",
        "tracing",
    )

    def __init__(self, name: str, layout: str, tracing: Tracing | None, instruments: Instruments | None) -> None:
        self._name = name
        self._layout = layout
        self.tracing = tracing
        self.instruments = instruments
        self.messages: int | None = None
        self._bytes = 0
        self.has_spans = False
        self.has_calls = instruments is not None
        self._span: Any = None
        self._context: Any = None
        self._attempts = 1
        self._conflicts = 0

    def begin(self) -> bool:
        """Start the operation. Return whether anything observes it: if not, it need not be active and need not end."""
        if self.tracing is not None:
            self._span, self._context = self.tracing.operation(self._name, self._layout)
            self.has_spans = self.tracing.has_calls(self._span)
            self.has_calls = self.is_told or self.tracing.has_instrumentors()
        return self.has_calls

    def end(self, error: BaseException | None = None) -> None:
        """End the operation. A stream that its reader leaves (GeneratorExit) has not failed."""
        if self.has_spans and self.tracing is not None:
            failed = error is not None and not isinstance(error, GeneratorExit)
            self.tracing.end(self._span, self._attributes(), error, type(error).__qualname__ if failed else None)

    def active(self) -> Active:
        """Return a context manager in which this is the current operation."""
        return Active(self, self.tracing, self._context)

    @property
    def is_told(self) -> bool:
        """Whether a span or a metric tells of the operation. If not, their attributes are not computed."""
        return self.has_spans or self.instruments is not None

    def moved(self, read: int, written: int) -> None:
        """Count stored bytes."""
        self._bytes += read + written
        if self.instruments is not None:
            self.instruments.traffic(read, written)

    def counted(self, messages: int) -> None:
        self.messages = (self.messages or 0) + messages

    def retried(self, reason: str) -> None:
        self._attempts += 1
        if self.instruments is not None:
            self.instruments.retry(reason)

    def conflicted(self) -> None:
        self._conflicts += 1
        if self.instruments is not None:
            self.instruments.conflict()

    def throttled(self, service: str) -> None:
        if self.instruments is not None:
            self.instruments.throttle(service)

    def _attributes(self) -> dict[str, Any]:
        attributes = {
            "chathistory.bytes": self._bytes,
            "chathistory.attempts": self._attempts,
            "chathistory.conflicts": self._conflicts,
        }
        return attributes if self.messages is None else {**attributes, "chathistory.messages": self.messages}


_current: ContextVar[Operation | None] = ContextVar("chathistory_async.operation", default=None)
current = _current.get


class Active:
    """Makes an operation the current one, also in OpenTelemetry's context if it is traced.

    Args:
        operation: the operation.
        tracing: the tracing that made ``context``, or None.
        context: OpenTelemetry's context to attach, or None.
    """

    __slots__ = ("_attached", "_context", "_operation", "_token", "_tracing")

    def __init__(self, operation: Operation, tracing: Tracing | None, context: Any) -> None:
        self._operation = operation
        self._tracing = tracing
        self._context = context

    def __enter__(self) -> None:
        self._token: Token[Operation | None] = _current.set(self._operation)
        if self._tracing is not None:
            self._attached = self._tracing.attach(self._context)

    def __exit__(self, *_: object) -> None:
        try:
            _current.reset(self._token)
        except ValueError:
            # The garbage collector threw the coroutine away, in another context than the one that it ran in.
            return
        if self._tracing is not None:
            # This also detaches the context of a call that was thrown away.
            self._tracing.detach(self._attached)


def count_messages(number: int) -> None:
    """Count messages for the current operation, if there is one."""
    operation = current()
    if operation is not None:
        operation.counted(number)


def observed(name: str, returned: Callable[[Any], int] | None = None) -> Callable[[Method], Method]:
    """Decorate a public asynchronous method: each call is an operation.

    The method's object has the method ``_observed_layout``, which returns the layout's name, or None if the object is
    not to be observed.

    Args:
        name: the operation's name.
        returned: takes what the method returns, and returns the number of its messages. None if it returns no messages.
    """
    span_name = f"chathistory.{name}"

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        async def observing(self: Any, *args: Any, **kwargs: Any) -> Any:
            operation = _operation(span_name, self)
            if operation is None or not operation.begin():
                return await method(self, *args, **kwargs)
            try:
                with operation.active():
                    result = await method(self, *args, **kwargs)
            except BaseException as error:
                operation.end(error)
                raise
            if returned is not None:
                operation.counted(returned(result))
            operation.end()
            return result

        return cast("Method", observing)

    return decorate


def observed_stream(
    name: str, owner: Any, stream: AsyncGenerator[Value, None], count: Callable[[Value], int] = lambda _: 1
) -> AsyncGenerator[Value, None]:
    """Return a stream of which the whole is one operation. The code that reads the stream is not inside the operation.

    Args:
        name: the operation's name.
        owner: the object whose method returns the stream; see ``observed``.
        stream: the stream.
        count: returns the number of an item's messages.
    """
    operation = _operation(f"chathistory.{name}", owner)
    return stream if operation is None else _observing(operation, stream, count)


async def _observing(
    operation: Operation, stream: AsyncGenerator[Value, None], count: Callable[[Value], int]
) -> AsyncGenerator[Value, None]:
    operation.begin()
    operation.counted(0)
    try:
        async with aclosing(stream):
            # No variable refers to an item: the next one may raise an error, and error trackers record variables too.
            while True:
                yield await _next(operation, stream, count)
    except StopAsyncIteration:
        operation.end()
    except BaseException as error:
        operation.end(error)
        raise


async def _next(operation: Operation, stream: AsyncGenerator[Value, None], count: Callable[[Value], int]) -> Value:
    with operation.active():
        value = await stream.__anext__()
    operation.counted(count(value))
    return value


def _operation(span_name: str, owner: Any) -> Operation | None:
    """Return a new operation, or None if no provider is set or the owner is not to be observed."""
    tracing, instruments = tracing_now(), instruments_now()
    if tracing is None and instruments is None:
        return None
    if tracing is not None and tracing.is_suppressed():
        tracing = None
    layout = owner._observed_layout()
    return None if layout is None else Operation(span_name, layout, tracing, instruments)
