"""Every array that the official code produced, from weights that went through the official-layout loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cygnet
from cygnet.assembly import ImageEncoder, TextEncoder
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.model import DiT
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import Conditioning, image_condition
from cygnet.pipelines.denoise import Guidance, Sampling, denoise
from support import golden_array, golden_facts, relative_l2, seeded_normal, seeded_weights

LIMIT = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


@pytest.fixture(scope="module")
def vae(folder: Path) -> WanVAE:
    path = folder / "Wan2.1_VAE.pth"
    torch.save(seeded_weights(golden_facts()["vae"]["keys"]), path)
    return cygnet.load_vae(path)


def load_dit(folder: Path, variant: str) -> DiT:
    path = folder / f"{variant}.safetensors"
    save_file(seeded_weights(golden_facts()["dit"][variant]["keys"]), path)
    return cygnet.load_dit(path)


@pytest.fixture(scope="module")
def text_encoder(folder: Path) -> TextEncoder:
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(seeded_weights(golden_facts()["t5"]["keys"]), path)
    return cygnet.load_text_encoder(path)


@pytest.fixture(scope="module")
def image_encoder(folder: Path) -> ImageEncoder:
    path = folder / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    state = seeded_weights(golden_facts()["clip"]["keys"])
    # The published file holds the whole of CLIP.
    whole = {f"visual.{name}": tensor for name, tensor in state.items()}
    torch.save({**whole, "log_scale": torch.zeros(()), "textual.token_embedding.weight": torch.zeros(4, 2)}, path)
    return cygnet.load_image_encoder(path)


def golden_video() -> torch.Tensor:
    return torch.tanh(seeded_normal("vae.video", golden_facts()["vae"]["video_shape"]))


def golden_latents() -> torch.Tensor:
    return seeded_normal("vae.latents", golden_facts()["vae"]["latents_shape"])


@pytest.mark.parametrize("chunk", [1, 3])
def test_vae_encodes_as_the_official_code_does(vae: WanVAE, chunk: int) -> None:
    assert relative_l2(vae.encode(golden_video(), chunk=chunk), golden_array("vae.encode")) < LIMIT


def test_vae_encodes_one_frame_as_the_official_code_does(vae: WanVAE) -> None:
    assert relative_l2(vae.encode(golden_video()[:, :, :1]), golden_array("vae.encode_one_frame")) < LIMIT


@pytest.mark.parametrize("chunk", [1, 3])
def test_vae_decodes_as_the_official_code_does(vae: WanVAE, chunk: int) -> None:
    assert relative_l2(vae.decode(golden_latents(), chunk=chunk), golden_array("vae.decode").clamp(-1, 1)) < LIMIT


def test_vae_decodes_the_same_before_the_clamp(vae: WanVAE) -> None:
    with torch.no_grad():
        frames = vae.reconstruct(vae.denormalise(golden_latents()))
    assert relative_l2(frames, golden_array("vae.decode")) < LIMIT


def test_vae_decodes_one_frame_as_the_official_code_does(vae: WanVAE) -> None:
    expected = golden_array("vae.decode_one_frame").clamp(-1, 1)
    assert relative_l2(vae.decode(golden_latents()[:, :, :1]), expected) < LIMIT


@pytest.mark.parametrize("variant", ["t2v", "i2v", "flf2v"])
def test_the_transformer_predicts_what_the_official_one_does(folder: Path, variant: str) -> None:
    dit = load_dit(folder, variant)
    assert dit.config.variant == variant
    x = seeded_normal(f"dit.{variant}.x", [16, 3, 8, 12])[None]
    context = seeded_normal(f"dit.{variant}.context", [23, 96])[None]
    image_context = image_condition = None
    if variant != "t2v":
        images = 1 if variant == "i2v" else 2
        image_condition = seeded_normal(f"dit.{variant}.y", [20, 3, 8, 12])[None]
        image_context = seeded_normal(f"dit.{variant}.clip", [images, 257, 1280]).reshape(1, -1, 1280)
    for t in (999.0, 437.5, 3.0):
        with torch.no_grad():
            velocity = dit(x, torch.tensor([t]), context, image_context, image_condition)
        assert relative_l2(velocity[0], golden_array(f"dit.{variant}.t{t:g}")) < LIMIT, t


def test_the_text_encoder_agrees_with_the_official_one(text_encoder: TextEncoder) -> None:
    ids, mask = golden_array("t5.ids").long(), golden_array("t5.mask")
    with torch.no_grad():
        padded = text_encoder.model(ids, mask)
        alone = text_encoder.model(ids[:, :141])
        short = text_encoder.model(ids[:, :7])
    assert relative_l2(padded[:, :141], golden_array("t5.out")) < LIMIT
    assert relative_l2(alone, golden_array("t5.out")) < LIMIT
    assert relative_l2(short, golden_array("t5.short")) < LIMIT


def test_the_image_encoder_agrees_with_the_official_one(image_encoder: ImageEncoder) -> None:
    with torch.no_grad():
        tokens = image_encoder.model(seeded_normal("clip.image", [2, 3, 56, 56]))
    assert relative_l2(tokens, golden_array("clip.penultimate")) < LIMIT


def test_pictures_are_prepared_for_clip_as_the_official_code_does() -> None:
    pixels = preprocess(torch.tanh(seeded_normal("clip.photo", [3, 90, 70])))
    pooled = torch.nn.functional.avg_pool2d(pixels, 8)
    assert relative_l2(pooled, golden_array("clip.preprocessed")) < LIMIT


def test_the_image_condition_is_the_official_one(vae: WanVAE) -> None:
    facts = golden_facts()["i2v"]
    photo = torch.tanh(seeded_normal("i2v.photo", facts["photo"]))
    height, width = facts["size"]
    condition = image_condition(vae, photo, num_frames=facts["frames"], width=width, height=height)
    expected = golden_array("i2v.condition")
    assert torch.equal(condition[0, :4], expected[:4])
    assert relative_l2(condition[0], expected) < LIMIT


def test_noise_becomes_the_official_latents_and_the_official_video(folder: Path, vae: WanVAE) -> None:
    facts: dict[str, Any] = golden_facts()["e2e"]
    conditioning = Conditioning(
        context=seeded_normal("e2e.prompt", [9, 96])[None],
        negative_context=seeded_normal("e2e.negative", [31, 96])[None],
    )
    latents = denoise(
        load_dit(folder, "t2v"),
        seeded_normal("e2e.noise", [16, 3, 6, 4])[None],
        conditioning,
        Sampling(solver=facts["solver"], num_steps=facts["steps"], shift=facts["shift"]),
        Guidance(scale=facts["guidance"]),
    )
    assert relative_l2(latents[0], golden_array("e2e.latents")) < LIMIT
    assert relative_l2(vae.decode(latents)[0], golden_array("e2e.video")) < LIMIT
