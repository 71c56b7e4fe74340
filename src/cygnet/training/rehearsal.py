"""Two steps of a training, gone through over shapes: what they take is counted, not modelled.

The code of the run itself goes over tensors without values: the transformer as it is trained, its blocks that forget
and compute again, the loss, the backward pass, the optimiser. Two and three blocks tell what all of them take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.planning.stages import Demand, Grid, Laps, on_meta, over_blocks
from cygnet.runtime.block_swap import swapped_bytes
from cygnet.runtime.flops import Kind, Work
from cygnet.runtime.trace import HEAVY, Ledger
from cygnet.solvers import add_noise
from cygnet.training.config import TrainConfig
from cygnet.training.flow import Draw, FlowMatching
from cygnet.training.loop import Piece, gradients
from cygnet.training.networks import (
    DTYPES,
    STACKS,
    Network,
    build_optimizers,
    check_memory,
    count,
    kept_dtype,
    swapped_names,
    trainable,
)
from cygnet.training.state import Average

META = torch.device("meta")
SMALL = 32 * 2**20
"""Bytes from which the C library on Linux gives every tensor a mapping of its own, given back when it is freed."""
_FUSED: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_PIECES = 2
"""Parts of a step that are gone through at most; the others are like them."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a training takes. Sizes are bytes."""

    trained: int
    """Values that are trained."""
    frozen: int
    """Of weights that are not trained, on the device."""
    swapped: int
    """Of weights that stay on the host and visit the device."""
    learning: int
    """Of weights that are trained, their moving average and the optimiser's."""
    demand: Demand
    """Of one step, beside all these; its peak has the gradients in it."""
    churn: int
    """Of small tensors that one block makes in a step."""
    small: float
    """The share of small tensors in all that it makes."""


@dataclass(kw_only=True)
class _Counts:
    """What is known of a network of so many blocks."""

    trained: int
    frozen: int
    swapped: int
    weights: int
    state: int
    made: int
    small: int
    learning: Counter[tuple[Kind, int]]
    """Operations of the gradients, by kind and width."""
    moving: Counter[tuple[Kind, int]]
    """The same of the update."""


def rehearse(config: TrainConfig, shape: DiTConfig, grid: Grid, *, text_rows: int, image_rows: int) -> Rehearsal:
    """A step on latents of ``grid``, as many clips at once as the configuration says; RequestError as for the run."""
    check_memory(config.memory, shape.num_layers)
    found: dict[int, _Counts] = {}
    pieces = min(config.accumulate, _PIECES)

    def laps(blocks: int) -> Laps:
        shorter = replace(shape, num_layers=blocks)
        ways, found[blocks] = _laps(config, shorter, grid, text_rows, image_rows, pieces)
        return ways

    learnt, moved = over_blocks(laps, shape.num_layers)
    least, most = min(found), max(found)
    few, many, more = found[least], found[most], shape.num_layers - most

    def whole(name: str) -> int:
        """Of all blocks, from those that were gone through."""
        last, first = int(getattr(many, name)), int(getattr(few, name))
        return last + more * (last - first)

    again = config.accumulate / pieces  # of what is in every part of a step
    work: list[Work] = []
    for times, (short, long) in ((again, (few.learning, many.learning)), (1.0, (few.moving, many.moving))):
        for (kind, width), flops in long.items():
            work.append(Work(kind, times * (flops + more * (flops - short[kind, width])), width))
    cost = replace(
        learnt,
        peak=max(learnt.peak, moved.peak) - whole("state"),
        moved=round(again * learnt.moved) + moved.moved,
        kernels=round(again * learnt.kernels) + moved.kernels,
    )
    state = whole("state")
    if config.optimizer.name == "adamw8bit":  # gone through as the plain one: two averages of 4 bytes, not of one
        state -= 6 * whole("trained")
    swapped, frozen = whole("swapped"), whole("frozen")
    if config.memory.block_swap:
        block = (many.swapped - few.swapped) if most > least else many.swapped // most
        swapped = config.memory.block_swap * block
        sizes = {f"{STACKS[0]}.{number}.": block for number in range(config.memory.block_swap)}
        frozen += swapped_bytes(sizes, STACKS) - swapped
    made, small = (
        getattr(many, name) - getattr(few, name) if most > least else getattr(many, name) for name in ("made", "small")
    )
    return Rehearsal(
        trained=whole("trained"),
        frozen=frozen,
        swapped=swapped if config.memory.block_swap else 0,
        learning=whole("weights") + state,
        demand=Demand(cost=cost, work=tuple(work)),
        churn=round(again * small / (1 if most > least else most)),
        small=small / made,
    )


