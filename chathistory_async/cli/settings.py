"""The options that the commands share: the table, the connection, and the names of the attributes."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import aioboto3
import click
from botocore.exceptions import BotoCoreError, ProfileNotFound

from ..errors import KeySchemaError
from ..store import ChatHistoryStore
from .errors import Failed, in_own_words

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """The values of the shared options. None leaves the choice to the SDK."""

    table: str
    region: str | None
    profile: str | None
    endpoint_url: str | None
    kms_key_id: str | None
    layout: Literal["item_collection", "single_item"]
    primary_key_name: str
    sort_key_name: str
    ttl_key_name: str
    history_messages_key: str

    def store(self, *, session_index: bool = False, ttl: int | None = None) -> ChatHistoryStore:
        """Return a store with these settings.

        Raises:
            ValueError: a setting is not valid.
            Failed: there is no such profile, or the extra of encryption is not installed.
        """
        try:
            return ChatHistoryStore(
                self.table,
                endpoint_url=self.endpoint_url,
                region_name=self.region,
                boto3_session=self.session() if self.profile else None,
                kms_key_id=self.kms_key_id,
                layout=self.layout,
                primary_key_name=self.primary_key_name,
                sort_key_name=self.sort_key_name,
                ttl_key_name=self.ttl_key_name,
                history_messages_key=self.history_messages_key,
                session_index=session_index,
                ttl=ttl,
            )
        except ModuleNotFoundError as error:
            raise Failed(in_own_words(error)) from error

    def session(self) -> aioboto3.Session:
        """Return the SDK's session with the profile and the region."""
        return session_of(self.profile, self.region)

    async def store_as_indexed(self, *, ttl: int | None = None) -> ChatHistoryStore:
        """Return a store with a session index if the table has one, so that a write keeps the index correct.

        A ``Query`` of the index.
        """
        if self.layout == "single_item":
            return self.store(ttl=ttl)
        async with self.store(session_index=True) as store:
            try:
                # Any owner will do.
                await store.list_sessions("nobody", 1)
            except KeySchemaError:
                return self.store(ttl=ttl)
        return self.store(session_index=True, ttl=ttl)


def session_of(profile: str | None, region: str | None) -> aioboto3.Session:
    """Return the SDK's session with a profile and a region.

    Raises:
        Failed: there is no such profile, or the SDK's configuration cannot be read.
    """
    try:
        return aioboto3.Session(profile_name=profile, region_name=region)
    except ProfileNotFound as error:
        raise Failed(f"There is no AWS profile {profile!r}: check --profile") from error
    except BotoCoreError as error:
        raise Failed(f"The AWS SDK cannot use its configuration: {error}") from error


class SharedOption(click.Option):
    """An option of many commands. The help lists it after the command's own options."""

    def __init__(self, names: Sequence[str], **attributes: Any) -> None:
        variable = f"CHATHISTORY_{names[0].removeprefix('--').replace('-', '_').upper()}"
        super().__init__(names, envvar=variable, **attributes)


class Command(click.Command):
    """A command whose help lists the shared options last, under a heading of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in two sections."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        shared = [one for one in options if isinstance(one, SharedOption)]
        own = [one for one in options if one not in shared]
        for heading, some in (("Options", own), ("Table (also from CHATHISTORY_TABLE, ...)", shared)):
            if records := [record for one in some if (record := one.get_help_record(ctx)) is not None]:
                with formatter.section(heading):
                    formatter.write_dl(records)


shared_option = functools.partial(click.option, cls=SharedOption)
_SHARED = (
    shared_option("--table", required=True, help="The table's name or ARN."),
    shared_option("--region", help="The AWS region. Default: the SDK's choice."),
    shared_option("--profile", help="The AWS profile. Default: the SDK's choice."),
    shared_option("--endpoint-url", help="DynamoDB's endpoint. Default: the SDK's choice."),
    shared_option("--kms-key-id", help="The KMS key of the store, if it encrypts."),
    shared_option(
        "--layout",
        type=click.Choice(["item_collection", "single_item"]),
        default="item_collection",
        show_default=True,
        help="How sessions are stored.",
    ),
    shared_option("--primary-key-name", default="SessionId", show_default=True, help="The partition key."),
    shared_option("--sort-key-name", default="MessageId", show_default=True, help="The sort key."),
    shared_option("--ttl-key-name", default="expireAt", show_default=True, help="The expiry attribute."),
    shared_option("--history-messages-key", default="History", show_default=True, help="The messages attribute."),
)


def with_settings(function: Function) -> Function:
    """Add the shared options to a command, which takes their values as its first argument, a Settings."""

    @functools.wraps(function)
    def with_values(*arguments: Any, **values: Any) -> Any:
        shared = {field.name: values.pop(field.name) for field in fields(Settings)}
        # click takes an empty variable for one that is not set, and that must not switch encryption off.
        if shared["kms_key_id"] == "" or (shared["kms_key_id"] is None and "CHATHISTORY_KMS_KEY_ID" in os.environ):
            raise click.UsageError("CHATHISTORY_KMS_KEY_ID is empty: unset it to work without encryption")
        return function(Settings(**shared), *arguments, **values)

    for option in reversed(_SHARED):
        with_values = option(with_values)
    return with_values  # type: ignore[return-value]


def in_event_loop(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a command of a coroutine function."""

    @functools.wraps(function)
    def run(*arguments: Any, **values: Any) -> None:
        asyncio.run(function(*arguments, **values))

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")
