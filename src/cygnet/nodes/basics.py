"""Constants, and small operations on pictures and masks.

``MASK`` is ``[B, H, W]`` float32 in 0..1.
"""

from __future__ import annotations

from typing import Any

import torch

from cygnet.nodes.workshop import Node

_LARGEST = 2**63 - 1


class PrimitiveInt(Node):
    """A whole number."""

    CATEGORY = "utils/primitive"
    RETURN_TYPES = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"min": -_LARGEST, "max": _LARGEST, "control_after_generate": True})}}

    def run(self, value: int) -> tuple[int]:
        return (value,)


class PrimitiveFloat(Node):
    """A number."""

    CATEGORY = "utils/primitive"
    RETURN_TYPES = ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"min": -_LARGEST, "max": _LARGEST})}}

    def run(self, value: float) -> tuple[float]:
        return (value,)


class PrimitiveBoolean(Node):
    """Yes or no."""

    CATEGORY = "utils/primitive"
    RETURN_TYPES = ("BOOLEAN",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("BOOLEAN", {})}}

    def run(self, value: bool) -> tuple[bool]:
        return (value,)


class PrimitiveString(Node):
    """A line of text."""

    CATEGORY = "utils/primitive"
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"multiline": False})}}

    def run(self, value: str) -> tuple[str]:
        return (value,)


class PrimitiveStringMultiline(PrimitiveString):
    """Text of several lines."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"multiline": True})}}


class SolidMask(Node):
    """A mask of one value."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1})
        value = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"value": value, "width": side, "height": side}}

    def run(self, value: float, width: int, height: int) -> tuple[torch.Tensor]:
        return (torch.full((1, height, width), value),)


class InvertMask(Node):
    """One minus the mask."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def run(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (1 - mask,)


class MaskToImage(Node):
    """A mask as a grey picture."""

    CATEGORY = "mask"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def run(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (mask.reshape(-1, *mask.shape[-2:])[..., None].expand(-1, -1, -1, 3).clone(),)


class ImageToMask(Node):
    """One channel of a picture as a mask."""

    CATEGORY = "mask"
    RETURN_TYPES = ("MASK",)
    CHANNELS = ("red", "green", "blue", "alpha")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "channel": (list(cls.CHANNELS),)}}

    def run(self, image: torch.Tensor, channel: str) -> tuple[torch.Tensor]:
        return (image[..., self.CHANNELS.index(channel)],)


class RepeatImageBatch(Node):
    """The same pictures again and again."""

    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        amount = ("INT", {"default": 1, "min": 1, "max": 4096})
        return {"required": {"image": ("IMAGE",), "amount": amount}}

    def run(self, image: torch.Tensor, amount: int) -> tuple[torch.Tensor]:
        return (image.repeat(amount, 1, 1, 1),)


class ImageFromBatch(Node):
    """Some pictures of a batch; a negative index counts from the end."""

    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": -16384, "max": 4095}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def run(self, image: torch.Tensor, batch_index: int, length: int) -> tuple[torch.Tensor]:
        start = min(max(batch_index + (len(image) if batch_index < 0 else 0), 0), len(image) - 1)
        return (image[start : start + length].clone(),)


class PreviewAny(Node):
    """Any value as text."""

    CATEGORY = "utils"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def run(self, source: Any) -> dict[str, Any]:
        return {"ui": {"text": [str(source)]}}
