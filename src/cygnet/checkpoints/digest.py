"""A fingerprint of weight files for receipts: the same weights give the same one, on every machine.

Files of up to 64 MiB in all are read whole (``sha256:...``). Of larger ones, every file's size, first 4 MiB (the header
of a safetensors file lies there) and 64 samples of 64 KiB spread evenly are read (``sha256-sampled:...``): a tenth of a
second for 57 GB. It tells models apart and notices another download; it is no proof against someone who forges one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cygnet.checkpoints.weight_file import read_range, regular_file

WHOLE_BYTES = 64 * 2**20
HEAD_BYTES = 4 * 2**20
SAMPLE_BYTES = 64 * 2**10
SAMPLES = 64


def digest(files: Sequence[Path]) -> str:
    """The fingerprint of ``files`` in the given order; names and folders do not count.

    Raises ``ModelNotFoundError`` or ``WeightFileError`` if one cannot be read.
    """
    sizes = [regular_file(path).st_size for path in files]
    state = hashlib.sha256()
    if sum(sizes) <= WHOLE_BYTES:
        for path, size in zip(files, sizes, strict=True):
            state.update(read_range(path, 0, size))
        return f"sha256:{state.hexdigest()}"
    for path, size in zip(files, sizes, strict=True):
        state.update(size.to_bytes(8, "little"))
        state.update(read_range(path, 0, HEAD_BYTES))
        for i in range(SAMPLES):
            state.update(read_range(path, size * i // SAMPLES, SAMPLE_BYTES))
    return f"sha256-sampled:{state.hexdigest()}"
