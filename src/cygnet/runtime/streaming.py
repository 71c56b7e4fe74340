"""Networks larger than memory: the matrices of a block come in when it is called, and go when the next one is.

Nearly all weights of a transformer are the matrices of its repeated blocks. A :class:`MatrixStream` has those of a
block in place before the block runs; a thread reads ahead, so that reading and computing overlap. The arithmetic is
that of the resident network, bit for bit, compiled or not: only where a weight is, and when, is different. A compiled
block is given its weights as it is called, so all of them must be there then, and no hook may hang on its parts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import nn

from cygnet.runtime.entries import FORWARD, OUTSIDE, Entry
from cygnet.runtime.memory import give_back_pieces

AHEAD_BYTES = 256 * 2**20
"""How much is read before it is needed: of a 14B block, the next few matrices."""

Fetch = Callable[[str], torch.Tensor]
"""The weight of that name on the CPU, in the dtype that it computes in; called from another thread."""


def streamed_names(module: nn.Module, stacks: Collection[str]) -> list[str]:
    """The weights that :class:`MatrixStream` would bring: those of linear layers in the ``stacks`` of ``module``."""
    return [
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name.split(".", 1)[0] in stacks
    ]


def streamed_bytes(sizes: Mapping[str, int], ahead_bytes: int = AHEAD_BYTES) -> int:
    """The most of these weights, as they compute, that is there at a time: a block's, and what is read ahead."""
    blocks: dict[tuple[str, ...], int] = {}
    for name, size in sizes.items():
        blocks[_block_of(name)] = blocks.get(_block_of(name), 0) + size
    largest = max(blocks.values(), default=0)
    ahead = max(ahead_bytes, max(sizes.values(), default=0))
    return min(largest + ahead, sum(sizes.values()))


