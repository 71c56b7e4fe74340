"""The prompt of a running job with the nodes that expansions have added: hidden input ``DYNPROMPT``.

Nodes that expand read it to find what they are linked to, so that they can put copies of it into their expansion. It is
a view: what is added later is in it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cygnet.graph.events import Place


class NodeNotFoundError(Exception):
    """A node is asked for by an id that nothing has."""


class Described(NamedTuple):
    """A node of the job: how the prompt, or the expansion that made it, writes it, and where it stands."""

    node: Mapping[str, Any]
    place: Place


@dataclass(frozen=True)
class DynamicPrompt:
    """All nodes of a job. Methods that take an id raise :class:`NodeNotFoundError` for one that is not there."""

    _original: Mapping[str, Mapping[str, Any]]
    _find: Callable[[str], Described | None]
    _ids: Callable[[], set[str]]

    def get_original_prompt(self) -> Mapping[str, Mapping[str, Any]]:
        """The prompt as it was submitted and judged."""
        return self._original

    def all_node_ids(self) -> set[str]:
        """Ids of all nodes, those of expansions too."""
        return self._ids()

    def has_node(self, node_id: str) -> bool:
        """Whether there is a node of that id."""
        return self._find(node_id) is not None

    def get_node(self, node_id: str) -> Mapping[str, Any]:
        """``class_type`` and ``inputs`` of a node; not to be changed."""
        return self._found(node_id).node

    def get_parent_node_id(self, node_id: str) -> str | None:
        """The node whose expansion made it; None for a node of the prompt."""
        return self._found(node_id).place.parent

    def get_real_node_id(self, node_id: str) -> str:
        """The node of the prompt that it stems from; itself, if it is one."""
        return self._found(node_id).place.real

    def get_display_node_id(self, node_id: str) -> str:
        """The node at which clients show it."""
        return self._found(node_id).place.display

    def _found(self, node_id: str) -> Described:
        found = self._find(node_id)
        if found is None:
            raise NodeNotFoundError(f"there is no node {str(node_id)[:100]!r} in this job")
        return found
