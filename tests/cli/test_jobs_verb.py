"""``cygnet jobs``, with and without a running studio."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from cli_process import Command
from cygnet.server.store import Ending, JobStore, Submission, sole_owner


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """One job that failed, one that made a film, one that waits."""
    base = tmp_path / "base"
    store = JobStore(base / "user" / "jobs.sqlite")
    for name in ("aa-1", "ab-2", "bb-3"):
        store.submit(Submission(id=name, prompt={"1": {}}, outputs=["1"]))
    first, second = store.claim(), store.claim()
    assert first is not None
    assert second is not None
    store.finish(first.id, first.fence, Ending(state="failed", error={"exception_message": "no\x1b[31mmemory"}))
    made = {"9": {"images": [{"filename": "x.mp4", "subfolder": "video", "type": "output"}], "animated": [True]}}
    store.finish(second.id, second.fence, Ending(state="completed", outputs=made))
    store.close()
    return base


def states(base: Path) -> dict[str, str]:
    store = JobStore(base / "user" / "jobs.sqlite")
    found = {it.id: it.state for it in store.page(["pending", "running", "completed", "failed", "cancelled"])[0]}
    store.close()
    return found


def test_jobs_are_listed_newest_first_and_shown_whole(cygnet: Command, base: Path) -> None:
    done = cygnet("jobs", "--base-directory", base)
    assert (done.code, done.err) == (0, "")
    ids = [line.split()[0] for line in done.out.splitlines()]
    assert ids == ["ID", "bb-3", "ab-2", "aa-1"]
    assert "video/x.mp4" in done.out
    assert "no\\x1b[31mmemory" in done.out
    value = cygnet("jobs", "list", "--state", "completed", "--base-directory", base, "--json").json()
    assert [it["id"] for it in value["jobs"]] == ["ab-2"]
    assert "and 2 more" in cygnet("jobs", "list", "--limit", "1", "--base-directory", base).out
    shown = cygnet("jobs", "show", "aa", "--base-directory", base, "--json").json()
    assert shown["jobs"][0]["state"] == "failed"
    assert shown["jobs"][0]["workflow"]["prompt"] == {"1": {}}


def test_without_a_studio_the_job_file_itself_is_changed(cygnet: Command, base: Path) -> None:
    assert cygnet("jobs", "cancel", "bb-3", "--base-directory", base).code == 0
    done = cygnet("jobs", "retry", "aa", "ab", "--base-directory", base)
    assert (done.code, done.out) == (0, "aa-1: in the queue again\nab-2: in the queue again\n")
    assert states(base) == {"aa-1": "pending", "ab-2": "pending", "bb-3": "cancelled"}


def test_waiting_jobs_are_moved_one_after_another(cygnet: Command, base: Path) -> None:
    store = JobStore(base / "user" / "jobs.sqlite")
    for name in ("cc-4", "dd-5"):
        store.submit(Submission(id=name, prompt={"1": {}}, outputs=["1"]))
    done = cygnet("jobs", "move", "dd", "cc", "--base-directory", base)
    assert (done.code, done.out) == (0, "dd-5: moved\ncc-4: moved\n")
    assert [it.id for it in store.queue("pending")] == ["dd-5", "cc-4", "bb-3"]
    assert cygnet("jobs", "move", "dd", "--to", "3", "--base-directory", base).code == 0
    assert [it.id for it in store.queue("pending")] == ["cc-4", "bb-3", "dd-5"]
    store.close()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["show"], "say which job"),
        (["move", "aa"], "is failed; only a job that waits"),
        (["move", "bb", "--to", "0"], "--to is 0"),
        (["show", "a"], "2 jobs begin with 'a'"),
        (["show", "zz"], "there is no job 'zz'"),
        (["cancel", "ab"], "is completed"),
        (["retry", "bb"], "is pending"),
        (["list", "aa"], "takes no ids"),
        (["list", "--state", "odd"], "there is no state 'odd'"),
        (["burn", "aa"], "burn"),
    ],
)
def test_a_wrong_request_is_refused_in_words(cygnet: Command, base: Path, words: list[str], part: str) -> None:
    before = states(base)
    done = cygnet("jobs", *words, "--base-directory", base)
    assert done.code == 2
    assert part in done.err
    assert states(base) == before


def test_no_jobs_is_no_error(cygnet: Command, tmp_path: Path) -> None:
    assert cygnet("jobs", "--base-directory", tmp_path / "none").out == "No jobs.\n"
    assert not (tmp_path / "none").exists()
    assert cygnet("jobs", "show", "x", "--base-directory", tmp_path / "none").code == 2


class Studio(BaseHTTPRequestHandler):
    """Stands for a running studio with a token."""

    asked: ClassVar[list[str]] = []
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        known = self.headers.get("Authorization") == "Bearer a-long-enough-token"
        self.asked.append(self.path)
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        status = 409 if known and "ab-2" in self.path else 200 if known else 401
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"cancelled": true}' if status == 200 else b'{"error": "it has ended"}')

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def running(base: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Studio)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Studio.asked.clear()
    url = f"http://127.0.0.1:{server.server_port}/"
    with sole_owner(base / "user", url):
        yield url
    server.shutdown()
    server.server_close()


def test_a_running_studio_is_asked(cygnet: Command, base: Path, running: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-enough-token\n")
    assert "--token-file" in cygnet("jobs", "cancel", "bb", "--base-directory", base).err
    done = cygnet("jobs", "cancel", "bb", "--base-directory", base, "--token-file", token)
    assert (done.code, done.out) == (0, "bb-3: cancelled\n")
    assert Studio.asked[-1] == "/api/jobs/bb-3/cancel"
    assert states(base)["bb-3"] == "pending", "the studio changes it, not we"
    done = cygnet("jobs", "move", "bb", "--to", "2", "--base-directory", base, "--token-file", token)
    assert (done.code, Studio.asked[-1], Studio.bodies[-1]) == (0, "/api/jobs/bb-3/move", b'{"place": 2}')
    done = cygnet("jobs", "retry", "ab", "--base-directory", base, "--token-file", token)
    assert (done.code, "it has ended" in done.err) == (2, True)


def test_a_studio_that_does_not_answer_is_named(cygnet: Command, base: Path) -> None:
    with sole_owner(base / "user", "http://127.0.0.1:9/"):
        done = cygnet("jobs", "cancel", "bb", "--base-directory", base, "--json")
    assert done.code == 1
    assert done.json()["error"]["code"] == "server_failed"
