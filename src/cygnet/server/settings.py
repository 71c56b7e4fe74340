"""What a server is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cygnet.graph.folders import Folders
from cygnet.server.guard import Access


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Folders, access and limits of one server."""

    folders: Folders
    user: Path
    """Settings, saved workflows and the job file."""
    page: Path | None = None
    """Folder of the web page's files; None: the server answers its routes alone."""
    templates: tuple[Path, ...] = ()
    """Folders with workflow templates; the first that has a file wins."""
    docs: Path | None = None
    """Folder with the help texts of nodes."""
    models: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Model folders by kind."""
    access: Access = field(default_factory=Access)
    largest_upload: int = 100 * 2**20
    versions: Mapping[str, str] = field(default_factory=dict)
    """What ``system_stats`` says of packages: name to version."""
    packs: Path | None = None
    """Folder into which the page's Manager may install packs; None: it may not."""
    pack_socket: Path | None = None
    """Socket file on which the worker answers the routes that packs added."""
    arguments: tuple[str, ...] = ()
    """Switches that the page should know of; not the real command line, which may hold paths."""
