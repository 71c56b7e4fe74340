"""Train the tiny vocabulary and the tiny UMT5 encoder.

    python -m recipes.tiny.train_text --out runs/text

Wan's own text encoder arrives pretrained and stays frozen while the diffusion transformer learns. Here it is pretrained
on the world's captions: small heads, thrown away afterwards, must read every attribute of the scene from the encoder's
rows, for each entity in the order in which the caption names them.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from cygnet.models.umt5.config import TINY_UMT5
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.training.optimizers import optimizers_for
from cygnet.training.state import Run, set_learning_rate, warmup_cosine
from recipes.tiny.captions import caption
from recipes.tiny.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, random_scene

VOCABULARIES: tuple[tuple[str, ...], ...] = (tuple(COLOURS), SHAPES, MOTIONS)


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
    """Learned queries that read the encoder's rows by attention: a background, and three attributes per entity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, 3, batch_first=True)
        self.background = nn.Linear(dim, len(BACKGROUNDS) + 1)
        self.heads = nn.ModuleList(nn.Linear(dim, len(names) + 1) for names in VOCABULARIES)

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Logits: ``[B, backgrounds + 1]``, then ``[B, 2, names + 1]`` per attribute; the last class is "absent"."""
        queries = self.queries.expand(rows.shape[0], -1, -1)
        read, _ = self.attention(queries, rows, rows, key_padding_mask=mask == 0, need_weights=False)
        return [self.background(read[:, 0]), *(head(read[:, 1:]) for head in self.heads)]


def labels(scene: Scene, names_background: bool) -> list[list[int]]:
    """Class indices in the order of :class:`Readers`."""
    background = list(BACKGROUNDS).index(scene.background) if names_background else len(BACKGROUNDS)
    rows = [[background]]
    for names, attribute in zip(VOCABULARIES, ("colour", "shape", "motion"), strict=True):
        found = [names.index(getattr(entity, attribute)) for entity in scene.entities]
        rows.append([*found, *[len(names)] * (2 - len(found))])
    return rows


def draw_batch(
    rng: np.random.Generator, tokenizer: Tokenizer, size: int
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Token ids, mask, and labels of ``size`` captions, entities in the order in which they are named."""
    ids, targets = [], []
    for _ in range(size):
        scene = random_scene(rng, two=0.6)
        named = bool(rng.random() < 0.9)
        order = rng.permutation(len(scene.entities))
        scene = Scene(tuple(scene.entities[i] for i in order), scene.background)
        text = caption(scene, rng, background=float(named), keep_order=True)
        ids.append(tokenizer.encode(text))
        targets.append(labels(scene, named))
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    columns = [torch.tensor([t[i] for t in targets]) for i in range(4)]
    columns[0] = columns[0][:, 0]
    return padded, (padded != 0).long(), columns


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
    run = Run(folder)
    parts = {"both": both, "muon": optimizers[0], "adamw": optimizers[1]}
    run.resume(parts)
    begun = time.monotonic()
    while run.step < steps:
        set_learning_rate(optimizers, warmup_cosine(run.step, warmup=200, total=steps))
        ids, mask, targets = draw_batch(np.random.default_rng([13, run.step]), tokenizer, batch)
        rows = encoder(ids, mask)
        logits = readers(F.dropout(rows, 0.1), mask)
        loss = torch.stack(
            [F.cross_entropy(got.flatten(0, -2), want.flatten()) for got, want in zip(logits, targets, strict=True)]
        ).sum()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        run.step += 1
        if run.step % 100 == 0:
            right = [float((g.argmax(-1) == w).float().mean()) for g, w in zip(logits, targets, strict=True)]
            run.log(loss=loss.item(), background=right[0], colour=right[1], shape=right[2], motion=right[3])
        if run.step % 500 == 0 or run.step == steps:
            run.save(parts)
    print(f"trained in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    train(options.out, options.steps)
