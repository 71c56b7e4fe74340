"""Train the tiny image-to-video transformer, starting from the text-to-video one.

    python -m recipes.tiny.train_i2v --latents runs/latents --pictures runs/pictures --weights weights --out runs/i2v

``--weights`` is the folder of the finished networks: text-to-video transformer, text and image encoder. The picture
enters twice, as in Wan: its latents beside the noise with a mask, and its CLIP tokens through a second cross-attention.
Stops and resumes at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cygnet import load_dit, load_image_encoder
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.config import TINY_I2V
from cygnet.training.extend import extend_to_images
from cygnet.training.flow import Batch
from cygnet.training.loop import Schedule
from recipes.tiny.latents import Latents, first_frame, scene_of, to_video
from recipes.tiny.train_t2v import BATCH, DROP_CAPTION, Captioner, arguments, run

SCHEDULE = Schedule(steps=3000, matrix_rate=2e-3)


def mask_of(count: int, latent_frames: int, height: int, width: int) -> torch.Tensor:
    """``[B, 4, t, h, w]``: ones at the first latent frame, which is given."""
    mask = torch.zeros(count, 4, latent_frames, height, width)
    mask[:, :, 0] = 1
    return mask


def batches(latents: Latents, pictures: Latents, captioner: Captioner, tower: CLIPVision) -> Callable[[int], Batch]:
    """What each step trains on."""

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([31, step])
        chosen = [int(i) for i in rng.integers(0, min(len(latents), len(pictures)), BATCH)]
        video = torch.stack([latents[i] for i in chosen])
        picture = torch.stack([pictures[i] for i in chosen])
        texts = ["" if rng.random() < DROP_CAPTION else captioner.draw(scene_of(i), rng) for i in chosen]
        frames = torch.cat([to_video(first_frame(i)[None])[:, :, 0] for i in chosen])
        with torch.no_grad():
            tokens = tower(preprocess(frames, tower.config.image_size))
        condition = torch.cat((mask_of(len(chosen), *video.shape[2:]), picture), dim=1)
        return Batch(video, captioner(texts), tokens, condition)

    return draw


def main() -> None:
    """Parse arguments and train."""
    parser = arguments(SCHEDULE.steps)
    parser.description = __doc__
    parser.add_argument("--pictures", type=Path, required=True, help="latents of the given pictures")
    options = parser.parse_args()
    torch.manual_seed(1)
    dit = extend_to_images(load_dit(options.weights / "t2v.safetensors"), TINY_I2V)
    if options.start:
        dit.load_state_dict(load_dit(options.start).state_dict())
    draw = batches(
        Latents(options.latents),
        Latents(options.pictures),
        Captioner(options.weights / "text_encoder.safetensors"),
        load_image_encoder(options.weights / "image_encoder.safetensors").model.eval(),
    )
    run(dit, draw, SCHEDULE, options)


if __name__ == "__main__":
    main()
