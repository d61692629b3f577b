"""Clients that are measured by a put alone: those with a core in Rust, and AWS's own for asyncio.

They have wheels for Python 3.12 and newer. On an older Python there are none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Any

from .messages import session_of
from .variants import ITEM_COLLECTION, OPERATIONS, Sender, Target, new_sort_key

DYNAMOXY = "dynamoxy"
PYDYNOX = "pydynox"
AWS_SDK = "aws-sdk-dynamodb"

_CREDENTIAL = "benchmark"


@asynccontextmanager
async def open_put_senders(target: Target) -> AsyncIterator[dict[str, Sender]]:
    """Open these clients, by name; each sends puts and nothing else."""
    if find_spec("dynamoxy") is None:
        yield {}
        return
    async with AsyncExitStack() as stack:
        yield {
            DYNAMOXY: await stack.enter_async_context(_dynamoxy(target)),
            PYDYNOX: _Pydynox(target),
            AWS_SDK: await stack.enter_async_context(_aws_sdk(target)),
        }


@asynccontextmanager
async def _dynamoxy(target: Target) -> AsyncIterator[_Dynamoxy]:
    import dynamoxy

    client = dynamoxy.Client(
        region=os.environ["AWS_DEFAULT_REGION"],
        endpoint_url=target.url,
        credentials=dynamoxy.Credentials(_CREDENTIAL, _CREDENTIAL),
        # Both cost time, and none of the others has them.
        telemetry=None,
        consumed_capacity="NONE",
    )
    async with client:
        yield _Dynamoxy(client.table(target.tables[ITEM_COLLECTION]))


class _Dynamoxy:
    def __init__(self, table: Any) -> None:
        self._table = table

    async def send(self, operation: str, text: str) -> object:
        """Put an item."""
        return await self._table.put(_plain_item(text))


class _Pydynox:
    def __init__(self, target: Target) -> None:
        from pydynox import DynamoDBClient

        self._table = target.tables[ITEM_COLLECTION]
        self._client = DynamoDBClient(
            region=os.environ["AWS_DEFAULT_REGION"],
            access_key=_CREDENTIAL,
            secret_key=_CREDENTIAL,
            endpoint_url=target.url,
        )

    async def send(self, operation: str, text: str) -> object:
        """Put an item."""
        return await self._client.put_item(self._table, _plain_item(text))


@asynccontextmanager
async def _aws_sdk(target: Target) -> AsyncIterator[_AwsSdk]:
    from aws_sdk_dynamodb.client import AsyncDynamoDBClient
    from aws_sdk_dynamodb.config import AsyncDynamoDBConfig

    config = await AsyncDynamoDBConfig.resolve(
        region=os.environ["AWS_DEFAULT_REGION"],
        endpoint_uri=target.url,
        aws_access_key_id=_CREDENTIAL,
        aws_secret_access_key=_CREDENTIAL,
    )
    async with AsyncDynamoDBClient(config) as client:
        yield _AwsSdk(client, target.tables[ITEM_COLLECTION])


class _AwsSdk:
    def __init__(self, client: Any, table: str) -> None:
        from aws_sdk_dynamodb import models

        self._models = models
        self._client = client
        self._table = table

    async def send(self, operation: str, text: str) -> object:
        """Put an item."""
        values = {name: self._models.AttributeValueS(value) for name, value in _plain_item(text).items()}
        return await self._client.put_item(self._models.PutItemInput(table_name=self._table, item=values))


def _plain_item(text: str) -> dict[str, str]:
    return {"SessionId": session_of(OPERATIONS["put_item"]), "MessageId": new_sort_key(), "History": text}
