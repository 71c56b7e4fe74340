"""Small prompts that nodes make to be run in their place, with ids that no other node has.

A node's expansion is a prompt (``{id: {"class_type": ..., "inputs": ...}}``). :class:`GraphBuilder` writes one: ids
begin with that of the node that expands, the number of its call and that of the builder in it, so that they are the
same each time that the same job runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cygnet.graph.context import current
from cygnet.graph.validate import is_link as is_list
from cygnet.graph.validate import well_formed

Link = list[Any]
"""``[id, slot]``"""


def is_link(value: object) -> bool:
    """Whether a value is a link to a node's output."""
    return is_list(value) and well_formed(value)  # type: ignore[arg-type]


class BuiltNode:
    """A node of a small prompt."""

    def __init__(self, id: str, class_type: str, inputs: Mapping[str, Any]) -> None:
        self.id = id
        self.class_type = class_type
        self.inputs = dict(inputs)
        self.override_display_id: str | None = None

    def out(self, index: int) -> Link:
        """A link to one of its outputs."""
        return [self.id, index]

    def set_input(self, key: str, value: Any) -> None:
        """Give it an input; None takes the input away."""
        if value is None:
            self.inputs.pop(key, None)
        else:
            self.inputs[key] = value

    def get_input(self, key: str) -> Any:
        """The value or link of an input; None if it has none."""
        return self.inputs.get(key)

    def set_override_display_id(self, override_display_id: str) -> None:
        """Show it at another node than the one that expands."""
        self.override_display_id = override_display_id

    def serialize(self) -> dict[str, Any]:
        """As a prompt writes it."""
        written = {"class_type": self.class_type, "inputs": self.inputs}
        if self.override_display_id is not None:
            written["override_display_id"] = self.override_display_id
        return written


class GraphBuilder:
    """Makes a small prompt. Without a ``prefix`` the ids begin as the module says, which needs a running node."""

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = self.alloc_prefix() if prefix is None else prefix
        self.nodes: dict[str, BuiltNode] = {}
        self._numbers = 0

    @classmethod
    def alloc_prefix(
        cls, root: str | None = None, call_index: int | None = None, graph_index: int | None = None
    ) -> str:
        """What ids begin with: of the running node, its call and the number of the builder, unless told otherwise."""
        context = current()
        root = context.place.node if root is None else root
        call = context.call if call_index is None else call_index
        number = next(context.graphs) if graph_index is None else graph_index
        return f"{root}.{call}.{number}."

    def node(self, class_type: str, id: str | None = None, **inputs: Any) -> BuiltNode:
        """A node, new unless there is one with that ``id``; inputs are values or links."""
        if id is None:
            id, self._numbers = str(self._numbers), self._numbers + 1
        full = f"{self.prefix}{id}"
        if full not in self.nodes:
            self.nodes[full] = BuiltNode(full, class_type, inputs)
        return self.nodes[full]

    def lookup_node(self, id: str) -> BuiltNode | None:
        """The node that was made with that ``id``."""
        return self.nodes.get(f"{self.prefix}{id}")

    def replace_node_output(self, node_id: str, index: int, new_value: Any) -> None:
        """Put ``new_value`` in the place of each link to an output; None takes those inputs away."""
        for node in self.nodes.values():
            for name, value in list(node.inputs.items()):
                if is_link(value) and value == [f"{self.prefix}{node_id}", index]:
                    node.set_input(name, new_value)

    def remove_node(self, id: str) -> None:
        """Take a node out; links to it stay."""
        del self.nodes[f"{self.prefix}{id}"]

    def finalize(self) -> dict[str, dict[str, Any]]:
        """The small prompt, for ``expand``."""
        return {id: node.serialize() for id, node in self.nodes.items()}


def add_graph_prefix(
    graph: Mapping[str, Mapping[str, Any]], outputs: Iterable[Any], prefix: str
) -> tuple[dict[str, dict[str, Any]], tuple[Any, ...]]:
    """A small prompt and links into it, with ``prefix`` before every id in both."""

    def moved(value: Any) -> Any:
        return [f"{prefix}{value[0]}", value[1]] if is_link(value) else value

    renamed = {
        f"{prefix}{id}": {**node, "inputs": {name: moved(value) for name, value in node["inputs"].items()}}
        for id, node in graph.items()
    }
    return renamed, tuple(moved(it) for it in outputs)
