"""The commands for the table: create-table with its templates, policy, doctor."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from command_line import fails, run_command, succeeds
from conftest import created_table
from proxy import Fault, Proxy, Seen
from samples import humans

from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async._codec.keys import join_key
from chathistory_async._sync.bridge import run
from chathistory_async._version import __version__
from chathistory_async.cli.doctor import _versions


@pytest.fixture
def new_table(dynamodb: Any) -> Iterator[str]:
    """The name of a table that does not exist yet."""
    name = f"chat-{uuid.uuid4().hex}"
    yield name
    dynamodb.delete_table(TableName=name)


def described(dynamodb: Any, table: str) -> dict[str, Any]:
    """A table's description, without its name and times."""
    found = dynamodb.describe_table(TableName=table)["Table"]
    parts = {name: found.get(name) for name in ("AttributeDefinitions", "KeySchema")}
    parts["AttributeDefinitions"].sort(key=lambda one: one["AttributeName"])
    parts["Billing"] = found["BillingModeSummary"]["BillingMode"]
    indexes = found.get("GlobalSecondaryIndexes", [])
    parts["Indexes"] = [[one[name] for name in ("IndexName", "KeySchema", "Projection")] for one in indexes]
    return parts


NAMES = ["--primary-key-name", "Pk", "--sort-key-name", "Sk", "--ttl-key-name", "gone"]


@pytest.mark.parametrize(
    "options", [[], ["--session-index"], ["--layout", "single_item"]], ids=["plain", "indexed", "single item"]
)
def test_a_template_makes_the_table_that_the_command_makes(options: list[str], new_table: str, dynamodb: Any) -> None:
    template = succeeds("create-table", "--print", "cloudformation", "--table", new_table, *NAMES, *options).json()
    [resource] = template["Resources"].values()
    assert (resource["Type"], resource["DeletionPolicy"]) == ("AWS::DynamoDB::Table", "Retain")
    properties = resource["Properties"]
    assert properties.pop("TimeToLiveSpecification") == {"AttributeName": "gone", "Enabled": True}
    # The other properties have the form of DynamoDB's own request.
    dynamodb.create_table(**properties)
    other = f"chat-{uuid.uuid4().hex}"
    assert succeeds("create-table", "--table", other, *NAMES, *options).output == f"The table {other} is ready.\n"
    assert described(dynamodb, new_table) == described(dynamodb, other)
    dynamodb.delete_table(TableName=other)


def test_templates_of_terraform_and_cdk() -> None:
    arn = "arn:aws:kms:eu-west-1:111122223333:key/x"
    options = ["--table", "Chats${x}", "--session-index", "--point-in-time-recovery", "--table-kms-key-id", arn]
    terraform = succeeds("create-table", "--print", "terraform", *options).output
    assert terraform.count("{") == terraform.count("}")
    values = dict(re.findall(r"^ +(\w+) += (.*)$", terraform, re.MULTILINE))
    assert values["name"] == '"SessionsByOwner"'
    assert '"Chats$${x}"' in terraform
    assert (values["range_key"], values["attribute_name"], values["kms_key_arn"]) == (
        '"LastActive"',
        '"expireAt"',
        f'"{arn}"',
    )
    options[-1] = "alias/x"
    assert "the ARN of the key" in fails("create-table", "--print", "terraform", *options, code=2)
    options[-1] = arn
    cdk = succeeds("create-table", "--print", "cdk-json", *options).json()
    assert cdk["sseSpecification"] == {"sseEnabled": True, "sseType": "KMS", "kmsMasterKeyId": arn}
    assert cdk["keySchema"][0] == {"attributeName": "SessionId", "keyType": "HASH"}
    assert cdk["pointInTimeRecoverySpecification"] == {"pointInTimeRecoveryEnabled": True}


def test_create_table_twice(new_table: str) -> None:
    options = ["--table", new_table]
    succeeds("create-table", *options)
    told = succeeds("create-table", "--session-index", "--json", *options).json()
    assert told == {"table": new_table, "session_index": True}
    error = fails("create-table", *options, "--ttl-key-name", "other")
    assert "The table's TTL is on the attribute 'expireAt', not on 'other'" in error
    assert "exists with the key" in fails("create-table", *options, "--sort-key-name", "other")


def actions_of(seen: list[Seen], table: str, index: bool) -> set[str]:
    """The IAM actions that requests on a table, or on its index, need: each write of a transaction has its own."""
    actions = set()
    for one in seen:
        items = one.body.get("TransactItems")
        if items is None:
            on_index = "IndexName" in one.body
            target = one.body.get("TableName") or next(iter(one.body.get("RequestItems", {})), None)
            if target == table and on_index == index:
                actions.add(f"dynamodb:{one.operation}")
        elif not index:
            names = {
                "Put": "PutItem",
                "Update": "UpdateItem",
                "Delete": "DeleteItem",
                "ConditionCheck": "ConditionCheckItem",
            }
            actions |= {
                f"dynamodb:{names[kind]}" for item in items for kind, part in item.items() if part["TableName"] == table
            }
    return actions


