"""A server that goes and comes, a socket that is refused, and a submission that is wrong: what the page shows of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.browser.steps import change, ended, job, opened, run, shot, until, widgets

from studio_process import Studio, launched

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PREVIEWED = "app.graph.nodes.find(it => it.type === 'KSampler').imgs?.length > 0"


def test_a_wrong_value_is_marked_on_its_node_and_said(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    change(page, "KSampler", steps=0)
    page.get_by_test_id("queue-button").click()
    page.get_by_text("below the minimum").first.wait_for()
    assert page.evaluate("app.graph.nodes.filter(it => it.has_errors).map(it => it.type)") == ["KSampler"]
    page.get_by_text("KSampler's steps").first.wait_for()
    shot(page, "running-1-wrong-value")
    change(page, "KSampler", steps=2)
    assert ended(page, run(page))["status"] == "completed"


def test_a_stopped_job_ends_within_a_step_and_the_next_one_runs(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    change(page, "KSampler", steps=500, seed=21)
    first = run(page)
    page.wait_for_function(PREVIEWED)
    shot(page, "running-2-stop")
    page.get_by_label("Cancel current run").click()
    assert ended(page, first)["status"] == "cancelled"
    change(page, "KSampler", steps=2)
    assert ended(page, run(page))["status"] == "completed"


def test_with_the_socket_refused_the_page_works_by_asking(tab: Callable[[Studio], Any], studio: Studio) -> None:
    page = tab(studio)
    page.add_init_script(
        "const Real = WebSocket; window.WebSocket = class extends Real { constructor() { super('/no-socket'); } }"
    )
    asked: list[str] = []
    page.on("request", lambda it: urlsplit(it.url).path == "/api/prompt" and asked.append(it.method))
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    page.expected.append("econnect")
    change(page, "KSampler", steps=100, seed=31)  # long enough for the page to ask more than once while it runs
    assert ended(page, run(page))["status"] == "completed"
    page.get_by_text("0 active").first.wait_for()
    assert asked.count("GET") > 1


def test_a_page_left_open_goes_on_after_a_restart(tab: Callable[[Studio], Any], tmp_path: Path) -> None:
    before = launched(tmp_path)
    page = tab(before)
    try:
        opened(page, before.url + "?template=tiny_text_to_video", "SaveVideo")
        change(page, "KSampler", steps=500, seed=41, control_after_generate="fixed")
        lost = run(page)
        page.wait_for_function(PREVIEWED)
    finally:
        before.process.kill()
        before.process.wait()
    page.expected.append("econnect")
    page.get_by_text("Reconnecting").first.wait_for()
    shot(page, "running-3-server-gone")
    after = launched(tmp_path, port=urlsplit(before.url).port or 0)
    try:
        page.get_by_text("Reconnected").first.wait_for()
        assert until(page, lost, "in_progress")["status"] == "in_progress"  # it starts again
        page.get_by_label("Cancel current run").click()
        assert ended(page, lost)["status"] == "cancelled"
        change(page, "KSampler", steps=4)
        page.evaluate("app.graph.nodes.find(it => it.type === 'KSampler').imgs = undefined")
        again = run(page)
        page.wait_for_function(PREVIEWED)
        assert ended(page, again)["status"] == "completed"
        page.locator("video").first.wait_for()
        shot(page, "running-4-after-restart")
        assert widgets(page, "KSampler")["steps"] == 4
        assert job(page, lost)["status"] == "cancelled"
    finally:
        after.stop()
