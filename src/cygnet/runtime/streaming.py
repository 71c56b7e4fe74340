"""Networks larger than memory: matrices come in when their layer runs, and go when the next block begins.

Nearly all weights of a transformer are the matrices of its repeated blocks. A :class:`MatrixStream` gives each linear
layer there its weight just before it runs; a thread reads ahead, so that reading and computing overlap. The arithmetic
is that of the resident network, bit for bit: only where a weight is, and when, is different.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import nn

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
    are streamed. The order in which layers run is learnt as they run:
    each is followed by the one that followed it last time.
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
        self._hooks = [
            layer.register_forward_pre_hook(lambda _, __, name=name: self._bring(name))
            for name, layer in self._layers.items()
        ]

    @property
    def present(self) -> tuple[str, ...]:
        """The weights that are in place now."""
        return tuple(self._present)

    def close(self) -> None:
        """Drop every weight and stop reading; the module cannot run any more."""
        for hook in self._hooks:
            hook.remove()
        for future in self._coming.values():
            future.cancel()
        self._reader.shutdown()
        self._coming.clear()
        self._drop(lambda name: True)

    def _bring(self, name: str) -> None:
        if name in self._present:
            return
        self._drop(lambda other: _block_of(other) != _block_of(name))
        arrival = self._coming.pop(name).result() if name in self._coming else self._read(name)
        if self._last is not None:
            self._follower[self._last] = name
        self._last = name
        _set_weight(self._layers[name], arrival.here())
        self._present.append(name)
        self._read_ahead(name)

    def _read_ahead(self, name: str) -> None:
        room = self._ahead_bytes
        expected: list[str] = []
        follower = self._follower.get(name)
        while follower is not None and follower not in expected and follower != name:
            room -= self._sizes[follower]
            if room < 0 and expected:
                break
            expected.append(follower)
            follower = self._follower.get(follower)
        for other in [other for other in self._coming if other not in expected]:
            self._coming.pop(other).cancel()
        for other in expected:
            if other not in self._coming and other not in self._present:
                self._coming[other] = self._reader.submit(self._read, other)

    def _read(self, name: str) -> _Arrival:
        weight = self._fetch(name)
        self._sizes[name] = weight.nbytes
        if self._copies is None:
            return _Arrival(weight.to(self._device), None)
        with torch.cuda.stream(self._copies):
            there = weight.pin_memory().to(self._device, non_blocking=True)
            return _Arrival(there, self._copies.record_event())

    def _drop(self, which: Callable[[str], bool]) -> None:
        dropped = [name for name in self._present if which(name)]
        for name in dropped:
            self._present.remove(name)
            layer = self._layers[name]
            _set_weight(layer, torch.empty_like(layer.weight, device="meta"))
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


def _block_of(name: str) -> tuple[str, ...]:
    return tuple(name.split(".", 2)[:2])


def _set_weight(layer: nn.Linear, weight: torch.Tensor) -> None:
    layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
