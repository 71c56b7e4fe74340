"""``/metrics`` and the log on stderr."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tests.server.conftest import submit, wait

from cygnet.server.logs import JsonLines, LogLines, TextLines, log_to_stderr


def values(client: TestClient) -> dict[tuple[str, str], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_jobs_the_worker_and_clients_are_counted(client: TestClient) -> None:
    before = values(client)
    wait(client, submit(client))
    after = values(client)
    assert after["cygnet_jobs", "completed"] == before["cygnet_jobs", "completed"] + 1
    assert after["cygnet_jobs", "quarantined"] == 0
    assert after["cygnet_job_seconds", "completed"] >= before["cygnet_job_seconds", "completed"]
    assert after["cygnet_worker_ready", ""] == 1
    assert after["cygnet_workers_lost_total", ""] == 0
    assert after["process_resident_memory_bytes", ""] > 1e6
    with client.websocket_connect("ws://127.0.0.1:8188/ws?clientId=m"):
        assert values(client)["cygnet_sockets", ""] == before["cygnet_sockets", ""] + 1
    assert client.get("/metrics", headers={"origin": "null"}).status_code == 403


def test_a_log_line_is_one_json_object_with_its_job() -> None:
    record = logging.LogRecord("cygnet.x", logging.INFO, "f", 1, "job %s\nends", ("a",), None)
    record.job, record.state, record.seconds = "a", "completed", 1.5
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["message"], found["job"], found["seconds"]) == ("info", "job a\nends", "a", 1.5)
    try:
        raise ValueError("odd")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: odd" in json.loads(JsonLines().format(record))["traceback"]


def test_the_level_is_heeded(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in ("cygnet", "uvicorn")]
    kept = [(it.handlers[:], it.level, it.propagate) for it in loggers]
    try:
        log_to_stderr("WARNING", "json")
        logging.getLogger("cygnet.a").info("quiet")
        logging.getLogger("cygnet.a").warning("loud")
        logging.getLogger("uvicorn.access").info("quiet")
    finally:
        for it, (handlers, level, propagate) in zip(loggers, kept, strict=True):
            it.handlers[:], it.propagate = handlers, propagate
            it.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "loud"


def test_no_message_begins_a_line_of_its_own_or_steers_a_terminal() -> None:
    message = "a\nERROR forged\r\x1b[2J\x9b31m\u2028 \udcff é"
    record = logging.LogRecord("cygnet.x", logging.INFO, "f", 1, "%s", (message,), None)
    told: list[Any] = []
    kept = LogLines(told.append)
    kept.emit(record)
    for line in (TextLines().format(record), kept.text().removesuffix("\n"), told[0].data["entries"][0]["m"][:-1]):
        assert len(line.splitlines()) == 1
        assert line.endswith("a\\nERROR forged\\r\\x1b[2J\\x9b31m\\u2028 \\udcff é")
    try:
        raise ValueError("odd")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "\nTraceback" in TextLines().format(record)
