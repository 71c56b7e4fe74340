"""The Wan 2.1 diffusion transformer: noisy latents, a timestep and a prompt to velocity.

Legend: B batch, C latent channels, t h w latent grid, L = t*(h/2)*(w/2) tokens, D width, n text rows, m image rows.
Source: Wan-Video/Wan2.1: wan/modules/model.py; parameter names are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from cygnet.models.dit.config import CAMERA_SCALE, DiTConfig
from cygnet.models.dit.control import CameraAdapter, VaceBlock, VaceContext, VaceStream
from cygnet.models.dit.layers import Block, Head, ImageEmbedding, TextKeys, timestep_embedding
from cygnet.ops.attention import sdpa
from cygnet.ops.rope import rotary_table
from cygnet.types import Attention


@dataclass(frozen=True)
class PreparedContext:
    """Everything that the prompt (and picture) contribute, computed once: keys and values of every block."""

    blocks: tuple[TextKeys, ...]
    vace_blocks: tuple[TextKeys, ...] = ()
    """Those of VACE's control branch."""

    @classmethod
    def joined(cls, several: Sequence[PreparedContext]) -> PreparedContext:
        """Several prompts as a batch, for one evaluation that answers all."""
        return cls(
            tuple(TextKeys.joined(keys) for keys in zip(*(each.blocks for each in several), strict=True)),
            tuple(TextKeys.joined(keys) for keys in zip(*(each.vace_blocks for each in several), strict=True)),
        )


