"""Is a prompt fit to run? Answers are data, in the shapes that the page shows; nothing here raises for a bad prompt.

Each node is looked at once. An output node is valid when everything that it needs is; a job runs its valid outputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cygnet.errors import by_signal, text_of
from cygnet.graph.contract import NodeClass
from cygnet.graph.convert import Prompt
from cygnet.graph.schema import AUTOGROW, COMBO, DYNAMIC_COMBO, MATCH, Input, NodeType, fits
from cygnet.graph.traces import trace_of

_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_LONG_LIST = 20
_LONGEST_RING = 50
MOST_TOLD = 100
"""Nodes whose problems are told; a prompt of many thousands could else be answered with many times its size."""
_WRAPPED = "__value__"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    type: str
    """From the protocol's list; the page has a text for each."""
    message: str
    details: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "type": self.type,
            "message": self.message,
            "details": self.details,
            "extra_info": dict(self.extra_info),
        }


@dataclass
class NodeProblems:
    """What is wrong with one node, and which outputs cannot run for it."""

    class_type: str
    errors: list[Problem] = field(default_factory=list)
    dependent_outputs: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "errors": [it.json() for it in self.errors],
            "dependent_outputs": self.dependent_outputs,
            "class_type": self.class_type,
        }


@dataclass(frozen=True)
class Verdict:
    """The result: with an ``error`` nothing runs, else the ``outputs`` do."""

    prompt: Prompt
    """The prompt with its constants converted to their declared types."""
    outputs: tuple[str, ...] = ()
    error: Problem | None = None
    nodes: Mapping[str, NodeProblems] = field(default_factory=dict)


def validate(prompt: Prompt, classes: Mapping[str, NodeClass], targets: Collection[str] | None = None) -> Verdict:
    """Judge a prompt; with ``targets`` only those output nodes are asked for. The prompt given is left as it is."""
    types: dict[str, NodeType] = {}
    for key, node in prompt.items():
        name = node.get("class_type") if isinstance(node, Mapping) else None
        if not isinstance(name, str) or name not in classes or not isinstance(node.get("inputs"), Mapping):
            return Verdict(prompt, error=_unknown(key, node, name))
        try:
            types[name] = types.get(name) or classes[name].describe()
        except BaseException as error:  # a foreign class may raise anything
            if by_signal(error):
                raise
            problem = _raised(f"Node {key} ({name}) cannot be described", error)
            return Verdict(prompt, error=problem, nodes={key: NodeProblems(name, [problem])})
    wanted = [
        key
        for key, node in prompt.items()
        if types[node["class_type"]].is_output and (targets is None or key in targets)
    ]
    if not wanted:
        return Verdict(prompt, error=Problem("prompt_no_outputs", "The prompt has no output node, such as Save Video"))
    converted = {key: {**node, "inputs": dict(node["inputs"])} for key, node in prompt.items()}
    return _judge(converted, classes, types, wanted)


def _judge(
    prompt: Prompt, classes: Mapping[str, NodeClass], types: Mapping[str, NodeType], wanted: list[str]
) -> Verdict:
    needs = {key: links_of(node["inputs"]) for key, node in prompt.items()}
    needed = _reached(wanted, needs)
    found: dict[str, NodeProblems] = {}
    for key in needed:
        node = prompt[key]
        kind = types[node["class_type"]]
        try:
            problems = _Node(key, node["inputs"], kind, classes[node["class_type"]], prompt, types).problems()
        except BaseException as error:  # what a foreign class declares may be anything
            if by_signal(error):
                raise
            problems = [_raised("The node cannot be checked by what it declares", error)]
        if problems:
            found[key] = NodeProblems(kind.name, problems)
    for first, ring in _rings(needed, needs).items():
        info = {"node_ids": ring}
        found.setdefault(first, NodeProblems(prompt[first]["class_type"])).errors.append(
            Problem("dependency_cycle", "Nodes need one another's results", ", ".join(ring), info)
        )
    _tell_consumers({key: prompt[key] for key in needed}, types, found)
    feeds: dict[str, list[str]] = {key: [] for key in prompt}
    for key in needed:
        for source in needs[key]:
            if source in feeds:
                feeds[source].append(key)
    broken = _reached(found, feeds)
    valid = tuple(output for output in wanted if output not in broken)
    told = dict(itertools.islice(found.items(), MOST_TOLD))
    for key, it in told.items():
        spoilt = _reached([key], feeds)
        it.dependent_outputs += [output for output in wanted if output in spoilt]
    if valid:
        return Verdict(prompt, valid, None, told)
    lines = [f"{it.message}: {it.details}" for node in told.values() for it in node.errors]
    lines += [f"... and {len(found) - len(told)} more nodes"] if len(found) > len(told) else []
    failed = Problem("prompt_outputs_failed_validation", "No output of the prompt can run", "\n".join(lines))
    return Verdict(prompt, (), failed, told)


