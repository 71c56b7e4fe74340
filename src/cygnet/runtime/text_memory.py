"""Features of a model's own negative prompt, kept on disk: it is the same in nearly every request.

Only texts that ship with the models are kept, never what a user wrote. A file is found by everything that its values
depend on, so another text encoder, dtype, device or version of torch finds none and encodes anew.

The number of threads is not among that: on an AVX-512 processor with bfloat16 (torch 2.13) the embedded encoder and
seeded ones of widths 1024 and 4096 gave the same bits with 1, 2, 3, 4 and 8 threads, in bfloat16 and float32, for 1 to
512 tokens. Nothing promises it elsewhere: where ``test_the_number_of_threads_changes_no_bit`` fails, it belongs to the
key.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

log = logging.getLogger(__name__)


class DiskTextMemory:
    """A :class:`cygnet.types.TextMemory` in ``folder`` for the texts of ``remembered``.

    ``origin`` says in one string what the features depend on beside the text; it is asked at the first need of it.
    """

    def __init__(self, folder: Path, remembered: Collection[str], origin: Callable[[], str]) -> None:
        self._folder, self._remembered, self._origin = folder, frozenset(remembered), origin
        self._key: str | None = None

    def recall(self, text: str) -> torch.Tensor | None:
        """As the protocol says. A file that cannot be read counts as none."""
        if text not in self._remembered:
            return None
        try:
            found = load(self._path(text).read_bytes())["features"]
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("the kept features of the negative prompt cannot be read and are made again: %s", error)
            return None
        return found if found.ndim == 3 and bool(torch.isfinite(found).all()) else None

    def keep(self, text: str, features: torch.Tensor) -> None:
        """As the protocol says. Where nothing can be written, nothing is kept."""
        if text not in self._remembered:
            return
        path = self._path(text)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(save({"features": features.cpu().contiguous()}))
            os.replace(staged, path)
        except OSError as error:
            log.info("the features of the negative prompt are not kept: %s", error)
            with contextlib.suppress(OSError):
                staged.unlink()

    def _path(self, text: str) -> Path:
        if self._key is None:
            self._key = self._origin()
        name = hashlib.sha256(f"{self._key}\0{text}".encode()).hexdigest()
        return self._folder / f"{name}.safetensors"
