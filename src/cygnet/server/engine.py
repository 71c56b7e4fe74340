"""The studio without HTTP: submissions become stored jobs, jobs run in the worker, events reach the sockets.

One loop of life for a job: validated by the catalogue, stored, acknowledged; claimed when the worker is free; its end
is stored before any client is told that the queue has moved on. Whatever process dies, what was acknowledged is kept.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cygnet.errors import OutputError
from cygnet.graph.events import JobEnded, from_json
from cygnet.server.child import Child, ChildFailed, ChildLost
from cygnet.server.sockets import Socket, Sockets
from cygnet.server.store import DuplicateJobError, Ending, JobRecord, JobStore, Submission
from cygnet.server.wire import JobMessages, Message, over, status

_log = logging.getLogger(__name__)

T = TypeVar("T")
_CREDENTIAL = re.compile(r"(?i)(^|[_.-])(auth|authorization|token|api_?key|secret|password|credential)s?($|[_.-])")
"""Keys of ``extra_data`` that name a service's credentials (``auth_token_comfy_org``, ``api_key_comfy_org``, and what
the pages of packs add): never stored, never shown, never written into a file."""
MOST_NODES = 20_000
MOST_PENDING = 10_000
LEAST_FREE = 64 * 2**20
"""Bytes that must be free where jobs and results go, or no job is taken or begun."""
STOPS_WITHIN = 60.0
"""Seconds in which a job that is to stop must end; then its worker hangs, and is ended with it."""
QUIET = 600.0
"""Seconds without a word from a running job after which it is said, in the log and by ``/health``. It may be a long
step or a hang; who waits for it can tell, and stop it."""
_STORE_AGAIN_AFTER = 2.0  # seconds
_TRY_AGAIN_AFTER = 10  # seconds, for clients
_RESTART_AFTER = (0.0, 1.0, 5.0, 15.0, 60.0)  # seconds before each further start of a worker that dies at once


class Refused(Exception):
    """A submission is answered with an HTTP status and a body in the protocol's shape."""

    def __init__(
        self, http_status: int, error: Mapping[str, Any], node_errors: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(error.get("message"))
        self.http_status = http_status
        self.headers = {"Retry-After": str(_TRY_AGAIN_AFTER)} if http_status in (429, 503, 507) else {}
        self.body = {"error": dict(error), "node_errors": dict(node_errors or {})}


def _refusal(kind: str, message: str, details: str = "", http_status: int = 400) -> Refused:
    return Refused(http_status, {"type": kind, "message": message, "details": details, "extra_info": {}})


@dataclass
class _Running:
    record: JobRecord
    messages: JobMessages
    heard: float = field(default_factory=time.monotonic)
    """When the worker spoke of it last."""
    begun: float = field(default_factory=time.monotonic)
    told: int = 0
    """How often it was said that nothing is heard of it."""
    stopping: bool = False

    def quiet(self) -> float:
        """Seconds since the worker spoke of it."""
        return time.monotonic() - self.heard


@dataclass(eq=False)
class Engine:
    """Everything the routes call. Lives on the event loop."""

    store: JobStore
    sockets: Sockets
    worker_target: str
    catalogue_target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Given to both processes."""
    running: _Running | None = None
    draining: bool = False
    devices: Sequence[Mapping[str, Any]] = ()
    """What the worker computes on, as it said last."""
    lost_workers: int = 0
    """How many workers died since the start."""
    places: Sequence[Path] = ()
    """Folders on whose disks there must be room: those of jobs and of results."""
    _worker: Child | None = None
    _worker_ready: bool = False
    _catalogue: Child | None = None
    _catalogue_gone: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many packs could not be loaded, and node types of others not be described when all were asked for last;
    empty if none."""
    _unanswered: set[str] = field(default_factory=set)
    """What the catalogue died of when it was asked last."""
    _deaths: int = 0
    _drained_by: float | None = None
    """When the running job must have ended, once a stop was asked for."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    # Life

    async def start(self) -> None:
        """Start both processes and go on with what an earlier server left."""
        for record in self.store.lose("the server stopped while it ran"):
            _log.info("job %s: %s again after attempt %d", record.id, record.state, record.attempts)
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._start_catalogue()
        self._start_worker()
        self._watch()

    async def stop(self, grace: float = 10.0) -> None:
        """Take no more jobs, let the running one end within ``grace`` seconds, stop the processes.

        A job that does not end in time is pending again for the next server.
        """
        self.drained(grace)
        assert self._drained_by is not None
        ends = [asyncio.ensure_future(it.wait()) for it in (self._idle, self._hurry)]
        left = max(0.0, self._drained_by - time.monotonic())
        await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for it in ends:
            it.cancel()
        if not self._idle.is_set():
            _log.warning("the running job was not waited for any longer; the next start begins it again")
        self.running = None  # a worker that is stopped says that its job was interrupted; nobody asked for that
        try:
            self.store.give_back()
        except OutputError as error:  # the next server finds the job running, and starts it again all the same
            _log.error("%s", error)
        for task in self._tasks:
            task.cancel()
        patience = 0.0 if self._hurry.is_set() else 2.0
        await asyncio.gather(*(it.stop(patience) for it in (self._worker, self._catalogue) if it is not None))
        self.sockets.end_all()

    def drained(self, grace: float) -> bool:
        """Take no more jobs; whether none runs, or the running one has had ``grace`` seconds since the first call."""
        if self._drained_by is None:
            self.draining, self._drained_by = True, time.monotonic() + grace
            if self.running is not None:
                _log.info("stopping when the running job ends, in %g s at the latest; no more are taken", grace)
        return self.running is None or time.monotonic() >= self._drained_by

    def hurry(self) -> None:
        """Wait no longer for the running job. May be called from a signal handler."""
        self._drained_by = time.monotonic()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hurry.set)

    def _start_worker(self) -> None:
        self._worker_ready = False
        self._worker = Child(self.worker_target, self.options, self._hear, self._worker_ended)
        self._worker.start()

    def _start_catalogue(self) -> None:
        self._catalogue = Child(self.catalogue_target, self.options, self._hear_catalogue, self._catalogue_ended)
        self._catalogue.start()

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            work()

        task = asyncio.get_running_loop().create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hear_catalogue(self, message: Mapping[str, Any]) -> None:
        if message.get("ready"):
            self._catalogue_gone = False
        if "left_out" in message:
            self.left_out = {what: int(count) for what, count in message["left_out"].items() if count}

    def _catalogue_ended(self, how: str) -> None:
        self._catalogue_gone = True
        if not self.draining:
            _log.error("the catalogue %s; starting it again", how)
            self._later(1.0, self._start_catalogue)

    def _worker_ended(self, how: str) -> None:
        lost, self.running = self.running, None
        self._worker_ready = False
        if lost is not None and lost.stopping:
            _log.error("job %s: the worker %s while it was to stop, at %s", lost.record.id, how, lost.messages.where())
            self.running = lost
            for item in lost.messages.of(JobEnded("interrupted")):
                self.sockets.send(item, lost.record.submission.client_id)
            self._ended(lost, lost.messages.ending())
        elif lost is not None:
            self._lost(lost, how)
        if not self.draining:
            self.lost_workers += 1
            delay = _RESTART_AFTER[min(self._deaths, len(_RESTART_AFTER) - 1)]
            self._deaths += 1
            _log.error("the worker %s; starting it again in %s s", how, delay)
            self._later(delay, self._start_worker)

    def _lost(self, lost: _Running, how: str) -> None:
        """Give the job of a dead worker back to the queue, or set it aside; again as long as that cannot be stored."""
        at = lost.messages.at
        place = {} if at is None else dict(zip(("node", "kind"), at.marked, strict=True))
        evidence = f"the worker {how} (at {lost.messages.where()})"
        try:
            (record,) = self.store.lose(evidence, only=[lost.record.id], **place) or [lost.record]
        except OutputError as error:
            _log.error("job %s lost its worker, but that cannot be stored; trying again: %s", lost.record.id, error)
            self._later(_STORE_AGAIN_AFTER, lambda: self._lost(lost, how))
            return
        _log.error("job %s: %s at attempt %d; now %s", record.id, evidence, record.attempts, record.state)
        if record.ending is not None and record.ending.error is not None:
            self._tell_failure(record, record.ending.error)
        self._idle.set()
        self.tell_status()
        if record.ended_ms is not None:  # one that starts again is not over: clients would stop waiting for it
            self.sockets.send(over(record.id), record.submission.client_id)
        self.dispatch()

    def _tell_failure(self, record: JobRecord, error: Mapping[str, Any]) -> None:
        data = {**error, "prompt_id": record.id, "timestamp": record.ended_ms}
        self.sockets.send(Message("execution_error", data), record.submission.client_id)

    # Submission

    async def submit(self, body: object) -> dict[str, Any]:
        """Take a submission in the protocol's form; raises :class:`Refused`. On return the job is on disk."""
        if not isinstance(body, Mapping):
            raise _refusal("invalid_prompt", "The body is not a JSON object")
        if self.draining:
            raise _refusal("draining", "The server is stopping and takes no more jobs", http_status=503)
        prompt = body.get("prompt")
        if not isinstance(prompt, Mapping) or not prompt:
            raise _refusal("no_prompt", "No prompt was given", "the body needs 'prompt', an object of nodes")
        if len(prompt) > MOST_NODES:
            raise _refusal("invalid_prompt", f"The prompt has {len(prompt)} nodes; at most {MOST_NODES} are taken")
        if self.is_full():
            raise _refusal(
                "disk_full", f"The disk has less than {LEAST_FREE // 2**20} MB left; free some space", "", 507
            )
        if self.store.remaining() >= MOST_PENDING:
            raise _refusal("queue_full", f"The queue holds {MOST_PENDING} jobs; try again later", http_status=429)
        job_id = _job_id(body.get("prompt_id"))
        targets, extra = _given(body, "partial_execution_targets", list), _given(body, "extra_data", dict)
        client, front, number = _given(body, "client_id", str), _given(body, "front", bool), _number(body)
        verdict = await self._judge(prompt, targets)
        if verdict["error"] is not None:
            raise Refused(400, verdict["error"], verdict["node_errors"])
        submission = Submission(
            id=job_id,
            prompt=verdict["prompt"],
            outputs=tuple(verdict["outputs"]),
            extra=_public(extra or {}),
            client_id=client,
        )
        try:
            record = self.store.submit(submission, front=bool(front), number=number)
        except DuplicateJobError as error:
            raise _refusal("job_conflict", str(error), http_status=409) from error
        _log.info("job %s: accepted", record.id, extra={"job": record.id})
        self.tell_status()
        self.dispatch()
        return {"prompt_id": record.id, "number": record.number, "node_errors": verdict["node_errors"]}

    async def _judge(self, prompt: Mapping[str, Any], targets: list[Any] | None) -> dict[str, Any]:
        asked = None if targets is None else [str(it) for it in targets]
        try:
            verdict: dict[str, Any] = await self.know("validate", prompt=prompt, targets=asked)
        except ChildFailed as error:  # a pack's own check, or what it declares, cannot be told
            raise _refusal("invalid_prompt", "A node of this workflow cannot be judged", str(error)) from error
        return verdict

    async def know(self, what: str, **more: Any) -> Any:
        """Ask the catalogue; once more when it died meanwhile."""
        for patience in (0.0, 2.0):
            await asyncio.sleep(patience)
            try:
                assert self._catalogue is not None
                answer = await self._catalogue.ask(what, **more)
            except ChildLost as error:
                lost = error
            else:
                self._unanswered.discard(what)
                return answer
        self._unanswered.add(what)
        raise _refusal("catalogue_lost", "The process that knows the nodes died", str(lost), http_status=503)

    # Work

    def dispatch(self) -> None:
        """Hand the next job to the worker, if both are there."""
        if self.running is not None or not self._worker_ready or self.draining or self._worker is None:
            return
        try:
            record = None if self.is_full() else self.store.claim()
        except OutputError as error:
            _log.error("no job can be begun; trying again: %s", error)
            self._later(_STORE_AGAIN_AFTER, self.dispatch)
            return
        if record is None:
            if self.is_full() and self.store.remaining():
                self._later(_STORE_AGAIN_AFTER, self.dispatch)
            return
        self.running = _Running(record, JobMessages(record.id))
        self._idle.clear()
        it = record.submission
        _log.info("job %s: begun, attempt %d", it.id, record.attempts, extra={"job": it.id})
        self.tell_status()  # first: what runs may ask
        self._worker.tell(
            "run", job=it.id, fence=record.fence, prompt=it.prompt, outputs=list(it.outputs), extra=it.extra
        )

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "devices" in message:
            self.devices = tuple(message["devices"])
        if message.get("ready"):
            self._worker_ready = True
            self.dispatch()
            return
        if "said" in message:  # by a pack
            self.sockets.send(Message(str(message["said"]), message["data"]), message["client"])
            return
        running = self.running
        if running is None or (message.get("job"), message.get("fence")) != (running.record.id, running.record.fence):
            return  # of a job that was given up
        running.heard, running.told = time.monotonic(), 0
        fields = {key: value for key, value in message.items() if key not in ("job", "fence")}
        try:
            event = from_json(fields)
        except (KeyError, TypeError, ValueError):
            _log.exception("the worker sent an event that cannot be read; ignored")
            return
        client = running.record.submission.client_id
        for item in running.messages.of(event):
            self.sockets.send(item, client)
        if isinstance(event, JobEnded):
            self._ended(running, running.messages.ending())

    def _ended(self, running: _Running, ending: Ending) -> None:
        """Store how the job ended, and go on; as long as that fails (a full disk) nothing else is begun."""
        if self.running is not running:
            return
        try:
            self.store.finish(running.record.id, running.record.fence, ending)
        except OutputError as error:
            _log.error("job %s has ended, but that cannot be stored; trying again: %s", running.record.id, error)
            self._later(_STORE_AGAIN_AFTER, lambda: self._ended(running, ending))
            return
        self.running = None
        self._deaths = 0
        seconds = time.monotonic() - running.begun
        why = "" if ending.error is None else f": {ending.error.get('exception_message', '')}"
        facts = {"job": running.record.id, "state": ending.state, "seconds": round(seconds, 3)}
        _log.info("job %s: %s after %.1f s%s", running.record.id, ending.state, seconds, why, extra=facts)
        self._idle.set()
        # Clients read the history on the next message, so it is stored by now.
        self.tell_status()
        self.sockets.send(over(running.record.id), running.record.submission.client_id)
        self.dispatch()

    def is_full(self) -> bool:
        """Whether there is too little room for a job."""
        return any(shutil.disk_usage(place).free < LEAST_FREE for place in self.places if place.is_dir())

    def problems(self) -> list[str]:
        """What keeps jobs from being done, in words fit for anybody."""
        found = []
        if self.is_full():
            found.append("the disk is full")
        if not self._worker_ready and self._deaths:
            found.append("the worker died and is being started again")
        if self._catalogue_gone:
            found.append("the process that knows the nodes died and is being started again")
        elif self._unanswered:
            asked = ", ".join(sorted(self._unanswered))
            found.append(f"the process that knows the nodes died when it was asked last ({asked})")
        if self.running is not None and self.running.quiet() >= QUIET:
            minutes, where = self.running.quiet() / 60, self.running.messages.where()
            found.append(f"the running job has said nothing for {minutes:.0f} minutes, at {where}")
        if not self.store.can_write():
            found.append("the job file cannot be written")
        return found

    @property
    def ready(self) -> bool:
        """Whether a worker is there to take jobs."""
        return self._worker_ready and not self.draining

    # Control

    def interrupt(self, job_id: str | None = None) -> bool:
        """Stop the running job, or only if it is ``job_id``; whether there was one to stop."""
        running = self.running
        if running is None or self._worker is None or (job_id is not None and job_id != running.record.id):
            return False
        self._worker.tell("cancel", job=running.record.id, fence=running.record.fence)
        if not running.stopping:
            running.stopping = True
            self._later(STOPS_WITHIN, lambda: self._insist(running))
        return True

    def _insist(self, running: _Running) -> None:
        if self.running is running and self._worker is not None:
            self._worker.kill(f"did not stop within {STOPS_WITHIN:g} s and was ended")

    def _watch(self) -> None:
        """Say once in a while that nothing is heard of the running job."""
        if self.running is not None and self.running.quiet() >= (self.running.told + 1) * QUIET:
            self.running.told += 1
            minutes, where = self.running.quiet() / 60, self.running.messages.where()
            _log.warning("job %s has said nothing for %.0f minutes, at %s", self.running.record.id, minutes, where)
        self._later(QUIET / 10, self._watch)

    def cancel(self, job_ids: list[str] | None = None) -> bool:
        """Cancel pending jobs, all of them with None, and interrupt a running one that is named."""
        cancelled = bool(self.store.cancel(job_ids))
        for job_id in job_ids or ():
            cancelled = self.interrupt(job_id) or cancelled
        self.tell_status()
        return cancelled

    def move(self, job_id: str, place: int) -> JobRecord:
        """Give a pending job another turn; raises :class:`~cygnet.errors.RequestError` for any other."""
        record = self.store.move(job_id, place)
        self.tell_status()
        return record

    def retry(self, job_id: str) -> JobRecord:
        """Put an ended job into the queue again; raises :class:`~cygnet.errors.RequestError` for any other."""
        record = self.store.retry(job_id)
        self.tell_status()
        self.dispatch()
        return record

    def catch_up(self, socket: Socket) -> None:
        """Tell a client that has (re)connected which node of its job is running."""
        running = self.running
        if running is not None and running.record.submission.client_id == socket.client_id:
            for item in running.messages.now():
                socket.put(item)

    def tell_status(self) -> None:
        """Tell all clients how many jobs there are, and the worker, whose packs may ask."""
        remaining = self.store.remaining()
        self.sockets.send(status(remaining))
        if self._worker is not None:
            self._worker.tell("queue", remaining=remaining)

    def free(self, *, results: bool) -> None:
        """Unload models once the running job is over; with ``results`` also forget what nodes gave."""
        if self._worker is not None and self._worker_ready:
            self._worker.tell("free", results=results)


def _job_id(given: object) -> str:
    if given is None:
        return str(uuid.uuid4())
    try:
        if isinstance(given, str) and str(uuid.UUID(given)) == given:
            return given
    except ValueError:
        pass
    raise _refusal("invalid_prompt_id", "prompt_id must be a UUID in lower case with hyphens, or left away")


_KINDS: Mapping[type, str] = {list: "a list", dict: "an object", str: "a text", bool: "true or false"}
_FARTHEST = 2.0**53  # beyond it, numbers no longer tell neighbours apart


def _given(body: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """A field of a submission, None where it is absent or null; raises :class:`Refused` for one of another type."""
    value = body.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise _refusal("invalid_prompt", f"{name} is {str(value)[:50]!r}; it must be {_KINDS[kind]}", name)


def _number(body: Mapping[str, Any]) -> float | None:
    """The place in the queue that is asked for."""
    value = body.get("number")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _FARTHEST:
        text = f"number is {str(value)[:50]!r}; it must be a number from -2^53 to 2^53"
        raise _refusal("invalid_prompt", text, "number")
    return float(value)


def _public(extra: Mapping[str, Any]) -> dict[str, Any]:
    """``extra_data`` without credentials, and with the time of submission."""
    kept = {key: value for key, value in extra.items() if not _CREDENTIAL.search(key)}
    if (notes := _given(kept, "extra_pnginfo", dict)) is not None:  # its entries are written into results
        kept["extra_pnginfo"] = {key: value for key, value in notes.items() if not _CREDENTIAL.search(key)}
    return {**kept, "create_time": time.time_ns() // 1_000_000}
