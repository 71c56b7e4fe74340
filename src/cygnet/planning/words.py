"""Sizes, and what to ask for instead, in words."""

from __future__ import annotations

from cygnet.pipelines.request import GenerateRequest


def shape(request: GenerateRequest) -> str:
    """In words: 81 frames of 832x480."""
    frames = "1 frame" if request.num_frames == 1 else f"{request.num_frames} frames"
    return f"{frames} of {request.width}x{request.height}"


def gib(size: float) -> str:
    """Bytes in words, in the unit that memory is sold in."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.95 * 2**30 else f"{size / 2**20:.0f} MiB"


def advice(nearest: GenerateRequest | None) -> str:
    """What to ask for instead."""
    if nearest is None:
        return "no request of this model fits: take a smaller model, or weights stored in 8 bits"
    return f"{shape(nearest)} {'fits' if nearest.num_frames == 1 else 'fit'}"
