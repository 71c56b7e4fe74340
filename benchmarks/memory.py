"""``python -m benchmarks.memory FOLDER``: peak memory of text-to-video with full-size seeded weights.

Writes the weights of T2V-1.3B, UMT5-XXL (bfloat16) and Wan-VAE into FOLDER once, 15 GB, then makes a small video from
them in a process of its own for each way of holding weights, and decodes 33 and 321 frames of 128x128. Decoding alone
needs the VAE alone, 0.5 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

import cygnet
from benchmarks.measure import heading
from benchmarks.report import output, write_json
from benchmarks.seeded import seeded
from cygnet.checkpoints import read_component, save_official
from cygnet.checkpoints.catalogue import resolve
from cygnet.checkpoints.detect import ComponentConfig
from cygnet.models.dit.config import T2V_1_3B
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5_XXL
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.sizes import latent_frames_at_once

WAYS = {"stages": True, "stream": "stream"}
DECODED = {"decode-33": 33, "decode-321": 321}
PARTS: dict[str, tuple[type[torch.nn.Module], ComponentConfig, torch.dtype]] = {
    "dit": (DiT, T2V_1_3B, torch.bfloat16),
    "text_encoder": (UMT5Encoder, UMT5_XXL, torch.bfloat16),
    "vae": (WanVAE, WAN_VAE, torch.float32),
}


TARGETS = {"stages": 12.5, "stream": 4.0}
"""Peak GiB of a video at most."""
MORE = 0.05
"""Share that the longest decoding may take beyond the shortest."""


def needed(ways: Collection[str]) -> list[str]:
    """The networks that those ways read."""
    return list(PARTS) if any(way in WAYS for way in ways) else ["vae"]


def write(folder: Path, names: Collection[str]) -> None:
    """The weight files that are not there yet; the text encoder borrows the embedded model's vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = read_component(resolve("tiny-t2v")["text_encoder"], "text_encoder").tokenizer_bytes
    for name in names:
        kind, config, dtype = PARTS[name]
        path = folder / f"{name}.safetensors"
        if not path.exists():
            state = seeded(kind, config, dtype).state_dict()
            save_official(path, state, config, tokenizer=tokenizer if name == "text_encoder" else None)


def make(folder: Path, way: str, steps: int) -> None:
    """Make the video and print what it took."""
    # The published vocabulary could not be had; which rows of the embedding are read does not matter here.
    Tokenizer.check_fits = lambda self, vocab_size: None  # type: ignore[method-assign]
    started = time.perf_counter()
    paths = {name: folder / f"{name}.safetensors" for name in PARTS}
    wan = cygnet.load(paths, device="cpu", dtype=torch.bfloat16, offload=WAYS[way])  # type: ignore[arg-type]
    wan.generate("a red ball", num_frames=17, size=(256, 256), num_steps=steps, seed=1)
    tell(way, started)


def decode(folder: Path, way: str) -> None:
    """Decode noise chunk by chunk, as a video is written, and print what it took."""
    started = time.perf_counter()
    vae = cygnet.load_vae(folder / "vae.safetensors", decode_dtype="auto")
    latents = torch.randn(1, 16, 1 + (DECODED[way] - 1) // 4, 16, 16, generator=torch.Generator().manual_seed(1))
    for _ in vae.decode_chunks(latents, chunk=latent_frames_at_once(16, 16)):
        pass
    tell(way, started)


def tell(way: str, started: float) -> None:
    """Print the peak resident memory of this process, and the time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"way": way, "peak_gib": round(peak / 2**30, 3), "seconds": round(time.perf_counter() - started)}))


def in_its_own_process(folder: Path, part: str, steps: int) -> str:
    """What one part prints; the program ends, saying so, where that fails."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder), "--steps", str(steps), "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode < 0:
        sys.exit(f"{part} was ended by signal {-done.returncode}; 9 is what a machine without memory left gives")
    if done.returncode:
        sys.exit(f"{part} failed; why is said above")
    return done.stdout


def judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each target of which all that it needs was measured: the figure, what is allowed, and whether it is kept."""
    peaks = {row["way"]: row["peak_gib"] for row in rows}
    found = {way: {"peak_gib": peaks[way], "at_most": most} for way, most in TARGETS.items() if way in peaks}
    kept = {way: {**it, "kept": it["peak_gib"] <= it["at_most"]} for way, it in found.items()}
    short, long = DECODED
    if short in peaks and long in peaks:
        more = peaks[long] / peaks[short] - 1
        kept[long] = {"more": round(more, 4), "at_most": MORE, "kept": more <= MORE}
    return kept


def chosen(text: str) -> list[str]:
    """The ways of ``--only``, in the order in which all are measured."""
    every = [*WAYS, *DECODED]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in every:
            raise argparse.ArgumentTypeError(f"there is no {name!r}; choose some of {','.join(every)}")
    return [name for name in every if name in names]


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3, help="of each video; 3 by default, for two hide what adds up")
    every = [*WAYS, *DECODED]
    parser.add_argument("--only", type=chosen, default=every, metavar="WAY,...", help=f"some of {','.join(every)}")
    parser.add_argument("--json", type=output, help="write the figures here")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part and options.part.startswith("write:"):
        write(options.folder, options.part.removeprefix("write:").split(","))
    elif options.part in DECODED:
        decode(options.folder, options.part)
    elif options.part:
        make(options.folder, options.part, options.steps)
    else:
        result: dict[str, Any] = {**heading("benchmarks.memory"), "steps": options.steps, "rows": []}
        in_its_own_process(options.folder, f"write:{','.join(needed(options.only))}", options.steps)
        for part in options.only:
            told = in_its_own_process(options.folder, part, options.steps)
            result["rows"].append(json.loads(told.splitlines()[-1]))
            print(told.splitlines()[-1], flush=True)
            if options.json:
                write_json(options.json, {**result, "targets": judged(result["rows"])})


if __name__ == "__main__":
    main()
