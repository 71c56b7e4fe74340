"""Low-rank adapters beside a network's layers: trained, or run where the layers' own weights must stay as they are.

An adapter adds ``scale * up(down(x))`` to what a layer gives. It is attached from outside by a hook: the network keeps
its modules, names and weights, whether these are trained, in 8 bits, or brought in block by block. The adapters are a
module of their own, with their own parameters and state.

Source: LoRA, arXiv 2106.09685. Legend: R rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle


class LowRank(nn.Module):
    """``x [..., in] -> scale * (x @ down.T) @ up.T``, ``[..., out]`` in the dtype of x.

    ``down [R, in]`` and ``up [out, R]`` are parameters, cast to the dtype of x when they run; keep them in float32 to
    train them.
    """

    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, down: torch.Tensor, up: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"down {list(down.shape)} and up {list(up.shape)} must be [R, in] and [out, R]")
        self.down, self.up, self.scale = nn.Parameter(down), nn.Parameter(up), scale

    @classmethod
    def fresh(
        cls, in_features: int, out_features: int, rank: int, alpha: float, generator: torch.Generator | None = None
    ) -> LowRank:
        """A new one in float32 that changes nothing yet: ``up`` is zero, ``down`` uniform as a linear layer's own."""
        bound = 1 / math.sqrt(in_features)
        down = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        return cls(down, torch.zeros(out_features, rank), alpha / rank)

    @property
    def rank(self) -> int:
        """The inner width."""
        return self.down.shape[0]

    @property
    def alpha(self) -> float:
        """``scale * rank``, as files store it."""
        return self.scale * self.rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        # Scaled where it is narrowest.
        narrow = F.linear(x, self.down.to(x.dtype)) * self.scale
        return F.linear(narrow, self.up.to(x.dtype))


class LowRankLinear(nn.Module):
    """A linear layer of any kind and the adapter beside it, as one layer that a compiler sees through."""

    def __init__(self, layer: nn.Module, branch: LowRank) -> None:
        super().__init__()
        self.layer, self.branch = layer, branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        out: torch.Tensor = self.layer(x)
        change: torch.Tensor = self.branch(x)
        return out + change.to(out.dtype)


class Adapters(nn.Module):
    """Low-rank adapters by the official name of their layer, such as ``blocks.0.self_attn.q``.

    Their state dict has ``<layer>.down`` and ``<layer>.up``.
    """

    def __init__(self, branches: Mapping[str, LowRank]) -> None:
        super().__init__()
        for name, branch in branches.items():
            _nest(self, name, branch)
        self._handles: list[RemovableHandle] = []
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []

    @property
    def branches(self) -> dict[str, LowRank]:
        """The adapters by layer."""
        return {name: module for name, module in self.named_modules() if isinstance(module, LowRank)}

    def attach(self, network: nn.Module) -> None:
        """Have every named layer of ``network`` add its adapter's result from now on, until :meth:`detach`.

        Adapters of several objects add up. The layers must take their input as first argument and give one tensor of
        ``[..., out]``. Raises ``ValueError`` if these are attached already, and for a layer of another shape;
        ``AttributeError`` for one that the network has not.
        """
        layers = self._layers(network)
        self._handles = [layers[name].register_forward_hook(_adding(branch)) for name, branch in self.branches.items()]

    def detach(self) -> None:
        """Leave the network as it was before :meth:`attach` or :meth:`install`."""
        for handle in self._handles:
            handle.remove()
        for parent, leaf, layer in self._replaced:
            setattr(parent, leaf, layer)
        self._handles, self._replaced = [], []

    def install(self, network: nn.Module) -> None:
        """Put a :class:`LowRankLinear` in the place of every named layer, until :meth:`detach`.

        Hooks keep a compiler away from what they hang on; this does not, and changes the network's names instead.
        Raises as :meth:`attach`.
        """
        layers = self._layers(network)
        for name, branch in self.branches.items():
            above, _, leaf = name.rpartition(".")
            parent = network.get_submodule(above)
            self._replaced.append((parent, leaf, layers[name]))
            setattr(parent, leaf, LowRankLinear(layers[name], branch))

    @contextmanager
    def away(self, network: nn.Module) -> Iterator[None]:
        """Detached from ``network`` for the length of a ``with`` block, then in their place again."""
        back = self.install if self._replaced else self.attach
        self.detach()
        try:
            yield
        finally:
            back(network)

    def _layers(self, network: nn.Module) -> dict[str, nn.Module]:
        """The layers that these adapters belong to, checked."""
        if self._handles or self._replaced:
            raise ValueError("these adapters are attached already; detach them first")
        layers: dict[str, nn.Module] = {}
        for name, branch in self.branches.items():
            layers[name] = network.get_submodule(name)
            have = _features(layers[name])
            if have is not None and have != (branch.down.shape[1], branch.up.shape[0]):
                raise ValueError(
                    f"the adapter of {name} is [{branch.up.shape[0]}, {branch.down.shape[1]}], but the layer is "
                    f"[{have[1]}, {have[0]}]"
                )
        return layers

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Attached for the length of a ``with`` block."""
        self.attach(network)
        try:
            yield
        finally:
            self.detach()


def adaptable(network: nn.Module, stacks: Collection[str] = ("blocks",)) -> list[str]:
    """The layers that adapters are usually trained for: all linear ones in the ``stacks`` of ``network``."""
    return [
        name
        for name, layer in network.named_modules()
        if name.split(".", 1)[0] in stacks and _features(layer) is not None
    ]


def fresh_adapters(
    network: nn.Module, layers: Collection[str], *, rank: int, alpha: float | None = None, seed: int = 0
) -> Adapters:
    """New adapters in float32 on the CPU for the named linear ``layers``, changing nothing yet; not attached.

    ``alpha`` is the rank by default. The same seed gives the same values whatever else was drawn before. Raises
    ``ValueError`` for a layer that is not linear.
    """
    generator = torch.Generator().manual_seed(seed)
    branches: dict[str, LowRank] = {}
    for name in layers:
        features = _features(network.get_submodule(name))
        if features is None:
            raise ValueError(f"{name} is no linear layer; adapters are for linear layers")
        branches[name] = LowRank.fresh(*features, rank, rank if alpha is None else alpha, generator)
    return Adapters(branches)


def _features(layer: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer of any kind (plain, 8-bit); None for another."""
    inputs, outputs = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def _adding(branch: LowRank) -> Any:
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = branch(inputs[0])
        return output + change.to(output.dtype)

    return add


def _nest(root: nn.Module, name: str, branch: LowRank) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, branch)
