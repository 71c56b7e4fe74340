"""Blocks that live in the machine's memory and visit the GPU one after another, the next one on its way meanwhile.

Every block's weights lie in one pinned buffer. On the device there are two such buffers: while a block computes from
one, a copy stream fills the other. The copy is hidden as long as a block computes longer than its weights travel, which
for long videos is always. The arithmetic is that of the resident network, bit for bit.

A backward pass may come through as well, where blocks forget their activations and compute them again (gradient
checkpointing): each block then comes in once more for that, in the order in which it is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cygnet.runtime.entries import ENTRIES, FORWARD, Entry

AGAIN = "forward, again"
"""The entry of a block that computes its activations again, in a backward pass."""
_ALIGNMENT = 256
"""Bytes; what CUDA kernels like their operands to start at."""


def swapped_bytes(sizes: Mapping[str, int], stacks: Collection[str]) -> int:
    """What :class:`BlockSwap` keeps on the device of weights of these sizes: two blocks, and all that is in none."""
    blocks: dict[tuple[str, ...], int] = {}
    for name, size in sizes.items():
        path = tuple(name.split(".", 2)[:2])
        if path[0] in stacks:
            blocks[path] = blocks.get(path, 0) + size
    return sum(sizes.values()) - sum(blocks.values()) + min(2, len(blocks)) * max(blocks.values(), default=0)


class _Packed:
    """Some weights of a block, side by side in one buffer of the machine's memory: their home."""

    def __init__(self, parameters: Sequence[torch.Tensor], *, pinned: bool) -> None:
        self._parameters = parameters
        self._places: list[tuple[int, int, torch.dtype, torch.Size]] = []
        self.size = 0
        for value in parameters:
            self._places.append((self.size, value.nbytes, value.dtype, value.shape))
            self.size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.home = torch.empty(self.size, dtype=torch.uint8, pin_memory=pinned)
        for view, value in zip(self._views(self.home), parameters, strict=True):
            view.copy_(value.data)
        self.lie_in(self.home)  # what the parameters held before is given back at once

    def lie_in(self, buffer: torch.Tensor) -> None:
        """Have the parameters be what ``buffer`` holds, uint8 of at least :attr:`size` bytes."""
        for parameter, value in zip(self._parameters, self._views(buffer), strict=True):
            parameter.data = value

    def _views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        return [buffer[at : at + size].view(dtype).view(shape) for at, size, dtype, shape in self._places]


