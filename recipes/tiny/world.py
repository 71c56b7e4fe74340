"""A procedural world of moving shapes: what a scene is, how it moves, how it is drawn.

Distances are in units of the frame's height; x grows to the right and y downwards; time t runs from 0 to 1 over a
clip. Everything is drawn from a NumPy generator that the caller seeds, so a seed names a clip for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 190, 70),
    "blue": (45, 90, 235),
    "yellow": (240, 215, 40),
    "purple": (150, 60, 200),
    "orange": (245, 135, 30),
    "white": (245, 245, 245),
    "cyan": (50, 215, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (10, 10, 12),
    "grey": (128, 128, 128),
    "navy": (15, 25, 80),
    "dark green": (12, 70, 30),
    "brown": (95, 60, 30),
}
SHAPES = ("ball", "square", "triangle", "star")
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "bounces",
    "spins",
    "grows",
    "shrinks",
    "circles",
)
DIAGONAL = "moves down to the right"
"""A motion that no clip of the embedded models' training has; ``recipes/teach`` teaches it."""
FRAMES = 17
FPS = 16
SIZE = 128
CALM = 0.15
"""Part of its possible places that a single entity uses, about the middle."""
CORNER = 0.1
"""Part of its possible places that each of two entities uses, from its corner."""

Triple = tuple[str, str, str]


def _held_out() -> frozenset[Triple]:
    triples = list(product(COLOURS, SHAPES, MOTIONS))
    chosen = np.random.default_rng(20261122).permutation(len(triples))[: round(0.1 * len(triples))]
    return frozenset(triples[i] for i in chosen)


HELD_OUT: frozenset[Triple] = _held_out()
"""Tenth of the (colour, shape, motion) triples; no training clip contains one."""


@dataclass(frozen=True)
class Entity:
    """One thing in a scene."""

    colour: str
    shape: str
    motion: str

    @property
    def triple(self) -> Triple:
        """What :data:`HELD_OUT` lists."""
        return (self.colour, self.shape, self.motion)


@dataclass(frozen=True)
class Scene:
    """What a caption says: one or two entities before a plain background."""

    entities: tuple[Entity, ...]
    background: str


@dataclass(frozen=True)
class Track:
    """Where an entity is in each frame: centre ``[T, 2]`` (x, y), radius and clockwise angle (radians) ``[T]``."""

    centre: Array
    radius: Array
    angle: Array

    def frame(self, index: int) -> Track:
        """The track of that frame alone."""
        only = slice(index, index + 1)
        return Track(self.centre[only], self.radius[only], self.angle[only])


def random_scene(rng: np.random.Generator, *, two: float = 0.4, held_out: bool = False) -> Scene:
    """A scene of training triples, or with ``held_out`` of held-out ones only; ``two`` is the chance of two entities.

    Two entities always differ in colour, and in shape or motion, so that a caption names each without doubt.
    """
    count = 2 if rng.random() < two else 1
    entities: list[Entity] = []
    while len(entities) < count:
        entity = Entity(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(MOTIONS)))
        if (entity.triple in HELD_OUT) != held_out:
            continue
        if entities and entity.colour == entities[0].colour:
            continue
        entities.append(entity)
    return Scene(tuple(entities), str(rng.choice(list(BACKGROUNDS))))


def random_tracks(
    scene: Scene, rng: np.random.Generator, *, frames: int = FRAMES, aspect: float = 1.0
) -> tuple[Track, ...]:
    """Motion for each entity: everything stays inside the frame (``aspect`` = width / height) and nothing overlaps.

    A single entity keeps to the middle of where it may be; of two, the first keeps to the upper left and the second to
    the lower right. Placement decides itself at the highest noise, where a small model is least sure: with entities
    anywhere it often drew the same one twice, and with two in either order it mixed them up.
    """
    while True:
        paths = [_path(entity, rng, frames, len(scene.entities) > 1) for entity in scene.entities]
        if len(paths) == 1:
            return (_placed(paths[0], rng, aspect, -CALM, CALM),)
        first, second = paths
        tracks = (
            _placed(first, rng, aspect, -1.0, 2 * CORNER - 1.0),
            _placed(second, rng, aspect, 1.0 - 2 * CORNER, 1.0),
        )
        if _gap(*tracks) > 0:
            return tracks