def statements(*options: str) -> dict[str, dict[str, Any]]:
    printed = succeeds("policy", *options).json()
    assert printed["Version"] == "2012-10-17"
    return {one["Sid"]: one for one in printed["Statement"]}


def use_all_of(store: ChatHistoryStore, session_id: str, owner: str | None) -> None:
    """Whatever an application does with an item collection."""
    history = store.session(session_id, owner=owner)
    history.add_messages(humans(1, 2))
    history.add_messages(humans(3), idempotency_key="x")
    # A record of several items, which becomes smaller.
    noise = "".join(uuid.uuid4().hex for _ in range(30_000))
    history.add_messages(humans(noise, 4))
    page = history.page()
    history.replace_message(page.messages[-2].id, humans("small")[0])
    history.delete_messages([page.messages[0].id])
    history.pop_message()
    history.add_messages(humans("alone in its record"))
    history.pop_message()
    history.get_messages(limit=1)
    if owner is not None:
        run(store.set_title, session_id, "x")
        run(store.update_metadata, session_id, {"a": 1})
        run(store.list_sessions, owner)
        run(store.get_session_info, session_id)
    history.clear()
    if owner is not None:
        history.add_messages(humans(5))
        run(store.purge_owner, owner)


@pytest.mark.parametrize("indexed", [False, True], ids=["plain", "indexed"])
def test_the_runtime_policy_has_what_is_called_and_no_more(
    indexed: bool, proxy: Proxy, collection_table: str, session_id: str, owner: str
) -> None:
    options = {"session_index": True} if indexed else {}
    store = ChatHistoryStore(collection_table, endpoint_url=proxy.url, **options)  # type: ignore[arg-type]
    use_all_of(store, session_id, owner if indexed else None)
    store.close()
    policy = statements("--table", collection_table, *(["--session-index"] if indexed else []))
    assert set(policy["Table"]["Action"]) == actions_of(proxy.seen, collection_table, False)
    assert set(policy.get("SessionIndex", {}).get("Action", ())) == actions_of(proxy.seen, collection_table, True)


def test_the_runtime_policy_of_a_single_item(proxy: Proxy, table: str, session_id: str) -> None:
    history = DynamoDBChatMessageHistory(table, session_id, endpoint_url=proxy.url)
    history.add_messages(humans(1))
    assert len(history.messages) == 1
    history.clear()
    policy = statements("--table", table, "--layout", "single_item")
    assert set(policy["Table"]["Action"]) == actions_of(proxy.seen, table, False)


@pytest.mark.parametrize("indexed", [False, True], ids=["plain", "indexed"])
def test_the_policy_of_a_migration(indexed: bool, proxy: Proxy, session_id: str) -> None:
    index = ["--session-index"] if indexed else []
    with created_table(layout="single_item") as source, created_table(session_index=True) as target:
        for number in range(2):
            DynamoDBChatMessageHistory(source, f"{session_id}-{number}").add_messages(humans(1))
        migrate = ["migrate", source, target, "--scan", "--endpoint-url", proxy.url, *index]
        succeeds(*migrate)
        DynamoDBChatMessageHistory(source, f"{session_id}-0").add_messages(humans(2))
        succeeds(*migrate, "--delete-source", "--yes")
        policy = statements("--table", target, "--mode", "migrate", "--source-table", source, "--delete-source", *index)
        assert set(policy["Table"]["Action"]) == actions_of(proxy.seen, target, False)
        assert set(policy["Source"]["Action"]) == actions_of(proxy.seen, source, False)
        assert set(policy.get("SessionIndex", {}).get("Action", ())) == actions_of(proxy.seen, target, True)
        without = statements("--table", target, "--mode", "migrate", "--source-table", source)
        assert "dynamodb:DeleteItem" not in without["Source"]["Action"]


def test_the_policy_of_an_administrator(proxy: Proxy, new_table: str) -> None:
    options = ["--table", new_table, "--endpoint-url", proxy.url]
    succeeds("create-table", *options)
    succeeds("create-table", "--session-index", "--point-in-time-recovery", *options)
    succeeds("doctor", *options)
    policy = statements("--table", new_table, "--mode", "admin")
    assert set(policy["Table"]["Action"]) == actions_of(proxy.seen, new_table, False)


