"""What is compared: each case builds both sides from the same weights and gives them the same inputs.

The sides are what a user of each library runs, at its defaults; ``tuned`` is the peer with what its documentation
offers for speed on a processor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

import cygnet
from benchmarks.measure import Work
from benchmarks.seeded import seeded
from cygnet.checkpoints.detect import ComponentConfig
from cygnet.checkpoints.saving import save_diffusers_component
from cygnet.models.dit.config import T2V_1_3B
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5_XXL
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import image_condition
from cygnet.runtime.convolution import fit_processor
from cygnet.runtime.execution import DEFAULT
from cygnet.runtime.products import use_onednn

PROMPT_TOKENS = 30


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The work of each side; all return the same values within ``tolerance`` (relative L2)."""

    ours: Work
    peer: Work
    tuned: Work | None = None
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison; ``target`` is how many times faster than the peer's default we mean to be."""

    name: str
    title: str
    target: float
    build: Callable[[], Sides]
    rounds: int = 5


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _opened(kind: Callable[..., Any], module: torch.nn.Module, config: ComponentConfig, dtype: torch.dtype) -> Any:
    """The peer's network, opened from a folder that our exporter wrote."""
    with tempfile.TemporaryDirectory() as folder:
        save_diffusers_component(Path(folder) / "it", module.state_dict(), config)
        return kind(Path(folder) / "it", torch_dtype=dtype).eval()


def _channels_last(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _vaes(dtype: torch.dtype) -> tuple[WanVAE, Any, Any]:
    import diffusers

    ours = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32))
    peer, tuned = (_opened(diffusers.AutoencoderKLWan.from_pretrained, ours, WAN_VAE, dtype) for _ in range(2))
    _channels_last(tuned)
    return fit_processor(ours.to(dtype).channels_last()), peer, tuned


def vae_decode(dtype: torch.dtype) -> Sides:
    """17 frames of 256x256 from latents."""
    ours, peer, tuned = _vaes(dtype)
    latents = _noise(1, 16, 5, 32, 32)
    raw = ours.denormalise(latents).to(dtype)
    return Sides(
        ours=lambda: ours.decode(latents, chunk=4),
        peer=lambda: peer.decode(raw).sample.float(),
        tuned=lambda: tuned.decode(raw.contiguous(memory_format=torch.channels_last_3d)).sample.float(),
        tolerance=1e-4 if dtype == torch.float32 else 5e-2,
    )


def vae_encode(dtype: torch.dtype) -> Sides:
    """17 moving frames of 256x256 to latents."""
    ours, peer, tuned = _vaes(dtype)
    video = _noise(1, 3, 17, 256, 256).clamp(-1, 1)
    return Sides(
        ours=lambda: ours.denormalise(ours.encode(video, chunk=4)),
        peer=lambda: peer.encode(video.to(dtype)).latent_dist.mode().float(),
        tuned=lambda: tuned.encode(video.to(dtype, memory_format=torch.channels_last_3d)).latent_dist.mode().float(),
        tolerance=1e-4 if dtype == torch.float32 else 5e-2,
    )


def i2v_condition(dtype: torch.dtype) -> Sides:
    """One picture of 128x128 and 80 grey frames, as image-to-video encodes them."""
    ours, peer, tuned = _vaes(dtype)
    picture = _noise(3, 128, 128).clamp(-1, 1)
    video = torch.zeros(1, 3, 81, 128, 128)
    video[0, :, 0] = picture
    return Sides(
        ours=lambda: ours.denormalise(image_condition(ours, picture, num_frames=81, width=128, height=128)[:, 4:]),
        peer=lambda: peer.encode(video.to(dtype)).latent_dist.mode().float(),
        tuned=lambda: tuned.encode(video.to(dtype, memory_format=torch.channels_last_3d)).latent_dist.mode().float(),
        tolerance=1e-4 if dtype == torch.float32 else 5e-2,
    )