def _gap(a: Track, b: Track) -> float:
    """The narrowest distance between the outlines at any time."""
    return float((np.linalg.norm(a.centre - b.centre, axis=1) - (a.radius + b.radius) * 1.12).min())


def _path(entity: Entity, rng: np.random.Generator, frames: int, crowd: bool) -> Track:
    """An entity's motion about the origin."""
    motion = entity.motion
    t = np.linspace(0.0, 1.0, frames, dtype=np.float32)
    still = np.zeros(frames, np.float32)
    r = float(rng.uniform(0.13, 0.145) if crowd else rng.uniform(0.17, 0.2))
    if entity.shape == "star":
        r *= 1.12  # so that its arms are as wide as the latents' grid can hold
    radius = np.full(frames, r, np.float32)
    angle = np.full(frames, rng.uniform(-0.06, 0.06), np.float32)
    span = float(rng.uniform(0.32, 0.36) if crowd else rng.uniform(0.34, 0.4))
    dx: Array = still
    dy: Array = still
    if motion in ("moves left", "moves right"):
        dx = (t - 0.5) * span * (-1 if motion == "moves left" else 1)
    elif motion in ("moves up", "moves down"):
        dy = (t - 0.5) * span * (-1 if motion == "moves up" else 1)
    elif motion == DIAGONAL:
        dx = dy = (t - 0.5) * 0.9 * span
    elif motion == "bounces":
        # Two equal hops under gravity, from the top of one arc to the top of the third.
        hop = (2.0 * t + 0.5) % 1.0
        dy = float(rng.uniform(0.3, 0.33)) * (0.5 - 4.0 * hop * (1.0 - hop))
    elif motion == "circles":
        phase = rng.uniform(-0.2, 0.2) - math.pi / 2 + 2 * math.pi * t  # from the top, clockwise
        orbit = float(rng.uniform(0.12, 0.14) if crowd else rng.uniform(0.15, 0.17))
        dx, dy = orbit * np.cos(phase), orbit * np.sin(phase)
    elif motion == "spins":
        angle = angle + 2 * math.pi * float(rng.uniform(0.6, 0.64)) * t
    elif motion in ("grows", "shrinks"):
        scale = np.linspace(0.55, 1.35, frames, dtype=np.float32)
        radius = r * (scale if motion == "grows" else scale[::-1])
    else:
        raise ValueError(f"unknown motion {motion!r}")
    return Track(np.stack([dx, dy], axis=1).astype(np.float32), radius.astype(np.float32), angle.astype(np.float32))


def _placed(path: Track, rng: np.random.Generator, aspect: float, least: float, most: float) -> Track:
    """The path where it stays inside the frame: -1 is as far left and up as it may be, 1 as far right and down."""
    margin = 1.12 * float(path.radius.max()) + 0.01
    low = margin - path.centre.min(axis=0)
    high = np.array([aspect, 1.0]) - margin - path.centre.max(axis=0)
    where = (low + high) / 2 + (high - low) / 2 * rng.uniform(least, most, 2)
    return Track(path.centre + where.astype(np.float32), path.radius, path.angle)


