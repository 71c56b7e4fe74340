"""Train the tiny text-to-video transformer on stored latents.

    python -m recipes.tiny.train_t2v --latents runs/latents --text runs/text --out runs/t2v

Stops and resumes at any time: run the same command again.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cygnet.models.dit.config import TINY_T2V
from cygnet.models.dit.model import DiT, initialise
from cygnet.models.umt5.config import TINY_UMT5
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.training.flow import FlowMatching, optimizers_for
from cygnet.training.state import Average, Run, set_learning_rate, warmup_cosine
from recipes.tiny.captions import caption
from recipes.tiny.latents import Latents, scene_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the transformer is trained."""

    steps: int = 16000
    batch: int = 16
    picture_share: float = 0.15
    """Share of steps that train on first frames alone, four times as many per step."""
    drop_caption: float = 0.1
    matrix_rate: float = 2e-3
    other_rate: float = 1e-3
    decay: float = 0.01
    average: float = 0.999


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
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = (padded != 0).long()
        return self.encoder(padded, mask).float() * mask[..., None]


def train(plan: Plan, latents: Latents, captioner: Captioner, folder: Path, *, seconds: float) -> None:
    """Run (or go on with) the training, stopping cleanly after ``seconds``."""
    torch.manual_seed(0)
    dit = DiT(TINY_T2V)
    initialise(dit)
    average = Average(dit, plan.average)
    optimizers = optimizers_for(dit, matrix_rate=plan.matrix_rate, other_rate=plan.other_rate, decay=plan.decay)
    parts = {"dit": dit, "average": average, "muon": optimizers[0], "adamw": optimizers[1]}
    run = Run(folder)
    run.resume(parts)
    objective = FlowMatching()
    losses: list[float] = []
    deadline = time.monotonic() + seconds
    while run.step < plan.steps and time.monotonic() < deadline:
        rng = np.random.default_rng([23, run.step])
        picture = bool(rng.random() < plan.picture_share)
        count = plan.batch * 4 if picture else plan.batch
        chosen = rng.integers(0, len(latents), count)
        clips = torch.stack([latents[int(i)] for i in chosen])
        texts = ["" if rng.random() < plan.drop_caption else caption(scene_of(int(i)), rng) for i in chosen]
        if picture:
            clips = clips[:, :, :1]
        set_learning_rate(optimizers, warmup_cosine(run.step, warmup=200, total=plan.steps, floor=0.02))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = objective(dit, clips, captioner(texts))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {run.step}; the last state is intact")
        for optimizer in optimizers:
            optimizer.step()
        average.update(dit)
        run.step += 1
        if not picture:
            losses.append(loss.item())
        if run.step % 50 == 0:
            run.log(loss=float(np.mean(losses)), norm=norm.item(), clips=latents.refresh())
            losses.clear()
        if run.step % 500 == 0:
            run.save(parts)
    run.save(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--hours", type=float, default=24.0)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    train(
        Plan(steps=options.steps),
        Latents(options.latents),
        Captioner(options.text),
        options.out,
        seconds=options.hours * 3600,
    )
