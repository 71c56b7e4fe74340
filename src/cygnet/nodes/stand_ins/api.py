"""``comfy_api``: the modules of the current contract, under the names of its versions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, TypedDict

import torch

from cygnet.nodes import modern
from cygnet.nodes.modern_ui import ui_names
from cygnet.nodes.stand_ins.progress import ComfyAPI, ComfyAPISync
from cygnet.nodes.videos import VideoComponents, VideoFromComponents, VideoFromFile, VideoInput
from cygnet.nodes.workshop import Workshop


class _Choice(StrEnum):
    @classmethod
    def as_input(cls) -> list[str]:
        """The choices of a combo."""
        return [it.value for it in cls]


class VideoContainer(_Choice):
    """Kinds of files that a video is saved as."""

    AUTO = "auto"
    MP4 = "mp4"

    @classmethod
    def get_extension(cls, value: str) -> str:
        """The end of a file's name."""
        cls(value)
        return "mp4"


class VideoCodec(_Choice):
    """Codings that a video is saved in."""

    AUTO = "auto"
    H264 = "h264"


class AudioInput(TypedDict):
    """``AUDIO``."""

    waveform: torch.Tensor
    """``[B, C, N]``"""
    sample_rate: int


class LatentInput(TypedDict, total=False):
    """``LATENT``."""

    samples: torch.Tensor
    noise_mask: torch.Tensor | None
    batch_index: list[int] | None
    type: str | None


def modules(shop: Workshop) -> dict[str, Mapping[str, Any]]:
    """The modules by name."""
    io, ui = modern.io_names(), ui_names(shop)
    inputs = {
        "VideoInput": VideoInput,
        "AudioInput": AudioInput,
        "LatentInput": LatentInput,
        "ImageInput": torch.Tensor,  # [B, H, W, C]
        "MaskInput": torch.Tensor,  # [B, H, W]
    }
    made = {"VideoFromFile": VideoFromFile, "VideoFromComponents": VideoFromComponents}
    parts = {"VideoComponents": VideoComponents, "VideoCodec": VideoCodec, "VideoContainer": VideoContainer}
    videos = ("VideoInput", "VideoFromFile", "VideoFromComponents", *parts)
    newest = {
        # Under these names nodes write Input.Video and Input.Image.
        "Input": SimpleNamespace(**{name.removesuffix("Input"): it for name, it in inputs.items()}),
        "InputImpl": SimpleNamespace(**made),
        "Types": SimpleNamespace(**parts),
        "ComfyAPI": ComfyAPI,
        "ComfyAPISync": ComfyAPISync,
    }
    found: dict[str, Mapping[str, Any]] = {
        "comfy_api": {"__path__": []},
        "comfy_api.v0_0_1": newest,
    }
    for names in (("input", inputs), ("input_impl", made), ("util", parts)):
        package, contents = names
        of_videos = {name: it for name, it in (inputs | made | parts).items() if name in videos}
        found[f"comfy_api.{package}"] = {"__path__": [], **contents}
        found[f"comfy_api.{package}.video_types"] = {name: it for name, it in of_videos.items() if name in contents}
    found["comfy_api.input.basic_types"] = {name: it for name, it in inputs.items() if name != "VideoInput"}
    for version in ("comfy_api.latest", "comfy_api.v0_0_2"):
        found[version] = {
            "__path__": [],
            "ComfyExtension": modern.ComfyExtension,
            "IO": SimpleNamespace(**io),
            "UI": SimpleNamespace(**ui),
            **newest,
        }
        found |= {f"{version}.{name}": io for name in ("io", "_io")}
        found |= {f"{version}.{name}": ui for name in ("ui", "_ui")}
        found |= {f"{version}._input": inputs, f"{version}._input_impl": made, f"{version}._util": parts}
    return found
