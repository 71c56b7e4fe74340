"""Nodes that name a weight file. Nothing is read until a node needs the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
        stored = None if weight_dtype == "default" else weight_dtype.removesuffix("_fast")
        return (ModelHandle(self.shop.path("diffusion_models", unet_name), stored=stored),)


_STRENGTH = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})


class LoraLoaderModelOnly(Node):
    """A LoRA on a diffusion transformer."""

    CATEGORY = "loaders"
    RETURN_TYPES: tuple[str, ...] = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (cls.shop.names("loras"),),
                "strength_model": _STRENGTH,
            }
        }

    def run(self, model: ModelHandle, lora_name: str, strength_model: float) -> tuple[ModelHandle]:
        if strength_model == 0:
            return (model,)
        added = (self.shop.path("loras", lora_name), strength_model)
        return (replace(model, loras=(*model.loras, added)),)


class LoraLoader(LoraLoaderModelOnly):
    """A LoRA on a diffusion transformer; none of Wan's changes the text encoder, which is handed on as it is."""

    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (cls.shop.names("loras"),),
                "strength_model": _STRENGTH,
                "strength_clip": _STRENGTH,
            }
        }

    def run(  # type: ignore[override]
        self, model: ModelHandle, clip: FileHandle, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[ModelHandle, FileHandle]:
        return super().run(model, lora_name, strength_model)[0], clip


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
