"""What a caller asks for, checked once and completely before any work begins.

Nothing is converted: a number in quotes, ``True`` for 1 or NaN is refused, and so is a field that does not exist. Every
refusal names the field, the value, what is allowed and, for numbers, the nearest value that is.
"""

from __future__ import annotations

import difflib
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cygnet.errors import RequestError
from cygnet.pipelines import sizes
from cygnet.pipelines.caching import ALLOWED as ALLOWED_CACHES
from cygnet.pipelines.caching import parse_caching
from cygnet.pipelines.presets import Defaults
from cygnet.pipelines.recipes import recipe
from cygnet.types import SOLVER_NAMES, SolverName, StepCaching

ImageFit = Literal["crop", "stretch"]
NoiseDevice = Literal["cpu", "cuda"]
GuidanceRest = Literal["prompt", "reuse"]

MAX_CHARACTERS = 100_000
"""Of a prompt. Only its first 512 tokens count; a limit keeps a mistaken file from being tokenised."""
MAX_STEPS = 1000
"""The networks were trained on this many noise levels."""
MAX_GUIDANCE = 100.0
"""Wan uses 1 to 8; beyond 20 or so every video saturates."""
MIN_SHIFT, MAX_SHIFT = 0.01, 100.0
"""Wan uses 3 to 16; beyond these limits all steps but one fall on the same end of the schedule."""
MIN_FPS, MAX_FPS = 0.1, 240.0
"""What the video files can hold."""
MAX_SEED = 2**63 - 1
_SIZE = re.compile(r"\s*(\d{1,9})\s*[x*×X]\s*(\d{1,9})\s*")
DRAW_SEED = -1
"""The official command's way of asking for any seed."""

_ALLOWED: Mapping[str, str] = {
    "prompt": f"it must be text of 1 to {MAX_CHARACTERS:,} characters",
    "negative_prompt": f"it must be text of at most {MAX_CHARACTERS:,} characters",
    "num_frames": f"it must be a whole number 4n+1 from 1 to {sizes.MAX_FRAMES}",
    "width": f"it must be a whole multiple of {sizes.SIZE_MULTIPLE} up to {sizes.MAX_SIDE}",
    "height": f"it must be a whole multiple of {sizes.SIZE_MULTIPLE} up to {sizes.MAX_SIDE}",
    "num_steps": f"it must be a whole number from 1 to {MAX_STEPS}",
    "guidance_scale": f"it must be a number from 0 to {MAX_GUIDANCE:g} (1 is no guidance)",
    "shift": f"it must be a number from {MIN_SHIFT:g} to {MAX_SHIFT:g}",
    "solver": "choose one of " + ", ".join(f'"{name}"' for name in SOLVER_NAMES),
    "seed": f"it must be a whole number from 0 to {MAX_SEED} (2**63 - 1), or {DRAW_SEED} to draw one",
    "fps": f"it must be a number from {MIN_FPS:g} to {MAX_FPS:g}",
    "strength": "it must be a number above 0 (keep the source) and at most 1 (make it anew)",
    "guidance_until": "it must be a number from 0 to 1, the share of the steps that are guided",
    "guidance_rest": 'choose "prompt" (no guidance) or "reuse" (what guidance last added)',
    "cache": ALLOWED_CACHES,
    "cache_table": "it must be a list of numbers",
    "image_fit": 'choose "crop" or "stretch"',
    "noise_device": 'choose "cpu" or "cuda"',
}


