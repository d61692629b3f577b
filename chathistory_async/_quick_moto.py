"""moto's DynamoDB with fewer copies, for the embedded engine: the same responses, several times faster.

moto holds an item as a tree of objects, and copies that tree at every step. Without this module, moto takes 5 s to read
a full item, and copies the whole table once for each item of a transaction.
"""

from __future__ import annotations

import base64
import copy
from collections import defaultdict, deque
from collections.abc import Callable
from functools import cache, lru_cache, wraps
from inspect import signature
from typing import Any

from moto import backends
from moto.core import responses, serialize
from moto.core.responses import BaseResponse
from moto.core.utils import method_names_from_class
from moto.dynamodb.comparisons import ConditionExpressionParser
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType, Item
from moto.dynamodb.models.table import Table

# moto hides these modules from type checkers.
from moto.dynamodb.parsing.ast_nodes import DepthFirstTraverser, Node  # type: ignore[attr-defined]
from moto.dynamodb.parsing.expressions import UpdateExpressionParser  # type: ignore[attr-defined]
from moto.dynamodb.responses import DynamoHandler


def install() -> None:
    """Replace moto's slow methods in this process."""
    serialize.SERVICE_SPECIFIC_SERIALIZERS["dynamodb"] = {"json": _Serializer}
    for owner, name, method in (
        (DynamoType, "size", _size(DynamoType.size)),
        (DynamoType, "to_regular_json", _plain),
        (DynamoType, "__deepcopy__", _copied),
        (Item, "project", _projected(Item.project)),
        (DynamoDBBackend, "update_item", _updated(DynamoDBBackend.update_item)),
        (Table, "__deepcopy__", _copied_table),
        (Table, "all_items", _sorted_items),
        (Table, "query", _of_one_partition(Table.query)),
        (ConditionExpressionParser, "_lex_condition_expression", _lexed_once(ConditionExpressionParser)),
        (UpdateExpressionParser, "make", staticmethod(lru_cache(UpdateExpressionParser.make))),
        (Node, "__deepcopy__", _copied_node),
        (DepthFirstTraverser, "traverse", _traversed),
        (DynamoHandler, "_enrich_response", staticmethod(_enriched)),
        # moto makes these lists anew for each request.
        (backends, "list_of_moto_modules", cache(lambda modules=backends.list_of_moto_modules: list(modules()))),
        (responses, "method_names_from_class", cache(method_names_from_class)),
    ):
        setattr(owner, name, method)


class _Serializer(serialize.JSONSerializer):
    """Writes attribute values directly.

    moto looks in each value for every DynamoDB type under two names, but most values are in wire form already.
    """

    def _serialize_type_structure(self, serialized: Any, value: Any, shape: Any, key: str) -> None:
        if shape.name == "AttributeValue":
            self._default_serialize(serialized, _wire_form(value), shape, key)
        else:
            super()._serialize_type_structure(serialized, value, shape, key)


def _wire_form(attribute: dict[str, Any]) -> dict[str, Any]:
    ((kind, value),) = attribute.items()
    if kind == "M":
        return {kind: {name: _wire_form(member) for name, member in value.items()}}
    if kind == "L":
        return {kind: [_wire_form(element) for element in value]}
    if kind == "B":
        return {kind: _base64(value)}
    if kind == "BS":
        return {kind: [_base64(element) for element in value]}
    return attribute


def _base64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _size(size: Callable[[DynamoType], int]) -> Callable[[DynamoType], int]:
    @wraps(size)
    def counted(self: DynamoType) -> int:
        if not self.is_map():
            return size(self)
        # moto would first make a new tree of each member.
        return sum(len(name.encode()) + member.size() for name, member in self.value.items())

    return counted


def _plain(self: DynamoType) -> dict[str, Any]:
    """Return the tree as plain values. moto would copy the tree once more at each level."""
    if self.is_map():
        return {self.type: {name: member.to_regular_json() for name, member in self.value.items()}}
    if self.is_list():
        return {self.type: [element.to_regular_json() for element in self.value]}
    if self.is_binary() and isinstance(self.value, str):
        return {self.type: base64.b64decode(self.value)}
    return {self.type: copy.copy(self.value)}


def _copied(self: DynamoType, memo: dict[int, Any]) -> DynamoType:
    """Return a copy that shares the scalars: moto modifies only lists, maps and sets in place."""
    if self.is_list():
        value: Any = [_copied(element, memo) for element in self.value]
    elif self.is_map():
        value = {name: _copied(member, memo) for name, member in self.value.items()}
    elif self.is_set():
        value = list(self.value)
    else:
        return self
    copied = object.__new__(DynamoType)
    copied.type, copied.value = self.type, value
    return copied


