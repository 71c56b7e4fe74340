"""The measuring of :mod:`cygnet.cli.bench`: autoencoders side by side on the same frames.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cygnet.cli.output import error_line
from cygnet.errors import CygnetError, RequestError
from cygnet.types import CancelToken

if TYPE_CHECKING:
    import torch

    from cygnet.media.frames import Frames

SEEDED = ("wan", "wan-diffusers", "hunyuan")


class MissingLibrary(CygnetError):
    """A library that an option needs is not installed."""

    code = "missing_library"
    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured on what; checked."""

    videos: tuple[Path, ...]
    vaes: tuple[str, ...]
    taehv: Path | None
    seeded: tuple[str, ...]
    width: int
    height: int
    frames: int
    rounds: int
    processor_time: bool
    device: str
    dtype: str

    @classmethod
    def create(
        cls,
        videos: Sequence[Path],
        vaes: Sequence[str],
        taehv: Path | None,
        seeded: Sequence[str],
        *,
        size: str,
        frames: int,
        rounds: int,
        processor_time: bool,
        device: str,
        dtype: str,
    ) -> Self:
        """Raises :class:`~cygnet.errors.RequestError` for sizes and lengths that no VAE of Wan takes."""
        from cygnet.pipelines.request import parse_size
        from cygnet.pipelines.sizes import FRAME_STRIDE, MAX_FRAMES, MAX_SIDE, SIZE_MULTIPLE, nearest_frames

        if dtype == "auto":
            raise RequestError("dtype is 'auto'; name one: float32, bfloat16 or float16", field="dtype")
        width, height = parse_size(size)
        for side in (width, height):
            if side % SIZE_MULTIPLE or not SIZE_MULTIPLE <= side <= MAX_SIDE:
                raise RequestError(
                    f"size is {width}x{height}; sides are multiples of {SIZE_MULTIPLE} up to {MAX_SIDE}", field="size"
                )
        if frames % FRAME_STRIDE != 1 or not 1 <= frames <= MAX_FRAMES:
            nearest = " or ".join(map(str, nearest_frames(frames)))
            raise RequestError(f"frames is {frames}; Wan needs 4n+1 (nearest: {nearest})", field="frames")
        return cls(
            videos=tuple(videos),
            vaes=tuple(vaes) or (("tiny-vae",) if videos else ()),
            taehv=taehv,
            seeded=tuple(seeded),
            width=width,
            height=height,
            frames=frames,
            rounds=rounds,
            processor_time=processor_time,
            device=device,
            dtype=dtype,
        )


@dataclass(frozen=True)
class Codec:
    """One autoencoder; ``encode`` takes ``[1, 3, T, H, W]`` in [-1, 1] and ``decode`` gives it back."""

    name: str
    parameters: int
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    trained: bool = True


def measure(plan: Plan, note: Callable[[str], None], cancel: CancelToken) -> dict[str, Any]:
    """Figures of every autoencoder, as plain values; ``note`` hears which one works."""
    import torch

    from cygnet.media.frames import to_signed
    from cygnet.media.quality import psnr, ssim
    from cygnet.runtime.precision import check_vae_dtype, parse_device, parse_dtype

    place, dtype = parse_device(plan.device), parse_dtype(plan.dtype)
    assert dtype is not None  # Plan.create refuses "auto"
    check_vae_dtype(dtype, place)
    if plan.processor_time and place.type != "cpu":
        raise RequestError(f"processor_time is for the processor, and device is {place}", field="processor_time")
    clips = [_clip(path, plan) for path in plan.videos]
    codecs = _codecs(plan)
    now = time.process_time if plan.processor_time else _clock(place)
    pixels = [to_signed(clip)[None] for clip in clips]
    if not pixels:
        shape = (1, 3, plan.frames, plan.height, plan.width)
        pixels = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1]
    times: dict[str, list[tuple[float, float]]] = {codec.name: [] for codec in codecs}
    likeness: dict[str, list[tuple[float, float]]] = {codec.name: [] for codec in codecs}

    def once(codec: Codec) -> tuple[float, float]:
        encoding = decoding = 0.0
        for number, video in enumerate(pixels):
            cancel.check()
            start = now()
            latents = codec.encode(video)
            middle = now()
            result = codec.decode(latents)
            encoding, decoding = encoding + middle - start, decoding + now() - middle
            if clips and codec.trained and len(likeness[codec.name]) < len(clips):
                made = _rounded(result)
                likeness[codec.name].append((psnr(clips[number], made), ssim(clips[number], made)))
        return encoding, decoding

    with torch.inference_mode():
        for codec in codecs:
            note(f"{codec.name}: warming up")
            once(codec)
        for number in range(plan.rounds):
            for codec in codecs if number % 2 == 0 else reversed(codecs):
                note(f"{codec.name}: round {number + 1} of {plan.rounds}")
                times[codec.name].append(once(codec))
    count = sum(video.shape[2] for video in pixels)
    return {
        "what": "vae",
        "videos": [
            {"name": path.name, "frames": len(clip), "width": clip.shape[2], "height": clip.shape[1]}
            for path, clip in zip(plan.videos, clips, strict=True)
        ],
        "frames": count,
        "size": None if clips else [plan.width, plan.height],
        "rounds": plan.rounds,
        "clock": "processor" if plan.processor_time else "wall",
        "device": str(place),
        "dtype": plan.dtype,
        "threads": torch.get_num_threads(),
        "versions": {"cygnet": version("cygnet"), "torch": torch.__version__, "python": platform.python_version()},
        "rows": [_row(codec, times[codec.name], likeness[codec.name], count) for codec in codecs],
    }


