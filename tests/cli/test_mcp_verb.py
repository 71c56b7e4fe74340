"""``cygnet mcp``: the tools over stdin and stdout, and against a running studio."""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

from cygnet.cli.mcp import Address, running_studio
from cygnet.cli.mcp_prompt import Files, Wish, graph_of
from cygnet.errors import RequestError
from studio_process import Studio, launched

LISTED = {
    "diffusion_models": ["wan2.1_t2v_1.3B_fp16.safetensors", "wan2.1_i2v_720p_14B_fp8.safetensors"],
    "text_encoders": ["umt5_xxl_fp8_e4m3fn_scaled.safetensors", "cygnet_tiny_umt5.safetensors"],
    "vae": ["ae.safetensors", "wan_2.1_vae.safetensors", "cygnet_tiny_vae.safetensors"],
    "clip_vision": ["clip_vision_h.safetensors", "cygnet_tiny_clip_vision.safetensors"],
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    running = launched(tmp_path_factory.mktemp("mcp"))
    yield running
    running.stop()


def with_tools(studio: Studio, work: Callable[[Any], Awaitable[None]]) -> None:
    from mcp import Client

    from cygnet.cli.mcp_tools import tools_server

    address = running_studio(studio.base / "user")
    assert address is not None

    async def main() -> None:
        async with Client(tools_server(address, None)) as client:
            await work(client)

    anyio.run(main)


async def told(client: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content  # type: ignore[no-any-return]


async def refused(client: Any, tool: str, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    return answer.content[0].text  # type: ignore[no-any-return]


async def ended(client: Any, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        state = await told(client, "status", job_id=job, wait_seconds=20)
        if state["status"] in ("completed", "failed", "cancelled"):
            return state
    raise AssertionError("the job did not end")


def test_the_running_studio_says_where_it_is_and_where_results_go(studio: Studio, tmp_path: Path) -> None:
    assert running_studio(studio.base / "user") == Address(studio.url, studio.base / "output")
    assert running_studio(tmp_path) is None


def test_a_video_is_made_and_fetched(studio: Studio) -> None:
    async def work(client: Any) -> None:
        queued = await told(
            client, "generate", prompt="a red ball moves right on a black background", steps=3, frames=5, seed=7
        )
        assert queued["settings"] | {"steps": 3, "frames": 5, "seed": 7, "width": 128} == queued["settings"]
        state = await ended(client, queued["job_id"])
        assert state["status"] == "completed"
        (path,) = state["files"]
        assert Path(path).parent == studio.base / "output" / "video"
        answer = await client.call_tool("fetch", {"job_id": queued["job_id"], "pictures": 3})
        words, sheet = answer.content
        assert path in words.text
        assert Image.open(io.BytesIO(base64.b64decode(sheet.data))).size == (3 * 128, 128)
        assert (await told(client, "cancel", job_id=queued["job_id"]))["cancelled"] is False

    with_tools(studio, work)


def test_a_picture_becomes_the_first_frame(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), (10, 10, 12)).save(tmp_path / "dark one.png")

    async def work(client: Any) -> None:
        queued = await told(
            client, "generate", prompt="a ball", image=str(tmp_path / "dark one.png"), steps=1, frames=5
        )
        assert queued["settings"]["model"] == "cygnet_tiny_i2v.safetensors"
        assert (await ended(client, queued["job_id"]))["status"] == "completed"
        assert (studio.base / "input" / "dark one.png").exists()

    with_tools(studio, work)


def test_a_job_is_cancelled_and_has_no_result(studio: Studio) -> None:
    async def work(client: Any) -> None:
        first = await told(client, "generate", prompt="a ball", steps=1000)
        second = await told(client, "generate", prompt="a ball", steps=1000)
        assert (await told(client, "status", job_id=second["job_id"]))["status"] == "pending"
        for queued in (second, first):
            await told(client, "cancel", job_id=queued["job_id"])
            assert (await ended(client, queued["job_id"]))["status"] == "cancelled"
        assert "is cancelled; it has no result" in await refused(client, "fetch", job_id=first["job_id"])

    with_tools(studio, work)


def test_bad_requests_are_answered_in_words(studio: Studio) -> None:
    async def work(client: Any) -> None:
        assert "it must be 4n + 1, such as 17" in await refused(client, "generate", prompt="a ball", frames=18)
        assert "there is no model 'none'" in await refused(client, "generate", prompt="a ball", model="none")
        assert "cannot be read" in await refused(client, "generate", prompt="a ball", image="/nowhere.png")
        assert "it must be an id" in await refused(client, "status", job_id="../queue")
        assert "Job not found" in await refused(client, "status", job_id="00000000-0000-4000-8000-000000000000")
        assert "cygnet_tiny_t2v.safetensors" in (await told(client, "models"))["diffusion_models"]

    with_tools(studio, work)


def test_a_studio_is_started_for_the_client_and_stopped_after_it(tmp_path: Path) -> None:
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters

    async def main() -> None:
        command = StdioServerParameters(
            command=sys.executable, args=["-m", "cygnet", "mcp", "--base-directory", str(tmp_path)]
        )
        async with Client(command) as client:
            names = [it.name for it in (await client.list_tools()).tools]
            assert names == ["generate", "status", "cancel", "fetch", "models"]
            assert "cygnet_tiny_i2v.safetensors" in (await told(client, "models"))["diffusion_models"]
            assert running_studio(tmp_path / "user") is not None

    anyio.run(main)
    deadline = time.monotonic() + 60
    while running_studio(tmp_path / "user") is not None:
        assert time.monotonic() < deadline, "the studio still runs"
        time.sleep(0.2)


def wish(**more: Any) -> Wish:
    nothing = dict.fromkeys(("negative_prompt", "image", "width", "height", "frames", "steps", "guidance"))
    return Wish(**{"prompt": "a fox", "seed": 1, **nothing, **more})  # type: ignore[arg-type]


def test_files_that_go_together_are_chosen() -> None:
    files = Files.of("wan2.1_t2v_1.3B_fp16.safetensors", False, LISTED)
    assert (files.text_encoder, files.vae) == ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors")
    graph, used = graph_of(wish(), files)
    assert (used["width"], used["height"], used["frames"], used["steps"]) == (832, 480, 81, 50)
    assert "WanImageToVideo" not in {it["class_type"] for it in graph.values()}
    files = Files.of("wan2.1_i2v_720p_14B_fp8.safetensors", True, LISTED)
    graph, used = graph_of(wish(image="fox.png", guidance=0.0), files)
    assert (used["width"], used["guidance"]) == (1280, 0.0)
    assert graph["9"]["inputs"] == {"clip_name": "clip_vision_h.safetensors"}
    with pytest.raises(RequestError, match="needs a file from clip_vision"):
        Files.of("wan2.1_i2v_720p_14B_fp8.safetensors", True, {**LISTED, "clip_vision": []})
