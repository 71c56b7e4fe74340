"""What a node type declares: its inputs, outputs and flags, as clients read them from ``object_info``.

A type name is a free string. ``*`` fits everything, and a comma list ("IMAGE,MASK") each of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any, Literal
from weakref import WeakKeyDictionary

from cygnet.errors import RequestError

Section = Literal["required", "optional"]

COMBO = "COMBO"
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
MATCH = "COMFY_MATCHTYPE_V3"

HIDDEN_KINDS = frozenset(
    ("PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID", "AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG")
)
"""Kinds of hidden arguments that the executor fills in."""
_WIDGET_TYPES = frozenset(
    ("INT", "FLOAT", "STRING", "BOOLEAN", COMBO, "COLOR", "MARKDOWN", "CURVE", "BOUNDING_BOX", DYNAMIC_COMBO)
)
_UPLOADS = ("image_upload", "video_upload", "animated_image_upload")


def fits(given: str, wanted: str) -> bool:
    """Whether a value of type ``given`` may go into an input of type ``wanted``, by names alone."""
    left, right = given.lower(), wanted.lower()
    if left == right or any(name in ("", "*") for name in (left, right)):
        return True
    return bool({part.strip() for part in left.split(",")} & {part.strip() for part in right.split(",")})


def hidden_kind(declared: Any) -> str:
    """The kind of a hidden argument; both contracts' ways of writing it."""
    return declared if isinstance(declared, str) else str(declared[0])


def type_name(declared: object) -> str:
    """The name of a declared type: a list of choices is a combo, and a wildcard ``*``.

    Packs write a wildcard as a string, of any name, that says of no other string that it differs; that is lost as soon
    as the type is plain text, so it is asked here, where it is read.
    """
    if not isinstance(declared, str):
        return COMBO
    return str.__str__(declared) if declared != "the name of no type" else "*"


_drained: WeakKeyDictionary[Iterator[Any], list[Any]] = WeakKeyDictionary()
"""What generators gave that packs declare as choices: one can be gone through once, and is declared again and again."""


def _listed(choices: Iterable[Any]) -> list[Any]:
    """Choices as a list; packs give tuples, keys of mappings, and generators too."""
    if not isinstance(choices, GeneratorType):
        return list(choices)
    if choices not in _drained:
        _drained[choices] = list(choices)
    return list(_drained[choices])


@dataclass(frozen=True, kw_only=True)
class Input:
    """One declared input of a node type."""

    name: str
    type: str
    """A type name; ``COMBO`` for a choice among ``options["options"]``."""
    section: Section = "required"
    options: Mapping[str, Any] = field(default_factory=dict)
    listed: bool = False
    """A combo that was declared as a bare list of its choices, and is shown to clients as one."""
    links_alone: bool = False
    """Constants are not passed to the node."""

    @classmethod
    def parse(cls, name: str, declared: Sequence[Any], section: Section) -> Input:
        """From ``(type,)``, ``(type, options)``, ``(choices,)`` or ``(choices, options)``."""
        kind = declared[0]
        options = dict(declared[1]) if len(declared) > 1 and declared[1] else {}
        if not isinstance(kind, str):
            options["options"] = _listed(kind)
            return cls(name=name, type=COMBO, section=section, options=options, listed=True)
        if type_name(kind) == COMBO and options.get("options") is not None:
            options["options"] = _listed(options["options"])
        return cls(name=name, type=type_name(kind), section=section, options=options)

    def declared(self) -> list[Any]:
        """Undo :meth:`parse`."""
        if not self.listed:
            return [self.type, dict(self.options)]
        return [list(self.choices), {key: value for key, value in self.options.items() if key != "options"}]

    @property
    def choices(self) -> Sequence[Any]:
        """What a combo offers; empty for other types."""
        if self.type == DYNAMIC_COMBO:
            return [option["key"] for option in self.options.get("options", ())]
        return list(self.options.get("options") or ()) if self.type == COMBO else ()

    @property
    def has_widget(self) -> bool:
        """Whether the page shows a field for it, so that a workflow file stores a value."""
        return not self.options.get("forceInput") and (self.type in _WIDGET_TYPES or "widgetType" in self.options)

    @property
    def is_raw(self) -> bool:
        """Whether the node is given a link itself, ``[id, slot]``, whose node is not run for it."""
        return bool(self.options.get("rawLink"))

    @property
    def uploads(self) -> bool:
        """Whether the page puts an upload button beside it."""
        return any(self.options.get(key) for key in _UPLOADS)

    @property
    def default(self) -> Any:
        """What the page fills in for a new node."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(self.type, "")

    def chosen(self, key: object) -> tuple[Input, ...]:
        """The further inputs, named ``parent.child``, that a dynamic combo has while ``key`` is selected."""
        if self.type != DYNAMIC_COMBO:
            return ()
        for option in self.options.get("options", ()):
            if option["key"] == key:
                return tuple(
                    Input.parse(f"{self.name}.{name}", declared, section)
                    for section, name, declared in _declarations(option.get("inputs", {}), {})
                )
        return ()


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of a node type."""

    name: str
    type: str
    is_list: bool = False
    """The node returns a list whose members are spread over what follows."""

    @classmethod
    def several(cls, kinds: Sequence[Any], names: Sequence[Any], lists: Sequence[Any]) -> tuple[Output, ...]:
        """From what a class declares side by side: an output without a name has its type's, one unmarked is no list."""
        types = [type_name(kind) for kind in kinds]
        labels = [*[*names][: len(types)], *types[len(names) :]]
        marks = [*[*lists][: len(types)], *[False] * (len(types) - len(lists))]
        return tuple(
            cls(name=str(label), type=kind, is_list=bool(many))
            for label, kind, many in zip(labels, types, marks, strict=True)
        )


