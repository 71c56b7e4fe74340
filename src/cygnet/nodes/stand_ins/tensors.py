"""``comfy.utils``: pictures and latents of other sizes, files of tensors, and small helpers on them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cygnet.assembly import read_tensors
from cygnet.errors import RequestError
from cygnet.media.files import discard, new_part, publish
from cygnet.nodes.images import METHODS, scaled
from cygnet.nodes.stand_ins.absent import absent
from cygnet.nodes.stand_ins.progress import ProgressBar
from cygnet.pipelines.conditioning import crop_to_aspect


def common_upscale(samples: torch.Tensor, width: int, height: int, upscale_method: str, crop: str) -> torch.Tensor:
    """Resize ``[B, C, H, W]``, or ``[B, C, T, H, W]`` frame by frame; ``crop="center"`` first cuts to the aspect."""
    if upscale_method not in METHODS:
        raise RequestError(
            f"upscale_method is {upscale_method!r}; cygnet has {', '.join(METHODS)}", field="upscale_method"
        )
    if samples.ndim == 5:
        batch, _, frames = samples.shape[:3]
        flat = common_upscale(samples.transpose(1, 2).flatten(0, 1), width, height, upscale_method, crop)
        whole: torch.Tensor = flat.unflatten(0, (batch, frames))
        return whole.transpose(1, 2)
    if crop == "center":
        samples = crop_to_aspect(samples, width, height)
    return scaled(samples.movedim(1, -1), width, height, upscale_method).movedim(-1, 1)


def lanczos(samples: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resize ``[B, C, H, W]`` in 0..1 through 8 bits."""
    return common_upscale(samples, width, height, "lanczos", "disabled")


def load_torch_file(
    ckpt: str | os.PathLike[str],
    safe_load: bool = True,
    device: torch.device | None = None,
    return_metadata: bool = False,
) -> Any:
    """Tensors of a safetensors or PyTorch file by name, read without running code; raises WeightFileError in words."""
    tensors, metadata = read_tensors(Path(ckpt), "cpu" if device is None else device)
    return (tensors, metadata) if return_metadata else tensors


def save_torch_file(
    sd: Mapping[str, torch.Tensor], ckpt: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, over one that is there."""
    from safetensors.torch import save_file

    path = Path(ckpt)
    part = new_part(path.parent)
    try:
        save_file({name: it.contiguous() for name, it in sd.items()}, part, dict(metadata or {}) or None)
        publish(part, path, overwrite=True)
    finally:
        discard(part)


def calculate_parameters(sd: Mapping[str, torch.Tensor], prefix: str = "") -> int:
    """How many numbers the tensors hold whose names begin with ``prefix``."""
    return sum(it.nelement() for name, it in sd.items() if name.startswith(prefix))


def state_dict_prefix_replace(
    state_dict: dict[str, Any], replace_prefix: Mapping[str, str], filter_keys: bool = False
) -> dict[str, Any]:
    """Rename by beginnings, in place; with ``filter_keys`` into a new dict of what was renamed."""
    out = {} if filter_keys else state_dict
    for old, new in replace_prefix.items():
        for name in [it for it in state_dict if it.startswith(old)]:
            out[new + name.removeprefix(old)] = state_dict.pop(name)
    return out


def state_dict_key_replace(state_dict: dict[str, Any], keys_to_replace: Mapping[str, str]) -> dict[str, Any]:
    """Rename single names, in place."""
    for old, new in keys_to_replace.items():
        if old in state_dict:
            state_dict[new] = state_dict.pop(old)
    return state_dict


def repeat_to_batch_size(tensor: torch.Tensor, batch_size: int, dim: int = 0) -> torch.Tensor:
    """Repeated, or cut, to ``batch_size`` along ``dim``."""
    times = [1] * tensor.ndim
    times[dim] = math.ceil(batch_size / tensor.shape[dim])
    return tensor.repeat(times).narrow(dim, 0, batch_size)


def get_attr(obj: Any, attr: str) -> Any:
    """What a dotted name leads to."""
    for name in attr.split("."):
        obj = getattr(obj, name)
    return obj


def set_attr(obj: Any, attr: str, value: Any) -> Any:
    """Put a value where a dotted name leads; returns the earlier one."""
    where, _, name = attr.rpartition(".")
    owner = get_attr(obj, where) if where else obj
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def get_tiled_scale_steps(width: int, height: int, tile_x: int, tile_y: int, overlap: int) -> int:
    """How many tiles :func:`tiled_scale` makes of a picture."""
    return len(_starts(width, tile_x, overlap)) * len(_starts(height, tile_y, overlap))


@torch.inference_mode()
def tiled_scale(
    samples: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    tile_x: int = 64,
    tile_y: int = 64,
    overlap: int = 8,
    upscale_amount: float = 4,
    out_channels: int = 3,
    output_device: str | torch.device = "cpu",
    pbar: Any = None,
) -> torch.Tensor:
    """``function`` on tiles of ``[B, C, H, W]``, whose results are ``upscale_amount`` times as large, joined.

    Where tiles overlap they fade into each other. ``pbar`` is told each tile.
    """
    batch, _, height, width = samples.shape
    rows, columns = round(height * upscale_amount), round(width * upscale_amount)
    joined = torch.zeros(batch, out_channels, rows, columns, device=output_device)
    weights = torch.zeros(1, 1, rows, columns, device=output_device)
    fade = round(overlap * upscale_amount)
    for number in range(batch):
        for top in _starts(height, tile_y, overlap):
            for left in _starts(width, tile_x, overlap):
                tile = samples[number : number + 1, :, top : top + tile_y, left : left + tile_x]
                done = function(tile).to(joined)
                y, x = round(top * upscale_amount), round(left * upscale_amount)
                mask = _ramp(done.shape[-2], fade)[:, None] * _ramp(done.shape[-1], fade)
                mask = mask.to(joined)
                place = (slice(y, y + done.shape[-2]), slice(x, x + done.shape[-1]))
                joined[number : number + 1, :, *place] += done * mask
                if number == 0:
                    weights[:, :, *place] += mask
                if pbar is not None:
                    pbar.update(1)
    return joined / weights


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    step = max(1, tile - overlap)
    return [*range(0, size - tile, step), size - tile]


def _ramp(size: int, fade: int) -> torch.Tensor:
    """Weights along one side: up over ``fade``, and down again; nowhere 0."""
    distance = torch.arange(size, dtype=torch.float32) + 1
    return torch.minimum(distance, distance.flip(0)).div(max(1, fade)).clamp(max=1.0)


def names() -> dict[str, Any]:
    """What the module holds."""
    own = (
        common_upscale, lanczos, load_torch_file, save_torch_file, calculate_parameters, state_dict_prefix_replace,
        state_dict_key_replace, repeat_to_batch_size, get_attr, set_attr, get_tiled_scale_steps, tiled_scale,
        ProgressBar,
    )  # fmt: skip
    why = "it is part of ComfyUI's own handling of models"
    lacking = "bislerp unet_to_diffusers convert_sd_to tiled_scale_multidim set_progress_bar_global_hook"
    return {**absent("comfy.utils", lacking, why), **{it.__name__: it for it in own}}
