"""Jobs are on disk before they are acknowledged, and end once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cygnet.errors import RequestError
from cygnet.server import store as module
from cygnet.server import tables
from cygnet.server.store import (
    MOST_ATTEMPTS,
    DuplicateJobError,
    Ending,
    JobStore,
    StoreError,
    Submission,
    sole_owner,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(tmp_path / "data" / "jobs.sqlite")
    yield opened
    opened.close()


def job(name: str, **more: Any) -> Submission:
    return Submission(id=name, prompt={"1": {"class_type": "A", "inputs": {"x": name}}}, outputs=("1",), **more)


def test_jobs_run_in_the_order_of_submission_and_front_ones_first(store: JobStore) -> None:
    for name in "abc":
        store.submit(job(name))
    store.submit(job("front"), front=True)
    store.submit(job("first"), front=True)
    store.submit(job("numbered"), number=1.5)
    assert [it.id for it in store.queue("pending")] == ["first", "front", "a", "numbered", "b", "c"]
    claimed = [store.claim() for _ in range(7)]
    assert [it.id for it in claimed if it] == ["first", "front", "a", "numbered", "b", "c"]
    assert claimed[-1] is None


def test_what_was_submitted_comes_back(store: JobStore) -> None:
    extra = {"extra_pnginfo": {"workflow": {"id": "w1", "text": "héllo 🎈"}}, "create_time": 5}
    store.submit(job("a", extra=extra, client_id="c"))
    record = store.require("a")
    assert record.submission == job("a", extra=extra, client_id="c")
    assert record.submission.workflow_id == "w1"
    assert (record.state, record.attempts, record.ending) == ("pending", 0, None)


def test_the_same_submission_twice_is_one_job_and_another_under_its_id_is_refused(store: JobStore) -> None:
    assert store.submit(job("a")).created_ms == store.submit(job("a")).created_ms
    assert store.remaining() == 1
    other = Submission(id="a", prompt={"1": {"class_type": "B", "inputs": {}}}, outputs=("1",))
    with pytest.raises(DuplicateJobError, match="other contents"):
        store.submit(other)


def test_a_job_ends_once_and_only_by_its_latest_claim(store: JobStore) -> None:
    store.submit(job("a"))
    first = store.claim()
    assert first is not None
    (again,) = store.lose("the worker died")
    assert again.state == "pending"
    second = store.claim()
    assert second is not None
    ending = Ending(state="completed", outputs={"1": {"images": [{"filename": "x.png"}]}}, messages=[["a", {"b": 1}]])
    assert not store.finish("a", first.fence, Ending(state="failed"))
    assert store.finish("a", second.fence, ending)
    assert not store.finish("a", second.fence, Ending(state="failed"))
    assert store.require("a").ending == ending
    assert store.require("a").attempts == 2


def test_a_job_that_takes_its_worker_down_again_and_again_is_set_aside(store: JobStore) -> None:
    store.submit(job("poison"))
    store.submit(job("good"))
    for _ in range(MOST_ATTEMPTS):
        record = store.claim()
        assert record is not None
        assert record.id == "poison"
        assert record.started_ms is not None
        (lost,) = store.lose("exit code -11", only=["poison"])
        assert (lost.started_ms is None) == (lost.state == "pending"), "one that waits again has not begun"
    record = store.require("poison")
    assert record.state == "quarantined"
    assert record.ending is not None
    assert record.ending.error is not None
    assert "exit code -11" in record.ending.error["exception_message"]
    following = store.claim()
    assert following is not None
    assert following.id == "good"
    assert store.retry("poison").state == "pending"
    assert store.require("poison").attempts == 0


def test_only_ended_jobs_can_be_tried_again(store: JobStore) -> None:
    store.submit(job("a"))
    with pytest.raises(RequestError, match="is pending"):
        store.retry("a")
    with pytest.raises(RequestError, match="no job b"):
        store.retry("b")


def test_cancelling_takes_pending_jobs_only(store: JobStore) -> None:
    for name in "abc":
        store.submit(job(name))
    store.claim()
    assert store.cancel(["a", "b", "nobody"]) == ["b"]
    assert store.cancel() == ["c"]
    assert store.cancel() == []
    assert [store.require(name).state for name in "abc"] == ["running", "cancelled", "cancelled"]


def test_a_waiting_job_can_be_given_another_turn(store: JobStore) -> None:
    for name in "abcd":
        store.submit(job(name))
    store.submit(job("equal"), number=2)

    def order() -> str:
        return " ".join(it.id for it in store.queue("pending"))

    assert order() == "a b equal c d"
    store.move("d", 1)
    assert order() == "d a b equal c"
    store.move("b", 3)
    assert order() == "d a b equal c", "it was there already"
    store.move("a", 99)
    assert order() == "d b equal c a"
    store.move("equal", 2)
    assert order() == "d equal b c a"
    store.submit(job("late"))
    assert order() == "d equal b c a late"
    store.claim()
    with pytest.raises(RequestError, match="is running; only a job that waits"):
        store.move("d", 1)
    with pytest.raises(RequestError, match="no job nobody"):
        store.move("nobody", 1)


def test_the_history_is_paged_and_forgotten_on_request(store: JobStore) -> None:
    for name in "abcde":
        store.submit(job(name, extra={"extra_pnginfo": {"workflow": {"id": f"w{name in 'ab'}"}}}))
    for name in "abcd":
        record = store.claim()
        assert record is not None
        store.finish(name, record.fence, Ending(state="failed" if name == "c" else "completed"))
    assert [it.id for it in store.history()] == ["a", "b", "c", "d"]
    assert [it.id for it in store.history(2)] == ["c", "d"]
    assert [it.id for it in store.history(2, 1)] == ["b", "c"]
    page, total = store.page(["completed", "failed"], limit=2)
    assert ([it.id for it in page], total) == (["d", "c"], 4)
    page, total = store.page(["completed"], ascending=True, offset=1)
    assert ([it.id for it in page], total) == (["b", "d"], 3)
    page, total = store.page(["completed"], workflow_id="wTrue", by_duration=True)
    assert total == 2
    store.forget(["a", "e"])
    assert [it.id for it in store.history()] == ["b", "c", "d"]
    assert store.require("e").state == "pending"
    store.forget()
    assert store.history() == []
    assert store.remaining() == 1


def test_numbers_are_not_given_out_again(store: JobStore) -> None:
    store.submit(job("a"))
    store.cancel()
    store.forget()
    assert store.submit(job("b")).number == 2


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    store.submit(job("a"))
    store.submit(job("b"))
    store.claim()
    store.close()
    store = JobStore(path)
    assert [it.state for it in store.lose("the server stopped")] == ["pending"]
    assert [it.id for it in store.queue("pending")] == ["a", "b"]
    store.close()


def test_a_server_that_was_killed_while_it_made_the_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite.new").write_bytes(b"half")
    store = JobStore(tmp_path / "jobs.sqlite")
    assert store.remaining() == 0
    store.close()
    assert not (tmp_path / "jobs.sqlite.new").exists()


def test_every_acknowledged_job_survives_kill_9(tmp_path: Path) -> None:
    writer = textwrap.dedent("""
        import sys
        from pathlib import Path
        from cygnet.server.store import JobStore, Submission
        store = JobStore(Path(sys.argv[1]))
        for i in range(100000):
            store.submit(Submission(id=str(i), prompt={"1": {}}, outputs=("1",)))
            print(i, flush=True)
    """)
    path = tmp_path / "jobs.sqlite"
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(random.randrange(20, 60))]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait()
    store = JobStore(path)
    assert {it.id for it in store.queue("pending")} >= set(acknowledged)
    store.close()


def test_claims_from_many_threads_never_meet(store: JobStore) -> None:
    for i in range(60):
        store.submit(job(str(i)))
    taken: list[str] = []

    def work() -> None:
        while (record := store.claim()) is not None:
            taken.append(record.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [str(i) for i in range(60)]


@pytest.mark.parametrize("damage", ["random", "empty", "cut"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(path)
    for i in range(200):
        store.submit(job(str(i)))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(
        {"random": random.Random(0).randbytes(5000), "empty": b"", "cut": whole[: len(whole) // 2]}[damage]
    )
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"jobs\.sqlite"):
        JobStore(path)
    assert path.read_bytes() == before


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(StoreError, match=r"later version of cygnet \(format 9"):
        JobStore(path)


def test_one_data_directory_has_one_server(tmp_path: Path) -> None:
    attempt = textwrap.dedent("""
        import sys
        from pathlib import Path
        from cygnet.server.store import StoreError, sole_owner
        try:
            with sole_owner(Path(sys.argv[1])):
                print("mine")
        except StoreError as error:
            print(error)
    """)

    def other() -> str:
        command = [sys.executable, "-c", attempt, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with sole_owner(tmp_path):
        assert f"process {os.getpid()}" in other()
    assert other() == "mine\n"


def test_a_clock_that_jumps_changes_no_order(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    day = 86_400_000
    times = iter([10 * day, 9 * day, 11 * day, 9 * day, 8 * day, 12 * day, 7 * day, 10 * day, 6 * day])
    monkeypatch.setattr(module, "_now", lambda: next(times))
    for name in "abc":
        store.submit(job(name))
    for name in "abc":
        record = store.claim()
        assert record is not None
        assert record.id == name
        assert store.finish(name, record.fence, Ending(state="completed"))
    assert [it.id for it in store.history()] == ["a", "b", "c"]
    assert [it.id for it in store.history(1)] == ["c"]
    assert [it.id for it in store.page(["completed"])[0]] == ["c", "b", "a"]
    assert store.totals()["completed"][1] >= 0


def old_file(path: Path) -> None:
    """A job file as the first version wrote it."""
    with sqlite3.connect(path) as db:
        db.executescript(
            """
            CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
            CREATE TABLE jobs (id TEXT PRIMARY KEY, place REAL NOT NULL, sequence INTEGER NOT NULL, state TEXT NOT NULL,
              body TEXT NOT NULL, digest TEXT NOT NULL, workflow_id TEXT, attempts INTEGER NOT NULL DEFAULT 0,
              fence INTEGER NOT NULL DEFAULT 0, created_ms INTEGER NOT NULL, started_ms INTEGER, ended_ms INTEGER,
              result TEXT) STRICT;
            CREATE INDEX jobs_by_place ON jobs (state, place, sequence);
            CREATE INDEX jobs_by_time ON jobs (state, ended_ms);
            INSERT INTO facts VALUES ('sequence', '4');
            PRAGMA user_version = 1;
            """
        )
        body = '{"prompt":{},"outputs":["1"],"extra":{},"client_id":null}'
        result = '{"outputs":{},"meta":{},"messages":[],"error":null}'
        for number, (state, ended) in enumerate(
            [("completed", 30), ("failed", 20), ("pending", None), ("running", None)]
        ):
            db.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, 'd', NULL, 1, 1, 5, 10, ?, ?)",
                (f"j{number}", number, number, state, body, ended, result if ended else None),
            )
    db.close()


def test_an_earlier_file_is_brought_up_to_date_and_kept_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    old_file(path)
    for _ in range(2):
        store = JobStore(path)
        assert [it.id for it in store.history()] == ["j1", "j0"]
        assert [it.id for it in store.queue("pending")] == ["j2"]
        assert store.require("j3").state == "running"
        store.close()
    store = JobStore(path)
    assert store.submit(job("new")).number == 5
    store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite.format-1") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT COUNT(*) FROM jobs").fetchone() == (4,)
    db.close()


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.sqlite"
    old_file(path)
    monkeypatch.setitem(tables.STEPS, 1, tables.STEPS[1] + "INSERT INTO nowhere VALUES (1);")
    with pytest.raises(StoreError, match="left as it is"):
        JobStore(path)
    monkeypatch.undo()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
    store = JobStore(path)
    assert len(store.history()) == 2
    store.close()
