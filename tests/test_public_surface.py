"""The names that users import: complete, sorted, documented and typed."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points, metadata, requires
from pathlib import Path
from typing import Any

import pytest

import chathistory_async
from chathistory_async import (
    ChatHistoryError,
    ChatHistoryStore,
    DynamoDBChatMessageHistory,
    JsonSession,
    errors,
    testing,
)
from chathistory_async.local import LocalEngine

PACKAGE = Path(chathistory_async.__file__).parent
CLASSES = [DynamoDBChatMessageHistory, ChatHistoryStore, JsonSession]


def test_all_is_sorted_and_complete() -> None:
    names = chathistory_async.__all__
    assert names == sorted(names)
    public = {
        name
        for name in dir(chathistory_async)
        if not name.startswith("_") and not inspect.ismodule(getattr(chathistory_async, name))
    }
    assert set(names) == public


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    found = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    tree = {name for name in found if issubclass(getattr(errors, name), ChatHistoryError)}
    assert tree <= set(chathistory_async.__all__)
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in tree)


PACKAGES = [
    f"{name}.__init__"
    for name in (
        "_aws",
        "_codec",
        "_encryption",
        "_item_collection",
        "_migration",
        "_session_index",
        "_single_item",
        "_sync",
        "_telemetry",
        "_testing",
        "integrations",
    )
]
# From the top down: each imports only what stands below it.
MODULES = [
    "__init__",
    "cli.__main__",
    "cli.__init__",
    "cli.commands",
    "cli.doctor",
    "cli.policy",
    "cli.tables",
    "cli.delete",
    "cli.importing",
    "cli.export",
    "cli.html",
    "cli.markdown",
    "cli.sessions",
    "cli.show",
    "cli.reading",
    "cli.messages",
    "cli.migrate",
    "cli.demo",
    "cli.demo_agents",
    "cli.settings",
    "cli.errors",
    "cli.output",
    "cli.interruption",
    "testing",
    "integrations.agent_framework",
    "integrations.claude_agent_sdk",
    "integrations.openai_agents",
    "integrations.langchain",
    "integrations._agent_recorder",
    "integrations._agent_messages",
    "store",
    "history",
    "json_session",
    "_opening",
    "_statistics",
    "_migration.run",
    "_migration.target",
    "_migration.source",
    "_migration.outcome",
    "_aws.table",
    "_session_index.keyed",
    "_session_index.listing",
    "_session_index.session",
    "_session_index.counting",
    "_session_index.requests",
    "_session_index.owner_index",
    "_session_index.flags",
    "_session_index.value_ids",
    "_session_index.stored",
    "_migration.checkpoint",
    "_item_collection.session",
    "_item_collection.edits",
    "_item_collection.writer",
    "_item_collection.idempotency",
    "_item_collection.reader",
    "_item_collection.typical_counts",
    "_item_collection.bodies",
    "_item_collection.requests",
    "_item_collection.revisions",
    "_item_collection.layout",
    "_item_collection.records",
    "_item_collection.sort_keys",
    "_single_item.session",
    "_idempotency",
    "_single_item.requests",
    "_single_item.changes",
    "_single_item.layout",
    "_session",
    "_settings",
    *PACKAGES,
    "_encryption.message_cipher",
    "_encryption.binding",
    "_encryption.data_keys",
    "_aws.calls",
    "_telemetry.calls",
    "_cooperative",
    "_expressions",
    "_codec.message_attribute_values",
    "_codec.messages",
    "_codec.json_values",
    "_codec.format",
    "_codec.keys",
    "_codec.attribute_values",
    "_codec.json_text",
    "_codec.plain",
    "_codec.unstorable",
    "_codec.compression",
    "_testing.clock",
    "_testing.endpoint",
    "_testing.proxy",
    "_wall_clock",
    "_aws.clients",
    "_aws.sdk",
    "_aws.event_handlers",
    "_aws.sdk_sessions",
    "_aws.credentials",
    "_aws.fast_path",
    "_aws.fast_path_guard",
    "_aws.single_flight",
    "_aws.answers",
    "_aws.bounded",
    "_aws.signing",
    "_telemetry.events",
    "_telemetry.operations",
    "_telemetry.providers",
    "_telemetry.spans",
    "_telemetry.instruments",
    "_telemetry.gauges",
    "local",
    "_sync.bridge",
    "_aws.first_append",
    "_sync.fork",
    "_aws.errors",
    "_request",
    "errors",
    "_aws.redaction",
    "_keep_alive",
    "_quick_moto",
    "_version",
]


def imports_of(module: str) -> set[str]:
    """The modules of the package that one imports, all relatively."""
    place = module.split(".")
    tree = ast.parse(PACKAGE.joinpath(*place).with_suffix(".py").read_text())
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {".".join([*place[: -node.level], node.module or "__init__"]) for node in relative}


def test_imports_run_one_way_only() -> None:
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    assert found == set(MODULES)
    for position, module in enumerate(MODULES):
        assert imports_of(module) <= set(MODULES[position + 1 :]), module


# Imports one without the package's own __init__, and tells which packages came with it.
IMPORT_ONE_BY_ONE = """
import importlib, sys, types
package = sys.modules["chathistory_async"] = types.ModuleType("chathistory_async")
package.__path__ = [sys.argv[1]]
for module in sys.argv[2:]:
    importlib.import_module(f"chathistory_async.{module}")
    print(module, *{name.partition(".")[0] for name in sys.modules})
