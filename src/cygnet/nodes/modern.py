"""Custom nodes of the current (V3) contract: what their packs import, and how such a class becomes a classic one.

A pack of this kind describes its nodes by objects (``io.Schema``, ``io.Int.Input``), exposes ``comfy_entrypoint`` and
imports ``comfy_api.latest``. The names here are those of that contract; what they mean is theirs, how it is done is
ours: every type is made from one table, and :func:`as_classic` gives the graph a class of the classic contract, so that
validation, caching and execution know only one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar

from cygnet.graph.results import ExecutionBlocker
from cygnet.graph.schema import AUTOGROW, COMBO, DYNAMIC_COMBO, MATCH, type_name

_COMMON = ("display_name", "optional", "tooltip", "lazy")
_ENDING = ("extra_dict", "raw_link")
_WIDGET = ("socketless", "force_input", *_ENDING)
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "BOOLEAN": (*_COMMON, "default", "label_on", "label_off", *_WIDGET),
    "INT": (*_COMMON, "default", "min", "max", "step", "control_after_generate", "display_mode", *_WIDGET),
    "FLOAT": (*_COMMON, "default", "min", "max", "step", "round", "display_mode", *_WIDGET),
    "STRING": (*_COMMON, "multiline", "placeholder", "default", "dynamic_prompts", *_WIDGET),
    COMBO: ("options", *_COMMON, "default", "control_after_generate", "upload", "image_folder", "remote", *_WIDGET),
    AUTOGROW: ("template", *_COMMON, *_ENDING),
    DYNAMIC_COMBO: ("options", *_COMMON, *_ENDING),
    MATCH: ("template", *_COMMON, *_ENDING),
}
"""Arguments of an input after its id, in the contract's order, for the types that have their own."""
_OPTION_NAMES = {
    "display_mode": "display", "dynamic_prompts": "dynamicPrompts", "force_input": "forceInput",
    "raw_link": "rawLink", "widget_type": "widgetType",
}  # fmt: skip
"""Arguments whose option the page knows under another name."""

_TYPES = {
    "Image": "IMAGE", "Mask": "MASK", "Latent": "LATENT", "Conditioning": "CONDITIONING", "Model": "MODEL",
    "Clip": "CLIP", "Vae": "VAE", "ClipVision": "CLIP_VISION", "ClipVisionOutput": "CLIP_VISION_OUTPUT",
    "ControlNet": "CONTROL_NET", "Sampler": "SAMPLER", "Sigmas": "SIGMAS", "Noise": "NOISE", "Guider": "GUIDER",
    "Audio": "AUDIO", "Video": "VIDEO", "AudioEncoder": "AUDIO_ENCODER", "AudioEncoderOutput": "AUDIO_ENCODER_OUTPUT",
    "StyleModel": "STYLE_MODEL", "Gligen": "GLIGEN", "UpscaleModel": "UPSCALE_MODEL", "LoraModel": "LORA_MODEL",
    "ModelPatch": "MODEL_PATCH", "LatentUpscaleModel": "LATENT_UPSCALE_MODEL", "LossMap": "LOSS_MAP",
    "LatentOperation": "LATENT_OPERATION", "Hooks": "HOOKS", "HookKeyframes": "HOOK_KEYFRAMES",
    "TimestepsRange": "TIMESTEPS_RANGE", "WanCameraEmbedding": "WAN_CAMERA_EMBEDDING", "Webcam": "WEBCAM",
    "Photomaker": "PHOTOMAKER", "Point": "POINT", "FaceAnalysis": "FACE_ANALYSIS", "BBOX": "BBOX", "SEGS": "SEGS",
    "Voxel": "VOXEL", "Mesh": "MESH", "SVG": "SVG", "FlowControl": "FLOW_CONTROL", "Accumulation": "ACCUMULATION",
    "Load3D": "LOAD_3D", "Load3DCamera": "LOAD3D_CAMERA", "Load3DAnimation": "LOAD_3D_ANIMATION", "Color": "COLOR",
    "BoundingBox": "BOUNDING_BOX", "Curve": "CURVE", "Tracks": "TRACKS",
    "AnyType": "*", "Boolean": "BOOLEAN", "Int": "INT", "Float": "FLOAT", "String": "STRING", "Combo": COMBO,
}  # fmt: skip
"""Name in ``io`` → type name in graphs."""


class FolderType(str, Enum):  # noqa: UP042 (packs compare members with plain strings, and format them)
    """Folders of files."""

    input = "input"
    output = "output"
    temp = "temp"


