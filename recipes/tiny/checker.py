"""What does a clip of the tiny world show? An analytic answer, written without sight of the renderer.

Measures generated videos, so it forgives soft edges, flicker and wrong sizes or speeds, but never guesses: what fits
no name of the vocabulary is named None, and None is judged wrong.

    python -m recipes.tiny.checker --self-test 400

Steps: the background is the median colour of the border; whatever differs from it by more than a darkening (a shadow)
is foreground; connected pixels of one colour are a blob; blobs linked over time are an object; its outline in polar
coordinates names the shape, and the tracks of centre, size and angle name the motion. Lengths are in units of the
frame's height, x grows to the right and y downwards, angles grow clockwise.

Legend: T H W frames, height, width; P foreground pixels; A angles; R radii.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Frames = npt.NDArray[np.uint8]
Expected = tuple[str, str, str]
"""Colour, shape and motion of one object."""

# Hue in degrees; white is told by its lack of saturation. Shading scales all channels, which leaves the hue alone.
HUES: dict[str, float] = {
    "red": 0.0,
    "orange": 29.0,
    "yellow": 52.5,
    "green": 132.0,
    "cyan": 184.0,
    "blue": 226.0,
    "purple": 279.0,
}
COLOURS = (*HUES, "white")
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
TAUGHT_MOTIONS = ("moves down to the right",)
"""Known too, but in no clip that the embedded models were trained on."""

_BACKGROUND_TOLERANCE = 40.0  # RGB distance; the two nearest backgrounds are 62 apart
_FOREGROUND = 36.0  # RGB distance from background and shadow: above coding noise, below the faintest object (95)
_OBJECT = 62.0  # RGB distance that the clear half of a blob must reach to be a thing and not a smudge
_MIN_BLOB = 0.0012  # share of the frame; the smallest true outline (a star of radius 0.055) covers 0.0034
_MIN_OBJECT = 0.0035  # share of the frame at the object's largest
_DEEPEST_SHADOW = 0.5
_LONGEST_STEP = 0.28  # between frames; the fastest true motion is the foot of a bounce, 0.175
_AGREEMENT = 0.7  # share of the frames that must show a colour or a shape for the clip to have it
_ANGLES = 72
_RADII = 48
_SYMMETRY = {"square": 4, "triangle": 3, "star": 5}
# Relative RMS distance from the nearest ideal outline beyond which a shape has no name. A ball's is the tightest,
# because everything unknown is roundish: 0.085 is an ellipse of 1.27 to 1.
_MISFIT_LIMIT = {"ball": 0.085, "square": 0.11, "triangle": 0.11, "star": 0.11}


@dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """One object seen in a clip.

    ``colour``, ``shape`` and ``motion`` are None where they fit no name. ``centre`` ``[T, 2]`` (x, y) and ``size``
    ``[T]`` (mean radius) are interpolated where ``present`` ``[T]`` is False. ``turns`` is the clockwise rotation
    over the clip in full turns, 0 where none can be seen. ``confidence`` in 0..1 is the least of the shares of frames
    that agree on presence, colour and shape.
    """

    colour: str | None
    shape: str | None
    motion: str | None
    centre: Floats
    size: Floats
    present: Flags
    turns: float
    confidence: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """The background (None if it fits no name or changes) and everything before it, the largest first."""

    background: str | None
    things: tuple[Thing, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which parts of a caption a clip shows; with two objects a part is right only if it is right for both."""

    colour: bool
    shape: bool
    motion: bool
    background: bool
    count: bool
    """As many objects as expected: none missing and none extra."""

    @property
    def right(self) -> bool:
        """Everything is as the caption says."""
        return self.colour and self.shape and self.motion and self.background and self.count


