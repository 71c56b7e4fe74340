"""The MCP server: each tool asks the studio over HTTP, and a socket tells how far jobs are."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx2
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from cygnet.cli.mcp import Address
from cygnet.cli.mcp_prompt import Files, Wish, graph_of
from cygnet.errors import CygnetError, RequestError

_LOADERS = {
    "diffusion_models": ("UNETLoader", "unet_name"),
    "text_encoders": ("CLIPLoader", "clip_name"),
    "vae": ("VAELoader", "vae_name"),
    "clip_vision": ("CLIPVisionLoader", "clip_name"),
}
_ENDS = ("completed", "failed", "cancelled")
_LONGEST_WAIT = 50.0  # seconds; clients give a call up after a minute
_PATIENCE = 120.0  # seconds; a studio that has just started reads its nodes first
_INSTRUCTIONS = (
    "Makes short videos from a prompt, or from a picture and a prompt. `generate` queues a job and returns its id at "
    "once; ask `status` with wait_seconds until it has ended, then `fetch` its video. Without a model the tiny one is "
    "used, which knows one or two things (ball, square, triangle, star) in a colour, with a motion (moves left, "
    "right, up or down, bounces, spins, grows, shrinks, circles), before a plain background; `models` lists others."
)

Job = Annotated[str, Field(description="Id of a job, as generate returned it")]


class Studio:
    """A client of the studio."""

    def __init__(self, address: Address, token: str | None) -> None:
        self.address = address
        self.client_id = uuid.uuid4().hex
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.progress: dict[str, dict[str, Any]] = {}
        """Job → the nodes that were begun, as the socket tells them."""

    async def ask(self, method: str, route: str, **more: Any) -> Any:
        """The JSON that the studio answers; raises ToolError with its reason when it refuses or does not answer."""
        try:
            async with httpx2.AsyncClient(base_url=self.address.url, headers=self.headers, timeout=_PATIENCE) as client:
                answer = await client.request(method, f"/api{route}", **more)
        except httpx2.HTTPError as error:
            raise ToolError(
                f"the studio at {self.address.url} does not answer ({error or type(error).__name__})"
            ) from error
        if answer.status_code == 401:
            raise ToolError("the studio asks for a token: start `cygnet mcp` with its --token-file")
        try:
            body = answer.json() if answer.content else None
        except ValueError as error:
            raise ToolError(f"the studio answered {answer.status_code} without JSON") from error
        if answer.is_error:
            raise ToolError(_reason(body, answer.status_code))
        return body

    async def listen(self) -> None:
        """Keep :attr:`progress` up to date for as long as the task lives, over lost connections too."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        url = f"ws{self.address.url.removeprefix('http')}ws?clientId={self.client_id}"
        while True:
            with contextlib.suppress(OSError, WebSocketException):
                async with connect(url, additional_headers=self.headers) as socket:
                    async for text in socket:
                        if isinstance(text, str):
                            self._hear(json.loads(text))
            await asyncio.sleep(1.0)

    def _hear(self, message: Mapping[str, Any]) -> None:
        data = message.get("data") or {}
        if message.get("type") == "progress_state":
            self.progress[data["prompt_id"]] = data["nodes"]
        elif message.get("type") == "executing" and data.get("node") is None:
            self.progress.pop(data.get("prompt_id", ""), None)

    async def listed(self) -> dict[str, list[str]]:
        """The weight files by kind."""
        found = {}
        for kind, (node, name) in _LOADERS.items():
            described = (await self.ask("GET", f"/object_info/{node}"))[node]["input"]["required"][name]
            choices = described[1].get("options", []) if described[0] == "COMBO" else described[0]
            found[kind] = [str(it) for it in choices]
        return found

    async def upload(self, path: Path) -> str:
        """Put a picture into the studio's input folder; its name there."""
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            raise RequestError(f"the picture {path} cannot be read ({error.strerror})", field="image") from error
        answer = await self.ask("POST", "/upload/image", files={"image": (path.name, data)})
        return "/".join(filter(None, (answer.get("subfolder", ""), answer["name"])))

    async def state(self, job: str) -> dict[str, Any]:
        """What is known about a job."""
        row = await self.ask("GET", f"/jobs/{_checked(job)}")
        told: dict[str, Any] = {"job_id": job, "status": row["status"]}
        if row["status"] == "pending":
            waiting = (await self.ask("GET", "/queue"))["queue_pending"]
            ids = [it[1] for it in sorted(waiting, key=lambda it: it[0])]
            told["jobs_before"] = ids.index(job) if job in ids else 0
        if (nodes := self.progress.get(job)) and row["status"] == "in_progress":
            prompt = row["workflow"]["prompt"]
            told["progress"] = [
                {"node": prompt.get(key, {}).get("class_type", key), "value": it["value"], "of": it["max"]}
                for key, it in nodes.items()
                if it["state"] == "running"
            ]
        if row.get("execution_start_time"):
            end = row.get("execution_end_time") or time.time() * 1000
            told["seconds"] = round((end - row["execution_start_time"]) / 1000, 1)
        if row.get("execution_error"):
            told["error"] = row["execution_error"]["exception_message"]
        if row["status"] == "completed":
            told["files"] = [str(it) for it in self.files(row)]
        return told

    def files(self, row: Mapping[str, Any]) -> list[Path]:
        """Where the results of a job are."""
        shown = [it for ui in row["outputs"].values() for kind in ui.values() if isinstance(kind, list) for it in kind]
        saved = [it for it in shown if isinstance(it, dict) and it.get("type") == "output"]
        return [self.address.output / it.get("subfolder", "") / it["filename"] for it in saved]


