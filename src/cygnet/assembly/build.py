"""A network with its weights: built empty, filled from its file, set up to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from cygnet.assembly.arguments import Device
from cygnet.assembly.eight_bit import in_eight_bits, round_matrices
from cygnet.assembly.kinds import DECODING, STACKS
from cygnet.checkpoints import ComponentWeights, materialise, without_weights
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.model import WanVAE
from cygnet.runtime.compiled_vae import compile_vae
from cygnet.runtime.convolution import fit_processor
from cygnet.runtime.eight_bit import keep_in_eight_bits
from cygnet.runtime.execution import DEFAULT, Execution
from cygnet.runtime.precision import parse_device
from cygnet.runtime.products import use_onednn

_NO_PARTS: Mapping[str, torch.dtype] = MappingProxyType({})

_Module = TypeVar("_Module", WanVAE, DiT, UMT5Encoder, CLIPVision)


def build(
    kind: Callable[[Any], _Module],
    weights: ComponentWeights,
    dtype: torch.dtype,
    device: Device,
    *,
    eight_bit: bool = False,
    channels_last: bool = False,
    by_part: Mapping[str, torch.dtype] = _NO_PARTS,
    rounded: torch.dtype | None = None,
    execution: Execution | None = None,
    runs_on: torch.device | None = None,
) -> _Module:
    """The network with its weights; ``rounded`` and ``execution`` are for a DiT alone.

    What ``execution`` has rounded is read, rounded and put in place one matrix after another: the whole network is
    never there in more than 8 bits.

    ``runs_on`` is the device that it will compute on, if that is not ``device``, where its weights are put.
    """
    place = parse_device(device)
    with without_weights():
        module = kind(weights.config)
    rounds = rounded is not None or (execution is not None and execution.fp8)
    kind_of_weights = "auto" if execution is None else execution.weight_dtype
    plan = in_eight_bits(
        weights, stored=eight_bit or kind_of_weights != "auto", rounded=rounds, weight_dtype=kind_of_weights
    )
    materialise(
        module,
        plan.weights,
        dtype=dtype,
        device=place,
        leave=plan.kept,
        channels_last=channels_last,
        by_part=by_part,
    )
    keep_in_eight_bits(module, plan.matrices, place)
    for name in plan.rounding:
        keep_in_eight_bits(module, {name: plan.rounded(name)}, place)
    if rounded is not None:
        round_matrices(module, rounded, place)
    # fp8 puts other layers in the places of some, and LoRAs go beside what is there then. Blocks are compiled later, at
    # their first call.
    if execution is not None:
        assert isinstance(module, DiT)
        executed(module, runs_on or place, execution)
    use_onednn(module)
    plan.branches.read(dtype, place).install(module)
    return module.eval().requires_grad_(False)


def build_vae(
    weights: ComponentWeights,
    dtype: torch.dtype,
    decode_dtype: torch.dtype,
    device: torch.device,
    execution: Execution = DEFAULT,
) -> WanVAE:
    """The same of an autoencoder, laid out channels last, its decoding half in ``decode_dtype``."""
    decoding = dict.fromkeys(DECODING, decode_dtype)
    vae = fit_processor(build(WanVAE, weights, dtype, device, channels_last=True, by_part=decoding))
    return compile_vae(vae, execution.compile, device)


def executed(dit: DiT, device: torch.device, execution: Execution) -> DiT:
    """The transformer, with its weights in place, set up to compute as ``execution`` says."""
    execution.apply(dit, device, dit.config.dim // dit.config.num_heads, STACKS)
    return dit
