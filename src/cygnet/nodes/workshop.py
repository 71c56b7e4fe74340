"""What every node may use: the folders, the model files by name, and the networks that are loaded.

A handle (:class:`ModelHandle` and its like) is what flows through the graph: it names a file and how to use it. The
network itself is built when a node needs it, and kept for the next job as long as there is room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from cygnet.assembly import (
    Coverage,
    ImageEncoder,
    TextEncoder,
    fits,
    load_dit,
    load_image_encoder,
    load_preview_decoder,
    load_text_encoder,
    load_vae,
    release_unused,
)
from cygnet.errors import ModelNotFoundError, WeightFileError
from cygnet.graph.folders import Folders, can_be_named, inside
from cygnet.models.dit.model import DiT
from cygnet.models.taehv.model import PreviewDecoder
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.denoise import Guidance, SkippedLayers
from cygnet.types import StepCaching

log = logging.getLogger(__name__)

DEFAULT_SHIFT = 8.0
"""What graphs use for Wan when no node sets another."""
_Network = TypeVar("_Network")
TAEHV = "taew2_1"
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class ModelHandle:
    """A diffusion transformer and how to sample from it."""

    path: Path
    dtype: str = "auto"
    shift: float = DEFAULT_SHIFT
    zero_star: bool = False
    skip: SkippedLayers | None = None
    caching: StepCaching | None = None
    """How steps may be answered from earlier ones; None computes all."""
    stored: str | None = None
    """An 8-bit type that the blocks' matrices are rounded to, such as ``fp8_e4m3fn``; None leaves them as they are."""
    loras: tuple[tuple[Path, float], ...] = ()
    """Files and strengths of what is merged into the weights."""

    def with_shift(self, shift: float) -> ModelHandle:
        """The same with another shift of the noise levels."""
        return replace(self, shift=shift)

    def guidance(self, scale: float) -> Guidance:
        """How its answers to two prompts are joined."""
        return Guidance(scale=scale, zero_star=self.zero_star, skip=self.skip)


def _tell(coverage: Coverage) -> None:
    if coverage.partial:
        log.warning("LoRA %s: less than half of it; it was made for another model", coverage)
    else:
        log.info("LoRA %s", coverage)


@dataclass(frozen=True)
class FileHandle:
    """A text encoder, autoencoder or image encoder."""

    path: Path
    device: str = "auto"


@dataclass
class Workshop:
    """One process's folders and networks."""

    folders: Folders
    models: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Model folders by kind."""
    embedded: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    """Files that ship with the package: kind to name to path."""
    device: str = "auto"
    metadata: bool = True
    """Whether saved files carry their prompt and workflow."""
    preview_side: int = 512
    """Of the longer side of a preview, in pixels, at most."""
    _loaded: dict[Any, Any] = field(default_factory=dict)

    # Files

    def names(self, kind: str) -> list[str]:
        """The files of a kind as combos list them, embedded ones last."""
        found: dict[str, None] = {}
        for root in self.models.get(kind, ()):
            for path in sorted(root.rglob("*")) if root.is_dir() else ():
                name = path.relative_to(root).as_posix()
                if path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file() and can_be_named(name):
                    found[name] = None
        return [*found, *(name for name in self.embedded.get(kind, {}) if name not in found)]

    def path(self, kind: str, name: str) -> Path:
        """The file of that name; raises :class:`~cygnet.errors.ModelNotFoundError`."""
        for root in self.models.get(kind, ()):
            path = inside(root, name)
            if path.is_file():
                return path
        if name in self.embedded.get(kind, {}):
            return self.embedded[kind][name]
        raise ModelNotFoundError(
            f"there is no {name!r} among the {kind}; put it into a {kind} folder, or choose another"
        )

    # Networks

    def dit(self, handle: ModelHandle) -> DiT:
        """The transformer of a handle."""
        key = ("dit", handle.path, handle.dtype, handle.stored, handle.loras)
        if key not in self._loaded:  # another merge of the same file is the largest thing that can be let go
            self._loaded = {other: network for other, network in self._loaded.items() if other[:2] != key[:2]}

        def build() -> DiT:
            return load_dit(
                handle.path,
                handle.dtype,
                self.device,
                loras=handle.loras,
                eight_bit=not fits(handle.path, "dit", handle.dtype, self.device),
                rounded=None if handle.stored is None else getattr(torch, handle.stored.replace("fp8", "float8")),
                allow_partial_loras=True,  # as ComfyUI does, which warns
                on_coverage=_tell,
            )

        return self._keep(key, build, lambda: fits(handle.path, "dit", handle.dtype, self.device))

    def vae(self, handle: FileHandle) -> WanVAE:
        """The autoencoder of a handle: encodes in float32, decodes in what is fast here."""
        return self._keep(
            ("vae", handle.path),
            lambda: load_vae(handle.path, torch.float32, self.device, decode_dtype="auto"),
            lambda: fits(handle.path, "vae", torch.float32, self.device),
        )

    def text_encoder(self, handle: FileHandle) -> TextEncoder:
        """The text encoder of a handle."""
        device = "cpu" if handle.device == "cpu" else self.device
        return self._keep(
            ("text", handle.path, device),
            lambda: load_text_encoder(
                handle.path, "auto", device, eight_bit=not fits(handle.path, "text_encoder", "auto", device)
            ),
            lambda: fits(handle.path, "text_encoder", "auto", device),
        )

    def image_encoder(self, handle: FileHandle) -> ImageEncoder:
        """The image encoder of a handle."""
        return self._keep(
            ("image", handle.path),
            lambda: load_image_encoder(handle.path, "auto", self.device),
            lambda: fits(handle.path, "image_encoder", "auto", self.device),
        )

    def preview_decoder(self) -> PreviewDecoder | None:
        """TAEHV, if a folder ``vae_approx`` has it; None, and a line in the log, if the file is another network's."""
        name = next((it for it in self.names("vae_approx") if Path(it).stem == TAEHV), None)
        if name is None:
            return None
        path = self.path("vae_approx", name)

        def build() -> PreviewDecoder | None:
            try:
                return load_preview_decoder(path, device=self.device)
            except WeightFileError as error:
                log.warning("previews are made without TAEHV: %s", error)
                return None

        return self._keep(("preview", path), build, lambda: True)

    def _keep(self, key: Any, build: Callable[[], _Network], fits: Callable[[], bool]) -> _Network:
        """The network under ``key``, built if it is not there; those used longest ago make room for it."""
        if key in self._loaded:
            network: _Network = self._loaded.pop(key)
        else:
            while self._loaded and not fits():
                del self._loaded[next(iter(self._loaded))]
                release_unused()
            network = build()
        self._loaded[key] = network
        return network

    def unload(self) -> None:
        """Forget every network."""
        self._loaded.clear()
        release_unused()


class Node:
    """Base of our nodes; ``bind`` gives the class its workshop."""

    shop: Workshop
    CATEGORY = ""
    FUNCTION = "run"

    @classmethod
    def bind(cls, shop: Workshop) -> type[Node]:
        """A class of the same name that works in ``shop``."""
        return type(cls.__name__, (cls,), {"shop": shop, "__doc__": cls.__doc__})
