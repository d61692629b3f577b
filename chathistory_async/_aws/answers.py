"""Check that a response has the form that DynamoDB and KMS send. Pure: no I/O.

A response of a different form comes from a different server, such as a proxy, or is damaged.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# DynamoDB nests values to 32 levels at most. Each of them is two levels of JSON.
_DEEPEST = 80
# The end of the year 9999, beyond which Python has no dates.
_LATEST_TIME = 253_402_300_800
# DynamoDB's attribute types, each with the Python types of its JSON value. Binary may be decoded already.
_CONTENTS: Mapping[str, tuple[type, ...]] = {
    "S": (str,),
    "N": (str,),
    "B": (str, bytes),
    "BOOL": (bool,),
    "NULL": (bool,),
    "L": (list,),
    "M": (dict,),
    "SS": (list,),
    "NS": (list,),
    "BS": (list,),
}
_MEMBERS: Mapping[str, tuple[type, ...]] = {"L": (dict,), "SS": (str,), "NS": (str,), "BS": (str, bytes)}


class NotAnAnswer(Exception):
    """The response is not the service's, or it is damaged."""


def has_shape(value: Any, shape: Any, besides: Collection[str] = (), depth: int = 0) -> bool:
    """Return whether a JSON value fits a shape of botocore's models.

    Args:
        value: the value.
        shape: botocore's shape.
        besides: names of the value's members that are not checked.
        depth: the depth of the value in the response.
    """
    if depth > _DEEPEST:
        return False
    kind = shape.type_name
    if kind == "structure":
        members = shape.members
        return isinstance(value, dict) and all(
            has_shape(one, members[name], depth=depth + 1)
            for name, one in value.items()
            # botocore takes null for a missing member, and leaves out members that it does not know.
            if name in members and one is not None and name not in besides
        )
    if kind == "list":
        return isinstance(value, list) and all(has_shape(one, shape.member, depth=depth + 1) for one in value)
    if kind == "map":
        return isinstance(value, dict) and all(has_shape(one, shape.value, depth=depth + 1) for one in value.values())
    return _is_scalar(value, kind)


def _is_scalar(value: Any, kind: str) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if kind in ("integer", "long"):
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in ("float", "double", "timestamp"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and (kind != "timestamp" or 0 <= value < _LATEST_TIME)
    return isinstance(value, str) and (kind != "blob" or _is_base64(value))


def _is_base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text)
    except ValueError:
        return False
    return True


def is_item(value: Any) -> bool:
    """Return whether a value can be an item: attributes of DynamoDB's types, checked one level deep."""
    if not isinstance(value, dict):
        return False
    for attribute in value.values():
        if type(attribute) is not dict or len(attribute) != 1:
            return False
        ((kind, content),) = attribute.items()
        if kind not in _CONTENTS or type(content) not in _CONTENTS[kind]:
            return False
        if kind in _MEMBERS and not all(isinstance(one, _MEMBERS[kind]) for one in content):
            return False
        if kind == "M" and not all(isinstance(one, dict) for one in content.values()):
            return False
        if kind == "B" and not isinstance(content, bytes) and not _is_base64(content):
            return False
    return True


def check_answer(operation: str, parameters: Mapping[str, Any], response: Mapping[str, Any], *, large: bool) -> None:
    """Check that a response fits its request. This check goes beyond botocore's models.

    Args:
        operation: the name of botocore's client method.
        parameters: the keyword arguments of that method.
        response: the response.
        large: whether to leave a page's items unchecked, for the code that reads them: checking an item takes as long
            as parsing its JSON.

    Raises:
        NotAnAnswer: the response does not fit the request.
    """
    if operation in ("query", "scan"):
        if "Items" not in response or not (large or all(map(is_item, response["Items"]))):
            raise NotAnAnswer
        _check_progress(parameters, response)
        return
    if operation == "describe_table" and not _is_table(response.get("Table", {})):
        raise NotAnAnswer
    if operation == "describe_time_to_live" and not _is_time_to_live(response.get("TimeToLiveDescription", {})):
        raise NotAnAnswer
    needed = "Attributes" if "ReturnValues" in parameters else "Item"
    item = response.get(needed)
    if not is_item(item) and not (item is None and needed == "Item"):
        raise NotAnAnswer


def _is_table(table: Mapping[str, Any]) -> bool:
    if table.get("TableStatus") == "DELETING":
        # AWS describes little more of a table that is being deleted.
        return True
    # AWS describes little more of an index that is being deleted, either.
    indexes = [index for index in table.get("GlobalSecondaryIndexes", ()) if index.get("IndexStatus") != "DELETING"]
    schemas = [part for one in (table, *indexes) for part in one.get("KeySchema", ({},))]
    types = table.get("AttributeDefinitions", ())
    return (
        _have([table], "TableStatus")
        and _have(indexes, "IndexName", "Projection")
        and _have([index["Projection"] for index in indexes], "ProjectionType")
        and _have(schemas, "AttributeName", "KeyType")
        and _have(types, "AttributeName", "AttributeType")
        and {part["AttributeName"] for part in schemas} <= {one["AttributeName"] for one in types}
    )


def _is_time_to_live(description: Mapping[str, Any]) -> bool:
    is_on = description.get("TimeToLiveStatus") in ("ENABLED", "ENABLING")
    return _have([description], "TimeToLiveStatus", *(["AttributeName"] if is_on else []))


def _have(structures: Iterable[Mapping[str, Any]], *names: str) -> bool:
    return all(structure.get(name) is not None for structure in structures for name in names)


def check_error_answer(parameters: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Check that an error response can be that of a failed condition or a cancelled transaction.

    Args:
        parameters: the request's parameters.
        answer: the error response, as ``ClientError.response`` holds it.

    Raises:
        NotAnAnswer: DynamoDB does not send such an error response to this request.
    """
    reasons = answer.get("CancellationReasons") or []
    if not isinstance(reasons, list) or not all(map(_is_reason, [answer, *reasons])):
        raise NotAnAnswer
    if reasons and len(reasons) != len(parameters.get("TransactItems", ())):
        raise NotAnAnswer


def _is_reason(reason: Any) -> bool:
    if not isinstance(reason, dict):
        return False
    texts = [reason.get(name) for name in ("Code", "Message")]
    return all(text is None or isinstance(text, str) for text in texts) and is_item(reason.get("Item", {}))


def _check_progress(parameters: Mapping[str, Any], response: Mapping[str, Any]) -> None:
    """Check that a page's LastEvaluatedKey advances: if it did not, paging could go on for ever."""
    last, start = response.get("LastEvaluatedKey"), parameters.get("ExclusiveStartKey")
    if last is None:
        return
    if not last or not is_item(last) or last == start:
        raise NotAnAnswer
    sort_key = parameters.get("ExpressionAttributeNames", {}).get("#sort")
    if sort_key is None:
        return
    # The request is a query of one partition, between two sort keys. Its pages follow the order of the sort keys.
    values = parameters["ExpressionAttributeValues"]
    low, high, at = (value.get("S") for value in (values[":low"], values[":high"], last.get(sort_key, {})))
    if at is None or not low <= at <= high:
        raise NotAnAnswer
    if start is not None and (at > start[sort_key]["S"]) != parameters["ScanIndexForward"]:
        raise NotAnAnswer