def _nothing_further(name: str) -> Input | None:
    return None


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Everything about a node type but what it does."""

    name: str
    inputs: tuple[Input, ...] = ()
    """In the order in which the page shows them."""
    outputs: tuple[Output, ...] = ()
    is_output: bool = False
    """Running it is a purpose in itself: a job runs its output nodes and what they need."""
    display_name: str = ""
    category: str = ""
    hidden: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that the page does not show: name to kind. The executor fills in those of :data:`HIDDEN_KINDS`; others
    are taken from the prompt where it has them, as the expansions of loops give them to their copies."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else a client is told: description, flags, ``python_module``."""
    further_outputs: str | None = None
    """Type of the outputs behind ``outputs``, where the node gives as many as it likes; None: it gives no more."""
    further: Callable[[str], Input | None] = _nothing_further
    """The input of a name that is not among ``inputs``, where the node takes names that it does not declare."""

    @classmethod
    def parse(cls, name: str, info: Mapping[str, Any]) -> NodeType:
        """From an entry of ``object_info``. Raises :class:`~cygnet.errors.RequestError` when it is not one."""
        try:
            declared, order = info["input"], info.get("input_order", {})
            outputs = Output.several(info["output"], info.get("output_name") or (), info.get("output_is_list") or ())
            inputs = [Input.parse(key, spec, section) for section, key, spec in _declarations(declared, order)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RequestError(f"the description of node type {name!r} cannot be read: {error!r}") from error
        return cls(
            name=name,
            inputs=tuple(inputs),
            outputs=outputs,
            is_output=bool(info.get("output_node")),
            display_name=info.get("display_name") or "",
            category=info.get("category") or "",
            hidden=dict(declared.get("hidden", {})),
            extra={key: value for key, value in info.items() if key not in _ENTRY},
        )

    def info(self) -> dict[str, Any]:
        """The entry of ``object_info``."""
        sections: dict[str, dict[str, Any]] = {"required": {}}
        for it in self.inputs:
            sections.setdefault(it.section, {})[it.name] = it.declared()
        if self.hidden:
            sections["hidden"] = dict(self.hidden)
        return {
            "input": sections,
            "input_order": {section: list(entries) for section, entries in sections.items()},
            "output": [it.type for it in self.outputs],
            "output_is_list": [it.is_list for it in self.outputs],
            "output_name": [it.name for it in self.outputs],
            "name": self.name,
            "display_name": self.display_name or self.name,
            "category": self.category,
            "output_node": self.is_output,
            **self.extra,
        }

    def input(self, name: str) -> Input | None:
        """The declared input of that name."""
        return next((it for it in self.inputs if it.name == name), None)

    def output(self, slot: int) -> Output | None:
        """The output of that number, declared or one of those behind."""
        if 0 <= slot < len(self.outputs):
            return self.outputs[slot]
        if slot < 0 or self.further_outputs is None:
            return None
        return Output(name=self.further_outputs, type=self.further_outputs)

    def undeclared(self, given: Iterable[str]) -> list[Input]:
        """The inputs of the ``given`` names that are not declared and that the node takes nevertheless."""
        names = {it.name for it in self.inputs}
        # A dotted name belongs to the dynamic input before its dot.
        others = [name for name in given if name not in names and name.partition(".")[0] not in names]
        return [it for it in (self._unfilled(name) or self.further(name) for name in others) if it is not None]

    def _unfilled(self, name: str) -> Input | None:
        """The hidden argument of that name as an input, if its kind is one that the executor does not fill in."""
        declared = self.hidden.get(name, "PROMPT")
        if hidden_kind(declared) in HIDDEN_KINDS:
            return None
        options = {} if isinstance(declared, str) else Input.parse(name, declared, "optional").options
        kept = {key: options[key] for key in ("rawLink", "lazy") if key in options}
        return Input(name=name, type="*", section="optional", options=kept)  # nobody judges what it is given


Registry = Mapping[str, NodeType]
"""Every node type that can be run, by name."""

_ENTRY = frozenset(
    (
        *("input", "input_order", "output", "output_is_list", "output_name"),
        *("name", "display_name", "category", "output_node"),
    )
)


def parse_registry(info: Mapping[str, Any]) -> dict[str, NodeType]:
    """All entries of ``object_info``."""
    return {name: NodeType.parse(name, entry) for name, entry in info.items()}


def _declarations(
    declared: Mapping[str, Any], order: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Section, str, Sequence[Any]]]:
    """Section, name and declaration of each input: required first; those without a place in ``order`` last."""
    sections: tuple[Section, Section] = ("required", "optional")
    for section in sections:
        entries = declared.get(section) or {}
        ordered = [name for name in order.get(section, ()) if name in entries]
        for name in dict.fromkeys([*ordered, *entries]):
            yield section, name, entries[name]
