"""Train the tiny text-to-video transformer on stored latents.

    python -m recipes.tiny.train_t2v --latents runs/latents --text runs/text --out runs/t2v

Stops and resumes at any time: run the same command again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cygnet.models.dit.config import TINY_T2V
from cygnet.models.dit.model import DiT, initialise
from cygnet.models.umt5.config import TINY_UMT5
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.training.flow import FlowMatching
from cygnet.training.loop import Batch, Schedule, train_flow
from recipes.tiny.captions import caption
from recipes.tiny.latents import Latents, scene_of

BATCH = 16
PICTURES = 0.15
"""Share of steps that train on first frames alone, four times as many per step."""
DROP_CAPTION = 0.1
ROWS = 16
"""Captions are padded to a multiple of this many rows, so that a compiled step meets few shapes."""
SCHEDULE = Schedule(steps=16000)


class Captioner:
    """The frozen text encoder: captions to context rows."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_sentencepiece((folder / "spiece.model").read_bytes())
        self.encoder = UMT5Encoder(TINY_UMT5).eval()
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["both"]
        self.encoder.load_state_dict(
            {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        )

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        """``[B, n, D]``: rows beyond a caption's own are zero, which the transformer reads as the padding they are."""
        ids = [self.tokenizer.encode(text) for text in texts]
        width = -(-max(map(len, ids)) // ROWS) * ROWS
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = (padded != 0).long()
        rows: torch.Tensor = self.encoder(padded, mask)
        return rows.float() * mask[..., None]


def batches(latents: Latents, captioner: Captioner) -> Callable[[int], Batch]:
    """What each step trains on."""

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([23, step])
        picture = bool(rng.random() < PICTURES)
        chosen = rng.integers(0, latents.refresh(), BATCH * 4 if picture else BATCH)
        clips = torch.stack([latents[int(i)] for i in chosen])
        texts = ["" if rng.random() < DROP_CAPTION else caption(scene_of(int(i)), rng) for i in chosen]
        return Batch(clips[:, :, :1] if picture else clips, captioner(texts))

    return draw


def fresh() -> DiT:
    """An untrained transformer, the same on every machine."""
    torch.manual_seed(0)
    dit = DiT(TINY_T2V)
    initialise(dit)
    return dit


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=SCHEDULE.steps)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    train_flow(
        fresh(),
        batches(Latents(options.latents), Captioner(options.text)),
        replace(SCHEDULE, steps=options.steps),
        options.out,
        objective=torch.compile(FlowMatching()) if options.compile else FlowMatching(),
        seconds=options.hours * 3600,
    )
