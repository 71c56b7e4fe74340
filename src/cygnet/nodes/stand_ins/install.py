"""Put the modules that custom nodes import from their host where they import them from.

Packs written for ComfyUI ask ``folder_paths`` for files, ``nodes`` for other nodes and ``comfy`` for devices and
progress. What is here does what those names promise. A name that cygnet knows of and does not have can be imported, and
says so when it is used (:mod:`cygnet.nodes.stand_ins.absent`); any other fails at import with Python's own message,
which then stands beside the pack's name. Networks are not part of it: MODEL, CLIP and VAE are opaque between our nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import IntEnum
from types import ModuleType
from typing import Any

from cygnet.graph.contract import COMPATIBLE_VERSION
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.host import Host
from cygnet.nodes.stand_ins import (
    api,
    arguments,
    comfy_types,
    core,
    devices,
    execution,
    folder_paths,
    helpers,
    models,
    tensors,
)
from cygnet.nodes.workshop import Workshop


class BinaryEventTypes(IntEnum):
    """Kinds of binary messages to the page."""

    PREVIEW_IMAGE = 1
    UNENCODED_PREVIEW_IMAGE = 2
    TEXT = 3
    PREVIEW_IMAGE_WITH_METADATA = 4


def install(shop: Workshop, host: Host) -> None:
    """Put the modules where packs import them from; ``host`` is what they take for the server."""
    base = shop.folders.output.parent
    for name, contents in sorted(_modules(shop, host).items()):  # parents first
        module = sys.modules.setdefault(name, ModuleType(name))
        # No such file: packs ask for the folder that it would be in.
        file = "/__init__.py" if "__path__" in contents else ".py"
        vars(module).update({"__file__": str(base / (name.replace(".", "/") + file)), **contents})
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _server(host: Host) -> dict[str, Any]:
    """``server``; packs take ``PromptServer`` for a class, derive from it, replace its methods and ask for its file."""
    kind = type("PromptServer", (Host,), {"__module__": "server", "instance": host})
    host.__class__ = kind
    found: dict[str, Any] = {"PromptServer": kind, "BinaryEventTypes": BinaryEventTypes}
    if host.app is not None:
        from aiohttp import web

        found["web"] = web
    return found


def announce(name: str, classes: Mapping[str, type], titles: Mapping[str, str], web: str | None) -> None:
    """Add a pack that was loaded to what others find in ``nodes``."""
    module: Any = sys.modules["nodes"]
    module.NODE_CLASS_MAPPINGS.update(classes)
    module.NODE_DISPLAY_NAME_MAPPINGS.update(titles)
    if web is not None:
        module.EXTENSION_WEB_DIRS[name] = web


def _modules(shop: Workshop, host: Host) -> dict[str, Mapping[str, Any]]:
    return {
        "folder_paths": folder_paths.names(shop),
        "node_helpers": helpers.names(),
        "comfyui_version": {"__version__": COMPATIBLE_VERSION},
        "comfy": {"__path__": []},
        "comfy.utils": tensors.names(),
        "comfy.model_management": devices.names(shop),
        "comfy.cli_args": arguments.names(shop, host),
        "comfy.comfy_types": {"__path__": [], **comfy_types.names()},
        "comfy.comfy_types.node_typing": comfy_types.names(),
        **models.modules(),
        "nodes": core.names(shop, node_classes(shop)),
        "server": _server(host),
        **execution.modules(),
        **api.modules(shop),
    }
