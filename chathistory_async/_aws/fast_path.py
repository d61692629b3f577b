"""The fast path: the first attempt of a call to DynamoDB, sent without the code of the SDK's client.

orjson serialises the request, ``signing`` signs it with the SDK's credentials, and the aiohttp session of the SDK's
client sends it, with that client's pool, TLS and time-outs. A response is accepted only if it is certainly DynamoDB's:
a success, or an error after which nothing is stored and the SDK would not retry (``_FINAL_ERRORS``). In every other
case the SDK's client sends the request again, with its own errors and retries.

A small call takes 0.27 to 0.29 of the CPU time of a plain aioboto3 client, and 0.77 to 0.86 of aiodynamo's: see
``benchmarks/``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import orjson
from botocore import UNSIGNED
from botocore.context import start_as_current_context
from botocore.exceptions import BotoCoreError, ClientError
from yarl import URL

from .._telemetry.events import Reason, retried, throttled
from .answers import has_shape
from .errors import THROTTLED_CODES
from .fast_path_guard import Guard
from .signing import Signer

# The operations of a chat: the client's methods, and their names in the API. BatchWriteItem is left out: its
# UnprocessedItems would hold base64 text, and botocore takes bytes.
_OPERATIONS = {
    "put_item": "PutItem",
    "update_item": "UpdateItem",
    "delete_item": "DeleteItem",
    "get_item": "GetItem",
    "query": "Query",
    "transact_write_items": "TransactWriteItems",
}
# The API version of DynamoDB, as the header X-Amz-Target has it.
_TARGET_PREFIX = "DynamoDB_20120810"
_REQUEST_ID = "x-amzn-requestid"
# Members of a response that keep their JSON form. For an item of 1,000 messages, botocore's parser holds the loop for
# 30 to 85 ms, and orjson for 2 to 5 ms.
ITEMS: Mapping[str, type] = {"Item": dict, "Items": list}
# Error codes after which nothing is stored, and which the SDK does not retry.
_FINAL_ERRORS = {
    "ConditionalCheckFailedException",
    "ResourceNotFoundException",
    "TransactionCanceledException",
    "TransactionConflictException",
    "ValidationException",
}
# The SDK's own wait before a second attempt is 50 ms.
_LONGEST_PAUSE_SECONDS = 0.1
# After a throttle or a failure the fast path is closed for a random time between these two: the SDK's client backs off
# meanwhile, and different hosts use the fast path again at different times.
CLOSED_SECONDS = (0.5, 1.5)
_LARGE_BODY_BYTES = 2**20

_LOGGER = logging.getLogger("chathistory_async")


class NoFastPath(Exception):
    """A client has no fast path. The text says why.

    Attributes:
        fails: whether the SDK's own attempt fails for the same reason, and reports it.
    """

    def __init__(self, reason: str, *, fails: bool = False) -> None:
        super().__init__(reason)
        self.fails = fails


class FastPath:
    """The fast path of one client.

    Args:
        client: the SDK's client of DynamoDB.
        http: the aiohttp session of the client.
        credentials: the client's credentials, which refresh themselves.
        signer: signs requests as the client does.
        user_agent: the client's User-Agent.
        guard: detects a tracer or mock that watches or replaces the client.
        tell: called with the reason at each call for which ``off`` returns one.
    """

    def __init__(
        self,
        client: Any,
        http: aiohttp.ClientSession,
        credentials: Any,
        signer: Signer,
        user_agent: str,
        guard: Guard,
        tell: Callable[[str], None],
    ) -> None:
        meta = client.meta
        self._client = client
        self._http = http
        self._credentials = credentials
        self._signer = signer
        self._guard = guard
        self._tell = tell
        self._url = URL(meta.endpoint_url)
        # The SDK sends the same header. aiohttp would request compression, and DynamoDB's checksum is of the compressed
        # body.
        self._headers = {"accept-encoding": "identity", "user-agent": user_agent}
        self._models = {name: meta.service_model.operation_model(api_name) for name, api_name in _OPERATIONS.items()}
        self._opens_at = 0.0
        self._is_known = True

    def off(self) -> str | None:
        """Return why no call takes this path now, or None if calls take it."""
        return self._guard.found() if self._is_known else "aiohttp's internals are not the known ones"

    async def send(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return DynamoDB's response to a call, of the fast path or of the SDK's client.

        A success of the fast path has only the request's id of the SDK's metadata. An error has most of that metadata.

        Raises:
            botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError: as the SDK does.
        """
        is_open = operation in _OPERATIONS and time.monotonic() >= self._opens_at and not self._is_off()
        body = _body(parameters) if is_open else None
        if body is None:
            return await send_by_sdk(self._client, operation, parameters)
        response = await self._attempt(self._models[operation], body)
        if not isinstance(response, str):
            return response
        self._close(self._models[operation].name, response)
        await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))
        try:
            return await send_by_sdk(self._client, operation, parameters)
        except ClientError as error:
            # The attempt of the fast path may have been stored, so RetryAttempts must count it.
            metadata = error.response["ResponseMetadata"]
            metadata["RetryAttempts"] = metadata.get("RetryAttempts", 0) + 1
            raise

    def _close(self, name: str, reason: Reason) -> None:
        now = time.monotonic()
        if now >= self._opens_at:
            # If several attempts were under way at once, one of them is logged.
            text = "The fast path is closed for up to %.1f s (%s: %s): the SDK's client sends all calls meanwhile"
            _LOGGER.info(text, CLOSED_SECONDS[1], name, reason)
        if reason == "throttled":
            throttled("DynamoDB", name)
        retried(name, reason)
        self._opens_at = max(self._opens_at, now + random.uniform(*CLOSED_SECONDS))

    def _is_off(self) -> bool:
        reason = self.off()
        if reason is not None:
            self._tell(reason)
        return reason is not None

    async def _attempt(self, model: Any, body: bytes) -> dict[str, Any] | Reason:
        """Send a request once. Return the response, or the reason why the SDK's client has to send it again."""
        try:
            answer = await self._exchange(f"{_TARGET_PREFIX}.{model.name}", body)
        except Exception:
            # The credentials cannot be refreshed.
            raise
        except BaseException as error:  # noqa: BLE001  # it is raised again
            raise _without_frames(error) from None
        if answer is None:
            return "failed"
        status, answer_headers, content = answer
        response = json_object(content)
        if response is None or not _is_whole(content, answer_headers.get("x-amz-crc32")):
            return "failed"
        if status == 200:
            return _as_by_sdk(response, model, answer_headers) if is_answer(response, model) else "failed"
        code = str(response.pop("__type", "")).rpartition("#")[2]
        if status == 400 and code in _FINAL_ERRORS:
            raise self._final_error(code, model.name, response, answer_headers)
        return "throttled" if code in THROTTLED_CODES else "failed"

    async def _exchange(self, target: str, body: bytes) -> tuple[int, Mapping[str, str], bytes] | None:
        """Send a request once. Return the response's status, headers and content, or None if there was no response.

        Only this frame and the frames below it have credentials in local variables, and error trackers record the
        locals of a traceback. Therefore this function raises nothing but an error of the credentials' refresh, and
        exceptions that end a task, such as CancelledError.
        """
        credentials = await self._credentials.get_frozen_credentials()
        try:
            headers = self._signer.headers(credentials, target, body) | self._headers
            answer = await self._http.post(self._url, data=streamed(body), headers=headers, allow_redirects=False)
            return answer.status, answer.headers, await answer.read()
        except (AttributeError, TypeError):
            # An aiohttp with unknown internals would fail at each call, after it has sent the request.
            self._is_known = False
            return None
        except Exception:  # noqa: BLE001  # the SDK's own attempt reports the error, or succeeds
            return None

    def _final_error(self, code: str, name: str, response: dict[str, Any], headers: Mapping[str, str]) -> ClientError:
        metadata = {
            "RequestId": headers.get(_REQUEST_ID, ""),
            "HTTPStatusCode": 400,
            # The SDK has the names of headers in lower case.
            "HTTPHeaders": {header.lower(): value for header, value in headers.items()},
            "RetryAttempts": 0,
        }
        text = response.get("message", response.get("Message", ""))
        kind: type[ClientError] = self._client.exceptions.from_code(code)
        # If an error has no class of its own, the SDK keeps only its code and text.
        members = {} if kind is ClientError else response
        answer: Any = members | {"Error": {"Message": text, "Code": code}, "ResponseMetadata": metadata}
        return kind(answer, name)


