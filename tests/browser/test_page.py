"""The stock web page in a real browser: what its tutorial's reader does, with the embedded networks doing the work."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.browser.conftest import SHOTS

from cygnet.media.video_read import read_video
from studio_process import Studio

ENDED = "completed,failed,cancelled"
ALL = ENDED + ",pending,in_progress"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


def shot(page: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def graph(page: Any) -> list[str]:
    return [str(kind) for kind in page.evaluate("(window.app?.graph?.nodes ?? []).map(it => it.type)")]


def opened(page: Any, url: str, kind: str) -> None:
    """Go to an address and wait until a node of a kind is on the canvas."""
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_function(f"(window.app?.graph?.nodes ?? []).some(it => it.type === '{kind}')")


def change(page: Any, kind: str, **values: object) -> None:
    """Set widgets of all nodes of a kind, which are drawn on a canvas and have no elements."""
    page.evaluate(
        """([kind, values]) => app.graph.nodes.filter(it => it.type === kind).forEach(node =>
             Object.entries(values).forEach(([name, value]) => {
               const widget = node.widgets.find(it => it.name === name);
               widget.value = value;
               widget.callback?.(value);
             }))""",
        [kind, values],
    )


def show_all(page: Any) -> None:
    """Make all nodes visible; those that are not have no elements."""
    page.evaluate(
        """() => { app.canvas.deselectAll();
                   const [left, top] = [Math.min(...app.graph.nodes.map(it => it.pos[0])),
                                        Math.min(...app.graph.nodes.map(it => it.pos[1]))];
                   app.canvas.ds.scale = 0.6;  // further away the page draws no texts
                   app.canvas.ds.offset = [120 - left, 240 - top];
                   app.canvas.setDirty(true, true); }"""
    )


def write(page: Any, title: str, text: str) -> None:
    """Type a text into the node with that word in its title."""
    old = page.evaluate(
        "title => app.graph.nodes.find(it => it.title.includes(title)).widgets.find(it => it.name === 'text').value",
        title,
    )
    areas: list[Any] = []
    for _ in range(60):
        if areas := [it for it in page.locator("textarea").all() if it.input_value() == old]:
            break
        page.wait_for_timeout(250)  # what is written on the canvas gets its element when it is drawn
    areas[0].fill(text)
    page.evaluate("document.activeElement.blur()")


def run(page: Any) -> None:
    page.get_by_test_id("queue-button").or_(page.locator("button:has-text('Run')")).first.click()


def jobs(page: Any, status: str) -> list[dict[str, Any]]:
    """Jobs in some states, newest first."""
    found: list[dict[str, Any]] = page.evaluate(
        "async status => (await (await fetch('/api/jobs?status=' + status)).json()).jobs", status
    )
    return found


def until(page: Any, status: str, number: int = 1) -> list[dict[str, Any]]:
    """Wait until that many jobs are in some states."""
    for _ in range(600):
        if len(found := jobs(page, status)) >= number:
            return found
        page.wait_for_timeout(500)
    raise AssertionError(f"there are no {number} jobs that are {status}: {jobs(page, ALL)}")


def frames_of(studio: Studio, job: dict[str, Any]) -> np.ndarray[Any, Any]:
    assert job["status"] == "completed", job
    file = job["preview_output"]
    return read_video(studio.base / "output" / file["subfolder"] / file["filename"]).frames


def drop(page: Any, path: Path, media_type: str) -> None:
    """Drop a file on the canvas."""
    page.evaluate(
        """([bytes, name, type]) => {
             const data = new DataTransfer();
             data.items.add(new File([new Uint8Array(bytes)], name, {type}));
             const at = {bubbles: true, cancelable: true, dataTransfer: data, clientX: 700, clientY: 880};
             const canvas = document.querySelector('#graph-canvas');
             canvas.dispatchEvent(new DragEvent('dragover', at));
             canvas.dispatchEvent(new DragEvent('drop', at));
           }""",
        [list(path.read_bytes()), path.name, media_type],
    )


def stock(name: str) -> Path:
    found = find_spec("comfyui_workflow_templates_json")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "templates" / f"{name}.json"


def test_the_first_minute_of_a_new_user(page: Any, studio: Studio) -> None:
    page.goto(studio.url, wait_until="domcontentloaded")
    page.get_by_text("Tiny text to video").first.wait_for()
    shot(page, "1-templates")
    page.get_by_text("Tiny text to video").first.click()
    page.wait_for_function("(window.app?.graph?.nodes ?? []).some(it => it.type === 'EmptyHunyuanLatentVideo')")
    assert not page.outside, "the page asked other machines"
    write(page, "Positive", "a blue square moves left on a grey background")
    change(page, "KSampler", steps=8, seed=3, control_after_generate="fixed")
    run(page)
    page.get_by_text("KSampler").first.wait_for()
    shot(page, "2-running")
    (job,) = until(page, ENDED)
    page.locator("video").first.wait_for()
    page.wait_for_timeout(1500)
    shot(page, "3-video")
    frames = frames_of(studio, job)
    assert frames.shape == (17, 128, 128, 3)
    assert frames[..., 2].astype(int).max() > 150, "there is nothing blue"
    # The same again runs nothing; the file on the canvas brings the workflow back.
    run(page)
    again = until(page, ENDED, 2)
    assert len(list((studio.base / "output" / "video").glob("*.mp4"))) == 1
    assert again[0]["status"] == "completed"
    page.evaluate("app.graph.clear()")
    (video,) = (studio.base / "output" / "video").glob("*.mp4")
    drop(page, video, "video/mp4")
    page.wait_for_function("(window.app?.graph?.nodes ?? []).some(it => it.type === 'KSampler')")
    assert page.locator("textarea").first.input_value() == "a blue square moves left on a grey background"


def test_a_published_image_workflow_runs_from_its_file(page: Any, studio: Studio, tmp_path: Path) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "KSampler")
    workflow = stock("image_to_video_wan")
    page.locator("input[type=file][accept*='json']").first.set_input_files(workflow)
    page.wait_for_function("(window.app?.graph?.nodes ?? []).some(it => it.type === 'WanImageToVideo')")
    picture = Image.new("RGB", (128, 128), (0, 0, 0))
    picture.paste((255, 0, 0), (40, 40, 80, 80))
    picture.save(tmp_path / "mine.png")
    with page.expect_response(lambda it: it.url.endswith("/upload/image")) as answer:
        drop_on_node(page, "LoadImage", tmp_path / "mine.png")
    assert answer.value.status == 200
    page.wait_for_function(
        "app.graph.nodes.find(it => it.type === 'LoadImage').widgets.some(it => it.value === 'mine.png')"
    )
    change(page, "WanImageToVideo", width=128, height=128, length=17)
    change(page, "KSampler", steps=6)
    show_all(page)
    write(page, "Positive", "a red square moves right")
    shot(page, "4-image-workflow")
    run(page)
    (job,) = until(page, ENDED)
    frames = frames_of(studio, job)
    show_all(page)
    page.locator("video").first.wait_for(state="attached")  # the node may be beside what the window shows
    page.wait_for_timeout(1500)
    shot(page, "5-image-video")
    assert frames.shape == (17, 128, 128, 3)
    assert frames[0, 60, 60, 0] > 150, "the first frame is not the picture"
    assert frames[0, 10, 10].max() < 100, "the first frame is not the picture"


def drop_on_node(page: Any, kind: str, path: Path) -> None:
    """Choose a file with a node's upload button."""
    with page.expect_file_chooser() as chooser:
        page.evaluate(
            "kind => app.graph.nodes.find(it => it.type === kind).widgets.find(it => it.name === 'upload').callback()",
            kind,
        )
    chooser.value.set_files(path)


def test_a_running_job_is_stopped_and_unknown_nodes_are_named(page: Any, studio: Studio, tmp_path: Path) -> None:
    opened(page, studio.url + "?template=tiny_text_to_video", "KSampler")
    change(page, "KSampler", steps=500)
    run(page)
    until(page, "in_progress")
    page.evaluate("fetch('/api/interrupt', {method: 'POST'})")
    (job,) = until(page, ENDED)
    assert job["status"] == "cancelled"
    workflow = json.loads(stock("text_to_video_wan").read_text())
    next(it for it in workflow["nodes"] if it["type"] == "KSampler")["type"] = "NodeOfNobody"
    (tmp_path / "odd.json").write_text(json.dumps(workflow))
    page.locator("input[type=file][accept*='json']").first.set_input_files(tmp_path / "odd.json")
    page.get_by_text("NodeOfNobody").first.wait_for()
    shot(page, "6-missing")
