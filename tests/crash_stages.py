"""Kill -9 the server, the worker or both at each stage of a job; every acknowledged job must reach exactly one end.

Run with ``scripts/crash``. Each case submits three jobs of the embedded model, kills when the first reaches the stage,
starts the server again where it was killed, and waits for all three. Not collected by pytest: it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from cygnet.media.video_read import read_video
from studio_process import Studio, launched

JOBS = 3
PATIENCE = 240.0
Seen = Callable[[dict[str, Any]], bool]


def _runs(node: str) -> Seen:
    return lambda message: message["type"] == "executing" and message["data"].get("node") == node


def _halfway(message: dict[str, Any]) -> bool:
    return message["type"] == "progress" and message["data"]["node"] == "7" and message["data"]["value"] == 2


STAGES: dict[str, Seen | None] = {
    "acknowledged": None,
    "reading the prompt": _runs("4"),
    "sampling": _halfway,
    "decoding": _runs("9"),
    "saving": _runs("11"),
    "ended": lambda message: message["type"] == "execution_success",
}
"""Stage → the socket message that begins it; None: the answer to the submission itself."""
VICTIMS = ("server", "worker", "both")


def prompt(seed: int) -> dict[str, Any]:
    """A short video of the embedded model."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("UNETLoader", unet_name="cygnet_tiny_t2v.safetensors", weight_dtype="default"),
        "3": node("CLIPLoader", clip_name="cygnet_tiny_umt5.safetensors", type="wan"),
        "4": node("CLIPTextEncode", text=f"a red ball spins, number {seed}", clip=["3", 0]),
        "6": node("EmptyHunyuanLatentVideo", width=64, height=64, length=9, batch_size=1),
        "7": node(
            "KSampler", seed=seed, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            model=["1", 0], positive=["4", 0], negative=["4", 0], latent_image=["6", 0],
        ),
        "8": node("VAELoader", vae_name="cygnet_tiny_vae.safetensors"),
        "9": node("VAEDecode", samples=["7", 0], vae=["8", 0]),
        "10": node("CreateVideo", images=["9", 0], fps=16.0),
        "11": node("SaveVideo", video=["10", 0], filename_prefix=f"s{seed}", format="auto", codec="auto"),
    }  # fmt: skip


def ask(studio: Studio, route: str, body: object = None) -> Any:
    """One request with JSON in and out."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(studio.url + route, data), timeout=60) as answer:
        return json.load(answer)


def kill(studio: Studio, victim: str) -> None:
    """End processes as the kernel does when memory is short."""
    server = psutil.Process(studio.process.pid)
    children = [it for it in server.children() if "spawn_main" in " ".join(it.cmdline())]
    worker = max(children, key=lambda it: it.create_time())  # the catalogue is started before it
    for process in {"server": [server], "worker": [worker], "both": [worker, server]}[victim]:
        os.kill(process.pid, signal.SIGKILL)
    if victim != "worker":
        studio.process.wait()
        psutil.wait_procs(children, timeout=30)


def reach(studio: Studio, stage: str, seeds: list[int]) -> list[str]:
    """Submit the jobs and return their ids once the first of them is at the stage."""
    seen = STAGES[stage]
    with connect(studio.url.replace("http", "ws") + "ws?clientId=crash", max_size=2**24) as socket:
        ids = [ask(studio, "prompt", {"prompt": prompt(seed), "client_id": "crash"})["prompt_id"] for seed in seeds]
        end = time.monotonic() + PATIENCE
        while seen is not None and time.monotonic() < end:
            try:
                text = socket.recv(timeout=PATIENCE)
            except (TimeoutError, ConnectionClosed):
                break
            if isinstance(text, str) and seen(json.loads(text)):
                return ids
    assert seen is None, f"no job reached {stage!r}"
    return ids


def ends(studio: Studio, ids: list[str]) -> list[dict[str, Any]]:
    """The jobs once all have ended."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            jobs = [ask(studio, f"api/jobs/{job}") for job in ids]
        except (URLError, ConnectionError, TimeoutError):
            jobs = []
        if jobs and all(job["status"] in ("completed", "failed", "cancelled") for job in jobs):
            return jobs
        time.sleep(0.2)
    raise AssertionError(f"not all jobs ended: {[job['status'] for job in jobs]}")


def case(base: Path, studio: Studio, stage: str, victim: str, seeds: list[int]) -> Studio:
    """One case; returns the studio that runs afterwards."""
    ids = reach(studio, stage, seeds)
    kill(studio, victim)
    if victim != "worker":
        studio = launched(base)
    jobs = ends(studio, ids)
    assert [job["status"] for job in jobs] == ["completed"] * JOBS, jobs
    for job, seed in zip(jobs, seeds, strict=True):
        file = job["preview_output"]
        path = base / "output" / file["subfolder"] / file["filename"]
        assert read_video(path).frames.shape == (9, 64, 64, 3), path
        whole = list((base / "output").glob(f"s{seed}_*.mp4"))
        # A worker that died after its file appeared and before it said so runs again: one more file, never half of one.
        assert 1 <= len(whole) <= 2, whole
        for it in whole:
            read_video(it)
    return studio


def main() -> None:
    """All cases, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--victim", choices=VICTIMS, action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cygnet-crash-") as folder:
        base = Path(folder)
        studio = launched(base)
        seed = 0
        try:
            for victim in options.victim or VICTIMS:
                for stage in options.stage or STAGES:
                    started = time.monotonic()
                    studio = case(base, studio, stage, victim, list(range(seed, seed + JOBS)))
                    seed += JOBS
                    print(f"{victim} killed when {stage}: {JOBS} jobs completed, {time.monotonic() - started:.0f} s")
            listed = ask(studio, "api/jobs?limit=1000")
            assert listed["pagination"]["total"] == seed, "a job is missing or was made up"
        finally:
            studio.stop()
    print(f"{seed} jobs submitted, {seed} completed, none lost")


if __name__ == "__main__":
    main()
