"""Many processes for one training, started by torchrun: weights in shards (FSDP2), clips shared out, tokens shared out.

Every process draws the same step and trains on its own clips of it, so the loss is that of one process but for the
order of sums. A checkpoint holds whole tensors and can be gone on with by another number of processes.

Legend: B batch, N heads, L tokens, K head width, P processes that share a clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cygnet.errors import RequestError
from cygnet.models.dit.model import DiT
from cygnet.ops.rope import RotaryTable
from cygnet.training.config import TrainConfig
from cygnet.training.networks import Network
from cygnet.types import Attention


@dataclass(frozen=True)
class Share:
    """Which of the processes this one is: it trains on every ``of``-th clip, from ``number`` on."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """The processes of a training; one by default."""

    rank: int = 0
    world: int = 1
    context: int = 1
    tokens: dist.ProcessGroup | None = None
    """Those that share a clip's tokens with this one."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Its clips: processes that share tokens have the same ones."""
        return Share(self.rank // self.context, self.world // self.context)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()

    def any(self, answer: bool) -> bool:
        """Whether one of them says yes."""
        return self.mean(float(answer)) > 0

    def mean(self, value: float) -> float:
        """Over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=_device_of_backend())
        dist.all_reduce(total)
        return float(total) / self.world

    def reduce_gradients(self, network: Network) -> None:
        """Average the gradients of what every process holds whole; those in shards are averaged as they arise."""
        if self.world == 1:
            return
        for p in network.trained.parameters():
            if p.requires_grad and not isinstance(p, DTensor):
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                dist.all_reduce(p.grad)
                p.grad /= self.world

    def spread(self, network: Network) -> None:
        """Put the transformer's weights into shards, and its tokens, if they are shared, onto their processes."""
        if self.world == 1:
            return
        if self.context > 1:
            assert self.tokens is not None
            share_tokens(network.dit, self.tokens)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(network.dit.device.type, (self.world,))
        adapted = set(network.adapters.parameters()) if network.adapters is not None else set()
        for block in network.dit.blocks:
            # The text's keys are computed before any block runs, so their layers gather their weights themselves.
            for name in ("k", "v", "norm_k", "k_img", "v_img", "norm_k_img"):
                layer = getattr(block.cross_attn, name, None)
                if layer is not None and any(True for _ in layer.parameters()):
                    fully_shard(layer, mesh=mesh, ignored_params=adapted)
            fully_shard(block, mesh=mesh, ignored_params=adapted)
        fully_shard(network.dit, mesh=mesh, ignored_params=adapted)


ALONE = Group()
"""One process."""


def _device_of_backend() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


@contextmanager
def many_processes(config: TrainConfig) -> Iterator[Group]:
    """The group that torchrun has started this process in; alone without it.

    Raises :class:`~cygnet.errors.RequestError` if the batch, the heads or the processes cannot be shared out so, or
    the method is for one process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    context = config.parallel.context
    if world % context:
        raise RequestError(
            f"parallel.context is {context}, which does not divide the {world} processes; start a multiple of it with "
            "torchrun",
            field="parallel.context",
        )
    if world == 1:
        yield ALONE
        return
    if config.method == "vae":
        raise RequestError(
            f"method vae trains in one process, but torchrun started {world}; run cygnet train without torchrun",
            field="method",
        )
    shares = world // context
    if config.batch % shares:
        raise RequestError(
            f"batch is {config.batch}, which {shares} shares of the processes do not divide; give a multiple of it",
            field="batch",
        )
    if config.preserve.wanted and config.preserve.batch % shares:
        raise RequestError(
            f"preserve.batch is {config.preserve.batch}; {shares} shares of the processes do not divide it",
            field="preserve.batch",
        )
    if config.optimizer.name == "muon":
        raise RequestError(
            'optimizer.name "muon" works on whole matrices; use "adamw" with many processes', field="optimizer.name"
        )
    if config.memory.block_swap:
        raise RequestError(
            "memory.block_swap is for one process; shards save memory in its place", field="memory.block_swap"
        )
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        rank = dist.get_rank()
        tokens = None
        for first in range(0, world, context):
            group = dist.new_group(list(range(first, first + context)))
            if first <= rank < first + context:
                tokens = group
        yield Group(rank=rank, world=world, context=context, tokens=tokens)
    finally:
        dist.destroy_process_group()


# Tokens shared out ---------------------------------------------------------------------------------------------------


def share_tokens(dit: DiT, group: dist.ProcessGroup) -> None:
    """Have each process of ``group`` compute its part of every clip's tokens (DeepSpeed-Ulysses, arXiv 2309.14509).

    Attached from outside: tokens are cut before the first block and joined before the head; within self-attention each
    process has all tokens of some heads. Raises :class:`~cygnet.errors.RequestError` if heads or tokens do not divide.
    """
    parts, mine = dist.get_world_size(group), dist.get_rank(group)
    if dit.config.num_heads % parts:
        raise RequestError(
            f"parallel.context is {parts}, which does not divide the {dit.config.num_heads} heads",
            field="parallel.context",
        )

    def cut(x: torch.Tensor, dim: int) -> torch.Tensor:
        if x.shape[dim] % parts:
            raise RequestError(
                f"parallel.context is {parts}, which does not divide the {x.shape[dim]} tokens of a clip; choose other "
                "data.sizes or data.frames",
                field="parallel.context",
            )
        return x.chunk(parts, dim=dim)[mine]

    def before_block(number: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x, time_modulation, rope, *rest = args
            x = cut(x, 1) if number == 0 else x
            return (x, time_modulation, RotaryTable(cut(rope.cos, 0), cut(rope.sin, 0)), *rest)

        return hook

    for number, block in enumerate(dit.blocks):
        block.register_forward_pre_hook(before_block(number))
        attention = block.self_attn.attention  # type: ignore[union-attr]
        block.self_attn.attention = _ByHeads(cast(Attention, attention), group)  # type: ignore[union-attr]
    dit.head.register_forward_pre_hook(lambda _, args: (_joined(args[0], group), *args[1:]))


class _ByHeads:
    """Attention over tokens that are shared out: heads are exchanged for tokens, and back."""

    def __init__(self, attention: Attention, group: dist.ProcessGroup) -> None:
        self._attention, self._group = attention, group

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """``[B, N, L/P, K]`` each -> ``[B, N, L/P, K]``."""
        q, k, v = (_exchanged(x, 1, 2, self._group) for x in (q, k, v))  # [B, N/P, L, K]
        return _exchanged(self._attention(q, k, v, bias, scale), 2, 1, self._group)


def _exchanged(x: torch.Tensor, cut: int, join: int, group: dist.ProcessGroup) -> torch.Tensor:
    return cast(torch.Tensor, _Exchange.apply(x, cut, join, group))  # type: ignore[no-untyped-call]


def _joined(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return cast(torch.Tensor, _Join.apply(x, group))  # type: ignore[no-untyped-call]


class _Exchange(torch.autograd.Function):
    """Every process gives its ``cut``-th part of one axis to each other and gets their parts of another."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cut: int, join: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.how = (join, cut, group)
        parts = dist.get_world_size(group)
        sent = torch.stack(x.chunk(parts, dim=cut))
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=group)
        return torch.cat(got.unbind(), dim=join)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _exchanged(grads[0], *ctx.how), None, None, None


