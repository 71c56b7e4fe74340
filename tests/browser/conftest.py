"""A studio as a user starts it, and Debian's Chromium to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

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

_WATCH = """
  // What the page calls an error is told in a notice that goes by itself.
  new MutationObserver(() => {
    for (const notice of document.querySelectorAll("[data-testid=toast-viewport] [role=alert]:has(.text-destructive)"))
      if (!notice.told) { notice.told = true; told(notice.innerText); }
  }).observe(document, {childList: true, subtree: true});
"""


def stocked(base: Path) -> Path:
    """A base directory with the embedded weights under the stock names."""
    for name, stem in STOCK.items():
        path = base / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(EMBEDDED / f"{stem}.safetensors", path)
    return base


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """One server for the tests of a file."""
    it = launched(stocked(tmp_path_factory.mktemp("studio")))
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
def tab(chromium: Any) -> Iterator[Callable[[Studio], Any]]:
    """Makes an empty tab for a studio.

    It may reach that server alone. The test fails if it asked another, on an uncaught error, and on a notice of an
    error that ``expected`` does not hold a part of.
    """
    opened = []

    def make(studio: Studio) -> Any:
        context = chromium.new_context(viewport={"width": 1500, "height": 950}, accept_downloads=True)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.outside, page.errors, page.notices, page.expected = [], [], [], []

        def local_only(route: Any) -> None:
            if route.request.url.startswith((studio.url, "data:", "blob:")):
                route.continue_()
            else:
                page.outside.append(route.request.url)
                route.abort()

        context.route("**/*", local_only)
        context.expose_function("told", lambda words: page.notices.append(words))
        context.add_init_script(_WATCH)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        opened.append(page)
        return page

    yield make
    for page in opened:
        page.context.close()
        assert not page.errors, page.errors
        assert not page.outside, f"the page asked other machines: {page.outside}"
        odd = [it for it in page.notices if not any(words in it for words in page.expected)]
        assert not odd, odd


@pytest.fixture
def page(tab: Callable[[Studio], Any], studio: Studio) -> Any:
    """An empty tab for the file's studio, which has nothing left to do."""
    for route, body in (("queue", b'{"clear": true}'), ("interrupt", b"{}")):
        urlopen(Request(f"{studio.url}api/{route}", body)).close()
    return tab(studio)
