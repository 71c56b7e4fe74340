"""All nodes of a workshop, by the names that workflows use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from cygnet.graph.contract import Classic, NodeClass
from cygnet.nodes import (
    basics,
    camera,
    conditioning,
    control,
    custom_sampling,
    dynamic,
    extras,
    files,
    images,
    latents,
    loaders,
    move,
    sampling,
    step_caches,
    tracks,
)
from cygnet.nodes.workshop import Node, Workshop

_MODULES: tuple[ModuleType, ...] = (
    loaders,
    latents,
    conditioning,
    control,
    camera,
    tracks,
    move,
    sampling,
    custom_sampling,
    step_caches,
    files,
    images,
    basics,
    dynamic,
    extras,
)
_DISPLAY = {
    "UNETLoader": "Load Diffusion Model",
    "CLIPLoader": "Load CLIP",
    "LoraLoader": "Load LoRA",
    "VAELoader": "Load VAE",
    "CLIPVisionLoader": "Load CLIP Vision",
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "CLIPVisionEncode": "CLIP Vision Encode",
    "VAEDecode": "VAE Decode",
    "VAEEncode": "VAE Encode",
    "TrimVideoLatent": "Trim Video Latent",
    "LoadImage": "Load Image",
    "LoadVideo": "Load Video",
    "GetVideoComponents": "Get Video Components",
    "GetImageSize": "Get Image Size",
    "ImageScale": "Upscale Image",
    "JoinImageWithAlpha": "Join Image with Alpha",
    "ImagePadForOutpaint": "Pad Image for Outpainting",
    "CreateVideo": "Create Video",
    "SaveVideo": "Save Video",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveBoolean": "Boolean",
    "PrimitiveString": "String",
    "PrimitiveStringMultiline": "String (Multiline)",
    "MaskToImage": "Convert Mask to Image",
    "ImageToMask": "Convert Image to Mask",
    "PreviewAny": "Preview Any",
    "KSamplerAdvanced": "KSampler (Advanced)",
    "BatchImagesNode": "Batch Images",
    "ComfySwitchNode": "Switch",
    "ComfyMathExpression": "Math Expression",
    "ResizeImageMaskNode": "Resize Image/Mask",
    "MaskPreview": "Preview Mask",
    "ImageScaleBy": "Upscale Image By",
    "ImageScaleToTotalPixels": "Scale Image to Total Pixels",
    "LoadImageMask": "Load Image (as Mask)",
    "VAEDecodeTiled": "VAE Decode (Tiled)",
}

CORE_ELSEWHERE = frozenset(
    (
        *("CheckpointLoaderSimple", "EmptyLatentImage", "ColorTransfer", "Painter", "ModelPatchLoader", "ScaleROPE"),
        *("AudioConcat", "AudioEncoderEncode", "AudioEncoderLoader", "LoadAudio", "RecordAudio"),
        *("ARVideoI2V", "SamplerARVideo", "SAM3_Detect", "SAM3_VideoTrack", "SCAIL2ColoredMask"),
        *("WanHuMoImageToVideo", "WanInfiniteTalkToVideo", "WanSCAILToVideo"),
    )
)
"""ComfyUI's own nodes of published Wan 2.1 workflows that are not here: no pack brings them."""


def node_classes(shop: Workshop) -> dict[str, NodeClass]:
    """Every node, bound to the workshop."""
    found: dict[str, NodeClass] = {}
    for module in _MODULES:
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Node) and value.__module__ == module.__name__:
                found[name] = Classic(name, value.bind(shop), _DISPLAY.get(name, name))
    return found


def embedded_files(weights: Path) -> Mapping[str, Mapping[str, Path]]:
    """The weights that ship with the package, under the names that the loader nodes list."""
    names = {
        "diffusion_models": {"cygnet_tiny_t2v.safetensors": "t2v", "cygnet_tiny_i2v.safetensors": "i2v"},
        "text_encoders": {"cygnet_tiny_umt5.safetensors": "text_encoder"},
        "vae": {"cygnet_tiny_vae.safetensors": "vae"},
        "clip_vision": {"cygnet_tiny_clip_vision.safetensors": "image_encoder"},
    }
    return {
        kind: {name: path for name, stem in files.items() if (path := weights / f"{stem}.safetensors").exists()}
        for kind, files in names.items()
    }