class _Join(torch.autograd.Function):
    """All tokens on every process; their gradients go back to where they came from, added up."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].contiguous()
        dist.all_reduce(total, group=ctx.group)
        return total.chunk(dist.get_world_size(ctx.group), dim=1)[dist.get_rank(ctx.group)].contiguous(), None


# Whole tensors in checkpoints ----------------------------------------------------------------------------------------


class WholeModule:
    """A module's trained weights as whole tensors, however they are spread; every process must call it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Whole tensors by name."""
        return {name: _whole(value) for name, value in self._module.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Undo :meth:`state_dict`."""
        own = self._module.state_dict()
        if own.keys() != state.keys():
            raise RequestError(
                "the checkpoint holds other weights than this run trains; choose another output", field="output"
            )
        for name, value in own.items():
            value.copy_(_like(state[name], value))


class WholeOptimizer:
    """An optimiser's state as whole tensors."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with whole tensors."""
        state = self._optimizer.state_dict()
        rows = {
            number: {name: _whole(value) if isinstance(value, torch.Tensor) else value for name, value in row.items()}
            for number, row in state["state"].items()
        }
        return {**state, "state": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        rows = {
            number: {
                name: _like(value, p) if isinstance(value, torch.Tensor) and value.shape == p.shape else value
                for name, value in row.items()
            }
            for (number, row), p in zip(sorted(state["state"].items()), parameters, strict=False)
        }
        self._optimizer.load_state_dict({**state, "state": rows})


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
