"""``cygnet launch`` as its own process, attacked over plain sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from websockets.sync.client import connect

from cygnet.media import files as media_files
from studio_process import Studio, launched

TOKEN = "a-long-and-random-token"
PROMPT = {"1": {"class_type": "PreviewAny", "inputs": {"source": "hello"}}}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """In a folder with blanks, other letters, and a path of some length; with leftovers of a killed one."""
    base = tmp_path_factory.mktemp("live") / ("a b é 雪 " + "long " * 30) / ("deep " * 30)
    for folder in ("input", "user/default/workflows", "output/video"):
        (base / folder).mkdir(parents=True)
        os.utime(media_files.new_part(base / folder), (1, 1))
    media_files.new_part(base / "output")
    (base / "token.txt").write_text(f"{TOKEN}\n")
    (base / "token.txt").chmod(0o600)
    it = launched(base, "--token-file", str(base / "token.txt"), "--verbose", "DEBUG", "--disable-all-custom-nodes")
    yield it
    it.stop()


def ask(studio: Studio, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {TOKEN}"} | {name.replace("_", "-"): it for name, it in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(studio.url + path, data, headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except HTTPError as error:
        return error.code, error.read().decode()


def raw(studio: Studio, *pieces: bytes, wait: float = 10) -> bytes:
    """What is answered to bytes as they are."""
    port = int(studio.url.rsplit(":", 1)[1].strip("/"))
    host = b"Host: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nConnection: close\r\n" % (port, TOKEN.encode())
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as it:
        it.sendall(b"".join(pieces).replace(b"{HOST}", host))
        answer = b""
        try:
            while data := it.recv(65536):
                answer += data
        except ConnectionError:
            pass
        return answer


def test_leftovers_of_a_killed_server_are_gone_but_not_what_another_is_writing(studio: Studio) -> None:
    ask(studio, "queue")
    left = [it.parent.name for it in studio.base.rglob("*.part")]
    assert left == ["output"]


def test_a_job_runs_and_its_secrets_and_the_token_are_in_no_file_and_no_log_line(studio: Studio) -> None:
    extra = {"auth_token_comfy_org": "s3cret-one", "extra_pnginfo": {"api_key": "s3cret-two"}}
    url = studio.url.replace("http", "ws") + f"ws?clientId=me&token={TOKEN}"
    with connect(url) as it:
        status, answer = ask(studio, "prompt", {"prompt": PROMPT, "extra_data": extra, "client_id": "me"})
        assert status == 200, answer
        while json.loads(it.recv(60)).get("data", {}).get("node", "") is not None:
            pass
    assert ask(studio, f"queue?token={TOKEN}", Authorization="Bearer wrong-wrong-wrong")[0] == 401
    assert raw(studio, b"GET /queue HTTP/1.1\r\n{HOST}bad header\r\n\r\n").startswith(b"HTTP/1.1 400")
    log = "".join(studio.lines)
    assert "accepted" in log
    files = b"".join(it.read_bytes() for it in studio.base.rglob("*") if it.is_file() and it.name != "token.txt")
    for secret in (TOKEN, "s3cret-one", "s3cret-two"):
        assert secret not in log
        assert secret.encode() not in files
        assert secret not in json.dumps([ask(studio, it)[1] for it in ("history", "jobs", "internal/logs", "queue")])


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /queue HTTP/1.1\r\n\r\n", 400),
        (b"GET /queue HTTP/1.0\r\n\r\n", 403),
        (b"GET /queue HTTP/1.1\r\n{HOST}Host: evil.test\r\n\r\n", 400),
        (b"GET http://evil.test/queue HTTP/1.1\r\n{HOST}\r\n", 404),
        (b"GET /assets/../queue HTTP/1.1\r\n{HOST}Sec-Fetch-Site: cross-site\r\n\r\n", 404),
        (b"GET /../../../../etc/passwd HTTP/1.1\r\n{HOST}\r\n", 404),
        (b"POST /queue HTTP/1.1\r\n{HOST}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /queue HTTP/1.1\r\n{HOST}Content-Length: -2\r\n\r\n{}", 400),
        (b"POST /queue HTTP/1.1\r\n{HOST}Content-Length: 99999999999999999999\r\n\r\n{}", 413),
        (b"POST /queue HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
        (b"POST /queue HTTP/1.1\r\n{HOST}Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", 400),
        (b"GET / HTTP/1.1\r\n{HOST}X: " + b"a" * 200_000 + b"\r\n\r\n", 400),
        (b"TRACE /queue HTTP/1.1\r\n{HOST}\r\n", 405),
        (b"CONNECT evil.test:443 HTTP/1.1\r\n{HOST}\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (
            b"GET /ws HTTP/1.1\r\n{HOST}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 1\r\n\r\n",
            400,
        ),
    ],
)
def test_malformed_requests_are_refused_and_nothing_is_smuggled(studio: Studio, request_: bytes, status: int) -> None:
    answer = raw(studio, request_)
    # Over-long headers may end the connection before the answer is read.
    assert answer.startswith(b"HTTP/1.1 %d " % status) or (len(request_) > 100_000 and not answer), answer[:200]
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert ask(studio, "health")[0] == 200


def test_forwarded_headers_are_not_believed(studio: Studio) -> None:
    statuses = [
        ask(studio, "queue", Authorization=f"Bearer guess {i}", X_Forwarded_For=f"10.0.0.{i}")[0] for i in range(30)
    ]
    assert 429 in statuses, "a guesser that names another address each time is the same one"
    assert ask(studio, "queue")[0] == 200, "and the right token is let in all the same"


def test_a_client_that_leaves_while_it_submits_leaves_no_job(studio: Studio) -> None:
    before = ask(studio, "jobs")[1]["pagination"]["total"]
    body = json.dumps({"prompt": PROMPT}).encode()
    port = int(studio.url.rsplit(":", 1)[1].strip("/"))
    head = f"POST /prompt HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as it:
        it.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-5])
    assert ask(studio, "jobs")[1]["pagination"]["total"] == before
    assert "Traceback" not in "".join(studio.lines)


def test_a_second_server_on_the_same_folder_is_refused_and_harms_nothing(studio: Studio) -> None:
    kept = studio.base / "temp" / "kept.txt"
    kept.write_text("in use")
    command = [sys.executable, "-m", "cygnet", "launch", "--port", "0", "--base-directory", str(studio.base)]
    for more in ([], ["--user-directory", str(studio.base / "another user")]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"process {studio.process.pid}" in done.stderr
    assert kept.read_text() == "in use"
    assert ask(studio, "health")[1]["status"] == "ok"


def test_a_wide_address_without_a_token_is_refused_in_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cygnet", "launch", "--port", "0", "--base-directory", str(tmp_path)]
    for listen in ("0.0.0.0", "::"):
        done = subprocess.run([*command, "--listen", listen], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "--token-file" in done.stderr


def test_a_stop_leaves_nothing_behind(studio: Studio) -> None:
    """The last of this file: it ends the studio."""
    begun = time.monotonic()
    studio.process.send_signal(signal.SIGTERM)
    assert studio.process.wait(30) == 0
    assert time.monotonic() - begun < 20
    assert not (studio.base / "user" / "server.pid").exists()
    assert list((studio.base / "temp").iterdir()) == []
    with sqlite3.connect(studio.base / "user" / "jobs.sqlite") as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
        assert db.execute("SELECT COUNT(*) FROM jobs WHERE state = 'running'").fetchone() == (0,)
    db.close()