"""
HEAVY = {"langchain_core", "botocore", "boto3", "aiobotocore", "aioboto3", "opentelemetry"}
LIGHT = [
    "errors",
    "_request",
    "_expressions",
    "_idempotency",
    "_settings",
    "_testing.clock",
    "_testing.endpoint",
    "_testing.proxy",
    "_wall_clock",
    "local",
    "testing",
    "_aws.answers",
    "_aws.redaction",
    "_encryption.binding",
    "_item_collection.idempotency",
    "_item_collection.layout",
    "_item_collection.records",
    "_item_collection.requests",
    "_item_collection.revisions",
    "_item_collection.sort_keys",
    "_migration.checkpoint",
    "_migration.outcome",
    "_telemetry.calls",
    "_telemetry.events",
    "_telemetry.gauges",
    "_telemetry.operations",
    "_telemetry.providers",
    "_session_index.flags",
    "_session_index.owner_index",
    "_session_index.requests",
    "_session_index.stored",
    "_session_index.value_ids",
    "_single_item.changes",
    "_single_item.layout",
    "_single_item.requests",
    "cli.html",
    "cli.markdown",
    *(module for module in MODULES if module.startswith("_codec.") and not module.startswith("_codec.message")),
]


def heavy_imports_of(*modules: str) -> dict[str, set[str]]:
    """The heavy packages that are imported once each module is, after those before it."""
    command = [sys.executable, "-c", IMPORT_ONE_BY_ONE, str(PACKAGE), *modules]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    imported = {line.split()[0]: set(line.split()[1:]) for line in lines}
    assert all("chathistory_async" in packages for packages in imported.values())
    return {module: packages & HEAVY for module, packages in imported.items()}


def test_what_is_pure_imports_neither_langchain_nor_the_sdk() -> None:
    assert heavy_imports_of(*LIGHT) == {module: set() for module in LIGHT}


def test_only_the_codecs_of_messages_import_langchain() -> None:
    assert heavy_imports_of("integrations._agent_messages", "_codec.messages", "_codec.message_attribute_values") == {
        "integrations._agent_messages": {"langchain_core"},
        "_codec.messages": {"langchain_core"},
        "_codec.message_attribute_values": {"langchain_core", "botocore", "boto3"},
    }


def test_the_package_imports_no_module_but_its_version() -> None:
    program = "import sys, chathistory_async; print(*(name for name in sys.modules if 'chathistory' in name))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert set(output.split()) == {"chathistory_async", "chathistory_async._version"}


def test_its_modules_of_errors_and_classes_are_attributes() -> None:
    program = "import chathistory_async as c; print(c.errors.__name__, c.store.__name__, c.json_session.__name__)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == [f"chathistory_async.{name}" for name in ("errors", "store", "json_session")]


@pytest.mark.parametrize("imported", ["chathistory_async.JsonSession", "chathistory_async.cli.commands.chathistory"])
def test_the_package_and_its_command_line_are_imported_without_langchain(imported: str) -> None:
    module = imported.rpartition(".")[0]
    program = f"import sys, {module}; print({imported}, 'langchain_core' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split()[-1] == "False"


# The frameworks whose packages a module imports, and the extra that installs them.
FRAMEWORKS = {
    "integrations.agent_framework": ({"agent_framework"}, "agent-framework"),
    "integrations.claude_agent_sdk": ({"claude_agent_sdk"}, "claude-agent-sdk"),
    "integrations.openai_agents": ({"agents"}, "openai-agents"),
    "integrations.langchain": ({"langchain", "langgraph"}, "langchain"),
}
# Only an integration imports them, after it has found its framework.
PARTS_OF_INTEGRATIONS = {"integrations._agent_recorder": {"langchain", "langgraph"}}
PACKAGES_OF_FRAMEWORKS = set().union(*(packages for packages, _ in FRAMEWORKS.values()))


def packages_of(module: str) -> set[str]:
    """The packages of others that come with a module. Those that a function imports are for who calls it."""
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())
    statements = [part for part in tree.body if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))]
    nodes = [node for part in statements for node in ast.walk(part)]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    names += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return {name.split(".")[0] for name in names}


def test_only_its_integration_imports_a_framework() -> None:
    found = {module: packages_of(module) & PACKAGES_OF_FRAMEWORKS for module in MODULES}
    of_frameworks = {module: packages for module, (packages, _) in FRAMEWORKS.items()}
    assert {module: packages for module, packages in found.items() if packages} == of_frameworks | PARTS_OF_INTEGRATIONS
    importing = {module for module in MODULES if imports_of(module) & PARTS_OF_INTEGRATIONS.keys()}
    assert importing <= FRAMEWORKS.keys()


@pytest.mark.stress
@pytest.mark.parametrize("module", ["integrations", *FRAMEWORKS])
def test_an_integration_loads_its_own_framework_alone(module: str) -> None:
    program = f"import sys, chathistory_async.{module}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    packages, _ = FRAMEWORKS.get(module, (set(), ""))
    assert PACKAGES_OF_FRAMEWORKS & set(output.split()) == packages


# None in sys.modules makes an import fail as if nothing were installed.
MISSING = """
import importlib, sys
for module, packages in {modules}:
    sys.modules.update(dict.fromkeys(packages))
    try:
        importlib.import_module(f"chathistory_async.{{module}}")
    except ModuleNotFoundError as error:
        print(error)
