"""The network that a run trains, as its method asks: with an adapter beside it, whole, or from nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cygnet.assembly import LoadedModel, load_dit
from cygnet.errors import RequestError, UnsupportedError
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT, initialise
from cygnet.models.lora import Adapters, adaptable, fresh_adapters
from cygnet.ops.quantised import quantise_rows
from cygnet.pipelines.sizes import num_tokens
from cygnet.runtime.block_swap import BlockSwap
from cygnet.runtime.compile import Compile, compile_blocks, missing_for_compiling, pays
from cygnet.runtime.eight_bit import keep_in_eight_bits
from cygnet.runtime.execution import Execution
from cygnet.runtime.streaming import streamed_names
from cygnet.training.config import MemoryConfig, OptimizerConfig, TrainConfig
from cygnet.training.memory import checkpointed
from cygnet.training.optimizers import optimizers_for

log = logging.getLogger(__name__)

STACKS = ("blocks",)
SAME_KERNEL = Execution(attention="torch")
"""For passes with and without gradients: what a model is held to must not differ by the kernel."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Network:
    """The transformer, and what of it is trained."""

    dit: DiT
    trained: nn.Module
    """The adapters, or the transformer itself."""
    adapters: Adapters | None
    autocast: torch.dtype | None
    """The type of products where the weights themselves are float32; None where the weights' own type decides."""
    close: Callable[[], None] = lambda: None
    before: DiT | None = None
    """The transformer as it was before the training, for runs that preserve; with an adapter it is the base itself."""

    @contextmanager
    def as_before(self) -> Iterator[DiT]:
        """The transformer as it was before the training, for the length of a ``with`` block."""
        if self.adapters is None:
            assert self.before is not None
            yield self.before
            return
        with self.adapters.away(self.dit):
            yield self.dit

    def precision(self) -> AbstractContextManager[Any]:
        """In which products are computed, for the length of a ``with`` block."""
        kind = self.autocast
        return nullcontext() if kind is None else torch.autocast(self.dit.device.type, dtype=kind)

    def drift(self, *given: torch.Tensor | None) -> torch.Tensor:
        """How far the transformer's answer to ``given`` has moved from that of before the training."""
        with self.precision():
            with torch.no_grad(), self.as_before() as before:
                wanted = before(*given)
            moved: torch.Tensor = (self.dit(*given) - wanted).square().mean()
        return moved


def architecture(config: TrainConfig, base: DiTConfig) -> DiTConfig:
    """What is trained: the model's own architecture, or for ``scratch`` the one that its section describes."""
    if config.method != "scratch":
        return base
    given = {name: value for name, value in config.scratch.model_dump().items() if value is not None}
    try:
        return replace(base, **given)
    except ValueError as error:
        raise RequestError(f"scratch: {error}", field="scratch") from None


def build_network(config: TrainConfig, model: LoadedModel, device: torch.device) -> Network:
    """The transformer on ``device``, ready to train.

    Only text-to-video and image-to-video can be trained so far: anything else is a RequestError.
    """
    base = model.components.dit
    _check_variant(base)
    place = model.weights["dit"].file.path
    if config.method == "scratch":
        torch.manual_seed(config.seed)
        dit = DiT(architecture(config, base))
        initialise(dit)
    else:
        dit = load_dit(place, kept_dtype(config), "cpu", execution=SAME_KERNEL)
    preserves = config.method == "full" and config.preserve.wanted
    before = load_dit(place, DTYPES[config.memory.dtype], device, execution=SAME_KERNEL) if preserves else None
    return trainable(config, dit, device, before)


def _check_variant(base: DiTConfig) -> None:
    if base.variant not in ("t2v", "i2v"):
        raise RequestError(
            f"model is {base.variant}; text-to-video and image-to-video models can be trained", field="model"
        )


def check_network(config: TrainConfig, base: DiTConfig, device: torch.device) -> None:
    """Raise :class:`~cygnet.errors.RequestError` as :func:`build_network` would for a model of shape ``base``."""
    _check_variant(base)
    shape = architecture(config, base)
    _compiles(config, device)
    if config.method == "lora":
        check_memory(config.memory, shape.num_layers)
        with torch.device("meta"):
            one = DiT(replace(shape, num_layers=1))
        _adapted(one, config.lora.targets)


