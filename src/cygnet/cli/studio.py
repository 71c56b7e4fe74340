"""What the studio's verbs share: folders, settings, and what runs in its child processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cygnet.errors import RequestError

if TYPE_CHECKING:
    from cygnet.graph.contract import NodeClass
    from cygnet.graph.folders import Folders
    from cygnet.nodes.host import Host
    from cygnet.nodes.packs import Pack
    from cygnet.nodes.workshop import Workshop
    from cygnet.server.child import Channel

KINDS = (
    *("checkpoints", "diffusion_models", "text_encoders", "vae", "clip_vision", "loras", "model_patches"),
    *("audio_encoders", "upscale_models", "embeddings", "vae_approx", "controlnet"),
)
"""Kinds of model folders that the page knows."""


def base_folder(given: Path | None) -> Path:
    """The base directory: the one given, or cygnet's own folder of this user."""
    if given is not None:
        return given.expanduser().absolute()
    from cygnet.checkpoints.discovery import home_folder

    return home_folder()


def folders_of(base: Path, given: Mapping[str, Path | None]) -> Folders:
    """Input, output and temporary folders: below ``base``, or as given."""
    from cygnet.graph.folders import Folders

    usual = Folders.below(base)
    places: dict[str, Path] = {}
    for kind, path in given.items():
        chosen = usual.root(kind) if path is None else path  # type: ignore[arg-type]
        # The temporary folder is emptied at start and stop, so one that was given is never used itself.
        places[kind] = (
            (chosen / "cygnet-temp" if kind == "temp" and path is not None else chosen).expanduser().absolute()
        )
    return Folders(**places)


def holder_of(temp: Path) -> Path:
    """The folder in which a studio says that it holds a temporary folder."""
    return temp.with_name(f".{temp.name}-owner")


def running_studio(temp: Path) -> str | None:
    """Where the studio answers that works with this temporary folder; None if none runs."""
    import psutil

    note = holder_of(temp) / "server.pid"
    try:
        process, address, *_ = note.read_text().splitlines()
        # A studio that was killed leaves its note, and another process may have its number by now.
        began = psutil.Process(int(process)).create_time()
        return address if began <= note.stat().st_mtime + 1 else None
    except (OSError, ValueError, psutil.Error):
        return None


def model_roots(base: Path, places: Sequence[Path]) -> dict[str, list[str]]:
    """Model folders by kind: those that an extra_model_paths.yaml makes the default, then those below ``base``, then
    all others that are known."""
    from cygnet.checkpoints.discovery import model_folders

    known = model_folders(places)
    roots: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, path in (
        *((it.kind, it.path) for it in known if it.is_default),
        *((kind, base / "models" / kind) for kind in KINDS),
        *((it.kind, it.path) for it in known),
    ):
        if str(path) not in roots.setdefault(kind, []):
            roots[kind].append(str(path))
    return roots


def pack_folders(base: Path, roots: Mapping[str, Sequence[str]]) -> list[Path]:
    """Folders of custom nodes: the one below ``base``, and those that an extra_model_paths.yaml names."""
    return list(dict.fromkeys([base / "custom_nodes", *map(Path, roots.get("custom_nodes", ()))]))


def child_options(
    folders: Folders,
    roots: Mapping[str, Sequence[str]],
    *,
    device: str,
    metadata: bool,
    packs: Sequence[Path] = (),
    only_packs: Sequence[str] | None = None,
    notebooks: Path | None = None,
    previews: tuple[str, int] = ("auto", 512),
    results_kept: int | None = 0,
) -> dict[str, Any]:
    """What both child processes are started with, as JSON values.

    ``packs`` are the folders of custom nodes, of which ``only_packs`` are loaded unless it is None; each process keeps
    a file in ``notebooks`` on what it imports. ``previews`` are the usual method and the longest side, ``results_kept``
    says of how many nodes besides the last graph's results are kept, None that none are.
    The server adds ``pack_socket``, on which the worker answers the web routes of packs, and its ``address`` and port.
    """
    return {
        "folders": {kind: str(folders.root(kind)) for kind in ("input", "output", "temp")},
        "models": {kind: list(paths) for kind, paths in roots.items()},
        "device": device,
        "metadata": metadata,
        "packs": [str(it) for it in packs],
        "only_packs": None if only_packs is None else list(only_packs),
        "notebooks": None if notebooks is None else str(notebooks),
        "pack_socket": None,
        "preview_method": previews[0],
        "preview_side": previews[1],
        "results_kept": results_kept,
    }


