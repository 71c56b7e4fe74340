"""Every kind of result plays on its node, and dropped on the canvas brings back the workflow that made it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.browser.steps import drop, ended, has, opened, run, shot, until_true

from studio_process import Studio

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

TEXT = 'a "red" ball {moves} \\ right } on 黒 Ünï {{ background'
PROMPT = {
    "1": ("UNETLoader", {"unet_name": "cygnet_tiny_t2v.safetensors", "weight_dtype": "default"}),
    "2": ("CLIPLoader", {"clip_name": "cygnet_tiny_umt5.safetensors", "type": "wan"}),
    "3": ("VAELoader", {"vae_name": "cygnet_tiny_vae.safetensors"}),
    "4": ("CLIPTextEncode", {"text": "a red ball", "clip": ["2", 0]}),
    "5": ("CLIPTextEncode", {"text": "", "clip": ["2", 0]}),
    "6": ("EmptyHunyuanLatentVideo", {"width": 128, "height": 128, "length": 17, "batch_size": 1}),
    "7": (
        "KSampler",
        {
            "model": ["1", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 1,
            "steps": 2, "cfg": 1.0, "sampler_name": "uni_pc", "scheduler": "simple", "denoise": 1.0,
        },
    ),
    "8": ("VAEDecode", {"samples": ["7", 0], "vae": ["3", 0]}),
    "9": ("CreateVideo", {"images": ["8", 0], "fps": 8.0}),
    "10": ("SaveVideo", {"video": ["9", 0], "filename_prefix": "kinds/mp4", "format": "auto", "codec": "auto"}),
    "11": ("SaveWEBM", {"images": ["8", 0], "filename_prefix": "kinds/webm", "codec": "vp9", "fps": 8.0, "crf": 32.0}),
    "12": (
        "SaveAnimatedWEBP",
        {
            "images": ["8", 0], "filename_prefix": "kinds/webp", "fps": 8.0, "lossless": False, "quality": 80,
            "method": "default",
        },
    ),
    "13": ("ImageFromBatch", {"image": ["8", 0], "batch_index": 0, "length": 1}),
    "14": ("SaveImage", {"images": ["13", 0], "filename_prefix": "kinds/png"}),
}  # fmt: skip
KINDS = {"mp4": "video/mp4", "webm": "video/webm", "webp": "image/webp", "png": "image/png"}
GRAPH = """() => { const it = app.graph.serialize();
                   return [it.nodes.map(it => [it.id, it.type, it.title, it.mode, it.widgets_values]), it.links]; }"""
SEEK = """async video => { const heard = new Promise(done => video.addEventListener('seeked', done, {once: true}));
                          video.currentTime = video.duration * 0.7;
                          await heard;
                          const error = video.error?.message ?? null;
                          return [video.videoWidth, video.duration, video.currentTime, error]; }"""


def test_a_dropped_prompt_runs_and_its_results_play_and_bring_it_back(page: Any, studio: Studio) -> None:
    opened(page, studio.url + "?template=tiny_image_to_video", "LoadImage")
    page.evaluate("app.graph.clear()")
    api = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in PROMPT.items()}
    (studio.base / "prompt.json").write_text(json.dumps(api))
    drop(page, studio.base / "prompt.json", "application/json")
    has(page, "SaveWEBM")
    assert page.evaluate("app.graph.nodes.length") == len(PROMPT)
    page.evaluate("app.graph.nodes.find(it => it.id == 4).title = 'The text'")
    page.evaluate("app.graph.nodes.find(it => it.id == 4).widgets[0].value = '...'")
    page.evaluate("text => { app.graph.nodes.find(it => it.id == 4).widgets[0].value = text; }", TEXT)
    before = page.evaluate(GRAPH)
    assert ended(page, run(page))["status"] == "completed"
    page.wait_for_function(
        """[10, 11, 12, 14].map(id => app.graph.getNodeById(id))
             .every(it => it.imgs?.length || it.videoContainer?.querySelector('video'))"""
    )
    shot(page, "outputs-1-all-kinds")
    seek(page)
    folder = studio.base / "output" / "kinds"
    for kind, media_type in KINDS.items():
        (file,) = folder.glob(f"{kind}_*")
        page.evaluate("app.graph.clear()")
        drop(page, file, media_type)
        has(page, "SaveWEBM")
        until_true(page, lambda: page.evaluate(GRAPH) == before, f"{kind} brings back another graph")


def seek(page: Any) -> None:
    """Both videos play, and go to another place: parts of files are served."""
    for suffix in ("mp4", "webm"):
        ranges: list[str] = []
        page.on("response", lambda it, ranges=ranges: it.status == 206 and ranges.append(it.url))
        handle = page.wait_for_function(
            f"[...document.querySelectorAll('video')].find(it => it.src.includes('.{suffix}') && it.readyState >= 1)"
        )
        width, duration, at, error = page.evaluate(SEEK, handle.as_element())
        assert (width, error) == (128, None), suffix
        assert at == pytest.approx(duration * 0.7, abs=0.2)
        handle.as_element().evaluate("it => it.play()")
        page.wait_for_function("it => !it.paused && it.currentTime > 0", arg=handle)
