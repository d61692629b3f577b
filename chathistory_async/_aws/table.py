"""Creates and deletes the table. Reads and writes of sessions do not use this module."""

from __future__ import annotations

import contextlib
import logging
from asyncio import sleep
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .._request import Request
from ..errors import (
    AccessDeniedError,
    ChatHistoryError,
    ConfigurationError,
    KeySchemaError,
    ServiceError,
    SessionRef,
    TableNotFoundError,
)
from .calls import call, connect
from .clients import Clients
from .errors import aws_error_of

# DynamoDB creates or deletes an on-demand table in about 10 seconds. Building the index of a large table takes hours.
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.5, 15.0

_log = logging.getLogger("chathistory_async")

Schema: TypeAlias = "list[tuple[str, str]]"
Value = TypeVar("Value")


class Index(NamedTuple):
    """A global secondary index that projects all attributes. Its key attributes are strings."""

    name: str
    schema: Schema


@dataclass(frozen=True, slots=True)
class TableDescription:
    """What DynamoDB says of a table.

    Attributes:
        status: the table's status, such as "ACTIVE".
        key: the key attributes: the name, "HASH" or "RANGE", and the type of each.
        index_status: the status of the index ``SessionsByOwner``, such as "ACTIVE"; None if there is no such index.
        index_key: the key attributes of that index, in the form of ``key``.
        index_holds_all: whether that index holds all attributes, which the library needs.
        ttl_attribute: the attribute that TTL is enabled on, or None if TTL is not enabled.
        point_in_time_recovery: whether point-in-time recovery is enabled.
        kms_key_arn: the KMS key of the encryption at rest, or None for the key that AWS owns.
        items: the number of items, as counted within the last six hours.
        clock_lead_seconds: how far this host's clock is ahead of DynamoDB's, to about a second; None if the response
            had no time.
        problems: what could not be found out, by the name of the attribute, which is None: the credentials lack the
            permission, or the endpoint does not know the operation.
    """

    status: str
    key: list[tuple[str, str, str]]
    index_status: str | None
    index_key: list[tuple[str, str, str]]
    index_holds_all: bool
    ttl_attribute: str | None
    point_in_time_recovery: bool | None
    kms_key_arn: str | None
    items: int
    clock_lead_seconds: float | None
    problems: Mapping[str, ChatHistoryError]


class _Waiting:
    """Waits between polls of a table, longer each time up to 15 s, and logs each wait.

    Args:
        ref: the table.
        limit_seconds: after how many seconds to give up, or None for never.

    Raises:
        ValueError: the limit is negative.
    """

    def __init__(self, ref: SessionRef, limit_seconds: float | None) -> None:
        if limit_seconds is not None and not limit_seconds >= 0:
            raise ValueError(f"wait_seconds must be at least 0, or None, not {limit_seconds!r}")
        self._ref = ref
        self._limit_seconds = limit_seconds
        self._started = monotonic()
        self._pause_seconds = _FIRST_POLL_SECONDS

    async def go_on(self, what: str) -> None:
        """Wait until the next poll.

        Args:
            what: the state that this poll found, for the log and the error.

        Raises:
            ServiceError: ``limit_seconds`` have passed.
        """
        waited = monotonic() - self._started
        left = None if self._limit_seconds is None else self._limit_seconds - waited
        if left is not None and left <= 0:
            raise ServiceError(
                f"{what} after {waited:.0f} s of waiting. AWS continues its work: call again to wait longer, or check"
                f" with `aws dynamodb describe-table --table-name {self._ref.table_name}`",
                self._ref,
            )
        _log.info("Waiting for %s (%.0f s so far): %s", self._ref, waited, what)
        await sleep(self._pause_seconds if left is None else min(self._pause_seconds, left))
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_POLL_SECONDS)


