"""The published Wan 2.1 workflows run, from the files as they are published, with tiny networks under the stock names.

Only sizes, lengths and step counts are made small. Where the template package is not installed they are skipped.
"""

from __future__ import annotations

import functools
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cygnet.checkpoints import save_official
from cygnet.cli.main import run
from cygnet.graph.contract import describe_all
from cygnet.graph.convert import to_prompt
from cygnet.graph.events import Event, NodeFailed, NodeFinished
from cygnet.graph.execute import Executor, Job
from cygnet.graph.folders import Folders
from cygnet.graph.validate import validate
from cygnet.media.video import open_writer
from cygnet.media.video_read import read_metadata, read_video
from cygnet.models.dit.config import Variant
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.workshop import Workshop
from random_models import CLIP, VAE, dit_config, spiece, state_of, text_config

TIER_A: dict[str, Variant] = {
    "text_to_video_wan": "t2v",
    "image_to_video_wan": "i2v",
    "wan2.1_flf2v_720_f16": "flf2v",
    "wan2.1_fun_control": "control",
    "wan2.1_fun_inp": "i2v",
    "video_wan2.1_fun_camera_v1.1_1.3B": "camera",
    "video_wan2.1_fun_camera_v1.1_14B": "camera",
    "video_wan_vace_14B_t2v": "vace",
    "video_wan_vace_14B_ref2v": "vace",
    "video_wan_vace_14B_v2v": "vace",
    "video_wan_vace_outpainting": "vace",
    "video_wan_vace_flf2v": "vace",
    "video_wan_ati": "i2v",
    "video_wanmove_480p": "i2v",
    "video_wan2.1_alpha_t2v_14B": "t2v",
}
"""Workflow and the kind of transformer that it needs; the last of VACE and Wan-Move are of tier B."""
MISSING = {
    "video_wan_vace_inpainting": {"CheckpointLoaderSimple", "SAM3_Detect"},
    "video_wan2_1_infinitetalk": {"AudioEncoderLoader", "WanInfiniteTalkToVideo"},
    "video_wan21_scail2_character_replacement": {"SAM3_VideoTrack", "WanSCAILToVideo"},
    "video_wan21_scail2_character_replacement_int8": {"SAM3_VideoTrack", "WanSCAILToVideo"},
    "video_causal_forcing_i2v": {"ARVideoI2V", "SamplerARVideo"},
    "image_chrono_edit_14B": {"ScaleROPE"},
    "video_humo": {"AudioEncoderLoader", "WanHuMoImageToVideo"},
}
"""The other published workflows, and node types that they need and we have not."""
WIDTH, HEIGHT, FRAMES = 64, 32, 5
SMALL = {
    "width": WIDTH,
    "height": HEIGHT,
    "length": FRAMES,
    "steps": 2,
    "left": 16,
    "right": 16,
    "amount": 1,
    "num_frames": FRAMES,
}
COMBOS = {
    "UNETLoader": ("diffusion_models", "unet_name"),
    "CLIPLoader": ("text_encoders", "clip_name"),
    "VAELoader": ("vae", "vae_name"),
    "CLIPVisionLoader": ("clip_vision", "clip_name"),
    "LoraLoader": ("loras", "lora_name"),
    "LoraLoaderModelOnly": ("loras", "lora_name"),
}


def templates() -> Path | None:
    found = find_spec("comfyui_workflow_templates_json")
    return None if found is None or found.origin is None else Path(found.origin).parent / "templates"


@functools.cache
def stored(kind: str, variant: Variant) -> bytes:
    """A weight file of the kind, as bytes."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        if kind == "loras":
            module = "diffusion_model.blocks.0.self_attn.q"
            save_file(
                {f"{module}.lora_A.weight": torch.ones(2, 128), f"{module}.lora_B.weight": torch.ones(128, 2)}, path
            )
        else:
            config: Any = {"text_encoders": text_config(), "vae": VAE, "clip_vision": CLIP}.get(kind)
            config = config or dit_config(variant)
            save_official(path, state_of(config), config, tokenizer=spiece() if kind == "text_encoders" else None)
        return path.read_bytes()


def prepared(tmp_path: Path, prompt: dict[str, Any], variant: Variant) -> Workshop:
    """A workshop that has every file that the prompt names."""
    folders = Folders.below(tmp_path)
    roots = {kind: (tmp_path / "models" / kind,) for kind, _ in COMBOS.values()}
    folders.input.mkdir(parents=True)
    for it in prompt.values():
        kind, inputs = it["class_type"], it["inputs"]
        if kind in COMBOS:
            folder, name = COMBOS[kind]
            path = roots[folder][0] / inputs[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stored(folder, variant))
        elif kind == "LoadImage":
            pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(folders.input / inputs["image"])
        elif kind == "LoadVideo":
            clip = np.random.default_rng(1).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
            with open_writer(tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, fps=16, overwrite=True) as writer:
                writer.write(clip)
            shutil.copy(tmp_path / "clip.mp4", folders.input / inputs["file"])
    return Workshop(folders, models=roots)


def made_small(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with every size, length and step count replaced, linked ones too."""
    for it in prompt.values():
        for name in it["inputs"]:
            if name in SMALL and it["class_type"] != "ImageScale":
                it["inputs"][name] = SMALL[name]
    return prompt


