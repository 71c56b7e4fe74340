"""Nodes that steer by the path of a camera.

``WAN_CAMERA_EMBEDDING`` is ``[1, 24, t, H, W]``: for each pixel the ray through it as six Plücker coordinates, four
frames to a latent frame. Source of the paths and their constants: aigc-apps/VideoX-Fun, and alibaba/CameraCtrl, from
which it has them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from cygnet.nodes.conditioning import NAMES, REQUIRED, STEERED, Conditioning, attached, frame_mask, resized
from cygnet.nodes.control import raw_mean
from cygnet.nodes.latents import MOST, Latent, empty, encode
from cygnet.nodes.workshop import FileHandle, Node

_Vector = tuple[float, float, float]

PATHS: dict[str, tuple[_Vector, _Vector]] = {
    "Static": ((0, 0, 0), (0, 0, 0)),
    "Pan Up": ((0, 0, 0), (0, -1, 0)),
    "Pan Down": ((0, 0, 0), (0, 1, 0)),
    "Pan Left": ((0, 0, 0), (-1, 0, 0)),
    "Pan Right": ((0, 0, 0), (1, 0, 0)),
    "Zoom In": ((0, 0, 0), (0, 0, 2)),
    "Zoom Out": ((0, 0, 0), (0, 0, -2)),
    "Anti Clockwise (ACW)": ((0, 0, -1), (0, 0, 0)),
    "ClockWise (CW)": ((0, 0, 1), (0, 0, 0)),
}
"""Where a camera has turned (about x, y, z) and gone by the end, in units of :data:`TURN` and :data:`WAY`."""
TURN = math.pi / 3
WAY = 1.5
FILMED_ASPECT = 1280 / 720
"""Aspect of the pictures that the focal lengths are given for."""


class WanCameraEmbedding(Node):
    """The path of a camera, as a Fun camera model takes it."""

    CATEGORY = "camera"
    RETURN_TYPES = ("WAN_CAMERA_EMBEDDING", "INT", "INT", "INT")
    RETURN_NAMES = ("camera_embedding", "width", "height", "length")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        focal = ("FLOAT", {"default": 0.5, "min": 0, "max": 1, "step": 1e-9})
        middle = ("FLOAT", {"default": 0.5, "min": 0, "max": 1, "step": 0.01})
        return {
            "required": {
                "camera_pose": ("COMBO", {"default": "Static", "multiselect": False, "options": list(PATHS)}),
                "width": ("INT", {"default": 832, "min": 16, "max": MOST, "step": 16}),
                "height": ("INT", {"default": 480, "min": 16, "max": MOST, "step": 16}),
                "length": ("INT", {"default": 81, "min": 1, "max": MOST, "step": 4}),
            },
            "optional": {
                "speed": ("FLOAT", {"default": 1.0, "min": 0, "max": 10.0, "step": 0.1}),
                "fx": focal,
                "fy": focal,
                "cx": middle,
                "cy": middle,
            },
        }

    def run(
        self,
        camera_pose: str,
        width: int,
        height: int,
        length: int,
        speed: float = 1.0,
        fx: float = 0.5,
        fy: float = 0.5,
        cx: float = 0.5,
        cy: float = 0.5,
    ) -> tuple[torch.Tensor, int, int, int]:
        if width / height < FILMED_ASPECT:
            fx *= height * FILMED_ASPECT / width
        else:
            fy *= width / FILMED_ASPECT / height
        rays = pluecker(poses(camera_pose, length, speed), width, height, (fx, fy), (cx, cy))
        return fold_frames(rays), width, height, length


class WanCameraImageToVideo(Node):
    """Steer a Fun camera model by its first frames and the path of the camera."""

    CATEGORY = "conditioning/video_models"
    RETURN_TYPES, RETURN_NAMES = STEERED, NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": REQUIRED,
            "optional": {
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
                "start_image": ("IMAGE",),
                "camera_conditions": ("WAN_CAMERA_EMBEDDING",),
            },
        }

    def run(
        self,
        positive: Conditioning,
        negative: Conditioning,
        vae: FileHandle,
        width: int,
        height: int,
        length: int,
        batch_size: int,
        start_image: torch.Tensor | None = None,
        clip_vision_output: torch.Tensor | None = None,
        camera_conditions: torch.Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning, Latent]:
        latent = empty(width, height, length, batch_size)
        extras: dict[str, Any] = {}
        if start_image is not None:
            start = resized(start_image[:length], width, height)
            known = encode(self.shop.vae(vae), start)
            beside = raw_mean(latent[:1])
            beside[:, :, : known.shape[2]] = known
            extras = {"concat_latent_image": beside, "concat_mask": frame_mask(latent, start, None)}
        extras |= {"camera_conditions": camera_conditions, "clip_vision_output": clip_vision_output}
        return attached(positive, extras), attached(negative, extras), {"samples": latent}


def poses(name: str, count: int, speed: float) -> torch.Tensor:
    """Camera-to-world matrices ``[count, 4, 4]`` along a path, relative to the first, float64."""
    turn, way = (torch.tensor(part, dtype=torch.float64) for part in PATHS[name])
    matrices = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    for i in range(count):
        share = i / count * speed
        about_x, about_y, about_z = (rotation(axis, float(turn[axis]) * share * TURN) for axis in range(3))
        matrices[i, :3, :3] = about_z @ about_y @ about_x
        matrices[i, :3, 3] = way * share * WAY
    return matrices


def rotation(axis: int, angle: float) -> torch.Tensor:
    """``[3, 3]``: a turn by ``angle`` radians about one axis."""
    matrix = torch.eye(3, dtype=torch.float64)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[b, a], matrix[a, b] = math.sin(angle), -math.sin(angle)
    return matrix


def pluecker(
    matrices: torch.Tensor, width: int, height: int, focal: tuple[float, float], centre: tuple[float, float]
) -> torch.Tensor:
    """Rays ``[T, H, W, 6]`` (moment, then direction) through pixel centres; lengths are fractions of the frame's."""
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - centre[0] * width) / (focal[0] * width)
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - centre[1] * height) / (focal[1] * height)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    seen = torch.stack((columns, rows, torch.ones_like(rows)), dim=-1)
    seen = seen / seen.norm(dim=-1, keepdim=True)  # [H, W, 3]
    directions = torch.einsum("tij,hwj->thwi", matrices[:, :3, :3], seen)
    origins = matrices[:, None, None, :3, 3].expand_as(directions)
    return torch.cat((torch.linalg.cross(origins, directions), directions), dim=-1).float()


def fold_frames(rays: torch.Tensor) -> torch.Tensor:
    """``[T, H, W, 6]`` -> ``[1, 24, t, H, W]``: the first frame four times, then every four together."""
    frames = torch.cat((rays[:1].expand(3, -1, -1, -1), rays))
    whole = frames[: len(frames) // 4 * 4]
    grouped: torch.Tensor = whole.unflatten(0, (-1, 4))  # [t, 4, H, W, 6]
    return grouped.permute(4, 1, 0, 2, 3).flatten(0, 1)[None]
