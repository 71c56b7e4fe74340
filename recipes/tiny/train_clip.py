"""Train the tiny CLIP tower on first frames.

    python -m recipes.tiny.train_clip --out runs/clip

The published tower arrives pretrained and stays frozen. Here it is pretrained to say what a frame shows: heads, thrown
away afterwards, read from its tokens the background and, for each colour, which shape has it and where.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cygnet.models.clip.config import TINY_CLIP
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import preprocess
from cygnet.training.loop import Pace, Piece, Trainer
from cygnet.training.state import Run
from recipes.tiny.world import BACKGROUNDS, COLOURS, FRAMES, SHAPES, SIZE, random_scene, random_tracks, render

NAMES = list(COLOURS)


class Readers(nn.Module):
    """One learned query per colour and one for the background, reading the tower's tokens by attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(NAMES) + 1, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.background = nn.Linear(dim, len(BACKGROUNDS))
        self.shape = nn.Linear(dim, len(SHAPES) + 1)
        self.place = nn.Linear(dim, 3)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Background logits ``[B, 5]``; per colour shape logits ``[B, 8, 5]`` and (x, y, radius) ``[B, 8, 3]``."""
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        read, _ = self.attention(queries, tokens, tokens, need_weights=False)
        return self.background(read[:, 0]), self.shape(read[:, 1:]), self.place(read[:, 1:])


def draw_batch(rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames ``[B, 3, 128, 128]`` in [-1, 1], background ``[B]``, shape per colour ``[B, 8]``, place ``[B, 8, 3]``."""
    frames, backgrounds = [], []
    shapes = torch.full((size, len(NAMES)), len(SHAPES))
    places = torch.zeros(size, len(NAMES), 3)
    for i in range(size):
        scene = random_scene(rng, two=0.6)
        at = int(rng.integers(FRAMES))
        tracks = tuple(track.frame(at) for track in random_tracks(scene, rng))
        frames.append(render(scene, tracks, size=SIZE)[0])
        backgrounds.append(list(BACKGROUNDS).index(scene.background))
        for entity, track in zip(scene.entities, tracks, strict=True):
            slot = NAMES.index(entity.colour)
            shapes[i, slot] = SHAPES.index(entity.shape)
            places[i, slot] = torch.tensor([*track.centre[0].tolist(), float(track.radius[0]) * 4])
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.tensor(backgrounds), shapes, places


def train(folder: Path, steps: int = 1500, batch: int = 24) -> None:
    """Run (or go on with) the training."""
    torch.manual_seed(0)
    tower, readers = CLIPVision(TINY_CLIP), Readers(TINY_CLIP.dim)
    both = nn.ModuleDict({"tower": tower, "readers": readers})
    # The last block's output is never used by Wan, and so is never trained.
    optimizer = torch.optim.AdamW(both.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.01)
    told: dict[str, float] = {}

    def loss(step: int) -> torch.Tensor:
        pixels, backgrounds, shapes, places = draw_batch(np.random.default_rng([29, step]), batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            background, shape, place = readers(tower(preprocess(pixels, TINY_CLIP.image_size)))
        present = (shapes < len(SHAPES)).float()
        told["shape"] = float(((shape.argmax(-1) == shapes).float() * present).sum() / present.sum())
        total: torch.Tensor = (
            F.cross_entropy(background.float(), backgrounds)
            + 4 * F.cross_entropy(shape.float().flatten(0, 1), shapes.flatten())
            + 4 * ((place.float() - places).square().sum(-1) * present).sum() / present.sum()
        )
        return total

    trainer = Trainer(
        module=both,
        optimizers=[optimizer],
        run=Run(folder),
        pace=Pace(steps=steps, warmup=100, log_every=50, save_every=250),
        draw=lambda step: [Piece(partial(loss, step))],
        parts={"both": both, "optimizer": optimizer},
        more=lambda: told,
    )
    trainer.resume()
    trainer.train()


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    train(options.out, options.steps)


if __name__ == "__main__":
    main()
