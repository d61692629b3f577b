"""A request, an item, and the two refusals that the core handles, pure: nothing here imports the SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

# As its JSON has it: binary is base64 text.
Item: TypeAlias = Mapping[str, dict[str, Any]]


class Service(NamedTuple):
    """What a client speaks to: a service of AWS, in a region of its own or, with None, in that of the options."""

    name: str
    region_name: str | None = None


DYNAMODB = Service("dynamodb")

# The code of a cancelled transaction's reason.
CONDITION_FAILED = "ConditionalCheckFailed"


class Request(NamedTuple):
    """A call to botocore's client of a service.

    Attributes:
        operation: the method's name.
        parameters: its keyword arguments.
        service: the service.
        large: whether the answer has so many items that each is looked at where it is read, and not before.
    """

    operation: str
    parameters: dict[str, Any]
    service: Service = DYNAMODB
    large: bool = False


def transaction(actions: Sequence[Mapping[str, Any]], token: str) -> Request:
    """Write all or nothing. By its token DynamoDB knows a request that is sent again within ten minutes."""
    return Request("transact_write_items", {"TransactItems": actions, "ClientRequestToken": token})


class TransactionCanceled(Exception):
    """A transaction was cancelled, and nothing of it stored.

    Attributes:
        reasons: DynamoDB's, one for each action: its "Code", which is "None" where it was not at fault, and where they
            are told its "Message" and the "Item" that was there.
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
        item: the item as it was then, None where there was none.
        sent_before: whether the request had been sent before, so that an earlier sending may have been stored.
    """

    def __init__(self, item: Item | None, *, sent_before: bool) -> None:
        super().__init__()
        self.item = item
        self.sent_before = sent_before
