"""How much memory a device has, and how much of it is free."""

from __future__ import annotations

from typing import Any

import psutil
import torch


def device_memory(device: torch.device) -> dict[str, Any]:
    """Name, type, index and bytes of memory, under the names of the studio's ``system_stats``.

    ``vram_*`` count everything on the device, ``torch_vram_*`` what this process has reserved there. The processor and
    Apple's GPUs share the machine's memory.
    """
    if device.type != "cuda":
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
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
