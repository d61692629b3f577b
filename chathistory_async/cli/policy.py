"""IAM policies with the permissions that the library needs, and no others."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from .._codec.keys import escaped
from .._session_index.owner_index import INDEX_NAME
from .settings import Command, Settings, with_settings

# The operations of a session. IAM has no action for a transaction: each of its writes needs its own action.
_COLLECTION = ("GetItem", "Query", "PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem")
_SINGLE_ITEM = ("GetItem", "UpdateItem", "DeleteItem")
_ADMIN = (
    "DescribeTable",
    "CreateTable",
    "UpdateTable",
    "DescribeTimeToLive",
    "UpdateTimeToLive",
    "DescribeContinuousBackups",
    "UpdateContinuousBackups",
)
_SOURCE = ("GetItem", "Scan")
_TARGET = ("GetItem", "Query", "PutItem")
_ENCRYPTS = ("GenerateDataKey", "Decrypt")
_TABLE_ARN = re.compile(r"arn:([^:]+):dynamodb:([^:]+):([^:]+):table/[^:/]+")
_KEY_ARN = re.compile(r"arn:[a-z-]+:kms:[a-z0-9-]+:\d{12}:key/.+")


class Place(NamedTuple):
    """Where the resources are: the parts of their ARNs. A * stands for any."""

    partition: str
    region: str
    account: str

    def arn(self, service: str, resource: str) -> str:
        """Return the ARN of a resource."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"


@click.command(cls=Command, short_help="Print an IAM policy with the least privileges.")
@click.option(
    "--mode",
    type=click.Choice(["runtime", "tenant", "migrate", "admin"]),
    default="runtime",
    show_default=True,
    help="For an application; for one tenant of it; for migrate; for create-table and doctor.",
)
@click.option("--session-index", is_flag=True, help="The store has a session index.")
@click.option("--account-id", default="*", show_default=True, help="The AWS account of the table and the KMS key.")
@click.option(
    "--tenant",
    default="${aws:PrincipalTag/tenant}",
    show_default=True,
    help="With --mode tenant: the first id of each key and owner.",
)
@click.option("--source-table", help="With --mode migrate: the table of single items.")
@click.option("--source-kms-key-id", help="With --mode migrate: the KMS key of the source's messages.")
@click.option("--delete-source", is_flag=True, help="With --mode migrate: for --delete-source.")
@with_settings
def policy(
    settings: Settings,
    mode: str,
    session_index: bool,
    account_id: str,
    tenant: str,
    source_table: str | None,
    source_kms_key_id: str | None,
    delete_source: bool,
) -> None:
    """Print an IAM policy as JSON. With --kms-key-id it has a statement for KMS.

    Give --region and --account-id, or the policy names any of them. The policy for a tenant limits the keys of sessions
    and the owners to those that begin with the tenant's id and #.
    """
    if (mode == "migrate") != (source_table is not None):
        raise click.UsageError("--mode migrate needs --source-table, and no other mode takes it")
    if settings.layout == "single_item" and (session_index or mode == "migrate"):
        raise click.UsageError("--session-index and --mode migrate need --layout item_collection")
    place = _place(settings, account_id)
    table, index = _table_arns(place, settings.table)
    actions = {"migrate": _TARGET, "admin": _ADMIN}.get(
        mode, _SINGLE_ITEM if settings.layout == "single_item" else _COLLECTION
    )
    if mode == "migrate" and session_index:
        actions = (*actions, "UpdateItem")
    condition = None
    if mode == "tenant":
        # An id's own * and ? would stand for other tenants' ids.
        literal = re.sub(r"[*?]", r"${\g<0>}", escaped(tenant))
        condition = {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": [f"{literal}#*"]}}
    statements = [_statement("Table", "dynamodb", actions, table, condition)]
    if session_index and mode != "admin":
        statements.append(_statement("SessionIndex", "dynamodb", ("Query",), index, condition))
    if settings.kms_key_id is not None:
        statements.append(_of_kms("Encryption", place, settings.kms_key_id, _ENCRYPTS, settings.table))
    if source_table is not None:
        source = (*_SOURCE, "DeleteItem") if delete_source else _SOURCE
        statements.append(_statement("Source", "dynamodb", source, _table_arns(place, source_table)[0]))
    if source_table is not None and source_kms_key_id is not None:
        statements.append(_of_kms("SourceEncryption", place, source_kms_key_id, ("Decrypt",), source_table))
    click.echo(json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2))


def _place(settings: Settings, account_id: str) -> Place:
    if settings.table.startswith("arn:"):
        return Place(*_parsed(settings.table).groups())
    region = settings.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "*"
    partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
    return Place(partition, region, account_id)


def _table_arns(place: Place, table: str) -> tuple[str, str]:
    """Return the ARNs of a table and of its session index."""
    arn = _parsed(table)[0] if table.startswith("arn:") else place.arn("dynamodb", f"table/{table}")
    return arn, f"{arn}/index/{INDEX_NAME}"


def _parsed(arn: str) -> re.Match[str]:
    found = _TABLE_ARN.fullmatch(arn)
    if found is None:
        raise click.UsageError(f"{arn!r} is not the ARN of a table")
    return found


def _statement(
    sid: str, service: str, actions: Sequence[str], resource: str, condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    allowed = [f"{service}:{action}" for action in actions]
    statement = {"Sid": sid, "Effect": "Allow", "Action": allowed, "Resource": resource}
    return statement if condition is None else {**statement, "Condition": condition}


def _of_kms(sid: str, place: Place, key_id: str, actions: Sequence[str], table: str) -> dict[str, Any]:
    """Return the statement for a KMS key, limited to the encryption context of the table."""
    condition: dict[str, Any] = {"StringEquals": {"kms:EncryptionContext:table": table.rpartition("/")[2]}}
    *_, alias = key_id.partition("alias/")
    if alias:
        # A policy cannot name a key by its alias, but can require that the key has it.
        condition["ForAnyValue:StringEquals"] = {"kms:ResourceAliases": f"alias/{alias}"}
        return _statement(sid, "kms", actions, place.arn("kms", "key/*"), condition)
    arn = key_id if _KEY_ARN.fullmatch(key_id) else place.arn("kms", f"key/{key_id}")
    return _statement(sid, "kms", actions, arn, condition)