class UploadType(str, Enum):  # noqa: UP042
    """What the page's upload button of a combo takes."""

    image = "image_upload"
    audio = "audio_upload"
    video = "video_upload"
    model = "file_upload"


class NumberDisplay(str, Enum):  # noqa: UP042
    """How the page shows a number."""

    number = "number"
    slider = "slider"


class Hidden(str, Enum):  # noqa: UP042
    """What a node may ask for besides its inputs."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"


class Input:
    """A declared input. Arguments that are not known here are passed to the page as options."""

    io_type: ClassVar[str] = "*"

    def __init__(self, id: str, *positional: Any, **named: Any) -> None:
        parameters = _PARAMETERS.get(self.io_type, (*_COMMON, *_ENDING))
        if len(positional) > len(parameters):
            raise TypeError(f"the input {id!r} of type {self.io_type} takes {len(parameters) + 1} arguments at most")
        given = {**dict(zip(parameters, positional, strict=False)), **named}
        self.id = id
        self.optional = bool(given.pop("optional", False))
        self.extra_dict: Mapping[str, Any] = given.pop("extra_dict", None) or {}
        self.given = {name: value for name, value in given.items() if value is not None}

    def get_io_type(self) -> str:
        """The type that the graph sees."""
        return str(self.given.get("widget_type", self.io_type))

    def options(self) -> dict[str, Any]:
        """As the page reads them."""
        found: dict[str, Any] = {"multiselect": False} if self.io_type == COMBO else {}
        for name, value in self.given.items():
            if name == "upload":
                found[UploadType(value).value] = True
            elif name == "options" and self.io_type == COMBO:
                found["options"] = [_plain(it) for it in value]
            else:
                found[_OPTION_NAMES.get(name, name)] = _plain(value)
        return found | dict(self.extra_dict)


class Output:
    """A declared output."""

    io_type: ClassVar[str] = "*"
    template: MatchTemplate | None = None

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
        **more: Any,
    ) -> None:
        self.id = id
        self.display_name = display_name
        self.tooltip = tooltip
        self.is_output_list = is_output_list


def custom(io_type: str) -> type:
    """A type by its name in graphs, with ``Input``, ``Output`` and, for annotations, ``Type``."""
    io_type = type_name(io_type)
    parts = {name: type(name, (base,), {"io_type": io_type}) for name, base in (("Input", Input), ("Output", Output))}
    return type(io_type, (), {"io_type": io_type, "Type": Any, **parts})


class _ComboOutput(Output):
    io_type = COMBO

    def __init__(self, id: str | None = None, display_name: str | None = None, options: Any = None, **more: Any):
        super().__init__(id, display_name, **more)


class _MultiCombo:
    io_type = COMBO
    Type = Any

    class Input(Input):
        """A choice of several."""

        io_type = COMBO

        def __init__(self, id: str, options: Iterable[Any], *positional: Any, **named: Any) -> None:
            super().__init__(id, options, *positional, **named, multi_select=True)


class _MultiType:
    io_type = "COMFY_MULTITYPED_V3"
    Type = Any

    class Input(Input):
        """An input that takes several types: ``id`` is a name, or an input whose widget it keeps."""

        def __init__(self, id: str | Input, types: Sequence[Any], *positional: Any, **named: Any) -> None:
            model = id if isinstance(id, Input) else None
            super().__init__(model.id if model else str(id), *positional, **named)
            if model is not None:
                self.given, self.optional = {**model.given, **self.given}, model.optional or self.optional
            names = [*([model.get_io_type()] if model else []), *(it.io_type for it in types)]
            self._type = ",".join(dict.fromkeys(names))

        def get_io_type(self) -> str:
            """All types, after the widget's."""
            return self._type


class MatchTemplate:
    """Inputs and outputs with one template have one type."""

    def __init__(self, template_id: str, allowed_types: Any = None) -> None:
        allowed: list[Any] = [allowed_types] if isinstance(allowed_types, type) else list(allowed_types or ())
        self.template_id = template_id
        self.allowed = ",".join(it.io_type for it in allowed) or "*"

    def as_dict(self) -> dict[str, Any]:
        """As the page reads it."""
        return {"template_id": self.template_id, "allowed_types": self.allowed}


class _MatchType:
    io_type = MATCH
    Type = Any
    Template = MatchTemplate

    class Input(Input):
        """An input whose type is that of the others with its template."""

        io_type = MATCH

    class Output(Output):
        """An output of that type."""

        io_type = MATCH

        def __init__(self, template: MatchTemplate, id: str | None = None, **more: Any) -> None:
            super().__init__(id, **more)
            self.template = template


