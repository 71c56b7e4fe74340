"""Nodes that read pictures and write pictures and videos."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.errors import RequestError
from cygnet.graph.folders import FolderKind, Saved, can_be_named
from cygnet.media.files import discard, new_part_folder, output_error, publish
from cygnet.media.image import load_image
from cygnet.media.sound import Sound
from cygnet.media.video import Codec, VideoFormat
from cygnet.nodes.described import described
from cygnet.nodes.videos import VideoFromFile, VideoValue, fill, to_sound, video_components
from cygnet.nodes.workshop import Node, Workshop

HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".m4v", ".gif", ".webp")


class LoadImage(Node):
    """A picture of the input folder."""

    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (input_files(cls.shop, PICTURES), {"image_upload": True})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return hashlib.sha256(cls.shop.folders.locate(image).read_bytes()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return is_there(cls.shop, image)

    def run(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        picture = load_image(self.shop.folders.locate(image), min_side=1, keep_alpha=True)
        pixels = torch.from_numpy(picture.pixels.astype(np.float32) / 255.0)[None]
        if picture.alpha is None:
            return pixels, torch.zeros(1, 64, 64)
        return pixels, 1 - torch.from_numpy(picture.alpha.astype(np.float32) / 255.0)[None]


class LoadVideo(Node):
    """A video of the input folder."""

    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = input_files(cls.shop, _VIDEOS)
        return {"required": {"file": ("COMBO", {"multiselect": False, "options": names, "video_upload": True})}}

    @classmethod
    def IS_CHANGED(cls, file: str) -> int:
        return cls.shop.folders.locate(file).stat().st_mtime_ns

    @classmethod
    def VALIDATE_INPUTS(cls, file: str) -> bool | str:
        return is_there(cls.shop, file)

    def run(self, file: str) -> tuple[VideoFromFile]:
        video = VideoFromFile(self.shop.folders.locate(file))
        video.get_components()  # what is wrong with the file is told at this node
        return (video,)


class CreateVideo(Node):
    """Frames and a rate to a video."""

    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            "optional": {"audio": ("AUDIO",)},
        }

    def run(self, images: torch.Tensor, fps: float, audio: Any = None) -> tuple[VideoValue]:
        if audio is not None:
            to_sound(audio)  # what is wrong with it is said before anything is written
        return (VideoValue(images, fps, audio),)


class SaveVideo(Node):
    """A video to an mp4 file of the output folder."""

    CATEGORY = "image/video"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI", "multiline": False}),
                "format": ("COMBO", {"default": "auto", "multiselect": False, "options": ["auto", "mp4"]}),
                "codec": ("COMBO", {"default": "auto", "multiselect": False, "options": ["auto", "h264"]}),
            },
            "hidden": HIDDEN,
        }

    def run(
        self,
        video: Any,
        filename_prefix: str,
        format: str,
        codec: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        told = described(self.shop, prompt, extra_pnginfo)
        it = video_components(video)
        sound = None if it.audio is None else to_sound(it.audio)
        return animated(write(self.shop, it.images, float(it.frame_rate), filename_prefix, "mp4", told, sound=sound))


class SaveAnimatedWEBP(Node):
    """Frames to an animated WebP file of the output folder."""

    CATEGORY = "image/animation"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
                "fps": ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "lossless": ("BOOLEAN", {"default": True}),
                "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
                "method": (["default", "fastest", "slowest"],),
            },
            "hidden": HIDDEN,
        }

    def run(
        self,
        images: torch.Tensor,
        filename_prefix: str,
        fps: float,
        lossless: bool,
        quality: int,
        method: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        level = 10.0 if lossless else min(quality, 99) / 10
        told = described(self.shop, prompt, extra_pnginfo)
        effort = {"default": 4, "fastest": 0, "slowest": 6}[method]
        saved = write(self.shop, images, fps, filename_prefix, "webp", told, quality=level, effort=effort)
        return animated(saved, len(images) != 1)


class SaveWEBM(Node):
    """Frames to a WebM file of the output folder."""

    CATEGORY = "image/video"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "codec": (["vp9", "av1"],),
                "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "crf": ("FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1}),
            },
            "hidden": HIDDEN,
        }

    def run(
        self,
        images: torch.Tensor,
        filename_prefix: str,
        codec: Codec,
        fps: float,
        crf: float,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        told = described(self.shop, prompt, extra_pnginfo)
        saved = write(self.shop, images, fps, filename_prefix, "webm", told, codec=codec, rate_factor=round(crf))
        return animated(saved)


class SaveImage(Node):
    """Frames to PNG files of the output folder."""

    CATEGORY = "image"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    KIND: FolderKind = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": HIDDEN,
        }

    def run(
        self, images: torch.Tensor, filename_prefix: str, prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        return {"ui": {"images": self.save(images, filename_prefix, prompt, extra_pnginfo)}}

    def save(self, images: torch.Tensor, prefix: str, prompt: Any, extra_pnginfo: Any) -> list[dict[str, str]]:
        told = described(self.shop, prompt, extra_pnginfo)
        return [
            write(self.shop, one[None], 1, prefix.replace("%batch_num%", str(i)), "png", told, folder=self.KIND).json()
            for i, one in enumerate(images)
        ]


class PreviewImage(SaveImage):
    """Frames to show on the node, kept until the studio stops."""

    KIND: FolderKind = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}, "hidden": HIDDEN}

    def run(self, images: torch.Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:  # type: ignore[override]
        prefix = f"ComfyUI_temp_{secrets.token_hex(4)}"
        return {"ui": {"images": self.save(images, prefix, prompt, extra_pnginfo)}}


class MaskPreview(SaveImage):
    """A mask to show on the node, as grey pictures."""

    KIND: FolderKind = "temp"
    CATEGORY = "mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}, "hidden": HIDDEN}

    def run(self, mask: torch.Tensor, prompt: Any = None, extra_pnginfo: Any = None) -> dict[str, Any]:  # type: ignore[override]
        grey = mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3)
        prefix = f"ComfyUI_temp_{secrets.token_hex(4)}"
        return {"ui": {"images": self.save(grey, prefix, prompt, extra_pnginfo)}}


def is_there(shop: Workshop, name: str) -> bool | str:
    """True, or in words why there is no such file in the input folder."""
    try:
        shop.folders.locate(name)
    except RequestError as error:
        return str(error)
    return True


def input_files(shop: Workshop, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files of the input folder that have one of these suffixes."""
    root = shop.folders.input
    if not root.is_dir():
        return []
    found = (it.name for it in os.scandir(root) if it.is_file() and it.name.lower().endswith(suffixes))
    return sorted(filter(can_be_named, found))


