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
from cygnet.runtime.execution import DEFAULT, Execution
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
    weights: ComponentWeights,
    dtype: torch.dtype,
    decode_dtype: torch.dtype | None = None,
    execution: Execution = DEFAULT,
) -> Weights:
    """What a network's weights take in memory in ``dtype``, by how they are held; from its header.

    ``decode_dtype`` is that of the VAE's decoding half; ``execution`` is for the transformer alone. With its ``fp8``
    the weights are rounded for fp8 products once they are loaded; what that gives back is not counted, for until then
    it is there. With its ``weight_dtype`` they are in 8 bits from the start, however they are held.
    """
    execution = execution if weights.component == "dit" else DEFAULT
    fp8, rounds = execution.fp8, execution.weight_dtype != "auto"
    plan = in_eight_bits(weights, stored=not fp8, rounded=fp8, weight_dtype=execution.weight_dtype)
    taken = network_taken(weights.component, weights.config, dtype, decode_dtype, plan.kept if rounds else frozenset())
    beside = plan.branches.parameters * dtype.itemsize  # of LoRAs, however the matrices beside them are held
    whole = taken.whole + beside
    if fp8:
        return replace(taken, whole=whole).rounded_when_loaded()
    streamed = None if taken.streamed is None else taken.streamed + beside
    if rounds:
        return replace(taken, whole=whole, eight_bit=whole, streamed=streamed)
    kept = sum(weights.infos[name].numel for name in plan.matrices)
    return replace(taken, whole=whole, eight_bit=whole - kept * (dtype.itemsize - 1), streamed=streamed)


@functools.lru_cache(maxsize=64)
def network_taken(
    part: ComponentName,
    config: ComponentConfig,
    dtype: torch.dtype,
    decode_dtype: torch.dtype | None = None,
    eight_bit: frozenset[str] = frozenset(),
) -> Weights:
    """The same of an architecture none of whose weights need be here.

    The matrices named in ``eight_bit`` are in 8 bits, each row with a scale; they are streamed as they compute.
    """
    with without_weights():
        module: torch.nn.Module = KINDS[part](config)
    in_float32: tuple[str, ...] = getattr(module, "fp32_parameters", ())

    def itemsize(name: str) -> int:
        if part == "vae" and decode_dtype is not None and name.split(".", 1)[0] in DECODING:
            return decode_dtype.itemsize
        return 4 if any(word in name for word in in_float32) else dtype.itemsize

    state = module.state_dict(keep_vars=True)
    wide = {name: value.numel() * itemsize(name) for name, value in state.items()}
    sizes = wide | {name: state[name].numel() + 4 * state[name].shape[0] for name in eight_bit}
    whole = sum(sizes.values())
    if part not in STREAMED:
        return Weights(whole=whole, eight_bit=whole)
    matrices = {name: wide[name] for name in streamed_names(module, STACKS)}
    return Weights(
        whole=whole,
        eight_bit=whole,
        streamed=sum(wide.values()) - sum(matrices.values()) + streamed_bytes(matrices),
        swapped=swapped_bytes(sizes, STACKS),
        gathered=sizes.get("token_embedding.weight", 0),
        largest=max(matrices.values(), default=0),
        widened=sum(wide[name] for name in eight_bit),
    )
