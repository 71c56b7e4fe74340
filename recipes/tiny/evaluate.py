"""Measure the tiny models on held-out prompts, with a checker that knows nothing of the renderer.

    python -m recipes.tiny.evaluate --prompts 200 --json out/tiny.json --sheet out/tiny.png

Text-to-video: the share of videos in which colour, shape, motion and background are all as the prompt says, for one
and for two entities, all of whose (colour, shape, motion) triples were held out of training. Image-to-video: likeness
of the first frame and the share with the right motion. VAE: peak signal-to-noise ratio on unseen clips.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cygnet.assembly import ImageEncoder, TextEncoder, load_dit, load_image_encoder, load_text_encoder, load_vae
from cygnet.media.frames import to_uint8
from cygnet.media.quality import psnr
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.model import DiT
from cygnet.models.vae.model import WanVAE
from cygnet.solvers import sample
from recipes.tiny.captions import plain_caption
from recipes.tiny.checker import judge, judge_motion_only
from recipes.tiny.latents import condition_of, to_video
from recipes.tiny.train_i2v import mask_of
from recipes.tiny.world import Scene, random_scene, random_tracks, render

LATENTS = (16, 5, 16, 16)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the videos are made; the defaults are those of ``cygnet generate``."""

    steps: int = 20
    shift: float = 3.0
    guidance: float = 4.0
    solver: str = "unipc"
    batch: int = 8


def held_out_scenes(count: int, *, entities: int, seed: int = 4242) -> list[Scene]:
    """Scenes of held-out triples only."""
    rng = np.random.default_rng(seed + entities)
    return [random_scene(rng, two=float(entities == 2), held_out=True) for _ in range(count)]


