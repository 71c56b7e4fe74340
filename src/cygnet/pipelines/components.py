"""What a pipeline is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.denoise import StepCache
from cygnet.types import Residency, TextMemory


@dataclass(frozen=True, kw_only=True)
class Components:
    """The networks of one model, wherever they are, and their architectures."""

    residency: Residency
    variant: str
    """What people call the model, such as ``T2V-14B``; used in messages."""
    tokenizer: Tokenizer
    dit: DiTConfig
    vae: VAEConfig
    text_encoder: UMT5Config
    image_encoder: CLIPVisionConfig | None = None
    text_memory: TextMemory | None = None
    """Where the features of the model's own negative prompt are kept."""
    step_cache: Callable[..., StepCache] | None = None
    """Makes the cache of a run from ``(dit, wish, num_steps=, start_step=, pixels=)``, or refuses."""

    @contextmanager
    def use_dit(self) -> Iterator[DiT]:
        """The diffusion transformer, for the length of a ``with`` block."""
        with self.residency.use("dit") as module:
            yield cast(DiT, module)

    @contextmanager
    def use_vae(self) -> Iterator[WanVAE]:
        """The autoencoder, for the length of a ``with`` block."""
        with self.residency.use("vae") as module:
            yield cast(WanVAE, module)

    @contextmanager
    def use_text_encoder(self) -> Iterator[UMT5Encoder]:
        """The text encoder, for the length of a ``with`` block."""
        with self.residency.use("text_encoder") as module:
            yield cast(UMT5Encoder, module)

    @contextmanager
    def use_image_encoder(self) -> Iterator[CLIPVision]:
        """The image encoder, for the length of a ``with`` block."""
        with self.residency.use("image_encoder") as module:
            yield cast(CLIPVision, module)
