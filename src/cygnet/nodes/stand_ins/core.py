"""``nodes``: our own nodes as packs know them, to be called, or to be the base of theirs.

Packs call a node by the name of its function and with inputs in the contract's order; both are facts of the contract,
in one table. The functions themselves are ours.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cygnet.errors import RequestError
from cygnet.graph.contract import Classic, NodeClass
from cygnet.graph.folders import FOLDER_KINDS
from cygnet.nodes import files
from cygnet.nodes.images import METHODS
from cygnet.nodes.latents import MOST, Latent
from cygnet.nodes.stand_ins.devices import interrupt_current_processing, throw_exception_if_processing_interrupted
from cygnet.nodes.stand_ins.models import LACKING_NODES
from cygnet.nodes.workshop import Workshop

_SAMPLING = "sampler_name scheduler positive negative latent_image"
_FUNCTIONS: Mapping[str, tuple[str, str]] = {
    "CLIPTextEncode": ("encode", "clip text"),
    "CLIPVisionEncode": ("encode", "clip_vision image crop"),
    "CLIPLoader": ("load_clip", "clip_name type device"),
    "CLIPVisionLoader": ("load_clip", "clip_name"),
    "ConditioningZeroOut": ("zero_out", "conditioning"),
    "ImagePadForOutpaint": ("expand_image", "image left top right bottom feathering"),
    "ImageScale": ("upscale", "image upscale_method width height crop"),
    "ImageScaleBy": ("upscale", "image upscale_method scale_by"),
    "KSampler": ("sample", f"model seed steps cfg {_SAMPLING} denoise"),
    "KSamplerAdvanced": (
        "sample",
        f"model add_noise noise_seed steps cfg {_SAMPLING} start_at_step end_at_step return_with_leftover_noise",
    ),
    "LoadImage": ("load_image", "image"),
    "LoadImageMask": ("load_image", "image channel"),
    "LoraLoader": ("load_lora", "model clip lora_name strength_model strength_clip"),
    "LoraLoaderModelOnly": ("load_lora_model_only", "model lora_name strength_model"),
    "UNETLoader": ("load_unet", "unet_name weight_dtype"),
    "VAEDecode": ("decode", "vae samples"),
    "VAEDecodeTiled": ("decode", "vae samples tile_size overlap temporal_size temporal_overlap"),
    "VAEEncode": ("encode", "vae pixels"),
    "VAELoader": ("load_vae", "vae_name"),
}
"""Name of a node → its function and the order of the inputs, where packs call it by them."""


def names(shop: Workshop, classes: Mapping[str, NodeClass]) -> dict[str, Any]:
    """What the module holds; ``NODE_CLASS_MAPPINGS`` grows as packs are loaded."""
    known = {name: it for name, it in classes.items() if isinstance(it, Classic)}
    own: dict[str, Any] = {name: _known_as(name, it.implementation) for name, it in known.items()}
    own |= _saving(shop)

    def common_ksampler(
        model: Any, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str, positive: Any, negative: Any,
        latent: Latent, denoise: float = 1.0, disable_noise: bool = False, start_step: int | None = None,
        last_step: int | None = None, force_full_denoise: bool = False,
    ) -> Any:  # fmt: skip
        """Latents sampled as the sampler nodes do."""
        parts = (disable_noise, start_step is not None, last_step is not None)
        if not any(parts):
            return own["KSampler"]().sample(
                model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise
            )
        if denoise != 1.0:
            raise RequestError("common_ksampler samples a part of the steps, or with denoise below 1, not both")
        return own["KSamplerAdvanced"]().sample(
            model, "disable" if disable_noise else "enable", seed, steps, cfg, sampler_name, scheduler, positive,
            negative, latent, start_step or 0, 10000 if last_step is None else last_step,
            "disable" if force_full_denoise else "enable",
        )  # fmt: skip

    return {
        **LACKING_NODES,
        **own,
        "NODE_CLASS_MAPPINGS": dict(own),
        "NODE_DISPLAY_NAME_MAPPINGS": {name: it.display_name for name, it in known.items()},
        "EXTENSION_WEB_DIRS": {},
        "LOADED_MODULE_DIRS": {},
        "MAX_RESOLUTION": MOST,
        "common_ksampler": common_ksampler,
        "interrupt_processing": interrupt_current_processing,
        "before_node_execution": throw_exception_if_processing_interrupted,
    }


def _known_as(name: str, implementation: Any) -> type:
    """A node under the name and the arguments that packs call it by."""
    if name not in _FUNCTIONS:
        return type(name, (implementation,), {})
    function, order = _FUNCTIONS[name]
    run: Callable[..., Any] = getattr(implementation, implementation.FUNCTION)
    inputs = order.split()

    def call(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) > len(inputs):
            raise TypeError(f"{name}.{function} takes {len(inputs)} inputs ({', '.join(inputs)}), not {len(given)}")
        return run(self, **dict(zip(inputs, given, strict=False)), **named)

    call.__name__ = function
    choices = {"upscale_methods": list(METHODS), "crop_methods": ["disabled", "center"]}  # of which packs make combos
    more = choices if function == "upscale" else {}
    return type(name, (implementation,), {"FUNCTION": function, function: call, **more})


def _saving(shop: Workshop) -> dict[str, type]:
    """Save Image and Preview Image, which packs derive from to save elsewhere below our folders."""

    class SaveImage(files.SaveImage.bind(shop)):  # type: ignore[misc]
        FUNCTION = "save_images"

        def __init__(self) -> None:
            self.output_dir = str(shop.folders.output)
            self.type = "output"
            self.prefix_append = ""
            self.compress_level = 4

        def save_images(
            self, images: torch.Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
        ) -> dict[str, Any]:
            if self.type not in FOLDER_KINDS:
                raise RequestError(f"type is {self.type!r}; pictures are saved as {', '.join(FOLDER_KINDS)}")
            below = os.path.relpath(self.output_dir, shop.folders.root(self.type))
            if below.split(os.sep)[0] == "..":
                raise RequestError(
                    f"output_dir of {type(self).__name__} is not in the {self.type} folder; take "
                    f"folder_paths.get_{self.type}_directory(), or a folder in it"
                )
            self.KIND = self.type
            prefix = (Path(below) / f"{filename_prefix}{self.prefix_append}").as_posix()
            return {"ui": {"images": self.save(images, prefix, prompt, extra_pnginfo)}}

    class PreviewImage(SaveImage):
        INPUT_TYPES = files.PreviewImage.INPUT_TYPES

        def __init__(self) -> None:
            super().__init__()
            self.output_dir = str(shop.folders.temp)
            self.type = "temp"
            self.prefix_append = f"_temp_{secrets.token_hex(4)}"
            self.compress_level = 1

    return {"SaveImage": SaveImage, "PreviewImage": PreviewImage}
