"""From finished training runs to the files that the package ships.

    python -m recipes.tiny.export --runs runs --out src/cygnet/weights/tiny

Writes whatever runs are there (or the one named by ``--only``): ``vae``, ``text``, ``clip``, ``t2v`` and ``i2v``, each
in the official layout.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.checkpoints.saving import save_official
from cygnet.models.clip.config import TINY_CLIP
from cygnet.models.dit.config import TINY_I2V, TINY_T2V
from cygnet.models.umt5.config import TINY_UMT5
from cygnet.models.vae.config import TINY_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.training.state import newest_state
from cygnet.training.vae import fold_statistics
from recipes.tiny.latents import clip, to_video
from recipes.tiny.make import FILES

LICENCE = {"licence": "Apache-2.0", "source": "cygnet recipes/tiny"}


def _state(run: Path) -> dict[str, Any]:
    state = newest_state(run)
    if state is None:
        raise SystemExit(f"{run} holds no checkpoint; train it first")
    return state


def averaged(run: Path) -> dict[str, torch.Tensor]:
    """The moving average of a run's weights."""
    return dict(_state(run)["average"]["shadow"])


def part_of(run: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The weights of one part of a run that trained two together."""
    state = _state(run)["both"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@torch.no_grad()
def latent_statistics(vae: WanVAE, clips: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation ``[16]`` of the raw latents over clips that no training uses."""
    raw = torch.cat([vae.denormalise(vae.encode(to_video(clip(10**6 + i)[1]), chunk=4)) for i in range(clips)])
    rows = raw.transpose(0, 1).flatten(1)
    return rows.mean(dim=1), rows.std(dim=1)


def finished_vae(run: Path) -> WanVAE:
    """The trained VAE with the published latent statistics."""
    vae = WanVAE(TINY_VAE).channels_last()
    vae.load_state_dict(averaged(run))
    # A channel that is hardly used must not be blown up to unit variance: the transformer would have to learn noise.
    mean, std = latent_statistics(vae)
    fold_statistics(vae, mean, std.clamp_min(0.25 * float(std.max())))
    return vae


def export(runs: Path, out: Path, names: Iterable[str] = FILES) -> None:
    """Write every named component whose run exists, and print what all of them weigh."""
    out.mkdir(parents=True, exist_ok=True)
    present = [name for name in names if (runs / name / "checkpoints").exists()]
    if "vae" in present:
        state = {name: value.contiguous() for name, value in finished_vae(runs / "vae").state_dict().items()}
        save_official(out / FILES["vae"], state, TINY_VAE, dtype=torch.float16, metadata=LICENCE, overwrite=True)
    if "text" in present:
        save_official(
            out / FILES["text"],
            part_of(runs / "text", "encoder."),
            TINY_UMT5,
            dtype=torch.bfloat16,
            tokenizer=(runs / "text" / "spiece.model").read_bytes(),
            metadata=LICENCE,
            overwrite=True,
        )
    if "clip" in present:
        save_official(
            out / FILES["clip"],
            part_of(runs / "clip", "tower."),
            TINY_CLIP,
            dtype=torch.bfloat16,
            metadata=LICENCE,
            overwrite=True,
        )
    for name, config in (("t2v", TINY_T2V), ("i2v", TINY_I2V)):
        if name in present:
            save_official(
                out / FILES[name],
                averaged(runs / name),
                config,
                dtype=torch.bfloat16,
                metadata=LICENCE,
                overwrite=True,
            )
    sizes = {path.name: path.stat().st_size for path in sorted(out.glob("*.safetensors"))}
    for name, size in sizes.items():
        print(f"{size / 2**20:7.2f} MiB  {name}")
    print(f"{np.sum(list(sizes.values())) / 2**20:7.2f} MiB  together")


def main() -> None:
    """Parse arguments and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=tuple(FILES))
    options = parser.parse_args()
    export(options.runs, options.out, (options.only,) if options.only else FILES)


if __name__ == "__main__":
    main()
