"""The one place that sends requests: it maps every error and tells a failed condition from a failure.

Throttles, HTTP 5xx and broken connections are retried by the SDK, within the bound of ``retries`` in its Config
(or AWS_MAX_ATTEMPTS), after one attempt on the fast path. Two errors that the SDK does not retry are retried here: a
conflict with a transaction on the same item, and a transaction that was throttled. A request may thus reach AWS more
than once: the layouts make that harmless.
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
from ..errors import (
    ClosedError,
    EndpointError,
    SessionRef,
    ThrottledError,
    write_conflict,
)
from .answers import NotAnAnswer, check_answer, check_refusal
from .clients import Clients
from .errors import from_botocore, from_cancelled_transaction, not_an_answer
from .redaction import without_values

if sys.version_info >= (3, 11):
    from asyncio import Timeout, timeout
else:
    from async_timeout import Timeout, timeout

# A transaction is on its items for milliseconds: so many are in the way in a row only where DynamoDB would throttle.
MAX_CONFLICTS = 50
_LONGEST_PAUSE_SECONDS = 0.1
MAX_THROTTLED_ATTEMPTS = 12
_LONGEST_THROTTLE_SECONDS = 5.0


async def call(clients: Clients, request: Request, ref: SessionRef, *, maybe_stored: bool = False) -> dict[str, Any]:
    """Send a request on the running loop's client and return the response.

    The request is sent again where another transaction was in its way, and where DynamoDB throttled its transaction.

    Args:
        clients: what to send it with.
        request: the request.
        ref: what it concerns, for errors.
        maybe_stored: whether an earlier request of the same write, whose answer was lost, may have been stored.

    Raises:
        ConditionFailed: the write's condition did not hold.
        TransactionCanceled: a condition of the transaction did not hold.
        ChatHistoryError: any other failure, with botocore's error as its cause.
    """
    handled = sys.exc_info()[1]
    try:
        async with _Deadline(clients.longest_call_seconds(request.service)) as deadline:
            return await _with_retries(clients, request, _Retries(ref, maybe_stored), ref, deadline)
    except asyncio.TimeoutError as error:
        raise _took_too_long(request.service, ref) from _without_frames(error, handled)


def _took_too_long(service: Service, ref: SessionRef) -> EndpointError:
    text = f"A call to {service.name} took too long: its endpoint does not answer, or what gives the credentials"
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
            if not canceled.codes <= _RETRYABLE:
                raise from_cancelled_transaction(canceled.reasons, ref, request.parameters) from canceled.__cause__
            await retries.wait_after(canceled)


async def pause(attempt: int, longest_seconds: float = _LONGEST_PAUSE_SECONDS) -> None:
    """Wait for a random time, the longer the more attempts there were (exponential back-off with full jitter)."""
    await asyncio.sleep(random.uniform(0, min(0.005 * 2**attempt, longest_seconds)))


class _Retries:
    """The retries of one request that DynamoDB refused, where the refused sending stored nothing.

    Attributes:
        maybe_stored: whether an earlier sending may have been stored all the same, because its answer was lost.
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
            ThrottledError: it was throttled too often.
            WriteConflictError: other transactions were in its way too often.
            WriteOutcomeUnknownError: they were, and an earlier sending may have been stored.
        """
        self.maybe_stored = self.maybe_stored or canceled.sent_before
        if canceled.codes.isdisjoint(_THROTTLED):
            self._conflicts += 1
            if self._conflicts == MAX_CONFLICTS:
                text = f"Transactions of other writers were in the way in {MAX_CONFLICTS} attempts in a row"
                raise write_conflict(text, self._ref, maybe_stored=self.maybe_stored) from canceled.__cause__
            await pause(self._conflicts)
        else:
            self._throttles += 1
            if self._throttles == MAX_THROTTLED_ATTEMPTS:
                text = "AWS throttled the transaction and every retry: raise the table's capacity"
                raise ThrottledError(text, self._ref) from canceled.__cause__
            await pause(self._throttles, _LONGEST_THROTTLE_SECONDS)


async def _send(clients: Clients, request: Request, ref: SessionRef, deadline: _Deadline) -> dict[str, Any]:
    _check_open(clients, ref)
    handled = sys.exc_info()[1]
    try:
        async with clients.acquire(request.service) as client:
            deadline.allow(client.longest_call_seconds)
            response = await client.send(request.operation, request.parameters)
    except _SDK_ERRORS as error:
        raise _mapped(error, ref, request.service, request.parameters) from _without_frames(error, handled)
    try:
        check_answer(*request[:2], response, large=request.large)
    except NotAnAnswer:
        raise not_an_answer(ref) from None
    return response


class _Deadline:
    """The end of a call, so many seconds after its beginning; None for no end. It raises ``asyncio.TimeoutError``."""

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
        """Move the end, where the client that was opened allows another time than was known."""
        if longest_seconds == self._longest_seconds:
            # Each move is a timer more.
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
    """Open the running loop's client of a service, so that the first call does not have to, and return its region.

    Raises:
        ChatHistoryError: the SDK cannot make one, or the clients' store was closed.
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
    return region


def _check_open(clients: Clients, ref: SessionRef) -> None:
    if clients.retired:
        raise ClosedError("The ChatHistoryStore is closed, and its histories with it", ref)


_RETRYABLE = {"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
_THROTTLED = {"ThrottlingError", "ProvisionedThroughputExceeded"}
# A request of one item, or a transaction, that meets another's transaction.
_CONFLICT = "TransactionConflictException"
# A transaction that meets itself: an earlier sending of it is still under way.
_IN_PROGRESS = "TransactionInProgressException"

# botocore raises a bare ValueError for an endpoint that is not a URL; its providers of credentials an OSError for a
# program that is not there, a RuntimeError for credentials that are expired as they come, a KeyError for half of them,
# a TimeoutError, which before Python 3.11 is no OSError, and an AttributeError, a TypeError or an OverflowError for
# such as have another form.
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


def _without_frames(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return an error of the SDK's without its frames and its input, and those of the errors that it was raised for.

    Frames have the request's headers among their locals, credentials with them, and who records errors records locals.
    Where a provider's answer cannot be decoded, the error's input is that answer.

    Args:
        error: the error.
        handled: the error that the caller was handling when it called, which keeps its frames; None for none.
    """
    below: BaseException | None = error
    while below is not None and below is not handled and below.__traceback__ is not None:
        below.__traceback__ = None
        _forget_input(below)
        below = below.__cause__ or below.__context__
    return error


def _forget_input(error: BaseException) -> None:
    """Take what could not be decoded out of an error, whose text does not quote it."""
    if isinstance(error, UnicodeDecodeError):
        error.object = b""
        error.args = (error.encoding, b"", *error.args[2:])
    elif isinstance(error, json.JSONDecodeError):
        error.doc = ""


def _mapped(
    error: Exception, ref: SessionRef, service: Service, parameters: Mapping[str, Any] = MappingProxyType({})
) -> Exception:
    """Return what an error of the SDK's means."""
    if isinstance(error, ClientError):
        # Typed as what every error has; those of conditions and transactions have more.
        answer: dict[str, Any] = dict(error.response)
        code = answer["Error"].get("Code")
        sent_before = answer.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
        try:
            check_refusal(parameters, answer)
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
        # It is the cause of ours, and whoever logs that logs its text too.
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
