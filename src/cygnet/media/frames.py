"""Between the tensors of the networks and the bytes of pictures.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cygnet.errors import NumericalError, RequestError

Frames = npt.NDArray[np.uint8]


def to_uint8(frames: torch.Tensor) -> Frames:
    """Turn decoded frames into bytes by the official export rule: clamp, ``(x + 1) / 2 * 255``, truncate.

    ``frames`` is ``[3, T, H, W]`` or ``[1, 3, T, H, W]`` in [-1, 1], any floating dtype and device; it is not changed.
    Returns uint8 ``[T, H, W, 3]``, contiguous. Computed in float32. Raises NumericalError if a value is NaN (what a
    byte would make of it differs between machines) and RequestError on another shape or dtype.

    Source: the export step of Wan-Video/Wan2.1 (``wan/utils/utils.py``), which truncates and does not round.
    """
    if frames.ndim == 5 and frames.shape[0] == 1:
        frames = frames[0]
    if frames.ndim != 4 or frames.shape[0] != 3 or not frames.is_floating_point():
        raise RequestError(
            f"frames are {frames.dtype} {list(frames.shape)}; give floating point [3, T, H, W] or [1, 3, T, H, W]",
            field="frames",
        )
    x = frames.detach().to(torch.float32)
    if bool(torch.isnan(x).any()):
        raise NumericalError("the decoded frames hold NaN; nothing was written: try float32 (dtype=float32)")
    x = x.clamp(-1.0, 1.0).add(1.0).div(2.0).mul(255.0).to(torch.uint8)
    array: Frames = x.permute(1, 2, 3, 0).contiguous().cpu().numpy()  # [T, H, W, 3]
    return array


def to_signed(frames: Frames) -> torch.Tensor:
    """Turn bytes into what the networks read: uint8 ``[T, H, W, 3]`` to float32 ``[3, T, H, W]`` in [-1, 1].

    Computed as ``(x / 255 - 0.5) / 0.5``, the official order, so the bits agree with the reference. Because
    :func:`to_uint8` truncates, going there and back can come out one lower; it never differs by more.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise RequestError(f"frames are {frames.dtype} {list(frames.shape)}; give uint8 [T, H, W, 3]", field="frames")
    x = torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2)  # a copy: the caller may own read-only memory
    return x.to(torch.float32).div(255.0).sub(0.5).div(0.5).contiguous()
