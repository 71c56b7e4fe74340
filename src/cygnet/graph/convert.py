"""From a workflow file as the page saves it to the prompt that the page would submit.

A workflow stores every node's widget values as a list without names, links as numbers, and helpers that exist in the
page alone (notes, reroutes, primitives, muted and bypassed nodes, subgraphs). A prompt holds only nodes to run:
``{id: {"class_type": ..., "inputs": {name: constant or [id, slot]}, "_meta": {"title": ...}}}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from cygnet.errors import RequestError
from cygnet.graph.schema import COMBO, Input, NodeType, Registry, fits

Prompt = dict[str, dict[str, Any]]

VIRTUAL = frozenset(("Note", "MarkdownNote", "Reroute", "PrimitiveNode"))
"""Types that exist in the page alone."""

_MUTED, _BYPASSED = 2, 4
_INNER_INPUTS, _INNER_OUTPUTS = -10, -20  # ids of the boundary nodes inside a subgraph
_DEEPEST = 32  # nested subgraphs


def is_prompt(document: object) -> bool:
    """Whether a JSON document is a prompt (API format)."""
    return (
        isinstance(document, Mapping)
        and bool(document)
        and all(isinstance(node, Mapping) and "class_type" in node and "inputs" in node for node in document.values())
    )


def is_workflow(document: object) -> bool:
    """Whether a JSON document is a workflow (UI format)."""
    return isinstance(document, Mapping) and isinstance(document.get("nodes"), list) and "links" in document


def to_prompt(workflow: Mapping[str, Any], registry: Registry) -> Prompt:
    """The prompt of a workflow.

    Types that the registry lacks keep their name and their links, so that validation can name them. Raises
    :class:`~cygnet.errors.RequestError` for a document that is not a workflow or contradicts itself.
    """
    if not is_workflow(workflow):
        raise RequestError("this is not a workflow: it needs 'nodes' (a list) and 'links'")
    try:
        definitions = {it["id"]: it for it in workflow.get("definitions", {}).get("subgraphs", ())}
        top = _Scope.read(workflow, definitions)
        prompt = {key: _emit(scope, node, registry) for scope, key, node in _nodes_to_run(top)}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise RequestError(f"the workflow is damaged: {type(error).__name__} {error}") from error
    for node in prompt.values():
        node["inputs"] = {
            name: value
            for name, value in node["inputs"].items()
            if not isinstance(value, _Source) or value.node in prompt
        }
        node["inputs"] = {
            name: [value.node, value.slot] if isinstance(value, _Source) else value
            for name, value in node["inputs"].items()
        }
    return prompt


# Reading


class _Link(NamedTuple):
    node: str
    slot: int


class _Source(NamedTuple):
    """An output of a node that is run, by its id in the prompt."""

    node: str
    slot: int


@dataclass(frozen=True)
class _Constant:
    value: Any


class _Nothing:
    """The link leads nowhere."""


@dataclass(frozen=True)
class _Own:
    """The link ends at a promoted widget without a value: an inner widget that it feeds keeps its own.

    An input that has no widget takes that of the first one, ``name`` of ``node``.
    """

    node: Mapping[str, Any]
    name: str


_Resolved = _Source | _Constant | _Nothing | _Own


@dataclass
class _Scope:
    """One graph: the workflow itself, or one instance of a subgraph."""

    nodes: dict[str, Mapping[str, Any]]
    links: dict[Any, _Link]
    definitions: Mapping[str, Mapping[str, Any]]
    prefix: str = ""
    parent: _Scope | None = None
    instance: Mapping[str, Any] = field(default_factory=dict)
    definition: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        graph: Mapping[str, Any],
        definitions: Mapping[str, Mapping[str, Any]],
        **where: Any,
    ) -> _Scope:
        links = {}
        for link in graph["links"]:
            if isinstance(link, Mapping):
                links[link["id"]] = _Link(str(link["origin_id"]), int(link["origin_slot"]))
            else:
                links[link[0]] = _Link(str(link[1]), int(link[2]))
        return cls({str(node["id"]): node for node in graph["nodes"]}, links, definitions, **where)

    def enter(self, node: Mapping[str, Any]) -> _Scope | None:
        """The graph inside ``node``, if it is an instance of a subgraph."""
        definition = self.definitions.get(node["type"])
        if definition is None:
            return None
        prefix = f"{self.prefix}{node['id']}:"
        if prefix.count(":") > _DEEPEST:
            raise RequestError(f"subgraph {definition.get('name')!r} contains itself")
        return _Scope.read(
            definition, self.definitions, prefix=prefix, parent=self, instance=node, definition=definition
        )


def _nodes_to_run(scope: _Scope) -> Iterator[tuple[_Scope, str, Mapping[str, Any]]]:
    for node in scope.nodes.values():
        if node.get("mode", 0) in (_MUTED, _BYPASSED) or node["type"] in VIRTUAL:
            continue
        inside = scope.enter(node)
        if inside is None:
            yield scope, f"{scope.prefix}{node['id']}", node
        else:
            yield from _nodes_to_run(inside)


# Writing


def _emit(scope: _Scope, node: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    kind = registry.get(node["type"])
    inputs: dict[str, Any] = dict(_widget_values(node, kind)) if kind else {}
    for entry in node.get("inputs") or ():
        if entry.get("link") is None:
            continue
        found = _follow(scope, entry["link"], str(entry.get("type", "*")))
        if isinstance(found, _Source):
            inputs[entry["name"]] = found
        elif isinstance(found, _Own) and "widget" not in entry:
            first = registry.get(found.node["type"])
            values = dict(_widget_values(found.node, first)) if first else {}
            if found.name in values:
                inputs[entry["name"]] = values[found.name]
        elif isinstance(found, _Constant):
            declared = kind.input(entry["name"]) if kind else None
            inputs[entry["name"]] = _wrapped(_on_grid(found.value, declared))
    title = node.get("title") or (kind.display_name if kind else "") or node["type"]
    properties = node.get("properties") or {}
    pack = {key: properties[key] for key in ("cnr_id", "aux_id", "ver") if key in properties}
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title, **pack}}


def _widget_values(node: Mapping[str, Any], kind: NodeType) -> Iterator[tuple[str, Any]]:
    """Name and value of every widget, linked or not: the list in the file has a slot for each."""
    stored = node.get("widgets_values")
    if isinstance(stored, Mapping):
        for it in _expanded(kind.inputs, stored):
            yield it.name, _wrapped(stored.get(it.name, it.default))
        return
    values = list(stored or ())
    pending = [it for it in kind.inputs if it.has_widget]
    at = 0
    while pending:
        it = pending.pop(0)
        value = values[at] if at < len(values) else it.default
        at += 1 + _companions(it)
        yield it.name, _wrapped(value)
        pending[:0] = [further for further in it.chosen(value) if further.has_widget]


def _expanded(inputs: Sequence[Input], values: Mapping[str, Any]) -> Iterator[Input]:
    for it in inputs:
        if it.has_widget:
            yield it
            yield from _expanded(it.chosen(values.get(it.name)), values)


def _companions(it: Input) -> int:
    """Slots that the page stores after the value: what to do with it after each run, and a combo's filter."""
    control = it.options.get("control_after_generate")
    if it.type == COMBO:
        return 2 if control else 0
    seed = it.name.rpartition(".")[2] in ("seed", "noise_seed") and control is not False
    return 1 if it.type == "INT" and (seed or control) else 0