def tools_server(address: Address, token: str | None) -> MCPServer:
    """The server with its tools, for the studio at ``address``."""
    studio = Studio(address, token)

    @contextlib.asynccontextmanager
    async def life(_: MCPServer) -> AsyncIterator[None]:
        listening = asyncio.create_task(studio.listen())
        try:
            yield
        finally:
            listening.cancel()

    server: MCPServer = MCPServer(
        "cygnet", version=version("cygnet"), instructions=_INSTRUCTIONS, lifespan=life, log_level="WARNING"
    )

    @server.tool()
    async def generate(
        prompt: Annotated[str, Field(min_length=1, max_length=10_000, description="What the video shall show")],
        image: Annotated[str | None, Field(description="Path of a picture that becomes the first frame")] = None,
        negative_prompt: Annotated[str | None, Field(description="What it shall not show")] = None,
        model: Annotated[str | None, Field(description="File name of a transformer, as `models` lists it")] = None,
        width: Annotated[int | None, Field(ge=16, le=4096, multiple_of=16)] = None,
        height: Annotated[int | None, Field(ge=16, le=4096, multiple_of=16)] = None,
        frames: Annotated[int | None, Field(ge=1, le=1025, description="4n + 1")] = None,
        steps: Annotated[int | None, Field(ge=1, le=1000)] = None,
        guidance: Annotated[float | None, Field(ge=0, le=100)] = None,
        seed: Annotated[int | None, Field(ge=0, lt=2**63, description="By default another one each time")] = None,
    ) -> dict[str, Any]:
        """Queue a video. Returns its job id at once, with the settings used; the job survives restarts."""
        if frames is not None and frames % 4 != 1:
            raise ToolError(f"frames is {frames}; it must be 4n + 1, such as {frames // 4 * 4 + 1}")
        with _told():
            files = Files.of(model, image is not None, await studio.listed())
            name = None if image is None else await studio.upload(Path(image))
            wish = Wish(
                prompt=prompt, negative_prompt=negative_prompt, image=name, width=width, height=height, frames=frames,
                steps=steps, guidance=guidance, seed=secrets.randbits(48) if seed is None else seed,
            )  # fmt: skip
            graph, used = graph_of(wish, files)
        body = {"prompt": graph, "client_id": studio.client_id, "prompt_id": str(uuid.uuid4())}
        answer = await studio.ask("POST", "/prompt", json=body)
        return {"job_id": answer["prompt_id"], "settings": used}

    @server.tool()
    async def status(
        job_id: Job,
        wait_seconds: Annotated[float, Field(ge=0, le=_LONGEST_WAIT, description="Return earlier if it ends")] = 0,
    ) -> dict[str, Any]:
        """Say whether a job waits, runs (and how far it is), or how it ended."""
        until = time.monotonic() + wait_seconds
        while (told := await studio.state(job_id))["status"] not in _ENDS and time.monotonic() < until:
            await asyncio.sleep(min(0.5, max(0.0, until - time.monotonic())))
        return told

    @server.tool()
    async def cancel(job_id: Job) -> dict[str, Any]:
        """Take a job out of the queue, or stop it within one step."""
        done = (await studio.ask("POST", f"/jobs/{_checked(job_id)}/cancel"))["cancelled"]
        return {**await studio.state(job_id), "cancelled": done}

    @server.tool(structured_output=False)
    async def fetch(
        job_id: Job,
        pictures: Annotated[int, Field(ge=0, le=16, description="Frames to look at, evenly spaced, on one sheet")] = 4,
    ) -> list[Any]:
        """Where the videos of a finished job are, and a sheet of their frames to look at."""
        row = await studio.ask("GET", f"/jobs/{_checked(job_id)}")
        if row["status"] != "completed":
            raise ToolError(f"job {job_id} is {row['status']}; it has no result" + _hint(row))
        files = studio.files(row)
        sheets = []
        for path in files:
            if pictures and path.is_file():
                with _told():
                    sheets.append(Image(data=await asyncio.to_thread(_sheet, path, pictures), format="png"))
        return [json.dumps({"files": [str(it) for it in files]}), *sheets]

    @server.tool()
    async def models() -> dict[str, list[str]]:
        """The weight files that the studio can load, by kind. `generate` takes one of diffusion_models."""
        return await studio.listed()

    return server


def _sheet(path: Path, count: int) -> bytes:
    """``count`` frames of a video side by side, at most 320 pixels high each, as PNG."""
    import numpy as np
    from PIL import Image as Picture

    from cygnet.media.video_read import read_video

    frames = read_video(path).frames
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    sheet = Picture.fromarray(np.concatenate([frames[i] for i in chosen], axis=1))
    if sheet.height > 320:
        sheet = sheet.resize((round(sheet.width * 320 / sheet.height), 320), Picture.Resampling.LANCZOS)
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors that cygnet can explain reach the client in their own words."""
    try:
        yield
    except CygnetError as error:
        raise ToolError(str(error)) from error


def _checked(job: str) -> str:
    try:
        return str(uuid.UUID(job))
    except ValueError:
        raise ToolError(f"job_id is {job[:60]!r}; it must be an id that generate returned") from None


def _hint(row: Mapping[str, Any]) -> str:
    error = row.get("execution_error")
    return f": {error['exception_message']}" if error else ""


def _reason(body: Any, code: int) -> str:
    """Why the studio refused, in its own words."""
    found = body.get("error") if isinstance(body, dict) else None
    if not isinstance(found, dict):
        return f"the studio refused ({code}): {found or body}"
    nodes = [
        f"{it.get('class_type', key)}: {one.get('message')}: {one.get('details')}"
        for key, it in (body.get("node_errors") or {}).items()
        for one in it.get("errors", ())
    ]
    return "; ".join([f"the studio refused: {found.get('message')}", *nodes[:5]])
