"""Creating and deleting the table; not used at run time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from ._calls import Request, call, connect
from ._clients import Clients
from .errors import ConfigurationError, KeySchemaError, Place, ServiceError, TableNotFoundError

# DynamoDB makes and drops an on-demand table in about 10 seconds.
_POLL_SECONDS = 0.5
_POLLS = 600

Schema: TypeAlias = "list[tuple[str, str]]"


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
        *,
        point_in_time_recovery: bool,
        kms_key_id: str | None,
        tags: Mapping[str, str],
    ) -> None:
        """Create the table unless it exists, wait until it is active, and enable TTL."""
        schema = [(partition_key, "HASH")] + ([] if sort_key is None else [(sort_key, "RANGE")])
        if await self._describe() is None:
            await self._create(schema, kms_key_id, tags)
        description = await self._when("ACTIVE", "UPDATING")
        self._check_key_schema(description, schema)
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

    async def _create(self, schema: Schema, kms_key_id: str | None, tags: Mapping[str, str]) -> None:
        options: dict[str, Any] = {}
        if kms_key_id is not None:
            options["SSESpecification"] = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": kms_key_id}
        if tags:
            options["Tags"] = [{"Key": name, "Value": value} for name, value in tags.items()]
        try:
            await self._call(
                "create_table",
                KeySchema=[{"AttributeName": name, "KeyType": role} for name, role in schema],
                AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name, _ in schema],
                BillingMode="PAY_PER_REQUEST",
                **options,
            )
        except ServiceError:
            # Another process may have been faster (ResourceInUseException).
            if await self._describe() is None:
                raise

    def _check_key_schema(self, description: dict[str, Any], schema: Schema) -> None:
        types = {part["AttributeName"]: part["AttributeType"] for part in description["AttributeDefinitions"]}
        there = [
            (part["AttributeName"], part["KeyType"], types[part["AttributeName"]]) for part in description["KeySchema"]
        ]
        wanted = [(name, role, "S") for name, role in schema]
        if there != wanted:
            raise KeySchemaError(
                f"A table of this name exists with the key {_described(there)}, not {_described(wanted)}", self._place
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


def _described(schema: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} ({role}, {kind})" for name, role, kind in schema)