def workshop(options: Mapping[str, Any]) -> Workshop:
    """The workshop that the options describe."""
    from cygnet.checkpoints.catalogue import EMBEDDED
    from cygnet.graph.folders import Folders
    from cygnet.nodes.catalogue import embedded_files
    from cygnet.nodes.workshop import Workshop

    return Workshop(
        folders=Folders(**{kind: Path(path) for kind, path in options["folders"].items()}),
        models={kind: tuple(Path(it) for it in paths) for kind, paths in options["models"].items()},
        embedded=embedded_files(EMBEDDED),
        device=options["device"],
        metadata=options["metadata"],
        preview_side=options["preview_side"],
    )


def known_nodes(
    shop: Workshop, options: Mapping[str, Any], process: str, host: Host | None = None
) -> tuple[dict[str, NodeClass], Sequence[Pack]]:
    """Our node types and those of all packs, and the packs; ``process`` tells this process's notes from another's.

    ``host`` is what the packs take for the server.
    """
    from cygnet.nodes import packs
    from cygnet.nodes.catalogue import node_classes

    classes = node_classes(shop)
    notes = None if options["notebooks"] is None else Path(options["notebooks"]) / f"importing-{process}.json"
    found = packs.load(shop, [Path(it) for it in options["packs"]], classes, notes, host, options["only_packs"])
    return {**classes, **{name: node for pack in found for name, node in pack.nodes.items()}}, found


def child_host(options: Mapping[str, Any], tell: Callable[[str, Any, str | None], None] | None = None) -> Host:
    """What packs in a child process of the server take for it."""
    from cygnet.nodes.host import Host

    listens = options.get("address")
    address = None if listens is None else (str(listens[0]), int(listens[1]))
    more: dict[str, Any] = {} if tell is None else {"tell": tell}
    return Host(address=address, preview_method=options["preview_method"], **more)


def worker(channel: Channel, options: Mapping[str, Any]) -> None:
    """The process that runs jobs."""
    from cygnet.graph.cache import Cache
    from cygnet.runtime.memory import device_memory
    from cygnet.runtime.precision import parse_device
    from cygnet.server.worker import serve_jobs

    host = child_host(
        options, lambda event, data, client: channel.send({"said": event, "data": data, "client": client})
    )
    shop = workshop(options)
    classes, _ = known_nodes(shop, options, "worker", host)
    if options["pack_socket"] is not None:
        host.serve(Path(options["pack_socket"]))
    device = parse_device(shop.device)
    kept = options["results_kept"]
    serve_jobs(
        channel,
        classes,
        cache=Cache(kept or 0, enabled=kept is not None),
        preview_method=options["preview_method"],
        free=shop.unload,
        devices=lambda: [device_memory(device)],
        remaining=functools.partial(setattr, host, "tasks_remaining"),
    )


def catalogue(channel: Channel, options: Mapping[str, Any]) -> None:
    """The process that knows the nodes."""
    from cygnet.server.worker import serve_catalogue

    host = child_host(options)
    classes, found = known_nodes(workshop(options), options, "catalogue", host)
    serve_catalogue(channel, classes, [it.json() for it in found], host.patterns())


def read_token(path: Path | None) -> str | None:
    """The first line of a token file."""
    if path is None:
        return None
    try:
        if os.name == "posix" and path.stat().st_mode & 0o022:
            raise RequestError(
                f"others may write the token file {path.name}, and so choose the token; run: chmod 600 {path.name}",
                field="token_file",
            )
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the token file {path.name} cannot be read ({error})", field="token_file") from error
    if not lines or not lines[0].strip():
        raise RequestError(f"the token file {path.name} is empty; put a long random line into it", field="token_file")
    return lines[0].strip()
