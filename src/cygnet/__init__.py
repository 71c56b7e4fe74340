"""Wan 2.1 video generation: ``cygnet.load("tiny-t2v").generate("a red ball moves right").save("ball.mp4")``.

Importing this loads nothing heavy: each name below is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cygnet import errors, solvers
    from cygnet.api import Video, VideoStream, Wan, load, plan
    from cygnet.assembly import Execution, load_dit, load_image_encoder, load_text_encoder, load_vae
    from cygnet.types import CancelToken, Progress

    __version__: str

_HOMES = {
    "CancelToken": "cygnet.types",
    "Execution": "cygnet.assembly",
    "Progress": "cygnet.types",
    "Video": "cygnet.api",
    "VideoStream": "cygnet.api",
    "Wan": "cygnet.api",
    "load": "cygnet.api",
    "load_dit": "cygnet.assembly",
    "load_image_encoder": "cygnet.assembly",
    "load_text_encoder": "cygnet.assembly",
    "load_vae": "cygnet.assembly",
    "plan": "cygnet.api",
}
_MODULES = ("errors", "solvers")

__all__ = [
    "CancelToken",
    "Execution",
    "Progress",
    "Video",
    "VideoStream",
    "Wan",
    "__version__",
    "errors",
    "load",
    "load_dit",
    "load_image_encoder",
    "load_text_encoder",
    "load_vae",
    "plan",
    "solvers",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"cygnet.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("cygnet")
    else:
        raise AttributeError(f"module 'cygnet' has no attribute {name!r}; there are: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