def test_the_resources_of_a_policy() -> None:
    arn = "arn:aws:dynamodb:eu-west-1:111122223333:table/Chats"
    key = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd"
    place = ["--region", "eu-west-1", "--account-id", "111122223333"]
    for table in (arn, "Chats"):
        policy = statements("--table", table, *place, "--session-index", "--kms-key-id", "1234abcd")
        assert policy["Table"]["Resource"] == arn
        assert policy["SessionIndex"]["Resource"] == f"{arn}/index/SessionsByOwner"
        assert policy["Encryption"]["Resource"] == key
        assert policy["Encryption"]["Condition"] == {"StringEquals": {"kms:EncryptionContext:table": "Chats"}}
    by_alias = statements("--table", arn, "--kms-key-id", "alias/chat")["Encryption"]
    assert by_alias["Resource"] == "arn:aws:kms:eu-west-1:111122223333:key/*"
    assert by_alias["Condition"]["ForAnyValue:StringEquals"] == {"kms:ResourceAliases": "alias/chat"}
    migration = ["--mode", "migrate", "--source-table", "Old", "--source-kms-key-id", key]
    source = statements("--table", arn, *migration)["SourceEncryption"]
    assert (source["Action"], source["Resource"]) == (["kms:Decrypt"], key)
    assert source["Condition"]["StringEquals"] == {"kms:EncryptionContext:table": "Old"}
    china = statements("--table", "Chats", "--region", "cn-north-1")["Table"]["Resource"]
    assert china == "arn:aws-cn:dynamodb:cn-north-1:*:table/Chats"


