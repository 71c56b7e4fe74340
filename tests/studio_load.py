"""The studio under load: a thousand submissions while a job runs, a full queue, a soak, and what the server costs.

Run with ``scripts/load``; names of parts may follow. Not collected by pytest: all together take about ten minutes.

- ``submit``: 1,000 submissions while a job runs; all must be accepted within 10 seconds.
- ``queue``: 500 jobs of many clients; each must reach exactly one end, completed, with its own result.
- ``soak``: 50 videos of the embedded model; memory and handles of every process after 10 and after 50.
- ``overhead``: one video by the studio and by the library in this process, in turn; the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from websockets.sync.client import ClientConnection, connect

from crash_stages import ask
from studio_process import Studio, launched

PATIENCE = 900.0
GROWTH = 1.1
"""A process of the soak may take this many times the memory that it had after ten jobs."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def text(number: int) -> dict[str, Any]:
    """A job that takes no time and tells its number."""
    return {"1": node("PrimitiveString", value=f"job {number}"), "2": node("PreviewAny", source=["1", 0])}


def video(seed: int, steps: int = 20) -> dict[str, Any]:
    """What ``cygnet generate`` makes by default."""
    return {
        "1": node("UNETLoader", unet_name="cygnet_tiny_t2v.safetensors", weight_dtype="default"),
        "2": node("CLIPLoader", clip_name="cygnet_tiny_umt5.safetensors", type="wan"),
        "3": node("VAELoader", vae_name="cygnet_tiny_vae.safetensors"),
        "4": node("CLIPTextEncode", text=PROMPT, clip=["2", 0]),
        "5": node("CLIPTextEncode", text="", clip=["2", 0]),
        "6": node("ModelSamplingSD3", model=["1", 0], shift=3.0),
        "7": node("EmptyHunyuanLatentVideo", width=128, height=128, length=17, batch_size=1),
        "8": node(
            "KSampler", model=["6", 0], positive=["4", 0], negative=["5", 0], latent_image=["7", 0], seed=seed,
            steps=steps, cfg=4.0, sampler_name="uni_pc", scheduler="simple", denoise=1.0,
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=["3", 0]),
        "10": node("CreateVideo", images=["9", 0], fps=16.0),
        "11": node("SaveVideo", video=["10", 0], filename_prefix="load", format="auto", codec="auto"),
    }  # fmt: skip


PROMPT = "a red ball moves right on a black background"


def submitted(studio: Studio, prompts: Iterable[dict[str, Any]], client: str = "load") -> list[str]:
    """Ids of the jobs, submitted one after another over one connection."""
    connection = HTTPConnection(urlsplit(studio.url).netloc, timeout=60)
    ids = []
    for prompt in prompts:
        connection.request("POST", "/prompt", json.dumps({"prompt": prompt, "client_id": client}))
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == 200, body
        ids.append(body["prompt_id"])
    connection.close()
    return ids


def ended(studio: Studio, ids: list[str], every: float = 0.05) -> list[dict[str, Any]]:
    """The jobs, in the order given, once all have ended."""
    until = time.monotonic() + PATIENCE
    for job in ids:
        while (found := ask(studio, f"api/jobs/{job}"))["status"] not in ("completed", "failed", "cancelled"):
            assert time.monotonic() < until, f"job {job} is still {found['status']}"
            time.sleep(every)
    return [ask(studio, f"api/jobs/{job}") for job in ids]


def submit(studio: Studio) -> None:
    (running,) = submitted(studio, [video(1, steps=990)])
    while ask(studio, f"api/jobs/{running}")["status"] != "in_progress":
        time.sleep(0.05)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        parts = [[text(4 * i + part) for i in range(250)] for part in range(4)]
        ids = [job for some in pool.map(lambda it: submitted(studio, it), parts) for job in some]
    seconds = time.monotonic() - started
    assert ask(studio, f"api/jobs/{running}")["status"] == "in_progress", "the job did not run all the while"
    assert len(set(ids)) == 1000
    ask(studio, f"api/jobs/{running}/cancel", {})
    jobs = ended(studio, ids)
    assert {job["status"] for job in jobs} == {"completed"}
    print(f"submit: 1,000 submissions accepted in {seconds:.1f} s while a job ran; all 1,000 completed", flush=True)
    assert seconds < 10


