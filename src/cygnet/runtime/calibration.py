"""How fast this machine is: one measurement of a few seconds, kept in the user's cache folder.

Rates depend on the device, its threads and the version of torch, so a measurement is kept for each. Without one there
are rough guesses that say so.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import secrets
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from cygnet.ops.conv import conv3d
from cygnet.ops.winograd import norm_silu_conv_in_bands
from cygnet.runtime.attention import choose_attention
from cygnet.runtime.convolution import BANDS_FROM_CHANNELS, bands_pay
from cygnet.runtime.flops import Kind, Work
from cygnet.runtime.products import linear

Points = Sequence[tuple[int, float]]
"""Rates by width, in rising order of width."""
Clock = Callable[[], float]

_FORMAT = 4
_DISK_BYTES = 64 * 2**20
_BUDGET = 0.06
"""Seconds that each figure is measured for, if two runs take no longer."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second, and where that is known from."""

    device: str
    version: str
    """Of torch."""
    threads: int
    date: str | None
    """When it was measured; None for a guess."""
    compute: Mapping[str, Points]
    """``"matmul float32"`` and its like -> operations per second by width."""
    pointwise: Points
    """Bytes moved per second, by bytes of a tensor."""
    launch: float
    """Seconds that one kernel takes however little it does."""
    disk: float
    """Bytes per second of a mapped file that is in no cache."""
    video: float = 2e7
    """Pixels per second that the video encoder takes."""
    together: Mapping[str, float] = field(default_factory=dict)
    """How much longer a small network takes than the sum of its parts, by its name: ``"dit float32"`` and its like."""

    @property
    def measured(self) -> bool:
        """Whether this machine was measured."""
        return self.date is not None

    def knows(self, dtype: torch.dtype) -> bool:
        """Whether there are rates of ``dtype`` itself; otherwise float32's stand in for them."""
        return f"matmul {str(dtype).removeprefix('torch.')}" in self.compute

    def seconds(self, work: Sequence[Work], dtype: torch.dtype) -> float:
        """The time of ``work`` in ``dtype``, without pointwise kernels."""
        return sum(each.flops / self._rate(each.kind, each.width, dtype) for each in work)

    def reading(self, size: float, dtype: torch.dtype) -> float:
        """The time of reading weights of that many bytes from memory."""
        return size / self._rate("reading", 4096, dtype)

    def moving(self, moved: float, kernels: float) -> float:
        """The time of pointwise kernels that move so many bytes, and of starting so many kernels of any kind."""
        size = moved / max(3 * kernels, 1)  # two tensors are read and one is written
        return moved / _at(self.pointwise, size) + kernels * self.launch

    def whole(self, network: str, dtype: torch.dtype) -> float:
        """The factor from the sum of a network's parts to its time, in ``dtype`` or in the one that was measured."""
        name = str(dtype).removeprefix("torch.")
        return self.together.get(f"{network} {name}", self.together.get(f"{network} float32", 1.0))

    def _rate(self, kind: Kind | Literal["reading"], width: int, dtype: torch.dtype) -> float:
        name = str(dtype).removeprefix("torch.")
        points = self.compute.get(f"{kind} {name}") or self.compute[f"{kind} float32"]
        return _at(points, width)


def _at(points: Points, width: float) -> float:
    """The rate at ``width``: between measured widths by a straight line of logarithms, beyond them as the nearest."""
    widths = [point[0] for point in points]
    above = bisect_left(widths, width)
    if above in (0, len(widths)):
        return points[min(above, len(widths) - 1)][1]
    (low, slow), (high, fast) = points[above - 1], points[above]
    share = math.log(width / low) / math.log(high / low)
    return float(slow * (fast / slow) ** share)


# Measuring -----------------------------------------------------------------------------------------------------------


