"""Teach the embedded text-to-video model a motion that it has never seen, from 20 clips, and measure what came of it.

    python -m recipes.teach.diagonal lora --out runs/diagonal-lora
    python -m recipes.teach.diagonal full --out runs/diagonal-full

Makes the clips and a training file, trains with ``cygnet train`` (which goes on where it was stopped), and has the
analytic checker judge videos of the new motion with colours and shapes that no clip shows, and of everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
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
from recipes.tiny.evaluate import Parts, Sampling, held_out_scenes, measure_t2v, sheet
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
EMPTY = 24
"""Preserved prompts without words: guidance leads away from what they give, so that must not learn it."""
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
batch = 4
captions = [
{captions}
]

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
        with open_writer(path, width=SIZE, height=SIZE, fps=FPS, quality=10, num_frames=len(frames)) as writer:
            writer.write(frames)
        path.with_suffix(".txt").write_text(plain_caption(scene) + "\n", encoding="utf-8")


def preserved() -> str:
    """Captions of known motions for which the model should stay as it is; none holds a pair that is measured."""
    scenes = [random_scene(np.random.default_rng([77, number])) for number in range(PRESERVED)]
    captions = [plain_caption(scene) for scene in scenes] + [""] * EMPTY
    return ",\n".join(f"  {json.dumps(text)}" for text in captions)


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
    write_clips(options.out / "clips")
    settings = options.out / "train.toml"
    text = TEMPLATE.format(method=options.method, settings=SETTINGS[options.method], captions=preserved())
    settings.write_text(text, encoding="utf-8")

    def on_step(report: StepReport) -> None:
        if report.step % 20 == 0:
            print(f"step {report.step} of {report.total}, loss {report.loss:.4f}", flush=True)

    outcome = train(read_config(settings), on_step=on_step)
    figures: dict[str, Any] = {
        "method": options.method,
        "steps": outcome.step,
        "wall seconds": round(outcome.wall_seconds),
        "processor seconds": round(outcome.cpu_seconds),
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