class BlockSwap:
    """Brings the blocks of ``module`` to ``device`` as they run; made once, works until :meth:`close`.

    The module is on the CPU when this is made. Its blocks stay there in pinned memory (plain memory where ``device`` is
    not CUDA), matrices in 8 bits with their scales too; everything else of it moves to ``device`` for good. With
    ``names``, only these weights of the blocks are swapped, and a block with none of them stays on the device.

    For training, the swapped weights must be frozen; what wraps a block's ``forward`` to compute it again is put on
    after this is made. A block's backward pass outside of its ``forward``, such as that of the prompt's keys, must not
    need weights that are swapped: of frozen layers it needs none as long as nothing that is given to them is trained.

    Which block is sent for while another one computes is learnt: each entry is followed by the one that followed it
    last time. Threads may share the module: they take turns, block by block. Only a backward pass cannot share, since
    it reads a block's weights after its ``forward`` has returned: once one came through, the module belongs to the
    thread that asked for it, and a call of any other thread is a RuntimeError.
    """

    def __init__(
        self,
        module: nn.Module,
        stacks: Collection[str],
        device: torch.device | str,
        *,
        names: Collection[str] | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        chosen: list[tuple[nn.Module, list[torch.Tensor]]] = []
        for stack in stacks:
            for number, block in enumerate(getattr(module, stack, ())):
                path = f"{stack}.{number}"
                whole = (*block.named_parameters(path), *block.named_buffers(path))
                if parameters := [value for name, value in whole if names is None or name in names]:
                    chosen.append((block, parameters))
        self._move_the_rest(module, {id(value) for _, parameters in chosen for value in parameters})
        self._packed = [_Packed(parameters, pinned=self._cuda) for _, parameters in chosen]
        largest = max((each.size for each in self._packed), default=0)
        count = min(2, len(chosen))
        self._rooms = [torch.empty(largest, dtype=torch.uint8, device=self._device) for _ in range(count)]
        self._held: list[int | None] = [None] * count
        """Which block each buffer holds or is being filled with."""
        self._arrived: list[Any] = [None] * count
        self._free: list[Any] = [None] * count
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None
        self._stream: Any = None
        """On which the running block computes."""
        self._running: int | None = None
        self._last: tuple[str, int] | None = None
        self._follower: dict[tuple[str, int], int] = {}
        self._turn = threading.RLock()
        self._caller = self._trainer = 0
        """The thread that evaluates with gradients, and the one whose backward pass came through."""
        self._open = True
        self._entries = [
            found
            for number, (block, _) in enumerate(chosen)
            for path in ENTRIES
            if (found := Entry.find(block, path, self._entering(path, number)))
        ]

    @property
    def present(self) -> tuple[int, ...]:
        """Numbers of the blocks, among those that are swapped, that are on the device or on their way."""
        return tuple(number for number in self._held if number is not None)

    def close(self) -> None:
        """Stop and give the device's memory back; the blocks are on the CPU again."""
        with self._turn:
            self._open = False
            for entry in self._entries:
                entry.remove()
            if self._cuda:
                torch.cuda.synchronize(self._device)
            for each in self._packed:
                each.lie_in(each.home)
            self._rooms.clear()

    def _entering(self, path: str, number: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Lets block ``number`` come in before its entry ``path`` is called."""

        def around(called: Callable[..., Any]) -> Callable[..., Any]:
            def entered(*args: Any, **named: Any) -> Any:
                if not self._open:
                    return called(*args, **named)
                # Another thread's block would take this one's buffer from under it.
                with self._turn:
                    self._enter(path, number)
                    return called(*args, **named)

            return entered

        return around

    def _move_the_rest(self, module: nn.Module, swapped: Collection[int]) -> None:
        for parameter in module.parameters():
            if id(parameter) not in swapped:
                parameter.data = parameter.data.to(self._device)
        for name, buffer in module.named_buffers():
            if id(buffer) in swapped:
                continue
            path, _, leaf = name.rpartition(".")
            module.get_submodule(path)._buffers[leaf] = buffer.to(self._device)

    def _enter(self, entry: str, number: int) -> None:
        """Before block ``number`` runs: the one before it is let go, it is in place, and the next one is sent for."""
        entry = self._checked(entry)
        if self._last is not None:
            self._follower[self._last] = number
        self._last = (entry, number)
        if self._running is not None and self._held[self._running] != number:
            self._leave(self._running)
        if number in self._held:
            room = self._held.index(number)
        else:  # the first block of all, or an order that was never seen
            room = 0 if self._running is None else 1 - self._running
            self._send(number, room)
        if self._cuda:
            stream = torch.cuda.current_stream(self._device)
            if self._running == room and self._stream != stream:
                stream.wait_stream(self._stream)  # so that the end of this one's work is the end of both
            self._stream = stream
            stream.wait_event(self._arrived[room])
        self._packed[number].lie_in(self._rooms[room])
        self._running = room
        onward = -1 if entry == AGAIN else 1
        follower = self._follower.get(self._last, (number + onward) % len(self._packed))
        if follower not in self._held:
            self._send(follower, 1 - room)

    def _checked(self, entry: str) -> str:
        """The entry by its own name: a ``forward`` within a backward pass is another one."""
        if torch._C._current_graph_task_id() != -1:  # the engine may run in a thread of its own
            self._trainer = self._caller
            return AGAIN if entry == FORWARD else entry
        mine = threading.get_ident()
        if torch.is_grad_enabled():
            self._caller = mine
        if self._trainer not in (0, mine):
            raise RuntimeError(
                "this network is trained by another thread with its blocks swapped, and cannot serve two while "
                "gradients are computed; load it once more for this thread, or evaluate in the one that trains"
            )
        return entry

    def _leave(self, room: int) -> None:
        """All work of the block in ``room`` is queued: its room may be filled again when that is done."""
        number = self._held[room]
        assert number is not None
        if self._cuda:
            self._free[room] = self._stream.record_event()
        self._packed[number].lie_in(self._packed[number].home)

    def _send(self, number: int, room: int) -> None:
        self._held[room] = number
        source = self._packed[number].home
        target = self._rooms[room][: len(source)]
        if self._copies is None:
            target.copy_(source)
            return
        with torch.cuda.stream(self._copies):
            if self._free[room] is not None:
                self._copies.wait_event(self._free[room])
            target.copy_(source, non_blocking=True)
            self._arrived[room] = self._copies.record_event()
