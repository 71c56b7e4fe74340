"""A picture of any size to the pixels that the CLIP tower was trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cygnet.errors import RequestError

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(image: torch.Tensor, size: int = 224) -> torch.Tensor:
    """Squash to a square, as the official code does, and normalise by the statistics of CLIP's training set.

    image ``[3, H, W]`` or ``[B, 3, H, W]`` in [-1, 1], at its original size: cropping or resizing first gives other
    features. Returns float32 ``[B, 3, size, size]`` on the same device. The bicubic resize neither keeps the aspect
    nor smooths when shrinking, and its overshoot is not clipped. Raises :class:`~cygnet.errors.RequestError` for
    another shape. Source: Wan-Video/Wan2.1 revision 9737cba, ``wan/modules/clip.py``.
    """
    batch = image.unsqueeze(0) if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise RequestError(
            f"the picture has shape {tuple(image.shape)}; give [3, height, width] or [batch, 3, height, width]",
            field="image",
        )
    square = F.interpolate(batch.float(), size=(size, size), mode="bicubic", align_corners=False)
    mean = torch.tensor(PIXEL_MEAN, dtype=torch.float32, device=image.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, dtype=torch.float32, device=image.device).view(3, 1, 1)
    return (square * 0.5 + 0.5 - mean) / std
