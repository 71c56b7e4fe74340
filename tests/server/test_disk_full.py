"""A disk without room costs no job: nothing new is taken, what is there stays, and all goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.server.conftest import HERE, PROMPT
from tests.server.test_engine import Studio, studio

from cygnet.errors import DiskFullError
from cygnet.graph.folders import Folders
from cygnet.server import engine as module
from cygnet.server.app import create_app, features
from cygnet.server.engine import Engine, Refused
from cygnet.server.settings import Settings
from cygnet.server.sockets import Sockets
from cygnet.server.store import JobStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


LARGE = {**PROMPT, "1": {"class_type": "Text", "inputs": {"text": "long " * 10_000}}}


def fill(store: JobStore, *, full: bool) -> None:
    """Make SQLite itself say that the disk is full, or take it back."""
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages if full else 2**30}")


def test_a_full_disk_is_told_and_the_queue_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(folders=Folders.below(tmp_path), user=tmp_path / "user")
    store = JobStore(tmp_path / "jobs.sqlite")
    engine = Engine(
        store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue", places=(tmp_path, tmp_path / "none")
    )
    with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188") as client:
        assert client.get("/health").json() == {"status": "ok", "queue": 0, "problems": []}
        fill(store, full=True)
        refused = client.post("/prompt", json={"prompt": LARGE})
        assert (refused.status_code, refused.json()["error"]["type"]) == (507, "disk_full")
        assert [client.get(f"/{it}").status_code for it in ("queue", "history", "jobs")] == [200, 200, 200]
        fill(store, full=False)
        assert client.post("/prompt", json={"prompt": LARGE}).status_code == 200
        monkeypatch.setattr(module, "LEAST_FREE", 2**62)
        refused = client.post("/prompt", json={"prompt": LARGE})
        assert (refused.status_code, refused.json()["error"]["type"]) == (507, "disk_full")
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/health").json()["problems"] == ["the disk is full"]
    store.close()


def test_a_job_file_that_takes_nothing_is_told(tmp_path: Path) -> None:
    settings = Settings(folders=Folders.below(tmp_path), user=tmp_path / "user")
    store = JobStore(tmp_path / "jobs.sqlite")
    engine = Engine(store, Sockets(features(settings)), f"{HERE}:worker", f"{HERE}:catalogue")
    with TestClient(create_app(engine, settings), base_url="http://127.0.0.1:8188") as client:
        fill(store, full=True)
        told = {"status": "degraded", "queue": 0, "problems": ["the job file cannot be written"]}
        assert client.get("/health").json() == told
        fill(store, full=False)
        assert client.get("/health").json()["status"] == "ok"
        fill(store, full=True)
        assert client.post("/prompt", json={"prompt": LARGE}).status_code == 507
        assert client.get("/health").json() == told  # at once, although it was well a moment ago
        fill(store, full=False)
        assert client.get("/health").json()["status"] == "ok"
        assert client.post("/prompt", json={"prompt": LARGE}).status_code == 200
    store.close()


@pytest.mark.skipif(os.name == "nt", reason="no file-size limit there")
def test_a_limit_under_which_only_little_fits_is_told_too(path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from cygnet.errors import OutputError
        from cygnet.server.store import JobStore, Submission
        store = JobStore(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        print(store.can_write())
        for number in range(12):
            try:
                store.submit(Submission(id=str(number), prompt={"1": {"text": "x" * 90_000}}, outputs=["1"]))
            except OutputError:
                print(number, store.can_write(), store.remaining())
                break
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=False
    )
    first, last = done.stdout.splitlines()
    number, can, remaining = last.split()
    assert (first, can) == ("True", "False"), done.stderr
    assert 0 < int(number) == int(remaining) < 12


def test_no_job_is_begun_without_room_and_all_run_when_there_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STORE_AGAIN_AFTER", 0.02)

    async def story(it: Studio) -> None:
        running = await it.submit("wait")
        await it.begun()
        waiting = await it.submit("fine")
        it.engine.places = (path.parent,)
        monkeypatch.setattr(module, "LEAST_FREE", 2**62)
        with pytest.raises(Refused, match="less than"):
            await it.submit("more")
        it.engine.interrupt()
        assert await it.ended(running) == "cancelled"
        await asyncio.sleep(0.1)
        assert it.store.require(waiting).state == "pending"
        monkeypatch.setattr(module, "LEAST_FREE", 0)
        assert await it.ended(waiting) == "completed"

    studio(path, story)


def test_a_worker_that_dies_while_the_disk_is_full_costs_no_job(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STORE_AGAIN_AFTER", 0.02)

    async def story(it: Studio) -> None:
        whole, failures = it.store.lose, []

        def full(*arguments: object, **more: object) -> object:
            if len(failures) < 3:
                failures.append(arguments)
                raise DiskFullError("the job file could not be written: the disk is full")
            return whole(*arguments, **more)  # type: ignore[arg-type]

        job = await it.submit("wait")
        await it.begun()
        monkeypatch.setattr(it.store, "lose", full)
        assert it.engine._worker is not None
        assert it.engine._worker.pid is not None
        os.kill(it.engine._worker.pid, signal.SIGKILL)
        while it.store.require(job).attempts < 2:
            await asyncio.sleep(0.01)
        it.engine.interrupt(job)
        assert await it.ended(job) == "cancelled"

    studio(path, story)


def test_a_claim_that_cannot_be_stored_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STORE_AGAIN_AFTER", 0.02)

    async def story(it: Studio) -> None:
        whole, failures = it.store.claim, []

        def full() -> object:
            if len(failures) < 3:
                failures.append(1)
                raise DiskFullError("the job file could not be written: the disk is full")
            return whole()

        monkeypatch.setattr(it.store, "claim", full)
        assert await it.ended(await it.submit("fine")) == "completed"
        assert len(failures) == 3

    studio(path, story)
