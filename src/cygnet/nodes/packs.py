"""Custom nodes: packages in ``custom_nodes`` folders and installed distributions, of the classic or current contract.

Each pack is imported on its own: what one raises is remembered and hides nothing else. One that takes the process down
while it is imported is left out by the next process, until its files change.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import runpy
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from cygnet.errors import by_signal
from cygnet.graph.contract import Classic, NodeClass
from cygnet.nodes import modern
from cygnet.nodes.host import Host
from cygnet.nodes.stand_ins.install import announce, install
from cygnet.nodes.workshop import Workshop

ENTRY_POINTS = "cygnet.nodes"
"""Group in which an installed distribution names a module with ``NODE_CLASS_MAPPINGS``."""
_PARENT = "custom_nodes"
_EXAMPLES = ("example_workflows", "workflow", "workflows", "example", "examples")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One pack, loaded or not."""

    name: str
    path: Path | None = None
    """Its folder or file; None for an installed distribution."""
    nodes: Mapping[str, NodeClass] = field(default_factory=dict)
    web: tuple[str, Path] | None = None
    """Name under ``/extensions`` and folder of its scripts for the page."""
    examples: Path | None = None
    """Folder of its example workflows."""
    error: str = ""
    traceback: str = ""

    def json(self) -> dict[str, Any]:
        """For the server, which imports no packs."""
        return {
            "name": self.name,
            "path": None if self.path is None else str(self.path),
            "nodes": sorted(self.nodes),
            "web": None if self.web is None else [self.web[0], str(self.web[1])],
            "examples": None if self.examples is None else str(self.examples),
            "error": self.error,
            "traceback": self.traceback,
        }


def candidates(roots: Sequence[Path]) -> list[Path]:
    """Packs in the folders, by name; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            hidden = path.name.startswith((".", "__")) or path.name.endswith(".disabled")
            module = (path / "__init__.py").is_file() or (path.is_file() and path.suffix == ".py")
            if module and not hidden:
                found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def load(
    shop: Workshop,
    roots: Sequence[Path],
    taken: Collection[str],
    notebook: Path | None = None,
    host: Host | None = None,
    only: Collection[str] | None = None,
) -> list[Pack]:
    """Import every pack, or those named in ``only``.

    Node types that are ``taken`` stay ours, and the first pack that has a name keeps it.

    ``notebook`` is a file of this process alone, in which the pack that is being imported is noted, so that one that
    ended the process is known afterwards. ``host`` is what packs take for the server.
    """
    paths = [it for it in candidates(roots) if only is None or _name(it) in only]
    installed = sorted(entry_points(group=ENTRY_POINTS), key=lambda it: it.name)
    distributed = [it for it in installed if only is None or it.name in only]
    if not paths and not distributed:
        return []
    host = host or Host()
    install(shop, host)
    _parent(roots)
    notes = _Notes(notebook)
    for path in paths:
        if (script := path / "prestartup_script.py").is_file():
            _guarded(path, notes, lambda script=script: runpy.run_path(str(script)))  # type: ignore[misc]
    names = set(taken)
    packs = []
    for path in paths:
        packs.append(_loaded(_name(path), path, names, notes))
        names |= _announced(packs[-1])
    for entry in distributed:
        packs.append(_made(entry.name, None, names, entry.load))
        names |= _announced(packs[-1])
    host.close_table()
    notes.tell(packs)
    return packs


def _announced(pack: Pack) -> set[str]:
    """The names of a pack's node types, which packs after it find in ``nodes``."""
    classes = {name: it for name, it in pack.nodes.items() if isinstance(it, Classic)}
    web = None if pack.web is None else str(pack.web[1])
    announce(
        pack.name,
        {name: it.implementation for name, it in classes.items()},
        {name: it.display_name for name, it in classes.items()},
        web,
    )
    return set(pack.nodes)


def _name(path: Path) -> str:
    return path.stem if path.is_file() else path.name


def _loaded(name: str, path: Path, taken: Collection[str], notes: _Notes) -> Pack:
    if path in notes.crashed:
        error = "it ended the process when it was imported; change or update it to have it tried again"
        _log.error("pack %s is left out: %s", name, error)
        return Pack(name=name, path=path, error=error)
    with notes.importing(path):
        return _made(name, path, taken, lambda: _import(name, path))


def _made(name: str, path: Path | None, taken: Collection[str], load: Callable[[], Any]) -> Pack:
    started = time.monotonic()
    try:
        module = load()
        mapping = _classes(name, module)
        titles = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None) or {}
        if not isinstance(titles, Mapping):
            _log.warning(
                "pack %s: NODE_DISPLAY_NAME_MAPPINGS is a %s and no mapping; its nodes go by the names of their types",
                name,
                type(titles).__name__,
            )
            titles = {}
        nodes: dict[str, NodeClass] = {}
        for kind, implementation in mapping.items():
            if not isinstance(kind, str):
                _log.error("pack %s: the node type %r is left out: its name is no text", name, kind)
            elif kind in taken:
                _log.warning("pack %s: node type %s is there already; the earlier one stays", name, kind)
            else:
                nodes[kind] = Classic(
                    kind, implementation, _title(kind, implementation, titles), f"custom_nodes.{name}"
                )
        web = None if path is None else _web(name, path, getattr(module, "WEB_DIRECTORY", None))
        examples = next((path / it for it in _EXAMPLES if (path / it).is_dir()), None) if path is not None else None
    except BaseException as error:  # a pack may raise anything, SystemExit too, and must not hide the others
        if by_signal(error):
            raise
        _log.error("pack %s is left out: %s: %s", name, type(error).__name__, error)
        return Pack(
            name=name, path=path, error=f"{type(error).__name__}: {error}", traceback="".join(traceback.format_exc())
        )
    _log.info("pack %s: %d node types in %.1f s", name, len(nodes), time.monotonic() - started)
    return Pack(name=name, path=path, nodes=nodes, web=web, examples=examples)


