"""The graph that the MCP tool ``generate`` submits: the stock nodes of a Wan workflow, in API format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cygnet.errors import RequestError

TINY = "cygnet_tiny"
"""How the names of the embedded networks begin."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The weight files of a model, by the names that the studio's loaders list."""

    dit: str
    text_encoder: str
    vae: str
    image_encoder: str

    @classmethod
    def of(cls, dit: str | None, with_image: bool, listed: dict[str, list[str]]) -> Files:
        """The files that go with a transformer (by default the embedded one); raises RequestError if one is absent."""
        chosen = dit or f"{TINY}_{'i2v' if with_image else 't2v'}.safetensors"
        if chosen not in listed["diffusion_models"]:
            raise RequestError(
                f"there is no model {chosen!r}; there are: {', '.join(listed['diffusion_models'])}", field="model"
            )
        tiny = chosen.startswith(TINY)

        def pick(kind: str, *marks: str) -> str:
            names = [name for name in listed[kind] if name.startswith(TINY) == tiny]
            for mark in marks:
                for name in names:
                    if mark in name.lower():
                        return name
            raise RequestError(
                f"{chosen} needs a file from {kind} whose name contains {' or '.join(map(repr, marks))}; there is "
                f"none. `cygnet pull` fetches it",
                field="model",
            )

        return cls(
            dit=chosen,
            text_encoder=pick("text_encoders", "umt5"),
            vae=pick("vae", "wan_2.1", "wan2.1", "vae"),
            image_encoder=pick("clip_vision", "clip_vision_h", "clip") if with_image else "",
        )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a video shall be; None takes the model's default."""

    prompt: str
    negative_prompt: str | None
    image: str | None
    """Name of a picture in the studio's input folder."""
    width: int | None
    height: int | None
    frames: int | None
    steps: int | None
    guidance: float | None
    seed: int


def graph_of(wish: Wish, files: Files) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt to submit, and the settings that it uses."""
    from cygnet.models.dit.config import T2V_1_3B, T2V_14B, TINY_T2V
    from cygnet.pipelines.presets import NAMED, PRESETS

    name = files.dit.lower()
    if name.startswith(TINY):
        usual = PRESETS[TINY_T2V]
    elif wish.image is not None:
        usual = NAMED["i2v-14b-720p" if "720" in name else "i2v-14b-480p"]
    else:
        usual = PRESETS[T2V_14B if "14b" in name else T2V_1_3B]
    width, height = wish.width or usual.width, wish.height or usual.height
    used = {
        "model": files.dit,
        "prompt": wish.prompt,
        "negative_prompt": usual.negative_prompt if wish.negative_prompt is None else wish.negative_prompt,
        "width": width,
        "height": height,
        "frames": wish.frames or usual.num_frames,
        "steps": wish.steps or usual.num_steps,
        "guidance": usual.guidance_scale if wish.guidance is None else wish.guidance,
        "seed": wish.seed,
    }
    size = {"width": width, "height": height, "length": used["frames"], "batch_size": 1}
    nodes: dict[str, Any] = {
        "1": _node("UNETLoader", unet_name=files.dit, weight_dtype="default"),
        "2": _node("CLIPLoader", clip_name=files.text_encoder, type="wan", device="default"),
        "3": _node("VAELoader", vae_name=files.vae),
        "4": _node("CLIPTextEncode", clip=["2", 0], text=wish.prompt),
        "5": _node("CLIPTextEncode", clip=["2", 0], text=used["negative_prompt"]),
        "6": _node("ModelSamplingSD3", model=["1", 0], shift=usual.shift_for(width, height)),
    }
    positive, negative, latent = ["4", 0], ["5", 0], ["7", 0]
    if wish.image is None:
        nodes["7"] = _node("EmptyHunyuanLatentVideo", **size)
    else:
        nodes["8"] = _node("LoadImage", image=wish.image)
        nodes["9"] = _node("CLIPVisionLoader", clip_name=files.image_encoder)
        nodes["10"] = _node("CLIPVisionEncode", clip_vision=["9", 0], image=["8", 0], crop="none")
        nodes["7"] = _node(
            "WanImageToVideo", positive=positive, negative=negative, vae=["3", 0], clip_vision_output=["10", 0],
            start_image=["8", 0], **size,
        )  # fmt: skip
        positive, negative, latent = ["7", 0], ["7", 1], ["7", 2]
    nodes["11"] = _node(
        "KSampler", model=["6", 0], positive=positive, negative=negative, latent_image=latent, seed=wish.seed,
        steps=used["steps"], cfg=used["guidance"], sampler_name="uni_pc", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    nodes["12"] = _node("VAEDecode", samples=["11", 0], vae=["3", 0])
    nodes["13"] = _node("CreateVideo", images=["12", 0], fps=usual.fps)
    nodes["14"] = _node("SaveVideo", video=["13", 0], filename_prefix="video/cygnet", format="auto", codec="auto")
    return nodes, used


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
