"""What a user of the page does, each as one call."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cygnet.media.video_read import read_video
from studio_process import Studio

SHOTS = Path(__file__).parents[2] / "out" / "browser"
"""Screenshots of every story, to be looked at."""
ENDED = ("completed", "failed", "cancelled")


def shot(page: Any, name: str) -> None:
    """Keep a picture of what the user sees."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def stock(name: str) -> Path:
    """The file of a published workflow."""
    found = find_spec("comfyui_workflow_templates_json")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "templates" / f"{name}.json"


# The canvas


def has(page: Any, kind: str) -> None:
    """Wait until a node of a kind is on the canvas."""
    page.wait_for_function(f"(window.app?.graph?.nodes ?? []).some(it => it.type === '{kind}')")


def opened(page: Any, url: str, kind: str) -> None:
    """Go to an address and wait until a node of a kind is on the canvas."""
    page.goto(url, wait_until="domcontentloaded")
    has(page, kind)


def load_file(page: Any, path: Path, kind: str) -> None:
    """Open a workflow file, as the menu's Open does, and wait for a node of it."""
    page.locator("input[type=file][accept*='json']").first.set_input_files(path)
    has(page, kind)


def missing(page: Any) -> list[str]:
    """Types of the nodes that nobody here has."""
    found: list[str] = page.evaluate(
        "app.graph.nodes.map(it => it.type).filter(it => !(it in LiteGraph.registered_node_types))"
    )
    return found


def widgets(page: Any, kind: str) -> dict[str, Any]:
    """Names and values of the first node of a kind."""
    found: dict[str, Any] = page.evaluate(
        """kind => Object.fromEntries(
             app.graph.nodes.find(it => it.type === kind).widgets.map(it => [it.name, it.value]))""",
        kind,
    )
    return found


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


def show_all(page: Any, scale: float = 0.6) -> None:
    """Make all nodes visible; those that are not have no elements, nor have any when they are further away."""
    page.evaluate(
        """scale => { app.canvas.deselectAll();
                      const [left, top] = [Math.min(...app.graph.nodes.map(it => it.pos[0])),
                                           Math.min(...app.graph.nodes.map(it => it.pos[1]))];
                      app.canvas.ds.scale = scale;
                      app.canvas.ds.offset = [120 - left, 240 - top];
                      app.canvas.setDirty(true, true); }""",
        scale,
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


def upload(page: Any, kind: str, path: Path) -> None:
    """Choose a file with a node's upload button."""
    with page.expect_response(lambda it: it.url.endswith("/upload/image")) as answer, page.expect_file_chooser() as it:
        page.evaluate(
            "kind => app.graph.nodes.find(it => it.type === kind).widgets.find(it => it.name === 'upload').callback()",
            kind,
        )
        it.value.set_files(path)
    assert answer.value.status == 200
    page.wait_for_function(
        "([kind, name]) => app.graph.nodes.find(it => it.type === kind).widgets.some(it => it.value === name)",
        arg=[kind, path.name],
    )


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


# Jobs


def run(page: Any) -> str:
    """Press Run; the id of the job."""
    with page.expect_response(lambda it: it.url.endswith("/api/prompt") and it.request.method == "POST") as answer:
        page.get_by_test_id("queue-button").click()
    assert answer.value.status == 200, answer.value.text()
    return str(json.loads(answer.value.text())["prompt_id"])


def job(page: Any, job_id: str) -> dict[str, Any]:
    """What the server knows of a job."""
    found: dict[str, Any] = page.evaluate("async id => (await fetch('api/jobs/' + id)).json()", job_id)
    return found


def until(page: Any, job_id: str, *states: str) -> dict[str, Any]:
    """Wait until a job is in one of the states."""
    for _ in range(600):
        if (found := job(page, job_id))["status"] in states:
            return found
        page.wait_for_timeout(300)
    raise AssertionError(f"the job is not {' or '.join(states)}: {found}")


def ended(page: Any, job_id: str) -> dict[str, Any]:
    """Wait for the end of a job."""
    return until(page, job_id, *ENDED)


def until_true(page: Any, what: Callable[[], object], words: str) -> None:
    """Wait until something holds that the page's own scripts cannot tell."""
    for _ in range(200):
        if what():
            return
        page.wait_for_timeout(200)
    raise AssertionError(words)


def result(studio: Studio, found: dict[str, Any]) -> Path:
    """The file that a job is shown by."""
    assert found["status"] == "completed", found
    file = found["preview_output"]
    return studio.base / "output" / file["subfolder"] / file["filename"]


def frames_of(studio: Studio, found: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The pixels of a job's video."""
    return read_video(result(studio, found)).frames


def tiny(page: Any, **sampler: object) -> None:
    """Make the workflow on the canvas one of seconds."""
    for kind in ("EmptyHunyuanLatentVideo", "WanImageToVideo"):
        change(page, kind, width=128, height=128, length=17)
    change(page, "KSampler", **{"steps": 3, "control_after_generate": "fixed"} | sampler)


@contextmanager
def other_site(document: str) -> Iterator[str]:
    """Another site that shows this document; a server, for Chromium keeps made up pages away from this machine."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(document.encode())

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
