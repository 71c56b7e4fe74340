"""A pipeline that cygnet saves gives the same latents in Diffusers as in cygnet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cygnet
from cygnet.api import Wan
from cygnet.pipelines.conditioning import encode_images, image_condition
from cygnet.solvers import sample
from random_models import write_model
from support import relative_l2

pytestmark = pytest.mark.oracle

PROMPT, NEGATIVE = "a red ball moves right", "a blue star"
STEPS, GUIDANCE, SIDE, FRAMES = 4, 4.0, 32, 5


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], tuple[Wan, Any]]:
    diffusers: Any = pytest.importorskip("diffusers")

    def open_both(variant: str) -> tuple[Wan, Any]:
        (tmp_path / "ours").mkdir()
        wan = cygnet.load(write_model(tmp_path / "ours", variant), dtype="float32")  # type: ignore[arg-type]
        saved = wan.save_pretrained(tmp_path / "saved", layout="diffusers")
        kind = diffusers.WanPipeline if variant == "t2v" else diffusers.WanImageToVideoPipeline
        return wan, kind.from_pretrained(saved)

    return open_both


def noise() -> torch.Tensor:
    return torch.randn(1, 16, 2, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def our_latents(
    wan: Wan, pipeline: Any, image: torch.Tensor | None = None, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Sampling on the levels and timesteps of Diffusers' scheduler, which differ a little from the official ones."""
    parts = wan.model.components
    condition = None
    if image is not None:
        with parts.use_vae() as vae:
            condition = image_condition(vae, image, num_frames=FRAMES, width=SIDE, height=SIDE)
    with parts.use_text_encoder() as encoder:
        rows = [encoder(torch.tensor([parts.tokenizer.encode(text)])) for text in (PROMPT, NEGATIVE)]
    pipeline.scheduler.set_timesteps(STEPS)
    times: Iterator[torch.Tensor] = iter(pipeline.scheduler.timesteps.float())
    with parts.use_dit() as dit:
        prompt, negative = (dit.prepare(each, tokens) for each in rows)

        def velocity(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            t = next(times).view(1)
            wanted = dit(x, t, prompt, image_condition=condition)
            unwanted = dit(x, t, negative, image_condition=condition)
            return unwanted + GUIDANCE * (wanted - unwanted)

        return sample(velocity, noise(), "unipc", sigmas=pipeline.scheduler.sigmas.tolist())


def test_text_to_video_samples_the_same_latents(opened: Callable[[str], tuple[Wan, Any]]) -> None:
    wan, pipeline = opened("t2v")
    theirs = pipeline(
        PROMPT, NEGATIVE, height=SIDE, width=SIDE, num_frames=FRAMES, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=noise(), output_type="latent", max_sequence_length=512,
    ).frames  # fmt: skip
    assert relative_l2(our_latents(wan, pipeline), theirs) < 1e-3


def test_image_to_video_samples_the_same_latents(opened: Callable[[str], tuple[Wan, Any]]) -> None:
    from PIL import Image

    wan, pipeline = opened("i2v")
    pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    image = pixels.permute(2, 0, 1).float() / 127.5 - 1
    with wan.model.components.use_image_encoder() as eye, torch.no_grad():
        tokens = encode_images(eye, (image,))
    # Given to both, for Diffusers prepares pictures for CLIP in its own way.
    pipeline.encode_image = lambda *_: tokens
    theirs = pipeline(
        Image.fromarray(pixels.numpy()), PROMPT, NEGATIVE, height=SIDE, width=SIDE, num_frames=FRAMES,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise(),
        output_type="latent", max_sequence_length=512,
    ).frames  # fmt: skip
    assert relative_l2(our_latents(wan, pipeline, image, tokens), theirs) < 1e-3
