"""The calls of an operation to AWS: a CLIENT span of each, its duration, and the stored bytes that it moved."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from .._codec.attribute_values import size_of
from .._request import DYNAMODB, Request
from .operations import Operation

_KMS = "KMS"
# Operations, tables and endpoints of a process are few.
_DESCRIPTIONS = 1_024
# A code of AWS is shorter. Another server may respond with any text.
_LONGEST_CODE = 100


class _Description(NamedTuple):
    """How spans and metrics name a call.

    Attributes:
        name: the span's name.
        of_metrics: the attributes of the metrics.
        of_span: the attributes of the span.
    """

    name: str
    of_metrics: Mapping[str, Any]
    of_span: Mapping[str, Any]


class Call:
    """One call of an operation, with the SDK's own retries. A context manager around its sending.

    Args:
        operation: the operation.
        client: the SDK's client that sends the call.
        request: the request.
        table_name: the name or the ARN of the operation's table.
    """

    __slots__ = (
        "_attached",
        "_began",
        "_client",
        "_described",
        "_operation",
        "_request",
        "_response",
        "_span",
        "_table",
    )

    def __init__(self, operation: Operation, client: Any, request: Request, table_name: str) -> None:
        self._operation = operation
        self._client = client
        self._request = request
        self._table = table_name
        self._described: _Description | None = None
        self._span: Any = None
        self._response: Mapping[str, Any] = {}

    def __enter__(self) -> Call:
        operation = self._operation
        if operation.is_told:
            self._described = self._description()
        if (tracing := operation.tracing) is not None:
            if operation.has_spans and self._described is not None:
                self._span, context = tracing.call(self._described.name, self._described.of_span)
            else:
                context = tracing.suppressed()
            self._attached = tracing.attach(context)
        self._began = time.perf_counter()
        return self

    def answered(self, response: Mapping[str, Any]) -> None:
        """Remember the response."""
        self._response = response

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        operation = self._operation
        # A coroutine that is thrown away may end in another context than the one that it ran in: see ``Active``.
        if operation.tracing is not None and kind is not GeneratorExit:
            operation.tracing.detach(self._attached)
        if self._described is not None:
            self._tell(self._described.of_metrics, error)

    def _tell(self, attributes: Mapping[str, Any], error: BaseException | None) -> None:
        operation, code = self._operation, _code_of(error)
        error_type = None if error is None else code or type(error).__qualname__
        status = {} if code is None or "db.system.name" not in attributes else {"db.response.status_code": code}
        if operation.instruments is not None:
            operation.instruments.call({**attributes, **status}, time.perf_counter() - self._began, error_type)
        if operation.tracing is not None and self._span is not None:
            told = {**_of_response(self._response, error), **status}
            operation.tracing.end(self._span, told, error, error_type)
        if error is None:
            operation.moved(*_stored_bytes(self._request, self._response))

    def _description(self) -> _Description:
        request = self._request
        api_name = request.operation.title().replace("_", "")
        return _described(request.service.name, api_name, self._table, self._client.meta.endpoint_url)


@functools.lru_cache(_DESCRIPTIONS)
def _described(service: str, api_name: str, table_name: str, endpoint_url: str) -> _Description:
    server = _server(endpoint_url)
    if service != DYNAMODB.name:
        # OpenTelemetry's conventions for AWS SDKs require rpc.system, which those for RPC have deprecated.
        remote = {"rpc.system": "aws-api", "rpc.service": _KMS, "rpc.method": api_name, **server}
        return _Description(f"{_KMS}.{api_name}", remote, remote)
    # A table may be named by its ARN.
    table = table_name.rpartition("/")[2]
    database = {"db.system.name": "aws.dynamodb", "db.operation.name": api_name, "db.collection.name": table, **server}
    return _Description(f"{api_name} {table}", database, {**database, "aws.dynamodb.table_names": [table]})


def _server(endpoint_url: str) -> dict[str, Any]:
    url = urlsplit(endpoint_url)
    return {"server.address": url.hostname or "", "server.port": url.port or (443 if url.scheme == "https" else 80)}


def _code_of(error: BaseException | None) -> str | None:
    """Return AWS's code of an error, or None if the error has none."""
    code = _response_of(error).get("Error", {}).get("Code")
    return code[:_LONGEST_CODE] if isinstance(code, str) and code else None


def _response_of(error: BaseException | None) -> Mapping[str, Any]:
    """Return the response of botocore's ClientError. Other errors have none."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _of_response(response: Mapping[str, Any], error: BaseException | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    answer = response or _response_of(error)
    if request_id := answer.get("ResponseMetadata", {}).get("RequestId"):
        attributes["aws.request_id"] = request_id
    if consumed := answer.get("ConsumedCapacity"):
        each = consumed if isinstance(consumed, list) else [consumed]
        attributes["aws.dynamodb.consumed_capacity"] = [orjson.dumps(one, default=str).decode() for one in each]
    return attributes


def _stored_bytes(request: Request, response: Mapping[str, Any]) -> tuple[int, int]:
    """Return about how many stored bytes a call has read and written."""
    try:
        return sum(map(_size, _items_in(response))), sum(map(_size, _written_by(request)))
    except (AttributeError, LookupError, TypeError, ValueError):
        # The response is damaged, and the code that reads it raises an error.
        return 0, 0


def _size(item: Any) -> int:
    return size_of({"M": item})


def _items_in(response: Mapping[str, Any]) -> list[Any]:
    return [response["Item"]] if response.get("Item") else response.get("Items", [])


def _written_by(request: Request) -> Iterator[Any]:
    """Return the items that a request puts, and the values with which it updates items."""
    written = _WRITTEN.get(request.operation)
    return iter(()) if written is None else written(request.parameters)


def _updated(parameters: Mapping[str, Any]) -> Iterator[Any]:
    yield parameters.get("ExpressionAttributeValues", {})


def _put(parameters: Mapping[str, Any]) -> Iterator[Any]:
    yield parameters["Item"]


def _transacted(parameters: Mapping[str, Any]) -> Iterator[Any]:
    for action in parameters["TransactItems"]:
        if "Put" in action:
            yield from _put(action["Put"])
        elif "Update" in action:
            yield from _updated(action["Update"])


def _batched(parameters: Mapping[str, Any]) -> Iterator[Any]:
    for requests in parameters["RequestItems"].values():
        yield from (one["PutRequest"]["Item"] for one in requests if "PutRequest" in one)


_WRITTEN: dict[str, Callable[[Mapping[str, Any]], Iterator[Any]]] = {
    "put_item": _put,
    "update_item": _updated,
    "transact_write_items": _transacted,
    "batch_write_item": _batched,
}
