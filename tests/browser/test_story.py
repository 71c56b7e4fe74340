"""The tutorial of Wan 2.1 in ComfyUI, from the start of the server to the downloaded video, in the stock page.

Workflow files are the published ones, and the embedded networks lie under the names that they ask for. Every step
leaves a screenshot in ``out/browser``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.browser.conftest import stocked
from tests.browser.loud import LOUD, PACK
from tests.browser.steps import (
    ended,
    frames_of,
    load_file,
    missing,
    result,
    run,
    shot,
    show_all,
    stock,
    tiny,
    until,
    upload,
    write,
)

from cygnet.server.installer import Installer
from stand_in_registry import Registry, stand_in_registry, zipped
from studio_process import Studio, launched

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def test_text_to_video_as_in_the_tutorial(tab: Callable[[Studio], Any], tmp_path: Path) -> None:
    def prepare(page: Any) -> None:
        write(page, "Positive", "a blue square moves left on a grey background")
        write(page, "Negative", "blurry")

    frames = story("t2v", "text_to_video_wan", prepare, tab, tmp_path)
    assert frames[..., 2].astype(int).max() > 150, "there is nothing blue"


def test_image_to_video_as_in_the_tutorial(tab: Callable[[Studio], Any], tmp_path: Path) -> None:
    picture = Image.new("RGB", (128, 128), (0, 0, 0))
    picture.paste((255, 0, 0), (40, 40, 80, 80))
    picture.save(tmp_path / "mine.png")

    def prepare(page: Any) -> None:
        upload(page, "LoadImage", tmp_path / "mine.png")
        page.wait_for_function("app.graph.nodes.find(it => it.type === 'LoadImage').imgs?.[0]?.naturalWidth === 128")
        shot(page, "i2v-06-picture-uploaded")
        write(page, "Positive", "a red square moves right")
        write(page, "Negative", "blurry")

    frames = story("i2v", "image_to_video_wan", prepare, tab, tmp_path)
    assert frames[0, 60, 60, 0] > 150, "the first frame is not the picture"
    assert frames[0, 10, 10].max() < 100, "the first frame is not the picture"


def story(
    name: str, workflow: str, prepare: Callable[[Any], None], tab: Callable[[Studio], Any], base: Path
) -> np.ndarray[Any, Any]:
    """From launch to download; the frames of the video."""
    with stand_in_registry() as registry:
        Registry.packs["old-pack"] = ("1.0.0", zipped(**{"__init__.py": "NODE_CLASS_MAPPINGS = {}"}))
        Installer(stocked(base) / "custom_nodes", registry=registry).install("old-pack")
        Registry.packs["old-pack"] = ("1.1.0", Registry.packs["old-pack"][1])
        Registry.packs["shout-pack"] = ("1.0.0", zipped(**{"__init__.py": PACK}))
        studio = launched(base, "--enable-manager", CYGNET_REGISTRY=registry)
        try:
            page = tab(studio)
            page.goto(studio.url, wait_until="domcontentloaded")
            page.get_by_text("Tiny text to video").first.wait_for()
            shot(page, f"{name}-01-first-start")
            page.keyboard.press("Escape")
            page.get_by_role("dialog").first.wait_for(state="hidden")
            update_through_the_manager(page, name)
            install_what_is_missing(page, name, base)
            load_file(page, stock(workflow), "KSampler")
            assert missing(page) == []
            tiny(page, steps=8, seed=3)
            show_all(page)
            shot(page, f"{name}-05-workflow-loaded")
            prepare(page)
            shot(page, f"{name}-07-prompts")
            job = watched(page, name)
            seen_and_downloaded(page, name, result(studio, job))
            return frames_of(studio, job)
        finally:
            studio.stop()


def update_through_the_manager(page: Any, name: str) -> None:
    """Find an installed pack that has a newer version, update it and restart."""
    page.get_by_role("button", name="Extensions", exact=True).click()
    page.get_by_text("Updates Available").first.click()
    page.get_by_text("old-pack").first.wait_for()
    shot(page, f"{name}-02-update-available")
    page.get_by_role("dialog").get_by_role("button", name="Update", exact=True).click()
    page.get_by_text("All Up to Date").first.wait_for()
    restarted(page)
    versions = page.evaluate("async () => (await fetch('api/v2/customnode/installed')).json()")
    assert versions["old-pack"]["ver"] == "1.1.0"
    shot(page, f"{name}-03-updated")
    page.get_by_role("dialog").get_by_role("button", name="Close dialog").first.click()


def install_what_is_missing(page: Any, name: str, base: Path) -> None:
    """Open a workflow with a node that is not here, install its pack, restart: the node is real."""
    (base / "loud.json").write_text(json.dumps(LOUD))
    load_file(page, base / "loud.json", "Shout")
    page.get_by_text("Missing node").first.wait_for()
    page.get_by_text("View details").first.click()
    install = page.get_by_role("button", name="Install", exact=True)
    install.wait_for()
    shot(page, f"{name}-04a-missing-node")
    install.click()
    page.get_by_role("button", name="Apply Changes", exact=True).first.wait_for()
    shot(page, f"{name}-04b-installed")
    restarted(page)
    page.wait_for_function("app.graph.nodes[0].type === 'Shout' && app.graph.nodes[0].widgets?.[0]?.name === 'text'")
    shot(page, f"{name}-04c-node-is-real")
    page.get_by_role("button", name="Toggle properties panel").first.click()


def restarted(page: Any) -> None:
    """Press the button that restarts the server, and wait until the page has it back."""
    page.expected.append("econnect")
    with page.expect_response(lambda it: it.url.endswith("/api/object_info")):  # asked for after the restart
        page.locator("button:visible", has_text="Apply Changes").last.click()  # the open dialog hides its role


def watched(page: Any, name: str) -> dict[str, Any]:
    """Run, and see progress and previews on the sampler while the job runs."""
    job = run(page)
    until(page, job, "in_progress")
    page.wait_for_function("app.graph.nodes.find(it => it.type === 'KSampler').imgs?.length > 0")
    page.wait_for_function("app.graph.nodes.find(it => it.type === 'KSampler').progress > 0.2")
    shot(page, f"{name}-08-running")
    return ended(page, job)


def seen_and_downloaded(page: Any, name: str, file: Path) -> None:
    """The video plays on its node, and is downloaded from the panel of results."""
    show_all(page)
    page.wait_for_function("[...document.querySelectorAll('video')].some(it => it.readyState >= 2 && it.videoWidth)")
    page.wait_for_timeout(500)
    shot(page, f"{name}-09-video")
    page.get_by_test_id("assets-tab-button").click()
    page.get_by_label(f"{file.name} - video asset").wait_for()
    page.get_by_test_id("media-asset-video").first.hover()
    shot(page, f"{name}-10-download")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).first.click()
    assert download.value.suggested_filename == file.name
    assert Path(download.value.path()).read_bytes() == file.read_bytes()
