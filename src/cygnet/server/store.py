"""Jobs that are never lost: one SQLite file, written before anything is acknowledged.

States::

    pending ──claim──> running ──finish──> completed | failed | cancelled
       │                  └──lost──> pending again, or quarantined after too many attempts
       └──cancel──> cancelled

Each claim raises the job's *fence*; a result is taken only with the fence of the latest claim, so that a worker that
was given up cannot overwrite what its successor does. Order follows numbers that the store gives out, never a clock;
times are there to be shown (UTC, milliseconds since the epoch).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from cygnet.errors import DiskFullError, OutputError, RequestError
from cygnet.server import tables
from cygnet.server.tables import StoreError

JobState = Literal["pending", "running", "completed", "failed", "cancelled", "quarantined"]
ENDED: tuple[JobState, ...] = ("completed", "failed", "cancelled", "quarantined")

MOST_ATTEMPTS = 3
"""How often a job may take its worker down before it is set aside."""

_TRIED, _MOST_TRIED = 16_384, 1_000_000
"""How much is written, in bytes, to learn whether the file takes anything: at least, and at most."""
_TRY_AGAIN_AFTER = 10.0
"""For how many seconds it is believed that it does."""
_NEXT_END = "(SELECT COALESCE(MAX(ended), 0) + 1 FROM jobs)"


class DuplicateJobError(RequestError):
    """A job of that id was submitted before, with other contents."""

    code = "job_conflict"


class BusyError(StoreError):
    """Another process holds the data directory; where it answers and where its results go, if it said so."""

    def __init__(self, holder: str, url: str, output: Path) -> None:
        super().__init__(
            f"another cygnet server (process {holder}) uses this data directory; stop it, or start this one with "
            "another --base-directory"
        )
        self.url = url
        self.output = output


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a client asks for, already validated."""

    id: str
    prompt: Mapping[str, Any]
    outputs: Sequence[str]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Without secrets: whatever is here can be read back by any client."""
    client_id: str | None = None

    @property
    def workflow_id(self) -> str | None:
        """The page's id of the workflow that the prompt was made from."""
        notes = self.extra.get("extra_pnginfo")
        workflow = notes.get("workflow") if isinstance(notes, Mapping) else None
        found = workflow.get("id") if isinstance(workflow, Mapping) else None
        return found if isinstance(found, str) else None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended."""

    state: JobState
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """Node id to what it shows."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Sequence[Any]] = ()
    """``[event, data]`` pairs for clients that read the history."""
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job as stored."""

    id: str
    number: int | float
    """The priority shown to clients; lower runs first. A whole one is an int, which is how clients read it."""
    state: JobState
    submission: Submission
    attempts: int
    fence: int
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    ending: Ending | None


class JobStore:
    """The jobs of one data directory. Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._took_at: float | None = None
        """When the file took what was written to try it; None: not tried yet, or something failed since."""
        self._refused = 0
        """How many bytes it did not take last."""
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                tables.create(self.path)
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
            db.row_factory = sqlite3.Row
            tables.check(db, self.path.name)
            tables.migrate(db, self.path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # an acknowledged job survives a power cut
        except (sqlite3.DatabaseError, OSError) as error:
            if db is not None:
                db.close()
            raise StoreError(
                f"the job file {self.path.name} cannot be used ({error}); it was left as it is. Move it away to start "
                "with an empty queue, or restore it from a backup"
            ) from error
        return db

    def close(self) -> None:
        """Finish; the file stays."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self, size: int = 0) -> Iterator[sqlite3.Connection]:
        """One transaction, of about ``size`` bytes: everything in it happens, or nothing."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._roll_back()
                self._took_at, self._refused = None, max(size, self._refused)
                kind = DiskFullError if error.sqlite_errorcode == sqlite3.SQLITE_FULL else OutputError
                raise kind(f"the job file could not be written: {error}") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def can_write(self) -> bool:
        """Whether the file takes a change now, as large as what it refused last; a row beside the jobs is written.

        Only what is committed reaches the disk: a transaction that changes nothing succeeds on a full one too.
        """
        with self._lock:
            if self._took_at is not None and time.monotonic() - self._took_at < _TRY_AGAIN_AFTER:
                return True
            try:
                with self._writing() as db:
                    tried = "x" * max(_TRIED, min(self._refused, _MOST_TRIED))
                    db.execute("INSERT OR REPLACE INTO facts VALUES ('tried', ?)", (tried,))
            except OutputError:
                return False
            self._took_at, self._refused = time.monotonic(), 0
            return True

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Submission

    def submit(self, it: Submission, *, front: bool = False, number: float | None = None) -> JobRecord:
        """Store a job; on return it is on disk. The same submission again gives the job that is there already.

        Jobs run by ascending number. The store counts them up; with ``front`` the count is negated, so that the job
        comes before all others. Raises :class:`DuplicateJobError` when the id belongs to another submission.
        """
        body = json.dumps(
            {"prompt": it.prompt, "outputs": list(it.outputs), "extra": it.extra, "client_id": it.client_id},
            separators=(",", ":"),
        )
        digest = hashlib.sha256(json.dumps([it.prompt, list(it.outputs)], sort_keys=True).encode()).hexdigest()
        with self._writing(len(body)) as db:
            known = db.execute("SELECT digest FROM jobs WHERE id = ?", (it.id,)).fetchone()
            if known is not None and known["digest"] != digest:
                raise DuplicateJobError(f"job {it.id} was submitted before with other contents; use a new prompt_id")
            if known is None:
                sequence = self._count(db)
                place = number if number is not None else float(-sequence if front else sequence)
                db.execute(
                    "INSERT INTO jobs (id, place, sequence, state, body, digest, workflow_id, created_ms)"
                    " VALUES (?, ?, ?, 'pending', ?, ?, ?, ?)",
                    (it.id, place, sequence, body, digest, it.workflow_id, _now()),
                )
        return self.require(it.id)

    @staticmethod
    def _count(db: sqlite3.Connection) -> int:
        """The next sequence number; numbers of deleted jobs are not given out again."""
        row = db.execute(
            "INSERT INTO facts VALUES ('sequence', '1') ON CONFLICT (name)"
            " DO UPDATE SET value = CAST(value AS INTEGER) + 1 RETURNING value"
        ).fetchone()
        return int(row["value"])

    # Work

    def claim(self) -> JobRecord | None:
        """Take the next pending job to run; None when there is none."""
        with self._writing() as db:
            row = db.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, fence = fence + 1, started_ms = ?"
                " WHERE id = (SELECT id FROM jobs WHERE state = 'pending' ORDER BY place, sequence LIMIT 1)"
                " RETURNING *",
                (_now(),),
            ).fetchone()
        return None if row is None else _record(row)

    def finish(self, job_id: str, fence: int, ending: Ending) -> bool:
        """Record the end of a running job; False, and nothing recorded, when the claim is no longer the latest."""
        if ending.state not in ENDED:
            raise ValueError(f"a job does not end as {ending.state}")
        result = _ending_text(ending)
        with self._writing(len(result)) as db:
            changed = db.execute(
                f"UPDATE jobs SET state = ?, result = ?, ended_ms = ?, ended = {_NEXT_END}"
                " WHERE id = ? AND state = 'running' AND fence = ?",
                (ending.state, result, _now(), job_id, fence),
            ).rowcount
        return changed == 1

    def lose(
        self, evidence: str, only: Iterable[str] | None = None, *, node: str = "", kind: str = ""
    ) -> list[JobRecord]:
        """Running jobs whose worker is gone: pending again, or quarantined when they were tried too often.

        Called at start for all, and by the server for the job of a worker that died; then ``node`` and its type
        ``kind`` say where the job was, as far as that is known. Returns the jobs as they are now.
        """
        message = f"{evidence}; tried {MOST_ATTEMPTS} times"
        with self._writing() as db:
            running = [row["id"] for row in db.execute("SELECT id FROM jobs WHERE state = 'running'")]
            lost = [it for it in running if only is None or it in set(only)]
            for job_id in lost:
                error: dict[str, Any] = {
                    "exception_type": "WorkerLost",
                    "exception_message": message,
                    "node_id": node,
                    "node_type": kind,
                }
                error |= {"traceback": [], "executed": [], "current_inputs": {}, "current_outputs": []}
                told = ("execution_error", {**error, "prompt_id": job_id, "timestamp": _now()})
                ending = Ending(state="quarantined", error=error, messages=[told])
                db.execute(
                    "UPDATE jobs SET state = CASE WHEN attempts < ?1 THEN 'pending' ELSE 'quarantined' END,"
                    " result = CASE WHEN attempts < ?1 THEN NULL ELSE ?2 END,"
                    " started_ms = CASE WHEN attempts < ?1 THEN NULL ELSE started_ms END,"
                    " ended_ms = CASE WHEN attempts < ?1 THEN NULL ELSE ?3 END,"
                    f" ended = CASE WHEN attempts < ?1 THEN NULL ELSE {_NEXT_END} END, fence = fence + 1 WHERE id = ?4",
                    (MOST_ATTEMPTS, _ending_text(ending), _now(), job_id),
                )
        return [self.require(job_id) for job_id in lost]

    def give_back(self) -> int:
        """Running jobs are pending again and the attempt does not count: the server stops on purpose. How many."""
        with self._writing() as db:
            changed: int = db.execute(
                "UPDATE jobs SET state = 'pending', attempts = max(attempts - 1, 0), fence = fence + 1,"
                " started_ms = NULL WHERE state = 'running'"
            ).rowcount
        return changed

    def retry(self, job_id: str) -> JobRecord:
        """Put an ended job at the end of the queue again, with its attempts forgotten."""
        with self._writing() as db:
            place = self._count(db)
            changed = db.execute(
                "UPDATE jobs SET state = 'pending', attempts = 0, result = NULL, started_ms = NULL, ended_ms = NULL,"
                f" ended = NULL, place = ?, sequence = ? WHERE id = ? AND state IN ({_marks(ENDED)})",
                (place, place, job_id, *ENDED),
            ).rowcount
        if not changed:
            state = self.require(job_id).state
            raise RequestError(f"job {job_id} is {state}; only a job that has ended can be tried again")
        return self.require(job_id)

    def cancel(self, job_ids: Iterable[str] | None = None) -> list[str]:
        """Cancel pending jobs, all of them with None; returns the ids of those that were pending."""
        ending = _ending_text(Ending(state="cancelled"))
        with self._writing() as db:
            pending = [row["id"] for row in db.execute("SELECT id FROM jobs WHERE state = 'pending'")]
            chosen = pending if job_ids is None else [it for it in job_ids if it in set(pending)]
            db.executemany(
                f"UPDATE jobs SET state = 'cancelled', result = ?, ended_ms = ?, ended = {_NEXT_END} WHERE id = ?",
                [(ending, _now(), it) for it in chosen],
            )
        return chosen

    def move(self, job_id: str, place: int) -> JobRecord:
        """Make a pending job the ``place``-th of those that wait, 1 is next; beyond their number it is the last.

        Those that wait deal out their places anew, so that nothing else changes its turn.
        """
        with self._writing() as db:
            rows = db.execute("SELECT id, place, sequence FROM jobs WHERE state = 'pending' ORDER BY place, sequence")
            turns = {row["id"]: (row["place"], row["sequence"]) for row in rows}
            if job_id in turns:
                order = [it for it in turns if it != job_id]
                order.insert(max(place, 1) - 1, job_id)
                changed = [(*turn, it) for turn, it in zip(turns.values(), order, strict=True) if turns[it] != turn]
                db.executemany("UPDATE jobs SET place = ?, sequence = ? WHERE id = ?", changed)
        record = self.require(job_id)
        if record.state != "pending":
            raise RequestError(f"job {job_id} is {record.state}; only a job that waits can be moved")
        return record

    def forget(self, job_ids: Iterable[str] | None = None) -> None:
        """Delete ended jobs from the history, all of them with None; files that they wrote stay."""
        with self._writing() as db:
            if job_ids is None:
                db.execute(f"DELETE FROM jobs WHERE state IN ({_marks(ENDED)})", ENDED)
            else:
                db.executemany(
                    f"DELETE FROM jobs WHERE id = ? AND state IN ({_marks(ENDED)})", [(it, *ENDED) for it in job_ids]
                )

    # Reading

    def get(self, job_id: str) -> JobRecord | None:
        """One job, or None."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", (job_id,))
        return _record(rows[0]) if rows else None

    def starting_with(self, beginning: str) -> list[JobRecord]:
        """Up to ten jobs whose id begins so."""
        return [
            _record(it)
            for it in self._rows("SELECT * FROM jobs WHERE substr(id, 1, ?) = ? LIMIT 10", (len(beginning), beginning))
        ]

    def require(self, job_id: str) -> JobRecord:
        """One job; raises :class:`~cygnet.errors.RequestError` when there is none of that id."""
        found = self.get(job_id)
        if found is None:
            raise RequestError(f"there is no job {job_id}; GET /jobs lists those that there are", field="id")
        return found

    def remaining(self) -> int:
        """How many jobs are pending or running."""
        (row,) = self._rows("SELECT COUNT(*) AS n FROM jobs WHERE state IN ('pending', 'running')")
        return int(row["n"])

    def totals(self) -> dict[JobState, tuple[int, float]]:
        """For each state how many jobs are in it, and the seconds that those took that have run."""
        rows = self._rows(
            "SELECT state, COUNT(*) AS n, COALESCE(SUM(MAX(ended_ms - started_ms, 0)), 0) / 1000.0 AS seconds FROM jobs"
            " GROUP BY state"
        )
        return {row["state"]: (int(row["n"]), float(row["seconds"])) for row in rows}

    def queue(self, state: Literal["pending", "running"]) -> list[JobRecord]:
        """Jobs that are waiting, in the order in which they will run; or the running ones."""
        return [
            _record(it) for it in self._rows("SELECT * FROM jobs WHERE state = ? ORDER BY place, sequence", (state,))
        ]

    def history(self, limit: int | None = None, offset: int | None = None) -> list[JobRecord]:
        """Ended jobs, oldest first: the newest ``limit``, or from ``offset`` (of the oldest) on."""
        order, start = ("DESC", 0) if offset is None or offset < 0 else ("ASC", offset)
        rows = self._rows(
            f"SELECT * FROM jobs WHERE state IN ({_marks(ENDED)}) ORDER BY ended {order} LIMIT ? OFFSET ?",
            (*ENDED, -1 if limit is None else limit, start),
        )
        return [_record(it) for it in (rows if order == "ASC" else rows[::-1])]

    def page(
        self,
        states: Sequence[JobState],
        *,
        workflow_id: str | None = None,
        by_duration: bool = False,
        ascending: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> tuple[list[JobRecord], int]:
        """A page of the jobs in any of ``states``, and how many there are in all."""
        where = f"state IN ({_marks(states)}) AND (? IS NULL OR workflow_id = ?)"
        values = (*states, workflow_id, workflow_id)
        (row,) = self._rows(f"SELECT COUNT(*) AS n FROM jobs WHERE {where}", values)
        # Rows are numbered as they are submitted, whatever the clock says; a job that is tried again keeps its number.
        column = "MAX(COALESCE(ended_ms - started_ms, 0), 0)" if by_duration else "rowid"
        order = "ASC" if ascending else "DESC"
        rows = self._rows(
            f"SELECT * FROM jobs WHERE {where} ORDER BY {column} {order}, rowid {order} LIMIT ? OFFSET ?",
            (*values, -1 if limit is None else limit, offset),
        )
        return [_record(it) for it in rows], int(row["n"])


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _ending_text(it: Ending) -> str:
    fields = {"outputs": it.outputs, "meta": it.meta, "messages": it.messages, "error": it.error}
    return json.dumps(fields, separators=(",", ":"))


def _record(row: sqlite3.Row) -> JobRecord:
    body = json.loads(row["body"])
    result = None if row["result"] is None else json.loads(row["result"])
    return JobRecord(
        id=row["id"],
        number=int(row["place"]) if float(row["place"]).is_integer() else row["place"],
        state=row["state"],
        submission=Submission(
            id=row["id"],
            prompt=body["prompt"],
            outputs=tuple(body["outputs"]),
            extra=body["extra"],
            client_id=body["client_id"],
        ),
        attempts=row["attempts"],
        fence=row["fence"],
        created_ms=row["created_ms"],
        started_ms=row["started_ms"],
        ended_ms=row["ended_ms"],
        ending=None if result is None else Ending(state=row["state"], **result),
    )


@contextmanager
def sole_owner(folder: Path, url: str = "", output: Path | None = None) -> Iterator[None]:
    """Hold a data directory for this process; raises :class:`BusyError` when another one has it.

    The lock belongs to the process and not to the file: it is gone when the process is, however it ended. ``url`` is
    where this process answers, for those who find the directory held.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "server.pid"
    lock = FileLock(folder / "server.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        told = note.read_text().splitlines() if note.exists() else ["unknown"]
        holder, where, results = (*told, "", "", "")[:3]
        raise BusyError(holder, where, Path(results)) from error
    try:
        note.write_text(f"{os.getpid()}\n{url}\n{output or ''}\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()
