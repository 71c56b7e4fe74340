"""``cygnet launch``: the studio's server."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from cygnet.cli.options import Debug, Number, Places, Switch, Whole
from cygnet.cli.output import Voice
from cygnet.cli.studio import (
    base_folder,
    child_options,
    folders_of,
    holder_of,
    model_roots,
    pack_folders,
    read_token,
)
from cygnet.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from cygnet.server.settings import Settings

_WHO = Group.create_ordered("Who may reach it")
_WHERE = Group.create_ordered("Where things are")
_MB = 2**20
WILDCARDS = frozenset(("0.0.0.0", "::"))
PreviewMethod = Literal["auto", "latent2rgb", "taesd", "none"]
_TEMPLATES = (
    "comfyui_workflow_templates_json",
    "comfyui_workflow_templates_media_video",  # these two hold pictures alone, and are large: users may install them
    "comfyui_workflow_templates_media_image",
)
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def launch(
    *,
    listen: Annotated[str, Parameter(group=_WHO, metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[Whole, Parameter(group=_WHO)] = 8188,
    token_file: Annotated[Path | None, Parameter(group=_WHO, metavar="FILE")] = None,
    allow_host: Annotated[tuple[str, ...], Parameter(group=_WHO, metavar="NAME")] = (),
    enable_cors_header: Annotated[tuple[str, ...], Parameter(group=_WHO, metavar="ORIGIN")] = (),
    max_upload_size: Annotated[Number, Parameter(group=_WHO, metavar="MB")] = 100.0,
    auto_launch: Annotated[Switch, Parameter(group=_WHO)] = False,
    base_directory: Annotated[Path | None, Parameter(group=_WHERE, metavar="FOLDER")] = None,
    input_directory: Annotated[Path | None, Parameter(group=_WHERE, metavar="FOLDER")] = None,
    output_directory: Annotated[Path | None, Parameter(group=_WHERE, metavar="FOLDER")] = None,
    temp_directory: Annotated[Path | None, Parameter(group=_WHERE, metavar="FOLDER")] = None,
    user_directory: Annotated[Path | None, Parameter(group=_WHERE, metavar="FOLDER")] = None,
    extra_model_paths_config: Annotated[
        tuple[Path, ...], Parameter(group=_WHERE, metavar="FILE", consume_multiple=True)
    ] = (),
    model_paths: Annotated[Places, Parameter(group=_WHERE)] = (),
    front_end_root: Annotated[Path | None, Parameter(group=_WHERE, metavar="FOLDER")] = None,
    device: Annotated[str, Parameter(metavar="NAME")] = "auto",
    preview_method: PreviewMethod = "auto",
    preview_size: Whole = 512,
    cache_lru: Whole = 0,
    cache_none: Switch = False,
    disable_metadata: Switch = False,
    disable_all_custom_nodes: Switch = False,
    whitelist_custom_nodes: Annotated[tuple[str, ...], Parameter(metavar="PACK", consume_multiple=True)] = (),
    enable_manager: Switch = False,
    verbose: Level = "INFO",
    log_format: Annotated[Literal["text", "json"], Parameter()] = "text",
    debug: Debug = False,
) -> int:
    """Start the studio: a server for ComfyUI's web page, its workflows and its clients.

    Jobs are stored before they are acknowledged; whatever stops, they go on when the studio starts again. The flags of
    ComfyUI's own launcher mean the same here, or are refused with the reason.

    Parameters
    ----------
    listen
        Address to listen on, or several with commas between; without a value every one. Any but this machine's own
        needs --token-file.
    port
        Port to listen on.
    token_file
        A file whose first line every client must send.
    allow_host
        A further name under which browsers reach this server; may be given again.
    enable_cors_header
        The origin of another site that may call this server; may be given again.
    max_upload_size
        Largest upload, in MB.
    auto_launch
        Open the page in a browser.
    base_directory
        Folder of models, input, output, temp and user. Default: cygnet's own folder of this user.
    input_directory
        Folder of pictures to work on.
    output_directory
        Folder of results.
    temp_directory
        Folder in which the folder of previews is made, which is emptied at start and stop.
    user_directory
        Folder of settings, saved workflows and the job file.
    extra_model_paths_config
        An extra_model_paths.yaml; several may follow, and it may be given again.
    front_end_root
        Folder of the page's files. Default: that of the installed comfyui-frontend-package.
    device
        auto, cpu, cuda or cuda:N; ComfyUI's --cpu and --cuda-device N are understood.
    preview_method
        How previews are made where the page does not say: none; latent2rgb, guessed from the colours of latents; taesd,
        decoded where its weights are; auto, as taesd.
    preview_size
        Longest side of a preview, in pixels.
    cache_lru
        Keep the results of so many nodes besides those of the last graph.
    cache_none
        Keep no results of nodes.
    disable_metadata
        Do not store prompts and workflows in results.
    disable_all_custom_nodes
        Load no packs of custom nodes.
    whitelist_custom_nodes
        Load these packs in spite of --disable-all-custom-nodes.
    enable_manager
        Let the page's Manager install packs of custom nodes from the registry. They run as you; on loopback only.
    verbose
        Least level of what is logged on stderr.
    log_format
        text, or json: one object a line.
    """
    base = base_folder(base_directory)
    given = {"input": input_directory, "output": output_directory, "temp": temp_directory}
    folders = folders_of(base, given)
    roots = model_roots(base, (*extra_model_paths_config, *model_paths))
    try:
        from cygnet.server.guard import Access, is_loopback
        from cygnet.server.logs import log_to_stderr
        from cygnet.server.settings import Settings
        from cygnet.server.templates import STARTERS
    except ImportError as error:
        raise UnsupportedError(
            f"the studio is not installed ({error.name}); run: pip install 'cygnet[studio]'"
        ) from error
    log_to_stderr(verbose, log_format)
    addresses = tuple(dict.fromkeys(filter(None, (it.strip() for it in listen.split(",")))))
    public = [it for it in addresses if not is_loopback(it)]
    access = Access(
        listen=(*public, *addresses, "127.0.0.1")[0],
        names=frozenset(allow_host) | (set(addresses) - WILDCARDS),
        origins=frozenset(enable_cors_header),
        token=read_token(token_file),
    )
    if enable_manager and public:
        raise RequestError(
            f"--enable-manager lets the page install programs, and --listen is {listen}; use it on loopback only, or "
            "install packs with: cygnet nodes install",
            field="enable_manager",
        )
    if whitelist_custom_nodes and not disable_all_custom_nodes:
        raise RequestError(
            "--whitelist-custom-nodes names packs to load in spite of --disable-all-custom-nodes; give that one too",
            field="whitelist_custom_nodes",
        )
    settings = Settings(
        folders=folders,
        user=(user_directory or base / "user").expanduser().absolute(),
        page=_page(front_end_root),
        templates=(STARTERS, *filter(None, (_installed(it, "templates") for it in _TEMPLATES))),
        docs=_installed("comfyui_embedded_docs", "docs"),
        models={kind: tuple(Path(it) for it in paths) for kind, paths in roots.items() if kind != "custom_nodes"},
        access=access,
        largest_upload=round((max_upload_size or 0) * _MB),
        versions=_versions(),
        packs=base / "custom_nodes" if enable_manager else None,
        arguments=("--disable-api-nodes", *(("--enable-manager",) if enable_manager else ())),
    )
    _require("preview_size", preview_size, 16)
    _require("cache_lru", cache_lru, 0)
    options = child_options(
        folders,
        roots,
        device=device,
        metadata=not disable_metadata,
        packs=pack_folders(base, roots),
        only_packs=whitelist_custom_nodes if disable_all_custom_nodes else None,
        notebooks=settings.user,
        previews=(preview_method, preview_size or 0),
        results_kept=None if cache_none else cache_lru or 0,
    )
    return _serve(settings, options, _all_bound(addresses, port or 0), auto_launch)


def _require(name: str, value: int | None, least: int) -> None:
    if value is None or value < least:
        raise RequestError(f"--{name.replace('_', '-')} is {value}; it must be {least} or more", field=name)


def _page(given: Path | None) -> Path | None:
    """The folder of the page's files."""
    if given is None:
        return _installed("comfyui_frontend_package", "static")
    folder = given.expanduser().absolute()
    if not (folder / "index.html").is_file():
        raise RequestError(
            f"--front-end-root is {given}, which holds no index.html; give the folder that has the page's files",
            field="front_end_root",
        )
    return folder


