"""The weights that ship with the package are what the recipe's page says they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recipes.tiny.checker import judge, judge_motion_only
from recipes.tiny.colours import fit, nearness, samples
from recipes.tiny.evaluate import measure_vae
from recipes.tiny.latents import clip, to_video

import cygnet
from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.media.image import load_image
from cygnet.media.quality import psnr
from cygnet.models.umt5.config import TINY_UMT5
from cygnet.models.vae.config import TINY_VAE, WAN_LATENTS_MEAN
from cygnet.models.vae.model import WanVAE
from cygnet.nodes.previews import TINY, WAN

PICTURE = Path(__file__).parents[2] / "docs" / "assets" / "first-frame.png"


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return cygnet.load_vae(EMBEDDED / "vae.safetensors").channels_last()


def test_the_embedded_vae_is_a_wan_vae_with_the_published_statistics(vae: WanVAE) -> None:
    assert vae.config == TINY_VAE
    assert vae.config.latents_mean == WAN_LATENTS_MEAN
    latents = torch.cat([vae.encode(to_video(clip(2 * 10**6 + i)[1]), chunk=4) for i in range(4)])
    rows = latents.transpose(0, 1).flatten(1)
    assert float(rows.mean(dim=1).abs().max()) < 0.6
    assert 0.6 < float(rows.std(dim=1).min()) <= float(rows.std(dim=1).max()) < 1.6


def test_the_embedded_vae_reaches_32_db(vae: WanVAE) -> None:
    assert measure_vae(vae, 4) > 32


def test_previews_have_the_colours_of_the_embedded_vae(vae: WanVAE) -> None:
    seen = samples(vae, range(2 * 10**6, 2 * 10**6 + 2))
    assert nearness(TINY, *seen) > 20
    assert nearness(WAN, *seen) < 15, "those of the published model are other ones"


def test_the_recipe_of_colours_finds_what_is_linear() -> None:
    latents = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    found = fit(latents, latents @ WAN.weights + WAN.bias)
    torch.testing.assert_close((found.weights, found.bias), (WAN.weights, WAN.bias), rtol=0, atol=1e-5)


def test_all_embedded_weights_stay_within_64_mb() -> None:
    files = list(Path(EMBEDDED).glob("*"))
    assert files
    assert sum(file.stat().st_size for file in files) <= 64 * 10**6


def test_the_embedded_text_encoder_carries_its_own_vocabulary_and_tells_motions_apart() -> None:
    text = cygnet.load_text_encoder(EMBEDDED / "text_encoder.safetensors")
    assert text.tokenizer is not None
    assert text.tokenizer.kind == "sentencepiece"
    rows = text.encode("a red ball moves right on a black background")
    assert rows.shape[1] == TINY_UMT5.dim
    assert rows.shape[0] < 20, "common words are single pieces"
    other = text.encode("a red ball moves left on a black background")
    # The words before the motion are the same; their rows differ, for they carry how the thing moves.
    assert float((rows[:7] - other[:7]).norm() / rows[:7].norm()) > 0.1


def test_the_embedded_text_to_video_model_shows_what_the_prompt_says() -> None:
    video = cygnet.load("tiny-t2v").generate("a red ball moves right on a black background", seed=1)
    verdict = judge(video.frames, [("red", "ball", "moves right")], "black")
    assert verdict.right, verdict


def test_the_embedded_image_to_video_model_moves_the_given_picture() -> None:
    given = load_image(PICTURE).pixels
    video = cygnet.load("tiny-i2v").generate("a yellow star spins on a navy background", image=PICTURE, seed=1)
    assert psnr(video.frames[0], given) > 28
    assert judge_motion_only(video.frames, [("yellow", "star", "spins")])