def _tell_consumers(prompt: Prompt, types: Mapping[str, NodeType], found: dict[str, NodeProblems]) -> None:
    """Nodes that are linked to one whose own check raised are told so, at the input that the link goes into."""
    raised = {
        key: problem
        for key, node in found.items()
        for problem in node.errors
        if problem.type == "exception_during_validation" and "exception_type" in problem.extra_info
    }
    for key, node in prompt.items() if raised else ():
        declared = {it.name.partition(".")[0] for it in types[node["class_type"]].inputs}
        for name, value in node["inputs"].items():
            if name.partition(".")[0] in declared and links_of({name: value}) and value[0] in raised:
                inner = raised[value[0]]
                info = {**inner.extra_info, "input_name": name, "linked_node": value}
                text = f"The check of node {value[0]}, which it is linked to, failed"
                problem = Problem("exception_during_inner_validation", text, inner.details, info)
                found.setdefault(key, NodeProblems(node["class_type"])).errors.append(problem)


def is_link(value: Any) -> bool:
    """Whether an input's value is meant as a link: constants that are lists come wrapped."""
    return isinstance(value, list)


def unwrapped(value: Any) -> Any:
    """A constant without the wrapping that tells a list from a link."""
    return value[_WRAPPED] if isinstance(value, Mapping) and _WRAPPED in value else value


