"""``cygnet bench vae``: how well and how fast autoencoders carry videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cygnet.cli.interrupts import cancelled_by_interrupt
from cygnet.cli.options import Debug, File, Json, Quiet, Switch, Whole
from cygnet.cli.output import Voice, error_line, table
from cygnet.errors import RequestError

MAX_ROUNDS = 100


def bench(
    what: Annotated[Literal["vae"], Parameter(name="WHAT")],
    /,
    *videos: Annotated[Path, Parameter(name="VIDEO")],
    vae: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False, metavar="NAME|PATH")] = (),
    taehv: File = None,
    seeded: Annotated[str | None, Parameter(metavar="NAMES")] = None,
    size: Annotated[str, Parameter(metavar="WxH")] = "256x256",
    frames: Whole = 17,
    rounds: Whole = 3,
    processor_time: Switch = False,
    device: Annotated[str, Parameter(metavar="NAME")] = "auto",
    dtype: Annotated[str, Parameter(metavar="NAME")] = "float32",
    plot: File = None,
    overwrite: Switch = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Encode and decode videos with each VAE: PSNR and SSIM to the original, frames per second, parameters.

    All work in turn in this process (A B B A), after one run of each that does not count; the times are medians.

    Parameters
    ----------
    what
        vae.
    videos
        Videos that cygnet can read; the middle of their first frames is used. Not needed with --seeded alone.
    vae
        A model's name, a weight file or a folder, official or Diffusers; may be given again. Default: tiny-vae.
    taehv
        A TAEHV file (taew2_1); it decodes what the first --vae encodes, which must be the published Wan-VAE.
    seeded
        Full-size networks with random weights, for their speed alone: wan, wan-diffusers, hunyuan (with commas). The
        last two are Diffusers' classes.
    size
        At most so many pixels, multiples of 16, about the middle of each video.
    frames
        How many frames of each video, 4n+1.
    rounds
        Counted runs of each.
    processor_time
        Count the time of all processor threads, not the clock's: on a busy machine it is the steadier one.
    device
        auto, cpu, cuda or cuda:N.
    dtype
        float32, bfloat16 or float16.
    plot
        Draw PSNR against speed into this new .png file; the circles' areas are the numbers of parameters.
    overwrite
        Replace a file of that name.
    """
    from cygnet.cli.bench_vae import SEEDED, Plan, check_plot, draw, measure

    voice = Voice(as_json=json, quiet=quiet)
    names = tuple(name.strip() for name in (seeded or "").split(",") if name.strip())
    for name in names:
        if name not in SEEDED:
            raise RequestError(
                f"seeded is {error_line(repr(name))[:80]}; choose some of {', '.join(SEEDED)}", field="seeded"
            )
    if not videos and (not names or vae or taehv):
        raise RequestError("no video is given; name one or more, or --seeded wan for speed alone", field="video")
    if taehv is not None and not vae:
        raise RequestError(
            "taehv is given without vae; it only decodes: add --vae with the published Wan-VAE to encode", field="taehv"
        )
    assert frames is not None
    assert rounds is not None
    if not 1 <= rounds <= MAX_ROUNDS:
        raise RequestError(f"rounds is {rounds}; it must be a whole number from 1 to {MAX_ROUNDS}", field="rounds")
    plan = Plan.create(
        videos,
        vae,
        taehv,
        names,
        size=size,
        frames=frames,
        rounds=rounds,
        processor_time=processor_time,
        device=device,
        dtype=dtype,
    )
    if plot is not None:
        check_plot(plot, overwrite=overwrite)
    with cancelled_by_interrupt(voice.note) as cancel:
        result = measure(plan, voice.note, cancel)
    if plot is not None:
        draw(result, plot, overwrite=overwrite)
    rows: list[tuple[str, ...]] = [("VAE", "PARAMETERS", "PSNR", "SSIM", "ENCODE", "DECODE", "BOTH")]
    for row in result["rows"]:
        likeness = ("-", "-") if row["psnr"] is None else (f"{row['psnr']:.2f} dB", f"{row['ssim']:.4f}")
        speeds = (f"{row[name]:.3g} fps" for name in ("encode_fps", "decode_fps", "fps"))
        rows.append((row["name"], f"{row['parameters'] / 1e6:.1f} M", *likeness, *speeds))
    voice.result({**result, "plot": None if plot is None else str(plot)}, table(rows))
    return 0
