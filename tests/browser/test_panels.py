"""The panels: after every press the page and the server say the same."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from tests.browser.conftest import STOCK
from tests.browser.steps import (
    change,
    ended,
    has,
    opened,
    run,
    shot,
    until,
    until_true,
    widgets,
    write,
)

from studio_process import Studio

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ALL = "completed,failed,cancelled,pending,in_progress"
RENAMED = "100% & {Video} 視頻 %2F"


def at_server(page: Any, states: str = ALL) -> list[str]:
    found: list[str] = page.evaluate(
        "async states => (await (await fetch('api/jobs?status=' + states)).json()).jobs.map(it => it.id)", states
    )
    return found


def open_job_list(page: Any) -> None:
    """Open the list of jobs; the page remembers whether it was open."""
    if page.get_by_role("button", name="Filter jobs").count() == 0:
        page.get_by_test_id("queue-overlay-toggle").click()


def say(page: Any, words: str) -> None:
    """The panel's words."""
    page.get_by_text(words).first.wait_for()


def test_jobs_are_stopped_cancelled_cleared_and_deleted(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    change(page, "KSampler", steps=2, control_after_generate="fixed")
    done = [ended(page, run(page))["id"]]
    change(page, "KSampler", steps=2, seed=2)
    done.append(ended(page, run(page))["id"])
    ids = []
    for seed in (3, 4, 5, 6, 7):
        change(page, "KSampler", steps=500, seed=seed)
        ids.append(run(page))
    until(page, ids[0], "in_progress")
    open_job_list(page)
    say(page, "1 running, 4 queued")
    shot(page, "panels-1-queue")
    # Cancel one that waits, on its card.
    page.get_by_text("In queue...").first.hover()
    page.get_by_role("button", name="Cancel", exact=True).click()
    say(page, "1 running, 3 queued")
    (gone,) = at_server(page, "cancelled")
    ids.remove(gone)
    assert at_server(page, "in_progress") == ids[:1]
    # Cancel the running one on its card; the next begins.
    page.get_by_text("Total:").last.hover()
    page.get_by_role("button", name="Cancel", exact=True).click()
    assert ended(page, ids.pop(0))["status"] == "cancelled"
    until(page, ids[0], "in_progress")
    say(page, "1 running, 2 queued")
    # Stop the running one with the button beside Run.
    page.get_by_label("Cancel current run").click()
    assert ended(page, ids.pop(0))["status"] == "cancelled"
    until(page, ids[0], "in_progress")
    say(page, "1 running, 1 queued")
    # Clear what waits, twice as the page sometimes does; the running one goes on.
    page.get_by_role("button", name="Clear queued").click()
    assert ended(page, ids.pop())["status"] == "cancelled"
    clear = "async () => (await fetch('api/queue', {method: 'POST', body: JSON.stringify({clear: true})})).status"
    assert page.evaluate(clear) == 200
    assert (at_server(page, "pending"), at_server(page, "in_progress")) == ([], ids)
    page.get_by_label("Cancel current run").click()
    ended(page, ids.pop())
    say(page, "0 active")
    # Delete one result in the assets panel; its file stays.
    page.get_by_test_id("assets-tab-button").click()
    page.get_by_test_id("media-asset-video").first.hover()
    shot(page, "panels-2-assets")
    page.get_by_role("button", name="More options", exact=True).first.click()
    page.get_by_role("menuitem", name="Delete").click()
    page.locator("button:visible", has_text="Delete").last.click()
    until_true(page, lambda: done[1] not in at_server(page), "the deleted job is still there")
    assert done[0] in at_server(page)
    assert page.get_by_test_id("media-asset-video").count() == 1
    assert len(list((studio.base / "output" / "video").glob("*.mp4"))) == 2
    page.get_by_test_id("sidebar-close-button").click()
    # Clear the history.
    page.get_by_role("button", name="More options", exact=True).last.click()
    page.get_by_text("Clear job history").first.click()
    page.locator("button:visible", has_text=re.compile("^Clear$")).last.click()
    until_true(page, lambda: at_server(page) == [], "the history is not empty")
    shot(page, "panels-3-cleared")


def test_a_workflow_is_saved_renamed_and_deleted_in_the_page(page: Any, studio: Studio) -> None:
    saved = studio.base / "user" / "default" / "workflows"
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    page.mouse.click(700, 880)
    page.keyboard.press("Control+s")
    page.get_by_role("dialog").locator("input").last.fill("mein Ünïcode Flow")
    page.keyboard.press("Enter")
    until_true(page, lambda: [it.name for it in saved.glob("*.json")] == ["mein Ünïcode Flow.json"], "nothing is saved")
    page.get_by_test_id("workflows-tab-button").click()
    row = page.get_by_role("tree").get_by_text("mein Ünïcode Flow").first
    row.click(button="right")
    page.get_by_role("menuitem", name="Rename").first.click()
    with page.expect_response(lambda it: "/move/" in it.url) as moved:
        page.keyboard.press("Control+a")
        page.keyboard.type(RENAMED)
        page.keyboard.press("Enter")
    assert moved.value.status == 200, unquote(moved.value.url)
    assert [it.name for it in saved.glob("*.json")] == [f"{RENAMED}.json"]
    shot(page, "panels-4-renamed")
    # Saved again under its name, after a change, without a question.
    write(page, "Positive", "a red ball bounces on a black background")
    page.mouse.click(900, 880)
    page.keyboard.press("Control+s")
    until_true(page, lambda: "red ball" in (saved / f"{RENAMED}.json").read_text(), "the change is not saved")
    page.reload()
    has(page, "KSampler")


def test_the_key_r_shows_new_models_and_pictures(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_image_to_video", "LoadImage")
    named = next(it for it in STOCK if it.startswith("vae/"))
    vae = studio.base / "models" / named
    (vae.parent / "my_new_vae.safetensors").write_bytes(vae.read_bytes())
    Image.new("RGB", (16, 16)).save(studio.base / "input" / "my_new_picture.png")
    offered = """([kind, name]) => app.graph.nodes.find(it => it.type === kind)
                   .widgets.find(it => it.name === name).options.values"""
    assert "my_new_vae.safetensors" not in page.evaluate(offered, ["VAELoader", "vae_name"])
    page.mouse.click(700, 880)
    with page.expect_response(lambda it: it.url.endswith("/api/object_info")):
        page.keyboard.press("r")
    page.wait_for_function(f"({offered})(['VAELoader', 'vae_name']).includes('my_new_vae.safetensors')")
    page.wait_for_function(f"({offered})(['LoadImage', 'image']).includes('my_new_picture.png')")


def test_the_log_panel_shows_lines_as_they_come(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    with page.expect_response(lambda it: it.url.endswith("/internal/logs/subscribe")):
        page.get_by_role("button", name="Toggle Bottom Panel").click()
    change(page, "KSampler", steps=2, seed=51)
    job_id = run(page)
    ended(page, job_id)
    shown = "id => [...document.querySelectorAll('.xterm-rows > div')].some(it => it.innerText.includes(id))"
    page.wait_for_function(shown, arg=f"{job_id}: accepted")
    shot(page, "panels-5-logs")
    with page.expect_response(lambda it: it.url.endswith("/internal/logs/subscribe")) as left:
        page.get_by_role("button", name="Toggle Bottom Panel").click()
    assert left.value.request.post_data_json["enabled"] is False


def test_a_job_opens_as_the_workflow_that_it_ran(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "SaveVideo")
    write(page, "Positive", "a green star spins on a brown background")
    change(page, "KSampler", steps=2, seed=61, control_after_generate="fixed")
    before = page.evaluate("JSON.stringify(app.graph.serialize().nodes.map(it => [it.id, it.type, it.widgets_values]))")
    ended(page, run(page))
    opened(page, studio.url + "?template=tiny_image_to_video", "LoadImage")
    open_job_list(page)
    page.get_by_text(".mp4").first.click(button="right")
    page.get_by_role("menuitem", name="Open as workflow in new tab").click()
    page.wait_for_function("!app.graph.nodes.some(it => it.type === 'LoadImage') && app.graph.nodes.length > 3")
    after = page.evaluate("JSON.stringify(app.graph.serialize().nodes.map(it => [it.id, it.type, it.widgets_values]))")
    assert after == before
    assert widgets(page, "KSampler")["seed"] == 61
