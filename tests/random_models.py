"""Whole models of every variant, as small as the structure allows and with hashed weights, saved like real ones."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import sentencepiece
import torch
import torch._dynamo  # the first network without weights would, behind what conftest.py freezes

from cygnet.checkpoints import ComponentConfig, save_official
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import DiTConfig, Variant
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.types import ComponentName
from support import filled_weights, parameter_shapes

VAE = VAEConfig(base_width=4)
CLIP = CLIPVisionConfig(image_size=28, patch_size=14, dim=80, mlp_dim=160, num_heads=1, num_layers=2, output_dim=None)


CONDITIONS: dict[Variant, int] = {"t2v": 0, "vace": 0, "i2v": 20, "flf2v": 20, "control": 32, "camera": 16}
"""Channels beside the latents."""


def takes_pictures(variant: Variant) -> bool:
    return CONDITIONS[variant] > 0


def dit_config(variant: Variant) -> DiTConfig:
    return DiTConfig(
        variant=variant,
        dim=128,
        ffn_dim=96,
        num_heads=1,
        num_layers=2,
        in_channels=16 + CONDITIONS[variant],
        text_dim=32,
        image_dim=CLIP.dim if takes_pictures(variant) else None,
        image_positions=2 * CLIP.num_tokens if variant == "flf2v" else None,
        vace_layers=(0,) if variant == "vace" else (),
        camera_channels=24 if variant == "camera" else None,
        reference=variant == "control",
    )


@functools.cache
def spiece() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red ball moves right on a black background", "the blue square spins"] * 10),
        model_writer=written,
        model_type="unigram",
        vocab_size=40,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


def text_config() -> UMT5Config:
    size = sentencepiece.SentencePieceProcessor(model_proto=spiece()).vocab_size()
    return UMT5Config(vocab_size=size, dim=32, attention_dim=32, ffn_dim=48, num_heads=2, num_layers=2)


def state_of(config: ComponentConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        match config:
            case DiTConfig():
                module: torch.nn.Module = DiT(config)
            case VAEConfig():
                module = WanVAE(config)
            case UMT5Config():
                module = UMT5Encoder(config)
            case CLIPVisionConfig():
                module = CLIPVision(config)
    return filled_weights(parameter_shapes(module))


def write_model(folder: Path, variant: Variant = "t2v") -> dict[ComponentName, Path]:
    """Save a model of ``variant`` file by file; returns what ``cygnet.load`` takes."""
    configs: dict[ComponentName, ComponentConfig] = {
        "dit": dit_config(variant),
        "vae": VAE,
        "text_encoder": text_config(),
    }
    if takes_pictures(variant):
        configs["image_encoder"] = CLIP
    paths: dict[ComponentName, Path] = {}
    for name, config in configs.items():
        tokenizer = spiece() if name == "text_encoder" else None
        paths[name] = save_official(folder / f"{name}.safetensors", state_of(config), config, tokenizer=tokenizer)
    return paths
