"""The botocore event handlers of every client.

They parse the parts of a response that botocore must not parse, stream large request bodies, and note retries.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from botocore.awsrequest import AWSPreparedRequest
from botocore.parsers import ResponseParserError

from .._request import Service
from .._telemetry.events import Reason, retried, throttled
from .answers import has_shape
from .errors import THROTTLED_CODES
from .fast_path import ITEMS, is_answer, json_object, streamed


def add_event_handlers(client: Any, service: Service) -> None:
    """Register the handlers on a client of a service."""
    client.meta.events.register(f"before-parse.{service.name}", _UNPARSED[service.name])
    client.meta.events.register(f"before-send.{service.name}", _stream_large_body)
    client.meta.events.register(f"needs-retry.{service.name}", _note_attempt)


def _leave_unparsed(
    members: Mapping[str, type],
    operation_model: Any,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    **_: object,
) -> None:
    """Take members out of a response before botocore parses it (a handler of botocore's ``before-parse`` event).

    The members keep their JSON form: binary is base64 text.

    Raises:
        ResponseParserError: the body of a success is not a response of this operation, or a body is nested too deeply.
    """
    # For a member of an unexpected type, botocore's parser would raise an arbitrary exception.
    if response_dict["status_code"] < 300:
        body = json_object(response_dict["body"], members)
        if response_dict["status_code"] != 200 or body is None or not is_answer(body, operation_model):
            # botocore would take a proxy's login page for an empty response: an append that the proxy swallowed would
            # seem to be stored.
            raise ResponseParserError("the body is not a response of this operation")
        known = operation_model.output_shape.members
    else:
        body = json_object(response_dict["body"], {}) or {}
        known = _members_of_error(body, operation_model)
    customized_response_dict.update({name: body[name] for name in members if name in body})
    left = {name: value for name, value in body.items() if name in known and name not in members}
    try:
        response_dict["body"] = orjson.dumps(left)
    except orjson.JSONEncodeError:
        raise ResponseParserError("nested too deeply") from None


def _members_of_error(body: Mapping[str, Any], operation_model: Any) -> Collection[str]:
    """Return the members of an error's JSON that are usable: its code, its text, and the members of its class."""
    texts = [name for name in ("__type", "message", "Message") if isinstance(body.get(name), str)]
    code = body["__type"].rpartition("#")[2] if "__type" in texts else ""
    shape = operation_model.service_model.shape_for_error_code(code)
    return {*texts, *shape.members} if shape is not None and has_shape(body, shape, ITEMS) else texts


def _stream_large_body(request: AWSPreparedRequest, **_: object) -> None:
    if isinstance(request.body, bytes):
        request.body = streamed(request.body)


def _note_attempt(
    response: tuple[Any, dict[str, Any]] | None,
    operation: Any,
    attempts: int,
    caught_exception: Exception | None,
    request_dict: dict[str, Any],
    **_: object,
) -> None:
    """Note a throttled attempt of the SDK, and an attempt that followed another one."""
    context = request_dict["context"]
    if attempts > 1:
        retried(operation.name, context.get(_LAST_REASON, "failed"))
    code = "" if response is None else response[1].get("Error", {}).get("Code")
    reason: Reason = "throttled" if code in THROTTLED_CODES else "failed"
    context[_LAST_REASON] = reason
    if reason == "throttled":
        throttled(operation.service_model.service_id, operation.name)


_LAST_REASON = "chathistory_async_reason"
_UNPARSED = {
    "dynamodb": functools.partial(_leave_unparsed, ITEMS),
    # botocore logs the body that it parses at DEBUG, and a data key must not be logged.
    "kms": functools.partial(_leave_unparsed, {"Plaintext": str}),
}
