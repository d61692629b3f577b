"""A request, an item, and the two errors of failed conditions. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

# An item in DynamoDB's JSON form: binary is base64 text.
Item: TypeAlias = Mapping[str, dict[str, Any]]


class Service(NamedTuple):
    """The AWS service of a client.

    Attributes:
        name: the service's name in the SDK.
        region_name: the region of the service, or None for the region of the client options.
    """

    name: str
    region_name: str | None = None


DYNAMODB = Service("dynamodb")

# The reason's code for an action whose condition failed, in a cancelled transaction.
CONDITION_FAILED = "ConditionalCheckFailed"


class Request(NamedTuple):
    """A call to botocore's client of a service.

    Attributes:
        operation: the name of the client's method.
        parameters: the keyword arguments of the method.
        service: the service.
        large: whether the response may hold many items. The code that reads them then checks their form, and
            ``check_answer`` does not.
    """

    operation: str
    parameters: dict[str, Any]
    service: Service = DYNAMODB
    large: bool = False


def transaction(actions: Sequence[Mapping[str, Any]], token: str) -> Request:
    """Return a request that writes all of its actions or none.

    DynamoDB recognises a repeated request by its token for ten minutes.
    """
    return Request("transact_write_items", {"TransactItems": actions, "ClientRequestToken": token})


class TransactionCanceled(Exception):
    """DynamoDB cancelled a transaction. This sending stored nothing.

    Attributes:
        reasons: DynamoDB's reasons, one for each action. A reason has a "Code", which is "None" if the action is not
            at fault. It may have a "Message", and as its "Item" the stored item.
        codes: the codes of all reasons.
        sent_before: whether the request had been sent before, so that an earlier sending may have been stored.
    """

    def __init__(self, reasons: Sequence[Mapping[str, Any]], *, sent_before: bool) -> None:
        super().__init__()
        self.reasons = reasons
        self.codes = {reason.get("Code", "None") for reason in reasons}
        self.sent_before = sent_before


class ConditionFailed(Exception):
    """A write's condition did not hold.

    Attributes:
        item: the stored item that DynamoDB returned with the error, or None if it returned none.
        sent_before: whether the request had been sent before, so that an earlier sending may have been stored.
    """

    def __init__(self, item: Item | None, *, sent_before: bool) -> None:
        super().__init__()
        self.item = item
        self.sent_before = sent_before