class MatrixStream:
    """Brings and drops the weights of ``module``'s blocks; made once, works until :meth:`close`.

    ``stacks`` names the lists of blocks, such as ``("blocks",)``; ``names``, if given, the only weights of theirs that
    are streamed. What the module holds of these is dropped. It must be set up to compute before: layers replaced,
    blocks compiled (:func:`cygnet.runtime.compile.compile_blocks`). Layers may be put around its layers later.

    What is called of a block is its forward and what :data:`cygnet.runtime.entries.OUTSIDE` lists; a layer that runs
    otherwise while its weight is away is a RuntimeError, and so is any after :meth:`close`. The order in which weights
    are needed is learnt: each is followed by the one that followed it last time. Threads may share the module: they
    take turns, block by block.
    """

    def __init__(
        self,
        module: nn.Module,
        stacks: Collection[str],
        fetch: Fetch,
        *,
        device: torch.device | str = "cpu",
        ahead_bytes: int = AHEAD_BYTES,
        names: Collection[str] | None = None,
    ) -> None:
        self._fetch = fetch
        self._device = torch.device(device)
        self._ahead_bytes = ahead_bytes
        self._layers: dict[str, nn.Linear] = {
            name: cast(nn.Linear, module.get_submodule(name.removesuffix(".weight")))
            for name in streamed_names(module, stacks)
            if names is None or name in names
        }
        self._sizes = {name: layer.weight.nbytes for name, layer in self._layers.items()}
        self._follower: dict[str, str] = {}
        self._last: str | None = None
        self._present: list[str] = []
        self._coming: dict[str, Future[_Arrival]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._turn = threading.RLock()
        self._open = True
        for stack in stacks:
            for number, block in enumerate(getattr(module, stack, ())):
                self._watch(f"{stack}.{number}", block)
        self._bare = {name for name, layer in self._layers.items() if FORWARD not in vars(layer)}
        """Layers that are no entry themselves; those refuse to run while their weight is away."""
        for name in self._layers:
            self._take_away(name)

    @property
    def present(self) -> tuple[str, ...]:
        """The weights that are in place now."""
        return tuple(self._present)

    def close(self) -> None:
        """Drop every weight and stop reading; the module cannot run any more, and says so."""
        with self._turn:
            self._open = False
            for future in self._coming.values():
                future.cancel()
            self._reader.shutdown()
            self._coming.clear()
            self._drop(lambda name: True)

    def _watch(self, path: str, block: nn.Module) -> None:
        """Let the weights that each entry of ``block`` needs come in before it is called."""
        left = [name for name in self._layers if name.startswith(f"{path}.")]
        for entry, layers in OUTSIDE.items():
            theirs = [name for name in left if name.removeprefix(f"{path}.").removesuffix(".weight") in layers]
            if theirs and Entry.find(block, entry, self._entering(theirs)):
                left = [name for name in left if name not in theirs]
        if left:
            Entry.find(block, FORWARD, self._entering(left))

    def _entering(self, names: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(called: Callable[..., Any]) -> Callable[..., Any]:
            def entered(*args: Any, **named: Any) -> Any:
                # Another thread's block would take this one's weights from under it.
                with self._turn:
                    self._bring(names)
                    return called(*args, **named)

            return entered

        return around

    def _bring(self, names: Sequence[str]) -> None:
        if not self._open:
            raise _away(names[0])
        self._drop(lambda other: _block_of(other) != _block_of(names[0]))
        missing = [name for name in names if name not in self._present]
        if not missing:
            return
        self._send_for([*missing, *self._expected_after(names)])
        for name in missing:
            self._put_in(name, self._coming.pop(name).result().here())
        for name in names:
            if self._last is not None:
                self._follower[self._last] = name
            self._last = name

    def _expected_after(self, names: Sequence[str]) -> list[str]:
        """The weights that are read before they are needed, those of ``names`` being needed now."""
        room = self._ahead_bytes
        expected: list[str] = []
        follower = self._follower.get(names[-1])
        while follower is not None and follower not in expected and follower not in names:
            room -= self._sizes[follower]
            if room < 0 and expected:
                break
            expected.append(follower)
            follower = self._follower.get(follower)
        return expected

    def _send_for(self, names: Sequence[str]) -> None:
        """Have these read, in this order, and nothing else."""
        for other in [other for other in self._coming if other not in names]:
            self._coming.pop(other).cancel()
        for name in names:
            if name not in self._coming and name not in self._present:
                self._coming[name] = self._reader.submit(self._read, name)

    def _read(self, name: str) -> _Arrival:
        weight = self._fetch(name)
        self._sizes[name] = weight.nbytes
        if self._copies is None:
            return _Arrival(weight.to(self._device), None)
        with torch.cuda.stream(self._copies):
            there = weight.pin_memory().to(self._device, non_blocking=True)
            return _Arrival(there, self._copies.record_event())

    def _put_in(self, name: str, weight: torch.Tensor) -> None:
        if name in self._bare:
            del self._layers[name].forward
        _set_weight(self._layers[name], weight)
        self._present.append(name)

    def _take_away(self, name: str) -> None:
        layer = self._layers[name]
        _set_weight(layer, torch.empty_like(layer.weight, device="meta"))
        if name in self._bare:  # torch multiplies by a matrix without values, and what comes of it is noise
            layer.forward = _refusing(name)  # type: ignore[method-assign]

    def _drop(self, which: Callable[[str], bool]) -> None:
        dropped = [name for name in self._present if which(name)]
        for name in dropped:
            self._present.remove(name)
            self._take_away(name)
        if dropped and self._device.type == "cpu":
            give_back_pieces()


class _Arrival:
    """A weight on its way to the device."""

    def __init__(self, weight: torch.Tensor, ready: Any) -> None:
        self._weight, self._ready = weight, ready

    def here(self) -> torch.Tensor:
        """The weight, for work that is queued from now on."""
        if self._ready is not None:
            current = torch.cuda.current_stream(self._weight.device)
            current.wait_event(self._ready)
            # The allocator must not hand this memory on before the work that reads it is done.
            self._weight.record_stream(current)
        return self._weight


def _away(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} is not in memory: this network's weights come in block by block while it is in use, and the use is "
        "over, or one of its layers was called by itself; take the network anew from its residency, and call it whole"
    )


def _refusing(name: str) -> Callable[..., torch.Tensor]:
    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise _away(name)

    return refuse


def _block_of(name: str) -> tuple[str, ...]:
    return tuple(name.split(".", 2)[:2])


def _set_weight(layer: nn.Linear, weight: torch.Tensor) -> None:
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
