"""The Manager's routes: install a missing node, restart, and have it; with a stand-in of the registry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from cygnet.cli.main import run
from stand_in_registry import Registry, stand_in_registry, zipped
from studio_process import Studio, launched

PACK = """
class Shout:
    @classmethod
    def INPUT_TYPES(cls): return {"required": {"text": ("STRING", {})}}
    RETURN_TYPES = ("STRING",); FUNCTION = "run"; OUTPUT_NODE = True
    def run(self, text): return {"ui": {"text": [text.upper()]}, "result": (text,)}
NODE_CLASS_MAPPINGS = {"Shout": Shout}
"""


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    with stand_in_registry() as url:
        it = launched(tmp_path, "--enable-manager", CYGNET_REGISTRY=url)
        yield it
        it.stop()


def ask(studio: Studio, route: str, body: object = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    kind |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(studio.url + "api/" + route, data, kind)
    with urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else answer.status


def task(studio: Studio, kind: str, **params: str) -> dict[str, Any]:
    """Do one task as the dialog does it, and return how it ended."""
    order = {"kind": kind, "params": params, "ui_id": f"{kind}-{time.monotonic()}", "client_id": "c"}
    ask(studio, "v2/manager/queue/task", order)
    ask(studio, "v2/manager/queue/start", {})
    for _ in range(600):
        history = ask(studio, "v2/manager/queue/history")["history"]
        if order["ui_id"] in history:
            ended: dict[str, Any] = history[order["ui_id"]]
            return ended
        time.sleep(0.05)
    raise AssertionError("the task did not end")


def nodes_after_restart(studio: Studio) -> set[str]:
    ask(studio, "v2/manager/reboot", {})
    time.sleep(1)
    for _ in range(600):
        try:
            return set(ask(studio, "object_info"))
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError("the server did not come back")


def test_a_missing_node_is_installed_and_there_after_a_restart(studio: Studio) -> None:
    Registry.packs["shout-pack"] = ("1.0", zipped(**{"__init__.py": PACK}))
    assert ask(studio, "features")["extension"]["manager"] == {"supports_v4": True, "supports_csrf_post": True}
    assert "--enable-manager" in ask(studio, "system_stats")["system"]["argv"]
    assert "Shout" not in ask(studio, "object_info")
    assert ask(studio, "v2/customnode/installed") == {}
    ended = task(studio, "install", id="shout-pack", selected_version="latest", channel="default", mode="cache")
    assert ended["status"] == {"status_str": "success", "completed": True, "messages": ["installed shout-pack"]}
    expected = {"ver": "1.0", "cnr_id": "shout-pack", "aux_id": None, "enabled": True}
    assert ask(studio, "v2/customnode/installed") == {"shout-pack": expected}
    assert ask(studio, "v2/manager/queue/status")["is_processing"] is False
    assert "Shout" not in ask(studio, "object_info")
    assert "Shout" in nodes_after_restart(studio)
    assert ask(studio, "v2/customnode/getmappings") == {"shout-pack": [["Shout"], {"title_aux": "shout-pack"}]}
    prompt = {"1": {"class_type": "Shout", "inputs": {"text": "quiet"}}}
    job = ask(studio, "prompt", {"prompt": prompt})["prompt_id"]
    for _ in range(300):
        if found := ask(studio, f"history/{job}"):
            break
        time.sleep(0.1)
    assert found[job]["outputs"]["1"]["text"] == ["QUIET"]
    # Every other task, and what must fail.
    Registry.packs["shout-pack"] = ("2.0", zipped(**{"__init__.py": "import nothing_of_that_name"}))
    assert task(studio, "install", id="shout-pack", selected_version="2.0")["result"] == "shout-pack is now 2.0"
    assert task(studio, "disable", node_name="shout-pack")["status"]["completed"]
    assert task(studio, "enable", cnr_id="shout-pack")["status"]["completed"]
    assert "Shout" not in nodes_after_restart(studio)
    failed = ask(studio, "v2/customnode/import_fail_info_bulk", {"cnr_ids": ["shout-pack", "other"]})
    assert failed["other"] is None
    assert "nothing_of_that_name" in failed["shout-pack"]["error"]
    assert task(studio, "uninstall", node_name="shout-pack")["status"]["completed"]
    assert ask(studio, "v2/customnode/installed") == {}
    for kind, params in (
        ("install", {"id": "../evil"}), ("install", {"id": "nobody"}), ("install", {"id": "https://x/y.git"}),
        ("uninstall", {"node_name": "nobody"}), ("odd", {"id": "x"}),
    ):  # fmt: skip
        assert task(studio, kind, **params)["status"]["status_str"] == "error", (kind, params)
    assert task(studio, "update-comfyui")["status"]["status_str"] == "skip"


def test_other_sites_and_forms_are_refused(studio: Studio) -> None:
    for headers in ({"Origin": "http://evil.test"}, {"Origin": "null"}):
        with pytest.raises(HTTPError) as refused:
            ask(studio, "v2/manager/queue/task", {"kind": "install", "params": {"id": "x"}}, **headers)
        assert refused.value.code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        with pytest.raises(HTTPError) as refused:
            ask(studio, "v2/manager/reboot", {}, Content_Type=kind)
        assert refused.value.code == 400
    assert ask(studio, "v2/manager/is_legacy_manager_ui") == {"is_legacy_manager_ui": False}


def test_the_manager_is_off_by_default_and_never_on_a_public_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough")
    words = ["launch", "--listen", "0.0.0.0", "--token-file", str(token), "--enable-manager", "--base-directory"]
    assert run([*words, str(tmp_path)]) == 2
    assert "loopback only" in capsys.readouterr().err
    it = launched(tmp_path)
    try:
        assert "extension" not in ask(it, "features")
        with pytest.raises(HTTPError) as missing:
            ask(it, "v2/customnode/installed")
        assert missing.value.code == 404
    finally:
        it.stop()
