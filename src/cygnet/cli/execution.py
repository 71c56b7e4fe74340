"""Options that say how the networks compute, shared by the commands that make videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cygnet.cli.options import Switch

if TYPE_CHECKING:
    from cygnet.assembly import Execution


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How the networks compute.

    Parameters
    ----------
    attention
        auto, torch, flash3 or sage (8-bit scores: faster, not exact); the last two need their packages and a GPU.
    compile
        Compile the transformer's blocks, and on a GPU the VAE's norms, or neither. Default: blocks, where it pays.
    decode_dtype
        auto, float32, bfloat16 or float16, for the VAE's decoder.
    decode_tiles
        Decode each frame in tiles of this size, such as 416x240; auto does so only where a whole frame does not fit.
    encode_tiles
        The same for encoding pictures and videos.
    fp8
        Multiply in 8-bit floats, on GPUs that can: faster, not exact.
    weight_dtype
        fp8 or int8: round the transformer's matrices to 8 bits, half the memory of 16. Lossy; auto rounds nothing.
    """

    attention: Annotated[str, Parameter(metavar="NAME")] = "auto"
    compile: bool | None = None
    decode_dtype: Annotated[str, Parameter(metavar="NAME")] = "auto"
    decode_tiles: Annotated[str, Parameter(metavar="WxH")] = "auto"
    encode_tiles: Annotated[str, Parameter(metavar="WxH")] = "auto"
    fp8: Switch = False
    weight_dtype: Annotated[str, Parameter(metavar="NAME")] = "auto"

    def chosen(self) -> Execution:
        """The choices; raises :class:`~cygnet.errors.RequestError` for one that does not exist."""
        from cygnet.assembly import Execution

        return Execution(
            attention=self.attention,  # type: ignore[arg-type]
            compile="auto" if self.compile is None else self.compile,
            decode_dtype=self.decode_dtype,
            decode_tiles=self.decode_tiles,
            encode_tiles=self.encode_tiles,
            fp8=self.fp8,
            weight_dtype=self.weight_dtype,  # type: ignore[arg-type]
        )
