"""Train the tiny image-to-video transformer, starting from the text-to-video one.

    python -m recipes.tiny.train_i2v --t2v runs/t2v --vae weights/vae.safetensors --latents runs/latents \\
        --text runs/text --clip runs/clip --out runs/i2v

The picture enters twice, as in Wan: its latents beside the noise with a mask, and its CLIP tokens through a second
cross-attention. Both are computed once per clip and kept. Stops and resumes at any time.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cygnet.models.clip.config import TINY_CLIP
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.config import TINY_I2V
from cygnet.models.dit.model import DiT
from cygnet.models.vae.model import WanVAE
from cygnet.training.extend import extend_to_images
from cygnet.training.flow import FlowMatching
from cygnet.training.loop import Batch, Schedule, train_flow
from recipes.tiny.captions import caption
from recipes.tiny.latents import SHARD, Latents, clip, scene_of, to_video
from recipes.tiny.train_t2v import BATCH, DROP_CAPTION, Captioner, fresh
from recipes.tiny.world import FRAMES

SCHEDULE = Schedule(steps=3000, matrix_rate=1e-3, other_rate=5e-4)


def condition_of(vae: WanVAE, frame: np.ndarray) -> torch.Tensor:
    """Latents ``[16, 5, 16, 16]`` of a clip that is ``frame`` (uint8 ``[H, W, 3]``) and then grey."""
    video = torch.zeros(1, 3, FRAMES, *frame.shape[:2])
    video[:, :, :1] = to_video(frame[None])
    return vae.encode(video, chunk=4)[0]


def store_conditions(vae: WanVAE, folder: Path, clips: int) -> None:
    """Write the picture latents of the first ``clips`` training clips, sharded like the clips themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips // SHARD):
        path = folder / f"{number:05d}.npy"
        if path.exists():
            continue
        rows = [condition_of(vae, clip(number * SHARD + i)[1][0]).half().numpy() for i in range(SHARD)]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.stack(rows))
        os.replace(partial, path)
        print(f"shard {number + 1} of {clips // SHARD}", flush=True)


def load_tower(folder: Path) -> CLIPVision:
    """The trained tower without its readers."""
    tower = CLIPVision(TINY_CLIP).eval()
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["both"]
    tower.load_state_dict({k.removeprefix("tower."): v for k, v in state.items() if k.startswith("tower.")})
    return tower


def mask_of(count: int, latent_frames: int, height: int, width: int) -> torch.Tensor:
    """``[B, 4, t, h, w]``: ones at the first latent frame, which is given."""
    mask = torch.zeros(count, 4, latent_frames, height, width)
    mask[:, :, 0] = 1
    return mask


def batches(latents: Latents, conditions: Latents, captioner: Captioner, tower: CLIPVision) -> Callable[[int], Batch]:
    """What each step trains on."""

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([31, step])
        chosen = [int(i) for i in rng.integers(0, min(len(latents), len(conditions)), BATCH)]
        video = torch.stack([latents[i] for i in chosen])
        picture = torch.stack([conditions[i] for i in chosen])
        texts = ["" if rng.random() < DROP_CAPTION else caption(scene_of(i), rng) for i in chosen]
        frames = torch.cat([to_video(clip(i)[1][:1])[:, :, 0] for i in chosen])
        with torch.no_grad():
            tokens = tower(preprocess(frames, TINY_CLIP.image_size))
        condition = torch.cat((mask_of(len(chosen), *video.shape[2:]), picture), dim=1)
        return Batch(video, captioner(texts), tokens, condition)

    return draw


def start_from(folder: Path) -> DiT:
    """The averaged text-to-video weights, extended."""
    t2v = fresh()
    shadow = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["average"]["shadow"]
    t2v.load_state_dict(shadow)
    return extend_to_images(t2v, TINY_I2V)


if __name__ == "__main__":
    from cygnet import load_vae

    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("t2v", "vae", "latents", "text", "clip", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=SCHEDULE.steps)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(1)
    store_conditions(
        load_vae(options.vae, dtype=torch.bfloat16).channels_last(), options.out / "conditions", options.clips
    )
    train_flow(
        start_from(options.t2v),
        batches(
            Latents(options.latents),
            Latents(options.out / "conditions"),
            Captioner(options.text),
            load_tower(options.clip),
        ),
        replace(SCHEDULE, steps=options.steps),
        options.out,
        objective=torch.compile(FlowMatching()) if options.compile else FlowMatching(),
        seconds=options.hours * 3600,
    )