def animated(saved: Saved, moves: bool = True) -> dict[str, Any]:
    """What a node shows of one saved file."""
    return {"ui": {"images": [saved.json()], "animated": [moves]}}


def write(
    shop: Workshop,
    images: torch.Tensor,
    fps: float,
    prefix: str,
    kind: VideoFormat,
    metadata: Mapping[str, str],
    *,
    quality: float | None = None,
    folder: FolderKind = "output",
    sound: Sound | None = None,
    effort: int = 4,
    codec: Codec | None = None,
    rate_factor: int | None = None,
) -> Saved:
    """Write frames ``[T, H, W, C]`` in 0..1 as one file under the next free name of a prefix.

    A fourth channel, opacity, is kept where the format can.
    """

    def made(path: Path) -> None:
        fill(
            path, images, fps, kind, metadata,
            quality=quality, sound=sound, effort=effort, codec=codec, rate_factor=rate_factor,
        )  # fmt: skip

    return save_whole(shop, prefix, f".{kind}", made, folder, width=images.shape[2], height=images.shape[1])


def save_whole(
    shop: Workshop,
    prefix: str,
    suffix: str,
    make: Callable[[Path], None],
    folder: FolderKind = "output",
    **values: object,
) -> Saved:
    """What ``make`` writes, under the next free name of a prefix.

    The name is taken when the file is whole: another process may work in the same folder, and what an hour was computed
    for is not lost because a name was taken meanwhile.
    """
    path, place = shop.folders.next_file(prefix, suffix, folder, **values)
    try:
        private = new_part_folder(path.parent)
    except OSError as error:
        raise output_error(error, path) from error
    try:
        make(private / path.name)
        whole = private / path.name
        while True:
            try:
                publish(whole, path, overwrite=False)
                return place
            except FileExistsError:
                path, place = shop.folders.next_file(prefix, suffix, folder, **values)
            except OSError as error:
                raise output_error(error, path) from error
    finally:
        discard(private)
