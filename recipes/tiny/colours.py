"""The linear guess of a latent's colour that previews of the embedded models show.

    python -m recipes.tiny.colours --clips 80

Least squares between the VAE's normalised latents and the mean colours of what each stands for: 8x8 pixels of one frame
(the first) or four. Prints the factors, and on other clips how near they and those in ``cygnet.nodes.previews`` come.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from cygnet.assembly import load_vae
from cygnet.models.vae.model import WanVAE
from cygnet.nodes.previews import TINY, Colours
from recipes.tiny.latents import clip, to_video

FRESH = 1_000_000
"""Number of the first clip that factors are judged on; those of training have smaller ones."""


def samples(vae: WanVAE, numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents ``[n, 16]`` of those clips, and the colours ``[n, 3]`` in [-1, 1] that they stand for."""
    latents, colours = [], []
    for number in numbers:
        video = to_video(clip(number)[1])  # [1, 3, T, H, W]
        pooled = F.avg_pool2d(video[0].transpose(0, 1), 8)  # [T, 3, h, w]
        means = torch.cat((pooled[:1], pooled[1:].unflatten(0, (-1, 4)).mean(1)))  # [t, 3, h, w]
        latents.append(vae.encode(video, chunk=4)[0].permute(1, 2, 3, 0).reshape(-1, 16))
        colours.append(means.permute(0, 2, 3, 1).reshape(-1, 3))
    return torch.cat(latents), torch.cat(colours)


def fit(latents: torch.Tensor, colours: torch.Tensor) -> Colours:
    """The factors with the least squared error."""
    rows = torch.cat((latents, torch.ones(len(latents), 1)), dim=1).double()
    found = torch.linalg.lstsq(rows, colours.double()).solution.float()
    return Colours(found[:-1], found[-1])


def nearness(guess: Colours, latents: torch.Tensor, colours: torch.Tensor) -> float:
    """PSNR in dB of the guessed colours."""
    error = float((latents @ guess.weights + guess.bias - colours).square().mean())
    return 10 * math.log10(4 / error)


def main() -> None:
    """Parse arguments, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--judged", type=int, default=24, help="other clips, to judge by")
    parser.add_argument("--vae", type=Path, default=Path("src/cygnet/weights/tiny/vae.safetensors"))
    options = parser.parse_args()
    if min(options.clips, options.judged) < 1:
        parser.error("give 1 clip or more, both to fit and to judge")
    vae = load_vae(options.vae)
    found = fit(*samples(vae, range(options.clips)))
    others = samples(vae, range(FRESH, FRESH + options.judged))
    for row in found.weights.tolist():
        print("[" + ", ".join(f"{value:.4f}" for value in row) + "],")
    print("bias", [round(value, 4) for value in found.bias.tolist()])
    print(f"these: {nearness(found, *others):.2f} dB; those in use: {nearness(TINY, *others):.2f} dB")


if __name__ == "__main__":
    main()
