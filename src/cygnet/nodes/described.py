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

from cygnet.errors import RequestError
from cygnet.graph.context import current
from cygnet.media.receipt import MADE_BY_WORKFLOW, RECEIPT_KEY, RECEIPT_VERSION, embed
from cygnet.media.video import check_metadata
from cygnet.nodes.workshop import Workshop, log


def described(shop: Workshop, prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """What a file says of how it was made, in plain ASCII JSON as readers of workflows expect, and our receipt.

    What cannot be stored is left out, which the log and a line on the node say: a note is not worth the result that it
    belongs to. Names are written in lower case, with ``_`` for what not every format can hold.
    """
    if not shop.metadata:
        return {}
    receipt = embed(_receipt(shop))
    found: dict[str, str] = {}
    left_out = []
    rows = [("prompt", prompt), *(extra_pnginfo.items() if isinstance(extra_pnginfo, Mapping) else ())]
    if not isinstance(extra_pnginfo, Mapping | None):
        left_out.append(f"extra_pnginfo, which is a {type(extra_pnginfo).__name__} and no mapping")
    for name, value in rows:
        key = _key(str(name))
        if value is None:
            continue
        try:
            if key in found or key in receipt:
                raise RequestError("its name is taken")
            found |= check_metadata({key: json.dumps(value)})
        except (RequestError, TypeError, ValueError, RecursionError) as error:
            left_out.append(f"{str(name)[:50]!r} ({str(error)[:100]})")
    if left_out:
        text = f"not stored in the file: {', '.join(left_out)}"
        log.warning("%s", text)
        current().say(text)
    return found | receipt


def _key(name: str) -> str:
    plain = re.sub("[^a-z0-9_]", "_", name.lower())
    return (plain if plain[:1].isalpha() else f"x{plain}")[:64]


def _receipt(shop: Workshop) -> dict[str, Any]:
    return {
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