def calibrate(device: torch.device, folder: Path, *, clock: Clock = time.perf_counter) -> Rates:
    """Measure the device and the disk of ``folder``; takes six to nine seconds of a processor.

    Attention is measured with the kernel that "auto" takes on the device.
    """
    dtypes = [torch.float32, torch.bfloat16]
    if device.type == "cuda":
        dtypes.append(torch.float16)
    timed = _Stopwatch(device, clock)
    compute: dict[str, Points] = {}
    with torch.no_grad():
        for dtype in dtypes:
            name = str(dtype).removeprefix("torch.")
            compute[f"matmul {name}"] = [_matmul(timed, device, dtype, *shape) for shape in _MATMULS]
            compute[f"reading {name}"] = [_reading(timed, device, dtype)]
            compute[f"attention {name}"] = [_attention(timed, device, dtype, *shape) for shape in _ATTENTIONS]
            compute[f"conv {name}"] = [_conv(timed, device, dtype, *shape) for shape in _CONVS]
        pointwise = [_pointwise(timed, device, size) for size in (2**16, 2**20, 2**24, 3 * 2**24)]
        launch = _launch(timed, device)
    return Rates(
        **identity(device),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        compute=compute,
        pointwise=pointwise,
        launch=launch,
        disk=disk_rate(folder, clock),
    )


def identity(device: torch.device) -> dict[str, Any]:
    """What a measurement belongs to."""
    return {"device": device_name(device), "version": torch.__version__, "threads": torch.get_num_threads()}


def device_name(device: torch.device) -> str:
    """The name that the device gives itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        found = ""
    return f"{found or device.type} ({torch.backends.cpu.get_cpu_capability()})"


# Rows, features in and out; heads and rows; channels and side. Small ones are those of the embedded models, the large
# ones those of T2V-1.3B: bfloat16 and narrow layers are much slower on some processors than their peak.
_MATMULS = ((640, 256, 1024), (640, 1536, 1536), (256, 4096, 2048))
_ATTENTIONS = ((4, 320), (6, 1280))
_CONVS = ((16, 64), (32, 64), (96, 64), (192, 36), (384, 24))


class _Stopwatch:
    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device, self._clock = device, clock

    def __call__(self, work: Callable[[], object]) -> float:
        """Seconds of one run: the lower median of as many as fit the budget, two at least, after one that warms up."""
        work()
        self._settle()
        seconds: list[float] = []
        while len(seconds) < 2 or (sum(seconds) < _BUDGET and len(seconds) < 50):
            start = self._clock()
            work()
            self._settle()
            seconds.append(self._clock() - start)
        return statistics.median_low(seconds)

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _matmul(
    timed: _Stopwatch, device: torch.device, dtype: torch.dtype, rows: int, inside: int, outside: int
) -> tuple[int, float]:
    x, weight, bias = (_filled(device, dtype, *shape) for shape in ((rows, inside), (outside, inside), (outside,)))
    return inside, 2 * rows * inside * outside / timed(lambda: linear(x, weight, bias))


def _filled(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Of a number that processors are neither fast nor slow with; to draw them would take longer than the work."""
    return torch.full(shape, 0.7, device=device, dtype=dtype)


def _reading(timed: _Stopwatch, device: torch.device, dtype: torch.dtype) -> tuple[int, float]:
    """Bytes per second of a matrix that meets one row, so that its time is that of reading it."""
    x, weight = (_filled(device, dtype, rows, 4096) for rows in (1, 12288))
    return 4096, weight.nbytes / timed(lambda: F.linear(x, weight))


def _attention(timed: _Stopwatch, device: torch.device, dtype: torch.dtype, heads: int, rows: int) -> tuple[int, float]:
    q = torch.randn(1, rows, heads, 128, device=device).to(dtype).transpose(1, 2)
    kernel = choose_attention("auto", device, dtype, 128)
    return rows, 4 * rows * rows * heads * 128 / timed(lambda: kernel(q, q, q))


