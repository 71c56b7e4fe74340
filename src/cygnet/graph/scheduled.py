"""A node of a running job: what it is linked to, and what it is given when it runs.

The names of its inputs come from what its class declares, dynamic ones as far as they are there, and from what a class
takes besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cygnet.graph.contract import NodeClass
from cygnet.graph.events import Place
from cygnet.graph.results import Result
from cygnet.graph.schema import AUTOGROW, DYNAMIC_COMBO, HIDDEN_KINDS, Input, NodeType, hidden_kind
from cygnet.graph.validate import is_link, unwrapped, well_formed


@dataclass(eq=False)
class Scheduled:
    key: str
    kind: NodeType
    node_class: NodeClass
    given: Mapping[str, Any]
    """As the prompt, or the expansion that made it, writes it."""
    place: Place
    missing: set[str] = field(default_factory=set)
    """Sources that must be done first."""
    asked: set[str] = field(default_factory=set)
    """Lazy inputs that it wants."""
    expanded: list[Result] | None = None
    """Results whose links lead into its expansion."""
    ui: Mapping[str, Sequence[Any]] | None = None

    @property
    def inputs(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.given["inputs"]
        return found

    @property
    def links(self) -> dict[str, tuple[str, int]]:
        """Those whose values it needs."""
        return {name: link for name, link in self.all_links.items() if name not in self.raw}

    @property
    def all_links(self) -> dict[str, tuple[str, int]]:
        """Those that it is given as they are, too."""
        return {it: (self.inputs[it][0], self.inputs[it][1]) for it in self._names() if leads(self.inputs.get(it))}

    @property
    def raw(self) -> set[str]:
        return {it.name for it in (*self.kind.inputs, *self.undeclared) if it.is_raw}

    @property
    def lazy(self) -> set[str]:
        declared = (*self.kind.inputs, *self.undeclared)
        return {it.name for it in declared if it.options.get("lazy") and it.name in self.links}

    @property
    def constants(self) -> dict[str, Any]:
        present = {it: self.inputs[it] for it in self._names() if it in self.inputs}
        raw = self.raw
        linked_alone = {it.name for it in self.undeclared if it.links_alone}
        return {
            name: unwrapped(value)
            for name, value in present.items()
            if name in raw or not (leads(value) or name in linked_alone)
        }

    @cached_property
    def undeclared(self) -> list[Input]:
        """Inputs that it does not declare, and takes."""
        return self.kind.undeclared(self.inputs)

    def _names(self) -> list[str]:
        """Inputs that it declares, dynamic ones by the names that are there, and then the others."""
        names = []
        for it in self.kind.inputs:
            names += [it.name] if it.type != AUTOGROW else []
            names += [name for name in self.inputs if name.startswith(f"{it.name}.")]
        return names + [it.name for it in self.undeclared]


def hidden(kind: NodeType) -> dict[str, str]:
    """Names and kinds of the hidden arguments that the executor fills in."""
    kinds = {name: hidden_kind(it) for name, it in kind.hidden.items()}
    return {name: it for name, it in kinds.items() if it in HIDDEN_KINDS}


def nested(kind: NodeType, values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names gathered into one mapping per dynamic input, as nodes take them."""
    given: dict[str, Any] = {it.name: {} for it in kind.inputs if it.type == AUTOGROW}
    types = {it.name: it.type for it in kind.inputs}
    for name, value in values.items():
        head, _, tail = name.partition(".")
        if types.get(head) in (AUTOGROW, DYNAMIC_COMBO):
            given.setdefault(head, {})[tail or head] = value
        else:
            given[name] = value
    return given


def leads(value: Any) -> bool:
    """Whether it is a link. Nodes of an expansion are given objects as they are, and so lists that are none."""
    return is_link(value) and well_formed(value)
