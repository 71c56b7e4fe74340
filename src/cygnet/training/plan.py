"""How much memory and time a training will take, from shapes alone: nothing is loaded, only a block is traced.

The activations are counted, not guessed: one block runs on tensors without values, and everything that the backward
pass would keep is added up.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from cygnet.assembly import LoadedModel
from cygnet.checkpoints import without_weights
from cygnet.errors import RequestError
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.layers import Block, TextKeys
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable, fresh_adapters
from cygnet.ops.rope import RotaryTable
from cygnet.pipelines.sizes import num_tokens
from cygnet.runtime.memory import free_memory
from cygnet.runtime.precision import parse_device
from cygnet.runtime.streaming import streamed_names
from cygnet.training.config import TrainConfig
from cygnet.training.memory import kept_columns
from cygnet.training.networks import DTYPES, STACKS, architecture, count
from cygnet.training.start import open_model

TEXT_ROWS = 128
"""Of a long caption; padding is not computed."""
GRADIENTS_AND_MOMENTS = {"adamw": 12, "adamw8bit": 6, "muon": 8}
"""Bytes per trained value beside the value itself: gradient and the optimiser's averages."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes by what they hold, and seconds per step."""

    memory: dict[str, int]
    free: int
    trained: int
    tokens: int
    steps: int
    tera_operations: float
    rate: float
    """TFLOP/s of a matrix product on this device, measured."""
    step_seconds: float
    advice: str

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        """As one object."""
        return {**asdict(self), "total": self.total}