def _all_bound(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """A listening socket for each address, all on one port."""
    if not addresses:
        raise RequestError("--listen names no address; give one, such as 127.0.0.1", field="listen")
    found: list[socket.socket] = []
    try:
        for address in addresses:
            found.append(_bound(address, found[0].getsockname()[1] if found else port))
    except RequestError:
        for it in found:
            it.close()
        raise
    return found


def _bound(listen: str, port: int) -> socket.socket:
    """A listening socket, or an error in words; never another port than the one asked for."""
    if not 0 <= port <= 65535:
        raise RequestError(f"port is {port}; it must be from 0 (any that is free) to 65535", field="port")
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    # The protocol is named, for asyncio switches Nagle's delay of 40 ms off only where it is.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # or it would hold the port of IPv4 too
    try:
        bound.bind((listen, port))
        bound.listen(2048)  # from here on a browser waits until the server is up, and is not refused
    except (OSError, UnicodeError) as error:  # the second for what cannot be a name
        bound.close()
        why = getattr(error, "strerror", None) or "no such address"
        raise RequestError(
            f"cannot listen on {listen[:100]}, port {port} ({why}); stop what uses it, or choose another --port",
            field="port",
        ) from error
    return bound


def _serve(settings: Settings, options: dict[str, object], bound: list[socket.socket], auto_launch: bool) -> int:
    import uvicorn

    from cygnet.server.app import create_app, features
    from cygnet.server.engine import Engine
    from cygnet.server.patience import PatientProtocol
    from cygnet.server.serving import DrainingServer
    from cygnet.server.sockets import Sockets
    from cygnet.server.store import JobStore, sole_owner

    address, port = bound[0].getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}/"
    with (
        sole_owner(settings.user, url, settings.folders.output),
        # The temporary folder is emptied, also where --user-directory lets two servers share the rest.
        sole_owner(holder_of(settings.folders.temp), url, settings.folders.output),
        tempfile.TemporaryDirectory(prefix="cygnet-") as private,  # nobody else may enter it
    ):
        settings = replace(settings, pack_socket=Path(private) / "packs")
        options = {**options, "pack_socket": str(settings.pack_socket), "address": [address, port]}
        _empty(settings.folders.temp)
        _sweep(settings)
        _lay_out(settings.folders.input)
        store = JobStore(settings.user / "jobs.sqlite")
        here = "cygnet.cli.studio"
        places = (settings.user, settings.folders.output)
        engine = Engine(
            store, Sockets(features(settings)), f"{here}:worker", f"{here}:catalogue", options, places=places
        )
        wanted: list[bool] = []

        def restart() -> None:
            wanted.append(True)
            server.should_exit = True

        config = uvicorn.Config(
            create_app(engine, settings, restart),
            log_config=None,
            http=PatientProtocol,
            ws_max_size=2**20,
            timeout_graceful_shutdown=5,
            proxy_headers=False,  # whoever connects could write them
            server_header=False,
        )
        server = DrainingServer(config, engine)
        server.hear_hang_up()
        Voice().note(f"To see the page go to: {url}")
        if auto_launch:
            import webbrowser

            webbrowser.open(url)
        try:
            server.run(sockets=bound)
        finally:
            store.close()
            _empty(settings.folders.temp)
    if wanted:
        for it in bound:
            it.close()
        _become_new(port)
    return 0


