"""The one place that sends requests. It maps every error, and separates a failed condition from other failures.

After one attempt on the fast path, the SDK retries throttles, HTTP 5xx and broken connections, within the bound of
``retries`` in its Config (or AWS_MAX_ATTEMPTS). This module retries two errors that the SDK does not retry: a conflict
with a transaction on the same item, and a throttled transaction. A request may therefore reach AWS more than once. The
layouts make that harmless.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from .._request import CONDITION_FAILED, DYNAMODB, ConditionFailed, Request, Service, TransactionCanceled
from .._telemetry.calls import Call
from .._telemetry.events import conflicted, retried, throttled
from .._telemetry.operations import current
from ..errors import (
    ClosedError,
    EndpointError,
    SessionRef,
    ThrottledError,
    write_conflict,
)
from .answers import NotAnAnswer, check_answer, check_error_answer
from .clients import Clients
from .errors import RETRYABLE_REASONS, THROTTLED_REASONS, from_botocore, from_cancelled_transaction, not_an_answer
from .redaction import without_values
from .sdk import ReadyClient

if sys.version_info >= (3, 11):
    from asyncio import Timeout, timeout
else:
    from async_timeout import Timeout, timeout

# A transaction holds its items for milliseconds. As many conflicts in a row need more writers than DynamoDB would
# admit without throttling.
MAX_CONFLICTS = 50
_LONGEST_PAUSE_SECONDS = 0.1
MAX_THROTTLED_ATTEMPTS = 12
_LONGEST_THROTTLE_SECONDS = 5.0


async def call(clients: Clients, request: Request, ref: SessionRef, *, maybe_stored: bool = False) -> dict[str, Any]:
    """Send a request on the running loop's client and return the response.

    The request is sent again if it conflicted with another transaction (MAX_CONFLICTS attempts), and if DynamoDB
    throttled its transaction (MAX_THROTTLED_ATTEMPTS attempts).

    Args:
        clients: the clients to send the request with.
        request: the request.
        ref: the table and session that errors name.
        maybe_stored: whether an earlier request of the same write may have been stored, because its response was lost.

    Raises:
        ConditionFailed: the write's condition did not hold.
        TransactionCanceled: a condition of the transaction did not hold.
        ChatHistoryError: any other failure. botocore's error is its cause, if there is one.
    """
    handled = sys.exc_info()[1]
    try:
        async with _Deadline(clients.longest_call_seconds(request.service)) as deadline:
            return await _with_retries(clients, request, _Retries(ref, maybe_stored), ref, deadline)
    except asyncio.TimeoutError as error:
        raise _took_too_long(request.service, ref) from _without_frames(error, handled)


def _took_too_long(service: Service, ref: SessionRef) -> EndpointError:
    text = f"A call to {service.name} took too long: its endpoint or the credential provider does not respond"
    return EndpointError(text, ref)


async def _with_retries(
    clients: Clients, request: Request, retries: _Retries, ref: SessionRef, deadline: _Deadline
) -> dict[str, Any]:
    while True:
        try:
            return await _send(clients, request, ref, deadline)
        except ConditionFailed as failed:
            failed.sent_before = failed.sent_before or retries.maybe_stored
            raise
        except TransactionCanceled as canceled:
            canceled.sent_before = canceled.sent_before or retries.maybe_stored
            if CONDITION_FAILED in canceled.codes:
                raise
            if not canceled.codes <= RETRYABLE_REASONS:
                raise from_cancelled_transaction(canceled.reasons, ref, request.parameters) from canceled.__cause__
            await retries.wait_after(canceled)


async def pause(attempt: int, longest_seconds: float = _LONGEST_PAUSE_SECONDS) -> None:
    """Wait for a random time, whose limit doubles with each attempt (exponential back-off with full jitter)."""
    await asyncio.sleep(random.uniform(0, min(0.005 * 2**attempt, longest_seconds)))


class _Retries:
    """Counts the retries of one request, and waits before each. A sending that DynamoDB refused stored nothing.

    Attributes:
        maybe_stored: whether an earlier sending may have been stored, because its response was lost.
    """

    __slots__ = ("_conflicts", "_ref", "_throttles", "maybe_stored")

    def __init__(self, ref: SessionRef, maybe_stored: bool) -> None:
        self.maybe_stored = maybe_stored
        self._ref = ref
        self._conflicts = 0
        self._throttles = 0

    async def wait_after(self, canceled: TransactionCanceled) -> None:
        """Wait before the request is sent again.

        Raises:
            ThrottledError: DynamoDB throttled MAX_THROTTLED_ATTEMPTS attempts.
            WriteConflictError: MAX_CONFLICTS attempts conflicted with other transactions.
            WriteOutcomeUnknownError: MAX_CONFLICTS attempts conflicted, and an earlier sending may have been stored.
        """
        self.maybe_stored = self.maybe_stored or canceled.sent_before
        if canceled.codes.isdisjoint(THROTTLED_REASONS):
            self._conflicts += 1
            conflicted()
            if self._conflicts == MAX_CONFLICTS:
                text = f"The request conflicted with other writers' transactions in {MAX_CONFLICTS} attempts in a row"
                raise write_conflict(text, self._ref, maybe_stored=self.maybe_stored) from canceled.__cause__
            retried(f"A request to table {self._ref.table_name}", "conflict")
            await pause(self._conflicts)
        else:
            self._throttles += 1
            throttled("DynamoDB", "TransactWriteItems")
            if self._throttles == MAX_THROTTLED_ATTEMPTS:
                text = "AWS throttled the transaction and every retry: raise the table's capacity"
                raise ThrottledError(text, self._ref) from canceled.__cause__
            retried(f"A transaction of table {self._ref.table_name}", "throttled")
            await pause(self._throttles, _LONGEST_THROTTLE_SECONDS)


async def _send(clients: Clients, request: Request, ref: SessionRef, deadline: _Deadline) -> dict[str, Any]:
    _check_open(clients, ref)
    handled = sys.exc_info()[1]
    try:
        async with clients.acquire(request.service) as client:
            deadline.allow(client.longest_call_seconds)
            response = await _sent(client, request, ref)
    except _SDK_ERRORS as error:
        raise _mapped(error, ref, request.service, request.parameters) from _without_frames(error, handled)
    except _ENDS_OF_TASKS as error:
        raise _without_frames(error, handled) from None
    try:
        check_answer(*request[:2], response, large=request.large)
    except NotAnAnswer:
        raise not_an_answer(ref) from None
    return response


async def _sent(client: ReadyClient, request: Request, ref: SessionRef) -> dict[str, Any]:
    operation = current()
    if operation is None or not operation.has_calls:
        return await client.send(request.operation, request.parameters)
    with Call(operation, client.client, request, ref.table_name) as call:
        response = await client.send(request.operation, request.parameters)
        call.answered(response)
    return response


class _Deadline:
    """The deadline of a call, in seconds after its beginning; None for none. It raises ``asyncio.TimeoutError``."""

    __slots__ = ("_began", "_longest_seconds", "_timeout")

    def __init__(self, longest_seconds: float | None) -> None:
        self._began = asyncio.get_running_loop().time()
        self._longest_seconds = longest_seconds
        self._timeout = timeout(longest_seconds)

    async def __aenter__(self) -> _Deadline:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._timeout.__aexit__(*raised)

    def allow(self, longest_seconds: float | None) -> None:
        """Move the deadline if the opened client allows a different time than was known before."""
        if longest_seconds == self._longest_seconds:
            # Each move makes a new timer.
            return
        self._longest_seconds = longest_seconds
        _end_at(self._timeout, None if longest_seconds is None else self._began + longest_seconds)


if sys.version_info >= (3, 11):

    def _end_at(end: Timeout, when: float | None) -> None:
        end.reschedule(when)
else:

    def _end_at(end: Timeout, when: float | None) -> None:
        if when is None:
            end.reject()
        else:
            end.update(when)


async def connect(clients: Clients, ref: SessionRef, service: Service = DYNAMODB) -> str:
    """Open the running loop's client of a service, so that the first call need not open it, and return its region.

    Raises:
        ChatHistoryError: the SDK cannot make a client, or the store that owns the clients is closed.
    """
    _check_open(clients, ref)
    handled = sys.exc_info()[1]
    try:
        async with timeout(clients.longest_opening_seconds):
            return await _region_of(clients, service, ref)
    except asyncio.TimeoutError as error:
        raise _took_too_long(service, ref) from _without_frames(error, handled)


async def _region_of(clients: Clients, service: Service, ref: SessionRef) -> str:
    handled = sys.exc_info()[1]
    try:
        async with clients.acquire(service) as client:
            region: str = client.client.meta.region_name
    except _SDK_ERRORS as error:
        raise _mapped(error, ref, service) from _without_frames(error, handled)
    except _ENDS_OF_TASKS as error:
        raise _without_frames(error, handled) from None
    return region


def _check_open(clients: Clients, ref: SessionRef) -> None:
    if clients.retired:
        raise ClosedError("The ChatHistoryStore is closed, and its histories with it", ref)


# A request on one item, or a transaction, conflicts with a different transaction.
_CONFLICT = "TransactionConflictException"
# A transaction conflicts with itself: an earlier sending of it is still under way.
_IN_PROGRESS = "TransactionInProgressException"

# botocore raises a bare ValueError for an endpoint that is not a URL. Its credential providers raise an OSError for a
# missing program, a RuntimeError for credentials that have already expired, a KeyError for incomplete ones, a
# TimeoutError (before Python 3.11 no OSError), and an AttributeError, TypeError or OverflowError for credentials of an
# unexpected form.
_SDK_ERRORS = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    ValueError,
    OSError,
    asyncio.TimeoutError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
)


# Exceptions that end the task which sends a request. They are raised as they are.
_ENDS_OF_TASKS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)


def _without_frames(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return an error, and remove the frames and the undecodable input from it and from the errors below it.

    The locals of frames hold the request's headers and with them credentials, and error trackers record locals. If a
    credential provider's response cannot be decoded, the error holds that response as its input.

    Args:
        error: the error.
        handled: the error that the caller was handling when it called, or None. It keeps its frames.
    """
    below: BaseException | None = error
    while below is not None and below is not handled and below.__traceback__ is not None:
        below.__traceback__ = None
        _forget_input(below)
        below = below.__cause__ or below.__context__
    return error