def queue(studio: Studio) -> None:
    before = ask(studio, "api/jobs?limit=1")["pagination"]["total"]
    started = time.monotonic()
    ids = [job for part in range(10) for job in submitted(studio, [text(50 * part + i) for i in range(50)], f"c{part}")]
    jobs = ended(studio, ids)
    assert [job["outputs"]["2"]["text"] for job in jobs] == [[f"job {i}"] for i in range(500)]
    assert {job["status"] for job in jobs} == {"completed"}
    assert ask(studio, "api/jobs?limit=1")["pagination"]["total"] == before + 500
    print(f"queue: 500 jobs of ten clients, 500 completed with their own results, {time.monotonic() - started:.0f} s")


def weights(studio: Studio) -> dict[str, tuple[float, int]]:
    """Memory in MB and open handles of the server and its processes."""
    server = psutil.Process(studio.process.pid)
    children = sorted(server.children(), key=lambda it: it.create_time())
    named = {"server": server, **{f"child {i}": it for i, it in enumerate(children)}}
    return {name: (it.memory_info().rss / 2**20, it.num_fds()) for name, it in named.items()}


def soak(studio: Studio) -> None:
    ended(studio, submitted(studio, (video(100 + i) for i in range(10))))
    early = weights(studio)
    ended(studio, submitted(studio, (video(200 + i) for i in range(40))))
    late = weights(studio)
    for name, (memory, handles) in late.items():
        old_memory, old_handles = early[name]
        told = f"{old_memory:.0f} -> {memory:.0f} MB, {old_handles} -> {handles} handles"
        print(f"soak: after 10 and 50 videos the {name} takes {told}", flush=True)
        assert memory < GROWTH * old_memory + 20, "memory grows"
        assert handles <= old_handles + 2, "handles grow"


def seen_to_its_end(studio: Studio, socket: ClientConnection, prompt: dict[str, Any], client: str) -> None:
    """Submit as the page does, and hear of the job on the socket until it is over."""
    (job,) = submitted(studio, [prompt], client)
    while True:
        message = socket.recv()
        said = json.loads(message) if isinstance(message, str) else {"type": "preview"}
        if said["type"] == "executing" and (said["data"]["node"], said["data"]["prompt_id"]) == (None, job):
            return


def overhead(studio: Studio) -> None:
    import cygnet

    wan = cygnet.load("tiny-t2v")
    served, direct = [], []

    def timed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    address = f"ws://{urlsplit(studio.url).netloc}/ws?clientId=overhead"
    with tempfile.TemporaryDirectory() as folder, connect(address, max_size=None) as socket:
        for turn in range(12):
            served.append(timed(lambda turn=turn: seen_to_its_end(studio, socket, video(900 + turn), "overhead")))
            path = Path(folder) / f"{turn}.mp4"
            direct.append(timed(lambda turn=turn, path=path: wan.generate(PROMPT, seed=900 + turn).save(path)))
    mine, theirs = statistics.median(served[2:]), statistics.median(direct[2:])
    print(
        f"overhead: a video takes {mine:.2f} s from the studio and {theirs:.2f} s from the library, "
        f"ratio {mine / theirs:.3f} (medians of ten in turn)"
    )


PARTS: dict[str, Callable[[Studio], None]] = {"submit": submit, "queue": queue, "soak": soak, "overhead": overhead}


def main() -> None:
    """All parts, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}; there are: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="cygnet-load-") as folder:
        for name in options.parts or PARTS:
            studio = launched(Path(folder) / name)
            try:
                PARTS[name](studio)
            finally:
                studio.stop()


if __name__ == "__main__":
    main()
