"""The node that moves what a first frame shows along drawn tracks (ATI).

The model sees, beside the noise, latents in which features of the first frame were copied to where their track is at
that time. Source: bytedance/ATI; arXiv 2505.22944.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F

from cygnet.nodes.conditioning import (
    NAMES,
    REQUIRED,
    STEERED,
    Conditioning,
    WanImageToVideo,
    attached,
    filled,
    resized,
)
from cygnet.nodes.latents import Latent, empty, encode
from cygnet.nodes.sampling import denormalised, normalised
from cygnet.nodes.workshop import FileHandle, Node

POINTS = 121
"""Points of a track as they are drawn: five seconds at 24 per second, of which the first is the start."""
MOST_TRACKS = 1000


class WanTrackToVideo(Node):
    """Steer an ATI model by tracks, lists of ``{x, y}`` points in pixels."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = STEERED, NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        rest = {name: value for name, value in REQUIRED.items() if name not in ("positive", "negative", "vae")}
        return {
            "required": {
                "positive": REQUIRED["positive"],
                "negative": REQUIRED["negative"],
                "vae": REQUIRED["vae"],
                "tracks": ("STRING", {"default": "[]", "multiline": True}),
                **rest,
                "temperature": ("FLOAT", {"default": 220.0, "min": 1.0, "max": 1000.0, "step": 0.1}),
                "topk": ("INT", {"default": 2, "min": 1, "max": 10}),
                "start_image": ("IMAGE",),
            },
            "optional": {"clip_vision_output": ("CLIP_VISION_OUTPUT",)},
        }

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        vae: FileHandle,
        tracks: str,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        temperature: float,
        topk: int,
        start_image: torch.Tensor,
        clip_vision_output: torch.Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning, Latent]:
        drawn = parse_tracks(tracks)
        if not drawn or length < 5:
            plain: Any = WanImageToVideo.bind(self.shop)()
            given = (vae, width, height, length, batch_size, start_image, clip_vision_output)
            return plain.run(positive, negative, *given)  # type: ignore[no-any-return]
        latent = empty(width, height, length, batch_size)
        start = filled(resized(start_image[:1], width, height), None, length, width, height)
        clean = normalised(encode(self.shop.vae(vae), start))
        places, seen = track_places(drawn, width, height, length)
        moved, share = moved_along(clean[0], places, seen, temperature, topk)
        extras: dict[str, Any] = {
            "concat_latent_image": denormalised(moved[None]),
            "concat_mask": (1 - share)[None, None].expand(1, 4, -1, -1, -1).clone(),
            "clip_vision_output": clip_vision_output,
        }
        return attached(positive, extras), attached(negative, extras), {"samples": latent}


def parse_tracks(text: str) -> list[list[tuple[float, float]]]:
    """Tracks from JSON, single quotes tolerated: lists of ``{x, y}``, or one such list; [] if it is neither."""
    try:
        found = json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list) or not found:
        return []
    rows = [found] if isinstance(found[0], dict) else found
    try:
        return [[(float(point["x"]), float(point["y"])) for point in row] for row in rows[:MOST_TRACKS] if row]
    except (TypeError, KeyError, ValueError):
        return []


def track_places(
    tracks: list[list[tuple[float, float]]], width: int, height: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions ``[length, N, 2]`` from the middle, in halves of the short side, and visibility ``[length, N]``.

    A track is cut to :data:`POINTS`, or goes on unseen; after the start its points are spread over the frames.
    """
    places = torch.zeros(POINTS, len(tracks), 2)
    seen = torch.zeros(POINTS, len(tracks))
    for number, track in enumerate(tracks):
        points = torch.tensor(track[:POINTS])
        places[: len(points), number] = points
        seen[: len(points), number] = 1
    places = (places - torch.tensor([width / 2, height / 2])) * 2 / min(width, height)

    def spread(rows: torch.Tensor) -> torch.Tensor:
        later = rows[1:].repeat_interleave(length - 1, dim=0)[:: POINTS - 1]
        return torch.cat((rows[:1], later))

    return spread(places), spread(seen)


def moved_along(
    clean: torch.Tensor, places: torch.Tensor, seen: torch.Tensor, temperature: float, topk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents ``[16, t, h, w]`` with the first frame's features along the tracks, and how strongly they act there.

    ``clean`` is the first frame and grey after it. The strength ``[t, h, w]`` is 1 in the first frame, and above 1
    where several tracks meet. A track acts on a
    cell by ``exp(-temperature * distance ** 2)``, and the ``topk`` strongest act on each.
    """
    frames, rows, columns = clean.shape[1:]
    short = min(rows, columns)
    y = torch.linspace(-rows / short, rows / short, rows)
    x = torch.linspace(-columns / short, columns / short, columns)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # [h, w, 2] as (x, y)
    later = places[1:].unflatten(0, (frames - 1, 4)), seen[1:].unflatten(0, (frames - 1, 4))
    counts = later[1].sum(1)  # [t - 1, N]
    middle = (later[0] * later[1][..., None]).sum(1) / counts.clamp(min=1e-5)[..., None]
    distance = (grid[None, None] - middle[:, :, None, None]).square().sum(-1)  # [t - 1, N, h, w]
    weight = torch.exp(-temperature * distance) * (counts > 0)[..., None, None]
    strongest, which = weight.topk(min(topk, weight.shape[1]), dim=1)  # [t - 1, k, h, w]
    starts = places[0] * short / torch.tensor([columns, rows])  # sampling counts from -1 to 1 across the frame
    features = F.grid_sample(clean[None, :, 0], starts.clamp(-1, 1)[None, None], align_corners=False)[0, :, 0]
    carried = (features[:, which] * strongest).sum(2)  # [16, t - 1, h, w]
    share = strongest.sum(1)
    moved = clean.clone()
    moved[:, 1:] = carried + (1 - share.clamp(max=1)) * clean[:, 1:]
    return moved, torch.cat((torch.ones(1, rows, columns), share))