def _become_new(port: int) -> None:
    """Replace this process by one with the same arguments, on the same port."""
    sys.stderr.flush()
    if (session := os.environ.get("__COMFY_CLI_SESSION__")) is not None:  # comfy-cli starts it again
        Path(f"{session}.reboot").write_text("")
        return
    words = [it for it in sys.argv[1:] if it != "--auto-launch"]
    for at, word in enumerate(words):  # the page that waits knows the port that was free
        if word == "--port=0":
            words[at] = f"--port={port}"
        elif word == "--port" and words[at + 1 : at + 2] == ["0"]:
            words[at + 1] = str(port)
    os.execv(sys.executable, [sys.executable, "-m", "cygnet", *words])


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _sweep(settings: Settings) -> None:
    """Remove what killed processes left half written. Others than the studio write into the output folder too."""
    from cygnet.media.files import remove_stale_parts

    for root, age in ((settings.folders.input, 0.0), (settings.user, 0.0), (settings.folders.output, 3600.0)):
        for folder, _, _ in os.walk(root):
            remove_stale_parts(Path(folder), older_than=age)


def _lay_out(folder: Path) -> None:
    """Put the pictures of the starter workflows into the input folder."""
    from cygnet.server.templates import STARTERS

    folder.mkdir(parents=True, exist_ok=True)
    for picture in STARTERS.glob("*.png"):
        if not (folder / picture.name).exists():
            shutil.copyfile(picture, folder / picture.name)


def _installed(package: str, inside: str) -> Path | None:
    """A folder of an installed package, without importing it."""
    from importlib.util import find_spec

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / inside
    return found if found.is_dir() else None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("cygnet", "torch", "comfyui-frontend-package", "comfyui-workflow-templates"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": sys.version.split()[0]}
