"""Blocks that live in the machine's memory and visit the GPU one after another, the next one on its way meanwhile.

Every block's weights lie in one pinned buffer. On the device there are two such buffers: while a block computes from
one, a copy stream fills the other. The copy is hidden as long as a block computes longer than its weights travel, which
for long videos is always. The arithmetic is that of the resident network, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

ENTRIES = ("cross_attn.keys", "before_proj", "after_proj")
"""What is called of a block besides its forward: the prompt's keys, and the two ends of VACE's control branch."""
_ALIGNMENT = 256
"""Bytes; what CUDA kernels like their operands to start at."""


def swapped_bytes(sizes: Mapping[str, int], stacks: Collection[str]) -> int:
    """What :class:`BlockSwap` keeps on the device of weights of these sizes: two blocks, and all that is in none."""
    blocks: dict[tuple[str, ...], int] = {}
    for name, size in sizes.items():
        path = tuple(name.split(".", 2)[:2])
        if path[0] in stacks:
            blocks[path] = blocks.get(path, 0) + size
    return sum(sizes.values()) - sum(blocks.values()) + 2 * max(blocks.values(), default=0)


class _Layout:
    """Where each parameter of a block lies in its buffer; the same for all blocks of a list."""

    def __init__(self, block: nn.Module) -> None:
        self.names: list[str] = []
        self.places: list[tuple[int, int, torch.dtype, torch.Size]] = []
        self.size = 0
        for name, value in block.named_parameters():
            self.names.append(name)
            self.places.append((self.size, value.nbytes, value.dtype, value.shape))
            self.size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The parameters in ``buffer``, uint8 of at least :attr:`size` bytes."""
        return [buffer[at : at + size].view(dtype).view(shape) for at, size, dtype, shape in self.places]


class BlockSwap:
    """Brings the blocks of ``module`` to ``device`` as they run; made once, works until :meth:`close`.

    The module is on the CPU when this is made. Its blocks stay there in pinned memory (plain memory where ``device`` is
    not CUDA); everything else of it moves to ``device`` for good. Blocks must have no buffers.
    """

    def __init__(self, module: nn.Module, stacks: Collection[str], device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        blocks: list[nn.Module] = [block for stack in stacks for block in getattr(module, stack, ())]
        self._move_the_rest(module, stacks)
        self._layouts = [_Layout(block) for block in blocks]
        self._homes = [self._pack(block, layout) for block, layout in zip(blocks, self._layouts, strict=True)]
        largest = max(layout.size for layout in self._layouts)
        self._rooms = [torch.empty(largest, dtype=torch.uint8, device=self._device) for _ in range(2)]
        self._held: list[int | None] = [None, None]
        """Which block each buffer holds or is being filled with."""
        self._arrived: list[Any] = [None, None]
        self._free: list[Any] = [None, None]
        self._copies = torch.cuda.Stream(self._device) if self._cuda else None
        self._running: int | None = None
        self._follower: dict[int, int] = {}
        self._blocks = blocks
        self._hooks = [
            block.register_forward_pre_hook(lambda _, __, number=number: self._enter(number))
            for number, block in enumerate(blocks)
        ]
        self._wrapped = [
            found
            for number, block in enumerate(blocks)
            for path in ENTRIES
            if (found := self._wrap(number, block, path))
        ]

    @property
    def present(self) -> tuple[int, ...]:
        """Numbers of the blocks that are on the device or on their way."""
        return tuple(number for number in self._held if number is not None)

    def close(self) -> None:
        """Stop and give the device's memory back; the blocks are on the CPU again."""
        for hook in self._hooks:
            hook.remove()
        for owner, name in self._wrapped:
            delattr(owner, name)
        if self._cuda:
            torch.cuda.synchronize(self._device)
        for number, block in enumerate(self._blocks):
            self._set(block, self._layouts[number].views(self._homes[number]))
        self._rooms.clear()

    def _wrap(self, number: int, block: nn.Module, path: str) -> tuple[nn.Module, str] | None:
        """Let the block come in before its method or part ``path`` is called; where that was noted, if there is one."""
        parent, _, name = path.rpartition(".")
        try:
            owner = block.get_submodule(parent)
            called = getattr(owner, name)
        except AttributeError:
            return None
        if isinstance(called, nn.Module):  # a hook would do, but compiled blocks run plain where a part has one
            owner, name, called = called, "forward", called.forward

        @functools.wraps(called)
        def entered(*args: Any, **named: Any) -> Any:
            self._enter(number)
            return called(*args, **named)

        setattr(owner, name, entered)
        return owner, name

    def _move_the_rest(self, module: nn.Module, stacks: Collection[str]) -> None:
        for name, parameter in module.named_parameters():
            if name.split(".", 1)[0] not in stacks:
                parameter.data = parameter.data.to(self._device)
        for name, buffer in module.named_buffers():
            assert name.split(".", 1)[0] not in stacks, f"{name} is a buffer of a block; it cannot be swapped"
            path, _, leaf = name.rpartition(".")
            module.get_submodule(path)._buffers[leaf] = buffer.to(self._device)

    def _pack(self, block: nn.Module, layout: _Layout) -> torch.Tensor:
        home = torch.empty(layout.size, dtype=torch.uint8, pin_memory=self._cuda)
        views = layout.views(home)
        for view, value in zip(views, block.parameters(), strict=True):
            view.copy_(value)
        self._set(block, views)  # what the block held before is given back at once
        return home

    def _enter(self, number: int) -> None:
        """Before block ``number`` runs: the one before it is let go, it is in place, and the next one is sent for."""
        if self._running is not None and self._held[self._running] != number:
            self._leave(self._running, number)
        if number in self._held:
            room = self._held.index(number)
        else:  # the first block of all, or an order that was never seen
            room = 0 if self._running is None else 1 - self._running
            self._send(number, room)
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._arrived[room])
        self._set(self._blocks[number], self._layouts[number].views(self._rooms[room]))
        self._running = room
        follower = self._follower.get(number, (number + 1) % len(self._blocks))
        if follower not in self._held:
            self._send(follower, 1 - room)

    def _leave(self, room: int, following: int) -> None:
        """All work of the block in ``room`` is queued: its room may be filled again when that is done."""
        number = self._held[room]
        assert number is not None
        self._follower[number] = following
        if self._cuda:
            self._free[room] = torch.cuda.current_stream(self._device).record_event()
        self._set(self._blocks[number], self._layouts[number].views(self._homes[number]))

    def _send(self, number: int, room: int) -> None:
        self._held[room] = number
        size = self._layouts[number].size
        target, source = self._rooms[room][:size], self._homes[number]
        if self._copies is None:
            target.copy_(source)
            return
        with torch.cuda.stream(self._copies):
            if self._free[room] is not None:
                self._copies.wait_event(self._free[room])
            target.copy_(source, non_blocking=True)
            self._arrived[room] = self._copies.record_event()

    @staticmethod
    def _set(block: nn.Module, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(block.parameters(), values, strict=True):
            parameter.data = value
