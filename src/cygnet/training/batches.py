"""Which clips each step trains on: a function of the seed and the step alone, so a stop and a resume change nothing."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from cygnet.training.cache import Cache
from cygnet.training.encode import Example
from cygnet.training.flow import Batch


class Batches:
    """Every clip once per epoch, in batches of one bucket.

    A bucket's last batch is filled up with clips of the same bucket, so that every step has ``size`` clips.
    """

    def __init__(self, examples: Sequence[Example], size: int, seed: int) -> None:
        self.examples, self.size, self.seed = list(examples), size, seed
        self._buckets: dict[object, list[int]] = {}
        for number, example in enumerate(self.examples):
            self._buckets.setdefault(example.bucket, []).append(number)
        self.per_epoch = sum(-(-len(rows) // size) for rows in self._buckets.values())
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> list[Example]:
        """The clips of a step, from 0 on."""
        epoch, place = divmod(step, self.per_epoch)
        return [self.examples[number] for number in self._order(epoch)[place]]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        batches = []
        for _, rows in sorted(self._buckets.items()):
            order = [rows[i] for i in rng.permutation(len(rows))]
            order += [rows[i] for i in rng.integers(0, len(rows), -len(rows) % self.size)]
            batches += [order[i : i + self.size] for i in range(0, len(order), self.size)]
        return [batches[i] for i in rng.permutation(len(batches))]


def load_batch(examples: Sequence[Example], cache: Cache, without_text: Sequence[bool], empty: str) -> Batch:
    """The rows of ``examples`` as one batch; captions of clips marked ``without_text`` are left out.

    Shorter texts are followed by zero rows, which the transformer reads as the padding they are.
    """
    rows = [cache.row(example.clip) for example in examples]
    keys = [empty if dropped else example.text for example, dropped in zip(examples, without_text, strict=True)]
    texts = [cache.row(key)["context"].float() for key in keys]
    image = torch.stack([row["image"] for row in rows]) if "image" in rows[0] else None
    condition = torch.stack([row["condition"] for row in rows]) if "condition" in rows[0] else None
    return Batch(
        torch.stack([row["latents"] for row in rows]),
        torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        image,
        condition,
    )