class Table:
    """The table of a store.

    Args:
        name: the table's name.
        clients: the clients to send requests with.
        wait_seconds: how many seconds to wait for changes of the table at most, or None for no limit.
    """

    def __init__(self, name: str, clients: Clients, wait_seconds: float | None = None) -> None:
        self._name = name
        self._ref = SessionRef(name)
        self._clients = clients
        self._waiting = _Waiting(self._ref, wait_seconds)

    async def connect(self) -> None:
        """Open the running loop's client."""
        await connect(self._clients, self._ref)

    async def create(
        self,
        partition_key: str,
        sort_key: str | None,
        expiry_name: str,
        index: Index | None,
        *,
        point_in_time_recovery: bool,
        kms_key_id: str | None,
        tags: Mapping[str, str],
    ) -> None:
        """Create the table unless it exists, wait until the table and its index are active, and enable TTL.

        Raises:
            KeySchemaError: the existing table or index has a different key, or the index lacks attributes.
            ConfigurationError: the existing table has TTL on a different attribute.
            ServiceError: ``wait_seconds`` have passed, or the table is in a state that does not become active.
            ChatHistoryError: any other failure of a request.
        """
        schema = [(partition_key, "HASH")] + ([] if sort_key is None else [(sort_key, "RANGE")])
        while (description := await self._describe() or {}).get("TableStatus") not in {"ACTIVE", "UPDATING"}:
            if not description:
                await self._create(schema, index, kms_key_id, tags)
            elif description["TableStatus"] not in {"CREATING", "DELETING"}:
                raise ServiceError(f"The table is {description['TableStatus']}", self._ref)
            else:
                await self._waiting.go_on(f"the table is {description['TableStatus']}")
        self._check_key_schema("A table of this name", description, description, schema)
        if index is not None:
            await self._ensure_index(schema, index)
        await self._enable_ttl(expiry_name)
        if point_in_time_recovery:
            await self._call(
                "update_continuous_backups", PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
            )

    async def delete(self) -> None:
        """Delete the table if it exists, and wait until it is gone.

        Raises:
            ServiceError: ``wait_seconds`` have passed.
            ChatHistoryError: any other failure of a request.
        """
        description = await self._describe()
        if description is not None and description["TableStatus"] != "DELETING":
            with contextlib.suppress(TableNotFoundError):
                await self._call("delete_table")
        while description is not None and _is_same(description, await self._describe()):
            await self._waiting.go_on("the table is still there")

    async def describe(self, index: Index) -> TableDescription:
        """Return what DynamoDB says of the table and of its index.

        Raises:
            ChatHistoryError: the table cannot be described.
        """
        response = await self._call("describe_table")
        table = response["Table"]
        found = _found(table, index) or {}
        problems = dict[str, ChatHistoryError]()

        async def or_none(name: str, ask: Callable[[], Awaitable[Value]]) -> Value | None:
            try:
                return await ask()
            except (AccessDeniedError, ServiceError) as error:
                problems[name] = error
                return None

        return TableDescription(
            status=table["TableStatus"],
            key=_key_of(table, table),
            index_status=found.get("IndexStatus"),
            index_key=_key_of(table, found),
            index_holds_all=found.get("Projection", {}).get("ProjectionType") == "ALL",
            ttl_attribute=await or_none("ttl_attribute", self._ttl_attribute),
            point_in_time_recovery=await or_none("point_in_time_recovery", self._has_point_in_time_recovery),
            kms_key_arn=table.get("SSEDescription", {}).get("KMSMasterKeyArn"),
            items=table.get("ItemCount", 0),
            clock_lead_seconds=_clock_lead_seconds(response),
            problems=problems,
        )

    async def _create(
        self, schema: Schema, index: Index | None, kms_key_id: str | None, tags: Mapping[str, str]
    ) -> None:
        options: dict[str, Any] = {}
        if index is not None:
            options["GlobalSecondaryIndexes"] = [_defined(index)]
        if kms_key_id is not None:
            options["SSESpecification"] = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": kms_key_id}
        if tags:
            options["Tags"] = [{"Key": name, "Value": value} for name, value in tags.items()]
        try:
            await self._call(
                "create_table",
                KeySchema=_key_schema(schema),
                AttributeDefinitions=_attributes(schema, index),
                BillingMode="PAY_PER_REQUEST",
                **options,
            )
        except ServiceError as error:
            # Another process was faster, or the table was deleted a moment ago.
            if aws_error_of(error)[1] != "ResourceInUseException":
                raise
            await self._waiting.go_on("a table of this name is being created or deleted")

    async def _ensure_index(self, schema: Schema, index: Index) -> None:
        """Add the index to a table that lacks it, and wait until it is active."""
        while True:
            description = await self._describe() or {}
            found = _found(description, index) or {}
            if not found:
                await self._add_index(schema, index)
                await self._waiting.go_on(f"the index {index.name!r} was added")
            elif found["Projection"]["ProjectionType"] != "ALL":
                raise KeySchemaError(
                    f"An index {index.name!r} exists that does not hold all attributes: delete the index first",
                    self._ref,
                )
            elif found.get("IndexStatus") == "ACTIVE":
                return self._check_key_schema(f"An index {index.name!r}", description, found, index.schema)
            else:
                await self._waiting.go_on(_progress(description, found))

    async def _add_index(self, schema: Schema, index: Index) -> None:
        try:
            await self._call(
                "update_table",
                AttributeDefinitions=_attributes(schema, index),
                GlobalSecondaryIndexUpdates=[{"Create": _defined(index)}],
            )
        except ServiceError:
            # Another process may have been faster.
            if _found(await self._describe() or {}, index) is None:
                raise

    def _check_key_schema(
        self, what: str, table: Mapping[str, Any], description: Mapping[str, Any], schema: Schema
    ) -> None:
        there = _key_of(table, description)
        wanted = [(name, role, "S") for name, role in schema]
        if there != wanted:
            raise KeySchemaError(f"{what} exists with the key {_described(there)}, not {_described(wanted)}", self._ref)

    async def _enable_ttl(self, expiry_name: str) -> None:
        if await self._has_ttl(expiry_name):
            return
        try:
            await self._call(
                "update_time_to_live", TimeToLiveSpecification={"Enabled": True, "AttributeName": expiry_name}
            )
        except ServiceError:
            # Another process may have been faster ("TimeToLive is already enabled").
            if not await self._has_ttl(expiry_name):
                raise

    async def _has_ttl(self, expiry_name: str) -> bool:
        attribute = await self._ttl_attribute()
        if attribute not in (None, expiry_name):
            raise ConfigurationError(
                f"The table's TTL is on the attribute {attribute!r}, not on {expiry_name!r}", self._ref
            )
        return attribute is not None

    async def _ttl_attribute(self) -> str | None:
        description = (await self._call("describe_time_to_live"))["TimeToLiveDescription"]
        is_enabled = description["TimeToLiveStatus"] in ("ENABLED", "ENABLING")
        attribute: str | None = description["AttributeName"] if is_enabled else None
        return attribute

    async def _has_point_in_time_recovery(self) -> bool:
        description = (await self._call("describe_continuous_backups")).get("ContinuousBackupsDescription", {})
        recovery = description.get("PointInTimeRecoveryDescription", {})
        return bool(recovery.get("PointInTimeRecoveryStatus") == "ENABLED")

    async def _describe(self) -> dict[str, Any] | None:
        try:
            description: dict[str, Any] = (await self._call("describe_table"))["Table"]
        except TableNotFoundError:
            return None
        return description

    async def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return await call(self._clients, Request(operation, {"TableName": self._name, **parameters}), self._ref)


