"""Work that is done once more, in less memory, when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cygnet.errors import OutOfMemory, out_of_memory
from cygnet.pipelines.components import Components
from cygnet.pipelines.record import Half, Record
from cygnet.pipelines.tiles import in_portions, smaller
from cygnet.types import ComponentName

_T = TypeVar("_T")


def attempt(
    components: Components,
    name: ComponentName,
    doing: str,
    record: Record,
    work: Callable[[], _T],
    *,
    otherwise: Callable[[], str | None] = lambda: None,
) -> _T:
    """``work``, and if memory runs out in it once more, with the component ``name`` held in less; no third time.

    Where its weights cannot be held in less, ``otherwise`` makes the work itself smaller and says how, if it can.
    Raises :class:`~cygnet.errors.OutOfMemory` when there is no smaller way, or none is left.
    """
    record.at_work = name
    try:
        return work()
    except Exception as error:
        if not out_of_memory(error) or record.stepped_down:
            raise
    # Only here, with the error and the frames that it refers to gone, can what was computed be freed.
    how = components.residency.shrink(name) or otherwise()
    if how is None:
        raise OutOfMemory(f"out of memory while {doing}, and the weights cannot be held in less")
    step_down(record, doing, how)
    return work()


def step_down(record: Record, doing: str, how: str) -> None:
    record.stepped_down = True
    record.notices.append(f"memory ran out while {doing}; it was done again in less: {how}")


def tile_further(
    record: Record, half: Half, width: int, height: int, *, given: int = 0, at_once: int = 1
) -> str | None:
    """Let the VAE work in smaller portions, after ``given`` frames; how, in words, or None if it cannot.

    ``at_once`` as of :func:`~cygnet.pipelines.tiles.smaller`.
    """
    before = record.tiles.get(half)
    tiles = smaller(before, width, height, at_once)
    if tiles is None:
        return None
    # A receipt tells of one change: frames between an earlier one and this count as in the smaller tiles.
    whole = given if before is None else min(before.from_frame, given)
    record.tiles[half], record.parked = replace(tiles, from_frame=whole), True
    return f"{in_portions(half, tiles, width, height)}, and last digits can differ"