def render(
    scene: Scene, tracks: tuple[Track, ...], *, size: int = SIZE, viewport: tuple[int, int, int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """Draw a clip: uint8 ``[T, H, W, 3]``.

    ``size`` is the height of the whole frame in pixels; ``viewport`` (left, top, width, height) draws only that
    part, which is how training crops are made cheaply. The default is the square frame.
    """
    left, top, width, height = viewport or (0, 0, size, size)
    frames = len(tracks[0].radius)
    canvas = np.empty((frames, height, width, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for i in range(frames):
        for track in tracks:
            _cast_shadow(canvas[i], scene, track, i, size, left, top)
        for entity, track in zip(scene.entities, tracks, strict=True):
            _draw(canvas[i], entity, track, i, size, left, top)
    return (np.clip(canvas, 0, 255) + 0.5).astype(np.uint8)


def _window(canvas: Array, x: float, y: float, reach: float) -> tuple[Array, Array, Array] | None:
    """The part of the canvas within ``reach`` pixels of (x, y), and its pixel centres relative to that point."""
    height, width = canvas.shape[:2]
    x0, x1 = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
    y0, y1 = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
    if x0 >= x1 or y0 >= y1:
        return None
    px = (np.arange(x0, x1, dtype=np.float32) + 0.5 - x)[None, :]
    py = (np.arange(y0, y1, dtype=np.float32) + 0.5 - y)[:, None]
    return canvas[y0:y1, x0:x1], px, py


def _cast_shadow(canvas: Array, scene: Scene, track: Track, i: int, size: int, left: int, top: int) -> None:
    r = float(track.radius[i]) * size
    x = float(track.centre[i, 0]) * size - left + 0.22 * r
    y = float(track.centre[i, 1]) * size - top + 0.28 * r
    found = _window(canvas, x, y, 1.2 * r)
    if found is None:
        return
    part, px, py = found
    dark = 0.4 * np.clip(1.15 - np.sqrt(px * px + py * py) / r, 0.0, 0.3) / 0.3
    part *= (1.0 - dark)[..., None]


def _draw(canvas: Array, entity: Entity, track: Track, i: int, size: int, left: int, top: int) -> None:
    r = float(track.radius[i]) * size
    x = float(track.centre[i, 0]) * size - left
    y = float(track.centre[i, 1]) * size - top
    found = _window(canvas, x, y, r + 2.0)
    if found is None:
        return
    part, px, py = found
    cos, sin = math.cos(float(track.angle[i])), math.sin(float(track.angle[i]))
    u, v = px * cos + py * sin, py * cos - px * sin  # body coordinates
    light = 1.04 - 0.17 * (px + py) / r  # from the upper left, fixed to the world
    if entity.shape == "ball":
        distance: Array = np.sqrt(px * px + py * py) - r
        # A dark spot above the middle shows a turn, and leaves the outline alone.
        spot = np.clip(0.5 + 0.38 * r - np.sqrt(u * u + (v + 0.46 * r) ** 2), 0.0, 1.0)
        light = light * (1.0 - 0.5 * spot)
    else:
        distance = _polygon_distance(u, v, OUTLINES[entity.shape] * r)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    paint = np.asarray(COLOURS[entity.colour], np.float32) * light[..., None]
    part += cover * (np.minimum(paint, 255.0) - part)


def _outline(radii: tuple[float, ...], turn: float) -> Array:
    angles = turn + 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1).astype(np.float32)


OUTLINES: dict[str, Array] = {
    "square": _outline((1.1,) * 4, math.pi / 4),
    "triangle": _outline((1.12,) * 3, 0.0),
    "star": _outline((1.12, 0.5) * 5, 0.0),
}
"""Corners of each outline for radius 1, clockwise from the top."""


def _polygon_distance(u: Array, v: Array, corners: Array) -> Array:
    """Signed distance of the points (u, v) to a closed polygon; negative inside (even-odd rule)."""
    squared = np.full(np.broadcast_shapes(u.shape, v.shape), np.inf, np.float32)
    inside = np.zeros(squared.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = u - ax, v - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        squared = np.minimum(squared, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        if ay != by:
            inside ^= ((ay <= v) != (by <= v)) & (u < ax + (v - ay) * ex / ey)
    return np.where(inside, -1.0, 1.0).astype(np.float32) * np.sqrt(squared)
