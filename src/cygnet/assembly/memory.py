"""What the weights of a network take in memory, from its header or its architecture alone."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from cygnet.assembly.arguments import Device, Dtype, Place, dtype_of
from cygnet.assembly.eight_bit import in_eight_bits
from cygnet.assembly.kinds import DECODING, KINDS, STACKS, STREAMED
from cygnet.assembly.sources import named_weights
from cygnet.checkpoints import ComponentConfig, ComponentWeights, without_weights
from cygnet.runtime.block_swap import swapped_bytes
from cygnet.runtime.memory import free_memory
from cygnet.runtime.plan import Weights, fits_alone
from cygnet.runtime.precision import parse_device
from cygnet.runtime.streaming import streamed_bytes, streamed_names
from cygnet.types import ComponentName


def fits(
    path: Place, component: ComponentName, dtype: Dtype = "auto", device: Device = "cpu", *, eight_bit: bool = False
) -> bool:
    """Whether the memory that is free on ``device`` holds this network and leaves room to work; reads its header."""
    weights, place = named_weights(path, component, None), parse_device(device)
    taken = weights_taken(weights, dtype_of(component, dtype, place))
    return fits_alone(taken.eight_bit if eight_bit else taken.whole, free_memory(place))


def weights_taken(
    weights: ComponentWeights, dtype: torch.dtype, decode_dtype: torch.dtype | None = None, fp8: bool = False
) -> Weights:
    """What a network's weights take in memory in ``dtype``, by how they are held; from its header.

    ``decode_dtype`` is that of the VAE's decoding half. With ``fp8`` the weights are rounded for fp8 products once they
    are loaded; what that gives back is not counted, for until then it is there.
    """
    taken = network_taken(weights.component, weights.config, dtype, decode_dtype)
    plan = in_eight_bits(weights, stored=not fp8, rounded=fp8)
    beside = plan.branches.parameters * dtype.itemsize  # of LoRAs, however the matrices beside them are held
    whole = taken.whole + beside
    if fp8:
        return replace(taken, whole=whole).rounded_when_loaded()
    kept = sum(weights.infos[name].numel for name in plan.matrices)
    streamed = None if taken.streamed is None else taken.streamed + beside
    return replace(taken, whole=whole, eight_bit=whole - kept * (dtype.itemsize - 1), streamed=streamed)


@functools.lru_cache(maxsize=64)
def network_taken(
    part: ComponentName, config: ComponentConfig, dtype: torch.dtype, decode_dtype: torch.dtype | None = None
) -> Weights:
    """The same of an architecture none of whose weights need be here; nothing of it is in 8 bits."""
    with without_weights():
        module: torch.nn.Module = KINDS[part](config)
    wide: tuple[str, ...] = getattr(module, "fp32_parameters", ())

    def itemsize(name: str) -> int:
        if part == "vae" and decode_dtype is not None and name.split(".", 1)[0] in DECODING:
            return decode_dtype.itemsize
        return 4 if any(word in name for word in wide) else dtype.itemsize

    sizes = {name: value.numel() * itemsize(name) for name, value in module.state_dict(keep_vars=True).items()}
    whole = sum(sizes.values())
    if part not in STREAMED:
        return Weights(whole=whole, eight_bit=whole)
    matrices = {name: sizes[name] for name in streamed_names(module, STACKS)}
    return Weights(
        whole=whole,
        eight_bit=whole,
        streamed=whole - sum(matrices.values()) + streamed_bytes(matrices),
        swapped=swapped_bytes(sizes, STACKS),
        gathered=sizes.get("token_embedding.weight", 0),
        largest=max(matrices.values(), default=0),
    )