def _projected(project: Callable[[Item, list[list[str]]], Item]) -> Callable[[Item, list[list[str]]], Item]:
    @wraps(project)
    def projected(self: Item, paths: list[list[str]]) -> Item:
        if any(len(path) > 1 or "[" in path[0] for path in paths):
            return project(self, paths)
        # moto would make plain values of the whole item for each attribute.
        return Item(self.hash_key, self.range_key, {name: self.attrs[name] for (name,) in paths if name in self.attrs})

    return projected


def _updated(update: Callable[..., Item]) -> Callable[..., Item]:
    """Return an update that modifies a new copy of the item, so that copies of the table can share items."""

    @wraps(update)
    def updated(
        self: DynamoDBBackend, table_name: str, key: dict[str, dict[str, Any]], *rest: Any, **named: Any
    ) -> Item:
        table = self.get_table(table_name)
        partition, sort = self.get_keys_value(table, key)
        if item := table.get_item(partition, sort):
            _put(table, partition, sort, copy.deepcopy(item))
        return update(self, table_name, key, *rest, **named)

    return updated


def _put(table: Table, partition: DynamoType, sort: DynamoType | None, item: Item) -> None:
    items: Any = table.items
    if sort is None:
        items[partition] = item
    else:
        items[partition][sort] = item


def _copied_table(self: Table, memo: dict[int, Any]) -> Table:
    copied = copy.copy(self)
    memo[id(self)] = copied
    for name, value in vars(self).items():
        setattr(copied, name, _copied_items(value) if name == "items" else copy.deepcopy(value, memo))
    return copied


def _copied_items(items: dict[DynamoType, Any]) -> dict[DynamoType, Any]:
    collections = {key: dict(value) if isinstance(value, dict) else value for key, value in items.items()}
    return defaultdict(dict, collections)


def _sorted_items(self: Table) -> list[Item]:
    """Return the items, sorted by their keys as Python values. moto would make these anew for each comparison."""
    found = [item for value in self.items.values() for item in (value.values() if isinstance(value, dict) else [value])]
    return sorted(found, key=lambda item: [key.cast_value for key in (item.hash_key, item.range_key) if key])


def _of_one_partition(query: Callable[..., Any]) -> Callable[..., Any]:
    """Return a query that looks at one item collection. moto would sort and compare the items of the whole table."""
    parameters = signature(query)

    @wraps(query)
    def queried(self: Table, hash_key: DynamoType | None, *rest: Any, **named: Any) -> Any:
        if parameters.bind(self, hash_key, *rest, **named).arguments.get("index_name") or hash_key is None:
            return query(self, hash_key, *rest, **named)
        narrowed = copy.copy(self)
        items: Any = self.items
        narrowed.items = defaultdict(dict, {hash_key: items[hash_key]} if hash_key in items else {})
        return query(narrowed, hash_key, *rest, **named)

    return queried


def _lexed_once(parser: Any) -> Callable[[Any], deque[Any]]:
    """Return a lexer that remembers its results: a library sends the same few expressions again and again."""
    lex = parser._lex_condition_expression

    @lru_cache
    def nodes(expression: str) -> tuple[Any, ...]:
        return tuple(lex(parser(expression, None, None)))

    return lambda self: deque(nodes(self.condition_expression))


def _copied_node(self: Node, memo: dict[int, Any]) -> Node:
    """Return a copy of a parsed expression, whose leaves are texts and numbers."""
    copied = copy.copy(self)
    if self.children is not None:
        copied.children = [copy.deepcopy(child, memo) if isinstance(child, Node) else child for child in self.children]
        for child in copied.children:
            if isinstance(child, Node):
                child.parent = copied
    return copied


def _traversed(self: DepthFirstTraverser, root: Node) -> Node:
    """Process the nodes from the leaves up. moto would ask at each node, and at each leaf, which kinds it processes."""
    processed = self.nodes_to_be_processed()

    def traversed(node: Node, position: int) -> Node:
        parent = node.parent
        for index, child in enumerate(node.children or ()):
            self.pre_processing_of_child(node, index)
            if isinstance(child, Node):
                traversed(child, index)
        if isinstance(node, processed):
            node = self.process(node)
            node.parent = parent
            if parent:
                parent.children[position] = node
        return node

    return traversed(root, -1)


def _enriched(headers: dict[str, str], body: Any) -> tuple[dict[str, str], Any]:
    """Return the response with a request's id. moto would search the body for an element of XML to put the id in."""
    headers, _ = BaseResponse._enrich_response(headers, "")
    return headers, body
