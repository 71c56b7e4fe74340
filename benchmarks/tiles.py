"""``python -m benchmarks.tiles``: the VAE in tiles beside the VAE on whole frames: pixels, memory and time.

First how far pixels and latents are apart, for tiles that see less of their neighbours than they must, as much, and
more: everywhere, and in the columns and rows on either side of a seam. Then peak memory and time of decoding, each way
in a process of its own, beside what the plan has of it. Six minutes of processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch
import torch.nn.functional as F

import cygnet
from benchmarks.measure import heading
from benchmarks.report import output, write_json
from benchmarks.seeded import seeded
from cygnet.models.vae.config import TINY_VAE, WAN_VAE, VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines import tiles as tiling
from cygnet.pipelines.tiles import decode_chunks, encode_chunks
from cygnet.planning import stages
from cygnet.planning.tiling import demand
from cygnet.runtime.convolution import fit_processor
from cygnet.runtime.memory import give_back_pieces
from cygnet.types import Tiles

FILM = (9, 192, 256)
TILES = Tiles(width=64, height=64)
MEASURED: dict[str, tuple[VAEConfig, tuple[int, int], int, Tiles]] = {
    "embedded": (TINY_VAE, (1280, 720), 4, Tiles(width=320, height=360)),
    "full size": (WAN_VAE, (480, 320), 3, Tiles(width=240, height=160)),
}
"""Network, width and height, latent frames, tiles."""


def network(config: VAEConfig, decode_dtype: torch.dtype) -> WanVAE:
    """The embedded network, or one of full size with seeded weights."""
    if config == TINY_VAE:
        return cygnet.load_vae("tiny-vae", decode_dtype=decode_dtype)
    vae: WanVAE = seeded(WanVAE, config, torch.float32)
    return fit_processor(vae.decode_in(decode_dtype).channels_last())


def film() -> torch.Tensor:
    """``[1, 3, T, H, W]``: soft shapes that change."""
    frames, height, width = FILM
    coarse = torch.rand(frames, 3, height // 32, width // 32, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 2 - 1).permute(1, 0, 2, 3)[None]


def pieces(video: torch.Tensor) -> Iterator[torch.Tensor]:
    yield video[:, :, :1]
    yield from video[:, :, 1:].split(4, dim=2)


@torch.no_grad()
def compare(name: str, config: VAEConfig, margins: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """How far tiles are from whole frames."""
    video, enough = film(), tiling.margin
    for dtype in (torch.float32, torch.bfloat16):
        vae = network(config, dtype)
        latents = vae.encode(video)
        whole = torch.cat(list(decode_chunks(vae, latents)), dim=2)
        for margin in margins:
            tiling.margin = lambda _, cells=margin: cells  # type: ignore[misc, assignment]
            apart = (torch.cat(list(decode_chunks(vae, latents, tiles=TILES)), dim=2) - whole).abs().amax((0, 1, 2))
            seam = max(float(apart[at - 1 : at + 1].max()) for at in range(TILES.height, FILM[1], TILES.height))
            encoded = torch.cat(list(encode_chunks(vae, pieces(video), tiles=TILES)), dim=2)
            tiling.margin = enough
            told = {"network": name, "decoded in": str(dtype).removeprefix("torch."), "margin": margin}
            told |= {"pixels": float(apart.max()), "at seams": seam, "latents": float((encoded - latents).abs().max())}
            yield told


@torch.no_grad()
def measure(name: str, tiled: bool) -> dict[str, Any]:
    """Decode noise: what it took beside weights, and what is planned."""
    config, (width, height), length, tiles = MEASURED[name]
    dtype, grid = torch.bfloat16, (length, height // 8, width // 8)
    vae, latents = network(config, dtype), torch.randn(1, 16, *grid, generator=torch.Generator().manual_seed(1))
    process, peak, done = psutil.Process(), 0, threading.Event()
    give_back_pieces()  # of the making of weights, which the run would else give back and seem to take less
    base = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    for _ in decode_chunks(vae, latents, chunk=1, tiles=tiles if tiled else None):
        pass
    took = time.process_time() - started
    done.set()
    watcher.join()
    if tiled:
        planned = demand(config, dtype, grid, tiles, "decode", on_processor=True)
    else:
        planned = stages.decode(config, dtype, grid, 1, on_processor=True)
    told: dict[str, Any] = {"network": name, "size": f"{width}x{height}", "latent frames": length}
    told |= {"tiles": f"{tiles.count(width, height)} of {tiles}" if tiled else "none"}
    told |= {"planned MiB": planned.cost.peak >> 20, "measured MiB": (peak - base) >> 20}
    told |= {"TFLOP": round(math.fsum(it.flops for it in planned.work) / 1e12, 2), "processor seconds": round(took, 1)}
    return told


def main() -> None:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles", description=__doc__)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=output, help="write the figures here")
    options = parser.parse_args()
    if options.part is not None:
        name, _, way = options.part.partition(":")
        print(json.dumps(measure(name, way == "tiles")))
        return
    result: dict[str, Any] = {**heading("benchmarks.tiles"), "differences": [], "costs": []}

    def tell(kind: str, row: dict[str, Any]) -> None:
        result[kind].append(row)
        print(json.dumps(row), flush=True)
        if options.json:
            write_json(options.json, result)

    for row in compare("embedded", TINY_VAE, (0, 1, 2, 3, 4)):
        tell("differences", row)
    for row in compare("seeded, 32 wide", VAEConfig(base_width=32), (2, 3)):
        tell("differences", row)
    for name in MEASURED:
        for way in ("whole", "tiles"):
            command = [sys.executable, "-m", "benchmarks.tiles", "--part", f"{name}:{way}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            tell("costs", json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