def _row(
    codec: Codec, times: Sequence[tuple[float, float]], likeness: Sequence[tuple[float, float]], count: int
) -> dict[str, Any]:
    encoding, decoding = (statistics.median(column) for column in zip(*times, strict=True))
    both = statistics.median(sum(pair) for pair in times)
    per_clip = [{"psnr": None if value == float("inf") else value, "ssim": other} for value, other in likeness]
    known = [value for value, _ in likeness if value != float("inf")]
    return {
        "name": codec.name,
        "parameters": codec.parameters,
        "psnr": statistics.fmean(known) if known else None,
        "ssim": statistics.fmean(value for _, value in likeness) if likeness else None,
        "clips": per_clip,
        "encode_fps": count / encoding,
        "decode_fps": count / decoding,
        "fps": count / both,
        "seconds": [list(pair) for pair in times],
    }


def _clock(place: torch.device) -> Callable[[], float]:
    """The time by the clock, once all that was asked of ``place`` is done."""
    import torch

    def now() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter()

    return now


def _rounded(video: torch.Tensor) -> Frames:
    """``[1, 3, T, H, W]`` in [-1, 1] as uint8 ``[T, H, W, 3]``, rounded: truncation would cost likeness."""
    import torch

    levels = ((video[0].float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    frames: Frames = levels.permute(1, 2, 3, 0).contiguous().numpy()
    return frames


def _clip(path: Path, plan: Plan) -> Frames:
    """The middle of the first frames of a video, uint8 ``[T, H, W, 3]``."""
    import numpy as np

    from cygnet.media.video_read import read_video

    frames = read_video(path).frames
    name = error_line(repr(path.name))
    if len(frames) < plan.frames:
        raise RequestError(f"{name} has {len(frames)} frames; ask for fewer with --frames", field="frames")
    rows, columns = frames.shape[1:3]
    height, width = (min(side, most) // 16 * 16 for side, most in ((rows, plan.height), (columns, plan.width)))
    if not height or not width:
        raise RequestError(f"{name} is {columns}x{rows}; at least 16x16 is needed", field="video")
    top, left = (rows - height) // 2, (columns - width) // 2
    return np.ascontiguousarray(frames[: plan.frames, top : top + height, left : left + width])


# The autoencoders ----------------------------------------------------------------------------------------------------


def _codecs(plan: Plan) -> list[Codec]:
    from cygnet.assembly import load_preview_decoder, load_vae
    from cygnet.runtime.precision import parse_device, parse_dtype

    dtype, place = parse_dtype(plan.dtype), parse_device(plan.device)
    assert dtype is not None
    found = [_ours(Path(source).name, load_vae(source, dtype, place)) for source in plan.vaes]
    if plan.taehv is not None:
        first = load_vae(plan.vaes[0], dtype, place)
        decoder = load_preview_decoder(plan.taehv, dtype, place)
        size = sum(it.numel() for it in decoder.parameters())
        name = f"TAEHV's decoder after {found[0].name}"
        found.append(
            Codec(name, size, _ours(name, first).encode, lambda latents: decoder(latents.to(place, dtype)).float())
        )
    found += [_seeded(name, place, dtype) for name in plan.seeded]
    doubled = {codec.name for codec in found if sum(codec.name == other.name for other in found) > 1}
    if doubled:
        raise RequestError(f"several VAEs are called {error_line(repr(doubled.pop()))}; rename one", field="vae")
    return found


def _ours(name: str, vae: Any, *, trained: bool = True) -> Codec:
    """As the pipelines use it: several latent frames at once, as many as the size allows."""
    from cygnet.pipelines.sizes import latent_frames_at_once

    def chunk(rows: int, columns: int) -> int:
        return latent_frames_at_once(rows, columns)

    return Codec(
        name,
        sum(it.numel() for it in vae.parameters()),
        lambda video: vae.encode(video, chunk=chunk(video.shape[3] // 8, video.shape[4] // 8)),
        lambda latents: vae.decode(latents, chunk=chunk(*latents.shape[3:])),
        trained,
    )


def _seeded(name: str, place: torch.device, dtype: torch.dtype) -> Codec:
    import torch

    torch.manual_seed(0)
    if name == "wan":
        from cygnet.models.vae.config import WAN_VAE
        from cygnet.models.vae.model import WanVAE
        from cygnet.runtime.convolution import fit_processor

        ours = fit_processor(WanVAE(WAN_VAE).to(place, dtype).channels_last().eval())
        return _ours("Wan-VAE, cygnet (random)", ours, trained=False)
    try:
        import diffusers
    except ImportError as error:
        raise MissingLibrary(f"--seeded {name} needs Diffusers: pip install 'cygnet[oracle]'") from error
    kind = diffusers.AutoencoderKLWan if name == "wan-diffusers" else diffusers.AutoencoderKLHunyuanVideo
    vae = kind().to(place).eval()
    vae = vae if dtype == torch.float32 else vae.to(dtype)  # it warns of any other way
    title = "Wan-VAE, Diffusers (random)" if name == "wan-diffusers" else "HunyuanVideo VAE, Diffusers (random)"

    def encode(video: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = vae.encode(video.to(place, dtype)).latent_dist.mode()
        return latents

    def decode(latents: torch.Tensor) -> torch.Tensor:
        video: torch.Tensor = vae.decode(latents).sample
        return video.float()

    return Codec(title, sum(it.numel() for it in vae.parameters()), encode, decode, trained=False)


# The plot ------------------------------------------------------------------------------------------------------------


def check_plot(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a plot that could not be drawn or written."""
    from cygnet.media.files import refuse_taken

    if path.suffix.lower() != ".png":
        raise RequestError(f"plot is {error_line(repr(path.name))}; name a .png file", field="plot")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"the folder of {error_line(repr(path.name))} does not exist; make it first", field="plot")
    refuse_taken(path, overwrite=overwrite)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingLibrary("the plot needs matplotlib: pip install 'cygnet[bench]', or leave --plot out") from error


def draw(result: dict[str, Any], path: Path, *, overwrite: bool) -> None:
    """PSNR against speed as PNG; a VAE whose PSNR is not known stands as a line at its speed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from cygnet.media.files import discard, new_part, output_error, publish

    figure, axes = plt.subplots(figsize=(7, 4.5))
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for number, row in enumerate(result["rows"]):
        colour, label = colours[number % len(colours)], f"{row['name']}, {row['parameters'] / 1e6:.1f} M"
        if row["psnr"] is None:
            axes.axvline(row["fps"], color=colour, linestyle="--", label=f"{label}: speed alone")
        else:
            axes.scatter(row["fps"], row["psnr"], s=row["parameters"] / 1e5 + 20, alpha=0.6, color=colour, label=label)
    known = [row["psnr"] for row in result["rows"] if row["psnr"] is not None] or [0.0]
    axes.set_ylim(min(known) - 3, max(known) + 3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("frames per second, encoding and decoding")
    axes.set_ylabel("PSNR, dB")
    axes.legend(frameon=False, fontsize=8, markerscale=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    part = None
    try:
        part = new_part(path.absolute().parent)
        figure.savefig(part, format="png", dpi=110)
        publish(part, path, overwrite=overwrite)
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        plt.close(figure)
        if part is not None:
            discard(part)