def plan_for(config: TrainConfig, model: LoadedModel | None = None) -> Plan:
    """Predict a run; ``model`` saves opening it. The autoencoder's training has no plan: a RequestError."""
    if config.method == "vae":
        raise RequestError("there is no plan for method vae; its memory is that of a crop", field="method")
    model = model or open_model(config)
    shape = architecture(config, model.components.dit)
    device = parse_device(config.device)
    width, height = max(config.data.shapes, key=lambda size: size[0] * size[1])
    tokens = num_tokens(max(config.data.frames), width, height)
    with without_weights():
        dit = DiT(shape)
    matrices = sum(dit.get_parameter(name).numel() for name in streamed_names(dit, STACKS))
    others = count(dit.parameters()) - matrices
    width_of = DTYPES[config.memory.dtype].itemsize
    memory: dict[str, int] = {}
    if config.method == "lora":
        adapters = _adapters(config, dit)
        trained = count(adapters.parameters())
        kept = 1 if config.memory.base != "as_dtype" else width_of
        swapped = config.memory.block_swap / shape.num_layers
        memory["frozen weights"] = int(matrices * kept * (1 - swapped)) + others * 4
        if swapped:
            memory["blocks on their way"] = int(2 * matrices / shape.num_layers * width_of)
    else:
        adapters, trained = None, count(dit.parameters())
    extra = GRADIENTS_AND_MOMENTS[config.optimizer.name] + (4 if config.optimizer.average else 0)
    memory["trained weights, gradients, optimiser"] = trained * (4 + extra)
    clips = max(1, config.batch // config.accumulate)
    memory["activations"] = activations(config, shape, tokens, clips)
    work = clips * config.accumulate * tera_operations(config, shape, tokens)
    rate = measured_rate(device, DTYPES[config.memory.dtype])
    return Plan(
        memory=memory,
        free=free_memory(device),
        trained=trained,
        tokens=tokens,
        steps=config.steps,
        tera_operations=work,
        rate=rate,
        step_seconds=work / rate,
        advice=_advice(config),
    )


def _adapters(config: TrainConfig, dit: DiT) -> nn.Module:
    layers = [name for name in adaptable(dit) if name.endswith(tuple(f".{target}" for target in config.lora.targets))]
    return fresh_adapters(dit, layers, rank=config.lora.rank)


def _advice(config: TrainConfig) -> str:
    if config.accumulate < config.batch:
        return "raise accumulate, or lower batch"
    if config.memory.checkpointing != "full":
        return 'set memory.checkpointing to "full"'
    if config.method == "lora" and config.memory.base == "as_dtype":
        return 'set memory.base to "fp8", or memory.block_swap'
    return "train on smaller or shorter clips"


def tera_operations(config: TrainConfig, shape: DiTConfig, tokens: int) -> float:
    """TFLOP of one clip's step: forward, backward, and what is computed again."""
    d, f, layers = shape.dim, shape.ffn_dim, shape.num_layers
    linear = layers * (tokens * (12 * d * d + 4 * d * f) + TEXT_ROWS * 4 * d * d)
    attention = layers * 4 * tokens * (tokens + TEXT_ROWS) * d
    # Frozen matrices need no gradient of their own: their backward is one product, not two.
    backward = linear * (1 if config.method == "lora" else 2) + attention * 2.5
    again = {"none": 0.0, "products": 0.0, "attention": float(linear), "full": float(linear + attention)}[
        config.memory.checkpointing
    ]
    return (linear + attention + backward + again) / 1e12


def measured_rate(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """TFLOP/s of a square matrix product, the best of a few."""
    a = torch.randn(side, side, device=device, dtype=dtype)

    def once() -> float:
        begun = time.perf_counter()
        for _ in range(4):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    return 4 * 2 * side**3 / min(once() for _ in range(5)) / 1e12


def activations(config: TrainConfig, shape: DiTConfig, tokens: int, clips: int) -> int:
    """Bytes that the backward pass finds kept at the moment when they are most."""
    block = _saved_by_block(config, shape, tokens, clips)
    if config.memory.checkpointing == "none":
        return shape.num_layers * block
    stream = clips * tokens * shape.dim * (4 if config.method != "lora" else DTYPES[config.memory.dtype].itemsize)
    columns = kept_columns(config.memory.checkpointing, shape.dim, shape.ffn_dim)
    kept = stream + clips * tokens * columns * DTYPES[config.memory.dtype].itemsize
    return shape.num_layers * kept + block


def _saved_by_block(config: TrainConfig, shape: DiTConfig, tokens: int, clips: int) -> int:
    dtype = DTYPES[config.memory.dtype]
    with torch.device("meta"):
        block = Block(shape, _Kept.attention)
        lora = config.method == "lora"
        if lora:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)
            block.requires_grad_(False)
        x = torch.empty(clips, tokens, shape.dim, dtype=dtype if lora else torch.float32, requires_grad=True)
        time_modulation = torch.empty(clips, 6, shape.dim)
        pairs = shape.dim // shape.num_heads // 2
        rope = RotaryTable(torch.empty(tokens, pairs), torch.empty(tokens, pairs))
        heads = (clips, shape.num_heads, TEXT_ROWS, shape.dim // shape.num_heads)
        keys = TextKeys(torch.empty(heads, dtype=dtype), torch.empty(heads, dtype=dtype), None)
        if lora:
            _attach(config, block)
        saved: dict[int, int] = {}
        held: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in saved and tensor.numel() and not _is_weight(tensor, block):
                saved[storage._cdata] = tensor.numel() * tensor.element_size()
                held.append(tensor)  # so that its storage's address is not given to another
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=dtype, enabled=not lora and dtype != torch.float32),
        ):
            block(x, time_modulation, rope, keys)
    return sum(saved.values())


def _is_weight(tensor: torch.Tensor, block: nn.Module) -> bool:
    place = tensor.untyped_storage()._cdata
    return any(p.untyped_storage()._cdata == place for p in block.parameters())


def _attach(config: TrainConfig, block: nn.Module) -> None:
    holder = nn.Module()
    holder.blocks = nn.ModuleList([block])
    layers = [n for n in adaptable(holder) if n.endswith(tuple(f".{target}" for target in config.lora.targets))]
    adapters = fresh_adapters(holder, layers, rank=config.lora.rank).to("meta")
    adapters.attach(holder)


class _Kept(torch.autograd.Function):
    """Stands for fused attention on tensors without values: it keeps what the fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(it) for it in ctx.saved_tensors[:3])

    @staticmethod
    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """In the signature of :class:`cygnet.types.Attention`."""
        return _Kept.apply(q, k, v)  # type: ignore[no-untyped-call, no-any-return]
