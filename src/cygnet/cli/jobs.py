"""``cygnet jobs``: the studio's jobs, whether it runs or not."""

from __future__ import annotations

import json as json_module
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from cyclopts import Parameter

from cygnet.cli.options import Debug, Json, Whole
from cygnet.cli.output import Voice, escaped, table
from cygnet.cli.studio import base_folder, read_token
from cygnet.errors import CygnetError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from cygnet.server.store import JobRecord, JobStore

Action = Literal["list", "show", "cancel", "move", "retry"]
_DONE = {"cancel": "cancelled", "move": "moved", "retry": "in the queue again"}


class ServerFailed(CygnetError):
    """The running studio could not be asked."""

    code = "server_failed"


def jobs(
    action: Annotated[Action, Parameter(name="ACTION")] = "list",
    /,
    *ids: Annotated[str, Parameter(name="ID")],
    state: Annotated[tuple[str, ...], Parameter(metavar="STATE")] = (),
    limit: Whole = 20,
    to: Whole = 1,
    base_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    user_directory: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    token_file: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List the studio's jobs, newest first; show one whole; cancel or move those that wait; retry those that ended.

    Reads the job file, so that it works while no studio runs. A running studio is asked to change them.

    Parameters
    ----------
    action
        list, show, cancel, move or retry. A job that runs can be cancelled too.
    ids
        Jobs, by id or by its beginning.
    state
        List only these: pending, in_progress, completed, failed, cancelled. May be given again.
    limit
        List at most so many.
    to
        Move to this place among the jobs that wait; 1 is next.
    base_directory
        The studio's base folder. Default: cygnet's own folder of this user.
    user_directory
        The studio's folder of settings and jobs, where it was given one.
    token_file
        The file with the studio's token, where it has one.
    """
    try:
        from cygnet.server.store import JobStore
    except ImportError as error:
        raise UnsupportedError(
            f"the studio is not installed ({error.name}); run: pip install 'cygnet[studio]'"
        ) from error
    folder = (user_directory or base_folder(base_directory) / "user").expanduser().absolute()
    if action != "list" and not ids:
        raise RequestError(f"say which job to {action}: cygnet jobs {action} ID", field="ids")
    if action == "list" and ids:
        raise RequestError("cygnet jobs list takes no ids; use cygnet jobs show ID", field="ids")
    if to is None or to < 1:
        raise RequestError(f"--to is {to}; it must be 1, for next, or more", field="to")
    if not (folder / "jobs.sqlite").exists():
        if ids:
            raise RequestError(f"there are no jobs in {folder}; give the studio's --base-directory", field="ids")
        Voice(as_json=json).result({"jobs": []}, ["No jobs."])
        return 0
    voice = Voice(as_json=json)
    store = JobStore(folder / "jobs.sqlite")
    try:
        if action == "list":
            _list(store, voice, state, limit)
            return 0
        records = [_found(store, it) for it in ids]
        if action == "show":
            _show(records, voice)
        else:
            _change(store, voice, folder, action, records, to, read_token(token_file))
    finally:
        store.close()
    return 0


def _list(store: JobStore, voice: Voice, words: tuple[str, ...], limit: int | None) -> None:
    from cygnet.server.jobs_view import STATES, job_row

    unknown = [it for it in words if it not in STATES]
    if unknown:
        raise RequestError(f"there is no state {unknown[0]!r}; use {', '.join(STATES)}", field="state")
    states = [stored for word, found in STATES.items() if not words or word in words for stored in found]
    records, total = store.page(states, limit=limit)
    rows: list[tuple[str, ...]] = [("ID", "STATE", "SUBMITTED", "SECONDS", "TRIES", "RESULT")]
    rows += [(it.id[:8], it.state, _when(it.created_ms), _seconds(it), str(it.attempts), _result(it)) for it in records]
    lines = table(rows) if records else ["No jobs."]
    if total > len(records):
        lines.append(f"and {total - len(records)} more; see --limit")
    voice.result({"jobs": [{**job_row(it), "attempts": it.attempts} for it in records], "total": total}, lines)


def _show(records: list[JobRecord], voice: Voice) -> None:
    from cygnet.server.jobs_view import job_detail

    details = [{**job_detail(it), "attempts": it.attempts, "state": it.state} for it in records]
    text = json_module.dumps(details[0] if len(details) == 1 else details, indent=2)
    voice.result({"jobs": details}, text.splitlines())


def _change(
    store: JobStore, voice: Voice, folder: Path, action: Action, records: list[JobRecord], to: int, token: str | None
) -> None:
    from cygnet.server.store import BusyError, sole_owner

    changed = []
    for place, record in enumerate(records, to):
        done = True
        try:
            with sole_owner(folder):
                if action == "cancel":
                    done = bool(store.cancel([record.id]))
                elif action == "move":
                    store.move(record.id, place)
                else:
                    store.retry(record.id)
        except BusyError as busy:
            route = f"/api/jobs/{quote(record.id, safe='')}/{action}"
            answer = _ask(busy.url, route, {"place": place} if action == "move" else {}, token)
            done = bool(answer.get("cancelled", action != "cancel"))
        if not done:
            raise RequestError(f"job {record.id} is {record.state}; only one that waits or runs can be cancelled")
        changed.append(record.id)
    voice.result({"jobs": changed}, [f"{it}: {_DONE[action]}" for it in changed])


def _ask(url: str, route: str, order: dict[str, int], token: str | None) -> dict[str, Any]:
    """POST to the running studio."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(
            Request(url.rstrip("/") + route, json_module.dumps(order).encode(), headers), timeout=30
        ) as answer:
            found: dict[str, Any] = json_module.load(answer)
            return found
    except HTTPError as error:
        if error.code == 401:
            raise RequestError("the studio asks for a token; give its --token-file", field="token_file") from error
        try:
            reason = json_module.load(error).get("error")
        except (ValueError, AttributeError):
            reason = error.reason
        raise RequestError(f"the studio refused: {reason}") from error
    except (OSError, ValueError) as error:
        raise ServerFailed(f"the studio at {url or 'an unknown address'} does not answer ({error})") from error


def _found(store: JobStore, given: str) -> JobRecord:
    """The job of an id, or of the beginning of one."""
    matches = [store.require(given)] if store.get(given) else store.starting_with(given)
    if not matches:
        raise RequestError(f"there is no job {given!r}; cygnet jobs list shows them", field="ids")
    if len(matches) > 1:
        raise RequestError(f"{len(matches)} jobs begin with {given!r}; give more of the id", field="ids")
    return matches[0]


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _seconds(it: JobRecord) -> str:
    if it.started_ms is None or it.ended_ms is None:
        return ""
    return f"{(it.ended_ms - it.started_ms) / 1000:.1f}"


def _result(it: JobRecord) -> str:
    """What came of a job, on one line."""
    if it.ending is None:
        return ""
    if it.ending.error is not None:
        return escaped(str(it.ending.error.get("exception_message", ""))[:100])
    names = [
        "/".join(filter(None, (str(one.get("subfolder", "")), str(one["filename"]))))
        for ui in it.ending.outputs.values()
        for shown in ui.values()
        if isinstance(shown, list)
        for one in shown
        if isinstance(one, dict) and "filename" in one
    ]
    return escaped(" ".join(names))