def kept_dtype(config: TrainConfig) -> torch.dtype:
    """In what the transformer's matrices are kept: those that are trained in float32."""
    return DTYPES[config.memory.dtype] if config.method == "lora" else torch.float32


def trainable(config: TrainConfig, dit: DiT, device: torch.device, before: DiT | None = None) -> Network:
    """What is to be trained of ``dit``, set up as the configuration says; ``before`` for runs that preserve."""
    if config.method == "lora":
        network = _with_adapters(config, dit, device)
    else:
        dtype = DTYPES[config.memory.dtype]
        dit = dit.to(device).requires_grad_(True)
        network = Network(dit, dit, None, None if dtype == torch.float32 else dtype, before=before)
    patches_as_products(network.dit)
    checkpointed(network.dit.blocks, config.memory.checkpointing)
    mode = _compiles(config, device)
    if mode == "auto" and _would_pay(config, dit, device) and (missing := missing_for_compiling(device.type)):
        log.warning('blocks are not compiled, as memory.compile = "auto" would have them be: %s', missing)
    compile_blocks(network.dit, STACKS, mode, device, learning=True)
    return network


def _compiles(config: TrainConfig, device: torch.device) -> Compile:
    """Whether blocks are compiled; "auto" is for processors alone, where it was measured.

    There it compiles what is in bfloat16, which is a LoRA's base; other methods keep their stream in float32.
    """
    wanted, memory = config.memory.compile_, config.memory
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if many and wanted is True:
        raise RequestError(
            "memory.compile is for one process so far; leave it out, or train without torchrun", field="memory.compile"
        )
    if many or memory.block_swap or memory.base != "as_dtype" or device.type == "meta":
        return False
    return False if wanted == "auto" and device.type != "cpu" else wanted


def _would_pay(config: TrainConfig, dit: DiT, device: torch.device) -> bool:
    """Whether "auto" compiles for the longest clips: by the stream, whose type autocast leaves float32."""
    tokens = max(num_tokens(max(config.data.frames), *size) for size in config.data.shapes)
    return pays(device.type, kept_dtype(config), tokens, dit.config.dim)


def check_memory(memory: MemoryConfig, blocks: int) -> None:
    """Raise :class:`~cygnet.errors.RequestError` for what an adapter's base of so many blocks cannot be held by."""
    if memory.block_swap and memory.checkpointing == "none":
        raise RequestError(
            'memory.block_swap needs memory.checkpointing other than "none": a block must be able to go between its '
            "forward and its backward pass",
            field="memory.block_swap",
        )
    if memory.base != "as_dtype" and memory.checkpointing == "none":
        raise RequestError(
            'memory.base in 8 bits needs memory.checkpointing other than "none": otherwise the backward pass keeps '
            "every matrix as it was widened, and nothing is saved",
            field="memory.base",
        )
    if memory.block_swap and memory.base != "as_dtype":
        raise RequestError(
            "memory.block_swap and memory.base exclude each other; choose one", field="memory.block_swap"
        )
    if memory.compile_ is True and (memory.block_swap or memory.base != "as_dtype"):
        raise RequestError(
            "memory.compile goes with the whole base on the device in memory.dtype; leave out memory.block_swap and "
            "memory.base, or memory.compile",
            field="memory.compile",
        )
    if memory.block_swap > blocks:
        raise RequestError(
            f"memory.block_swap is {memory.block_swap}; the model has {blocks} blocks",
            field="memory.block_swap",
        )


