"""``comfy.comfy_types``: what packs of the classic contract annotate their nodes with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal, TypedDict

from cygnet.nodes import modern

IO: Any = StrEnum(  # type: ignore[misc]
    "IO",
    {
        **{it: it for it in modern.type_names()},
        "ANY": "*",
        "NUMBER": "FLOAT,INT",
        "PRIMITIVE": "STRING,FLOAT,INT,BOOLEAN",
    },
)
"""Type names of graphs as members: ``IO.IMAGE`` is ``"IMAGE"``."""


class FileLocator(TypedDict):
    """A file as the page names it."""

    filename: str
    subfolder: str
    type: Literal["input", "output", "temp"]


InputTypeOptions = dict[str, Any]
HiddenInputTypeDict = dict[str, Any]
RemoteInputOptions = dict[str, Any]
MultiSelectOptions = dict[str, Any]


class InputTypeDict(TypedDict, total=False):
    """What ``INPUT_TYPES`` returns."""

    required: dict[str, tuple[Any, ...]]
    optional: dict[str, tuple[Any, ...]]
    hidden: dict[str, Any]


class ComfyNodeABC(ABC):
    """A base for nodes of the classic contract."""

    DESCRIPTION: str
    CATEGORY: str
    EXPERIMENTAL: bool
    DEPRECATED: bool
    API_NODE: bool | None
    OUTPUT_NODE: bool
    INPUT_IS_LIST: bool
    OUTPUT_IS_LIST: tuple[bool, ...]
    RETURN_TYPES: tuple[Any, ...]
    RETURN_NAMES: tuple[str, ...]
    OUTPUT_TOOLTIPS: tuple[str, ...]
    FUNCTION: str

    @classmethod
    @abstractmethod
    def INPUT_TYPES(cls) -> InputTypeDict:
        """Overridden by every node."""


class CheckLazyMixin:
    """A node that needs all its lazy inputs."""

    def check_lazy_status(self, **given: Any) -> list[str]:
        """Those that are not there yet."""
        return [name for name, value in given.items() if value is None]


def names() -> dict[str, Any]:
    """What the module holds."""
    own = (FileLocator, InputTypeDict, ComfyNodeABC, CheckLazyMixin)
    return {
        **{it.__name__: it for it in own},
        "IO": IO,
        "InputTypeOptions": InputTypeOptions,
        "HiddenInputTypeDict": HiddenInputTypeDict,
        "RemoteInputOptions": RemoteInputOptions,
        "MultiSelectOptions": MultiSelectOptions,
        "NodeId": str,
        "UnetApplyFunction": Callable[..., Any],  # how networks are wrapped, in annotations
        "UnetApplyConds": dict[str, Any],
        "UnetParams": dict[str, Any],
        "UnetWrapperFunction": Callable[..., Any],
    }
