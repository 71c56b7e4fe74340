"""Sizes, and what to ask for instead, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cygnet.pipelines.request import GenerateRequest
from cygnet.planning.subject import Subject
from cygnet.runtime.plan import WORDS, Placement
from cygnet.types import ComponentName, Tiles


def shape(request: GenerateRequest) -> str:
    """In words: 81 frames of 832x480."""
    frames = "1 frame" if request.num_frames == 1 else f"{request.num_frames} frames"
    return f"{frames} of {request.width}x{request.height}"


def gib(size: float) -> str:
    """Bytes in words, in the unit that memory is sold in."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.95 * 2**30 else f"{size / 2**20:.0f} MiB"


def advice(nearest: GenerateRequest | None, ways: Sequence[str] = (), *, same: bool = False) -> str:
    """What to ask for instead: the nearest request that fits, or ``ways`` to make this one fit.

    With ``same`` the video is one that was made before, and no other will do.
    """
    if same:
        return "; or ".join(["this very video needs that much memory", *ways])
    words = f"no request of this model fits {'so' if ways else ''}".rstrip()
    if nearest is not None:
        words = f"{shape(nearest)} {'fits' if nearest.num_frames == 1 else 'fit'}"
    elif not ways:
        return f"{words}: free memory, or take a smaller model"
    return "; or ".join([words, *ways])


def ways_to_less(
    subject: Subject, placement: Placement, part: ComponentName, *, same: bool = False, failed: bool = False
) -> list[str]:
    """Options that the placement leaves open and with which the stage of ``part`` takes less memory.

    With ``same`` only those that change nothing of the result. ``failed`` says that it was begun, and in the tiles that
    its plan or memory chose.
    """
    weights, streams = subject.weights[part], part not in placement.streamed
    ways: list[str] = []
    if placement.resident:
        ways.append("let networks come in for their stage alone (offload=True in Python)")
    if streams and weights.streamed is not None:
        ways.append(f'add --stream (offload="stream" in Python), which reads the {WORDS[part]} block by block')
    if same:
        return ways
    if streams and weights.streamed is None and subject.execution.fp8 and part == "dit":
        ways.append("leave out --fp8, with which the transformer cannot be read block by block")
    if part == "vae":
        if subject.decode_dtype == torch.float32:
            ways.append("add --decode-dtype bfloat16")
    elif subject.dtypes[part] == torch.float32:
        ways.append("add --dtype bfloat16")
    eight_bit = weights.narrow or weights.widened
    if part == "dit" and streams and not eight_bit and not subject.execution.fp8:
        # Where blocks are streamed it saves nothing there: the first and the last, as large as ever, pass through too.
        ways.append(
            'add --weight-dtype fp8 (Execution(weight_dtype="fp8") in Python), which is lossy: the matrices of the '
            "transformer's blocks are rounded to 8 bits"
        )
    if streams and weights.streamed is not None and not eight_bit:
        ways.append(f"take a file of the {WORDS[part]} that is stored in 8 bits")
    if part == "vae" and not failed:  # without the options, tiles are as small as memory makes them
        ways += [
            f"leave out --{half}-tiles {tiles}"
            for half, tiles in (("decode", subject.decode_tiles), ("encode", subject.encode_tiles))
            if tiles is not None and max(tiles.width, tiles.height) > Tiles.LEAST
        ]
    return ways
