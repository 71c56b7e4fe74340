"""What may be asked of a video besides its prompt, and the request that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch

from cygnet.errors import RequestError
from cygnet.pipelines.inputs import Inputs
from cygnet.pipelines.presets import Defaults
from cygnet.pipelines.request import GenerateRequest, parse_size, shown
from cygnet.pipelines.sizes import AREAS, FRAME_STRIDE, size_for_image


class Options(TypedDict, total=False):
    """What may be asked of a video besides its prompt; what is absent or None takes the model's own default."""

    size: tuple[int, int] | str | None
    """``(width, height)``, "832x480", or an area, "480p" or "720p", in the aspect of the picture."""
    num_frames: int | None
    num_steps: int | None
    guidance_scale: float | None
    shift: float | None
    solver: str | None
    negative_prompt: str | None
    seed: int | None
    fps: float | None
    strength: float | None
    guidance_until: float | None
    guidance_rest: str | None
    cache: str | None
    """Answer some steps from earlier ones, which is lossy: "easy:0.05"; see docs/speed.md for what it costs."""
    cache_table: Sequence[float] | None
    recipe: str | None
    """Solver, steps, shift and guidance for weights distilled to few steps: "lightx2v" or "self-forcing"."""
    image_fit: str | None
    noise_device: str | None
    reference_exact: bool | None
    """Compute the size for a picture exactly as the official code does; see :mod:`cygnet.pipelines.sizes`."""


def request_of(prompt: str, inputs: Inputs, options: Options, defaults: Defaults) -> GenerateRequest:
    """The request of what was asked; sizes and lengths that are not said follow the inputs, else the defaults."""
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    exact = fields.pop("reference_exact", False)
    if not isinstance(exact, bool):
        raise RequestError(f"reference_exact is {shown(exact)}; give True or False", field="reference_exact")
    size = fields.pop("size", None)
    like = inputs.image if inputs.image is not None else inputs.video
    fields = {**_size_fields(size, like, defaults, exact), **fields}
    if inputs.video is not None:
        fields.setdefault("strength", defaults.strength)
        have = 1 + (inputs.video.shape[1] - 1) // FRAME_STRIDE * FRAME_STRIDE
        fields.setdefault("num_frames", min(have, defaults.num_frames))
    return GenerateRequest.create({"prompt": prompt, **fields}, defaults)


def _size_fields(
    size: object, like: torch.Tensor | None, defaults: Defaults, reference_exact: bool
) -> dict[str, int | str]:
    """Width, height and how a picture meets them."""
    if isinstance(size, str) and size.lower() in AREAS:
        width, height = AREAS[size.lower()]
    elif size is None:
        width, height = defaults.width, defaults.height
    else:
        width, height = parse_size(size)
        return {"width": width, "height": height}
    if like is None or (size is None and not defaults.size_from_image):
        return {"width": width, "height": height}
    rows, columns = like.shape[-2:]
    width, height = size_for_image(columns, rows, width * height, reference_exact=reference_exact)
    # What is left of another aspect comes from rounding; stretching it away is the official way.
    return {"width": width, "height": height, "image_fit": "stretch"}