class GrowTemplate:
    """Many inputs like one: ``prefix`` and a number each, or the given ``names``."""

    def __init__(self, input: Input, **more: Any) -> None:
        self.input = input
        self.more = more

    def as_dict(self) -> dict[str, Any]:
        """As the page reads it; none of them has a field."""
        declared = _declared([self.input])
        for section in declared.values():
            section.update({name: (kind, {**options, "forceInput": True}) for name, (kind, options) in section.items()})
        return {"input": declared, **self.more}


class _Autogrow:
    io_type = AUTOGROW
    Type = Any

    class Input(Input):
        """Inputs that become more as they are connected."""

        io_type = AUTOGROW

    @staticmethod
    def TemplatePrefix(input: Input, prefix: str, min: int = 1, max: int = 10) -> GrowTemplate:
        return GrowTemplate(input, prefix=prefix, min=min, max=max)

    @staticmethod
    def TemplateNames(input: Input, names: Sequence[str], min: int = 1) -> GrowTemplate:
        return GrowTemplate(input, names=list(names), min=min)


class _Option:
    def __init__(self, key: str, inputs: Sequence[Input]) -> None:
        self.key = key
        self.inputs = inputs

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "inputs": _declared(self.inputs)}


class _DynamicCombo:
    io_type = DYNAMIC_COMBO
    Type = Any
    Option = _Option

    class Input(Input):
        """A choice that brings its own further inputs."""

        io_type = DYNAMIC_COMBO


class RemoteOptions:
    """Where the page fetches the choices of a combo."""

    def __init__(self, route: str, refresh_button: bool, **more: Any) -> None:
        self._options = {"route": route, "refresh_button": refresh_button, **more}

    def as_dict(self) -> dict[str, Any]:
        """As the page reads it."""
        return {name: value for name, value in self._options.items() if value is not None}


class Schema:
    """What a node declares."""

    def __init__(
        self,
        node_id: str,
        display_name: str | None = None,
        category: str = "sd",
        inputs: Sequence[Input] | None = None,
        outputs: Sequence[Output] | None = None,
        hidden: Sequence[Hidden] | None = None,
        description: str = "",
        **flags: Any,
    ) -> None:
        self.node_id = node_id
        self.display_name = display_name
        self.category = category
        self.inputs = list(inputs or ())
        self.outputs = list(outputs or ())
        self.hidden = list(hidden or ())
        self.description = description
        self.flags = flags
        """``is_output_node``, ``is_input_list``, ``not_idempotent`` and so on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "flags" not in vars(self):
            raise AttributeError(name)
        return self.flags.get(name)


class NodeOutput:
    """What ``execute`` returns."""

    def __init__(
        self, *args: Any, ui: Any = None, expand: Mapping[str, Any] | None = None, block_execution: str | None = None
    ) -> None:
        self.args = args
        self.ui = ui
        self.expand = expand
        self.block_execution = block_execution

    @property
    def result(self) -> tuple[Any, ...] | None:
        """The values, or None when there are none."""
        return self.args or None


class ComfyNode:
    """Base class of nodes of this contract."""

    hidden: Any = None

    @classmethod
    def define_schema(cls) -> Schema:
        """Overridden by every node."""
        raise NotImplementedError(f"{cls.__name__} has no define_schema")

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        """What it declares now."""
        return cls.define_schema()


class ComfyExtension:
    """What ``comfy_entrypoint`` of a pack returns."""

    async def on_load(self) -> None:
        """Called once, before its nodes are asked for."""

    async def get_node_list(self) -> list[type[ComfyNode]]:
        """Its nodes."""
        return []


def nodes_of(entrypoint: Callable[[], Any]) -> list[type[ComfyNode]]:
    """The nodes of a pack."""

    async def ask() -> list[type[ComfyNode]]:
        extension = entrypoint()
        if inspect.isawaitable(extension):
            extension = await extension
        if not isinstance(extension, ComfyExtension):
            raise TypeError(f"comfy_entrypoint returned {type(extension).__name__}; it must return a ComfyExtension")
        await extension.on_load()
        found = await extension.get_node_list()
        return list(found)

    return asyncio.run(ask())


def as_classic(node: type[ComfyNode]) -> type:
    """A class of the classic contract that does what ``node`` does."""
    schema = node.define_schema()
    asked = [*schema.hidden, *((Hidden.prompt, Hidden.extra_pnginfo) if schema.is_output_node else ())]
    hidden = {it.name: it.value for it in asked}

    def declared() -> dict[str, Any]:
        return {**_declared(node.define_schema().inputs), "hidden": hidden}  # choices may be others by now

    def run(self: Any, **given: Any) -> Any:
        told = SimpleNamespace(**dict.fromkeys(it.name for it in Hidden))
        vars(told).update({name: given.pop(name) for name in hidden if name in given})
        # A class of its own for the call: two nodes of one type may run at the same time.
        answer = type(node.__name__, (node,), {"hidden": told}).execute(**given)  # type: ignore[attr-defined]
        return _later(answer) if inspect.isawaitable(answer) else _classic_result(answer)

    run.__signature__ = _with_self(node)  # type: ignore[attr-defined]
    parts: dict[str, Any] = {
        "INPUT_TYPES": staticmethod(declared),
        "RETURN_TYPES": tuple(it.io_type for it in schema.outputs),
        "RETURN_NAMES": tuple(it.display_name or it.io_type for it in schema.outputs),
        "OUTPUT_IS_LIST": tuple(bool(it.is_output_list) for it in schema.outputs),
        "OUTPUT_TOOLTIPS": tuple(it.tooltip for it in schema.outputs),
        "FUNCTION": "run",
        "CATEGORY": schema.category,
        "DESCRIPTION": schema.description,
        "OUTPUT_NODE": bool(schema.is_output_node),
        "INPUT_IS_LIST": bool(schema.is_input_list),
        "NOT_IDEMPOTENT": bool(schema.not_idempotent),
        "DEPRECATED": bool(schema.is_deprecated),
        "EXPERIMENTAL": bool(schema.is_experimental),
        "API_NODE": bool(schema.is_api_node),
        "ACCEPT_ALL_INPUTS": bool(schema.accept_all_inputs),
        "SEARCH_ALIASES": schema.search_aliases,
        "DISPLAY_NAME": schema.display_name,
        "run": run,
    }
    if any(it.template for it in schema.outputs):
        parts["OUTPUT_MATCHTYPES"] = tuple(it.template.template_id if it.template else None for it in schema.outputs)
    hooks = {
        "VALIDATE_INPUTS": "validate_inputs", "IS_CHANGED": "fingerprint_inputs",
        "check_lazy_status": "check_lazy_status",
    }  # fmt: skip
    parts |= {ours: getattr(node, theirs) for ours, theirs in hooks.items() if hasattr(node, theirs)}
    return type(node.__name__, (), parts)


def _with_self(node: type[ComfyNode]) -> inspect.Signature:
    """What ``execute`` takes, as a method's signature: it says which names that are not declared it would take."""
    own = inspect.signature(node.execute)  # type: ignore[attr-defined]
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return own.replace(parameters=[first, *own.parameters.values()])


