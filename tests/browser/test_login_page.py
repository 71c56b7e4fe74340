"""A person gives the token to the login page: in a window, and in the frame of another site that may frame the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.browser.steps import other_site

from studio_process import Studio, launched

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

TOKEN = "a-long-and-random-token"
# An editor frames the page from vscode-webview:, which Chromium lacks. Another site, let in here, stands in for it.
_ALSO_FRAMED = """
import runpy
from cygnet.server import guard
guard.FRAMES += " http://localhost:*"
guard._ALWAYS[b"content-security-policy"] = guard.FRAMES.encode()
runpy.run_module("cygnet", run_name="__main__")
"""


_PAGE = """<!doctype html><p>waiting</p><script>
  const said = document.querySelector("p");
  const socket = new WebSocket(`ws://${location.host}/ws?clientId=a`);
  socket.onmessage = async (message) => {
    const jobs = await (await fetch("/api/queue")).json();
    said.textContent = `${JSON.parse(message.data).type} ${Object.keys(jobs)}`;
  };
</script>"""
"""In place of the stock page, which takes seconds to load: it asks the server in the same ways."""
READY = "status queue_running,queue_pending"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    base: Path = tmp_path_factory.mktemp("guarded")
    token = base / "token.txt"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    (base / "page").mkdir()
    (base / "page" / "index.html").write_text(_PAGE)
    more = ("--token-file", str(token), "--front-end-root", str(base / "page"))
    it = launched(base, *more, program=("-c", _ALSO_FRAMED))
    yield it
    it.stop()


def enter(page: Any) -> None:
    page.fill("#token", "not the token")
    page.click("button")
    page.get_by_text("That is not the token.").wait_for()
    page.fill("#token", TOKEN)
    page.click("button")
    page.get_by_text(READY).wait_for()


def test_the_token_is_given_once_in_a_window(tab: Callable[[Studio], Any], guarded: Studio) -> None:
    page = tab(guarded)
    page.goto(guarded.url)
    assert page.url == f"{guarded.url}login?next=/"
    enter(page)
    assert page.url == guarded.url
    page.goto(guarded.url)
    page.get_by_text(READY).wait_for()


def test_the_token_is_given_once_in_the_frame_of_another_site(tab: Callable[[Studio], Any], guarded: Studio) -> None:
    page = tab(guarded)
    with other_site(f"<iframe src='{guarded.url}' style='width:1400px;height:900px'></iframe>") as outer:
        page.context.route(outer, lambda route: route.continue_())
        page.goto(outer)
        enter(page.frames[-1])
        page.goto(outer)
        page.frames[-1].get_by_text(READY).wait_for()
    elsewhere = page.context.new_page()
    elsewhere.goto(guarded.url)
    assert "/login" in elsewhere.url, "what the frame keeps is no key to anything but the frame"
