"""Nodes for Wan-Move: features of the first frame are copied to where drawn tracks lead.

``TRACKS`` is ``{"track_path": [T, N, 2] positions x, y in pixels, "track_visibility": [T, N] bool}``.
Source: ali-vilab/Wan-Move (arXiv 2512.08765); its ComfyUI nodes for names and ranges.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image, ImageDraw

from cygnet.errors import RequestError
from cygnet.nodes.conditioning import NAMES, REQUIRED, STEERED, Conditioning, WanImageToVideo, attached
from cygnet.nodes.latents import Latent
from cygnet.nodes.tracks import parse_tracks
from cygnet.nodes.workshop import FileHandle, Node

STRIDES = 4, 8, 8  # frames, rows and columns of pixels in a cell of the latents
COLOURS = ((90, 160, 255), (60, 230, 230), (255, 225, 60), (255, 110, 200), (80, 220, 90))


class Tracks(TypedDict):
    """Points that move over the frames, and when they are seen."""

    track_path: torch.Tensor
    track_visibility: torch.Tensor


def _share() -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}


def _share_of(default: float) -> tuple[str, dict[str, Any]]:
    kind, options = _share()
    return kind, {**options, "default": default}


def seen(frames: int, tracks: int, mask: torch.Tensor | None) -> torch.Tensor:
    """``[frames, tracks]``: all, or in the frames in which a mask ``[B, H, W]`` has anything; its last one goes on."""
    if mask is None:
        return torch.ones(frames, tracks, dtype=torch.bool)
    drawn = (mask > 0).flatten(1).any(1)
    return drawn[torch.arange(frames).clamp(max=len(drawn) - 1), None].expand(frames, tracks).clone()


class GenerateTracks(Node):
    """Parallel tracks along a line or a quadratic curve."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = ("TRACKS", "INT"), ("TRACKS", "track_length")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "width": ("INT", {"default": 832, "min": 16, "max": 4096, "step": 16}),
                "height": ("INT", {"default": 480, "min": 16, "max": 4096, "step": 16}),
                "start_x": _share(),
                "start_y": _share(),
                "end_x": _share_of(1.0),
                "end_y": _share_of(1.0),
                "num_frames": ("INT", {"default": 81, "min": 1, "max": 1024}),
                "num_tracks": ("INT", {"default": 5, "min": 1, "max": 100}),
                "track_spread": ("FLOAT", {"default": 0.025, "min": 0.0, "max": 1.0, "step": 0.001}),
                "bezier": ("BOOLEAN", {"default": False}),
                "mid_x": _share_of(0.5),
                "mid_y": _share_of(0.5),
                "interpolation": (["linear", "ease_in", "ease_out", "ease_in_out", "constant"],),
            },
            "optional": {"track_mask": ("MASK",)},
        }

    def run(
        self,
        width: int,
        height: int,
        start_x: float,
        start_y: float,
        end_x: float,
        end_y: float,
        num_frames: int,
        num_tracks: int,
        track_spread: float,
        bezier: bool,
        mid_x: float,
        mid_y: float,
        interpolation: str,
        track_mask: torch.Tensor | None = None,
    ) -> tuple[Tracks, int]:
        size = torch.tensor([float(width), float(height)])
        start, middle, end = (torch.tensor(it) * size for it in ((start_x, start_y), (mid_x, mid_y), (end_x, end_y)))
        time = eased(torch.linspace(0, 1, num_frames), interpolation)[:, None]
        if bezier:
            path = (1 - time) ** 2 * start + 2 * time * (1 - time) * middle + time**2 * end
            heading = (1 - time) * (middle - start) + time * (end - middle)
        else:
            path = start + time * (end - start)
            heading = (end - start).expand(num_frames, 2)
        speed = heading.norm(dim=1, keepdim=True)
        across = torch.stack((-heading[:, 1], heading[:, 0]), dim=1) / speed.clamp(min=1e-9)
        across = torch.where(speed > 0, across, torch.tensor([1.0, 0.0]))  # what stands still is spread sideways
        offsets = (torch.arange(num_tracks) - (num_tracks - 1) / 2) * track_spread * (width + height) / 2
        paths = path[:, None] + across[:, None] * offsets[None, :, None]
        return {"track_path": paths, "track_visibility": seen(num_frames, num_tracks, track_mask)}, num_frames


def eased(time: torch.Tensor, interpolation: str) -> torch.Tensor:
    """How far along the path the track is at each moment, both in 0..1."""
    match interpolation:
        case "constant":
            return torch.zeros_like(time)
        case "ease_in":
            return time**2
        case "ease_out":
            return 1 - (1 - time) ** 2
        case "ease_in_out":
            return time**2 * (3 - 2 * time)
    return time