def _key_schema(schema: Schema) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": role} for name, role in schema]


def _attributes(schema: Schema, index: Index | None) -> list[dict[str, str]]:
    keys = [*schema, *(index.schema if index is not None else ())]
    return [{"AttributeName": name, "AttributeType": "S"} for name, _ in keys]


def _key_of(table: Mapping[str, Any], description: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the key of the table, or of one of its indexes: the name, role and type of each attribute."""
    types = {part["AttributeName"]: part["AttributeType"] for part in table["AttributeDefinitions"]}
    return [
        (part["AttributeName"], part["KeyType"], types[part["AttributeName"]])
        for part in description.get("KeySchema", ())
    ]


def _clock_lead_seconds(response: Mapping[str, Any]) -> float | None:
    sent = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return None if sent is None else time() - parsedate_to_datetime(sent).timestamp()
    except ValueError:
        return None


def _defined(index: Index) -> dict[str, Any]:
    return {
        "IndexName": index.name,
        "KeySchema": _key_schema(index.schema),
        "Projection": {"ProjectionType": "ALL"},
    }


def _found(table: Mapping[str, Any], index: Index) -> dict[str, Any] | None:
    for description in table.get("GlobalSecondaryIndexes", ()):
        if description["IndexName"] == index.name:
            found: dict[str, Any] = description
            return found
    return None


def _is_same(table: Mapping[str, Any], there: Mapping[str, Any] | None) -> bool:
    # A new table of this name may have been created since.
    return there is not None and there.get("TableId") == table.get("TableId")


def _progress(table: Mapping[str, Any], index: Mapping[str, Any]) -> str:
    backfills = ": AWS fills it with the table's items" if index.get("Backfilling") else ""
    return (
        f"the index {index['IndexName']!r} is {index.get('IndexStatus')}{backfills}"
        f" (the table has {table.get('ItemCount', 0):,} items, as counted within the last six hours)"
    )


def _described(schema: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} ({role}, {kind})" for name, role, kind in schema)
