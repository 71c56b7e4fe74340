"""How much memory a device has, and how much of it is free, in a container too."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


def give_back_pieces() -> None:
    """Give the system what the C library's allocator holds free in pieces; tensors of other sizes never fill them."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Any:
    """glibc's function for that; None of another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def free_memory(device: torch.device) -> int:
    """Bytes that more weights may take on a device; on the CPU no more than the container's limit leaves."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    limited = container_memory()
    return available if limited is None else min(available, limited[0])


def container_memory(root: Path = CGROUP) -> tuple[int, int] | None:
    """Free and total bytes of the control group that this process runs in; None without a limit.

    Pages that hold files count as free: the system gives them back when they are needed. Reads version 2, then 1.
    """
    for limit, usage, key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            total, used = int((root / limit).read_text()), int((root / usage).read_text())
            stat = (root / usage).with_name("memory.stat").read_text()
        except (OSError, ValueError):  # no such file, or the limit is "max"
            continue
        if total >= psutil.virtual_memory().total:
            continue
        files = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[:1] == [key]), 0)
        return max(total - used + files, 0), total
    return None


def device_memory(device: torch.device) -> dict[str, Any]:
    """Name, type, index and bytes of memory, under the names of the studio's ``system_stats``.

    ``vram_*`` count everything on the device, ``torch_vram_*`` what this process has reserved there. The processor and
    Apple's GPUs share the machine's memory.
    """
    if device.type != "cuda":
        limited = container_memory()
        free, total = free_memory(device), psutil.virtual_memory().total if limited is None else limited[1]
        reserved, unused = total, free
    else:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        unused = reserved - torch.cuda.memory_allocated(device)
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "type": device.type,
        "index": device.index,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": reserved,
        "torch_vram_free": unused,
    }
