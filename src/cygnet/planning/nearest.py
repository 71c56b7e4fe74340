"""Of a request that does not fit, the nearest that does."""

from __future__ import annotations

from collections.abc import Callable

from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import FRAME_STRIDE, SIZE_MULTIPLE
from cygnet.planning.decision import decide
from cygnet.planning.machine import Machine
from cygnet.planning.subject import Subject
from cygnet.runtime.plan import Offload


def nearest(
    subject: Subject,
    request: GenerateRequest,
    machine: Machine,
    offload: Offload = True,
    *,
    also: Callable[[GenerateRequest], bool] = lambda _: True,
) -> GenerateRequest | None:
    """The request most like ``request`` that fits: fewer frames, else a smaller picture, else both; None if none is.

    ``also`` is a second condition; what it takes it must take of all smaller requests.
    """

    def fits(frames: int, width: int, height: int) -> bool:
        other = _changed(request, frames, width, height)
        return decide(subject, other, machine, offload).fits and also(other)

    least = 5 if subject.dit.variant == "flf2v" else 1
    width, height = request.width, request.height

    def fewer(count: int) -> tuple[int, int, int]:
        return FRAME_STRIDE * count + 1, width, height

    def smaller(count: int) -> tuple[int, int, int]:
        return request.num_frames, *_scaled(width, height, count)

    def least_of_all(count: int) -> tuple[int, int, int]:
        return least, *_scaled(width, height, count)

    longest, largest = (request.num_frames - 1) // FRAME_STRIDE, min(width, height) // SIZE_MULTIPLE
    for change, low, high in (
        (fewer, max(least // FRAME_STRIDE, longest // 2), longest),  # less than half as long is another video
        (smaller, 1, largest),
        (least_of_all, 1, largest),
    ):
        found = _largest(lambda count, change=change: fits(*change(count)), low, high)  # type: ignore[misc]
        if found is not None:
            return _changed(request, *change(found))
    return None


def _changed(request: GenerateRequest, frames: int, width: int, height: int) -> GenerateRequest:
    return request.model_copy(update={"num_frames": frames, "width": width, "height": height})


def _scaled(width: int, height: int, cells: int) -> tuple[int, int]:
    """The same aspect with a shorter side of ``cells`` tokens."""
    scale = cells * SIZE_MULTIPLE / min(width, height)
    return tuple(max(round(side * scale / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE for side in (width, height))  # type: ignore[return-value]


def _largest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from ``low`` to ``high`` of which ``holds`` is true, if it is of all below that one."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