async def _later(answer: Awaitable[Any]) -> Any:
    return _classic_result(await answer)


def _classic_result(answer: Any) -> Any:
    """What a node of this contract returned, as the classic one returns it."""
    if not isinstance(answer, NodeOutput):
        return answer
    shown = answer.ui.as_dict() if hasattr(answer.ui, "as_dict") else answer.ui
    values: Any = answer.args or None
    if answer.block_execution is not None:
        values = ExecutionBlocker(answer.block_execution)
    expansion = {} if answer.expand is None else {"expand": answer.expand}
    return {"result": values, "ui": shown or {}, **expansion}


def _declared(inputs: Iterable[Input]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"required": {}}
    for it in inputs:
        section = found.setdefault("optional" if it.optional else "required", {})
        section[it.id] = (it.get_io_type(), it.options())
    return found


def _plain(value: Any) -> Any:
    """Enumerations, templates and options as JSON values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, type) and issubclass(value, Enum):
        return [it.value for it in value]
    if hasattr(value, "as_dict"):
        return value.as_dict()
    return [_plain(it) for it in value] if isinstance(value, (list, tuple)) else value


def type_names() -> list[str]:
    """The type names of graphs that this contract has names for."""
    return sorted({*_TYPES.values()} - {"*"})


def io_names() -> dict[str, Any]:
    """What ``comfy_api.latest.io`` holds."""
    types = {name: custom(kind) for name, kind in _TYPES.items()}
    types["Combo"].Output = _ComboOutput  # type: ignore[attr-defined]
    return {
        **types,
        "Custom": custom,
        "MultiCombo": _MultiCombo,
        "MultiType": _MultiType,
        "MatchType": _MatchType,
        "Autogrow": _Autogrow,
        "DynamicCombo": _DynamicCombo,
        **{it.__name__: it for it in (FolderType, UploadType, NumberDisplay, Hidden, RemoteOptions, Input, Output)},
        **{it.__name__: it for it in (Schema, NodeOutput, ComfyNode)},
    }
