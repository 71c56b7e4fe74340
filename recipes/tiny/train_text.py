"""Train the tiny vocabulary and the tiny UMT5 encoder.

    python -m recipes.tiny.train_text --out runs/text

Wan's own text encoder arrives pretrained and stays frozen while the diffusion transformer learns. Here it is pretrained
on the world's captions: small heads, thrown away afterwards, must read from its rows which shape each colour has and
how it moves.
"""

from __future__ import annotations

import argparse
import io
import time
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from cygnet.models.umt5.config import TINY_UMT5
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.training.loop import Pace, Piece, Trainer
from cygnet.training.optimizers import optimizers_for
from cygnet.training.state import Run
from recipes.tiny.captions import caption
from recipes.tiny.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, random_scene

NAMES = list(COLOURS)


def train_vocabulary(lines: int = 30000) -> bytes:
    """A SentencePiece unigram model over captions, with T5's id layout and byte fallback for everything else."""
    rng = np.random.default_rng(11)
    text = (caption(random_scene(rng), rng) for _ in range(lines))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text,
        model_writer=model,
        model_type="unigram",
        vocab_size=TINY_UMT5.vocab_size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=1,
    )
    return model.getvalue()


class Readers(nn.Module):
    """Learned queries that read the encoder's rows by attention: one for the background, one for each colour.

    Entities of a scene differ in colour, so "which shape is red, and how does it move" asks for everything that a
    caption binds together, in whatever order it is said.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(NAMES) + 1, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, 3, batch_first=True)
        self.background = nn.Linear(dim, len(BACKGROUNDS) + 1)
        self.shape = nn.Linear(dim, len(SHAPES) + 1)
        self.motion = nn.Linear(dim, len(MOTIONS) + 1)

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Logits: ``[B, backgrounds + 1]``, then per colour ``[B, 8, shapes + 1]`` and ``[B, 8, motions + 1]``.

        The last class of each is "not said".
        """
        queries = self.queries.expand(rows.shape[0], -1, -1)
        read, _ = self.attention(queries, rows, rows, key_padding_mask=mask == 0, need_weights=False)
        return [self.background(read[:, 0]), self.shape(read[:, 1:]), self.motion(read[:, 1:])]


def draw_batch(
    rng: np.random.Generator, tokenizer: Tokenizer, size: int
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Token ids and mask of ``size`` captions, and the classes that :class:`Readers` should give."""
    ids = []
    background = torch.full((size,), len(BACKGROUNDS))
    shape = torch.full((size, len(NAMES)), len(SHAPES))
    motion = torch.full((size, len(NAMES)), len(MOTIONS))
    for i in range(size):
        scene = random_scene(rng, two=0.6)
        named = bool(rng.random() < 0.9)
        ids.append(tokenizer.encode(caption(scene, rng, background=float(named))))
        if named:
            background[i] = list(BACKGROUNDS).index(scene.background)
        for entity in scene.entities:
            slot = NAMES.index(entity.colour)
            shape[i, slot] = SHAPES.index(entity.shape)
            motion[i, slot] = MOTIONS.index(entity.motion)
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    return padded, (padded != 0).long(), [background, shape, motion]


def train(folder: Path, steps: int = 3000, batch: int = 64) -> None:
    """Run (or go on with) the training; the vocabulary is made first and kept."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "spiece.model"
    if not vocabulary.exists():
        vocabulary.write_bytes(train_vocabulary())
    tokenizer = Tokenizer.from_sentencepiece(vocabulary.read_bytes())
    torch.manual_seed(0)
    encoder = UMT5Encoder(TINY_UMT5)
    readers = Readers(TINY_UMT5.dim)
    both = nn.ModuleDict({"encoder": encoder, "readers": readers})
    matrices = [name for name, p in both.named_parameters() if name.startswith("encoder.blocks.") and p.ndim == 2]
    matrices = [name for name in matrices if "pos_embedding" not in name]
    optimizers = optimizers_for(both, matrices, matrix_rate=1e-3, other_rate=1e-3, decay=0.01)
    told: dict[str, float] = {}

    def loss(step: int) -> torch.Tensor:
        ids, mask, targets = draw_batch(np.random.default_rng([13, step]), tokenizer, batch)
        logits = readers(F.dropout(encoder(ids, mask), 0.1), mask)
        said = targets[1] < len(SHAPES)
        for name, got, want in zip(("background", "shape", "motion"), logits, targets, strict=True):
            right = got.argmax(-1) == want
            told[name] = float((right if name == "background" else right[said]).float().mean())
        errors = [
            F.cross_entropy(got.flatten(0, -2), want.flatten()) for got, want in zip(logits, targets, strict=True)
        ]
        return errors[0] + 5 * errors[1] + 5 * errors[2]

    trainer = Trainer(
        module=both,
        optimizers=optimizers,
        run=Run(folder),
        pace=Pace(steps=steps, warmup=200, log_every=100, save_every=500),
        draw=lambda step: [Piece(partial(loss, step))],
        parts={"both": both, "muon": optimizers[0], "adamw": optimizers[1]},
        more=lambda: told,
    )
    trainer.resume()
    begun = time.monotonic()
    trainer.train()
    print(f"trained in {time.monotonic() - begun:.0f} s")


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    train(options.out, options.steps)


if __name__ == "__main__":
    main()
