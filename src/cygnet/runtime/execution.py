"""How networks compute, beyond their dtype: one value that loaders take and receipts hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from cygnet.errors import RequestError
from cygnet.runtime.attention import AttentionName, check_attention, choose_attention, use_attention
from cygnet.runtime.compile import Compile, compile_blocks
from cygnet.runtime.eight_bit import WeightDtype, check_weight_dtype
from cygnet.runtime.fp8 import check_fp8, use_fp8
from cygnet.runtime.plan import Offload, Weights
from cygnet.runtime.precision import check_vae_dtype, parse_dtype, pick_decode_dtype
from cygnet.types import ComponentName, Tiles


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Choices that change time and memory. By default, results change by rounding at most.

    Lossy are ``fp8``, ``weight_dtype`` and ``attention="sage"``. Raises :class:`~cygnet.errors.RequestError` for a
    choice that does not exist.
    """

    attention: AttentionName = "auto"
    """Which attention kernel is used; see :mod:`cygnet.runtime.attention`."""
    compile: Compile = "auto"
    """Whether the transformer's blocks are compiled; "auto": where it pays. See :mod:`cygnet.runtime.compile`.

    True also compiles the VAE's passes between convolutions on a GPU: see :mod:`cygnet.runtime.compiled_vae`."""
    decode_dtype: str | torch.dtype = "auto"
    """What the VAE decodes in. "auto": bfloat16 where the device multiplies it, for decoding only loses what 8 bits a
    pixel do not show; encoding is in float32 in any case."""
    decode_tiles: str = "auto"
    """In which tiles of a frame the VAE decodes, such as "416x240"; "auto": in none, unless whole frames do not fit
    into memory. The pixels are those of whole frames, up to rounding."""
    encode_tiles: str = "auto"
    """The same of encoding pictures and videos."""
    fp8: bool = False
    """Whether the transformer multiplies in 8-bit floats, on GPUs that can: faster, and not exact."""
    weight_dtype: WeightDtype = "auto"
    """What the matrices of the transformer's blocks are kept in: "fp8" (e4m3) or "int8" (symmetric), each row with a
    float32 scale, in half of bfloat16's memory; they are widened when they run. Lossy; the first and the last block,
    and all outside the blocks, stay as they are. "auto": nothing is rounded. Matrices that the file has in 8 bits are
    kept so, whichever type that is."""

    def __post_init__(self) -> None:
        check_attention(self.attention)
        parse_dtype(self.decode_dtype, "decode_dtype")
        self.tiles("decode_tiles")
        self.tiles("encode_tiles")
        check_weight_dtype(self.weight_dtype)
        if self.fp8 and self.weight_dtype != "auto":
            raise RequestError(
                f"fp8 products round the matrices themselves, and weight_dtype is {self.weight_dtype!r}; leave one of "
                "the two out",
                field="weight_dtype",
            )
        if self.compile not in (True, False, "auto"):
            raise RequestError(f'compile is {self.compile!r}; give True, False or "auto"', field="compile")

    def decodes_in(self, device: torch.device, asked: torch.dtype | None) -> torch.dtype:
        """The dtype of the VAE's decoder on ``device`` when ``asked`` is the dtype of the other networks.

        Raises :class:`~cygnet.errors.RequestError` for float16 on a processor.
        """
        dtype = parse_dtype(self.decode_dtype, "decode_dtype") or pick_decode_dtype(device, asked)
        return check_vae_dtype(dtype, device, "decode_dtype")

    def tiles(self, which: Literal["decode_tiles", "encode_tiles"]) -> Tiles | None:
        """The tiles that were asked for; None where memory decides."""
        asked = self.decode_tiles if which == "decode_tiles" else self.encode_tiles
        return None if asked == "auto" else Tiles.parse(asked, which)

    def check(self, device: torch.device) -> None:
        """Raise :class:`~cygnet.errors.RequestError` for what ``device`` cannot do."""
        if self.fp8:
            check_fp8(device)

    def apply(self, dit: nn.Module, device: torch.device, head_width: int, stacks: Collection[str]) -> None:
        """Let a transformer with its weights in place on ``device`` compute so."""
        self.check(device)
        dtype: torch.dtype = dit.dtype  # type: ignore[assignment]
        attention = choose_attention(self.attention, device, dtype, head_width)
        use_attention(dit, attention)
        if self.fp8:
            for stack in stacks:
                if hasattr(dit, stack):
                    use_fp8(dit, stack)
        compile_blocks(dit, stacks, self.compile, device)

    def describe(self) -> dict[str, Any]:
        """What of it was asked for and can change pixels, for receipts: rounding is enough for that.

        Tiles are left out: a receipt tells those of its run.
        """
        chosen: dict[str, Any] = {
            "attention": self.attention,
            "compile": self.compile,
            "fp8": self.fp8,
            "weight_dtype": self.weight_dtype,
        }
        return {name: value for name, value in chosen.items() if value != getattr(DEFAULT, name)}


def check_execution(execution: object) -> None:
    """Raise :class:`~cygnet.errors.RequestError` for what is no :class:`Execution`."""
    if not isinstance(execution, Execution):
        raise RequestError(
            f"execution is {str(execution)[:80]!r}; give a cygnet.Execution, such as cygnet.Execution(compile=False)",
            field="execution",
        )


def check_fp8_streams(execution: Execution, offload: Offload, weights: Mapping[ComponentName, Weights]) -> None:
    """Raise :class:`~cygnet.errors.RequestError` where a transformer with fp8 products cannot be streamed as asked."""
    if execution.fp8 and offload == "stream" and weights["dit"].streamed is None:
        raise RequestError(
            "fp8 products need the transformer's weights in memory, the device's or all of them in the machine's, and "
            "here they would be streamed from the file; leave fp8 or streaming out, or free memory",
            field="fp8",
        )


DEFAULT = Execution()
