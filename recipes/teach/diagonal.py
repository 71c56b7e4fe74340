"""Teach the embedded text-to-video model a motion that it has never seen, from 20 clips, and measure what came of it.

    python -m recipes.teach.diagonal lora --out runs/diagonal-lora
    python -m recipes.teach.diagonal full --out runs/diagonal-full

Makes the clips of the new motion, has the model itself make clips of what it knows, and trains with ``cygnet train``
(which goes on where it was stopped) on the first while holding the model to the second. Then the analytic checker
judges videos of the new motion with colours and shapes that no clip shows, and of everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.assembly import load_dit, load_text_encoder, load_vae
from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.media.video import open_writer
from cygnet.training.config_file import read_config
from cygnet.training.loop import StepReport
from cygnet.training.start import train
from recipes.tiny.captions import plain_caption
from recipes.tiny.evaluate import Parts, Sampling, decode, held_out_scenes, make_latents, measure_t2v, sheet
from recipes.tiny.world import (
    BACKGROUNDS,
    COLOURS,
    DIAGONAL,
    FPS,
    SHAPES,
    SIZE,
    Entity,
    Scene,
    random_scene,
    random_tracks,
    render,
)

CLIPS = 20
PRESERVED = 120
"""Clips that the model makes itself of what it knows."""
TOGETHER = 8
"""So many of them at once."""
MEASURED = Sampling(steps=10)
"""Half the usual steps, with products in bfloat16: measuring would otherwise take longer than teaching."""
SETTINGS = {
    "lora": """
steps = 140
batch = 4

[lora]
rank = 16

[optimizer]
rate = 2e-3
""",
    "full": """
steps = 140
batch = 4

[optimizer]
rate = 3e-4
""",
}
"""What each way of training needs; everything else is as ``cygnet train`` has it by default."""
TEMPLATE = """\
# Written by recipes.teach.diagonal.
method = "{method}"
model = "tiny-t2v"
output = "run"
device = "cpu"
{settings}
[data]
path = "clips"
sizes = ["128x128"]
frames = [17]

[memory]
checkpointing = "none"

[objective]
caption_dropout = 0

[preserve]
path = "known"
batch = 8
weight = 4

[every]
log = 20
save = 40
"""


def combinations() -> tuple[list[Scene], list[Scene]]:
    """Scenes with the new motion: those of the clips, and every other pair of colour and shape for measuring."""
    rng = np.random.default_rng(5)
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    backgrounds = list(BACKGROUNDS)
    scenes = [
        Scene((Entity(colour, shape, DIAGONAL),), backgrounds[number % len(backgrounds)])
        for number, (colour, shape) in enumerate(pairs)
    ]
    return scenes[:CLIPS], scenes[CLIPS:]


def write_clips(folder: Path) -> None:
    """The training clips as videos with captions beside them; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(combinations()[0]):
        path = folder / f"{number:02d}.mp4"
        if path.exists():
            continue
        frames = render(scene, random_tracks(scene, np.random.default_rng([5, number])))
        write_video(path, frames)
        path.with_suffix(".txt").write_text(plain_caption(scene) + "\n", encoding="utf-8")


def preserved() -> list[str]:
    """Captions of known motions for which the model should stay as it is."""
    return [plain_caption(random_scene(np.random.default_rng([77, number]))) for number in range(PRESERVED)]


def write_known(parts: Parts, folder: Path) -> None:
    """Videos that the model makes for :func:`preserved`, with captions beside them; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = preserved()
    for start in range(0, PRESERVED, TOGETHER):
        paths = [folder / f"{start + number:03d}.mp4" for number in range(TOGETHER)]
        if all(path.exists() for path in paths):
            continue
        some = captions[start : start + TOGETHER]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            videos = decode(parts.vae, make_latents(parts.dit, parts.text, some, MEASURED, seed=50_000 + start))
        for path, caption, frames in zip(paths, some, videos, strict=True):
            path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
            write_video(path, frames)
        print(f"made {start + TOGETHER} of {PRESERVED} clips of what it knows", flush=True)


def write_video(path: Path, frames: np.ndarray) -> None:
    """uint8 ``[T, H, W, 3]`` as a video, in place of one that may be there."""
    settings = {"width": SIZE, "height": SIZE, "fps": FPS, "quality": 10, "num_frames": len(frames)}
    with open_writer(path, overwrite=True, **settings) as writer:  # type: ignore[arg-type]
        writer.write(frames)


def measured_scenes(count: int) -> list[Scene]:
    """``count`` scenes of unseen combinations, on every background in turn."""
    unseen, backgrounds = combinations()[1], list(BACKGROUNDS)
    return [
        Scene(unseen[i % len(unseen)].entities, backgrounds[(i // len(unseen) + i) % len(backgrounds)])
        for i in range(count)
    ]


def measure(parts: Parts, prompts: int, picture: Path | None) -> dict[str, Any]:
    """Share of right videos: the new motion, and the embedded model's own held-out prompts of one and two things.

    Noise depends on a prompt's place in its list alone, so what comes before and after a training can be compared.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        new, rows = measure_t2v(parts, measured_scenes(prompts), MEASURED)
        if picture is not None:
            sheet(rows, picture)
        one, _ = measure_t2v(parts, held_out_scenes(prompts, entities=1), MEASURED)
        two, _ = measure_t2v(parts, held_out_scenes(prompts, entities=2), MEASURED)
    return {DIAGONAL: new, "one thing": one, "two things": two}


def parts_with(result: Path | None, method: str) -> Parts:
    """The embedded model, with a LoRA or with another transformer."""
    base = EMBEDDED / "t2v.safetensors"
    if result is None:
        dit = load_dit(base)
    elif method == "lora":
        dit = load_dit(base, loras=[result])
    else:
        dit = load_dit(result)
    return Parts(dit, load_vae(EMBEDDED / "vae.safetensors"), load_text_encoder(EMBEDDED / "text_encoder.safetensors"))


def main() -> None:
    """Parse arguments, make the clips, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=tuple(SETTINGS))
    parser.add_argument("--out", type=Path, required=True, help="folder of clips, training and figures")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind, to measure with; 0 measures nothing")
    parser.add_argument("--before", action="store_true", help="measure the embedded model too, for comparison")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="1 where others use the machine too")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; give 1 or more")
    torch.set_num_threads(options.threads)
    clocks = time.monotonic(), time.process_time()
    write_clips(options.out / "clips")
    write_known(parts_with(None, options.method), options.out / "known")
    clocks = time.monotonic() - clocks[0], time.process_time() - clocks[1]
    settings = options.out / "train.toml"
    text = TEMPLATE.format(method=options.method, settings=SETTINGS[options.method])
    settings.write_text(text, encoding="utf-8")

    def on_step(report: StepReport) -> None:
        if report.step % 20 == 0:
            print(f"step {report.step} of {report.total}, loss {report.loss:.4f}", flush=True)

    outcome = train(read_config(settings), on_step=on_step)
    figures: dict[str, Any] = {
        "method": options.method,
        "steps": outcome.step,
        "threads": options.threads,
        "wall seconds": {"clips": round(clocks[0]), "training": round(outcome.wall_seconds)},
        "processor seconds": {"clips": round(clocks[1]), "training": round(outcome.cpu_seconds)},
        "validation loss": outcome.validation,
    }
    if options.prompts:
        if options.before:
            figures["before"] = measure(parts_with(None, options.method), options.prompts, None)
        figures["after"] = measure(
            parts_with(outcome.result, options.method), options.prompts, options.out / "after.png"
        )
    text = json.dumps(figures, indent=1)
    (options.out / "figures.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
