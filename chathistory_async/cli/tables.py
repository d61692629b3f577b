"""The table: creating it, and templates of it."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from .._session_index.owner_index import INDEX_NAME, KEY_SCHEMA
from .output import in_one_line, progress, write_json
from .settings import Command, Settings, as_json, in_event_loop, with_settings


@click.command("create-table", cls=Command, short_help="Create the table, or print a template of it.")
@click.option("--session-index", is_flag=True, help="With the index that lists sessions by owner.")
@click.option("--point-in-time-recovery", is_flag=True, help="Enable point-in-time recovery.")
@click.option("--table-kms-key-id", help="A KMS key for the encryption at rest. Default: the key that AWS owns.")
@click.option(
    "--print",
    "template",
    type=click.Choice(["cloudformation", "terraform", "cdk-json"]),
    help="Create nothing, and print a template: of CloudFormation, of Terraform, or the properties of CDK's CfnTable.",
)
@as_json
@with_settings
@in_event_loop
async def create_table(
    settings: Settings,
    session_index: bool,
    point_in_time_recovery: bool,
    table_kms_key_id: str | None,
    template: str | None,
    as_json: bool,
) -> None:
    """Create the table, billed on demand, and enable TTL.

    If the table exists, only what is missing is added: TTL, the index and point-in-time recovery. AWS may take hours to
    build the index of a large table.
    """
    # Made also for a template, because it checks the names.
    store = settings.store(session_index=session_index)
    if template is not None:
        properties = _properties(settings, session_index, point_in_time_recovery, table_kms_key_id)
        click.echo(_TEMPLATES[template](properties))
        return
    async with store:
        with progress("Creating the table", None):
            await store.create_table(point_in_time_recovery=point_in_time_recovery, table_kms_key_id=table_kms_key_id)
    if as_json:
        write_json({"table": settings.table, "session_index": session_index})
    else:
        click.echo(f"The table {in_one_line(settings.table)} is ready.")


def _properties(
    settings: Settings, session_index: bool, point_in_time_recovery: bool, kms_key_id: str | None
) -> dict[str, Any]:
    """Return the properties of CloudFormation's AWS::DynamoDB::Table."""
    schema = [(settings.primary_key_name, "HASH")]
    if settings.layout == "item_collection":
        schema.append((settings.sort_key_name, "RANGE"))
    indexes = [(INDEX_NAME, KEY_SCHEMA)] if session_index else []
    names = [name for one in (schema, *(keys for _, keys in indexes)) for name, _ in one]
    properties: dict[str, Any] = {
        "TableName": settings.table.rpartition("/")[2],
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in names],
        "KeySchema": _key(schema),
        "TimeToLiveSpecification": {"AttributeName": settings.ttl_key_name, "Enabled": True},
    }
    if indexes:
        properties["GlobalSecondaryIndexes"] = [
            {"IndexName": name, "KeySchema": _key(keys), "Projection": {"ProjectionType": "ALL"}}
            for name, keys in indexes
        ]
    if point_in_time_recovery:
        properties["PointInTimeRecoverySpecification"] = {"PointInTimeRecoveryEnabled": True}
    if kms_key_id is not None:
        properties["SSESpecification"] = {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": kms_key_id}
    return properties


def _key(schema: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": role} for name, role in schema]


def _cloudformation(properties: dict[str, Any]) -> str:
    resource = {
        "Type": "AWS::DynamoDB::Table",
        # A deleted or replaced stack must not delete the conversations.
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": properties,
    }
    return json.dumps({"AWSTemplateFormatVersion": "2010-09-09", "Resources": {"ChatHistory": resource}}, indent=2)


def _cdk(properties: dict[str, Any]) -> str:
    return json.dumps(_camel_case(properties), indent=2)


def _camel_case(value: Any) -> Any:
    """Return properties with the names of CDK: those of CloudFormation, with the first word in lower case."""
    if isinstance(value, list):
        return [_camel_case(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        re.sub("^([A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]*)", lambda word: word[0].lower(), name): _camel_case(one)
        for name, one in value.items()
    }


def _terraform(properties: dict[str, Any]) -> str:
    keys = {part["KeyType"]: part["AttributeName"] for part in properties["KeySchema"]}
    lines = [
        'resource "aws_dynamodb_table" "chat_history" {',
        f"  name         = {_hcl(properties['TableName'])}",
        f"  billing_mode = {_hcl(properties['BillingMode'])}",
        f"  hash_key     = {_hcl(keys['HASH'])}",
        *([f"  range_key    = {_hcl(keys['RANGE'])}"] if "RANGE" in keys else []),
    ]
    for attribute in properties["AttributeDefinitions"]:
        lines += _block("attribute", name=attribute["AttributeName"], type=attribute["AttributeType"])
    for index in properties.get("GlobalSecondaryIndexes", ()):
        parts = {part["KeyType"]: part["AttributeName"] for part in index["KeySchema"]}
        lines += _block(
            "global_secondary_index",
            name=index["IndexName"],
            hash_key=parts["HASH"],
            range_key=parts["RANGE"],
            projection_type=index["Projection"]["ProjectionType"],
        )
    lines += _block("ttl", attribute_name=properties["TimeToLiveSpecification"]["AttributeName"], enabled=True)
    if "PointInTimeRecoverySpecification" in properties:
        lines += _block("point_in_time_recovery", enabled=True)
    if "SSESpecification" in properties:
        key = properties["SSESpecification"]["KMSMasterKeyId"]
        if not key.startswith("arn:"):
            raise click.UsageError("Terraform needs the ARN of the key: pass it as --table-kms-key-id")
        lines += _block("server_side_encryption", enabled=True, kms_key_arn=key)
    lines += ["", "  lifecycle {", "    prevent_destroy = true", "  }", "}"]
    return "\n".join(lines)


def _block(block_name: str, **values: str | bool) -> list[str]:
    width = max(map(len, values))
    return [
        "",
        f"  {block_name} {{",
        *(f"    {name:<{width}} = {_hcl(value)}" for name, value in values.items()),
        "  }",
    ]


def _hcl(value: str | bool) -> str:
    # Terraform's strings are JSON's, but ${ and %{ begin a template.
    return json.dumps(value).replace("${", "$${").replace("%{", "%%{")


_TEMPLATES = {"cloudformation": _cloudformation, "terraform": _terraform, "cdk-json": _cdk}
