"""Training clips as latents, encoded once and kept in shards.

    python -m recipes.tiny.latents clips    --vae weights/vae.safetensors --out runs/latents
    python -m recipes.tiny.latents pictures --vae weights/vae.safetensors --out runs/pictures

``clips`` are whole clips; ``pictures`` are what an image-to-video model is given of each: its first frame, then grey.
Clip i is drawn from the seed (17, i), so a shard needs no labels: its scenes can be drawn again. Shards appear whole,
and those that are there are not made again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cygnet import load_vae
from cygnet.models.vae.model import WanVAE
from recipes.tiny.world import FRAMES, Scene, Track, random_scene, random_tracks, render

SHARD = 250
TWO = 0.45
"""Share of clips with two entities."""


def _drawn(index: int) -> tuple[Scene, tuple[Track, ...]]:
    rng = np.random.default_rng([17, index])
    scene = random_scene(rng, two=TWO)
    return scene, random_tracks(scene, rng)


def clip(index: int) -> tuple[Scene, np.ndarray]:
    """Training clip ``index``: its scene and its frames, uint8 ``[17, 128, 128, 3]``."""
    scene, tracks = _drawn(index)
    return scene, render(scene, tracks)


def first_frame(index: int) -> np.ndarray:
    """The first frame of training clip ``index``, uint8 ``[128, 128, 3]``, without drawing the others."""
    scene, tracks = _drawn(index)
    frame: np.ndarray = render(scene, tuple(track.frame(0) for track in tracks))[0]
    return frame


def scene_of(index: int) -> Scene:
    """The scene of training clip ``index``, without drawing it."""
    return random_scene(np.random.default_rng([17, index]), two=TWO)


def to_video(frames: np.ndarray) -> torch.Tensor:
    """uint8 ``[T, H, W, 3]`` -> ``[1, 3, T, H, W]`` in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def latents_of(vae: WanVAE, frames: np.ndarray) -> torch.Tensor:
    """Latents ``[16, 5, 16, 16]`` of a whole clip."""
    return vae.encode(to_video(frames), chunk=1)[0]


def condition_of(vae: WanVAE, frame: np.ndarray) -> torch.Tensor:
    """Latents ``[16, 5, 16, 16]`` of a clip that is ``frame`` (uint8 ``[H, W, 3]``) and then grey."""
    video = torch.zeros(1, 3, FRAMES, *frame.shape[:2])
    video[:, :, :1] = to_video(frame[None])
    return vae.encode(video, chunk=1)[0]


def encode_shards(
    encode: Callable[[int], torch.Tensor], folder: Path, clips: int, *, part: int = 0, parts: int = 1
) -> None:
    """Write every missing shard of the first ``clips`` clips: float16 ``[250, 16, 5, 16, 16]`` each.

    Of several processes that share the work, number ``part`` of ``parts`` makes every ``parts``-th shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(part, clips // SHARD, parts):
        path = folder / f"{number:05d}.npy"
        if path.exists():
            continue
        rows = [encode(number * SHARD + i).half().numpy() for i in range(SHARD)]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.stack(rows))
        os.replace(partial, path)
        print(f"shard {number + 1} of {clips // SHARD}", flush=True)


class Latents:
    """All shards of a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        there = sorted(folder.glob("*.npy"))
        names = [f"{number:05d}.npy" for number in range(len(there))]
        if not there or [path.name for path in there] != names:
            raise SystemExit(f"{folder} lacks shards (it has {len(there)}); make them with recipes.tiny.latents")
        self.shards: list[np.ndarray] = [np.load(path, mmap_mode="r") for path in there]

    def __len__(self) -> int:
        return len(self.shards) * SHARD

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.shards[index // SHARD][index % SHARD], dtype=np.float32))


def main() -> None:
    """Parse arguments; share the work among one process per core, which is faster than threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("clips", "pictures"))
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--parts", type=int, default=os.cpu_count() or 1, help="how many processes share the work")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clips < 1 or options.clips % SHARD:
        parser.error(f"--clips is {options.clips}; it must be a multiple of {SHARD}, the size of a shard")
    if options.part is None:
        again = [sys.executable, "-m", "recipes.tiny.latents", *sys.argv[1:]]
        workers = [subprocess.Popen([*again, "--part", str(part)]) for part in range(options.parts)]
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise SystemExit("a process failed; run the same command again to go on")
        return
    torch.set_num_threads(1)
    vae = load_vae(options.vae, dtype=torch.bfloat16).channels_last()

    def encode(index: int) -> torch.Tensor:
        if options.kind == "clips":
            return latents_of(vae, clip(index)[1])
        return condition_of(vae, first_frame(index))

    encode_shards(encode, options.out, options.clips, part=options.part, parts=options.parts)


if __name__ == "__main__":
    main()