def observe(frames: Frames) -> Observation:
    """Say what a clip shows.

    ``frames`` is uint8 ``[T, H, W, 3]`` RGB, at least 5 frames of 32x32. Raises ValueError for anything else.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; give uint8 [T, H, W, 3]")
    if frames.shape[0] < 5 or min(frames.shape[1:3]) < 32:
        raise ValueError(f"frames are {list(frames.shape)}; give at least 5 frames of at least 32x32 pixels")
    pixels = frames.astype(np.float32)
    background, per_frame = _background(pixels)
    tracks = _link(_blobs(pixels, per_frame), frames.shape)
    things = [_thing(pixels, per_frame, track) for track in tracks]
    return Observation(background=background, things=tuple(sorted(things, key=lambda it: -float(it.size.mean()))))


def judge(frames: Frames, expected: Sequence[Expected], background: str) -> Verdict:
    """Compare a clip, uint8 ``[T, H, W, 3]``, with its caption.

    ``expected`` lists (colour, shape, motion) of each object; the objects found are matched to it by colour. Raises
    ValueError for a word outside the vocabulary, which a comparison could only ever call wrong.
    """
    _check_words(expected, background)
    return compare(observe(frames), expected, background)


def judge_motion_only(frames: Frames, expected: Sequence[Expected]) -> bool:
    """Whether every expected object, and nothing else, is there and moves as said: the question for image-to-video.

    Colours serve only to tell two objects apart; shapes and background come from the given picture and are not judged.
    """
    _check_words(expected, None)
    verdict = compare(observe(frames), expected, None)
    return verdict.motion and verdict.count


def compare(observation: Observation, expected: Sequence[Expected], background: str | None) -> Verdict:
    """The verdict on an observation already made; see :func:`judge`."""
    best = (-1.0, False, False, False)  # kept where there are so many things that none can be meant
    things = observation.things
    slots = [*range(len(things)), *[None] * max(0, len(expected) - len(things))]
    for order in permutations(slots, len(expected)) if len(slots) <= 6 else ():
        found = [None if i is None else things[i] for i in order]
        pairs = list(zip(found, expected, strict=True))
        colours = [it is not None and it.colour == colour for it, (colour, _, _) in pairs]
        shapes = [it is not None and it.shape == shape for it, (_, shape, _) in pairs]
        motions = [it is not None and it.motion == motion for it, (_, _, motion) in pairs]
        # Colour decides; among equals the larger object is the one that was meant.
        score = sum(colours) + 0.01 * sum(float(it.size.mean()) for it in found if it is not None)
        if score > best[0]:
            best = (score, all(colours), all(shapes), all(motions))
    return Verdict(
        colour=best[1],
        shape=best[2],
        motion=best[3],
        background=observation.background == background,
        count=len(things) == len(expected),
    )


def _check_words(expected: Sequence[Expected], background: str | None) -> None:
    if not expected:
        raise ValueError("no objects expected; give at least one (colour, shape, motion)")
    for words in expected:
        for word, known in zip(words, (COLOURS, SHAPES, MOTIONS + TAUGHT_MOTIONS), strict=True):
            if word not in known:
                raise ValueError(f"{word!r} in {words!r} is unknown; use one of {', '.join(known)}")
    if background is not None and background not in BACKGROUNDS:
        raise ValueError(f"background {background!r} is unknown; use one of {', '.join(BACKGROUNDS)}")


# Background and foreground


def _background(pixels: Floats) -> tuple[str | None, Floats]:
    """The background's name, and its colour in each frame ``[T, 3]``."""
    width = max(2, pixels.shape[1] // 43)
    edges = (pixels[:, :width], pixels[:, -width:], pixels[:, :, :width], pixels[:, :, -width:])
    border = np.concatenate([edge.reshape(len(pixels), -1, 3) for edge in edges], axis=1)
    per_frame = np.median(border, axis=1)  # [T, 3]
    overall = np.median(per_frame, axis=0)
    names = list(BACKGROUNDS)
    palette = np.array(list(BACKGROUNDS.values()), np.float32)
    distance = np.linalg.norm(per_frame[:, None] - palette, axis=2)  # [T, names]
    nearest = np.where(distance.min(axis=1) < _BACKGROUND_TOLERANCE, distance.argmin(axis=1), -1)
    winner = int(np.linalg.norm(overall - palette, axis=1).argmin())
    # A frame whose border is mostly covered by something must not redefine what the background is.
    stray = np.linalg.norm(per_frame - overall, axis=1) > _BACKGROUND_TOLERANCE
    per_frame[stray] = overall
    plain = float((np.linalg.norm(border - overall, axis=2) < _BACKGROUND_TOLERANCE).mean()) >= 0.6
    agreed = float((nearest == winner).mean()) >= 0.85
    return (names[winner] if agreed and plain else None), per_frame


def _difference(pixels: Floats, background: Floats) -> Floats:
    """Distance ``[T, H, W]`` of each pixel from the background at any depth of shadow."""
    frames, height, width, _ = pixels.shape
    flat = pixels.reshape(frames, height * width, 3)
    along = (flat @ background[:, :, None])[..., 0]  # [T, HW]
    power = np.square(background).sum(axis=1, keepdims=True)  # [T, 1]
    light = np.clip(along / np.maximum(power, 1.0), _DEEPEST_SHADOW, 1.0)
    square = np.einsum("tpc,tpc->tp", flat, flat) - 2 * light * along + light * light * power
    distance: Floats = np.sqrt(np.maximum(square, 0.0)).reshape(frames, height, width)
    return distance


@dataclass(eq=False)
class _Blob:
    """Connected pixels of one colour in one frame. ``pixels`` are flat indices into ``[T, H, W]``."""

    frame: int
    pixels: Ints
    rgb: Floats
    centre: Floats
    colour: str | None = None

    @property
    def radius(self) -> float:
        """Of the disc of equal area, in pixels."""
        return math.sqrt(len(self.pixels) / math.pi)


def _blobs(pixels: Floats, background: Floats) -> list[list[_Blob]]:
    """Everything in the foreground, frame by frame."""
    frames, height, width, _ = pixels.shape
    difference = _difference(pixels, background)
    index, label = _components(difference > _FOREGROUND)
    found: list[list[_Blob]] = [[] for _ in range(frames)]
    if not len(index):
        return found
    order = np.argsort(label, kind="stable")
    index, label = index[order], label[order]
    rgb = pixels.reshape(-1, 3)[index]
    strength = difference.reshape(-1)[index]
    classes = _colour_classes(rgb)
    ends = np.flatnonzero(np.diff(label, append=-1)) + 1
    for start, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        part = slice(int(start), int(end))
        if end - start < _MIN_BLOB * height * width:
            continue
        backdrop = background[index[start] // (height * width)]
        for own in _colour_parts(rgb[part] - backdrop, strength[part], classes[part]):
            blob = _blob(index[part][own], rgb[part][own], strength[part][own], pixels.shape)
            if blob is not None:
                found[blob.frame].append(blob)
    every = [blob for blobs in found for blob in blobs]
    if every:
        for blob, chosen in zip(every, _colour_classes(np.stack([blob.rgb for blob in every])), strict=True):
            blob.colour = COLOURS[chosen] if chosen >= 0 else None
    return [_join_fragments(blobs) for blobs in found]


def _components(mask: Flags) -> tuple[Ints, Ints]:
    """Flat indices of the set pixels of ``[T, H, W]`` and the label of each; 8-connected, never across frames."""
    frames, height, width = mask.shape
    # An empty column ends every row and an empty row every frame, so that runs can be found in one flat array.
    padded = np.zeros((frames, height + 1, width + 1), np.int8)
    padded[:, :height, :width] = mask
    steps = np.diff(padded.reshape(-1), prepend=np.int8(0))
    starts = np.flatnonzero(steps == 1)
    ends = np.flatnonzero(steps == -1)
    below_first = np.searchsorted(ends, starts + width + 1, side="left").tolist()
    below_last = np.searchsorted(starts, ends + width + 1, side="right").tolist()
    parent = list(range(len(starts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, (first, last) in enumerate(zip(below_first, below_last, strict=True)):
        for j in range(first, last):
            parent[root(j)] = root(i)
    roots = np.array([root(i) for i in range(len(starts))], np.int64)
    return np.flatnonzero(mask), np.repeat(roots, ends - starts)


def _colour_parts(contrast: Floats, strength: Floats, classes: Ints) -> list[Flags]:
    """Split a blob where two things of different colour touch; usually one part with every pixel.

    ``contrast`` ``[P, 3]`` is RGB less the background, ``strength`` ``[P]`` and ``classes`` ``[P]`` tell how clear
    each pixel is and which colour it has by itself.
    """
    counts = np.bincount(classes[classes >= 0], minlength=len(COLOURS))
    common = [classes == c for c in np.flatnonzero(counts >= 0.2 * len(classes))]
    if len(common) < 2:
        return [np.ones(len(contrast), bool)]
    levels = [float(np.quantile(strength[own], 0.75)) for own in common]
    clear = [own & (strength >= 0.8 * level) for own, level in zip(common, levels, strict=True)]
    # Edges and smears are mixtures with the background, often of another hue: only what points elsewhere is a colour.
    units: list[Floats] = []
    for i in np.argsort(levels)[::-1]:
        core = np.median(contrast[clear[i]], axis=0)
        if all(float(np.linalg.norm(core - (core @ unit) * unit)) > _FOREGROUND for unit in units):
            units.append(core / np.linalg.norm(core))
    if len(units) < 2:
        return [np.ones(len(contrast), bool)]
    nearest = (contrast @ np.stack(units, axis=1)).argmax(axis=1)
    return [nearest == i for i in range(len(units))]


def _blob(index: Ints, rgb: Floats, strength: Floats, shape: tuple[int, ...]) -> _Blob | None:
    _, height, width, _ = shape
    if len(index) < _MIN_BLOB * height * width:
        return None
    typical = float(np.median(strength))
    if typical < _OBJECT:
        return None
    core = np.median(rgb[strength >= typical], axis=0)
    frame, place = divmod(index, height * width)
    y, x = divmod(place, width)
    return _Blob(int(frame[0]), index, core, np.array([x.mean() + 0.5, y.mean() + 0.5]))


def _join_fragments(blobs: list[_Blob]) -> list[_Blob]:
    """Join pieces of one colour that lie closer than whole objects can: a part may look like the background."""
    joined: list[_Blob] = []
    for blob in sorted(blobs, key=lambda it: -len(it.pixels)):
        for other in joined:
            reach = 1.35 * (blob.radius + other.radius)
            if blob.colour == other.colour and np.linalg.norm(blob.centre - other.centre) < reach:
                share = len(blob.pixels) / (len(blob.pixels) + len(other.pixels))
                other.centre = (1 - share) * other.centre + share * blob.centre
                other.pixels = np.concatenate([other.pixels, blob.pixels])
                break
        else:
            joined.append(blob)
    return joined


# Colour


def _colour_classes(rgb: Floats) -> Ints:
    """Index into :data:`COLOURS` for each row of ``[P, 3]``; -1 if dark, or between white and a hue."""
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = np.maximum(high - low, 1e-3)
    r, g, b = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    sextant = np.select([high == r, high == g], [(g - b) / chroma % 6, (b - r) / chroma + 2], (r - g) / chroma + 4)
    apart = np.abs((60.0 * sextant[:, None] - np.array(list(HUES.values())) + 180) % 360 - 180)  # [P, hues]
    saturation = chroma / np.maximum(high, 1.0)
    classes = np.where(saturation < 0.28, len(HUES), apart.argmin(axis=1))
    doubtful = (saturation >= 0.28) & ((saturation < 0.4) | (apart.min(axis=1) > 30))
    dark = high < np.where(saturation < 0.28, 165, 105)
    classes[doubtful | dark] = -1
    return classes.astype(np.int64)


# Objects over time

_Track = dict[int, _Blob]
"""The blob of an object in each frame that shows it."""


def _link(blobs: list[list[_Blob]], shape: tuple[int, ...]) -> list[_Track]:
    """Everything that is large and lasting enough to be an object."""
    frames, height, width, _ = shape
    tracks: list[_Track] = []
    for now, candidates in enumerate(blobs):
        offers = sorted(
            (cost, i, j)
            for i, track in enumerate(tracks)
            for j, blob in enumerate(candidates)
            if (cost := _link_cost(track, blob, now, height)) is not None
        )
        taken_tracks: set[int] = set()
        taken_blobs: set[int] = set()
        for _, i, j in offers:
            if i not in taken_tracks and j not in taken_blobs:
                tracks[i][now] = candidates[j]
                taken_tracks.add(i)
                taken_blobs.add(j)
        tracks.extend({now: blob} for j, blob in enumerate(candidates) if j not in taken_blobs)
    least = _MIN_OBJECT * height * width
    lasting = max(3.0, 0.18 * frames)
    return [t for t in tracks if len(t) >= lasting and max(len(blob.pixels) for blob in t.values()) >= least]


def _link_cost(track: _Track, blob: _Blob, now: int, height: int) -> float | None:
    """How far ``blob`` is from where ``track`` was last seen; None where it cannot be the same object."""
    last = max(track)
    distance = float(np.linalg.norm(track[last].centre - blob.centre)) / height
    same = track[last].colour == blob.colour
    limit = (_LONGEST_STEP if same else 0.08) * min(now - last, 2)
    return distance + (0.0 if same else 0.1) if distance < limit else None


def _thing(pixels: Floats, background: Floats, track: _Track) -> Thing:
    """Measure one object."""
    frames, height, width, _ = pixels.shape
    seen = np.array(sorted(track), np.int64)
    blobs = [track[int(i)] for i in seen]
    names = [blob.colour for blob in blobs]
    colour, colour_share = _vote(names)
    core = np.median([blob.rgb for blob in blobs], axis=0)

    coverage = _coverage(pixels, background[seen], core, blobs)
    centres, reach = _extent(coverage, blobs)
    polar = _polar(coverage, centres, reach)  # [T, A, R]
    outline = _outline(polar, reach)  # [T, A] in pixels
    size = outline.mean(axis=1)

    inside = np.array([_inside(blob, height, width) for blob in blobs])
    clearest = inside & (size >= 0.5 * np.quantile(size, 0.9))
    shape, shape_share = _name_shape(outline[clearest] if clearest.any() else outline)
    turns = _turns(polar, outline, reach, seen / (frames - 1), shape)

    times = np.arange(frames)
    centre = np.stack([np.interp(times, seen, centres[:, k] / height) for k in (0, 1)], axis=1)
    whole = np.interp(times, seen, size / height)
    present = np.isin(times, seen)
    motion = _name_motion(centre, whole, turns) if present.mean() >= 0.8 else None
    return Thing(
        colour=colour if colour_share >= _AGREEMENT else None,
        shape=shape,
        motion=motion,
        centre=centre,
        size=whole,
        present=present,
        turns=turns,
        confidence=min(float(present.mean()), colour_share, shape_share),
    )


def _vote(names: Sequence[str | None]) -> tuple[str | None, float]:
    """The most frequent name and its share; None can win."""
    ((winner, count),) = Counter(names).most_common(1)
    return winner, count / len(names)


def _inside(blob: _Blob, height: int, width: int) -> bool:
    """Whether the frame cuts nothing off."""
    y, x = divmod(blob.pixels % (height * width), width)
    return bool(x.min() > 0 and y.min() > 0 and x.max() < width - 1 and y.max() < height - 1)


# Outline


def _coverage(pixels: Floats, background: Floats, colour: Floats, blobs: list[_Blob]) -> Floats:
    """How much of each pixel the object covers, one ``[H, W]`` per blob: 0 background or shadow, about 1 object."""
    frames, height, width, _ = pixels.shape
    contrast = colour - background  # [T, 3]
    power = np.maximum(np.square(background).sum(axis=1, keepdims=True), 1.0)
    across = contrast - background * ((contrast * background).sum(axis=1, keepdims=True) / power)
    # A shadow moves a pixel along the background's own direction: measure across it where that leaves enough signal.
    strong = np.square(across).sum(axis=1) > 0.35 * np.square(contrast).sum(axis=1)
    bright = np.linalg.norm(background, axis=1) > 40
    axis = np.where((strong & bright)[:, None], across, contrast)
    axis = (axis / np.maximum((axis * contrast).sum(axis=1, keepdims=True), 1.0)).astype(np.float32)
    level = (background * axis).sum(axis=1)
    coverage = np.zeros((len(blobs), height * width), np.float32)
    for i, blob in enumerate(blobs):
        values = pixels.reshape(frames, -1, 3)[blob.frame, blob.pixels % (height * width)] @ axis[i] - level[i]
        coverage[i, blob.pixels % (height * width)] = np.clip(values, 0.0, 1.3)
    return coverage.reshape(len(blobs), height, width)


def _extent(coverage: Floats, blobs: list[_Blob]) -> tuple[Floats, Floats]:
    """Centre ``[T, 2]`` (x, y) of each blob and the distance ``[T]`` of its farthest pixel, in pixels.

    Measured on the well covered pixels, lest a smear draw the centre away.
    """
    _, height, width = coverage.shape
    centres = np.stack([blob.centre for blob in blobs])
    reach = np.empty(len(blobs))
    for i, blob in enumerate(blobs):
        place = blob.pixels % (height * width)
        solid = place[coverage[i].reshape(-1)[place] > 0.45]
        if 3 * len(solid) > len(place):
            place = solid
        y, x = divmod(place, width)
        centres[i] = x.mean() + 0.5, y.mean() + 0.5
        reach[i] = math.sqrt(float((np.square(x + 0.5 - centres[i, 0]) + np.square(y + 0.5 - centres[i, 1])).max()))
    return centres, reach + 2.0


def _polar(coverage: Floats, centres: Floats, reach: Floats) -> Floats:
    """``coverage`` along rays from the centre: ``[T, A, R]``, bilinear; R runs from 0 to ``reach``, at midpoints."""
    frames, height, width = coverage.shape
    angle = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    radius = (reach[:, None, None] * _fractions()).astype(np.float32)  # [T, 1, R]
    # One empty pixel all round stands for everything outside the frame.
    padded = np.zeros((frames, height + 2, width + 2), np.float32)
    padded[:, 1:-1, 1:-1] = coverage
    x = centres[:, 0, None, None].astype(np.float32) + 0.5 + radius * np.cos(angle, dtype=np.float32)[:, None]
    y = centres[:, 1, None, None].astype(np.float32) + 0.5 + radius * np.sin(angle, dtype=np.float32)[:, None]
    x, y = np.clip(x, 0, width + 0.999), np.clip(y, 0, height + 0.999)
    left, top = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - left, y - top
    corner = (np.arange(frames, dtype=np.int32)[:, None, None] * (height + 2) + top) * (width + 2) + left
    flat = padded.reshape(-1)
    upper = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    lower = flat[corner + width + 2] * (1 - fx) + flat[corner + width + 3] * fx
    value: Floats = upper * (1 - fy) + lower * fy
    return value


def _fractions() -> Floats:
    return (np.arange(_RADII) + 0.5) / _RADII


def _outline(polar: Floats, reach: Floats) -> Floats:
    """Distance ``[T, A]`` from the centre to the edge, in pixels."""
    # Sharpened, so that neither shading inside nor a soft edge outside adds length; then filled inwards, since a
    # spot may look like the background.
    solid = np.clip((polar - 0.5) * 1.5 + 0.5, 0.0, 1.0)
    filled = np.maximum.accumulate(solid[:, :, ::-1], axis=2)
    edge: Floats = filled.mean(axis=2) * reach[:, None]
    return edge


@functools.cache
def _templates() -> tuple[tuple[str, ...], npt.NDArray[np.complex128], Floats]:
    """Shape names, spectra and mean squares of ideal outlines, each of mean 1, sharp and softened."""
    angle = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    names: list[str] = []
    outlines: list[Floats] = []
    for name, corners, inner in (
        ("ball", 0, 0.0),
        ("square", 4, math.cos(math.pi / 4)),
        ("triangle", 3, math.cos(math.pi / 3)),
        ("star", 5, 0.382),
        ("star", 5, 0.46),
        ("star", 5, 0.54),
    ):
        sharp = np.ones(_ANGLES) if corners == 0 else _polygon(angle, corners, inner)
        for softness in (0.0, 0.1, 0.16):  # radians
            names.append(name)
            outlines.append(_soften(sharp, softness))
    stack = np.stack([outline / outline.mean() for outline in outlines])
    return tuple(names), np.fft.fft(stack, axis=1), np.square(stack).mean(axis=1)


def _polygon(angle: Floats, corners: int, inner: float) -> Floats:
    """Outline of corners at distance 1 with vertices at distance ``inner`` half-way between them."""
    half = math.pi / corners
    a = np.abs((angle + half) % (2 * half) - half)  # angle from the nearest corner
    # The edge from (1, 0) to inner * (cos half, sin half) in polar form.
    edge: Floats = inner * math.sin(half) / (inner * np.sin(half - a) + np.sin(a))
    return edge


def _soften(outline: Floats, softness: float) -> Floats:
    wave = np.fft.rfftfreq(_ANGLES, 1.0 / _ANGLES)
    return np.fft.irfft(np.fft.rfft(outline) * np.exp(-0.5 * np.square(wave * softness)), _ANGLES)


def _misfits(outline: Floats) -> dict[str, Floats]:
    """Relative RMS distance ``[T]`` of outlines ``[T, A]`` from the best turned ideal of each shape."""
    names, spectra, powers = _templates()
    scaled = outline / np.maximum(outline.mean(axis=1, keepdims=True), 1e-6)
    spectrum = np.fft.fft(scaled, axis=1)
    # The first harmonic says that the centre is off, not what the shape is.
    square = np.square(scaled).mean(axis=1) - 2 * np.square(np.abs(spectrum[:, 1]) / _ANGLES)
    match = np.fft.ifft(spectrum[:, None] * np.conj(spectra), axis=2).real.max(axis=2) / _ANGLES  # [T, templates]
    misfit = np.sqrt(np.maximum(square[:, None] + powers - 2 * match, 0.0))
    return {shape: misfit[:, [n == shape for n in names]].min(axis=1) for shape in SHAPES}


def _name_shape(outline: Floats) -> tuple[str | None, float]:
    """The shape that the outlines ``[T, A]`` show, and the share of them that do.

    A video network may blur every other frame of a fast thing, so many outlines may have no name; but those with a name
    must agree, and neither half of the clip may lack the shape, lest one that changes be called by its better half.
    """
    misfits = _misfits(outline)
    table = np.stack([misfits[shape] for shape in SHAPES], axis=1)  # [T, shapes]
    nearest = [SHAPES[i] for i in table.argmin(axis=1)]
    names = [shape if misfits[shape][t] < _MISFIT_LIMIT[shape] else None for t, shape in enumerate(nearest)]
    winner, share = _vote([name for name in names if name is not None] or [None])
    shown = [name == winner for name in names]
    middle = (len(shown) + 1) // 2
    halves = min(np.mean(shown[:middle]), np.mean(shown[-middle:]))
    agreed = winner is not None and share >= _AGREEMENT and np.mean(shown) > 0.45 and halves >= 0.35
    return (winner if agreed else None), float(np.mean(shown))


def _turns(polar: Floats, outline: Floats, reach: Floats, times: Floats, shape: str | None) -> float:
    """Clockwise turns over the clip, at constant speed; 0 where neither outline nor spot gives a direction."""
    if shape is None or len(times) < 5:
        return 0.0
    if shape == "ball":
        return _turns_of_spot(polar, outline, reach, times)
    order = _SYMMETRY[shape]
    angle = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    wave = np.exp(1j * order * angle)
    moment = (outline / np.maximum(outline.mean(axis=1, keepdims=True), 1e-6) * wave).mean(axis=1)
    if float(np.median(np.abs(moment))) < 0.01:
        return 0.0
    direction = moment / np.maximum(np.abs(moment), 1e-9)
    # Beyond 1.45 turns a star could as well be turning the other way.
    candidates = np.arange(-1.45, 1.4501, 0.01)
    response = np.abs(np.exp(-2j * math.pi * order * candidates[:, None] * times) @ direction) / len(times)
    best = int(response.argmax())
    return float(candidates[best]) if response[best] >= 0.6 else 0.0


def _turns_of_spot(polar: Floats, outline: Floats, reach: Floats, times: Floats) -> float:
    """Turns of a ball, by the side on which it is dark: a constant side (the light's) plus one that goes round."""
    radius = reach[:, None] * _fractions()  # [T, R]
    inner = (radius < 0.85 * outline.mean(axis=1, keepdims=True)) * radius
    weight = inner / np.maximum(inner.sum(axis=1, keepdims=True), 1e-6)
    light = np.einsum("tar,tr->ta", polar, weight)
    light = light / np.maximum(light.mean(axis=1, keepdims=True), 1e-6)
    side = (light * np.exp(1j * np.arange(_ANGLES) * (2 * math.pi / _ANGLES))).mean(axis=1)  # [T]
    spread = float(np.square(np.abs(side - side.mean())).sum())
    best, least, size = 0.0, math.inf, 0.0
    for turns in np.arange(-1.45, 1.4501, 0.01):
        if abs(turns) < 0.3:
            continue  # too little to tell from a drift
        model = np.stack([np.ones(len(times)), np.exp(2j * math.pi * turns * times)], axis=1)
        fit = np.linalg.lstsq(model, side, rcond=None)[0]
        left = float(np.square(np.abs(side - model @ fit)).sum())
        if left < least:
            best, least, size = float(turns), left, abs(fit[1])
    return best if size > 0.02 and least < 0.4 * spread else 0.0


# Motion


def _name_motion(centre: Floats, size: Floats, turns: float) -> str | None:
    """The one motion that the tracks ``[T, 2]`` and ``[T]`` show; None if they show none, or more than one."""
    path = _smooth(centre)
    log_size = _smooth(np.log(np.maximum(size, 1e-4))[:, None])[:, 0]
    change = float(log_size[-2:].mean() - log_size[:2].mean())
    span = np.ptp(path, axis=0)
    still = float(span.max()) < 0.15
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    constant = float(np.ptp(log_size)) < math.log(1.6)
    fixed = abs(turns) < 0.4
    seen = []
    if constant and fixed and float(steps.max()) < _LONGEST_STEP:
        seen += [name for name, test in _PATHS.items() if test(path)]
    if still and constant and turns > 0.5:
        seen.append("spins")
    if still and fixed and abs(change) > math.log(1.5) and abs(change) > 0.8 * float(np.ptp(log_size)):
        seen.append("grows" if change > 0 else "shrinks")
    return seen[0] if len(seen) == 1 else None


def _smooth(track: Floats) -> Floats:
    """Median of three frames, which drops single wild ones; the ends are kept."""
    inner = np.median(np.stack([track[:-2], track[1:-1], track[2:]]), axis=0)
    return np.concatenate([track[:1], inner, track[-1:]])


def _moves(path: Floats, axis: int, sign: int) -> bool:
    """One way along one axis, at about constant speed."""
    along, across = path[:, axis], path[:, 1 - axis]
    ahead = sign * float(along[-1] - along[0])
    steady = along[0] + np.linspace(0, sign * ahead, len(path))
    return ahead > 0.22 and float(np.ptp(across)) < 0.35 * ahead and float(np.abs(along - steady).max()) < 0.25 * ahead


def _slants(path: Floats) -> bool:
    """To the right and down at once, about as far in each, at about constant speed."""
    ahead = path[-1] - path[0]
    if float(ahead.min()) < 0.16 or float(ahead.min()) < 0.5 * float(ahead.max()):
        return False
    steady = path[0] + np.linspace(0.0, 1.0, len(path))[:, None] * ahead
    return bool((np.abs(path - steady).max(axis=0) < 0.25 * ahead).all())


def _bounces(path: Floats) -> bool:
    """Up and down twice, in one column, from the top of an arc."""
    x, y = path[:, 0], path[:, 1]
    height = float(np.ptp(y))
    if height < 0.15 or float(np.ptp(x)) > 0.45 * height or abs(float(y[-1] - y[0])) > 0.5 * height:
        return False
    turns = _turning_points(y, 0.35 * height)
    return 2 <= len(turns) <= 4 and turns[0] > float(y[0])


def _turning_points(values: Floats, least: float) -> list[float]:
    """The highs and lows between which ``values`` swing by more than ``least``."""
    turns: list[float] = []
    low = high = float(values[0])
    rising: bool | None = None  # None until the first swing
    for value in values.tolist():
        low, high = min(low, value), max(high, value)
        if rising is not False and high - value > least:
            if rising:
                turns.append(high)
            rising, low = False, value
        elif rising is not True and value - low > least:
            if rising is False:
                turns.append(low)
            rising, high = True, value
    return turns


def _circles(path: Floats) -> bool:
    """About one clockwise turn around a fixed point at a steady distance."""
    x, y = path[:, 0], path[:, 1]
    if min(float(np.ptp(x)), float(np.ptp(y))) < 0.18:
        return False
    system = np.stack([2 * x, 2 * y, np.ones_like(x)], axis=1)
    (cx, cy, _), *_ = np.linalg.lstsq(system, x * x + y * y, rcond=None)
    distance = np.hypot(x - cx, y - cy)
    swept = float(np.diff(np.unwrap(np.arctan2(y - cy, x - cx))).sum()) / (2 * math.pi)
    return 0.7 < swept < 1.35 and float(distance.std()) < 0.25 * float(distance.mean())


_PATHS: dict[str, Callable[[Floats], bool]] = {
    "moves left": lambda path: _moves(path, 0, -1),
    "moves right": lambda path: _moves(path, 0, 1),
    "moves up": lambda path: _moves(path, 1, -1),
    "moves down": lambda path: _moves(path, 1, 1),
    "moves down to the right": _slants,
    "bounces": _bounces,
    "circles": _circles,
}


# Self-test


def _blur(clip: Floats, sigma: float) -> Floats:
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma)).astype(np.float32)
    kernel /= kernel.sum()
    soft = clip
    for axis in (1, 2):
        pad = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        padded = np.pad(soft, pad, mode="edge")
        size = clip.shape[axis]
        blurred = np.zeros_like(soft)
        for i, weight in enumerate(kernel):
            blurred += weight * np.take(padded, range(i, i + size), axis=axis)
        soft = blurred
    return soft


def _h264(clip: Frames) -> Frames:
    """Through a browser-grade file and back: yuv420p, crf 23."""
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=16, options={"crf": "23", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        for picture in clip:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    return np.stack(pictures).astype(np.uint8)


def _noisy(clip: Frames, sigma: float, rng: np.random.Generator) -> Floats:
    noisy: Floats = clip.astype(np.float32) + rng.normal(0, sigma, clip.shape).astype(np.float32)
    return noisy


def _soft(clip: Frames, rng: np.random.Generator) -> Floats:
    """As a small network draws: blurred, neighbouring frames shining through, colours off, brightness flickering."""
    past, future = np.concatenate([clip[:1], clip[:-1]]), np.concatenate([clip[1:], clip[-1:]])
    mixed = _blur(0.8 * clip + np.float32(0.1) * past + np.float32(0.1) * future, 1.5)
    gain = rng.normal(1, 0.03, (len(clip), 1, 1, 3)) * rng.normal(1, 0.03, 3)
    return (mixed * gain + rng.normal(0, 4, 3) + rng.normal(0, 3, clip.shape)).astype(np.float32)


def _bytes(clip: Floats) -> Frames:
    return (np.clip(clip, 0, 255) + 0.5).astype(np.uint8)


Damage = Callable[[Frames, np.random.Generator], Frames]
DAMAGES: dict[str, Damage] = {
    "clean": lambda clip, rng: clip,
    "noise 4": lambda clip, rng: _bytes(_noisy(clip, 4, rng)),
    "blur 1": lambda clip, rng: _bytes(_blur(clip.astype(np.float32), 1)),
    "h264": lambda clip, rng: _h264(clip),
    "soft": lambda clip, rng: _bytes(_soft(clip, rng)),
}
"""What the self-test does to clips before it shows them to the checker."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of the self-test on one kind of clips."""

    damage: str
    objects: int
    clips: int
    right: int
    false_right: int
    """Captions with one wrong word that were accepted."""
    captions: int
    """Captions with one wrong word that were tried."""
    milliseconds: float
    """Processor time per clip."""


def self_test(clips: int, *, objects: int, damage: str, seed: int = 0) -> Trial:
    """Judge clips of the procedural world, half of them of held-out triples, under true and false captions."""
    # Only here: what the checker measures must not lean on the renderer.
    from recipes.tiny.world import random_scene, random_tracks, render

    rng = np.random.default_rng(seed)
    right = false_right = captions = 0
    spent = 0.0
    for i in range(clips):
        scene = random_scene(rng, two=float(objects - 1), held_out=i % 2 == 1)
        clip = DAMAGES[damage](render(scene, random_tracks(scene, rng)), rng)
        truth = [entity.triple for entity in scene.entities]
        start = time.process_time()
        observation = observe(clip)
        spent += time.process_time() - start
        right += compare(observation, truth, scene.background).right
        for expected, background in _false_captions(truth, scene.background):
            captions += 1
            false_right += compare(observation, expected, background).right
    return Trial(
        damage=damage,
        objects=objects,
        clips=clips,
        right=right,
        false_right=false_right,
        captions=captions,
        milliseconds=1e3 * spent / max(clips, 1),
    )


def _false_captions(truth: list[Expected], background: str) -> list[tuple[list[Expected], str]]:
    """Every caption that differs from the true one in one word."""
    false: list[tuple[list[Expected], str]] = [(truth, other) for other in BACKGROUNDS if other != background]
    for which, words in enumerate(truth):
        colour, shape, motion = words
        changed = [(other, shape, motion) for other in COLOURS if other != colour]
        changed += [(colour, other, motion) for other in SHAPES if other != shape]
        changed += [(colour, shape, other) for other in MOTIONS if other != motion]
        false += [([*truth[:which], one, *truth[which + 1 :]], background) for one in changed]
    return false


def main(argv: Sequence[str] | None = None) -> int:
    """Run the self-test; print a table, or one JSON object per line. Returns 1 if a target on clean clips is missed."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.checker", description="Measure the checker itself.")
    parser.add_argument("--self-test", type=int, required=True, metavar="N", help="clips of one object; N/2 with two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damage", choices=list(DAMAGES), action="append", help="only this; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(argv)
    if options.self_test < 2:
        parser.error(f"--self-test {options.self_test}: give 2 or more clips")
    missed = False
    for damage in options.damage or DAMAGES:
        for objects, clips, target in ((1, options.self_test, 0.995), (2, options.self_test // 2, 0.99)):
            trial = self_test(clips, objects=objects, damage=damage, seed=options.seed)
            missed |= trial.false_right > 0 or (damage == "clean" and trial.right < target * trial.clips)
            if options.json:
                print(json.dumps(vars(trial)), flush=True)
            else:
                print(
                    f"{damage:8} {objects} object{'s' if objects > 1 else ' '}  right {trial.right}/{trial.clips}"
                    f" = {trial.right / trial.clips:.1%}  falsely right {trial.false_right}/{trial.captions}"
                    f"  {trial.milliseconds:.0f} ms",
                    flush=True,
                )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
