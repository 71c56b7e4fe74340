"""Nodes that name a weight file. Nothing is read until a node needs the network."""

from __future__ import annotations

from typing import Any

from cygnet.errors import UnsupportedError
from cygnet.nodes.workshop import FileHandle, ModelHandle, Node

_CLIP_TYPES = ("wan",)
_WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")


class UNETLoader(Node):
    """A diffusion transformer."""

    CATEGORY = "advanced/loaders"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "unet_name": (cls.shop.names("diffusion_models"),),
                "weight_dtype": (list(_WEIGHT_DTYPES), {"advanced": True}),
            }
        }

    def run(self, unet_name: str, weight_dtype: str) -> tuple[ModelHandle]:
        if weight_dtype != "default":
            raise UnsupportedError(f"weight_dtype {weight_dtype} is not there yet; choose default")
        return (ModelHandle(self.shop.path("diffusion_models", unet_name)),)


class CLIPLoader(Node):
    """A text encoder."""

    CATEGORY = "advanced/loaders"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip_name": (cls.shop.names("text_encoders"),), "type": (list(_CLIP_TYPES),)},
            "optional": {"device": (["default", "cpu"], {"advanced": True})},
        }

    def run(self, clip_name: str, type: str, device: str = "default") -> tuple[FileHandle]:
        return (FileHandle(self.shop.path("text_encoders", clip_name), device),)


class VAELoader(Node):
    """An autoencoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae_name": (cls.shop.names("vae"),)}}

    def run(self, vae_name: str) -> tuple[FileHandle]:
        return (FileHandle(self.shop.path("vae", vae_name)),)


class CLIPVisionLoader(Node):
    """An image encoder."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("CLIP_VISION",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip_name": (cls.shop.names("clip_vision"),)}}

    def run(self, clip_name: str) -> tuple[FileHandle]:
        return (FileHandle(self.shop.path("clip_vision", clip_name)),)
