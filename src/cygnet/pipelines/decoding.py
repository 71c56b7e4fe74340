"""The last stage: latents to frames, a few at a time, and fewer where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch

from cygnet.errors import NumericalError, OutOfMemory, out_of_memory
from cygnet.pipelines.attempts import step_down
from cygnet.pipelines.components import Components
from cygnet.pipelines.record import Record
from cygnet.pipelines.sizes import fewer_at_once, latent_frames_at_once
from cygnet.types import CancelToken, Progress, ProgressSink


def decode(
    components: Components,
    latents: torch.Tensor,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Iterator[torch.Tensor]:
    """The frames; where memory runs out, those that were not given yet are decoded fewer at a time.

    How many at a time follows from the size alone, for it can change rounding: what memory is free must not.
    """
    chunk = latent_frames_at_once(*latents.shape[3:])
    given = 0
    record.at_work = "vae"
    try:
        for frames in _decoded(components, latents, chunk, on_progress, cancel, record):
            given += frames.shape[2]
            yield frames
        return
    except Exception as error:
        if not out_of_memory(error) or record.stepped_down:
            raise
    how, fewer = components.residency.shrink("vae"), fewer_at_once(chunk)
    if how is None and fewer == chunk:
        raise OutOfMemory("out of memory while decoding, one latent frame at a time and with nothing else in memory")
    words = [] if how is None else [how]
    if fewer != chunk:
        words.append(f"{fewer} latent frames are decoded at a time, not {chunk}, and last digits can differ")
    step_down(record, "decoding", "; ".join(words))
    end = 0
    for frames in _decoded(components, latents, fewer, on_progress, cancel, record):
        start, end = end, end + frames.shape[2]
        if end > given:
            yield frames[:, :, max(given - start, 0) :]


def _decoded(
    components: Components,
    latents: torch.Tensor,
    chunk: int,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Iterator[torch.Tensor]:
    total = latents.shape[2]
    low, high = torch.inf, -torch.inf
    on_progress(Progress(phase="decode", step=0, total=total))
    with ExitStack() as stack:
        with record.timed("load"):
            vae = stack.enter_context(components.use_vae())
        chunks = vae.decode_chunks(latents, chunk=chunk)
        for done in (1, *(min(first + chunk, total) for first in range(1, total, chunk))):
            cancel.check()
            with record.timed("decode"):
                frames = next(chunks)
                smallest, largest = (float(value) for value in frames.aminmax())
            if smallest != smallest or largest != largest:
                raise NumericalError(
                    f"decoding gave NaN by latent frame {done} of {total}; use float32 for the VAE, or verify its file"
                )
            low, high = min(low, smallest), max(high, largest)
            if done == total and low == high:
                record.notices.append("every pixel has the same colour; the VAE's weights may be damaged")
            on_progress(Progress(phase="decode", step=done, total=total))
            yield frames