class WanMoveTracksFromCoords(Node):
    """Tracks from JSON: a list of lists of ``{x, y}`` points, one for each frame."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = ("TRACKS", "INT"), ("TRACKS", "track_length")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {},
            "optional": {"track_coords": ("STRING", {"default": "[]", "forceInput": True}), "track_mask": ("MASK",)},
        }

    def run(self, track_coords: str = "[]", track_mask: torch.Tensor | None = None) -> tuple[Tracks, int]:
        drawn = parse_tracks(track_coords)
        if not drawn:
            raise RequestError(
                "track_coords holds no track; give a JSON list of tracks, each a list of {x, y} points",
                field="track_coords",
            )
        frames = len(drawn[0])
        path = torch.zeros(frames, len(drawn), 2)
        visible = seen(frames, len(drawn), track_mask)
        for number, track in enumerate(drawn):
            points = torch.tensor(track[:frames])
            path[: len(points), number] = points
            visible[len(points) :, number] = False
        return {"track_path": path, "track_visibility": visible}, frames


class WanMoveConcatTrack(Node):
    """The tracks of both."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES = ("TRACKS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"tracks_1": ("TRACKS",)}, "optional": {"tracks_2": ("TRACKS",)}}

    def run(self, tracks_1: Tracks, tracks_2: Tracks | None = None) -> tuple[Tracks]:
        if tracks_2 is None:
            return (tracks_1,)
        lengths = len(tracks_1["track_path"]), len(tracks_2["track_path"])
        if lengths[0] != lengths[1]:
            raise RequestError(
                f"the tracks have {lengths[0]} and {lengths[1]} frames; give them the same num_frames", field="tracks_2"
            )
        path = torch.cat((tracks_1["track_path"], tracks_2["track_path"]), dim=1)
        visible = torch.cat((tracks_1["track_visibility"], tracks_2["track_visibility"]), dim=1)
        return ({"track_path": path, "track_visibility": visible},)


class WanMoveTrackToVideo(Node):
    """Steer a Wan-Move model by its first frame and by tracks."""

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
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01}),
                **rest,
                "start_image": ("IMAGE",),
            },
            "optional": {"tracks": ("TRACKS",), "clip_vision_output": ("CLIP_VISION_OUTPUT",)},
        }

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        vae: FileHandle,
        strength: float,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        start_image: torch.Tensor,
        tracks: Tracks | None = None,
        clip_vision_output: torch.Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning, Latent]:
        plain: Any = WanImageToVideo.bind(self.shop)()
        given = (vae, width, height, length, batch_size, start_image, clip_vision_output)
        positive, negative, latent = plain.run(positive, negative, *given)
        if tracks is not None and strength > 0:
            cells = track_cells(tracks, width, height, length)
            still = positive[0][1]["concat_latent_image"]
            positive = attached(positive, {"concat_latent_image": carried(still, cells, strength)})
        return positive, negative, latent


def track_cells(tracks: Tracks, width: int, height: int, length: int) -> torch.Tensor:
    """Row and column ``[t, N, 2]`` of the latents' cell at each track's every fourth frame; -1 where it is not seen."""
    frames, rows, columns = STRIDES
    path = tracks["track_path"][:length:frames]
    visible = tracks["track_visibility"][:length:frames]
    over = torch.tensor([width % columns, height % rows])  # the pixels that fill no cell are cut off evenly
    path = path - over // 2
    inside = ((path >= 0) & (path < torch.tensor([width, height]) - over)).all(-1)
    cells = torch.stack((path[..., 1] // rows, path[..., 0] // columns), dim=-1).long()
    cells[~(visible & inside)] = -1
    return cells


def carried(latents: torch.Tensor, cells: torch.Tensor, strength: float) -> torch.Tensor:
    """A copy of ``[B, C, t, h, w]`` with each track's feature of the first frame in the cells of later frames.

    A track that is not seen in the first frame carries nothing. Where tracks meet the last one holds; in the published
    code it is one of them at random.
    """
    out = latents.clone()
    for track in cells.unbind(1):
        row, column = track[0].tolist()
        if row < 0:
            continue
        feature = latents[:, :, 0, row, column]
        for frame, (y, x) in enumerate(track[1 : latents.shape[2]].tolist(), 1):
            if y >= 0:
                out[:, :, frame, y, x] = latents[:, :, frame, y, x].lerp(feature, strength)
    return out


class WanMoveVisualizeTracks(Node):
    """Frames with the tracks drawn on them: a disc where each is, and a tail where it was."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "line_resolution": ("INT", {"default": 24, "min": 1, "max": 1024}),
                "circle_size": ("INT", {"default": 12, "min": 1, "max": 128}),
                "opacity": ("FLOAT", {"default": 0.75, "min": 0.0, "max": 1.0, "step": 0.01}),
                "line_width": ("INT", {"default": 16, "min": 1, "max": 128}),
            },
            "optional": {"tracks": ("TRACKS",)},
        }

    def run(
        self,
        images: torch.Tensor,
        line_resolution: int,
        circle_size: int,
        opacity: float,
        line_width: int,
        tracks: Tracks | None = None,
    ) -> tuple[torch.Tensor]:
        if tracks is None:
            return (images,)
        length = max(len(images), len(tracks["track_path"]))
        frames = []
        for at in range(length):
            pixels = (images[at % len(images), ..., :3].clamp(0, 1) * 255).round().byte().numpy()
            picture = Image.fromarray(pixels).convert("RGBA")
            drawn = _tails(tracks, at, picture.size, line_resolution, circle_size, opacity, line_width)
            frames.append(np.asarray(Image.alpha_composite(picture, drawn).convert("RGB")))
        return (torch.from_numpy(np.stack(frames)).float() / 255,)


def _tails(
    tracks: Tracks, at: int, size: tuple[int, int], tail: int, radius: int, opacity: float, width: int
) -> Image.Image:
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    path, visible = tracks["track_path"], tracks["track_visibility"]
    for number in range(path.shape[1]):
        if at >= len(path) or not visible[at, number]:
            continue
        colour = COLOURS[number % len(COLOURS)]
        points = [tuple(it) for it in path[max(0, at - tail) : at + 1, number].tolist()]
        for age, (older, newer) in enumerate(pairwise(points), 1):
            share = age / len(points)  # the newest piece is the widest and the least clear
            pen.line((older, newer), (*colour, int(255 * opacity * share)), max(1, int(width * share)))
        x, y = points[-1]
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), (*colour, int(255 * opacity)))
    return layer
