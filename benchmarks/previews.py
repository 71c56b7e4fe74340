"""``python -m benchmarks.previews``: what previews lose beside the exact frames, and what they take.

Likeness, on the embedded text-to-video model: the estimate of the clean latents that a user sees after a quarter of the
steps, half of them and all, as the studio's picture of latents' colours, and decoded by the VAE, which no decoder of
previews could be nearer than. Every latent's picture is held against the third of the four exact frames that it stands
for (the first latent against the one that is its own), at 128x128 as it is shown; colours also at 16x16, a latent each.

TAEHV's published weights could not be had, and it does not know the embedded model's latents: of it the time alone,
with random weights, beside the full-size VAE's. Time is the processor's, medians of runs in turn.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

import cygnet
from benchmarks.lossy import PROMPTS
from benchmarks.measure import Work, heading, in_turn
from benchmarks.report import output, write_json, write_picture, write_text
from benchmarks.tiles import network
from cygnet.api import Wan
from cygnet.media.frames import Frames, to_uint8
from cygnet.media.quality import motion, psnr, ssim
from cygnet.models.dit.config import T2V_1_3B, DiTConfig
from cygnet.models.taehv.model import PreviewDecoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.nodes.previews import decoded_preview, preview
from cygnet.pipelines.conditioning import Conditioning, encode_text
from cygnet.pipelines.denoise import Guidance, Sampling, denoise, make_noise
from cygnet.pipelines.sizes import FRAME_STRIDE, latent_grid
from cygnet.solvers import StepReport

SHOWN_AFTER = (0.25, 0.5, 1.0)
"""Shares of the steps."""
CELL = 8
"""Pixels that a latent is wide."""
FULL_SIZE = (256, 256, 9)
"""Width, height and frames whose decoding is timed: as many as the studio decodes by TAEHV for a picture."""


@dataclass
class Run:
    """An exact run: its frames, and the estimates of its end after each step, ``[1, 16, t, h, w]``."""

    frames: Frames
    estimates: list[torch.Tensor]
    seconds: float
    """Of denoising."""


@torch.no_grad()
def run(wan: Wan, prompt: str, seed: int, **options: Any) -> Run:
    """The video that ``generate`` makes, walked once more to see the estimates on the way."""
    video = wan.generate(prompt, seed=seed, **options)
    asked, parts = video.receipt["request"], wan.model.components
    with parts.use_text_encoder() as encoder:
        context, negative = (
            encode_text(encoder, parts.tokenizer, text)[0] for text in (prompt, asked["negative_prompt"])
        )
    noise = make_noise(latent_grid(asked["num_frames"], asked["width"], asked["height"]), 16, seed)
    before, estimates = noise, list[torch.Tensor]()

    def look(step: StepReport) -> None:
        nonlocal before
        estimates.append(before - step.timestep / 1000 * step.velocity)
        before = step.latents

    sampling = Sampling(solver=asked["solver"], num_steps=asked["num_steps"], shift=asked["shift"], seed=seed)
    with parts.use_dit() as dit:
        started = time.process_time()
        done = denoise(
            dit,
            noise,
            Conditioning(context=context, negative_context=negative),
            sampling,
            Guidance(scale=asked["guidance_scale"]),
            on_step=look,
        )
        seconds = time.process_time() - started
    if not (decoded(wan, done) == video.frames).all():
        raise SystemExit("the walk that was looked at gave another video than `generate`; nothing is measured")
    return Run(video.frames, estimates, seconds)


def decoded(wan: Wan, latents: torch.Tensor) -> Frames:
    """All frames, ``[T, H, W, 3]``."""
    with wan.model.components.use_vae() as vae:
        return to_uint8(vae.decode(latents, chunk=latents.shape[2]))


def pictures(latents: torch.Tensor, config: DiTConfig) -> Frames:
    """What the studio would show of every latent frame, ``[t, H, W, 3]``."""
    shown = [preview(latents[:, :, i : i + 1], config) for i in range(latents.shape[2])]
    return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in shown])


def stood_for(frames: Frames) -> Frames:
    """Of ``[4t - 3, H, W, 3]`` the frames that latents are held against, ``[t, H, W, 3]``."""
    return frames[[0, *range(FRAME_STRIDE - 1, len(frames), FRAME_STRIDE)]]


def cells(frames: Frames) -> Frames:
    """The mean colours of latents' squares, ``[t, H / 8, W / 8, 3]``."""
    count, height, width, _ = frames.shape
    means = frames.reshape(count, height // CELL, CELL, width // CELL, CELL, 3).mean((2, 4))
    return means.round().astype(np.uint8)


def likeness(shown: list[Frames], exact: list[Frames]) -> dict[str, float]:
    """Medians over videos, and the least."""
    pairs = list(zip(shown, exact, strict=True))
    apart = [psnr(a, b) for a, b in pairs]
    return {
        "psnr": statistics.median(apart),
        "psnr_least": min(apart),
        "psnr_cells": statistics.median(psnr(cells(a), cells(b)) for a, b in pairs),
        "ssim": statistics.median(ssim(a, b) for a, b in pairs),
        "motion": statistics.median(motion(a) / motion(b) for a, b in pairs),
    }


def compare(wan: Wan, runs: list[Run], config: DiTConfig) -> list[dict[str, Any]]:
    """A row for each way and step."""
    exact = [stood_for(one.frames) for one in runs]
    total = len(runs[0].estimates)
    ways: dict[str, Callable[[torch.Tensor], Frames]] = {
        "latents' colours": lambda latents: pictures(latents, config),
        "decoded by the VAE": lambda latents: stood_for(decoded(wan, latents)),
    }
    rows: list[dict[str, Any]] = []
    for way, show in ways.items():
        for share in SHOWN_AFTER:
            step = round(share * total)
            found = likeness([show(one.estimates[step - 1]) for one in runs], exact)
            rows.append({"way": way, "step": step, "steps": total, **found})
    return rows


def timed(works: Mapping[str, Work], rounds: int) -> list[dict[str, Any]]:
    """Processor seconds of each."""
    found = in_turn(works, rounds, clock=time.process_time)
    return [{"what": name, "seconds": it.median, "quartiles": it.quartiles} for name, it in found.items()]


def embedded_costs(wan: Wan, one: Run, config: DiTConfig, rounds: int) -> list[dict[str, Any]]:
    """What a picture takes beside decoding and denoising the video."""
    latents = one.estimates[-1]
    works: dict[str, Work] = {
        "a picture of latents' colours": lambda: torch.tensor(len(preview(latents, config))),
        "the VAE, 17 frames": lambda: torch.from_numpy(decoded(wan, latents)),
    }
    return [*timed(works, rounds), {"what": "denoising", "seconds": one.seconds, "quartiles": None}]


@torch.no_grad()
def full_size_costs(rounds: int) -> list[dict[str, Any]]:
    """What a picture of the published models' latents takes; random weights, for only time is asked."""
    width, height, frames = FULL_SIZE
    grid = latent_grid(frames, width, height)
    latents = torch.randn(1, 16, *grid, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    taehv = PreviewDecoder().eval()
    vaes = {name: network(WAN_VAE, dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    # The middle latent of five is decoded with the two before it: three, as of the others.
    five = torch.cat((latents, latents[:, :, 1:]), dim=2)
    works: dict[str, Work] = {
        "a picture of latents' colours": lambda: torch.tensor(len(preview(latents, T2V_1_3B))),
        "a picture by TAEHV": lambda: torch.tensor(len(decoded_preview(five, taehv))),
        "TAEHV, 9 frames": lambda: taehv(latents),
    }
    for name, vae in vaes.items():
        works[f"the VAE, 9 frames, {name}"] = lambda vae=vae: vae.decode(latents, chunk=grid[0])  # type: ignore[misc]
    return timed(works, rounds)


NOT_MEASURED = {
    "previews by TAEHV": "its published weights could not be had, and it does not read the embedded model's latents",
    "latents' colours of published models": "no published weights could be had; their factors are the published ones",
    "8-bit attention": "needs SageAttention on a GPU",
}
"""Options whose likeness to the exact run no figure is known of, and why."""


def table(result: Mapping[str, Any]) -> str:
    """Likeness, what of it is not known, and time, as Markdown."""
    lines = [
        "| preview | after step | PSNR, dB (least) | PSNR of colours, dB | SSIM | motion |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['way']} | {row['step']} of {row['steps']} | {row['psnr']:.1f} ({row['psnr_least']:.1f}) "
            f"| {row['psnr_cells']:.1f} | {row['ssim']:.3f} | {row['motion']:.2f} |"
        )
    lines += ["", "| what | likeness |", "|---|---|"]
    lines += [f"| {what} | not measured: {why} |" for what, why in NOT_MEASURED.items()]
    lines += ["", "| network | what | processor time |", "|---|---|---|"]
    for name, title in (
        ("embedded", "embedded, 128x128"),
        ("full_size", "full size, random weights, {}x{}".format(*FULL_SIZE)),
    ):
        for row in result[name]:
            spread = "" if row["quartiles"] is None else " ({}–{})".format(*map(_spoken, row["quartiles"]))
            lines.append(f"| {title} | {row['what']} | {_spoken(row['seconds'])}{spread} |")
    return "\n".join(lines) + "\n"


def _spoken(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def sheet(runs: list[Run], config: DiTConfig) -> Image.Image:
    """A line for each video: what is shown after each share of the steps, then the exact frame."""
    lines = []
    for one in runs:
        middle = one.estimates[0].shape[2] // 2
        steps = [round(share * len(one.estimates)) for share in SHOWN_AFTER]
        shown = [pictures(one.estimates[step - 1][:, :, middle : middle + 1], config)[0] for step in steps]
        lines.append(np.concatenate([*shown, stood_for(one.frames)[middle]], axis=1))
    return Image.fromarray(np.concatenate(lines))


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.previews", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of what is timed")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; 1 by default, which busy machines disturb least"
    )
    parser.add_argument("--json", type=output, help="write the figures here")
    parser.add_argument("--table", type=output, help="write them as Markdown tables here")
    parser.add_argument("--picture", type=output, help="show previews beside exact frames here, a .png or .webp")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give 1 or more")
    if options.picture and options.picture.suffix not in (".png", ".webp"):
        parser.error(f"--picture is {options.picture.name!r}; give a name that ends in .png or .webp")
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {**heading("benchmarks.previews"), "prompts": list(PROMPTS)}
    wan = cygnet.load("tiny-t2v", device="cpu", dtype="float32")
    config = wan.model.components.dit
    runs = [run(wan, prompt, number) for number, prompt in enumerate(PROMPTS)]
    if options.picture:
        write_picture(options.picture, sheet(runs, config))
    result["rows"] = compare(wan, runs, config)
    result["not_measured"] = NOT_MEASURED
    result["embedded"] = embedded_costs(wan, runs[0], config, options.rounds)
    print("the embedded model is measured; now the time of full size", file=sys.stderr, flush=True)
    result["full_size"] = full_size_costs(options.rounds)
    result["full_size_frames"] = "{}x{}, {} frames".format(*FULL_SIZE)
    if options.json:
        write_json(options.json, result)
    text = table(result)
    print(text, end="")
    if options.table:
        write_text(options.table, text)


if __name__ == "__main__":
    main()