def _wrapped(value: Any) -> Any:
    """A list would be read as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _on_grid(value: Any, target: Input | None) -> Any:
    """A primitive's number as the page rounds it to the step of the widget that it feeds."""
    step = target.options.get("step", 1) if target and target.type == "INT" else 0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not step or target is None:
        return value
    shift = (target.options.get("min") or 0) % step
    # Half a step rounds upwards there.
    return int((value - shift + step / 2) // step * step + shift)


# Following links


def _follow(scope: _Scope, link: Any, wanted: str) -> _Resolved:
    """What feeds an input of type ``wanted`` through ``link``."""
    at = scope.links.get(link)
    return _Nothing() if at is None else _resolve(scope, at.node, at.slot, wanted)


def _resolve(scope: _Scope, node_id: str, slot: int, wanted: str) -> _Resolved:
    if node_id == str(_INNER_INPUTS):
        return _from_outside(scope, slot)
    node = scope.nodes.get(node_id)
    if node is None or node.get("mode", 0) == _MUTED:
        return _Nothing()
    if node.get("mode", 0) == _BYPASSED:
        return _through(scope, node, slot, wanted)
    if node["type"] == "Reroute":
        entries = node.get("inputs") or ()
        return _follow(scope, entries[0].get("link"), wanted) if entries else _Nothing()
    if node["type"] == "PrimitiveNode":
        values = node.get("widgets_values") or ()
        return _Constant(values[0]) if values else _Nothing()
    inside = scope.enter(node)
    if inside is None:
        return _Source(f"{scope.prefix}{node_id}", slot)
    return _from_inside(inside, slot, wanted)


def _through(scope: _Scope, node: Mapping[str, Any], slot: int, wanted: str) -> _Resolved:
    """A bypassed node hands on one of its inputs."""
    entries, outputs = node.get("inputs") or [], node.get("outputs") or []
    beside = entries[slot] if slot < len(entries) else None
    given = str(outputs[slot].get("type", "*")) if slot < len(outputs) else "*"
    chosen: Mapping[str, Any] | None
    if wanted in ("", "*"):
        chosen = beside or (entries[0] if entries else None)
    elif beside is not None and fits(str(beside["type"]), given) and fits(str(beside["type"]), wanted):
        chosen = beside
    else:
        same = [entry for entry in entries if entry["type"] == wanted]
        chosen = next(iter([*same, *(entry for entry in entries if fits(str(entry["type"]), wanted))]), None)
    return _Nothing() if chosen is None else _follow(scope, chosen.get("link"), wanted)


def _from_inside(scope: _Scope, slot: int, wanted: str) -> _Resolved:
    """What arrives at output ``slot`` of a subgraph instance."""
    for link in scope.definition["links"]:
        if str(link["target_id"]) == str(_INNER_OUTPUTS) and link["target_slot"] == slot:
            return _follow(scope, link["id"], wanted)
    return _Nothing()


def _from_outside(scope: _Scope, slot: int) -> _Resolved:
    """What a subgraph instance is given at input ``slot`` of its definition: a link, a promoted value, or nothing."""
    declared = scope.definition["inputs"][slot]
    assert scope.parent is not None
    for entry in scope.instance.get("inputs") or ():
        if entry["name"] == declared["name"] and entry.get("link") is not None:
            found = _follow(scope.parent, entry["link"], str(declared.get("type", "*")))
            if not isinstance(found, _Own):
                return found
    return _promoted(scope, declared) or _Nothing()


def _promoted(scope: _Scope, declared: Mapping[str, Any]) -> _Constant | _Own | None:
    """What a subgraph instance's widget for the input ``declared`` holds; None if the input has no widget."""
    behind = {it["name"]: _widget_behind(scope, it) for it in scope.definition["inputs"]}
    own = behind[declared["name"]]
    if own is None:
        return None
    at = [name for name, it in behind.items() if it is not None].index(declared["name"])
    values = scope.instance.get("widgets_values")
    value = values[at] if isinstance(values, list) and at < len(values) else None
    return own if value is None else _Constant(value)


def _widget_behind(scope: _Scope, declared: Mapping[str, Any]) -> _Constant | _Own | None:
    """What the first inner widget holds that an input of a subgraph's definition feeds; None if it feeds none."""
    slot = scope.definition["inputs"].index(declared)
    for link in scope.definition["links"]:
        if str(link["origin_id"]) != str(_INNER_INPUTS) or link["origin_slot"] != slot:
            continue
        node = scope.nodes.get(str(link["target_id"]))
        entries = (node or {}).get("inputs") or []
        if node is None or link["target_slot"] >= len(entries):
            continue
        entry = entries[link["target_slot"]]
        inside = scope.enter(node)
        if inside is not None:
            further = [it for it in inside.definition["inputs"] if it["name"] == entry["name"]]
            if further and (found := _promoted(inside, further[0])) is not None:
                return found
        elif entry.get("widget"):
            return _Own(node, entry["widget"]["name"])
    return None


# Text


def expand_choices(text: str, choose: Any) -> str:
    """A prompt's text as the page submits it: comments removed, ``{a|b}`` replaced by one choice, ``\\{`` by a brace.

    ``choose(sequence)`` picks a member, as ``random.Random.choice`` does.
    """
    text = re.sub(r"/\*[\s\S]*?\*/|//[^\n]*", "", text)
    return _choices(text, 0, choose, nested=False)[0]


def expand_prefix(text: str, prompt: Prompt, now: datetime) -> str:
    """A file name's prefix as the page submits it: ``%date:yyyy-MM-dd%`` and ``%Title.widget%`` replaced.

    A node is named by its title or type. What names none, or no constant, stays; ``/`` and the like in a value become
    ``_``, for a value is no folder.
    """

    def value(found: re.Match[str]) -> str:
        inside = found[1]
        if inside.startswith("date:"):
            return re.sub(r"yyyy|yy|MM?|dd?|hh?|mm?|ss?", lambda it: _moment(it[0], now), inside.removeprefix("date:"))
        title, dot, name = inside.rpartition(".")
        for node in prompt.values() if dot else ():
            given = node["inputs"].get(name)
            if title in (node.get("_meta", {}).get("title"), node["class_type"]) and isinstance(
                given, str | int | float
            ):
                return re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", str(given))
        return found[0]

    return re.sub(r"%([^%]+)%", value, text)


def _moment(token: str, now: datetime) -> str:
    values = {"y": now.year, "M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}
    number = values[token[0]] % 100 if token == "yy" else values[token[0]]
    return f"{number:0{len(token)}d}"


def _choices(text: str, at: int, choose: Any, *, nested: bool) -> tuple[str, int]:
    """The text from ``at`` on, or to the closing brace when ``nested``; and where it ends."""
    options, current = [], ""
    while at < len(text):
        letter = text[at]
        if letter == "\\" and text[at + 1 : at + 2] in ("{", "}"):
            current, at = current + text[at + 1], at + 2
        elif letter == "{":
            inner, at = _choices(text, at + 1, choose, nested=True)
            current += inner
        elif nested and letter == "|":
            options.append(current)
            current, at = "", at + 1
        elif nested and letter == "}":
            return str(choose([*options, current])), at + 1
        else:
            current, at = current + letter, at + 1
    return (str(choose([*options, current])) if nested else current), at
