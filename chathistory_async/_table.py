"""Creating and deleting the table; not used at run time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from ._calls import Request, call, connect
from ._clients import Clients
from .errors import ConfigurationError, KeySchemaError, Place, ServiceError, TableNotFoundError

# DynamoDB makes and drops an on-demand table in about 10 seconds.
_POLL_SECONDS = 0.5
_POLLS = 600

Schema: TypeAlias = "list[tuple[str, str]]"


class Index(NamedTuple):
    """A global secondary index with all attributes, of which the keys are text."""

    name: str
    schema: Schema


class Table:
    """The table of a store."""

    def __init__(self, name: str, clients: Clients) -> None:
        self._name = name
        self._place = Place(name)
        self._clients = clients

    async def connect(self) -> None:
        """Open the running loop's client."""
        await connect(self._clients, self._place)

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
        """Create the table unless it exists, wait until it and its index are active, and enable TTL."""
        schema = [(partition_key, "HASH")] + ([] if sort_key is None else [(sort_key, "RANGE")])
        if await self._describe() is None:
            await self._create(schema, index, kms_key_id, tags)
        description = await self._when("ACTIVE", "UPDATING")
        self._check_key_schema("A table of this name", description, description, schema)
        if index is not None:
            await self._ensure_index(schema, index)
        await self._enable_ttl(expiry_name)
        if point_in_time_recovery:
            await self._call(
                "update_continuous_backups", PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
            )

    async def delete(self) -> None:
        """Delete the table if it exists and wait until it is gone."""
        description = await self._describe()
        if description is not None and description["TableStatus"] != "DELETING":
            with contextlib.suppress(TableNotFoundError):
                await self._call("delete_table")
        await self._when(None)

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
        except ServiceError:
            # Another process may have been faster (ResourceInUseException).
            if await self._describe() is None:
                raise

    async def _ensure_index(self, schema: Schema, index: Index) -> None:
        """Add the index to a table that lacks it, and wait until it is active."""
        description = await self._describe() or {}
        if _found(description, index) is None:
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
        for _ in range(_POLLS):
            description = await self._describe() or {}
            found = _found(description, index) or {}
            if found and found["Projection"]["ProjectionType"] != "ALL":
                raise KeySchemaError(
                    f"An index {index.name!r} exists that does not hold all attributes: delete it first", self._place
                )
            if found.get("IndexStatus") == "ACTIVE":
                return self._check_key_schema(f"An index {index.name!r}", description, found, index.schema)
            await asyncio.sleep(_POLL_SECONDS)
        raise ServiceError(f"The index is still not active after {_POLLS * _POLL_SECONDS:.0f} s", self._place)

    def _check_key_schema(
        self, what: str, table: Mapping[str, Any], description: Mapping[str, Any], schema: Schema
    ) -> None:
        types = {part["AttributeName"]: part["AttributeType"] for part in table["AttributeDefinitions"]}
        there = [
            (part["AttributeName"], part["KeyType"], types[part["AttributeName"]]) for part in description["KeySchema"]
        ]
        wanted = [(name, role, "S") for name, role in schema]
        if there != wanted:
            raise KeySchemaError(
                f"{what} exists with the key {_described(there)}, not {_described(wanted)}", self._place
            )

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
        description = (await self._call("describe_time_to_live"))["TimeToLiveDescription"]
        if description["TimeToLiveStatus"] not in ("ENABLED", "ENABLING"):
            return False
        if description["AttributeName"] != expiry_name:
            raise ConfigurationError(
                f"The table's TTL is on the attribute {description['AttributeName']!r}, not on {expiry_name!r}",
                self._place,
            )
        return True

    async def _when(self, *statuses: str | None) -> dict[str, Any]:
        """Wait until the table has one of these statuses, None for its absence."""
        for _ in range(_POLLS):
            description = await self._describe() or {"TableStatus": None}
            if description["TableStatus"] in statuses:
                return description
            await asyncio.sleep(_POLL_SECONDS)
        raise ServiceError(
            f"The table is still not {statuses[0] or 'gone'} after {_POLLS * _POLL_SECONDS:.0f} s", self._place
        )

    async def _describe(self) -> dict[str, Any] | None:
        try:
            description: dict[str, Any] = (await self._call("describe_table"))["Table"]
        except TableNotFoundError:
            return None
        return description

    async def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return await call(self._clients, Request(operation, {"TableName": self._name, **parameters}), self._place)


def _key_schema(schema: Schema) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": role} for name, role in schema]


def _attributes(schema: Schema, index: Index | None) -> list[dict[str, str]]:
    keys = [*schema, *(index.schema if index is not None else ())]
    return [{"AttributeName": name, "AttributeType": "S"} for name, _ in keys]


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


def _described(schema: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} ({role}, {kind})" for name, role, kind in schema)
