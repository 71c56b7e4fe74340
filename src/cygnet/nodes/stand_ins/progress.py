"""How packs tell how far a node is, and show what it makes: ``comfy.utils.ProgressBar`` and ``ComfyAPI``."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from cygnet.errors import RequestError
from cygnet.graph.context import current

_SIDE = 512


class ProgressBar:
    """Progress of the node that is running."""

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total = total
        self.current = 0.0

    def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
        """Set how much is done; ``preview`` is a picture's format, the picture, and its longest side or None."""
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        current().progress(self.current, self.total)
        if preview is not None:
            kind, picture, side = preview
            show(picture, side or max(picture.size), "png" if str(kind).upper() == "PNG" else "jpeg")

    def update(self, value: float) -> None:
        """Add to how much is done."""
        self.update_absolute(self.current + value)


def show(picture: Any, side: int, kind: Literal["jpeg", "png"] = "jpeg") -> None:
    """Show a picture of Pillow, or an ``IMAGE``'s first, on the running node, its longer side at most ``side``."""
    if isinstance(picture, torch.Tensor):
        first = picture[0] if picture.ndim == 4 else picture
        picture = Image.fromarray((first[..., :3].float().clamp(0, 1) * 255).byte().cpu().numpy().astype(np.uint8))
    if not isinstance(picture, Image.Image):
        raise RequestError(f"a preview is a {type(picture).__name__}; give a picture of Pillow, or an IMAGE")
    picture = picture.copy()
    picture.thumbnail((side, side))
    file = io.BytesIO()
    (picture if kind == "png" else picture.convert("RGB")).save(file, format=kind.upper())
    current().preview(file.getvalue(), "image/png" if kind == "png" else "image/jpeg")


def _set_progress(value: float, most: float, node_id: str | None, picture: Any, whole: bool) -> None:
    here = current().place.node
    if node_id not in (None, here):
        raise RequestError(f"node {here} sets the progress of node {node_id}; a node tells its own alone")
    current().progress(min(value, most), most)
    if picture is not None:
        show(picture, 16384 if whole else _SIDE)


class _Execution:
    async def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: Any = None,
        ignore_size_limit: bool = False,
    ) -> None:
        """Progress of the running node, with a picture of what it makes."""
        _set_progress(value, max_value, node_id, preview_image, ignore_size_limit)


class _ExecutionSync:
    def set_progress(
        self,
        value: float,
        max_value: float,
        node_id: str | None = None,
        preview_image: Any = None,
        ignore_size_limit: bool = False,
    ) -> None:
        """The same for functions that are not ``async``."""
        _set_progress(value, max_value, node_id, preview_image, ignore_size_limit)


class ComfyAPI:
    """What nodes of the current contract ask of their host while they run."""

    execution: Any = _Execution()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__}.{name} is not there in cygnet; execution.set_progress is")


class ComfyAPISync(ComfyAPI):
    """The same without ``async``."""

    execution: Any = _ExecutionSync()
