"""What each model is asked for when the caller does not say: data, keyed by architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cygnet.models.dit.config import FLF2V_14B, I2V_14B, T2V_1_3B, T2V_14B, TINY_I2V, TINY_T2V, DiTConfig, Variant
from cygnet.types import SolverName

# Wan-Video/Wan2.1: wan/configs/shared_config.py, wan_i2v_14B.py and first_last_frame2video.py.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
NEGATIVE_PROMPT_I2V = "镜头晃动，" + NEGATIVE_PROMPT
NEGATIVE_PROMPT_FLF2V = "镜头切换，" + NEGATIVE_PROMPT_I2V

AREA_480P = 832 * 480


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """One model's defaults."""

    num_frames: int
    width: int
    height: int
    num_steps: int
    shift: float
    guidance_scale: float
    solver: SolverName
    negative_prompt: str
    fps: float
    shift_480p: float | None = None
    """Shift for videos of at most 832x480 pixels, where it differs."""
    strength: float = 0.7
    """How much of a source video is made anew."""
    size_from_image: bool = False
    """Whether a video takes its aspect from the picture or source video, with ``width * height`` as its area."""

    def shift_for(self, width: int, height: int) -> float:
        """The shift for a video of this size."""
        small = width * height <= AREA_480P
        return self.shift_480p if small and self.shift_480p is not None else self.shift


_T2V = Defaults(
    num_frames=81,
    width=1280,
    height=720,
    num_steps=50,
    shift=5.0,
    guidance_scale=5.0,
    solver="unipc",
    negative_prompt=NEGATIVE_PROMPT,
    fps=16.0,
    size_from_image=True,
)
_I2V = replace(_T2V, num_steps=40, shift_480p=3.0, negative_prompt=NEGATIVE_PROMPT_I2V)
_I2V_480P = replace(_I2V, width=832, height=480)
_FLF2V = replace(_T2V, shift=16.0, negative_prompt=NEGATIVE_PROMPT_FLF2V)
_TINY = replace(
    _T2V,
    num_frames=17,
    width=128,
    height=128,
    num_steps=20,
    shift=3.0,
    guidance_scale=4.0,
    negative_prompt="",
    size_from_image=False,  # it was trained on this size alone
)

PRESETS: Mapping[DiTConfig, Defaults] = {
    T2V_1_3B: replace(_T2V, width=832, height=480),
    T2V_14B: _T2V,
    I2V_14B: _I2V_480P,
    FLF2V_14B: _FLF2V,
    TINY_T2V: _TINY,
    TINY_I2V: _TINY,
}
"""By architecture. I2V at 480P and 720P share one; see :data:`NAMED`."""

NAMED: Mapping[str, Defaults] = {"i2v-14b-480p": _I2V_480P, "i2v-14b-720p": _I2V}
"""By name, for weights that their architecture does not tell apart."""

_BY_VARIANT: Mapping[Variant, Defaults] = {
    "t2v": replace(_T2V, width=832, height=480),
    "i2v": _I2V_480P,
    "flf2v": replace(_FLF2V, width=832, height=480),
    "vace": replace(_T2V, width=832, height=480),
    "control": _I2V_480P,
    "camera": _I2V_480P,
}


def defaults_for(config: DiTConfig, name: str | None = None) -> Defaults:
    """The defaults of a model: by ``name`` where that matters, by architecture, else those of its variant."""
    if name is not None and name in NAMED:
        return NAMED[name]
    return PRESETS.get(config, _BY_VARIANT[config.variant])