def _conv(timed: _Stopwatch, device: torch.device, dtype: torch.dtype, channels: int, side: int) -> tuple[int, float]:
    def laid_out(*shape: int) -> torch.Tensor:
        return _filled(device, dtype, *shape).contiguous(memory_format=torch.channels_last_3d)

    x, weight = laid_out(1, channels, 6, side, side), laid_out(channels, channels, 3, 3, 3)
    done = 2 * channels * channels * 27 * 4 * side * side
    if channels >= BANDS_FROM_CHANNELS and bands_pay(device, dtype):
        past, fresh, gamma = x[:, :, :2], x[:, :, 2:], _filled(device, dtype, channels)
        inner, out = torch.empty_like(fresh), torch.zeros_like(fresh)

        def residual_block() -> None:
            norm_silu_conv_in_bands(fresh, gamma, past, weight, None, out=inner)
            norm_silu_conv_in_bands(inner, gamma, past, weight, None, out, out=out)

        return channels, 2 * done / timed(residual_block)
    return channels, done / timed(lambda: conv3d(x, weight, None, spatial_padding=1))


def _pointwise(timed: _Stopwatch, device: torch.device, size: int) -> tuple[int, float]:
    """Kernels of a norm and of a rotation, some of which convert; the mix is that of a transformer block."""
    count = size // 4
    x, y = (_filled(device, torch.float32, count) for _ in range(2))
    half = x.to(torch.bfloat16)

    def work() -> None:
        torch.addcmul(x, x, y)
        half.float() * y
        F.gelu(half, approximate="tanh")

    return size, (4 + 1.5 + 3 + 1) * size / timed(work)


def _launch(timed: _Stopwatch, device: torch.device) -> float:
    """Kernels are started by modules, which take longer about it than the kernels' own functions."""
    x = torch.zeros(1, 8, device=device)
    layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8, device=device) for _ in range(50)))

    def work() -> None:
        for layer in layers:
            layer(x).float().mul_(1.0)

    return timed(work) / 100


def disk_rate(folder: Path, clock: Clock = time.perf_counter) -> float:
    """Bytes per second from a mapped file in ``folder`` that the system has been asked to forget."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".disk.{secrets.token_hex(4)}"
    try:
        piece = os.urandom(2**20)  # more than file systems compress or compare at a time
        with open(path, "xb") as file:
            for _ in range(_DISK_BYTES >> 20):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = clock()
        with open(path, "rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            sum(memoryview(mapped)[:: mmap.PAGESIZE])
        return _DISK_BYTES / (clock() - started)
    finally:
        with suppress(OSError):
            path.unlink()


# Keeping -------------------------------------------------------------------------------------------------------------


def keep(rates: Rates, folder: Path) -> Path:
    """Write a measurement where :func:`recall` finds it; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, asdict(rates))
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    staged.write_text(json.dumps({"format": _FORMAT, **asdict(rates)}, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, path)
    return path


def recall(device: torch.device, folder: Path) -> Rates | None:
    """The measurement of this device with this torch and these threads; None if there is none that can be read."""
    try:
        found = json.loads(_path(folder, identity(device)).read_text(encoding="utf-8"))
        if found.pop("format") != _FORMAT or any(found[name] != value for name, value in identity(device).items()):
            return None
        rates = Rates(**found)
        factors = [(1, factor) for factor in rates.together.values()]
        points = [*factors, *rates.pointwise, *(point for each in rates.compute.values() for point in each)]
        sound = (
            all(width > 0 and rate > 0 for width, rate in points)
            and rates.launch >= 0
            and min(rates.disk, rates.video) > 0
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return rates if sound else None


def guessed(device: torch.device) -> Rates:
    """Rates of a middling machine, for orders of magnitude."""
    fast = device.type == "cuda"
    per_thread = 4e10
    slow = 1.5e14 if fast else per_thread * torch.get_num_threads()
    moving = 1e12 if fast else 1e10
    kinds = {f"{kind} {name}": [(1024, slow)] for kind in ("matmul", "attention", "conv") for name in _NAMES}
    kinds |= {f"reading {name}": [(4096, moving)] for name in _NAMES}
    return Rates(
        **identity(device), date=None, compute=kinds, pointwise=[(2**20, moving)], launch=5e-6, disk=1e9
    )  # fmt: skip


_NAMES = ("float32", "bfloat16", "float16")


def _path(folder: Path, of: Mapping[str, Any]) -> Path:
    plain = "".join(c if c.isalnum() else "-" for c in f"{of['device']}-{of['version']}-{of['threads']}")
    return folder / f"{plain[:180]}.json"