async def fast_path_beside(
    client: Any, session: Any, tell: Callable[[str], None], traces: Callable[[], bool] = lambda: False
) -> FastPath:
    """Return the fast path of a client.

    Args:
        client: the SDK's client of DynamoDB.
        session: the asynchronous session that made the client.
        tell: as for ``FastPath``.
        traces: returns whether the library traces the client's calls itself.

    Raises:
        NoFastPath: something watches or replaces the client, the SDK's internals are not the known ones, the fast path
            does not support the configuration, or there are no credentials.
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError: the credentials cannot be refreshed.
    """
    with _unknown_is_off():
        _check_configuration(client.meta)
        guard = Guard(client, _OPERATIONS, traces)
        if found := guard.found():
            raise NoFastPath(found)
        http = await _aiohttp_session(client)
        credentials = await session.get_credentials()
    if credentials is None:
        raise NoFastPath("there are no credentials")
    # An error here fails this call only, and the next call tries again. It must not turn the fast path off for good.
    await credentials.get_frozen_credentials()
    with _unknown_is_off(BotoCoreError, ClientError, ValueError), start_as_current_context():
        # While the SDK signs a request, it records features in this context. The User-Agent names those features.
        signer = await _signer_of(client)
        user_agent = client._user_agent_creator.to_string()
        return FastPath(client, http, credentials, signer, user_agent, guard, tell)


