"""Train the tiny VAE: pictures first, then short moving crops, small ones first.

    python -m recipes.tiny.train_vae --out runs/vae

Stops and resumes at any time: run the same command again.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch._dynamo

from cygnet.models.vae.config import TINY_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.training.loop import Pace, Piece, Trainer
from cygnet.training.optimizers import optimizers_for
from cygnet.training.state import Average, Run, warmup_cosine
from cygnet.training.vae import VAELoss, initialise
from recipes.tiny.world import FRAMES, SIZE, random_scene, random_tracks, render


@dataclass(frozen=True)
class Stage:
    """``steps`` updates on batches of ``batch`` crops of ``frames`` frames, ``crop`` pixels a side."""

    name: str
    steps: int
    batch: int
    frames: int
    crop: int
    rate: float


STAGES = (
    Stage("pictures", 1600, 8, 1, 64, 5e-4),
    Stage("crops", 2200, 4, 9, 48, 5e-4),
    Stage("wide crops", 1400, 3, 9, 64, 3e-4),
)


def random_crop(rng: np.random.Generator, frames: int, crop: int) -> np.ndarray:
    """A crop of a training clip around one of its entities: uint8 ``[frames, crop, crop, 3]``."""
    scene = random_scene(rng)
    tracks = random_tracks(scene, rng)
    first = int(rng.integers(0, FRAMES - frames + 1))
    part = tuple(
        type(t)(t.centre[first:][:frames], t.radius[first:][:frames], t.angle[first:][:frames]) for t in tracks
    )
    aim = part[int(rng.integers(len(part)))].centre[int(rng.integers(frames))] * SIZE
    corner = np.clip(aim + rng.normal(0, 12, 2) - crop / 2, 0, SIZE - crop).astype(int)
    return render(scene, part, viewport=(int(corner[0]), int(corner[1]), crop, crop))


def batch_of(rng: np.random.Generator, stage: Stage) -> torch.Tensor:
    """``[B, 3, T, H, W]`` float32 in [-1, 1]."""
    clips = np.stack([random_crop(rng, stage.frames, stage.crop) for _ in range(stage.batch)])
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def psnr(vae: WanVAE, clips: int = 8, seed: int = 999) -> float:
    """Peak signal-to-noise ratio in dB over whole clips that training never sees, streaming, 8-bit scale."""
    rng = np.random.default_rng(seed)
    error = 0.0
    for _ in range(clips):
        scene = random_scene(rng)
        pixels = render(scene, random_tracks(scene, rng))
        video = torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        back = vae.decode(vae.encode(video, chunk=4), chunk=4)
        error += float((back - video).square().mean())
    return 10 * math.log10(4.0 / (error / clips))


def inner_kernels(vae: WanVAE) -> list[str]:
    """Kernels between features; those that touch pixels or latents are left to AdamW."""
    outer = ("encoder.conv1", "decoder.head", "conv1", "conv2")
    kernels = [name for name, p in vae.named_parameters() if p.ndim >= 4 and not name.endswith("gamma")]
    return [name for name in kernels if not name.startswith(outer)]


def at(step: int, stages: tuple[Stage, ...]) -> tuple[Stage, int]:
    """The stage that a step belongs to, and how many steps of that stage are before it."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise ValueError(f"step {step} is past the last stage")


def train(folder: Path, *, seconds: float, compiled: bool, stages: tuple[Stage, ...] = STAGES) -> None:
    """Run (or go on with) all stages, stopping cleanly after ``seconds``."""
    torch.manual_seed(0)
    vae = WanVAE(TINY_VAE)
    initialise(vae)
    vae.channels_last()
    average = Average(vae, decay=0.998)
    optimizers = optimizers_for(vae, inner_kernels(vae), matrix_rate=1.0, other_rate=1.0, decay=0.0)
    run = Run(folder)
    # Two minutes of compiling, then half as long again per step without it.
    torch._dynamo.config.recompile_limit = 64
    loss_of = torch.compile(VAELoss(kl=1e-5)) if compiled else VAELoss(kl=1e-5)
    told: dict[str, float] = {}

    def pieces(step: int) -> list[Piece]:
        stage, _ = at(step, stages)

        def loss() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=stage.frames > 1):
                total, parts = loss_of(vae, batch_of(np.random.default_rng([7, step]), stage))
            told.update({name: float(value) for name, value in parts.items()})
            return total

        return [Piece(loss, name=stage.name)]

    def rate(step: int) -> float:
        stage, done = at(step, stages)
        return stage.rate * warmup_cosine(done, warmup=100, total=stage.steps, floor=0.1)

    def measure(_: int) -> None:
        shown = WanVAE(TINY_VAE)
        average.copy_to(shown)
        run.log(psnr=psnr(shown.channels_last()))

    trainer = Trainer(
        module=vae,
        optimizers=optimizers,
        run=run,
        pace=Pace(steps=sum(stage.steps for stage in stages), log_every=50, save_every=250),
        draw=pieces,
        parts={"vae": vae, "average": average, "muon": optimizers[0], "adamw": optimizers[1]},
        average=average,
        after=((250, measure),),
        more=lambda: told,
        rate=rate,
    )
    trainer.resume()
    trainer.train(seconds)


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; 1.5 times faster")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    train(options.out, seconds=options.hours * 3600, compiled=options.compile)


if __name__ == "__main__":
    main()