def links_of(inputs: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes that well-formed links lead to, in the order of the inputs."""
    return [value[0] for value in inputs.values() if is_link(value) and well_formed(value)]


def well_formed(link: list[Any]) -> bool:
    """Whether it is a node id and an output number; any other list leads nowhere."""
    return len(link) == 2 and isinstance(link[0], str) and isinstance(link[1], int) and not isinstance(link[1], bool)


def _reached(starts: Iterable[str], ways: Mapping[str, list[str]]) -> dict[str, None]:
    """Every node that ``ways`` lead to from ``starts``, these included, each once."""
    seen: dict[str, None] = {}
    for start in starts:
        waiting = [] if start in seen else [start]
        seen[start] = None
        while waiting:
            for key in ways[waiting.pop()]:
                if key in ways and key not in seen:
                    seen[key] = None
                    waiting.append(key)
    return seen


def _rings(starts: Iterable[str], needs: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """A node of every loop, with the loop's nodes; of long loops and of many only the beginnings are told."""
    done: set[str] = set()
    rings: dict[str, list[str]] = {}
    for start in starts:
        path: dict[str, None] = {}
        stack = [(start, iter(needs[start]))] if start not in done else []
        if stack:
            path[start] = None
        while stack:
            key, further = stack[-1]
            following = next(further, None)
            if following is None:
                stack.pop()
                path.pop(key, None)
                done.add(key)
            elif following in path:
                if following not in rings:
                    rings[following] = _ring(path, following) if len(rings) < MOST_TOLD else [following, "..."]
            elif following in needs and following not in done:
                path[following] = None
                stack.append((following, iter(needs[following])))
    return rings


def _ring(path: Iterable[str], first: str) -> list[str]:
    ring = list(itertools.islice(itertools.dropwhile(lambda key: key != first, path), _LONGEST_RING + 1))
    return ring if len(ring) <= _LONGEST_RING else [*ring[:_LONGEST_RING], "..."]


def _unknown(key: str, node: Any, name: Any) -> Problem:
    shown = node if isinstance(node, Mapping) else {}
    title = (shown.get("_meta") or {}).get("title") if isinstance(shown.get("_meta"), Mapping) else None
    if isinstance(name, str) and "inputs" in shown and not isinstance(shown["inputs"], Mapping):
        message = f"Node {key} ({name}) has no inputs object"
    else:
        message = f"Node {key} is of a type that is not installed: {name}" if name else f"Node {key} has no class_type"
    info = {"node_id": key, "class_type": name if isinstance(name, str) else None, "node_title": title}
    return Problem("missing_node_type", message, f"Node ID '#{key}'", info)


def _raised(message: str, error: BaseException) -> Problem:
    info = {"exception_type": type(error).__name__, "traceback": trace_of(error)}
    return Problem("exception_during_validation", message, text_of(error), info)


# One node


@dataclass
class _Node:
    key: str
    inputs: dict[str, Any]
    kind: NodeType
    node_class: NodeClass
    prompt: Prompt
    types: Mapping[str, NodeType]

    def problems(self) -> list[Problem]:
        found = [it for declared in self.declared() for it in self.input(declared)]
        found += [it for declared in self.kind.inputs if declared.type == AUTOGROW for it in self.strangers(declared)]
        return found or self.hook()

    def declared(self) -> Iterable[Input]:
        """The declared inputs, dynamic ones spelt out for the names and choices that are present."""
        for it in self.kind.inputs:
            yield from self.expanded(it)
        for it in self.kind.undeclared(self.inputs):
            if is_link(self.inputs[it.name]) or not it.links_alone:
                yield it

    def expanded(self, it: Input) -> Iterable[Input]:
        if it.type == AUTOGROW:
            yield from _grown(it, self.inputs)
            return
        yield it
        for further in it.chosen(self.inputs.get(it.name)):
            yield from self.expanded(further)

    def strangers(self, it: Input) -> Iterable[Problem]:
        """Members that are given to an input which does not grow that far."""
        known = {member.name for member in _grown(it, self.inputs)}
        for name in self.inputs:
            if name.startswith(f"{it.name}.") and name not in known:
                info = {"input_name": name, "input_config": it.declared()}
                yield Problem("invalid_dynamic_input", f"{it.name} has no such member", name, info)

    def input(self, it: Input) -> list[Problem]:
        if it.name not in self.inputs:
            if it.section == "optional":
                return []
            return [_about(it, "required_input_missing", "A required input is missing")]
        value = self.inputs[it.name]
        return self.link(it, value) if is_link(value) else self.constant(it, value)

    def link(self, it: Input, link: list[Any]) -> list[Problem]:
        if not well_formed(link):
            text = "A link must be a node id and an output number"
            return [
                _about(it, "bad_linked_input", text, received_value=link if len(str(link)) <= 200 else _short(link))
            ]
        source = self.prompt.get(link[0])
        if source is None:
            text = f"The node it is linked to, {link[0]}, is not in the prompt"
            return [_about(it, "exception_during_validation", text, linked_node=link)]
        kind = self.types[source["class_type"]]
        output = kind.output(link[1])
        if output is None:
            text = f"Node {link[0]} has {len(kind.outputs)} outputs, not number {link[1]}"
            return [_about(it, "bad_linked_input", text, received_value=link)]
        given, wanted = output.type, _link_type(it)
        if self.node_class.judges_links or fits(given, wanted) or MATCH in (given, wanted):
            return []
        details = f"{it.name}, received_type({given}) mismatch input_type({wanted})"
        text = "The linked output has another type"
        return [_about(it, "return_type_mismatch", text, details, received_type=given, linked_node=link)]

    def constant(self, it: Input, value: Any) -> list[Problem]:
        value = unwrapped(value)
        convert = _CONVERSIONS.get(it.type)
        if convert is not None:
            try:
                value = convert(value)
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError("it is not a finite number")
            except (TypeError, ValueError, OverflowError) as error:
                text = f"The value cannot be made {it.type}"
                details = f"{it.name}, {_short(value)}, {error}"
                given = {"received_value": _short(value), "exception_message": str(error)}
                return [_about(it, "invalid_input_type", text, details, **given)]
        self.inputs[it.name] = {_WRAPPED: value} if is_link(value) else value
        judged = self.node_class.judged
        return [] if judged is None or it.name in judged else list(_limits(it, value))

    def hook(self) -> list[Problem]:
        present = {it.name: self.inputs[it.name] for it in self.declared() if it.name in self.inputs}
        constants = {name: unwrapped(value) for name, value in present.items() if not is_link(value)}
        sources = {
            name: self.types[self.prompt[value[0]]["class_type"]].output(value[1])
            for name, value in present.items()
            if is_link(value)
        }
        link_types = {name: output.type for name, output in sources.items() if output is not None}
        try:
            wrong = self.node_class.check(constants, link_types)
        except BaseException as error:  # a foreign hook may raise anything
            if by_signal(error):
                raise
            return [_raised("The node's own check failed", error)]
        if wrong is None:
            return []
        judged = self.node_class.judged
        # A hook says what is wrong and not where: each input that it judges is marked, as far as it is there.
        names = [name for name in constants if judged is None or name in judged] or [""]
        declared = {it.name: it.declared() for it in self.declared()}
        return [
            Problem(
                "custom_validation_failed",
                "The node refuses an input",
                f"{name}: {wrong}" if name else wrong,
                {"input_name": name, "input_config": declared.get(name), "received_value": _short(constants.get(name))},
            )
            for name in names
        ]


def _about(it: Input, kind: str, message: str, details: str | None = None, **info: Any) -> Problem:
    long = len(it.choices) > _LONG_LIST
    config = None if long and kind == "value_not_in_list" else it.declared()
    return Problem(
        kind, message, it.name if details is None else details, {"input_name": it.name, "input_config": config, **info}
    )


def _limits(it: Input, value: Any) -> Iterable[Problem]:
    low, high = it.options.get("min"), it.options.get("max")
    if it.type in ("INT", "FLOAT"):
        if low is not None and value < low:
            text = f"{value} is smaller than the least allowed, {low}"
            yield _about(it, "value_smaller_than_min", text, received_value=value)
        if high is not None and value > high:
            text = f"{value} is bigger than the most allowed, {high}"
            yield _about(it, "value_bigger_than_max", text, received_value=value)
    elif it.type in (COMBO, DYNAMIC_COMBO) and "remote" not in it.options:
        several = it.options.get("multiselect") or it.options.get("multi_select")
        for one in value if several and isinstance(value, list) else [value]:
            if one not in it.choices:
                allowed = f"(list of length {len(it.choices)})" if len(it.choices) > _LONG_LIST else list(it.choices)
                details = f"{it.name}: {_short(one)!r} not in {allowed}"
                text = "The value is not among the choices"
                yield _about(it, "value_not_in_list", text, details, received_value=_short(one))


def _link_type(it: Input) -> str:
    if it.type == MATCH:
        return str((it.options.get("template") or {}).get("allowed_types", "*"))
    return COMBO if it.type == DYNAMIC_COMBO else it.type


def _grown(it: Input, inputs: Mapping[str, Any]) -> Iterable[Input]:
    """Inputs ``it.name.<member>`` that are present, and those that must be."""
    template = it.options.get("template") or {}
    declared = template.get("input") or {}
    ((_, spec),) = list({**(declared.get("required") or {}), **(declared.get("optional") or {})}.items())[:1]
    names = template.get("names") or [f"{template.get('prefix', '')}{i}" for i in range(int(template.get("max", 100)))]
    least = int(template.get("min", 0))
    for i, name in enumerate(names):
        full = f"{it.name}.{name}"
        if full in inputs or i < least:
            yield Input.parse(full, spec, "required" if i < least and it.section == "required" else "optional")


def _short(value: Any) -> Any:
    """A value fit for a message: numbers as they are, the rest as text of bounded length."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
