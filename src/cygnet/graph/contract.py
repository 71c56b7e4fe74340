"""How the graph sees a runnable node, and how a class of the classic (V1) contract becomes one.

The classic contract is a class with ``INPUT_TYPES``, ``RETURN_TYPES``, ``FUNCTION`` and some optional hooks; most
custom nodes are written to it. Nothing here runs a node: see :mod:`cygnet.graph.execute`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from cygnet.errors import by_signal
from cygnet.graph.schema import Input, NodeType, Output, Section, type_name

COMPATIBLE_VERSION = "0.38.1"
"""The ComfyUI version whose protocol and node contract are spoken here; clients and packs compare it."""


class NodeClass(Protocol):
    """A node type that can be validated and run."""

    @property
    def judged(self) -> frozenset[str] | None:
        """Inputs that :meth:`check` judges, so that ranges and choices are not enforced on them; None: all."""
        ...

    @property
    def judges_links(self) -> bool:
        """Whether :meth:`check` also judges the types of links."""
        ...

    @property
    def input_is_list(self) -> bool:
        """Called once with lists, instead of once for each of their members."""
        ...

    @property
    def idempotent(self) -> bool:
        """False: results of equal nodes with different ids are not shared."""
        ...

    def describe(self) -> NodeType:
        """What it declares now; choices such as the files of a folder may change between calls."""
        ...

    def check(self, values: Mapping[str, Any], link_types: Mapping[str, str]) -> str | None:
        """What is wrong with these constants, in words, or None; may raise."""
        ...

    def fingerprint(self, values: Mapping[str, Any]) -> Any:
        """Changes whenever results may, though the constants are equal (a file was replaced); may raise.

        Linked inputs are None: their values are not known yet, and the keys of what feeds them count by themselves.
        """
        ...

    def instance(self) -> Any:
        """The object that :meth:`wanted` and :meth:`call` are given; one per node id."""
        ...

    def wanted(self, instance: Any, values: Mapping[str, Any], lazy: frozenset[str]) -> Sequence[str]:
        """Which of the ``lazy`` inputs, absent from ``values`` so far, are needed."""
        ...

    def call(self, instance: Any, values: Mapping[str, Any]) -> Any:
        """Run it once; an awaitable, or a result as the contract allows (see :mod:`cygnet.graph.results`)."""
        ...


@dataclass(frozen=True)
class Classic:
    """A class of the classic contract."""

    name: str
    implementation: type
    display_name: str = ""
    module: str = "nodes"
    """What clients are told of its origin: ``nodes`` and ``comfy_extras...`` for core, ``custom_nodes.<pack>`` else."""

    @property
    def judged(self) -> frozenset[str] | None:
        """See :class:`NodeClass`."""
        hook = getattr(self.implementation, "VALIDATE_INPUTS", None)
        if hook is None:
            return frozenset()
        names, everything = _parameters(hook)
        return None if everything else frozenset(names)

    @property
    def judges_links(self) -> bool:
        """See :class:`NodeClass`."""
        hook = getattr(self.implementation, "VALIDATE_INPUTS", None)
        return hook is not None and "input_types" in _parameters(hook)[0]

    @property
    def input_is_list(self) -> bool:
        """See :class:`NodeClass`."""
        return bool(getattr(self.implementation, "INPUT_IS_LIST", False))

    @property
    def idempotent(self) -> bool:
        """See :class:`NodeClass`."""
        return not getattr(self.implementation, "NOT_IDEMPOTENT", False)

    def describe(self) -> NodeType:
        """See :class:`NodeClass`. Raises whatever ``INPUT_TYPES`` raises."""
        it: Any = self.implementation
        declared = it.INPUT_TYPES()
        sections: tuple[Section, Section] = ("required", "optional")
        inputs = [
            Input.parse(name, spec, section)
            for section in sections
            for name, spec in (declared.get(section) or {}).items()
        ]
        names, lists = (getattr(it, name, None) or () for name in ("RETURN_NAMES", "OUTPUT_IS_LIST"))
        return NodeType(
            name=self.name,
            inputs=tuple(inputs),
            outputs=Output.several(it.RETURN_TYPES, names, lists),
            is_output=bool(getattr(it, "OUTPUT_NODE", False)),
            display_name=self.display_name,
            category=getattr(it, "CATEGORY", ""),
            hidden=dict(declared.get("hidden") or {}),
            extra=self._extra(),
            further_outputs=_type_behind(it.RETURN_TYPES),
            further=functools.partial(self._further, declared),
        )

    def _further(self, declared: Mapping[str, Any], name: str) -> Input | None:
        """What packs do to take inputs of any name: a mapping that holds every one of them, which is how the page's
        scripts add fields; a flag, in the newer contract; or a function with ``**``, which is given links alone.
        """
        if name in (declared.get("hidden") or {}):
            return None
        sections: tuple[Section, Section] = ("required", "optional")
        for section in sections:
            entries = declared.get(section)
            if entries is not None and name in entries:
                try:
                    spec = entries[name]
                except KeyError:  # some say that they hold a name and do not say as what
                    spec = ("*",)
                return Input.parse(name, spec, "optional")
        if getattr(self.implementation, "ACCEPT_ALL_INPUTS", False):
            return Input(name=name, type="*", section="optional")
        function = getattr(self.implementation, getattr(self.implementation, "FUNCTION", ""), None)
        names, everything = _parameters(function) if callable(function) else ([], False)
        if everything or name in names[1:]:  # the first is the instance
            return Input(name=name, type="*", section="optional", links_alone=True)
        return None

    def _extra(self) -> dict[str, Any]:
        it: Any = self.implementation
        extra: dict[str, Any] = {
            "description": getattr(it, "DESCRIPTION", ""),
            "python_module": self.module,
            "is_input_list": self.input_is_list,
        }
        if tooltips := getattr(it, "OUTPUT_TOOLTIPS", None):
            extra["output_tooltips"] = list(tooltips)
        if aliases := getattr(it, "SEARCH_ALIASES", None):
            extra["search_aliases"] = list(aliases)
        if matched := getattr(it, "OUTPUT_MATCHTYPES", None):
            extra["output_matchtypes"] = list(matched)
        flags = {"deprecated": "DEPRECATED", "experimental": "EXPERIMENTAL", "api_node": "API_NODE"}
        return extra | {key: True for key, name in flags.items() if getattr(it, name, False)}

    def check(self, values: Mapping[str, Any], link_types: Mapping[str, str]) -> str | None:
        """See :class:`NodeClass`."""
        hook = getattr(self.implementation, "VALIDATE_INPUTS", None)
        if hook is None:
            return None
        arguments = _accepted(hook, values)
        if self.judges_links:
            arguments["input_types"] = dict(link_types)
        verdict = _settled(hook(**arguments))
        if verdict is True:
            return None
        return verdict if isinstance(verdict, str) else "the node refused these values"

    def fingerprint(self, values: Mapping[str, Any]) -> Any:
        """See :class:`NodeClass`; None without the hook."""
        hook = getattr(self.implementation, "IS_CHANGED", None)
        return None if hook is None else _settled(hook(**_accepted(hook, values)))

    def instance(self) -> Any:
        """See :class:`NodeClass`."""
        return self.implementation()

    def wanted(self, instance: Any, values: Mapping[str, Any], lazy: frozenset[str]) -> Sequence[str]:
        """See :class:`NodeClass`; all of them without the hook."""
        hook = getattr(instance, "check_lazy_status", None)
        if hook is None:
            return sorted(lazy)
        return list(_settled(hook(**_accepted(hook, {**dict.fromkeys(lazy), **values}))) or ())

    def call(self, instance: Any, values: Mapping[str, Any]) -> Any:
        """See :class:`NodeClass`."""
        return getattr(instance, getattr(self.implementation, "FUNCTION"))(**values)  # noqa: B009 (untyped contract)


def _type_behind(declared: Any) -> str | None:
    """What a tuple of types says of a place behind its end: packs write such for nodes with any number of outputs."""
    if type(declared) in (tuple, list):
        return None
    try:
        return type_name(declared[len(declared)])
    except IndexError:
        return None


def describe_all(classes: Mapping[str, NodeClass], failed: Callable[[str, BaseException], None]) -> dict[str, NodeType]:
    """What every class declares now; one whose declaration fails is reported and left out."""
    described = {}
    for name, it in classes.items():
        try:
            described[name] = it.describe()
        except BaseException as error:  # a foreign class may raise anything, and must not hide the others
            if by_signal(error):
                raise
            failed(name, error)
    return described


def _settled(answer: Any) -> Any:
    """What a hook answers, which may be ``async``. In a thread of its own: a loop may be running in this one."""
    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    with ThreadPoolExecutor(1, thread_name_prefix="hook") as thread:
        return thread.submit(asyncio.run, wait()).result()


def _parameters(hook: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names that a hook takes, and whether it takes any other too."""
    parameters = inspect.signature(hook).parameters.values()
    names = [it.name for it in parameters if it.kind in (it.POSITIONAL_OR_KEYWORD, it.KEYWORD_ONLY)]
    return names, any(it.kind is it.VAR_KEYWORD for it in parameters)


def _accepted(hook: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a hook takes; names of inputs that it lacks are left out."""
    names, everything = _parameters(hook)
    return {name: value for name, value in values.items() if everything or name in names}
