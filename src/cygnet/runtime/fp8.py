"""Matrix products in 8-bit floating point, on devices that multiply it: faster, and not exact.

Weights are rounded once, row by row; activations at every call, token by token. Sensitive layers stay as they are: the
first and the last block, modulation, embeddings, keys and values of the prompt, and the head.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from cygnet.errors import RequestError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest value of :data:`FP8`."""
LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2")
"""The layers of a block that work on every video token; the others cost next to nothing."""


def check_fp8(device: torch.device) -> None:
    """Raise :class:`~cygnet.errors.RequestError` unless ``device`` multiplies 8-bit floats row by row."""
    if device.type != "cuda":
        raise RequestError(f"fp8 products need a CUDA device; {device.type} has none: leave them out", field="fp8")
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise RequestError(
            f"fp8 products need compute capability 8.9 (Ada, Hopper or newer); {name} has "
            f"{capability[0]}.{capability[1]}: leave them out",
            field="fp8",
        )


class Fp8Linear(nn.Module):
    """``x @ weight.T + bias`` with both operands rounded to 8 bits, each row by its own largest value."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        stored, scale = round_rows(layer.weight)
        # Parameters, as the matrix was: what swaps or streams the weights of blocks finds them so.
        self.stored = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale.T.contiguous(), requires_grad=False)  # [1, out]
        self.bias = layer.bias

    @property
    def in_features(self) -> int:
        """Width of what it takes."""
        return self.stored.shape[1]

    @property
    def out_features(self) -> int:
        """Width of what it gives."""
        return self.stored.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` bfloat16 -> ``[..., out]`` bfloat16."""
        rows, scale = round_rows(x.flatten(0, -2))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        out: torch.Tensor = torch._scaled_mm(
            rows, self.stored.T, scale_a=scale, scale_b=self.scale, bias=bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return out.view(*x.shape[:-1], -1)


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x [rows, columns]`` -> the same in :data:`FP8` and the scale ``[rows, 1]`` float32 that restores it."""
    values = x.float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
    return (values / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


@torch.no_grad()
def use_fp8(module: nn.Module, stack: str, *, keep: Collection[int] | None = None) -> int:
    """Put an :class:`Fp8Linear` in the place of each of :data:`LAYERS` in the blocks of ``stack``; how many there were.

    ``keep`` are the blocks that stay as they are; the first and the last by default.
    """
    blocks = getattr(module, stack)
    kept = {0, len(blocks) - 1} if keep is None else set(keep)
    count = 0
    for number, block in enumerate(blocks):
        if number in kept:
            continue
        for name in LAYERS:
            parent, _, leaf = name.rpartition(".")
            layer = block.get_submodule(name)
            if isinstance(layer, nn.Linear):
                setattr(block.get_submodule(parent), leaf, Fp8Linear(layer))
                count += 1
    return count