class DiT(nn.Module):
    """Predicts ``velocity = noise - data`` for latents on the straight path between the two."""

    fp32_parameters: ClassVar[tuple[str, ...]] = (
        "patch_embedding.",
        "time_embedding.",
        "time_projection.",
        "modulation",
        "norm",
        "head.",
        "img_emb.proj.0.",
        "img_emb.proj.4.",
        "img_emb.emb_pos",
    )

    def __init__(self, config: DiTConfig, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.patch_embedding = nn.Conv3d(config.in_channels, d, config.patch_size, stride=config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, d), nn.GELU(approximate="tanh"), nn.Linear(d, d))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, d), nn.SiLU(), nn.Linear(d, d))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.num_layers))
        self.head = Head(config)
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, d, config.image_positions)
        if config.vace_layers:
            self.vace_patch_embedding = nn.Conv3d(config.vace_channels, d, config.patch_size, stride=config.patch_size)
            self.vace_blocks = nn.ModuleList(
                VaceBlock(config, attention, first=number == 0) for number in range(len(config.vace_layers))
            )
        if config.camera_channels is not None:
            self.control_adapter = CameraAdapter(config.camera_channels, d)
        if config.reference:
            self.ref_conv = nn.Conv2d(config.out_channels, d, config.patch_size[1:], stride=config.patch_size[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the blocks' matrix products run."""
        return self.text_embedding[0].weight.dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.head.modulation.device

    def num_tokens(self, latents: torch.Tensor) -> int:
        """Video tokens that ``latents [B, C, t, h, w]`` become, of one video."""
        return math.prod(latents.shape[2:]) // math.prod(self.config.patch_size)

    def prepare(self, context: torch.Tensor, image_context: torch.Tensor | None = None) -> PreparedContext:
        """Turn ``context [B, n <= 512, text_dim]`` and ``image_context [B, m, image_dim]`` into keys and values.

        The network was trained with the text padded to 512 zero rows that cross-attention sees. All of them embed to
        the same vector, so one row stands for them with its score raised by the log of their number: the same result
        without computing 512 rows. Rows of zeros inside ``context`` count as the padding they are.
        """
        config = self.config
        rows = context.shape[1] if context.ndim == 3 else -1
        if not 0 <= rows <= config.text_length or context.shape[2] != config.text_dim:
            want = f"[B, n <= {config.text_length}, {config.text_dim}]"
            raise ValueError(f"context must be {want}, not {list(context.shape)}")
        context = context.to(self.device, self.dtype)
        if rows < config.text_length:
            context = torch.cat((context, context.new_zeros(context.shape[0], 1, config.text_dim)), dim=1)
        text = self.text_embedding(context)
        image = self._embed_image(image_context)

        def keys(blocks: Iterable[nn.Module]) -> tuple[TextKeys, ...]:
            return tuple(block.cross_attn.keys(text, config.text_length, image) for block in blocks)  # type: ignore[union-attr, operator]

        return PreparedContext(keys(self.blocks), keys(self.vace_blocks) if config.vace_layers else ())

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | PreparedContext,
        image_context: torch.Tensor | None = None,
        image_condition: torch.Tensor | None = None,
        *,
        vace: Sequence[VaceContext] = (),
        camera: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        skip_blocks: Collection[int] = (),
        one_by_one: bool = False,
    ) -> torch.Tensor:
        """Velocity ``[B, 16, t, h, w]`` float32.

        ``latents [B, 16, t, h, w]`` with even h and w; ``timestep [B]`` in 0..1000 (1000 is pure noise); ``context``
        as for :meth:`prepare`, or its result; ``image_condition [B, 20, t, h, w]`` (4 of mask, 16 of latents; the Fun
        models' have 32 or 16 channels) and ``image_context`` for the image variants only. ``vace`` are the controls of
        a VACE model, whose hints add up; ``camera [B, 24, t, 8h, 8w]`` the rays and ``reference [B, 16, h, w]`` the
        picture of a Fun model that takes one. Blocks in ``skip_blocks`` are left out (skip-layer guidance).

        One video may be given a context of several prompts: B of the result is then their number. ``one_by_one`` works
        on one of them at a time within each block: the memory of one, and each weight is read once. Raises ValueError
        on any other shape.
        """
        self._check(latents, timestep, image_condition)
        self._check_controls(latents, vace, camera, reference)
        if not isinstance(context, PreparedContext):
            context = self.prepare(context, image_context)
        self._check_prepared(context, latents.shape[0], one_by_one)
        x = latents.to(self.device, torch.float32)
        if image_condition is not None:
            x = torch.cat((x, image_condition.to(x)), dim=1)  # [B, C + 20, t, h, w]
        x = self.patch_embedding(x.to(self.patch_embedding.weight.dtype))  # [B, D, t, h/2, w/2]
        if camera is not None:
            x = x + self.control_adapter(camera.to(self.device, self.dtype)).to(x.dtype)
        if reference is not None:  # one more frame before the others
            first = self.ref_conv(reference.to(self.device, self.dtype)).to(x.dtype)
            x = torch.cat((first[:, :, None], x), dim=2)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        x = x.flatten(2).transpose(1, 2).to(self.dtype)  # [B, L, D]
        time = self.time_embedding(timestep_embedding(timestep.to(self.device), self.config.freq_dim))  # [B, D]
        time_modulation = self.time_projection(time).unflatten(1, (6, -1)).float()  # [B, 6, D]
        rope = rotary_table(grid, self.config.dim // self.config.num_heads, self.device)
        streams = [VaceStream(self.vace_blocks, self._embed_control(each), x, each.strength) for each in vace]
        hinted = {layer: number for number, layer in enumerate(self.config.vace_layers)}
        for layer, (block, keys) in enumerate(zip(self.blocks, context.blocks, strict=True)):
            if layer not in skip_blocks:
                x = block(x, time_modulation, rope, keys, one_by_one=one_by_one)
            if layer in hinted:
                number = hinted[layer]
                for stream in streams:
                    keys = context.vace_blocks[number]
                    x = stream.add_hint(x, number, time_modulation, rope, keys, one_by_one=one_by_one)
        velocity = self.unpatchify(self.head(x, time), grid)
        return velocity if reference is None else velocity[:, :, 1:]

    def unpatchify(self, patches: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """``[B, L, 4 * C]`` (row, column, channel; channel fastest) -> ``[B, C, t, h, w]``."""
        pt, ph, pw = self.config.patch_size
        x = patches.float().view(patches.shape[0], *grid, pt, ph, pw, self.config.out_channels)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(x.shape[0], x.shape[1], grid[0] * pt, grid[1] * ph, grid[2] * pw)

    def _embed_control(self, control: VaceContext) -> torch.Tensor:
        """``[B, 96, t, h, w]`` -> ``[B, L, D]``."""
        patches = self.vace_patch_embedding(control.latents.to(self.device, self.vace_patch_embedding.weight.dtype))
        return patches.flatten(2).transpose(1, 2).to(self.dtype)  # type: ignore[no-any-return]

    def _embed_image(self, image_context: torch.Tensor | None) -> torch.Tensor | None:
        config = self.config
        if config.image_dim is None:
            if image_context is not None:
                raise ValueError(f"this is a {config.variant} transformer; it takes no image_context")
            return None
        if image_context is None and config.variant in ("control", "camera"):
            return None  # the Fun models' blocks then look at the text alone
        if (
            image_context is None
            or image_context.ndim != 3
            or image_context.shape[2] != config.image_dim
            or 0 in image_context.shape
        ):
            given = None if image_context is None else list(image_context.shape)
            raise ValueError(f"image_context must be [B, m, {config.image_dim}] for {config.variant}, not {given}")
        if config.image_positions is not None and image_context.shape[1] > config.image_positions:
            raise ValueError(f"image_context has {image_context.shape[1]} rows; at most {config.image_positions} fit")
        return self.img_emb(image_context.to(self.device, self.dtype))  # type: ignore[no-any-return]

    def _check(self, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor | None) -> None:
        config = self.config
        if latents.ndim != 5 or latents.shape[1] != config.out_channels or not latents.numel():
            raise ValueError(f"latents must be [B, {config.out_channels}, t, h, w], not {list(latents.shape)}")
        if any(size % patch for size, patch in zip(latents.shape[2:], config.patch_size, strict=True)):
            raise ValueError(f"latents are {list(latents.shape[2:])}; t, h, w must be multiples of {config.patch_size}")
        if timestep.shape != latents.shape[:1]:
            raise ValueError(f"timestep must be [{latents.shape[0]}], not {list(timestep.shape)}")
        want = [latents.shape[0], config.condition_channels, *latents.shape[2:]] if config.condition_channels else None
        given = None if condition is None else list(condition.shape)
        if given != want:
            raise ValueError(f"image_condition must be {want} for {config.variant}, not {given}")

    def _check_prepared(self, context: PreparedContext, batch: int, one_by_one: bool) -> None:
        keys = context.blocks[0]
        rows = {len(it) for it in (keys.k, keys.image_k) if it is not None} - {1}
        if len(rows) > 1:
            raise ValueError(f"context has a batch of {len(keys.k)}, but the picture's is {min(rows)}")
        if batch > 1 and not rows <= {batch}:
            raise ValueError(f"context has a batch of {max(rows)}; the latents' is {batch}, and 1 serves them all")
        if batch > 1 and one_by_one:
            raise ValueError(f"one_by_one is for several prompts of one video; the latents' batch is {batch}")
        if keys.image_k is None and self.config.variant in ("i2v", "flf2v"):
            raise ValueError("the context was prepared without image_context; an image transformer needs it")

    def _check_controls(
        self,
        latents: torch.Tensor,
        vace: Sequence[VaceContext],
        camera: torch.Tensor | None,
        reference: torch.Tensor | None,
    ) -> None:
        config = self.config
        batch, channels, frames, rows, columns = latents.shape
        shapes: list[tuple[str, torch.Tensor | None, list[int] | None]] = [
            ("reference", reference, [batch, channels, rows, columns] if config.reference else None),
        ]
        rays = config.camera_channels
        size = [frames, rows * CAMERA_SCALE, columns * CAMERA_SCALE]
        shapes.append(("camera", camera, None if rays is None else [batch, rays, *size]))
        control = [batch, config.vace_channels, frames, rows, columns] if config.vace_layers else None
        shapes += [("a vace control", each.latents, control) for each in vace]
        for name, value, want in shapes:
            if value is None:
                continue
            if want is None:
                raise ValueError(f"this is a {config.variant} transformer; it takes no {name.removeprefix('a ')}")
            if list(value.shape) != want:
                raise ValueError(f"{name} must be {want}, not {list(value.shape)}")


@torch.no_grad()
def initialise(dit: DiT) -> None:
    """Initialise a fresh transformer for training (Wan-Video/Wan2.1: wan/modules/model.py, ``init_weights``)."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.patch_embedding.weight.flatten(1))
    for stack in (dit.text_embedding, dit.time_embedding):
        for layer in stack:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
    for name, parameter in dit.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=1 / math.sqrt(dit.config.dim))
    nn.init.zeros_(dit.head.head.weight)
    if dit.config.vace_layers:  # the control branch adds nothing at first
        for block in dit.vace_blocks:
            nn.init.zeros_(block.after_proj.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(dit.vace_blocks[0].before_proj.weight)  # type: ignore[union-attr, arg-type]
