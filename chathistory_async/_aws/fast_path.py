"""A lean path through the SDK: the first attempt of a call to DynamoDB, beside the client that the SDK makes.

A request is serialised by orjson, signed by ``_signing`` with the SDK's credentials, and sent on the aiohttp session
that the SDK made for its client, with its pool, TLS and time-outs. An answer is taken only where it is DynamoDB's
beyond doubt: a success, or the refusal of a condition or a transaction, after which nothing is stored. Whatever else
happens is left to the SDK's client, with its errors and retries.

A put takes 0.28 of the CPU of a plain aioboto3 client, an update 0.27, a get 0.27 and a query of 20 items 0.26; and
0.74, 0.68, 0.75 and 0.67 of that of aiodynamo (medians of 30 paired ratios, against a server of canned answers on the
same core; aioboto3 15.5.0 without awscrt, aiodynamo 26.4, CPython 3.11). See ``benchmarks/``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
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

from .answers import has_shape
from .fast_path_guard import Guard
from .signing import Signer

# Those of chats. BatchWriteItem is not: what it hands back unprocessed would be base64 text where botocore takes bytes.
_OPERATIONS = {"put_item", "update_item", "delete_item", "get_item", "query", "transact_write_items"}
# What stays as in the JSON: botocore's walk over an item of 1,000 messages holds the loop for 30 to 85 ms; orjson takes
# 2 to 5.
ITEMS: Mapping[str, type] = {"Item": dict, "Items": list}
# After which nothing is stored, and the SDK would not try again.
_FINAL_ERRORS = {
    "ConditionalCheckFailedException",
    "ResourceNotFoundException",
    "TransactionCanceledException",
    "TransactionConflictException",
    "ValidationException",
}
# The SDK's own wait before a second attempt is 50 ms.
_LONGEST_PAUSE_SECONDS = 0.1
# Who is throttled, or failing, is left to the SDK's back-off, and tried again at different times by different hosts.
CLOSED_SECONDS = (0.5, 1.5)
_LARGE_BODY_BYTES = 2**20


class NoFastPath(Exception):
    """There is no fast path beside a client; the text says why.

    Attributes:
        fails: whether the SDK's own attempt fails for the same reason, and tells of it.
    """

    def __init__(self, reason: str, *, fails: bool = False) -> None:
        super().__init__(reason)
        self.fails = fails


class FastPath:
    """The lean path beside one client.

    Args:
        client: the SDK's client of DynamoDB.
        http: what that client sends with.
        credentials: the client's, which refresh themselves.
        signer: signs as the client does.
        user_agent: the client's.
        guard: looks for what watches or replaces the client.
        tell: is told why a call does not take this path, at each call.
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
        # As the SDK does: aiohttp would ask for compression, and DynamoDB's checksum is of what it sends.
        self._headers = {"accept-encoding": "identity", "user-agent": user_agent}
        names = _api_names(client)
        self._models = {name: meta.service_model.operation_model(api_name) for name, api_name in names.items()}
        self._target_prefix = meta.service_model.metadata["targetPrefix"]
        self._opens_at = 0.0
        self._is_known = True

    def off(self) -> str | None:
        """Return why no call takes this path now, None where calls do."""
        return self._guard.found() if self._is_known else "aiohttp has another form than the one that is known"

    async def send(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return DynamoDB's response to a call; of the SDK's metadata, errors have the most and a success has none.

        Raises:
            botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, ValueError: as the SDK does.
        """
        is_open = operation in _OPERATIONS and time.monotonic() >= self._opens_at and not self._is_off()
        body = _body(parameters) if is_open else None
        if body is None:
            return await send_by_sdk(self._client, operation, parameters)
        response = await self._attempt(self._models[operation], body)
        if response is not None:
            return response
        self._opens_at = max(self._opens_at, time.monotonic() + random.uniform(*CLOSED_SECONDS))
        await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))
        try:
            return await send_by_sdk(self._client, operation, parameters)
        except ClientError as error:
            # There was one attempt more, which may have been stored: so whoever asks for retries must be told.
            metadata = error.response["ResponseMetadata"]
            metadata["RetryAttempts"] = metadata.get("RetryAttempts", 0) + 1
            raise

    def _is_off(self) -> bool:
        reason = self.off()
        if reason is not None:
            self._tell(reason)
        return reason is not None

    async def _attempt(self, model: Any, body: bytes) -> dict[str, Any] | None:
        """Send a request once, and return the response, None where there is none that can be taken."""
        try:
            answer = await self._exchange(f"{self._target_prefix}.{model.name}", body)
        except Exception:
            # The credentials cannot be refreshed.
            raise
        except BaseException as error:  # noqa: BLE001  # it is raised again
            raise _without_frames(error) from None
        if answer is None:
            return None
        status, answer_headers, content = answer
        response = json_object(content)
        if response is None or not _is_whole(content, answer_headers.get("x-amz-crc32")):
            return None
        if status == 200:
            return _as_by_sdk(response, model) if is_answer(response, model) else None
        code = str(response.pop("__type", "")).rpartition("#")[2]
        if status == 400 and code in _FINAL_ERRORS:
            raise self._final_error(code, model.name, response, answer_headers)
        return None

    async def _exchange(self, target: str, body: bytes) -> tuple[int, Mapping[str, str], bytes] | None:
        """Send a request once, and return the answer's status, headers and content, None where there is none.

        Credentials are in no local variable but of the frames from here on. Only an error of the credentials' own, and
        what ends a task, leaves this function: trackers of errors record the locals of a traceback.
        """
        credentials = await self._credentials.get_frozen_credentials()
        try:
            headers = self._signer.headers(credentials, target, body) | self._headers
            answer = await self._http.post(self._url, data=streamed(body), headers=headers, allow_redirects=False)
            return answer.status, answer.headers, await answer.read()
        except (AttributeError, TypeError):
            # What is not the aiohttp that is known would fail each time, and after it has sent.
            self._is_known = False
            return None
        except Exception:  # noqa: BLE001  # the SDK's own attempt tells of it, or does better
            return None

    def _final_error(self, code: str, name: str, response: dict[str, Any], headers: Mapping[str, str]) -> ClientError:
        metadata = {
            "RequestId": headers.get("x-amzn-requestid", ""),
            "HTTPStatusCode": 400,
            # Their names in lower case, as the SDK has them.
            "HTTPHeaders": {header.lower(): value for header, value in headers.items()},
            "RetryAttempts": 0,
        }
        text = response.get("message", response.get("Message", ""))
        kind: type[ClientError] = self._client.exceptions.from_code(code)
        # Of an error that has no class of its own the SDK keeps no more than its code and text.
        members = {} if kind is ClientError else response
        answer: Any = members | {"Error": {"Message": text, "Code": code}, "ResponseMetadata": metadata}
        return kind(answer, name)


async def fast_path_beside(client: Any, session: Any, tell: Callable[[str], None]) -> FastPath:
    """Return the fast path beside a client.

    Args:
        client: the SDK's client of DynamoDB.
        session: the asynchronous session that made the client.
        tell: as for ``FastPath``.

    Raises:
        NoFastPath: something watches or replaces the client, or the SDK or its configuration is not of the form that is
            known.
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError: the credentials cannot be refreshed.
    """
    with _unknown_is_off():
        _check_configuration(client.meta)
        guard = Guard(client, _api_names(client).values())
        if found := guard.found():
            raise NoFastPath(found)
        http = await _aiohttp_session(client)
        credentials = await session.get_credentials()
    if credentials is None:
        raise NoFastPath("there are no credentials")
    # What fails here fails this call, and the next one tries again: it must not keep the fast path off for good.
    await credentials.get_frozen_credentials()
    # What the SDK notes of a request while it signs one is part of its User-Agent.
    with _unknown_is_off(BotoCoreError, ClientError, ValueError), start_as_current_context():
        signer = await _signer_of(client)
        user_agent = client._user_agent_creator.to_string()
        return FastPath(client, http, credentials, signer, user_agent, guard, tell)


async def send_by_sdk(client: Any, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a call of the SDK's client."""
    response: dict[str, Any] = await getattr(client, operation)(**parameters)
    return response


def json_object(content: bytes, members: Mapping[str, type] = ITEMS) -> dict[str, Any] | None:
    """Return the JSON object that an answer is, None where it is none or a member is of another type."""
    try:
        answer = orjson.loads(content)
    except ValueError:
        return None
    if isinstance(answer, dict) and all(isinstance(answer.get(name, kind()), kind) for name, kind in members.items()):
        return answer
    return None


def is_answer(response: Mapping[str, Any], model: Any) -> bool:
    """Tell whether a response can be an operation's: empty, or with a member that it has, and each of the model's type.

    aiohttp follows a redirect of a POST with a GET, and what answers to that knows nothing of the write.
    """
    shape = model.output_shape
    return not response or (any(name in shape.members for name in response) and has_shape(response, shape, ITEMS))


def _is_whole(content: bytes, crc: str | None) -> bool:
    # Not every engine sends the checksum; the SDK does not ask for it either.
    return crc is None or crc == str(zlib.crc32(content))


def streamed(body: bytes) -> bytes | io.BytesIO:
    """Have aiohttp send a large body piece by piece: it warns of bytes of over a megabyte, which hold the loop."""
    return io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body


@contextlib.contextmanager
def _unknown_is_off(*besides: type[Exception]) -> Iterator[None]:
    errors: tuple[type[Exception], ...] = (AttributeError, LookupError, TypeError, *besides)
    try:
        yield
    except errors as error:
        raise NoFastPath("the SDK has another form than the one that is known") from error


def _check_configuration(meta: Any) -> None:
    url, model = urlsplit(meta.endpoint_url), meta.service_model.metadata
    retries = meta.config.retries
    if (model["protocol"], model["jsonVersion"]) != ("json", "1.0"):
        raise NoFastPath("the SDK speaks another protocol than JSON 1.0")
    if url.path not in ("", "/") or url.query:
        raise NoFastPath("the endpoint's URL has a path or a query")
    # Whoever allows one attempt has it made by the SDK; and that counts on knowing all of them to adapt its rate.
    if retries.get("total_max_attempts") == 1:
        raise NoFastPath("one attempt is allowed, which the SDK makes")
    if retries["mode"] == "adaptive":
        raise NoFastPath("the SDK adapts its rate to all attempts in the retry mode adaptive")
    if meta.config.signature_version is UNSIGNED:
        raise NoFastPath("requests are not signed")


async def _aiohttp_session(client: Any) -> aiohttp.ClientSession:
    """Return what a client sends with."""
    http = client._endpoint.http_session
    if http._proxy_config.proxy_url_for(client.meta.endpoint_url):
        raise NoFastPath("the endpoint is behind a proxy")
    try:
        # Through its own send() a call takes 1.25 times as long.
        session = await http._get_session(None)
    except Exception as error:
        # Such as for a certificate that is not there.
        raise NoFastPath("the SDK cannot make an HTTP session", fails=True) from error
    if not isinstance(session, aiohttp.ClientSession):
        raise NoFastPath("the SDK sends by another library than aiohttp")
    return session


def _api_names(client: Any) -> dict[str, str]:
    return {name: client.meta.method_to_api_mapping[name] for name in _OPERATIONS}


def _without_frames(error: BaseException) -> BaseException:
    """Return an error without the frames that it has passed, and without errors from there."""
    error.__context__ = None
    return error.with_traceback(None)


async def _signer_of(client: Any) -> Signer:
    """Return a signer for the region and service that the SDK's client signs for, as a URL that it signs tells."""
    signed = urlsplit(await client.generate_presigned_url("list_tables"))
    query = dict(parse_qsl(signed.query))
    if query["X-Amz-Algorithm"] != "AWS4-HMAC-SHA256":
        raise LookupError("the client has another signer")
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


def _as_by_sdk(response: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return a response without members that the model does not have.

    Its last key can be the start of the next request, as botocore has it: binary is bytes.
    """
    response = {name: value for name, value in response.items() if name in model.output_shape.members}
    for value in (response.get("LastEvaluatedKey") or {}).values():
        if "B" in value:
            value["B"] = base64.b64decode(value["B"])
    return response