def _with_adapters(config: TrainConfig, dit: DiT, device: torch.device) -> Network:
    memory, lora = config.memory, config.lora
    dit.requires_grad_(False)
    check_memory(memory, len(dit.blocks))
    layers = _adapted(dit, lora.targets)
    adapters = fresh_adapters(dit, layers, rank=lora.rank, alpha=lora.alpha, seed=config.seed).to(device)
    close: Callable[[], None] = lambda: None  # noqa: E731
    if memory.base != "as_dtype":
        quantise_matrices(dit, torch.float8_e4m3fn if memory.base == "fp8" else torch.int8)
    if memory.block_swap:
        # Matrices alone: the backward pass of the prompt's keys, which comes after all blocks, reads their norms.
        close = BlockSwap(dit, STACKS, device, names=swapped_names(dit, memory.block_swap)).close
    else:
        dit.to(device)
    attach = adapters.install if _compiles(config, device) else adapters.attach
    attach(dit)
    return Network(dit, adapters, adapters, None, close)


def _adapted(dit: DiT, targets: Sequence[str]) -> list[str]:
    """The layers that get an adapter."""
    layers = [name for name in adaptable(dit) if name.endswith(tuple(f".{target}" for target in targets))]
    unknown = [t for t in targets if not any(name.endswith(f".{t}") for name in layers)]
    if unknown:
        first = [name.split(".", 2)[2] for name in adaptable(dit) if name.startswith("blocks.0.")]
        raise RequestError(
            f"lora.targets: no block has a layer {unknown[0]!r}; there are: {', '.join(first)}", field="lora.targets"
        )
    return layers


def swapped_names(dit: DiT, count: int) -> list[str]:
    """The weights that are swapped of the last ``count`` blocks."""
    first = len(dit.blocks) - count
    return [name for name in streamed_names(dit, STACKS) if int(name.split(".")[1]) >= first]


@torch.no_grad()
def quantise_matrices(dit: DiT, kind: torch.dtype) -> None:
    """Keep the blocks' matrices in 8 bits with a scale for each row; they are widened when they run."""
    for name in streamed_names(dit, STACKS):
        weight = dit.get_parameter(name).to(torch.float32, copy=True)
        keep_in_eight_bits(dit, {name: quantise_rows(weight, kind)}, dit.device)


def patches_as_products(dit: DiT) -> None:
    """Have the patch embedding run as one matrix product, which it is: its kernel is as large as its stride.

    oneDNN's bfloat16 weight gradient of 3-D convolutions crashes or corrupts memory on CPUs with AMX (see
    :mod:`cygnet.ops.conv`); the gradient of a product is sound everywhere.
    """
    layer = dit.patch_embedding
    pt, ph, pw = (int(side) for side in layer.kernel_size)

    def forward(x: torch.Tensor) -> torch.Tensor:
        batch, channels, t, h, w = x.shape
        cells = x.view(batch, channels, t // pt, pt, h // ph, ph, w // pw, pw)
        cells = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B, t, h/2, w/2, C * pt * ph * pw]
        return F.linear(cells, layer.weight.flatten(1), layer.bias).movedim(-1, 1)

    layer.forward = forward  # type: ignore[method-assign, assignment]


def build_optimizers(settings: OptimizerConfig, module: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimisers of a module's trained weights; matrices are decayed, vectors are not.

    Raises :class:`~cygnet.errors.UnsupportedError` if the 8-bit one is asked for and its package is missing.
    """
    if settings.name == "muon":
        matrices = [
            name
            for name, p in module.named_parameters()
            if p.requires_grad and (p.ndim == 2 and ".blocks." in f".{name}" and "modulation" not in name)
        ]
        other = settings.other_rate if settings.other_rate is not None else settings.rate / 2
        return optimizers_for(
            module, matrices, matrix_rate=settings.rate, other_rate=other, decay=settings.weight_decay
        )
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if settings.name == "adamw" else _adamw_8bit()
    return [kind(kept, lr=settings.rate, betas=settings.betas)]


def check_optimizer(settings: OptimizerConfig) -> None:
    """Raise :class:`~cygnet.errors.UnsupportedError` if its package is missing."""
    if settings.name == "adamw8bit":
        _adamw_8bit()


def _adamw_8bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UnsupportedError(
            'optimizer.name is "adamw8bit", which needs the package bitsandbytes (pip install bitsandbytes); or use '
            '"adamw"'
        ) from error
    return AdamW8bit  # type: ignore[no-any-return]


def count(parameters: Iterable[torch.Tensor]) -> int:
    """How many values they hold together."""
    return sum(p.numel() for p in parameters)
