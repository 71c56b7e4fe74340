"""``cygnet mcp``: the studio as tools of a language model, by the Model Context Protocol."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

from cyclopts import Parameter

from cygnet.cli.options import Debug, Places
from cygnet.cli.output import Voice
from cygnet.cli.studio import base_folder, read_token
from cygnet.errors import OutputError, UnsupportedError


@dataclass(frozen=True)
class Address:
    """Where a studio answers, and where its results are."""

    url: str
    output: Path


def mcp(
    *,
    base_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    user_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    token_file: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    model_paths: Places = (),
    device: Annotated[str, Parameter(metavar="NAME")] = "auto",
    debug: Debug = False,
) -> int:
    """Serve the tools generate, status, cancel, fetch and models on stdin and stdout, for a program with an MCP client.

    Jobs go to the studio that runs on the base folder. If none runs, one is started, and stopped at the end; jobs that
    are not done by then go on at the next start.

    Parameters
    ----------
    base_directory
        The studio's base folder. Default: cygnet's own folder of this user.
    user_directory
        The studio's folder of settings and jobs, where it was given one.
    token_file
        The file with the studio's token, where it has one.
    device
        auto, cpu, cuda or cuda:N, for a studio that is started.
    """
    try:
        import uvicorn  # noqa: F401 (the studio's own)

        from cygnet.cli.mcp_tools import tools_server
    except ImportError as error:
        raise UnsupportedError(
            f"the MCP server is not installed ({error.name}); run: pip install 'cygnet[mcp]'"
        ) from error
    base = base_folder(base_directory)
    user = (user_directory or base / "user").expanduser().absolute()
    token = read_token(token_file)
    options = ["--base-directory", str(base), "--user-directory", str(user), "--device", device]
    if token_file is not None:
        options += ["--token-file", str(token_file.expanduser().absolute())]
    options += [word for path in model_paths for word in ("--model-paths", str(path))]
    with _studio(user, options) as found:
        Voice().note(f"the studio is at {found.url}")
        tools_server(found, token).run("stdio")
    return 0


@contextmanager
def _studio(user: Path, options: list[str]) -> Iterator[Address]:
    """The studio that runs on the user folder, or one that runs until the end of the block."""
    if (found := running_studio(user)) is not None:
        yield found
        return
    # Its own session: an interrupt at a terminal reaches us, and we tell it.
    command = [sys.executable, "-m", "cygnet", "launch", "--port", "0", *options]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert child.stderr is not None
    try:
        said: list[str] = []
        for line in child.stderr:
            said.append(line)
            if re.search(r"http://\S+/", line):
                break
        started = running_studio(user)
        if started is None:
            raise OutputError(f"the studio did not start: {''.join(said)[-2000:].strip() or 'it said nothing'}")
        threading.Thread(target=_pass_on, args=(child.stderr,), daemon=True).start()
        yield started
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _pass_on(lines: IO[str]) -> None:
    """What the child says appears on our stderr; a pipe that nobody reads would stop it."""
    for line in lines:
        sys.stderr.write(line)


def running_studio(user: Path) -> Address | None:
    """The studio that holds this folder of settings and jobs."""
    from cygnet.server.store import BusyError, sole_owner

    if not (user / "server.lock").exists():
        return None
    try:
        with sole_owner(user):
            return None
    except BusyError as busy:
        return Address(busy.url, busy.output)
