"""A video when it is finished, and as it is made.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cygnet.api.given import Frames
from cygnet.assembly import LoadedModel
from cygnet.errors import RequestError
from cygnet.media.frames import to_uint8
from cygnet.media.receipt import RECEIPT_KEY, RECEIPT_VERSION, check_sidecar, embed, sidecar_path, staged_sidecar
from cygnet.media.video import VideoFormat, open_writer
from cygnet.pipelines.record import Record
from cygnet.pipelines.request import GenerateRequest
from cygnet.types import Phase


@dataclass(frozen=True, eq=False)
class Video:
    """A finished video: ``frames`` uint8 ``[T, H, W, 3]``, ``fps`` frames per second, and what it was made from."""

    frames: Frames
    fps: float
    receipt: dict[str, Any]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: VideoFormat | None = None,
        quality: float | None = None,
        overwrite: bool = False,
        sidecar: bool = True,
    ) -> Path:
        """Write the video and return where it is; the suffix decides the format (mp4, webm, webp, gif, png).

        The receipt goes into the file and, with ``sidecar``, also beside it as ``<name>.json``. Both appear whole or
        not at all. Raises as :func:`cygnet.media.video.open_writer`.
        """
        if sidecar:
            check_sidecar(path)
        if sidecar and not overwrite and sidecar_path(path).exists():
            raise RequestError(
                f"{sidecar_path(path).name} exists; choose another name, or say to overwrite it", field="path"
            )
        count, height, width, _ = self.frames.shape
        opened = open_writer(
            path,
            width=width,
            height=height,
            fps=self.fps,
            format=format,
            quality=quality,
            metadata=embed(self.receipt),
            num_frames=count,
            overwrite=overwrite,
        )
        with ExitStack() as stack:
            writer = stack.enter_context(opened)
            writer.write(self.frames)
            if sidecar:
                folder = writer.path.absolute().parent
                with staged_sidecar(folder, self.receipt, overwrite=overwrite) as place:
                    stack.close()
                    place(writer.path)
        return writer.path


class VideoStream:
    """A video as it is made: iterate once for uint8 ``[k, H, W, 3]``, 1 frame first and then a few at a time.

    Nothing is computed before the first ``next``. :meth:`close` stops early and frees what was held.
    """

    def __init__(
        self,
        model: LoadedModel,
        identity: Mapping[str, Any],
        request: GenerateRequest,
        inputs: Mapping[str, Any],
        chunks: Iterator[torch.Tensor],
        record: Record,
    ) -> None:
        self.request = request
        self._model = model
        self._identity = identity
        self._inputs = dict(inputs)
        self._chunks = chunks
        self._record = record
        self._created = datetime.now(UTC)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the caller should know so far, in words; complete at the end."""
        return tuple(self._record.notices)

    @property
    def seconds(self) -> Mapping[Phase, float]:
        """Time spent so far, by phase."""
        return dict(self._record.seconds)

    def timed(self, phase: Phase) -> AbstractContextManager[None]:
        """Count the time of a block as ``phase``: what a caller does with the frames, such as "write"."""
        return self._record.timed(phase)

    @property
    def receipt(self) -> dict[str, Any]:
        """What the video is made from, fit for :func:`cygnet.media.receipt.embed`.

        From the first chunk on everything that decides the pixels is in it; the time for decoding still grows.
        """
        return {
            RECEIPT_KEY: RECEIPT_VERSION,
            "created": self._created.isoformat(timespec="seconds"),
            "request": self.request.model_dump(mode="json"),
            "inputs": self._inputs,
            "model": dict(self._identity),
            "sigmas": list(self._record.sigmas),
            "versions": {"cygnet": version("cygnet"), "torch": torch.__version__, "python": platform.python_version()},
            "machine": {
                "device": str(self._model.device),
                "system": f"{platform.system()} {platform.machine()}",
                "threads": torch.get_num_threads(),
            },
            **({"tiles": {half: str(it) for half, it in self._record.tiles.items()}} if self._record.tiles else {}),
            **({"cached": dict(self._record.cached)} if self._record.cached else {}),
            "seconds": {phase: round(seconds, 3) for phase, seconds in self._record.seconds.items()},
            "notices": list(self._record.notices),
        }

    def __iter__(self) -> Iterator[Frames]:
        for chunk in self._chunks:
            yield to_uint8(chunk)

    def close(self) -> None:
        """Stop; the stream gives no more frames."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
