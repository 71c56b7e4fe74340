"""What a person sees first: the page, its templates, and nothing that asks another machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.browser.steps import (
    change,
    ended,
    frames_of,
    has,
    load_file,
    missing,
    opened,
    other_site,
    run,
    shot,
    show_all,
    stock,
    widgets,
    write,
)

from studio_process import Studio, launched

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ABSENT = ("/api/userdata/user.css", "/api/userdata/comfy.templates.json")
"""What a new user has not made yet; the page expects that these may be absent."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """As a new user has it: nothing in its folders."""
    it = launched(tmp_path_factory.mktemp("new"))
    yield it
    it.stop()


def test_the_first_minute_of_a_new_user(page: Any, studio: Studio) -> None:
    failed: list[str] = []
    errors: list[str] = []
    page.on("response", lambda it: it.status >= 400 and failed.append(it.url))
    page.on("console", lambda it: it.type == "error" and errors.append(it.text))
    page.goto(studio.url, wait_until="domcontentloaded")
    page.get_by_text("Tiny text to video").first.wait_for()
    # Pictures are there: our own, and a neutral one where none is installed.
    page.wait_for_function("[...document.querySelectorAll('img')].filter(it => it.src.startsWith('blob:')).length > 7")
    page.wait_for_function("[...document.querySelectorAll('img')].some(it => it.naturalWidth === 128)")
    shot(page, "start-1-templates")
    page.get_by_text("Tiny text to video").first.click()
    has(page, "EmptyHunyuanLatentVideo")
    page.get_by_role("dialog").first.wait_for(state="hidden")
    write(page, "Positive", "a blue square moves left on a grey background")
    change(page, "KSampler", steps=8, seed=3, control_after_generate="fixed")
    job = run(page)
    page.wait_for_function("app.graph.nodes.find(it => it.type === 'KSampler').imgs?.length > 0")
    shot(page, "start-2-running")
    frames = frames_of(studio, ended(page, job))
    page.locator("video").first.wait_for()
    page.wait_for_timeout(1000)
    shot(page, "start-3-video")
    assert frames.shape == (17, 128, 128, 3)
    assert frames[..., 2].astype(int).max() > 150, "there is nothing blue"
    # The same again runs nothing.
    assert ended(page, run(page))["status"] == "completed"
    assert len(list((studio.base / "output" / "video").glob("*.mp4"))) == 1
    assert {it.removeprefix(studio.url.rstrip("/")) for it in failed} <= set(ABSENT)
    assert all("404" in it for it in errors), errors
    assert len(errors) <= len(failed)


def test_every_published_workflow_of_the_template_browser_opens_with_its_nodes(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=text_to_video_wan", "SaveVideo")
    assert missing(page) == []
    names = page.evaluate(
        """async () => (await (await fetch('templates/index.json')).json())
             .flatMap(it => it.templates).map(it => [it.name, it.title ?? it.name])"""
    )
    assert {"tiny_text_to_video", "text_to_video_wan", "image_to_video_wan"} <= {name for name, _ in names}
    assert len(names) >= 12
    for name, title in names:
        page.get_by_role("button", name="Templates", exact=True).first.click()
        page.get_by_text("All Templates").first.click()
        page.get_by_placeholder("Search").last.fill(title)
        page.wait_for_timeout(600)  # the list is made anew while one types
        card = page.get_by_role("dialog").get_by_text(title, exact=True).first
        with page.expect_response(lambda it, name=name: it.url.endswith(f"/templates/{name}.json")):
            card.click()
        page.get_by_role("dialog").first.wait_for(state="hidden")
        page.wait_for_function("name => document.title.includes(name)", arg=name)
        assert missing(page) == [], name


def test_without_the_manager_the_missing_node_is_named_and_nothing_offered(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=text_to_video_wan", "SaveVideo")
    workflow = json.loads(stock("text_to_video_wan").read_text())
    next(it for it in workflow["nodes"] if it["type"] == "KSampler")["type"] = "NodeOfNobody"
    (studio.base / "odd.json").write_text(json.dumps(workflow))
    load_file(page, studio.base / "odd.json", "NodeOfNobody")
    page.get_by_text("issues found").first.wait_for()
    show_all(page)
    shot(page, "start-4-missing-node")
    page.get_by_text("View details").first.click()
    page.get_by_text("start it with --enable-manager").first.wait_for()
    page.wait_for_timeout(1000)
    shot(page, "start-5-missing-node-panel")
    for words in ("Install", "Install All", "Search in Manager"):
        assert page.get_by_role("button", name=words, exact=True).count() == 0, words
    assert page.get_by_role("button", name="Extensions", exact=True).count() == 0
    assert not page.outside


def test_missing_model_files_are_named_with_their_folders(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=text_to_video_wan", "SaveVideo")
    page.get_by_text("View details").first.click()
    page.get_by_text("wan2.1_t2v_1.3B_fp16.safetensors").first.wait_for()
    page.wait_for_timeout(500)
    shot(page, "start-6-missing-models")
    assert missing(page) == []


@pytest.mark.parametrize(("site", "shown"), [("own", True), ("other", False)])
def test_the_page_works_in_a_frame_of_its_own_site_alone(
    tab: Callable[[Studio], Any], studio: Studio, site: str, shown: bool
) -> None:
    page = tab(studio)
    inner = f"<iframe src='{studio.url}?template=tiny_text_to_video' style='width:1400px;height:900px'></iframe>"
    if not shown:
        reasons = []
        page.on("requestfailed", lambda it: reasons.append(it.failure))
        with other_site(inner) as outer:
            page.context.route(outer, lambda route: route.continue_())
            page.goto(outer)
            page.wait_for_timeout(1000)
        assert page.frames[-1].url.startswith("chrome-error"), "another site may frame the page"
        assert reasons == ["net::ERR_BLOCKED_BY_RESPONSE"], "it was not the studio that forbade it"
        return
    outer = f"{studio.url}frame.html"
    page.context.route(outer, lambda route: route.fulfill(body=inner, content_type="text/html"))
    page.goto(outer)
    frame = page.frames[-1]
    frame.wait_for_function("(window.app?.graph?.nodes ?? []).some(it => it.type === 'SaveVideo')")
    change(frame, "KSampler", steps=2, seed=11)
    with page.expect_response(lambda it: it.url.endswith("/api/prompt") and it.request.method == "POST") as answer:
        frame.get_by_test_id("queue-button").click()
    assert ended(frame, answer.value.json()["prompt_id"])["status"] == "completed"
    frame.wait_for_function("[...document.querySelectorAll('video')].some(it => it.readyState >= 2)")
    shot(page, "start-7-framed")
    assert widgets(frame, "KSampler")["steps"] == 2
