"""The machine that a plan is made for: this one, or one of stated memory."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
import psutil
import torch

from cygnet.errors import OutputError, RequestError
from cygnet.media.files import discard, new_part, printable
from cygnet.media.video import open_writer
from cygnet.planning.stages import measured_together
from cygnet.runtime.calibration import Clock, Rates, calibrate, guessed, keep, recall
from cygnet.runtime.memory import container_memory, free_memory
from cygnet.runtime.precision import parse_device

HOST_BASE = 320 * 2**20
"""What a process takes with torch, cygnet and the video encoder; and pieces of memory that its allocator keeps.

Set from runs on Linux with torch for CPUs.
"""
HOST_BASE_CUDA = 1536 * 2**20
"""The same with CUDA's libraries; an estimate."""
DEVICE_BASE = 512 * 2**20
"""What CUDA itself takes on a device; an estimate."""
_UNITS = {"": 1, "B": 1, **{f"{prefix}B": 1000**n for n, prefix in enumerate("KMGT", 1)}}
_UNITS |= {f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", 1)} | {
    prefix: 1024**n for n, prefix in enumerate("KMGT", 1)
}
_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s?([KMGT]?i?B?)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device, and the bytes that are free on it and beside it."""

    device: torch.device
    device_free: int
    """On the CPU the same as ``host_free``."""
    host_free: int
    host_limit: int
    """Bytes of the machine, or of the container that limits it."""
    rates: Rates | None
    """How fast it is; None for a device that is not here."""
    device_stated: bool = False
    """Whether ``device_free`` was given: then it is what is free before the process begins, and not measured in it."""
    host_stated: bool = False
    """The same of ``host_free``."""

    @property
    def shares(self) -> bool:
        """Whether the device works in the host's memory."""
        return self.device.type != "cuda"

    @property
    def host_base(self) -> int:
        """What the process itself takes of the host."""
        return HOST_BASE if self.shares else HOST_BASE_CUDA

    @property
    def host_room(self) -> int:
        """Bytes of the host that are left for the request, besides the process itself."""
        return max(self.host_free - (self.host_base if self.host_stated else 0), 0)

    @property
    def device_room(self) -> int:
        """The same of the device."""
        base = self.host_base if self.shares else DEVICE_BASE
        return max(self.device_free - (base if self.device_stated else 0), 0)

    @property
    def here(self) -> bool:
        """Whether the device is one of this machine's."""
        return self.device.type != "cuda" or torch.cuda.is_available()

    def with_more(self, size: int) -> Machine:
        """The same with ``size`` more bytes free on the device (fewer if negative)."""
        more = max(self.device_free + size, 0)
        return replace(self, device_free=more, host_free=more if self.shares else self.host_free)

    @classmethod
    def of(
        cls, device: str | torch.device = "auto", *, device_memory: object = None, host_memory: object = None
    ) -> Machine:
        """This machine; with ``device_memory`` as if it had a CUDA device with that much free, and so for the host.

        Sizes are bytes or text such as "24GiB". Raises :class:`~cygnet.errors.RequestError` for others, and for a
        device that this machine has not.
        """
        imagined = device_memory is not None and device != "cpu"
        if device_memory is not None and device == "cpu":
            raise RequestError("device_memory is given for the CPU; give host_memory", field="device_memory")
        place = torch.device("cuda", 0) if imagined and not torch.cuda.is_available() else parse_device(device)
        here = place.type != "cuda" or torch.cuda.is_available()
        limited = container_memory()
        limit = psutil.virtual_memory().total if limited is None else limited[1]
        host_free = free_memory(torch.device("cpu"))
        if host_memory is not None:
            limit = host_free = parse_memory(host_memory, "host_memory")
        device_free = host_free if place.type != "cuda" else free_memory(place) if here else 0
        if device_memory is not None:
            device_free = parse_memory(device_memory, "device_memory")
        rates = recall(place, calibration_folder()) or guessed(place) if here else None
        return cls(
            device=place,
            device_free=device_free,
            host_free=host_free,
            host_limit=limit,
            rates=rates,
            device_stated=device_memory is not None or (host_memory is not None and place.type != "cuda"),
            host_stated=host_memory is not None,
        )


def calibration_folder() -> Path:
    """Where measurements of this machine are kept."""
    return Path(platformdirs.user_cache_dir("cygnet", appauthor=False)) / "calibration"


def calibrate_machine(device: str | torch.device = "auto", *, clock: Clock = time.perf_counter) -> tuple[Rates, Path]:
    """Measure a device of this machine and keep the figures; returns them, and the file.

    Raises :class:`~cygnet.errors.OutputError` where they cannot be kept.
    """
    folder = calibration_folder()
    place = parse_device(device)
    try:  # before seconds are spent on it
        folder.mkdir(parents=True, exist_ok=True)
        discard(new_part(folder))
    except OSError as error:
        raise OutputError(
            f"the calibration cannot be kept at {printable(str(folder))} ({(error.strerror or str(error)).lower()}), "
            "so nothing was measured; set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    rates = calibrate(place, folder, clock=clock)
    together = measured_together(rates, place, clock)
    rates = replace(rates, video=_video_rate(folder, clock), together=together)
    return rates, keep(rates, folder)


def _video_rate(folder: Path, clock: Clock) -> float:
    """Pixels per second of the default encoder, from a soft pattern that moves."""
    height, width, count = 240, 416, 25
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 31 + number / 5) + np.sin(columns / 23 - number / 7) for number in range(count)]
    frames = np.stack([np.stack([60 * wave + 128] * 3, axis=-1) for wave in waves]).astype(np.uint8)
    path = folder / f".video.{secrets.token_hex(4)}.mp4"
    started = clock()
    try:
        with open_writer(path, width=width, height=height, fps=16, num_frames=count) as writer:
            writer.write(frames)
        return float(count * height * width / (clock() - started))
    finally:
        path.unlink(missing_ok=True)


def parse_memory(given: object, field: str) -> int:
    """Bytes of a number, or of text with a unit: "24GiB", "24G" (the same), "24 GB" (a little less)."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    match = _MEMORY.fullmatch(given.strip()) if isinstance(given, str) else None
    units = {name.upper(): size for name, size in _UNITS.items()}
    size = 0 if match is None else round(float(match[1]) * units.get(match[2].upper(), 0))
    if size < 1:
        raise RequestError(f"{field} is {str(given)[:40]!r}; give a size such as 24GiB", field=field)
    return size
