"""How LoRA files name what they change: the dialects' module names and the endings that say which part a tensor is.

| dialect | a name of it |
|---|---|
| ComfyUI, diffusion-pipe | ``diffusion_model.blocks.0.self_attn.q.lora_A.weight`` (or ``lora_down``, with ``alpha``) |
| Diffusers | ``transformer.blocks.0.attn1.to_q.lora_A.weight`` (or without the first word) |
| PEFT | ``base_model.model.`` before any of the others |
| kohya, musubi-tuner | ``lora_unet_blocks_0_self_attn_q.lora_down.weight``, with ``alpha`` |
| LyCORIS | ``lycoris_blocks_0_self_attn_q.hada_w1_a`` |
| VideoX-Fun | ``lora_unet__blocks_0_self_attn_q.lora_down.weight`` |
| DiffSynth | ``blocks.0.self_attn.q.lora_A.default.weight`` |

Sources: the files as written by PEFT, Diffusers, kohya-ss/sd-scripts and musubi-tuner, VideoX-Fun, DiffSynth-Studio and
LyCORIS.
"""

from __future__ import annotations

import re
from typing import Literal

from cygnet.checkpoints.layouts import DIT_DIFFUSERS, NUMBER

Dialect = Literal["ComfyUI", "Diffusers", "PEFT", "kohya", "LyCORIS", "VideoX-Fun", "DiffSynth", "official names"]
LoraForm = Literal["comfyui", "diffusers"]
"""The two in which cygnet writes."""

# Parts by the end of their name.
_PARTS: tuple[tuple[str, str], ...] = (
    ("down", r"\.lora_A(?:\.\w+)?\.weight|\.lora_A|[._]lora\.down\.weight|\.lora_(?:linear_layer\.)?down(?:\.weight)?"),
    ("up", r"\.lora_B(?:\.\w+)?\.weight|\.lora_B|[._]lora\.up\.weight|\.lora_(?:linear_layer\.)?up(?:\.weight)?"),
    ("up_bias", r"\.lora_B(?:\.\w+)?\.bias|\.lora_up\.bias"),
    ("mid", r"\.lora_mid(?:\.weight)?"),
    ("alpha", r"\.alpha"),
    ("magnitude", r"\.dora_scale|\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?"),
    *((name, rf"\.{name}") for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *((f"lokr_{part}", rf"\.lokr_{part}") for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    ("diff", r"\.diff"),
    ("diff_b", r"\.diff_b"),
    ("diff_m", r"\.diff_m"),
    ("set", r"\.set_weight"),
    ("reshape", r"\.reshape_weight"),
    ("orthogonal", r"\.oft_(?:blocks|diag|R(?:\.\w+)?\.weight)|\.rescale"),
    ("glora", r"\.[ab][12]\.weight"),
    ("ia3", r"\.on_input|\.ia3_l(?:\.\w+)?"),
)
ENDING = re.compile("(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in _PARTS) + r")\Z")
"""Matches the end of a tensor's name; the name of the group is the part."""
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "model.")
_JOINED = re.compile(r"(?:lora_unet|lora_transformer|lycoris)_+")

_WRITTEN: dict[str, str] = {
    "down": ".lora_A.weight", "up": ".lora_B.weight", "mid": ".lora_mid.weight", "magnitude": ".dora_scale",
    "set": ".set_weight", "reshape": ".reshape_weight",
}  # fmt: skip
"""The endings that ComfyUI's form has for parts whose name is not their ending."""


def _joined_patterns() -> list[tuple[re.Pattern[str], str]]:
    """Module names with underscores for dots, in official and in Diffusers' spelling, and their official names."""
    found = []
    for rule in DIT_DIFFUSERS.rules:
        for stem in (rule.official, *rule.other):
            pattern = re.escape(stem.replace(".", "_")).replace(r"\{n\}", NUMBER)
            found.append((re.compile(pattern), rule.official))
    return found


_JOINED_PATTERNS = _joined_patterns()


def official_module(stem: str) -> str | None:
    """The official name of the module that a LoRA's ``stem`` means; None if it is no module of the transformer."""
    joined = _JOINED.match(stem)
    if joined is not None:
        rest = stem[joined.end() :]
        for pattern, official in _JOINED_PATTERNS:
            match = pattern.fullmatch(rest)
            if match is not None:
                return official.replace("{n}", match.group(1)) if "{n}" in official else official
        return None
    stem = without_prefix(stem)
    if is_official(stem):
        return stem
    found, _ = DIT_DIFFUSERS.to_official([stem])
    return next(iter(found), None)


def without_prefix(stem: str) -> str:
    """``stem`` without the words that programs put before a module's name."""
    while prefix := next((it for it in _PREFIXES if stem.startswith(it)), None):
        stem = stem.removeprefix(prefix)
    return stem


def is_official(module: str) -> bool:
    """Whether this is the official name of a module or parameter of the transformer."""
    try:
        DIT_DIFFUSERS.from_official(module)
    except KeyError:
        return False
    return True


def dialect_of(stored: str) -> Dialect:
    """Whose naming a tensor's name follows."""
    joined = _JOINED.match(stored)
    if joined is not None:
        if joined.group().startswith("lycoris"):
            return "LyCORIS"
        return "VideoX-Fun" if joined.group().endswith("__") else "kohya"
    if stored.startswith("base_model.model."):
        return "PEFT"
    ending = ENDING.search(stored)
    stem = stored if ending is None else stored[: ending.start()]
    if stored.startswith("transformer.") or not is_official(without_prefix(stem)):
        return "ComfyUI" if ending is not None and ending.lastgroup == "diff_m" else "Diffusers"
    if ".default." in stored:
        return "DiffSynth"
    return "ComfyUI" if "diffusion_model." in stored else "official names"


def stored_name(module: str, part: str, form: LoraForm) -> str:
    """The name of one part of an official ``module`` in a form that cygnet writes.

    Raises ``KeyError`` if the form has none: Diffusers' knows only ``down``, ``up`` and ``up_bias`` of what it has.
    """
    if form == "comfyui":
        if part == "diff_m":
            return f"diffusion_model.{module.removesuffix('.modulation')}.diff_m"
        return f"diffusion_model.{module}{_WRITTEN.get(part, f'.{part}')}"
    [name] = DIT_DIFFUSERS.from_official(module).names
    return f"transformer.{name}" + {"down": ".lora_A.weight", "up": ".lora_B.weight", "up_bias": ".lora_B.bias"}[part]