def _forget_input(error: BaseException) -> None:
    """Remove the undecodable input from an error. The error's text does not quote it."""
    if isinstance(error, UnicodeDecodeError):
        error.object = b""
        error.args = (error.encoding, b"", *error.args[2:])
    elif isinstance(error, json.JSONDecodeError):
        error.doc = ""


def _mapped(
    error: Exception, ref: SessionRef, service: Service, parameters: Mapping[str, Any] = MappingProxyType({})
) -> Exception:
    """Return the library's exception for an SDK error."""
    if isinstance(error, ClientError):
        # botocore's type has only the members of every error. Errors of conditions and transactions have more.
        answer: dict[str, Any] = dict(error.response)
        code = answer["Error"].get("Code")
        sent_before = answer.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
        try:
            check_error_answer(parameters, answer)
        except NotAnAnswer:
            return not_an_answer(ref)
        if code == "ConditionalCheckFailedException" and "ConditionExpression" in parameters:
            return ConditionFailed(answer.get("Item"), sent_before=sent_before)
        if code == "TransactionCanceledException":
            return TransactionCanceled(answer.get("CancellationReasons", ()), sent_before=sent_before)
        if code in (_CONFLICT, _IN_PROGRESS):
            reasons = [{"Code": "TransactionConflict"}]
            return TransactionCanceled(reasons, sent_before=sent_before or code == _IN_PROGRESS)
    if isinstance(error, asyncio.TimeoutError):
        return _took_too_long(service, ref)
    ours = from_botocore(error, ref, service.name, parameters)
    if isinstance(error, ClientError) and service == DYNAMODB:
        # This error becomes the cause of the library's error, and a logged traceback shows the cause's text too.
        _quote_no_value(error, parameters)
    return ours


def _quote_no_value(error: ClientError, parameters: Mapping[str, Any]) -> None:
    answer: dict[str, Any] = error.response
    text = answer["Error"].get("Message", "")
    shown = without_values(text, parameters)
    if shown != text:
        answer["Error"]["Message"] = shown
        answer.pop("message", None)
        error.args = (str(error).replace(text, shown),)
