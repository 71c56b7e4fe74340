"""The formulas against torch's own counter, which watches every kernel of the real networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cygnet.checkpoints import without_weights
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import T2V_1_3B
from cygnet.models.dit.model import DiT, PreparedContext
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import image_condition
from cygnet.pipelines.tiles import TILED_LEVELS, decode_chunks, encode_chunks
from cygnet.runtime import flops
from cygnet.types import Tiles
from random_models import CLIP, VAE, dit_config, text_config


def plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Two matrix products, which the counter knows on every device."""
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", ["t2v", "i2v", "flf2v"])
def test_the_transformer(variant: str) -> None:
    config = dit_config(variant)  # type: ignore[arg-type]
    with without_weights():
        dit = DiT(config, plain_attention)
    rows = 0 if config.image_dim is None else CLIP.num_tokens
    eyes = None if config.image_dim is None else torch.empty(1, rows, config.image_dim, device="meta")
    prepared: list[PreparedContext] = []

    def prepare(text: int) -> None:
        prepared.append(dit.prepare(torch.empty(1, text, config.text_dim, device="meta"), eyes))

    assert counted(lambda: prepare(7)) == flops.total(flops.dit_prepare(config, 8, rows))
    prepare(7)
    latents = torch.empty(1, 16, 3, 4, 6, device="meta")
    beside = torch.empty(1, 20, 3, 4, 6, device="meta") if config.condition_channels else None

    def step(context: PreparedContext) -> object:
        prompts = len(context.blocks[0].k)
        return dit(latents, torch.empty(prompts and 1, device="meta"), context, image_condition=beside)

    assert counted(lambda: step(prepared[0])) == flops.total(flops.dit_step(config, 18, 8, rows))
    both = PreparedContext.joined(prepared)
    assert counted(lambda: step(both)) == flops.total(flops.dit_step(config, 18, 8, rows, prompts=2))


def test_the_encoders_of_text_and_pictures() -> None:
    text = text_config()
    umt5 = UMT5Encoder(text, plain_attention)
    assert counted(lambda: umt5(torch.ones(1, 5, dtype=torch.int64))) == flops.total(flops.umt5(text, 5))
    with without_weights():
        tower = CLIPVision(CLIP, plain_attention)
    side = CLIP.image_size
    assert counted(lambda: tower(torch.empty(2, 3, side, side, device="meta"))) == flops.total(flops.clip(CLIP, 2))


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> WanVAE:
    monkeypatch.setattr("cygnet.models.vae.layers.sdpa", plain_attention)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)  # whose kernel the counter does not know
    return WanVAE(VAE).eval()


@pytest.mark.parametrize(("frames", "chunk"), [(1, 1), (6, 1), (6, 2), (6, 4)])
def test_decoding(vae: WanVAE, frames: int, chunk: int) -> None:
    latents = torch.zeros(1, 16, frames, 2, 3)
    assert counted(lambda: vae.decode(latents, chunk=chunk)) == flops.total(flops.vae_decode(VAE, frames, 2, 3, chunk))


@pytest.mark.parametrize("last", [False, True])
def test_encoding_moving_pictures_and_one_picture_before_grey(vae: WanVAE, last: bool) -> None:
    moving = torch.rand(1, 3, 21, 16, 16)
    assert counted(lambda: vae.encode(moving)) == flops.total(flops.vae_encode(VAE, 6, 2, 2))
    picture = torch.rand(3, 16, 16)

    def condition() -> None:
        image_condition(
            vae, picture, num_frames=61, width=16, height=16, last_image=torch.rand(3, 16, 16) if last else None
        )

    formula = flops.vae_encode(VAE, 16, 2, 2, windows=vae.encoder.windows, last=last)
    assert counted(condition) == flops.total(formula)
    assert flops.total(formula) < 0.5 * flops.total(flops.vae_encode(VAE, 16, 2, 2))


def test_tiles(vae: WanVAE) -> None:
    """Eight rows of ten cells in two tiles: the first sees all columns, and the other three beside its own two."""
    tiles, tiled = Tiles(width=64, height=64), flops.Tiled(TILED_LEVELS, (10 + 5) / 10)
    latents, video = torch.zeros(1, 16, 3, 8, 10), torch.rand(1, 3, 9, 64, 80)
    decoding = flops.vae_decode(VAE, 3, 8, 10, tiled=tiled)
    assert counted(lambda: list(decode_chunks(vae, latents, tiles=tiles))) == pytest.approx(flops.total(decoding))
    pieces = [video[:, :, :1], *video[:, :, 1:].split(4, dim=2)]
    encoding = flops.vae_encode(VAE, 3, 8, 10, tiled=tiled)
    assert counted(lambda: list(encode_chunks(vae, pieces, tiles=tiles))) == pytest.approx(flops.total(encoding))
    grey = [video[:, :, :1], *[torch.zeros(1, 3, 4, 64, 80)] * 9]
    formula = flops.vae_encode(VAE, 10, 8, 10, windows=vae.encoder.windows, tiled=tiled)
    assert counted(lambda: list(encode_chunks(vae, grey, tiles=tiles))) == pytest.approx(flops.total(formula))


def test_the_published_sizes() -> None:
    """The figures of the roofline: TFLOP of a 1.3B evaluation and of decoding, at 832x480 and 81 frames."""
    assert flops.total(flops.dit_step(T2V_1_3B, 32_760, 512)) == pytest.approx(283.0e12, rel=0.005)
    assert flops.total(flops.vae_decode(WAN_VAE, 21, 60, 104)) == pytest.approx(275.4e12, rel=0.02)
