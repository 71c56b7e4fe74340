"""Stored jobs in the shapes that the page's schema demands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cygnet.server.jobs_view import history_entry, job_detail, job_row, queue_item
from cygnet.server.store import Ending, JobRecord, JobStore, Submission

PROMPT = {"1": {"class_type": "A", "inputs": {}}}
FILE = {"filename": "a.mp4", "subfolder": "video", "type": "output"}
TEMP = {"filename": "b.png", "subfolder": "", "type": "temp"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    opened = JobStore(tmp_path / "jobs.sqlite")
    yield opened
    opened.close()


def ended(store: JobStore, ending: Ending) -> JobRecord:
    store.submit(Submission(id="j", prompt=PROMPT, outputs=("1",), extra={"extra_pnginfo": {"workflow": {"id": "w"}}}))
    record = store.claim()
    assert record is not None
    store.finish("j", record.fence, ending)
    return store.require("j")


def test_a_waiting_job(store: JobStore) -> None:
    it = store.submit(Submission(id="j", prompt=PROMPT, outputs=("1",), extra={"x": 1}))
    assert queue_item(it) == [1, "j", PROMPT, {"x": 1}, ["1"]]
    assert isinstance(queue_item(it)[0], int), "clients in stricter languages read no 1.0 as a whole number"
    row = job_row(it)
    assert (row["status"], row["priority"], row["outputs_count"], row["preview_output"]) == ("pending", 1, 0, None)
    assert row["execution_error"] is None
    assert isinstance(row["create_time"], int)
    assert job_detail(it)["execution_status"] is None
    begun = store.claim()
    assert begun is not None
    assert job_detail(begun)["execution_status"] is None


def test_a_finished_job_is_shown_by_its_saved_file(store: JobStore) -> None:
    outputs: dict[str, Any] = {
        "7": {"text": ["hi"]},
        "8": {"images": [TEMP]},
        "9": {"images": [FILE], "animated": [True]},
    }
    it = ended(store, Ending(state="completed", outputs=outputs, messages=[["execution_success", {"prompt_id": "j"}]]))
    row = job_row(it)
    assert (row["outputs_count"], row["previewable_outputs_count"]) == (3, 3)
    assert row["preview_output"] == {**FILE, "nodeId": "9", "mediaType": "images"}
    assert row["workflow_id"] == "w"
    entry = history_entry(it)
    assert entry["outputs"] == outputs
    assert entry["status"] == {
        "status_str": "success",
        "completed": True,
        "messages": [["execution_success", {"prompt_id": "j"}]],
    }
    detail = job_detail(it)
    assert detail["execution_status"] == entry["status"]
    assert detail["workflow"]["extra_data"]["extra_pnginfo"]["workflow"] == {"id": "w"}
    assert detail["update_time"] == it.ended_ms


def test_text_alone_is_shown_cut(store: JobStore) -> None:
    row = job_row(ended(store, Ending(state="completed", outputs={"7": {"text": ["x" * 5000]}})))
    assert row["preview_output"]["mediaType"] == "text"
    assert len(row["preview_output"]["content"]) == 1024


def test_an_error_has_every_text_that_the_page_demands(store: JobStore) -> None:
    row = job_row(ended(store, Ending(state="failed", error={"exception_message": "no", "traceback": ["a", 1]})))
    assert row["status"] == "failed"
    assert row["execution_error"] == {
        "node_id": "",
        "node_type": "",
        "exception_message": "no",
        "exception_type": "",
        "traceback": ["a", "1"],
    }
