"""Install, update and remove packs of custom nodes: from the registry, a git address, or a path.

A pack appears whole or not at all: it is made ready in a hidden folder beside its place, its requirements are
installed, and only then it is renamed. What is installed runs as the user who starts the studio; nothing judges it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from cygnet.errors import CygnetError, RequestError
from cygnet.server.fetch import FetchError, fetch

REGISTRY = "https://api.comfy.org"
MOST_BYTES = 500 * 2**20
MOST_FILES = 20_000
RECORD = ".cygnet.json"
OFF = ".disabled"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ADDRESS = re.compile(r"(https?|ssh|git|file)://|git@[\w.-]+:")

Origin = Literal["registry", "git", "path", "unknown"]


class InstallError(CygnetError):
    """A pack could not be installed; nothing was changed."""

    code = "install_failed"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A pack in the folder."""

    name: str
    """Of its folder or file, without ``.disabled``."""
    origin: Origin
    address: str = ""
    """Registry id, git address or path that it came from."""
    version: str = ""
    enabled: bool = True


class Installer:
    """The packs of one ``custom_nodes`` folder. ``say`` hears what is being done, a line at a time."""

    def __init__(self, root: Path, *, registry: str = REGISTRY, say: Callable[[str], None] = lambda line: None) -> None:
        self.root = root
        self.registry = registry.rstrip("/")
        self.say = say

    def installed(self) -> list[Installed]:
        """Every pack, by name."""
        found = []
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            plain = path.name.removesuffix(OFF)
            module = (path / "__init__.py").is_file() or (path.is_file() and plain.endswith(".py"))
            if module and not path.name.startswith((".", "__")):
                found.append(_described(path))
        return found

    def find(self, name: str) -> tuple[Installed, Path]:
        """A pack by its name or registry id, and where it is."""
        for it in self.installed():
            if name in (it.name, it.address):
                return it, self.root / (it.name + ("" if it.enabled else OFF))
        known = ", ".join(it.name for it in self.installed()) or "none"
        raise RequestError(f"there is no pack {name!r}; installed are: {known}", field="name")

    def install(self, what: str, version: str | None = None, *, registry_only: bool = False) -> Installed:
        """Install a pack by registry id, git address or path; ``version`` of a registry pack, or a git branch or tag.

        With ``registry_only`` it can be an id alone, whatever lies here under that name.

        Raises :class:`~cygnet.errors.RequestError` for one that is there already, :class:`InstallError` otherwise.
        """
        with self._fetched(what, version, registry_only) as (fetched, name, record):
            target = self.root / name
            if target.exists() or (self.root / f"{name}{OFF}").exists():
                raise RequestError(f"{name} is installed already; update it, or remove it first", field="name")
            self._require(fetched)
            _write_record(fetched, record)
            os.rename(fetched, target)
        self.say(f"installed {name}")
        return _described(target)

    def update(self, name: str, version: str | None = None) -> Installed:
        """Fetch a pack again from where it came; the old one stays in place if that fails."""
        it, path = self.find(name)
        if it.origin == "unknown":
            raise RequestError(f"nothing says where {it.name} came from; remove it and install it again", field="name")
        with self._fetched(it.address, version, it.origin == "registry") as (fetched, _, record):
            self._require(fetched)
            _write_record(fetched, record)
            old = path.with_name(f".old-{path.name}")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
            try:
                os.rename(fetched, path)
            except OSError:
                os.rename(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        self.say(f"updated {it.name}")
        return _described(path)

    def remove(self, name: str) -> Installed:
        """Delete a pack; packages that it required stay."""
        it, path = self.find(name)
        gone = path.with_name(f".removed-{path.name}")
        os.rename(path, gone)  # at once; the deleting may take a while
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()
        self.say(f"removed {it.name}")
        return it

    def switch(self, name: str, *, on: bool) -> Installed:
        """Have a pack loaded at the next start, or not."""
        it, path = self.find(name)
        target = self.root / (it.name + ("" if on else OFF))
        if target != path:
            os.rename(path, target)
        self.say(f"{'enabled' if on else 'disabled'} {it.name}")
        return _described(target)

    @contextmanager
    def _fetched(self, what: str, version: str | None, registry_only: bool) -> Iterator[tuple[Path, str, Installed]]:
        """A pack made ready in a hidden folder, its name, and what to record of it."""
        self.root.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".installing-", dir=self.root))
        try:
            if registry_only and not _ID.fullmatch(what):
                raise RequestError(f"{what[:100]!r} is no id of the registry", field="name")
            if not registry_only and _ADDRESS.match(what):
                yield self._cloned(what, version, stage)
            elif not registry_only and (place := Path(what).expanduser()).exists():
                if version is not None:
                    raise RequestError("a version is given, but a path has none", field="version")
                yield self._copied(place.absolute(), stage)
            elif _ID.fullmatch(what):
                yield self._downloaded(what, version, stage)
            else:
                raise RequestError(f"{what[:100]!r} is no registry id, git address or existing path", field="name")
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _copied(self, place: Path, stage: Path) -> tuple[Path, str, Installed]:
        self.say(f"copying {place.name}")
        target = stage / place.name
        if place.is_dir():
            shutil.copytree(place, target, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        else:
            shutil.copyfile(place, target)
        _check_module(target)
        return target, place.name, Installed(name=place.name, origin="path", address=str(place))

    def _cloned(self, address: str, branch: str | None, stage: Path) -> tuple[Path, str, Installed]:
        name = PurePosixPath(re.split(r"[/:]", address.rstrip("/"))[-1]).name.removesuffix(".git")
        if not _ID.fullmatch(name):
            raise RequestError(f"{address[:100]!r} names no repository", field="name")
        git = shutil.which("git")
        if git is None:
            raise InstallError("git is not installed; install it, or give a registry id or a path")
        self.say(f"cloning {name}")
        order = [git, "clone", "--quiet", "--depth", "1", *(["--branch", branch] if branch else []), "--", address]
        quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run([*order, str(stage / name)], capture_output=True, text=True, env=quiet, check=False)
        if done.returncode:
            raise InstallError(f"git could not clone it: {done.stderr.strip()[-300:]}")
        _check_module(stage / name)
        asked = [git, "-C", str(stage / name), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return stage / name, name, Installed(name=name, origin="git", address=address, version=commit)

    def _downloaded(self, pack: str, version: str | None, stage: Path) -> tuple[Path, str, Installed]:
        self.say(f"asking the registry for {pack}")
        query = f"?version={quote(version)}" if version not in (None, "latest") else ""
        try:
            answer = json.loads(_get(f"{self.registry}/nodes/{quote(pack)}/install{query}", 2**20))
            address, found = str(answer["downloadUrl"]), str(answer["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise InstallError(f"the registry's answer about {pack} cannot be read ({error!r})") from error
        self.say(f"downloading {pack} {found}")
        target = stage / pack
        _unpack(_get(address, MOST_BYTES), target)
        inner = [it for it in target.iterdir() if it.is_dir()]
        if not (target / "__init__.py").exists() and len(inner) == 1 and (inner[0] / "__init__.py").exists():
            target = inner[0].rename(stage / f"{pack}.inner")
        _check_module(target)
        return target, pack, Installed(name=pack, origin="registry", address=pack, version=found)

    def _require(self, pack: Path) -> None:
        """Install the pack's requirements; packages that are here already keep their versions."""
        wanted = pack / "requirements.txt"
        if not wanted.is_file():
            return
        self.say("installing its requirements")
        with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as pins:
            pins.writelines(sorted({f"{it.name}=={it.version}\n" for it in distributions() if it.name}))
        try:
            order = [sys.executable, "-m", "pip", "install", "--no-input", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run(
                [*order, "-r", str(wanted), "-c", pins.name], capture_output=True, text=True, check=False
            )
        finally:
            os.unlink(pins.name)
        if done.returncode:
            raise InstallError(
                "its requirements cannot be installed beside what is here: "
                + " ".join((done.stderr or done.stdout).split())[-500:]
            )


def _described(path: Path) -> Installed:
    enabled = not path.name.endswith(OFF)
    name = path.name.removesuffix(OFF)
    record: dict[str, Any] = {}
    try:
        record = json.loads((path / RECORD).read_text())
        return Installed(**{**record, "name": name, "enabled": enabled})
    except (OSError, ValueError, TypeError):
        version = ""
    project = path / "pyproject.toml"
    if project.is_file():
        try:
            version = str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
        except (ValueError, KeyError, TypeError):
            version = ""
    return Installed(name=name, origin="unknown", version=version, enabled=enabled)


def _write_record(pack: Path, record: Installed) -> None:
    if pack.is_dir():
        (pack / RECORD).write_text(
            json.dumps({k: v for k, v in asdict(record).items() if k not in ("name", "enabled")})
        )


def _check_module(path: Path) -> None:
    if path.is_dir() and not (path / "__init__.py").is_file():
        raise InstallError("it has no __init__.py; it is no pack of custom nodes")
    if path.is_file() and path.suffix != ".py":
        raise InstallError(f"{path.name} is no Python file; it is no pack of custom nodes")


def _get(address: str, most: int) -> bytes:
    try:
        return fetch(address, most=most)
    except FetchError as error:
        raise InstallError(str(error)) from error


def _unpack(data: bytes, target: Path) -> None:
    """Write a zip archive's plain files; one that leads out of its folder or grows without end is refused whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > MOST_FILES or sum(it.file_size for it in members) > MOST_BYTES:
                raise InstallError("the archive is larger than packs are")
            for it in members:
                place = PurePosixPath(it.filename.replace("\\", "/"))
                if place.is_absolute() or ".." in place.parts or stat.S_ISLNK(it.external_attr >> 16):
                    raise InstallError(f"the archive holds {it.filename[:100]!r}, which leads out of its folder")
            target.mkdir(parents=True)
            archive.extractall(target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise InstallError(f"the archive is damaged ({error})") from error
