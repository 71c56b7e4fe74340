"""``cygnet nodes``: packs of custom nodes."""

from __future__ import annotations

import json as json_module
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cygnet.cli.options import Debug, Json, Quiet, Text
from cygnet.cli.output import Voice, table
from cygnet.cli.studio import base_folder
from cygnet.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from cygnet.server.installer import Installed, Installer

Action = Literal["list", "install", "remove", "update", "enable", "disable"]


def nodes(
    action: Annotated[Action, Parameter(name="ACTION")] = "list",
    /,
    *what: Annotated[str, Parameter(name="WHAT")],
    version: Text = None,
    base_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """List, install, remove, update, enable or disable packs of custom nodes; the studio loads them when it starts.

    A pack runs as you: install only what you trust. Its requirements are installed with pip; packages that are here
    already keep their versions.

    Parameters
    ----------
    action
        list, install, remove, update, enable or disable.
    what
        To install: a registry id, a git address, or a path. Otherwise names; update without any updates all.
    version
        Of a registry pack, or a branch or tag of a git address.
    base_directory
        The studio's base folder. Default: cygnet's own folder of this user.
    """
    try:
        from cygnet.server.installer import REGISTRY, Installer
    except ImportError as error:
        raise UnsupportedError(
            f"the studio is not installed ({error.name}); run: pip install 'cygnet[studio]'"
        ) from error
    voice = Voice(as_json=json, quiet=quiet)
    registry = os.environ.get("CYGNET_REGISTRY", REGISTRY)
    installer = Installer(base_folder(base_directory) / "custom_nodes", registry=registry, say=voice.note)
    if action == "list":
        if what:
            raise RequestError("cygnet nodes list takes no names", field="what")
        _list(installer.installed(), _became(base_folder(base_directory)), voice)
        return 0
    names = list(what)
    if action == "update" and not names:
        names = [it.name for it in installer.installed() if it.origin != "unknown"]
    elif not names:
        raise RequestError(f"say what to {action}: cygnet nodes {action} NAME", field="what")
    done = [_do(installer, action, it, version) for it in names]
    if done:
        voice.note("Restart the studio to have it load them.")
    voice.result({"packs": [asdict(it) for it in done]}, [f"{it.name} {it.version}".rstrip() for it in done])
    return 0


def _do(installer: Installer, action: Action, name: str, version: str | None) -> Installed:
    match action:
        case "install":
            return installer.install(name, version)
        case "update":
            return installer.update(name, version)
        case "remove":
            return installer.remove(name)
        case _:
            return installer.switch(name, on=action == "enable")


def _became(base: Path) -> dict[str, str]:
    """What the studio noted at its last start: name of a pack's folder or file → its error, empty if it was loaded."""
    try:
        told = json_module.loads((base / "user" / "importing-catalogue.json").read_text())["became"]
        return {str(name): str(error) for name, error in told.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # it was not started yet, or keeps its notes elsewhere


def _list(packs: list[Installed], became: dict[str, str], voice: Voice) -> None:
    rows: list[tuple[str, ...]] = [("NAME", "VERSION", "LOADED", "FROM")]
    found = []
    for it in packs:
        error = became.get(it.name) if it.enabled else None
        loaded = None if error is None else not error
        said = {None: "not tried yet", True: "yes", False: "no, it failed"}[loaded]
        said = said if it.enabled else "no, disabled"
        rows.append((it.name, it.version, said, it.address or it.origin))
        found.append({**asdict(it), "loaded": loaded, "error": error or ""})
    lines = table(rows) if packs else ["No packs are installed."]
    voice.result({"packs": found}, [*lines, *(f"{it['name']}: {it['error']}" for it in found if it["error"])])
