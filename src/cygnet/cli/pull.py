"""``cygnet pull``: fetch the weights of a named model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cygnet.cli.interrupts import cancelled_by_interrupt
from cygnet.cli.options import Debug, Json, Quiet, Text
from cygnet.cli.output import Voice, gigabytes
from cygnet.cli.progress import open_display
from cygnet.errors import Cancelled


def pull(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    source: Literal["official", "comfy", "diffusers"] = "official",
    dtype: Text = None,
    revision: Text = None,
    local_dir: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Fetch the weights of a named model, or go on where the last try stopped, and verify them.

    Parameters
    ----------
    name
        One of the names that `cygnet models` lists.
    source
        Whose files: official (32-bit, the largest), comfy (single files for ComfyUI) or diffusers (a pipeline folder).
    dtype
        Stored type of the comfy files: bf16, fp16, fp8_scaled or fp8_e4m3fn.
    revision
        Branch, tag or commit of the repository.
    local_dir
        A folder to put the files into, in ComfyUI's layout with --source comfy; by default the shared download cache
        (HF_HOME, HF_HUB_CACHE). HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    """
    # The hub's library reads this when it is imported; without it every request would tell what else is installed.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from cygnet.checkpoints import hub

    voice = Voice(as_json=json, quiet=quiet)
    with open_display(voice) as display, cancelled_by_interrupt(voice.note) as cancel:

        def show(progress: hub.PullProgress) -> None:
            word = "fetching" if progress.stage == "download" else "verifying"
            what = f"{word} {progress.number}/{progress.count} {progress.file.rsplit('/', 1)[-1]}"
            display.bytes(what, progress.done, progress.total)

        try:
            done = hub.pull(
                name, source, revision, dtype=dtype, local_folder=local_dir, on_progress=show, cancel=cancel
            )
        except Cancelled as error:
            raise Cancelled("stopped on request; what was fetched is kept: pull again to go on") from error
    fetched = [file for file in done.files if file.fetched]
    if done.offline:
        voice.note(f"{done.name} is complete in the cache (offline: nothing was compared with the hub)")
    else:
        size = gigabytes(sum(file.bytes for file in fetched))
        voice.note(f"{done.name}: {len(fetched)} files fetched ({size}), {len(done.files)} verified")
    value = {
        "name": done.name,
        "source": done.source,
        "repo": done.repo,
        "commit": done.commit,
        "folder": str(done.folder),
        "offline": done.offline,
        "files": [
            {"name": f.name, "path": str(f.path), "bytes": f.bytes, "sha256": f.sha256 or None, "fetched": f.fetched}
            for f in done.files
        ],
    }
    voice.result(value, [str(done.folder)])
    return 0
