"""``comfy.cli_args``: what the studio was started with, under the names of ComfyUI's own launcher."""

from __future__ import annotations

from enum import Enum
from typing import Any

from cygnet.nodes.host import Host
from cygnet.nodes.workshop import Workshop

_NEVER = (
    "lowvram highvram novram gpu_only multi_user enable_cors_header force_fp32 force_fp16 fp32_vae fp16_vae bf16_vae "
    "cpu_vae deterministic dont_print_server windows_standalone_build use_sage_attention use_flash_attention "
    "use_split_cross_attention use_quad_cross_attention disable_xformers disable_smart_memory directml disable_mmap"
)
"""Flags that ``cygnet launch`` refuses, so that they are never set."""


class LatentPreviewMethod(Enum):
    """How previews are made."""

    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"


class Arguments:
    """What was asked for at start; a flag that is not known here is an AttributeError that names it."""

    def __init__(self, shop: Workshop, host: Host) -> None:
        base = str(shop.folders.output.parent)
        self.base_directory = base
        self.input_directory = str(shop.folders.input)
        self.output_directory = str(shop.folders.output)
        self.temp_directory = str(shop.folders.temp)
        self.disable_metadata = not shop.metadata
        self.cpu = shop.device == "cpu"
        self.preview_method = LatentPreviewMethod(host.preview_method)
        self.preview_size = shop.preview_side
        self.default_hashing_function = "sha256"
        if hasattr(host, "address"):
            self.listen, self.port = host.address, host.port
        vars(self).update(dict.fromkeys(_NEVER.split(), False))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"comfy.cli_args.args.{name} is not known to cygnet; ask with getattr and a default")


def names(shop: Workshop, host: Host) -> dict[str, Any]:
    """What the module holds."""
    return {"args": Arguments(shop, host), "LatentPreviewMethod": LatentPreviewMethod}