"""


def test_a_missing_framework_is_named_with_its_extra() -> None:
    program = MISSING.format(modules=[(module, packages) for module, (packages, _) in FRAMEWORKS.items()])
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for (_, extra), error in zip(FRAMEWORKS.values(), output.splitlines(), strict=True):
        assert re.fullmatch(rf"\w+ needs .+: pip install 'chathistory-async\[{extra}\]'", error)


def test_only_the_public_classes_know_the_bridge() -> None:
    assert {module for module in MODULES if "_sync.bridge" in imports_of(module)} == {
        "history",
        "integrations.langchain",
        "json_session",
        "local",
        "store",
        "testing",
    }


def public_members(kind: type) -> list[Any]:
    return [value for name, value in vars(kind).items() if not name.startswith("_") or name in ("__init__", "__str__")]


@pytest.mark.parametrize("kind", CLASSES)
def test_everything_public_is_documented(kind: type) -> None:
    assert inspect.getdoc(kind)
    for member in public_members(kind):
        if inspect.isfunction(member) and member.__name__ != "__init__":
            assert inspect.getdoc(member), member
    parameters = list(inspect.signature(kind).parameters)
    assert all(f"    {name}: " in (kind.__doc__ or "") for name in parameters)


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_public_takes_any_keyword(kind: type) -> None:
    for member in public_members(kind):
        if inspect.isfunction(member):
            kinds = {parameter.kind for parameter in inspect.signature(member).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_what_tests_use_is_public_and_documented() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    assert all(inspect.getdoc(getattr(testing, name)) for name in testing.__all__)
    for kind in (testing.FaultProxy, testing.FakeClock):
        assert all(inspect.getdoc(member) for member in public_members(kind) if inspect.isfunction(member))
    [plugin] = entry_points(group="pytest11", name="chathistory_async")
    assert plugin.value == testing.__name__


def test_a_synchronous_creation_of_a_table_takes_what_the_asynchronous_one_takes() -> None:
    twins = (ChatHistoryStore.create_table_sync, ChatHistoryStore.create_table)
    assert len({inspect.signature(twin) for twin in twins}) == 1


def natives_of(kind: type) -> list[str]:
    return [name for name in vars(kind) if name.startswith("a") and not name.startswith("add")]


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        (DynamoDBChatMessageHistory, {"aget_messages", "aadd_messages", "aclear", "aclose", "apage", "apop_message"}),
        (JsonSession, {"aget", "aadd", "apop", "aclear", "apage", "adelete", "areplace"}),
    ],
)
def test_each_native_method_has_a_synchronous_twin(kind: type, some: set[str]) -> None:
    members, natives = vars(kind), {*natives_of(kind)}
    assert {name.removeprefix("a") for name in natives} <= set(members)
    assert all(inspect.iscoroutinefunction(members[name]) for name in natives - {"aiter"})
    assert natives >= some | {"aiter"}


def synchronous() -> list[Any]:
    members = vars(DynamoDBChatMessageHistory)
    twins = [vars(kind)[name[1:]] for kind in (DynamoDBChatMessageHistory, JsonSession) for name in natives_of(kind)]
    others = [members[name] for name in ("add_message", "add_user_message", "add_ai_message")]
    store = [vars(ChatHistoryStore)[name] for name in ("create_table_sync", "close")]
    return [members["messages"].fget, *others, *twins, *store, LocalEngine.__enter__, LocalEngine.__exit__]


@pytest.mark.parametrize("method", synchronous(), ids=lambda method: method.__qualname__)
def test_synchronous_methods_are_one_call_each(method: Any) -> None:
    [function] = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    assert isinstance(function, ast.FunctionDef)
    [_, statement] = function.body
    assert re.match(
        r"(return )?run\(self\.(a|__a|create_table\b)|return iterate\(self\.aiter\(\)\)$", ast.unparse(statement)
    )


def test_the_package_says_that_it_is_typed() -> None:
    assert PACKAGE.joinpath("py.typed").exists()


def test_the_package_says_what_it_needs() -> None:
    described = metadata("chathistory-async")
    assert (described["Version"], described["Requires-Python"]) == (chathistory_async.__version__, ">=3.10")
    needed = requires("chathistory-async") or []
    assert "aioboto3>=15" in needed
    extras = {need.split("extra == ")[1].strip("'\"") for need in needed if "extra == " in need}
    assert extras == {
        *("local", "cli", "kms", "otel"),
        *("langchain", "openai-agents", "claude-agent-sdk", "agent-framework"),
    }