@torch.no_grad()
def contexts(text: TextEncoder, prompts: list[str]) -> torch.Tensor:
    """``[B, n, D]``, zero rows behind shorter prompts (which the transformer reads as padding)."""
    rows = [text.encode(prompt).float() for prompt in prompts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.no_grad()
def make_latents(
    dit: DiT,
    text: TextEncoder,
    prompts: list[str],
    how: Sampling,
    seed: int,
    image_context: torch.Tensor | None = None,
    image_condition: torch.Tensor | None = None,
) -> torch.Tensor:
    """Latents of a batch of prompts."""
    prompt = dit.prepare(contexts(text, prompts), image_context)
    empty = dit.prepare(contexts(text, [""] * len(prompts)), image_context)

    def velocity(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        t = timestep.expand(len(prompts))
        wanted: torch.Tensor = dit(x, t, prompt, image_condition=image_condition)
        unwanted: torch.Tensor = dit(x, t, empty, image_condition=image_condition)
        return unwanted + how.guidance * (wanted - unwanted)

    noise = torch.randn(len(prompts), *LATENTS, generator=torch.Generator().manual_seed(seed))
    return sample(velocity, noise, how.solver, how.steps, how.shift)  # type: ignore[arg-type]


def decode(vae: WanVAE, latents: torch.Tensor) -> list[np.ndarray]:
    """uint8 ``[17, 128, 128, 3]`` of each row."""
    return [to_uint8(vae.decode(row[None], chunk=4)[0]) for row in latents]


def measure_vae(vae: WanVAE, clips: int) -> float:
    """Mean PSNR in dB over whole unseen clips."""
    rng = np.random.default_rng(777)
    values = []
    for _ in range(clips):
        scene = random_scene(rng)
        frames = render(scene, random_tracks(scene, rng))
        values.append(psnr(frames, decode(vae, vae.encode(to_video(frames), chunk=4))[0]))
    return float(np.mean(values))


@dataclass(frozen=True)
class Parts:
    """The networks of one model."""

    dit: DiT
    vae: WanVAE
    text: TextEncoder
    eye: ImageEncoder | None = None

    @classmethod
    def load(cls, folder: Path, name: str) -> Parts:
        """``name`` is ``t2v`` or ``i2v``; float32, as the command decodes."""
        return cls(
            load_dit(folder / f"{name}.safetensors"),
            load_vae(folder / "vae.safetensors").channels_last(),
            load_text_encoder(folder / "text_encoder.safetensors"),
            load_image_encoder(folder / "image_encoder.safetensors") if name == "i2v" else None,
        )


def measure_t2v(parts: Parts, scenes: list[Scene], how: Sampling) -> tuple[dict[str, float], list[Any]]:
    """Shares of right videos, and for each video its scene, verdict and frames."""
    rows = []
    for start in range(0, len(scenes), how.batch):
        some = scenes[start : start + how.batch]
        latents = make_latents(parts.dit, parts.text, [plain_caption(s) for s in some], how, seed=1000 + start)
        for scene, frames in zip(some, decode(parts.vae, latents), strict=True):
            verdict = judge(frames, [entity.triple for entity in scene.entities], scene.background)
            rows.append((scene, verdict, frames))
        print(f"{len(rows)}/{len(scenes)} all right: {np.mean([v.right for _, v, _ in rows]):.3f}", flush=True)
    keys = ("right", "colour", "shape", "motion", "background", "count")
    return {key: float(np.mean([getattr(v, key) for _, v, _ in rows])) for key in keys}, rows


def measure_i2v(parts: Parts, scenes: list[Scene], how: Sampling) -> tuple[dict[str, float], list[Any]]:
    """First-frame PSNR against the given picture, and the share with the right motion."""
    assert parts.eye is not None
    rng = np.random.default_rng(31337)
    rows = []
    for start in range(0, len(scenes), how.batch):
        some = scenes[start : start + how.batch]
        firsts = [render(scene, random_tracks(scene, rng))[0] for scene in some]
        pictures = torch.cat([to_video(first[None])[:, :, 0] for first in firsts])
        with torch.no_grad():
            tower = parts.eye.model
            tokens = tower(preprocess(pictures, tower.config.image_size)).float()
        condition = torch.stack([condition_of(parts.vae, first) for first in firsts])
        condition = torch.cat((mask_of(len(some), *condition.shape[2:]), condition), dim=1)
        prompts = [plain_caption(s) for s in some]
        latents = make_latents(parts.dit, parts.text, prompts, how, 2000 + start, tokens, condition)
        for scene, first, frames in zip(some, firsts, decode(parts.vae, latents), strict=True):
            moved = judge_motion_only(frames, [entity.triple for entity in scene.entities])
            rows.append((scene, moved, psnr(frames[0], first), frames))
    return {
        "first_frame_psnr": float(np.mean([row[2] for row in rows])),
        "motion": float(np.mean([row[1] for row in rows])),
    }, rows


def sheet(rows: list[Any], path: Path, limit: int = 16) -> None:
    """A contact sheet: one video a line, five of its frames."""
    lines = [np.concatenate(list(row[-1][::4]), axis=1) for row in rows[:limit]]
    half = (len(lines) + 1) // 2
    lines += [np.zeros_like(lines[0])] * (2 * half - len(lines))
    columns = [np.concatenate(lines[:half], axis=0), np.concatenate(lines[half:], axis=0)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(columns, axis=1)).save(path, optimize=True)


def failures(rows: list[Any]) -> dict[str, int]:
    """How often each attribute was wrong, by its value: what to look at next."""
    wrong: Counter[str] = Counter()
    for scene, verdict, _ in rows:
        if verdict.right:
            continue
        for entity in scene.entities:
            for name in ("colour", "shape", "motion"):
                if not getattr(verdict, name):
                    wrong[f"{name}: {getattr(entity, name)}"] += 1
    return dict(wrong.most_common(12))


def main() -> None:
    """Parse arguments, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=Sampling.steps)
    parser.add_argument("--shift", type=float, default=Sampling.shift)
    parser.add_argument("--guidance", type=float, default=Sampling.guidance)
    parser.add_argument("--only", choices=("vae", "t2v", "i2v"))
    parser.add_argument("--weights", type=Path, default=Path("src/cygnet/weights/tiny"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    how = Sampling(steps=options.steps, shift=options.shift, guidance=options.guidance)
    begun = time.monotonic()
    result: dict[str, Any] = {"prompts": options.prompts, "sampling": vars(how)}
    if options.only != "i2v":
        vae = load_vae(options.weights / "vae.safetensors").channels_last()
        result["vae_psnr"] = measure_vae(vae, 32)
        if options.only != "vae":
            parts = Parts.load(options.weights, "t2v")
            for entities in (1, 2):
                scenes = held_out_scenes(options.prompts, entities=entities)
                result[f"t2v_{entities}"], rows = measure_t2v(parts, scenes, how)
                result[f"t2v_{entities}_failures"] = failures(rows)
                if options.sheet:
                    sheet(rows, options.sheet.with_stem(f"{options.sheet.stem}-t2v-{entities}"))
    if options.only in (None, "i2v"):
        scenes = held_out_scenes(options.prompts, entities=1, seed=777)
        result["i2v"], rows = measure_i2v(Parts.load(options.weights, "i2v"), scenes, how)
        if options.sheet:
            sheet(rows, options.sheet.with_stem(f"{options.sheet.stem}-i2v"))
    result["seconds"] = round(time.monotonic() - begun, 1)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
