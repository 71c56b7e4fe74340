"""Train the tiny text-to-video transformer on stored latents.

    python -m recipes.tiny.train_t2v --latents runs/latents --weights weights --out runs/t2v

``--weights`` is the folder of the finished text encoder. Stops and resumes at any time: run the same command again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cygnet import load_dit, load_text_encoder
from cygnet.models.dit.config import TINY_T2V
from cygnet.models.dit.model import DiT, initialise
from cygnet.training.flow import Batch, FlowMatching
from cygnet.training.loop import Schedule, train_flow
from recipes.tiny.captions import caption
from recipes.tiny.latents import Latents, scene_of
from recipes.tiny.world import SHAPES, Scene

BATCH = 16
PICTURES = 0.15
"""Share of steps that train on first frames alone, four times as many per step."""
DROP_CAPTION = 0.1
ROWS = 48
"""Captions are padded to this many rows, so that a compiled step meets one shape."""
SCHEDULE = Schedule(steps=20_000, matrix_rate=3e-3)
TWO = 0.6
"""Share of clips with two things, the harder ones."""


class Captioner:
    """The frozen text encoder of the finished file: captions to context rows."""

    def __init__(self, path: Path) -> None:
        encoder = load_text_encoder(path)
        if encoder.tokenizer is None:
            raise SystemExit(f"{path} holds no vocabulary; export it with recipes.tiny.export")
        self.tokenizer = encoder.tokenizer
        self.encoder = encoder.model.eval()

    def draw(self, scene: Scene, rng: np.random.Generator) -> str:
        """A caption of at most :data:`ROWS` tokens; 1.8 % of wordings are longer and are drawn again."""
        while len(self.tokenizer.encode(text := caption(scene, rng))) > ROWS:
            pass
        return text

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        """``[B, ROWS, D]``: rows behind a caption's own are zero, which the transformer reads as padding."""
        ids = [self.tokenizer.encode(text) for text in texts]
        padded = torch.tensor([row + [0] * (ROWS - len(row)) for row in ids])
        mask = (padded != 0).long()
        rows: torch.Tensor = self.encoder(padded, mask)
        return rows.float() * mask[..., None]


def batches(
    latents: Latents, captioner: Captioner, two: float | None = None, seed: int = 23, favour: str | None = None
) -> Callable[[int], Batch]:
    """What each step trains on; ``two`` is the share of clips with two entities, by default as they are stored.

    Clips with the shape ``favour`` come twice as often as others with as many entities, when ``two`` is given.

    A run that goes on from another's weights takes another ``seed``, or it meets the same clips and captions again.
    """
    crowded = np.array([len(scene_of(i).entities) > 1 for i in range(len(latents))])
    weights = np.array([1.0 + any(e.shape == favour for e in scene_of(i).entities) for i in range(len(latents))])
    kinds = [np.flatnonzero(it) for it in (crowded, ~crowded)]
    chances = [weights[it] / weights[it].sum() for it in kinds]

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        picture = bool(rng.random() < PICTURES)
        count = BATCH * 4 if picture else BATCH
        if two is None:
            chosen = rng.integers(0, len(latents), count)
        else:
            pairs, singles = (rng.choice(of, count, p=p) for of, p in zip(kinds, chances, strict=True))
            chosen = np.where(rng.random(count) < two, pairs, singles)
        clips = torch.stack([latents[int(i)] for i in chosen])
        texts = ["" if rng.random() < DROP_CAPTION else captioner.draw(scene_of(int(i)), rng) for i in chosen]
        return Batch(clips[:, :, :1] if picture else clips, captioner(texts))

    return draw


def fresh() -> DiT:
    """An untrained transformer, the same on every machine."""
    torch.manual_seed(0)
    dit = DiT(TINY_T2V)
    initialise(dit)
    return dit


def arguments(steps: int) -> argparse.ArgumentParser:
    """What both transformers' trainings take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the finished networks")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--shift", type=float, default=FlowMatching.shift, help="how much of it is at high noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    return parser


def run(dit: DiT, draw: Callable[[int], Batch], schedule: Schedule, options: argparse.Namespace) -> None:
    """Train as the arguments say."""
    torch.set_num_threads(os.cpu_count() or 1)
    objective = FlowMatching(shift=options.shift)
    train_flow(
        dit.to(options.device),
        draw,
        replace(schedule, steps=options.steps),
        options.out,
        objective=torch.compile(objective) if options.compile else objective,
        seconds=options.hours * 3600,
    )


def main() -> None:
    """Parse arguments and train."""
    parser = arguments(SCHEDULE.steps)
    parser.description = __doc__
    parser.add_argument("--two", type=float, default=TWO, help="share of clips with two things, 0 to 1")
    parser.add_argument("--seed", type=int, default=23, help="of the order of clips; another one for another run")
    parser.add_argument("--favour", choices=SHAPES, help="a shape that comes twice as often; needs --two")
    options = parser.parse_args()
    if not 0 <= options.two <= 1:
        parser.error(f"--two is {options.two}; it must be from 0 to 1")
    dit = fresh()
    if options.start:
        dit.load_state_dict(load_dit(options.start).state_dict())
    captioner = Captioner(options.weights / "text_encoder.safetensors")
    run(dit, batches(Latents(options.latents), captioner, options.two, options.seed, options.favour), SCHEDULE, options)


if __name__ == "__main__":
    main()