def _laps(
    config: TrainConfig, shape: DiTConfig, grid: Grid, text_rows: int, image_rows: int, pieces: int
) -> tuple[Laps, _Counts]:
    """The second of two steps, in which the optimiser has its averages: gradients, and then the update."""
    plain = config.model_copy(
        update={
            "memory": config.memory.model_copy(update={"block_swap": 0}),
            "optimizer": config.optimizer.model_copy(
                update={"name": "adamw" if config.optimizer.name == "adamw8bit" else config.optimizer.name}
            ),
        }
    )
    low = _Autocast(None if config.method == "lora" else DTYPES[config.memory.dtype])
    kind = partial(DiT, attention=low.attention)
    dit = on_meta(kind, shape, kept_dtype(config))
    preserves = config.preserve.wanted
    before = on_meta(kind, shape, DTYPES[config.memory.dtype]) if preserves and config.method == "full" else None
    network = trainable(plain, dit, META, before)
    low.apply(network.dit)
    network = replace(network, autocast=None)
    parts = list(_pieces(config, network, low, shape, grid, text_rows, image_rows, pieces))
    with _Counting() as ledger:
        optimizers = build_optimizers(plain.optimizer, network.trained)
        average = Average(network.trained, config.optimizer.average) if config.optimizer.average else None
        for _ in range(2):
            ledger.begin()
            gradients(network.trained, optimizers, parts, config.optimizer.clip)
            learnt, learning = ledger.cost, ledger.work
            ledger.mark()
            ledger.work = Counter()
            for optimizer in optimizers:
                optimizer.step()
            if average is not None:
                average.update(network.trained)
            moved = ledger.cost
    held = [value for each in optimizers for state in each.state.values() for value in state.values()]
    state = sum(value.nbytes for value in held if isinstance(value, torch.Tensor))
    state += 0 if average is None else sum(value.nbytes for value in average.shadow.values())
    network.trained.zero_grad(set_to_none=True)
    trained = [value for value in network.trained.parameters() if value.requires_grad]
    mine = {id(value) for value in trained}
    names = swapped_names(dit, len(dit.blocks)) if config.memory.block_swap else ()
    others = [*dit.parameters(), *dit.buffers(), *(() if before is None else before.parameters())]
    return (learnt, moved), _Counts(
        trained=count(trained),
        frozen=sum(value.nbytes for value in others if id(value) not in mine),
        swapped=sum(dit.get_parameter(name).nbytes for name in names),
        weights=sum(value.nbytes for value in trained),
        state=state,
        made=ledger.made,
        small=ledger.small,
        learning=learning,
        moving=ledger.work,
    )


def _pieces(
    config: TrainConfig,
    network: Network,
    low: _Autocast,
    shape: DiTConfig,
    grid: Grid,
    text_rows: int,
    image_rows: int,
    pieces: int,
) -> Iterator[Piece]:
    """As :meth:`FlowRun.pieces` makes them."""
    objective = FlowMatching()

    def given(clips: int) -> tuple[torch.Tensor, Draw, tuple[torch.Tensor | None, ...]]:
        latents = torch.empty(clips, shape.out_channels, *grid, device=META)
        condition = torch.empty(clips, shape.condition_channels, *grid, device=META)
        picture = None if shape.image_dim is None else torch.empty(clips, image_rows, shape.image_dim, device=META)
        text = torch.empty(clips, text_rows, shape.text_dim, device=META)
        draw = Draw(torch.empty(clips, device=META), torch.empty_like(latents))
        return latents, draw, (text, picture, condition if shape.condition_channels else None)

    def loss() -> torch.Tensor:
        latents, draw, rest = given(-(-config.batch // config.accumulate))
        with low.forward():
            return objective(network.dit, latents, *rest, draw=draw)  # type: ignore[arg-type, misc]

    def drift() -> torch.Tensor:
        latents, draw, rest = given(config.preserve.batch)
        with low.forward():
            return network.drift(add_noise(latents, draw.noise, draw.sigma), 1000 * draw.sigma, *rest)

    for _ in range(pieces):
        yield Piece(loss)
    if config.preserve.wanted:
        yield Piece(drift)


class _Autocast:
    """What ``torch.autocast`` does to products and leaves out on tensors without values.

    Weights that were cast stay until the end of a forward pass.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._cast: dict[int, torch.Tensor] | None = None

    def apply(self, dit: DiT) -> None:
        """Have the linear layers of ``dit`` multiply so."""
        for layer in dit.modules():
            if self._dtype is not None and isinstance(layer, torch.nn.Linear):
                layer.forward = partial(self._linear, layer)  # type: ignore[method-assign]

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The length of a forward pass."""
        self._cast = {}
        try:
            yield
        finally:
            self._cast = None

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """The processor's fused kernel by its own name: without values torch would choose another."""
        q, k, v, bias = (self._low(value) for value in (q, k, v, bias))
        return _FUSED(q, k, v, 0.0, False, attn_mask=bias, scale=scale)[0]  # type: ignore[no-any-return]

    def _linear(self, layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self._low(x), self._low(layer.weight), self._low(layer.bias))

    def _low(self, value: Any) -> Any:
        if self._dtype is None or value is None or value.dtype != torch.float32:
            return value
        if self._cast is None or not isinstance(value, torch.nn.Parameter):
            return value.to(self._dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(self._dtype)
        return self._cast[id(value)]


class _Counting(Ledger):
    """Operations and small tensors, beside what the ledger keeps account of."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.mark()
        self.made = self.small = 0
        self.work: Counter[tuple[Kind, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        name = func.overloadpacket.__name__
        if name in HEAVY and func.overloadpacket in flop_registry:
            inner = args[1] if name in ("addmm", "baddbmm") else args[0]
            flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.work["matmul", int(inner.shape[-1])] += flops
        elif func is _FUSED.default:
            q, k, v = (value.shape for value in args[:3])
            self.work["attention", int(k[2])] += sdpa_flop_count(q, k, v)
        elif func is _FUSED_BACKWARD.default:
            gradient, q, k, v = (value.shape for value in args[:4])
            self.work["attention", int(k[2])] += sdpa_backward_flop_count(gradient, q, k, v)
        return out

    def _enter(self, tensor: torch.Tensor, *, made: bool) -> bool:
        fresh = super()._enter(tensor, made=made)
        if fresh:
            size = tensor.untyped_storage().nbytes()
            self.made += size
            self.small += size if size < SMALL else 0
        return fresh
