"""The Manager in the page, with a registry beside it: what fails is said, and nothing but our server is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.browser.loud import LOUD, PACK
from tests.browser.steps import has, load_file, missing, shot

from stand_in_registry import Registry, stand_in_registry, zipped
from studio_process import Studio, launched

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with stand_in_registry() as url:
        Registry.packs["shout-pack"] = ("1.0.0", zipped(readme="no module"))
        it = launched(tmp_path_factory.mktemp("studio"), "--enable-manager", CYGNET_REGISTRY=url)
        yield it
        it.stop()


def test_an_installation_that_fails_says_why_and_can_be_repeated(page: Any, studio: Studio) -> None:
    (studio.base / "loud.json").write_text(json.dumps(LOUD))
    page.goto(studio.url + "?template=tiny_text_to_video", wait_until="domcontentloaded")
    has(page, "KSampler")
    load_file(page, studio.base / "loud.json", "Shout")
    assert missing(page) == ["Shout"]
    page.get_by_text("View details").first.click()
    page.get_by_role("button", name="Install", exact=True).click()
    why = "shout-pack: it has no __init__.py"
    page.expected.append(why)
    page.get_by_text(why).first.wait_for()
    shot(page, "manager-1-failure")
    assert not (studio.base / "custom_nodes" / "shout-pack").exists()
    Registry.packs["shout-pack"] = ("1.0.0", zipped(**{"__init__.py": PACK}))
    page.get_by_role("button", name="Install", exact=True).click()
    page.locator("button:visible", has_text="Apply Changes").first.wait_for()
    assert (studio.base / "custom_nodes" / "shout-pack" / "__init__.py").is_file()


def test_packs_are_listed_and_searched_through_the_server(page: Any, studio: Studio) -> None:
    Registry.packs["other-pack"] = ("1.0.0", zipped(**{"__init__.py": ""}))
    page.goto(studio.url + "?template=tiny_text_to_video", wait_until="domcontentloaded")
    has(page, "KSampler")
    page.get_by_role("button", name="Extensions", exact=True).click()
    page.get_by_role("dialog").get_by_text("other-pack").first.wait_for()
    shot(page, "manager-2-all-packs")
    with page.expect_response(lambda it: "/api/registry/nodes/search" in it.url and "search=loud" in it.url) as answer:
        page.get_by_placeholder("Search").last.fill("loud")
    assert answer.value.status == 200
    assert not page.outside
