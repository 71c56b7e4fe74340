"""What saved files say of how they were made: the graph, for whoever opens it again, and the receipt."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from cygnet.media.receipt import MADE_BY_WORKFLOW, RECEIPT_KEY, RECEIPT_VERSION, embed
from cygnet.nodes.workshop import Workshop


def described(shop: Workshop, prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """What a file says of how it was made, in plain ASCII JSON as readers of workflows expect, and our receipt."""
    if not shop.metadata:
        return {}
    found = {} if prompt is None else {"prompt": json.dumps(prompt)}
    extras: Mapping[str, Any] = extra_pnginfo or {}
    found |= {name.lower(): json.dumps(value) for name, value in extras.items() if value is not None}
    return found | embed(
        {
            RECEIPT_KEY: RECEIPT_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "made_by": MADE_BY_WORKFLOW,
            "versions": {"cygnet": version("cygnet"), "torch": torch.__version__, "python": platform.python_version()},
            "machine": {
                "device": shop.device,
                "system": f"{platform.system()} {platform.machine()}",
                "threads": torch.get_num_threads(),
            },
        }
    )
