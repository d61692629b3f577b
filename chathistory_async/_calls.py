"""The one place that sends requests: it maps every error and tells a failed condition from a failure.

Throttles, HTTP 5xx and broken connections are retried by the SDK, within the bound of ``retries`` in its Config
(or AWS_MAX_ATTEMPTS), after one attempt on the lean path of ``_lane``. A request may thus reach AWS more than once: the
layouts make that harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from ._clients import DYNAMODB, Clients, Service
from .errors import ClosedError, Place, from_botocore

# As its JSON has it: binary is base64 text.
Item: TypeAlias = Mapping[str, dict[str, Any]]


class Request(NamedTuple):
    """A call to botocore's client of a service: the method's name and its keyword arguments."""

    operation: str
    parameters: dict[str, Any]
    service: Service = DYNAMODB


class TransactionCanceled(Exception):
    """A transaction was cancelled, and nothing of it stored.

    Attributes:
        reasons: DynamoDB's, one for each action: its "Code", which is "None" where it was not at fault, and where they
            are told its "Message" and the "Item" that was there.
    """

    def __init__(self, reasons: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.reasons = reasons
        self.codes = {reason.get("Code", "None") for reason in reasons}


class ConditionFailed(Exception):
    """A write's condition did not hold.

    Attributes:
        item: the item as it was then, None where there was none.
        sent_before: whether the request had been sent before, so that an earlier sending may have been stored.
    """

    def __init__(self, item: Item | None, *, sent_before: bool) -> None:
        super().__init__()
        self.item = item
        self.sent_before = sent_before


async def call(clients: Clients, request: Request, place: Place) -> dict[str, Any]:
    """Send a request on the running loop's client and return the response.

    Raises:
        ConditionFailed: the write's condition did not hold.
        TransactionCanceled: an action of the transaction could not be taken.
        ChatHistoryError: any other failure, with botocore's error as its cause.
    """
    _check_open(clients, place)
    try:
        async with clients.lend(request.service) as lent:
            return await lent.send(request.operation, request.parameters)
    except _SDK_ERRORS as error:
        raise _mapped(error, place, request.service, request.parameters.get("KeyId")) from error


async def connect(clients: Clients, place: Place, service: Service = DYNAMODB) -> str:
    """Open the running loop's client of a service, so that the first call does not have to, and return its region.

    Raises:
        ChatHistoryError: the SDK cannot make one, or the clients' store was closed.
    """
    _check_open(clients, place)
    try:
        async with clients.lend(service) as lent:
            region: str = lent.client.meta.region_name
    except _SDK_ERRORS as error:
        raise _mapped(error, place, service) from error
    return region


def _check_open(clients: Clients, place: Place) -> None:
    if clients.retired:
        raise ClosedError("The ChatHistoryStore is closed, and its histories with it", place)


# A request that meets a transaction on the same item, or its own one of which the answer was lost.
_CONFLICTS = {"TransactionConflictException", "TransactionInProgressException"}


# botocore raises a bare ValueError for an endpoint that is not a URL.
_SDK_ERRORS = (ClientError, BotoCoreError, ResponseParserError, ValueError)


def _mapped(error: Exception, place: Place, service: Service, key_id: str | None = None) -> Exception:
    """Return what an error of the SDK's means."""
    if isinstance(error, ClientError):
        code = error.response["Error"].get("Code")
        if code == "ConditionalCheckFailedException":
            return _condition_failed(error)
        if code == "TransactionCanceledException":
            answer: dict[str, Any] = dict(error.response)
            return TransactionCanceled(answer.get("CancellationReasons", ()))
        if code in _CONFLICTS:
            return TransactionCanceled([{"Code": "TransactionConflict"}])
    return from_botocore(error, place, service.name, key_id)


def _condition_failed(error: ClientError) -> ConditionFailed:
    # Typed as what every error has; this one also has the item.
    answer: dict[str, Any] = dict(error.response)
    sent_before = answer["ResponseMetadata"].get("RetryAttempts", 0) > 0
    return ConditionFailed(answer.get("Item"), sent_before=sent_before)
