"""Training clips as latents, encoded once and kept in shards.

    python -m recipes.tiny.latents --vae weights/vae.safetensors --out runs/latents --clips 12000

Clip i is drawn from the seed (17, i), so a shard needs no labels: its scenes can be drawn again. Shards appear whole,
so training may start while later ones are still being made.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from cygnet.models.vae.model import WanVAE
from recipes.tiny.world import Scene, random_scene, random_tracks, render

SHARD = 250
TWO = 0.45
"""Share of clips with two entities."""


def clip(index: int) -> tuple[Scene, np.ndarray]:
    """Training clip ``index``: its scene and its frames, uint8 ``[17, 128, 128, 3]``."""
    rng = np.random.default_rng([17, index])
    scene = random_scene(rng, two=TWO)
    return scene, render(scene, random_tracks(scene, rng))


def scene_of(index: int) -> Scene:
    """The scene of training clip ``index``, without drawing it."""
    return random_scene(np.random.default_rng([17, index]), two=TWO)


def to_video(frames: np.ndarray) -> torch.Tensor:
    """uint8 ``[T, H, W, 3]`` -> ``[1, 3, T, H, W]`` in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def encode_shards(vae: WanVAE, folder: Path, clips: int) -> None:
    """Write every missing shard of the first ``clips`` clips: float16 ``[250, 16, 5, 16, 16]`` each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips // SHARD):
        path = folder / f"{number:05d}.npy"
        if path.exists():
            continue
        rows = [vae.encode(to_video(clip(number * SHARD + i)[1]), chunk=4)[0].half().numpy() for i in range(SHARD)]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.stack(rows))
        os.replace(partial, path)
        print(f"shard {number + 1} of {clips // SHARD}", flush=True)


class Latents:
    """All shards present, memory-mapped; call :meth:`refresh` to see new ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[np.ndarray] = []
        self.refresh()

    def refresh(self) -> int:
        """Number of clips now known. Shards are taken in order, up to the first gap."""
        while (path := self.folder / f"{len(self.shards):05d}.npy").exists():
            self.shards.append(np.load(path, mmap_mode="r"))
        return len(self.shards) * SHARD

    def __len__(self) -> int:
        return len(self.shards) * SHARD

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.shards[index // SHARD][index % SHARD], dtype=np.float32))


if __name__ == "__main__":
    from cygnet import load_vae

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=12000)
    options = parser.parse_args()
    encode_shards(load_vae(options.vae, dtype=torch.bfloat16).channels_last(), options.out, options.clips)
