"""A studio as a user starts it, and Debian's Chromium to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cygnet.checkpoints.catalogue import EMBEDDED
from studio_process import Studio, launched

STOCK = {
    "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors": "t2v",
    "diffusion_models/wan2.1_i2v_480p_14B_fp16.safetensors": "i2v",
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": "text_encoder",
    "vae/wan_2.1_vae.safetensors": "vae",
    "clip_vision/clip_vision_h.safetensors": "image_encoder",
}
"""The embedded weights under the names that the published workflows use."""
SHOTS = Path(__file__).parents[2] / "out" / "browser"
"""Screenshots of every story, to be looked at."""


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    for name, stem in STOCK.items():
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(EMBEDDED / f"{stem}.safetensors", path)
    it = launched(tmp_path)
    yield it
    it.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser; where there is none, its tests are skipped and say so.

    Not for the session: as long as it lives an event loop runs in this thread, and other tests start their own.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine; install it (apt-get install chromium) to run the page's tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, studio: Studio) -> Iterator[Any]:
    """An empty tab that may reach this machine alone, and fails the test on an uncaught error."""
    context = chromium.new_context(viewport={"width": 1500, "height": 950}, accept_downloads=True)
    context.set_default_timeout(120_000)
    outside: list[str] = []

    def local_only(route: Any) -> None:
        if route.request.url.startswith((studio.url, "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", local_only)
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.outside = outside
    yield tab
    context.close()
    assert not errors, errors
