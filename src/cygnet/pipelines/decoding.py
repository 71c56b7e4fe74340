"""The last stage: latents to frames, a few at a time, and one at a time, or tile by tile, where memory runs out."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from itertools import islice

import torch

from cygnet.errors import NumericalError, OutOfMemory, out_of_memory
from cygnet.pipelines.attempts import step_down, tile_further
from cygnet.pipelines.components import Components
from cygnet.pipelines.record import Record
from cygnet.pipelines.sizes import latent_frames_at_once
from cygnet.pipelines.tiles import decode_chunks
from cygnet.types import CancelToken, Progress, ProgressSink, Tiles


def decode(
    components: Components,
    latents: torch.Tensor,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Iterator[torch.Tensor]:
    """The frames, in the tiles that ``record`` names, if any.

    How many latent frames are decoded at a time follows from the size alone, for it can change rounding: what memory is
    free must not. Where memory runs out, the frames that were not given yet are decoded once more with weights in less
    memory, which changes no bit. Where that cannot be or is not enough, they are decoded in smaller portions, which
    can: one latent frame at a time, or if it was one, in tiles; ``record`` names those, for a replay.
    """
    height, width = (side * Tiles.CELL for side in latents.shape[3:])
    at_once = min(latent_frames_at_once(*latents.shape[3:]), latents.shape[2] - 1)
    given, tiles = 0, record.tiles.get("decode")
    may = not record.stepped_down
    record.at_work = "vae"

    def decoded(tiles: Tiles | None) -> Generator[torch.Tensor, None, None]:
        return _decoded(components, latents, tiles, on_progress, cancel, record)

    while True:
        try:
            if tiles is not None and given < tiles.from_frame:  # as when it was made
                with closing(decoded(None)) as whole:
                    for frames in _from(given, whole):
                        given += frames.shape[2]
                        yield frames
                        if given >= tiles.from_frame:
                            break
            for frames in _from(given, _first_with_second(decoded(tiles))):
                given += frames.shape[2]
                yield frames
            return
        except Exception as error:
            if not out_of_memory(error) or not may:
                raise
        # Only here, with the error and the frames that it refers to gone, can what was computed be freed.
        how = components.residency.shrink("vae") if not record.stepped_down else None
        if how is None:
            may, how = False, tile_further(record, "decode", width, height, given=given, at_once=at_once)
            if how is None:
                raise OutOfMemory(
                    "out of memory while decoding, as little as can be at a time and with nothing else in memory"
                )
            tiles = record.tiles["decode"]
        step_down(record, "decoding", how)


def _from(start: int, chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The frames from number ``start`` on."""
    end = 0
    for frames in chunks:
        first, end = end, end + frames.shape[2]
        if end > start:
            yield frames[:, :, max(start - first, 0) :]


def _first_with_second(chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The first chunk only when the second is there: until then memory that is short for the whole may yet suffice.

    So tiles, if it takes those, are known before the first frame is given, and with it what a receipt says.
    """
    yield from [*islice(chunks, 2)]
    yield from chunks


def _decoded(
    components: Components,
    latents: torch.Tensor,
    tiles: Tiles | None,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Generator[torch.Tensor, None, None]:
    total, chunk = latents.shape[2], latent_frames_at_once(*latents.shape[3:]) if tiles is None else 1
    low, high = torch.inf, -torch.inf
    on_progress(Progress(phase="decode", step=0, total=total))
    with ExitStack() as stack:
        with record.timed("load"):
            vae = stack.enter_context(components.use_vae())
        chunks = decode_chunks(vae, latents, chunk=chunk, tiles=tiles, parked=record.parked)
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
