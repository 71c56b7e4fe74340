"""The transformer's blocks compiled: norm, modulation, gates and rotary positions each become one pass over memory.

Only the repeated block is compiled, once for all blocks, because the whole network would take many times as long and
gain nothing more. Where no compiler works the plain forward runs: the same result to rounding, and slower.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Collection
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from cygnet.models.dit.layers import TextKeys

Compile = bool | Literal["auto"]
"""Whether blocks are compiled; "auto": where steps are long enough that the half minute of compiling pays."""

COMPILE_FROM_TOKENS = 16_384
"""Tokens of a video from which "auto" compiles on a GPU."""
COMPILE_FROM_VALUES = 1_000_000
"""Tokens times width from which "auto" compiles on a processor, and there in bfloat16 alone: a processor's float32
products take so much longer than the passes between them that fusing those saves nothing."""

_CXX = "clang++" if sys.platform == "darwin" else "g++"

GRAPHS = 64
"""Kinds of input (sizes, batches, with and without gradients) that a function is compiled for in one process."""

_log = logging.getLogger("cygnet")

_Result = TypeVar("_Result")


@functools.cache
def missing_for_compiling(device_type: str) -> str | None:
    """What this machine lacks to compile for ``device_type`` ("cuda" or "cpu"), in words; None for nothing."""
    if device_type not in ("cuda", "cpu"):
        return f"torch does not compile for {device_type} here"
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if find_compiler(device_type) is None:
        # Each as torch and triton look for theirs: CXX or g++ (clang++ on macOS) writes loops for a processor.
        if device_type == "cpu":
            return f"no C++ compiler is found ({os.environ.get('CXX') or _CXX}); install {_CXX}"
        return f"no C compiler is found ({os.environ.get('CC') or 'gcc, clang'}); install gcc"
    return None


def find_compiler(device_type: str) -> str | None:
    """The compiler that torch ("cpu") or triton ("cuda") would call; None if that is not there."""
    if device_type == "cpu":
        names = [os.environ.get("CXX") or _CXX]
    else:
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    return next((name for name in names if shutil.which(name)), None)


def compile_blocks(
    module: nn.Module, stacks: Collection[str], mode: Compile, device: torch.device, *, learning: bool = False
) -> None:
    """Let the blocks in the lists ``stacks`` of ``module`` run compiled on ``device``; nothing without a compiler.

    With ``learning`` the passes with gradients are those that are compiled, else those without.
    """
    if mode is False:
        return
    if missing := missing_for_compiling(device.type):
        if mode is True:
            _log.warning("blocks are not compiled: %s", missing)
        return
    worth = _worth_it if mode == "auto" else _always
    switch = Switch("blocks run")
    for stack in stacks:
        for block in getattr(module, stack, ()):
            block.forward = CompiledForward(block, worth, switch, learning=learning)


def pays(device_type: str, dtype: torch.dtype, tokens: int, width: int) -> bool:
    """Whether a video of so many tokens is long enough for compiling to pay."""
    if device_type == "cuda":
        return tokens >= COMPILE_FROM_TOKENS
    return dtype == torch.bfloat16 and tokens * width >= COMPILE_FROM_VALUES


def _worth_it(x: torch.Tensor) -> bool:
    """The same of a stream ``[B, L, D]``."""
    return pays(x.device.type, x.dtype, x.shape[1], x.shape[2])


def _always(x: torch.Tensor) -> bool:
    return True


class Switch:
    """Turned off for all that is compiled together by the first part of it that cannot be compiled."""

    def __init__(self, who: str) -> None:
        self.on = True
        self._who = who
        """And what it does, for the one line that is logged: "blocks run"."""

    def turn_off(self, problem: Exception) -> None:
        """From now on everything runs plain; say so, and why."""
        self.on = False
        reason = next((line for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
        _log.warning("%s uncompiled, for the compiler failed: %s", self._who, reason[:200])


class CompiledFunction(Generic[_Result]):
    """A function that runs compiled until the switch is off, which a failing compiler turns; then the plain one.

    A copy compiles anew: what was compiled belongs to the process, and to the weights of the one who had it compiled.
    """

    def __init__(self, plain: Callable[..., _Result], switch: Switch) -> None:
        self._plain = plain
        self._compiled: Callable[..., _Result] | None = None
        self._switch = switch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}

    def __call__(self, *given: Any, **named: Any) -> _Result:
        """As the function itself."""
        if self._switch.on:
            if self._compiled is None:  # not before: it loads the compiler, which takes a second
                self._compiled = torch.compile(self._plain, dynamic=False, fullgraph=True)
            try:
                with torch._dynamo.config.patch(recompile_limit=GRAPHS):
                    return self._compiled(*given, **named)
            except torch.OutOfMemoryError:
                raise
            except _compiler_errors() as problem:
                self._switch.turn_off(problem)
        return self._plain(*given, **named)


class CompiledForward:
    """A block's ``forward``, compiled when that pays and nobody looks inside; else the plain one.

    Hooks on a block's parts (the watch for NaN) are Python that a compiled block would skip or trip over, so a block
    that has any runs plain. Hooks on the block itself run around this, and so does what brings its weights.
    """

    def __init__(
        self, block: nn.Module, worth: Callable[[torch.Tensor], bool], switch: Switch, *, learning: bool = False
    ) -> None:
        self._plain: Callable[..., torch.Tensor] = block.forward
        self._compiled: CompiledFunction[torch.Tensor] = CompiledFunction(self._plain, switch)
        self._parts = [part for part in block.modules() if part is not block]
        self._worth = worth
        self._switch = switch
        self._learning = learning

    def __call__(self, x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        """As the block's own forward; ``x [B, L, D]`` is its stream of tokens."""
        hooked = any(part._forward_pre_hooks or part._forward_hooks for part in self._parts)
        other = torch.is_grad_enabled() != self._learning
        if not self._switch.on or hooked or other or not self._worth(x):
            return self._plain(x, *rest, **named)
        for value in (*rest, *named.values()):
            if isinstance(value, TextKeys):
                _any_length(value)
        return self._compiled(x, *rest, **named)


def _any_length(keys: TextKeys) -> None:
    """Have what is compiled take prompts of all lengths; each would cost a compilation of its own."""
    for value, dim in ((keys.k, 2), (keys.v, 2), (keys.bias, 3)):
        if value is not None:
            torch._dynamo.maybe_mark_dynamic(value, dim)


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError, FailOnRecompileLimitHit