def workflow_of(name: str) -> Any:
    root = templates()
    if root is None:
        pytest.skip("the package comfyui-workflow-templates-json is not installed")
    return json.loads((root / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["text_to_video_wan", "image_to_video_wan", "video_wan_vace_14B_t2v"])
def test_a_published_file_runs_from_the_command_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file itself, in the stock folders under a base directory; sizes and steps are set by the command."""
    monkeypatch.setenv("CYGNET_HOME", str(tmp_path / "home"))
    workflow = workflow_of(name)
    kinds = describe_all(node_classes(Workshop(Folders.below(tmp_path / "none"))), lambda name, error: None)
    prompt = to_prompt(workflow, kinds)
    prepared(tmp_path, prompt, TIER_A[name])
    changes = [
        f"--set={key}.{field}={SMALL[field]}"
        for key, it in prompt.items()
        for field, value in it["inputs"].items()
        if field in SMALL and not isinstance(value, list)
    ]
    (tmp_path / "published.json").write_text(json.dumps(workflow))
    code = run(
        ["run", str(tmp_path / "published.json"), "--base-directory", str(tmp_path), "--device", "cpu", *changes]
    )
    told = capsys.readouterr()
    assert code == 0, told.err
    path = Path(told.out.strip())
    assert read_video(path).frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert json.loads(read_metadata(path)["workflow"]) == workflow


@pytest.mark.parametrize("name", MISSING)
def test_what_a_published_workflow_lacks_here_is_named(tmp_path: Path, name: str) -> None:
    classes = node_classes(Workshop(Folders.below(tmp_path)))
    prompt = to_prompt(workflow_of(name), describe_all(classes, lambda name, error: None))
    missing = {it["class_type"] for it in prompt.values()} - set(classes)
    assert missing >= MISSING[name]
    error = validate(prompt, classes).error
    assert error is not None
    assert error.type == "missing_node_type"
    assert error.extra_info["class_type"] in missing
    assert prompt[error.extra_info["node_id"]]["class_type"] == error.extra_info["class_type"]


@pytest.mark.parametrize("name", TIER_A)
def test_a_published_workflow_makes_its_video(tmp_path: Path, name: str) -> None:
    workflow = workflow_of(name)
    kinds = describe_all(node_classes(Workshop(Folders.below(tmp_path / "none"))), lambda name, error: None)
    prompt = made_small(to_prompt(workflow, kinds))
    shop = prepared(tmp_path, prompt, TIER_A[name])
    classes = node_classes(shop)
    verdict = validate(prompt, classes)
    assert verdict.error is None, (verdict.error, verdict.nodes)
    assert not verdict.nodes, verdict.nodes
    events: list[Event] = []
    job = Job(prompt=verdict.prompt, outputs=verdict.outputs, extra={"extra_pnginfo": {"workflow": workflow}})
    Executor(classes).run(job, events.append)
    assert not [it for it in events if isinstance(it, NodeFailed)], events
    files = [
        shop.folders.output / image["subfolder"] / image["filename"]
        for it in events
        if isinstance(it, NodeFinished) and it.ui
        for image in it.ui.get("images", [])
        if image["type"] == "output"
    ]
    videos = [path for path in files if path.suffix in (".mp4", ".webp", ".webm")]
    assert videos, files
    for path in videos:
        made = read_video(path)
        assert (made.frames.shape, made.fps) == ((FRAMES, HEIGHT, WIDTH, 3), 16)
        with_alpha = path.suffix == ".webp" and Image.open(path).mode == "RGBA"
        assert with_alpha == (name == "video_wan2.1_alpha_t2v_14B")
