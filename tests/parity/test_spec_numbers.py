"""The printed numbers of section 12.2 of the Wan 2.1 specification, for the transformer and the autoencoder.

Those of UMT5, CLIP and the solvers are checked beside these modules. Weights and inputs come from an integer hash.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cygnet
from cygnet.checkpoints import save_official
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.control import VaceContext
from cygnet.models.dit.model import DiT
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from support import fill, filled_weights, parameter_shapes

T2V = DiTConfig(variant="t2v", dim=256, ffn_dim=384, num_heads=2, num_layers=2, in_channels=16, text_dim=32)
I2V = replace(T2V, variant="i2v", in_channels=36, image_dim=1280)
FLF2V = replace(I2V, variant="flf2v", image_positions=514)


def assert_numbers(x: torch.Tensor, mean: float, std: float, mean_abs: float) -> None:
    measured = (float(x.mean()), float(x.std(correction=0)), float(x.abs().mean()))
    assert measured == pytest.approx((mean, std, mean_abs), abs=2e-5)


@pytest.mark.parametrize(
    ("config", "statistics", "samples"),
    [
        (T2V, (-0.028493, 1.242499, 0.997020), (-0.04022, 2.89118, -1.81815)),
        (I2V, (-0.064115, 1.177729, 0.951346), (-0.71079, 0.88709, -1.24117)),
        (FLF2V, (-0.059826, 1.190627, 0.958317), (-0.78855, 0.93326, -1.33302)),
    ],
    ids=["t2v", "i2v", "flf2v"],
)
def test_the_transformer_gives_the_printed_numbers(
    tmp_path: Path,
    config: DiTConfig,
    statistics: tuple[float, float, float],
    samples: tuple[float, float, float],
) -> None:
    with torch.device("meta"):
        shapes = parameter_shapes(DiT(config))
    save_file(filled_weights(shapes), tmp_path / "dit.safetensors")
    dit = cygnet.load_dit(tmp_path / "dit.safetensors")
    image_context = image_condition = None
    if config.variant != "t2v":
        images = 1 if config.variant == "i2v" else 2
        image_context = fill("in.clip", [images, 257, 1280]).reshape(1, -1, 1280)
        image_condition = fill("in.y", [1, 20, 3, 4, 6])
    with torch.no_grad():
        out = dit(
            fill("in.x", [1, 16, 3, 4, 6]),
            torch.tensor([937.0]),
            fill("in.ctx", [1, 7, 32]),
            image_context,
            image_condition,
        )[0]
    assert_numbers(out, *statistics)
    picked = (float(out[0, 0, 0, 0]), float(out[5, 1, 2, 3]), float(out[15, 2, 3, 5]))
    assert picked == pytest.approx(samples, abs=5e-5)


@pytest.mark.parametrize(
    ("strength", "statistics", "samples"),
    [
        (1.0, (0.004433, 1.227597, 0.991279), (-1.03427, 2.11524, -1.14459)),
        (0.5, (0.022028, 1.251905, 1.016090), (-1.35155, 2.48885, -1.17900)),
    ],
)
def test_the_control_branch_gives_the_printed_numbers(
    tmp_path: Path,
    strength: float,
    statistics: tuple[float, float, float],
    samples: tuple[float, float, float],
) -> None:
    config = replace(T2V, variant="vace", num_layers=3, vace_layers=(0, 2))
    with torch.device("meta"):
        shapes = parameter_shapes(DiT(config))
    save_official(tmp_path / "dit.safetensors", filled_weights(shapes), config)
    dit = cygnet.load_dit(tmp_path / "dit.safetensors")
    assert dit.config == config
    control = VaceContext(fill("in.vace", [1, 96, 3, 4, 6]), strength)
    with torch.no_grad():
        x, t, text = fill("in.x", [1, 16, 3, 4, 6]), torch.tensor([937.0]), fill("in.ctx", [1, 7, 32])
        out = dit(x, t, text, vace=[control])[0]
    assert_numbers(out, *statistics)
    picked = (float(out[0, 0, 0, 0]), float(out[5, 1, 2, 3]), float(out[15, 2, 3, 5]))
    assert picked == pytest.approx(samples, abs=5e-5)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> WanVAE:
    with torch.device("meta"):
        shapes = parameter_shapes(WanVAE(VAEConfig(base_width=8)))
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(filled_weights(shapes), path)
    return cygnet.load_vae(path)


def test_the_vae_encodes_to_the_printed_numbers(vae: WanVAE) -> None:
    latents = vae.encode(fill("in.video", [1, 3, 9, 16, 24]))[0]
    assert_numbers(latents, 0.082500, 0.379269, 0.289659)
    picked = (float(latents[0, 0, 0, 0]), float(latents[5, 1, 1, 2]), float(latents[15, 2, 1, 1]))
    assert picked == pytest.approx((0.24415, -0.31700, -0.07918), abs=5e-5)


def test_the_vae_decodes_to_the_printed_numbers(vae: WanVAE) -> None:
    given = fill("in.latent", [1, 16, 3, 2, 3])
    with torch.no_grad():
        free = vae.reconstruct(vae.denormalise(given))[0]
    assert_numbers(free, 0.071424, 0.494422, 0.391360)
    picked = (float(free[0, 0, 0, 0]), float(free[1, 3, 7, 11]), float(free[2, 8, 15, 23]))
    assert picked == pytest.approx((0.20058, -0.16408, 0.33461), abs=5e-5)
    assert_numbers(vae.decode(given)[0], 0.063317, 0.465673, 0.379736)