async def send_by_sdk(client: Any, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Send a call by the SDK's client, and return the response."""
    response: dict[str, Any] = await getattr(client, operation)(**parameters)
    return response


def json_object(content: bytes, members: Mapping[str, type] = ITEMS) -> dict[str, Any] | None:
    """Return the JSON object of a body, or None if it is no JSON object or one of ``members`` has a different type."""
    try:
        answer = orjson.loads(content)
    except ValueError:
        return None
    if isinstance(answer, dict) and all(isinstance(answer.get(name, kind()), kind) for name, kind in members.items()):
        return answer
    return None


def is_answer(response: Mapping[str, Any], model: Any) -> bool:
    """Return whether a response can be an operation's.

    It is empty, or it has a member of the operation's model, and each member that the model has is of the model's type.
    A write must not be taken for stored because a different server responded: aiohttp follows the redirect of a POST
    with a GET, for example.
    """
    shape = model.output_shape
    return not response or (any(name in shape.members for name in response) and has_shape(response, shape, ITEMS))


def _is_whole(content: bytes, crc: str | None) -> bool:
    # Not every engine sends the checksum, and the SDK does not require it either.
    return crc is None or crc == str(zlib.crc32(content))


def streamed(body: bytes) -> bytes | io.BytesIO:
    """Return a body of over 1 MiB as a stream: aiohttp sends streams in pieces, and large bytes would hold the loop.

    aiohttp warns of such bytes.
    """
    return io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body


@contextlib.contextmanager
def _unknown_is_off(*besides: type[Exception]) -> Iterator[None]:
    errors: tuple[type[Exception], ...] = (AttributeError, LookupError, TypeError, *besides)
    try:
        yield
    except errors as error:
        raise NoFastPath("the SDK's internals are not the known ones") from error


def _check_configuration(meta: Any) -> None:
    url, model = urlsplit(meta.endpoint_url), meta.service_model.metadata
    retries = meta.config.retries
    if (model["protocol"], model["jsonVersion"]) != ("json", "1.0"):
        raise NoFastPath("the SDK uses a different protocol than JSON 1.0")
    if url.path not in ("", "/") or url.query:
        raise NoFastPath("the endpoint's URL has a path or a query")
    # If one attempt is allowed, the SDK makes it. In the retry mode adaptive, the SDK must see every attempt.
    if retries.get("total_max_attempts") == 1:
        raise NoFastPath("one attempt is allowed, which the SDK makes")
    if retries["mode"] == "adaptive":
        raise NoFastPath("the SDK adapts its rate to all attempts in the retry mode adaptive")
    if meta.config.signature_version is UNSIGNED:
        raise NoFastPath("requests are not signed")


async def _aiohttp_session(client: Any) -> aiohttp.ClientSession:
    """Return the aiohttp session of a client."""
    http = client._endpoint.http_session
    if http._proxy_config.proxy_url_for(client.meta.endpoint_url):
        raise NoFastPath("the endpoint is behind a proxy")
    try:
        # A call through http.send() would take 1.25 times as long.
        session = await http._get_session(None)
    except Exception as error:
        # A certificate is missing, for example.
        raise NoFastPath("the SDK cannot make an HTTP session", fails=True) from error
    if not isinstance(session, aiohttp.ClientSession):
        raise NoFastPath("the SDK sends with a different library than aiohttp")
    return session


def _without_frames(error: BaseException) -> BaseException:
    """Return an error without its traceback, and without the error that was being handled when it was raised."""
    error.__context__ = None
    return error.with_traceback(None)


async def _signer_of(client: Any) -> Signer:
    """Return a signer for the client's region and service, which are read from a URL that the client signs.

    ``meta.region_name`` may differ: the SDK signs requests of the region "local" for us-east-1, unless an endpoint is
    configured.
    """
    signed = urlsplit(await client.generate_presigned_url("list_tables"))
    query = dict(parse_qsl(signed.query))
    if query["X-Amz-Algorithm"] != "AWS4-HMAC-SHA256":
        raise LookupError("the client has a different signer")
    region, service = query["X-Amz-Credential"].split("/")[2:4]
    return Signer(service, region, _host(client.meta.endpoint_url))


def _host(url: str) -> str:
    scheme, location = urlsplit(url)[:2]
    return location.lower().removesuffix({"https": ":443", "http": ":80"}[scheme])


def _body(parameters: dict[str, Any]) -> bytes | None:
    try:
        return orjson.dumps(parameters, default=_base64)
    except orjson.JSONEncodeError:
        return None


def _base64(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError


def _as_by_sdk(response: dict[str, Any], model: Any, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return a response with the request's id, and without the members that the model does not have.

    Binary in LastEvaluatedKey becomes bytes, as botocore has it, so that the next request can begin with this key.
    """
    response = {name: value for name, value in response.items() if name in model.output_shape.members}
    for value in (response.get("LastEvaluatedKey") or {}).values():
        if "B" in value:
            value["B"] = base64.b64decode(value["B"])
    response["ResponseMetadata"] = {"RequestId": headers.get(_REQUEST_ID, "")}
    return response