def test_a_tenant_s_policy_is_limited_to_its_keys() -> None:
    policy = statements("--table", "Chats", "--mode", "tenant", "--session-index")
    for sid in ("Table", "SessionIndex"):
        keys = policy[sid]["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
        assert keys == ["${aws:PrincipalTag/tenant}#*"]
        # An action without keys, such as Scan, would fulfil the condition.
        assert "dynamodb:Scan" not in policy[sid]["Action"]
    named = statements("--table", "Chats", "--mode", "tenant", "--tenant", "acme")["Table"]
    assert named["Condition"]["ForAllValues:StringLike"] == {"dynamodb:LeadingKeys": ["acme#*"]}
    named = statements("--table", "Chats", "--mode", "tenant", "--tenant", "50%#1")["Table"]
    [keys] = named["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
    [stored] = join_key({"": ("50%#1", "s")}).values()
    assert str(stored).startswith(keys.removesuffix("*"))
    # How IAM writes a * and a ? that stand for themselves.
    named = statements("--table", "Chats", "--mode", "tenant", "--tenant", "a*b?")["Table"]
    assert named["Condition"]["ForAllValues:StringLike"] == {"dynamodb:LeadingKeys": ["a${*}b${?}#*"]}


@pytest.mark.parametrize(
    "arn", ["arn:aws", "arn:aws:s3:eu-west-1:111122223333:table/Chats", "arn:aws:dynamodb:::table/"]
)
def test_a_policy_for_what_is_no_table_is_refused(arn: str) -> None:
    assert "is not the ARN of a table" in fails("policy", "--table", arn, code=2)
    migration = ["--mode", "migrate", "--source-table", arn]
    assert "is not the ARN of a table" in fails("policy", "--table", "Chats", *migration, code=2)


@pytest.mark.parametrize(
    "options",
    [
        ["--mode", "migrate"],
        ["--source-table", "Old"],
        ["--layout", "single_item", "--session-index"],
        ["--mode", "nothing"],
        ["--table", "arn:aws"],
        ["--table", "arn:aws:s3:::bucket"],
    ],
)
def test_wrong_policies(options: list[str]) -> None:
    fails("policy", "--table", "Chats", *options, code=2)


def findings(*options: str, code: int = 0) -> dict[str, tuple[str, str, str]]:
    done = run_command("doctor", "--json", *options)
    assert done.code == code, done
    return {one["check"]: (one["status"], one["found"], one["advice"]) for one in json.loads(done.output)}


def test_the_doctor_of_a_sound_table(kms_key: str) -> None:
    with created_table(session_index=True) as table:
        run(ChatHistoryStore(table, session_index=True).create_table)
        succeeds("create-table", "--table", table, "--point-in-time-recovery")
        found = findings("--table", table, "--kms-key-id", kms_key)
        assert {status for status, _, _ in found.values()} == {"ok"}
        assert found["key"][1] == "SessionId (HASH, S), MessageId (RANGE, S)"
        assert found["KMS key"][1] == "GenerateDataKey and Decrypt are allowed"
        assert "aiobotocore " in found["versions"][1]
        lines = succeeds("doctor", "--table", table).lines()
        assert all(line.startswith(("ok ", "note ")) for line in lines)


def test_the_doctor_knows_the_version_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_out(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("chathistory_async.cli.doctor.version", left_out)
    assert f", chathistory-async {__version__}, no aioboto3, " in _versions()


def test_the_doctor_of_a_table_that_does_not_fit(dynamodb: Any, new_table: str) -> None:
    dynamodb.create_table(
        TableName=new_table,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("Id", "Owner")],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "SessionsByOwner",
                "KeySchema": [{"AttributeName": "Owner", "KeyType": "HASH"}],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    )
    found = findings("--table", new_table, "--kms-key-id", str(uuid.uuid4()), code=1)
    statuses = {check: status for check, (status, _, _) in found.items()}
    problems = {"key", "TTL", "session index", "KMS key"}
    assert {check for check, status in statuses.items() if status == "problem"} == problems
    assert statuses["backups"] == "warning"
    assert found["key"][1:] == (
        "Id (HASH, S), not SessionId (HASH, S), MessageId (RANGE, S)",
        "give --primary-key-name, --sort-key-name and --layout of this table, or another table",
    )
    assert "chathistory create-table" in found["TTL"][2]
    assert "delete that index" in found["session index"][2]
    said = fails("doctor", "--table", "no-such-table")
    assert said.startswith("Error: The table does not exist")
    assert "create it with chathistory create-table of the same --layout [table" in said


def test_the_doctor_finds_ttl_on_another_attribute(collection_table: str) -> None:
    found = findings("--table", collection_table, "--ttl-key-name", "other", code=1)
    assert found["TTL"][:2] == ("problem", "enabled on expireAt, not on other")


def test_the_doctor_names_what_it_may_not_see(proxy: Proxy, collection_table: str) -> None:
    refused = {"DescribeTimeToLive", "DescribeContinuousBackups"}
    proxy.schedule = lambda seen: Fault.DENIED if seen.operation in refused else Fault.NONE
    found = findings("--table", collection_table, "--endpoint-url", proxy.url)
    for check in ("TTL", "backups"):
        assert found[check][0] == "warning"
        assert found[check][1].startswith("not known: AWS refused Describe")
    proxy.schedule = lambda seen: Fault.DENIED
    assert findings("--table", collection_table, "--endpoint-url", proxy.url, code=1)["table"][0] == "problem"


def test_the_doctor_compares_the_clocks(collection_table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    for lead, status, code in ((100, "warning", 0), (-1000, "problem", 1)):
        monkeypatch.setattr("chathistory_async._aws.table.time", lambda lead=lead: now() + lead)
        found = findings("--table", collection_table, code=code)["clock"]
        assert found[0] == status
        assert ("ahead of" if lead > 0 else "behind") in found[1]


@pytest.mark.parametrize("session_id", [f"Alice {uuid.uuid4().hex}"], ids=["with a space"])
def test_the_doctor_names_messages_that_cannot_be_read(
    collection_table: str, session_id: str, dynamodb: Any, items_in: Callable[[str], Any], table: str
) -> None:
    options = ["--table", collection_table, "--session", session_id]
    store = ChatHistoryStore(collection_table)
    history = store.session(session_id)
    history.add_messages(humans(1, 2, 3))
    history.add_messages(humans(4))
    assert findings(*options)["messages"][0] == "ok"
    [first, second] = [item for item in items_in(collection_table) if "History" in item]
    bodies = [first["History"]["S"].replace('"2"', "5").replace('"3"', "6"), "not JSON"]
    for item, body in zip((first, second), bodies, strict=True):
        dynamodb.put_item(TableName=collection_table, Item=item | {"History": {"S": body}})
    done = run_command("doctor", "--json", *options)
    assert done.code == 1
    damaged = [one for one in json.loads(done.output) if one["check"] == "messages"]
    record = first["MessageId"]["S"][2:-3]
    told = [one["found"] for one in damaged]
    assert len(told) == 3
    assert f"{record}-000001" in told[0]
    assert f"{record}-000002" in told[1]
    assert damaged[0]["advice"] == f"chathistory delete-message '{session_id}' ID removes it"
    DynamoDBChatMessageHistory(table, session_id).add_messages(humans(1))
    single = ["--table", table, "--layout", "single_item", "--session", session_id]
    assert findings(*single)["messages"][0] == "ok"


@pytest.mark.parametrize("layout", ["single_item", "item_collection"])
def test_the_doctor_names_a_session_without_messages(
    layout: str, table: str, collection_table: str, session_id: str
) -> None:
    name = table if layout == "single_item" else collection_table
    found = findings("--table", name, "--layout", layout, "--session", session_id)["messages"]
    assert found == ("note", f"{session_id} has no messages", "check the session's id")
