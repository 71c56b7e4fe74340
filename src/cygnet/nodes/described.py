"""What saved files say of how they were made: the graph, for whoever opens it again, and the receipt."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from cygnet.media.receipt import MADE_BY_WORKFLOW, RECEIPT_KEY, RECEIPT_VERSION, embed
from cygnet.nodes.workshop import Workshop

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


def described(shop: Workshop, prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """What a file says of how it was made, in plain ASCII JSON as readers of workflows expect, and our receipt."""
    if not shop.metadata:
        return {}
    found = {} if prompt is None else {"prompt": _as_json(prompt)}
    extras: Mapping[str, Any] = extra_pnginfo or {}
    found |= {name.lower(): _as_json(value) for name, value in extras.items() if value is not None}
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


def _as_json(value: Any) -> str:
    """JSON whose texts hold no braces: the page finds the end of a WebM's workflow by counting them."""
    return _TEXT.sub(lambda it: it[0].replace("{", "\\u007b").replace("}", "\\u007d"), json.dumps(value))