def transformer(dtype: torch.dtype) -> Sides:
    """One evaluation of the 1.3B transformer as it runs in the steps: 1,280 tokens, a prompt of 30."""
    import diffusers

    dit = cast(DiT, seeded(DiT, T2V_1_3B, dtype))
    use_onednn(dit)
    DEFAULT.apply(dit, torch.device("cpu"), T2V_1_3B.dim // T2V_1_3B.num_heads, ("blocks",))
    load = diffusers.WanTransformer3DModel.from_pretrained
    peer = _opened(load, dit, T2V_1_3B, dtype)
    latents, timestep = _noise(1, 16, 5, 32, 32), torch.tensor([700.0])
    context = _noise(1, PROMPT_TOKENS, 4096)
    padded = torch.cat((context, context.new_zeros(1, 512 - PROMPT_TOKENS, 4096)), dim=1).to(dtype)
    prepared = dit.prepare(context)

    def ask(model: Any) -> torch.Tensor:
        out: torch.Tensor = model(latents.to(dtype), timestep, padded, return_dict=False)[0]
        return out.float()

    return Sides(
        ours=lambda: dit(latents, timestep, prepared),
        peer=lambda: ask(peer),
        tolerance=1e-4 if dtype == torch.float32 else 3e-2,
    )


def text_encoder(dtype: torch.dtype) -> Sides:
    """Six layers of UMT5-XXL on a prompt of 30 tokens, which the peer's pipeline pads to 512."""
    from dataclasses import replace

    import transformers

    config = replace(UMT5_XXL, num_layers=6, vocab_size=4096)
    model = cast(UMT5Encoder, seeded(UMT5Encoder, config, dtype))
    peer = _opened(transformers.UMT5EncoderModel.from_pretrained, model, config, dtype)
    ids = torch.randint(2, 4096, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(2))
    padded = torch.cat((ids, ids.new_zeros(1, 512 - PROMPT_TOKENS)), dim=1)
    mask = (padded != 0).long()
    return Sides(
        ours=lambda: model(ids).float(),
        peer=lambda: peer(padded, mask).last_hidden_state[:, :PROMPT_TOKENS].float(),
        tolerance=1e-4 if dtype == torch.float32 else 3e-2,
    )


def embedded(dtype: torch.dtype) -> Sides:
    """The embedded text-to-video model from prompt to frames, its own weights on both sides."""
    import diffusers

    wan = cygnet.load("tiny-t2v", dtype=dtype, device="cpu")
    defaults = wan.defaults
    with tempfile.TemporaryDirectory() as folder:
        pipeline = diffusers.WanPipeline.from_pretrained(
            wan.save_pretrained(Path(folder) / "it", layout="diffusers"), torch_dtype=dtype
        )
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a red ball moves right on a black background"

    def peer() -> torch.Tensor:
        frames = pipeline(
            prompt,
            defaults.negative_prompt,
            height=defaults.height,
            width=defaults.width,
            num_frames=defaults.num_frames,
            num_inference_steps=defaults.num_steps,
            guidance_scale=defaults.guidance_scale,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        ).frames
        return cast(torch.Tensor, frames)[0].permute(0, 2, 3, 1).float() * 255

    def ours() -> torch.Tensor:
        return torch.from_numpy(wan.generate(prompt, seed=1).frames).float()

    # The peer's noise levels are its own scheduler's, so the pictures are alike and not equal.
    return Sides(ours=ours, peer=peer, tolerance=0.5)


BF16, FP32 = torch.bfloat16, torch.float32
CASES = (
    Case(name="vae-decode", title="VAE decode, 17x256x256, bf16", target=4, build=lambda: vae_decode(BF16)),
    Case(name="vae-encode", title="VAE encode, 17x256x256, bf16", target=3, build=lambda: vae_encode(BF16)),
    Case(name="i2v", title="I2V condition encode, 81x128x128, bf16", target=8, build=lambda: i2v_condition(BF16)),
    Case(name="dit", title="DiT 1.3B, 1,280 tokens, bf16", target=1.8, build=lambda: transformer(BF16)),
    Case(name="text", title="UMT5-XXL width, 6 layers, 30 tokens, bf16", target=10, build=lambda: text_encoder(BF16)),
    Case(name="embedded", title="Embedded T2V, prompt to frames, bf16", target=3, build=lambda: embedded(BF16)),
    Case(name="vae-decode-fp32", title="VAE decode, 17x256x256, fp32", target=1.5, build=lambda: vae_decode(FP32)),
    Case(name="vae-encode-fp32", title="VAE encode, 17x256x256, fp32", target=1.5, build=lambda: vae_encode(FP32)),
    Case(name="dit-fp32", title="DiT 1.3B, 1,280 tokens, fp32", target=1.1, build=lambda: transformer(FP32)),
)