def _classes(name: str, module: Any) -> dict[str, type]:
    """The node types of a pack of either contract, as classes of the classic one; what fails to be one is left out."""
    mapping = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if isinstance(mapping, Mapping):
        given = list(mapping.items())
    elif callable(entrypoint := getattr(module, "comfy_entrypoint", None)):
        given = [(None, it) for it in modern.nodes_of(entrypoint)]
    else:
        raise ImportError("it has neither NODE_CLASS_MAPPINGS nor comfy_entrypoint, so it is no pack of nodes")
    found = {}
    for kind, it in given:
        if not isinstance(it, type) or not issubclass(it, modern.ComfyNode):
            found[kind] = it
            continue
        try:
            found[it.define_schema().node_id if kind is None else kind] = modern.as_classic(it)
        except Exception as error:
            title = it.__name__ if kind is None else kind
            _log.error("pack %s: the node type %s is left out: %s: %s", name, title, type(error).__name__, error)
    return found


def _title(kind: str, implementation: type, titles: Mapping[str, Any]) -> str:
    return str(titles.get(kind) or getattr(implementation, "DISPLAY_NAME", None) or kind)


def _parent(roots: Sequence[Path]) -> None:
    """Make ``custom_nodes`` a package of all the folders: Python imports it for every module within a pack."""
    module = sys.modules.setdefault(_PARENT, ModuleType(_PARENT))
    there = vars(module).setdefault("__path__", [])
    there.extend(str(root) for root in roots if str(root) not in there)


def _import(name: str, path: Path) -> Any:
    init = path / "__init__.py" if path.is_dir() else path
    short = name.replace(".", "_x_")  # a dot would be read as a package and its module
    if getattr(sys.modules.get(f"{_PARENT}.{short}"), "__file__", str(init)) != str(init):
        short += "_x_py"  # a file beside a folder of its name
    full = f"{_PARENT}.{short}"
    where = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(full, init, submodule_search_locations=where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for known in [it for it in sys.modules if it == full or it.startswith(f"{full}.")]:
            del sys.modules[known]
        raise
    setattr(sys.modules[_PARENT], short, module)
    return module


def _web(name: str, path: Path, declared: object) -> tuple[str, Path] | None:
    """Where the page's scripts of a pack are; a folder outside the pack is not served."""
    published = name
    if not declared and (project := path / "pyproject.toml").is_file():
        data = tomllib.loads(project.read_text(encoding="utf-8"))
        declared = data.get("tool", {}).get("comfy", {}).get("web")
        published = data.get("project", {}).get("name", name)
    if not isinstance(declared, str):
        return None
    folder = (path / declared).resolve()
    if not folder.is_dir() or not folder.is_relative_to(path.resolve()):
        return None
    return published, folder


def _guarded(path: Path, notes: _Notes, work: Callable[[], object]) -> None:
    if path in notes.crashed:
        return
    try:
        with notes.importing(path):
            work()
    except BaseException as error:
        if by_signal(error):
            raise
        _log.error("pack %s: its prestartup script failed: %s: %s", path.name, type(error).__name__, error)


class _Notes:
    """Which packs ended an earlier process, told by what that process wrote last."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stamps: dict[str, float] = {}
        self._became: dict[str, str] = {}
        told: dict[str, Any] = {}
        if file is not None and file.exists():
            try:
                told = json.loads(file.read_text())
            except ValueError:
                told = {}
        self._stamps = {str(path): float(stamp) for path, stamp in (told.get("crashed") or {}).items()}
        if last := told.get("importing"):
            self._stamps[last] = _stamp(Path(last))
        self._stamps = {path: stamp for path, stamp in self._stamps.items() if _stamp(Path(path)) == stamp}
        self.crashed = {Path(path) for path in self._stamps}
        self._write(None)

    @contextmanager
    def importing(self, path: Path) -> Iterator[None]:
        """Note the pack for as long as it is being imported."""
        self._write(path)
        try:
            yield
        finally:  # what raises did not end the process
            self._write(None)

    def tell(self, packs: Sequence[Pack]) -> None:
        """Note what became of each pack, for ``cygnet nodes list``: its error, empty for one that was loaded."""
        self._became = {it.path.name: it.error for it in packs if it.path is not None}
        self._write(None)

    def _write(self, path: Path | None) -> None:
        if self._file is None or (path is None and not (self._stamps or self._became or self._file.exists())):
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        importing = None if path is None else str(path)
        told = {"importing": importing, "crashed": self._stamps, "became": self._became}
        self._file.write_text(json.dumps(told))


def _stamp(path: Path) -> float:
    """Changes when the pack's files do."""
    files = [path] if path.is_file() else [path, *path.glob("*.py")]
    return max((it.stat().st_mtime for it in files if it.exists()), default=0.0)
