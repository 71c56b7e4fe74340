"""Make the gallery strip of the README with the embedded models, through the public API.

    python -m recipes.tiny.gallery --out docs/assets/gallery.webp

The upper row is made from prompts alone; the lower one from prompts and first frames, which the world draws. Nothing is
picked: the seed is the same for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import cygnet
from cygnet.media.video import open_writer
from recipes.tiny.world import Entity, Scene, random_tracks, render

SCENES = (
    Scene((Entity("red", "ball", "moves right"),), "black"),
    Scene((Entity("blue", "square", "bounces"),), "grey"),
    Scene((Entity("yellow", "star", "spins"),), "navy"),
    Scene((Entity("cyan", "triangle", "grows"),), "brown"),
    Scene((Entity("orange", "ball", "circles"),), "dark green"),
)
PICTURE_SCENES = (
    Scene((Entity("purple", "star", "moves up"),), "grey"),
    Scene((Entity("green", "triangle", "moves left"),), "black"),
    Scene((Entity("orange", "square", "shrinks"),), "navy"),
    Scene((Entity("white", "star", "bounces"),), "brown"),
    Scene((Entity("red", "square", "spins"),), "dark green"),
)
SEED = 1
GAP = 4
"""Pixels between videos."""


def prompt_of(scene: Scene) -> str:
    """``a red ball moves right on a black background``."""
    (it,) = scene.entities
    article = "an" if it.colour[0] in "aeiou" else "a"
    return f"{article} {it.colour} {it.shape} {it.motion} on a {scene.background} background"


def first_frame_of(scene: Scene) -> np.ndarray:
    """uint8 ``[128, 128, 3]``."""
    tracks = random_tracks(scene, np.random.default_rng(SEED))
    frame: np.ndarray = render(scene, tuple(track.frame(0) for track in tracks))[0]
    return frame


def strip(videos: list[np.ndarray]) -> np.ndarray:
    """Videos ``[T, H, W, 3]`` side by side on white."""
    gap = np.full((*videos[0].shape[:2], GAP, 3), 255, np.uint8)
    parts = [part for video in videos for part in (gap, video)]
    return np.concatenate(parts[1:], axis=2)


def main() -> None:
    """Parse arguments, make the videos, write the strip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/assets/gallery.webp"))
    options = parser.parse_args()
    t2v, i2v = cygnet.load("tiny-t2v"), cygnet.load("tiny-i2v")
    upper = strip([t2v.generate(prompt_of(scene), seed=SEED).frames for scene in SCENES])
    lower = strip(
        [i2v.generate(prompt_of(scene), image=first_frame_of(scene), seed=SEED).frames for scene in PICTURE_SCENES]
    )
    frames = np.concatenate([upper, np.full((len(upper), GAP, *upper.shape[2:]), 255, np.uint8), lower], axis=1)
    height, width = frames.shape[1:3]
    with open_writer(options.out, width=width, height=height, fps=16, overwrite=True) as writer:
        writer.write(frames)
    print(writer.path)


if __name__ == "__main__":
    main()