class GenerateRequest(BaseModel):
    """Everything that decides a video, apart from the model and the pictures. Immutable; made by :meth:`create`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    prompt: str
    negative_prompt: str
    """What guidance leads away from; may be empty."""
    num_frames: int
    """4n+1; 1 makes a picture."""
    width: int
    height: int
    num_steps: int
    guidance_scale: float
    """1 asks the network once per step, anything else twice."""
    shift: float
    solver: SolverName
    seed: int
    """0 to 2**63 - 1."""
    fps: float
    """Frames per second of the file; changes no pixel."""
    strength: float = 1.0
    """Video-to-video: the share of the schedule that is run."""
    guidance_until: float = 1.0
    """The share of the steps, from the first on, that are guided."""
    guidance_rest: GuidanceRest = "prompt"
    """The other steps follow the prompt alone, or add again what guidance added last."""
    cache: str | None = None
    """Answer some steps from earlier ones (lossy): ``easy:0.05`` and the like; see :mod:`cygnet.pipelines.caching`."""
    cache_table: tuple[float, ...] | None = None
    """Numbers for the cache in place of the published ones."""
    image_fit: ImageFit = "crop"
    """How a picture of another aspect meets the size: cut to it about the centre, or stretched (the official way)."""
    noise_device: NoiseDevice = "cpu"
    """Whose random numbers make the noise. The two differ for one seed; the CPU's are the same everywhere."""

    @classmethod
    def create(cls, fields: Mapping[str, Any], defaults: Defaults | None = None) -> Self:
        """A request from ``fields``, with ``defaults`` for those that are absent (None is a value, and refused).

        The shift defaults to the one for the size; a seed that is absent, None or -1 is drawn. Raises
        :class:`~cygnet.errors.RequestError` naming the first field at fault.
        """
        given = dict(fields)
        if (name := given.pop("recipe", None)) is not None:  # a name for values; only those are kept
            chosen = recipe(name)
            for field in ("solver", "num_steps", "shift", "guidance_scale"):
                given.setdefault(field, getattr(chosen, field))
        if given.get("seed") is None or (type(given["seed"]) is int and given["seed"] == DRAW_SEED):
            given["seed"] = draw_seed()
        if defaults is not None:
            for name in (
                "negative_prompt", "num_frames", "width", "height", "num_steps", "guidance_scale", "solver", "fps"
            ):  # fmt: skip
                given.setdefault(name, getattr(defaults, name))
            if "shift" not in given and type(given["width"]) is type(given["height"]) is int:
                given["shift"] = defaults.shift_for(given["width"], given["height"])
            given.setdefault("shift", defaults.shift)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _in_words(error, tuple(cls.model_fields)) from None

    @field_validator("prompt", "negative_prompt", mode="before")
    @classmethod
    def _check_text(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, str):
            return value
        if len(value) > MAX_CHARACTERS:
            raise _refused(f"{info.field_name} has {len(value):,} characters; at most {MAX_CHARACTERS:,} are taken")
        if "\0" in value:
            raise _refused(f"{info.field_name} holds a NUL character; remove it")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _refused(f"{info.field_name} holds half of a surrogate pair, which is no character; remove it")
        if info.field_name == "prompt" and not value.strip():
            raise _refused("prompt is empty; say what the video should show")
        return value

    @field_validator("num_frames")
    @classmethod
    def _check_frames(cls, value: int) -> int:
        if value % sizes.FRAME_STRIDE != 1 or not 1 <= value <= sizes.MAX_FRAMES:
            limits = "" if 1 <= value <= sizes.MAX_FRAMES else f", from 1 to {sizes.MAX_FRAMES}"
            nearest = _nearest(sizes.nearest_frames(_bounded(value)))
            raise _refused(f"num_frames is {shown(value)}; Wan needs 4n+1{limits} ({nearest})")
        return value

    @field_validator("width", "height")
    @classmethod
    def _check_side(cls, value: int, info: Any) -> int:
        if value % sizes.SIZE_MULTIPLE or not sizes.SIZE_MULTIPLE <= value <= sizes.MAX_SIDE:
            nearest = _nearest(sizes.nearest_sides(_bounded(value)))
            raise _refused(f"{info.field_name} is {shown(value)}; {_ALLOWED[info.field_name]} ({nearest})")
        return value

    @field_validator("num_steps", "guidance_scale", "shift", "fps", "guidance_until", "seed")
    @classmethod
    def _check_range(cls, value: float, info: Any) -> float:
        low, high = {
            "num_steps": (1, MAX_STEPS),
            "guidance_scale": (0.0, MAX_GUIDANCE),
            "shift": (MIN_SHIFT, MAX_SHIFT),
            "fps": (MIN_FPS, MAX_FPS),
            "guidance_until": (0.0, 1.0),
            "seed": (0, MAX_SEED),
        }[info.field_name]
        if not low <= value <= high:
            nearest = low if value < low else high
            raise _refused(f"{info.field_name} is {shown(value)}; {_ALLOWED[info.field_name]} (nearest: {nearest})")
        return value

    @field_validator("cache_table", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # JSON has lists alone

    @model_validator(mode="after")
    def _check_caching(self) -> Self:
        if self.cache is None and self.cache_table is not None:
            raise _refused("cache_table is given without cache; add cache mag or tea, or leave it out")
        try:
            self.caching()
        except ValueError as error:
            raise _refused(str(error)) from None
        return self

    def caching(self) -> StepCaching | None:
        """What :attr:`cache` asks for; None to compute every step."""
        return None if self.cache is None else parse_caching(self.cache, self.cache_table)

    @field_validator("strength")
    @classmethod
    def _check_strength(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise _refused(f"strength is {shown(value)}; {_ALLOWED['strength']}")
        return value

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        tokens = sizes.num_tokens(self.num_frames, self.width, self.height)
        if tokens > sizes.MAX_TOKENS:
            raise _refused(
                f"{self.num_frames} frames of {self.width}x{self.height} are {tokens:,} tokens; at most "
                f"{sizes.MAX_TOKENS:,} fit (81 frames of 1280x720 are 75,600): ask for fewer frames or a smaller size"
            )
        return self


def draw_seed() -> int:
    """A seed from the system's randomness."""
    return secrets.randbelow(MAX_SEED + 1)


def shown(value: object) -> str:
    """``value`` for a message: control characters escaped, at most 80 characters."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a whole number of about {math.ceil(value.bit_length() * math.log10(2))} digits"
    if isinstance(value, str):
        text = repr(value[:100])
    elif value is None or isinstance(value, bool | int | float):
        text = repr(value)
    else:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"


def _bounded(value: int) -> int:
    return min(max(value, -(2**31)), 2**31)


def _nearest(candidates: tuple[int, ...]) -> str:
    return "nearest: " + " or ".join(map(str, candidates))


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message})


def _in_words(error: ValidationError, names: tuple[str, ...]) -> RequestError:
    faults = error.errors(include_url=False)
    field = str(faults[0]["loc"][0]) if faults[0]["loc"] else None
    known = field if field in names else None
    return RequestError("; also ".join(_fault(fault, names) for fault in faults[:3]), field=known)


def _fault(fault: Any, names: tuple[str, ...]) -> str:
    field = str(fault["loc"][0]) if fault["loc"] else ""
    match fault["type"]:
        case "refused":
            return str(fault["msg"])
        case "extra_forbidden":
            close = difflib.get_close_matches(field[:100], names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
            return f"{shown(field)} is no field of a request; {hint}"
        case "missing":
            return f"{field} is missing; {_ALLOWED[field]}"
        case _:
            return f"{field} is {shown(fault['input'])}; {_ALLOWED[field]}{_suggestion(field, fault['input'])}"


def _suggestion(field: str, value: object) -> str:
    """The nearest allowed value, where one can be told from a number of the wrong kind."""
    if type(value) is not float or not math.isfinite(value):
        return ""
    if field == "num_frames":
        return f" ({_nearest(sizes.nearest_frames(value))})"
    if field in ("width", "height"):
        return f" ({_nearest(sizes.nearest_sides(value))})"
    return ""


def parse_size(size: object) -> tuple[int, int]:
    """``(width, height)`` of a pair or of text such as "832x480"; the request checks what they are."""
    if isinstance(size, str) and (match := _SIZE.fullmatch(size)):
        return int(match[1]), int(match[2])
    if isinstance(size, tuple | list) and len(size) == 2:
        return size[0], size[1]
    raise RequestError(
        f'size is {shown(size)}; give (width, height), text like "832x480", or one of {", ".join(sizes.AREAS)}',
        field="size",
    )
