"""Diffusers' and transformers' networks on our tensors: the same memory wherever the dtype is the same."""

from __future__ import annotations

from typing import Any

import torch

from cygnet.checkpoints import ComponentConfig
from cygnet.checkpoints.diffusers_config import component_config
from cygnet.checkpoints.saving import diffusers_tensors


def peer_of(module: torch.nn.Module, config: ComponentConfig, dtype: torch.dtype) -> Any:
    """The peer's network of ``config`` in ``dtype``, with the weights of ``module`` and on its device."""
    import diffusers
    import transformers

    described = component_config(config)
    if "architectures" in described:
        kind = getattr(transformers, described["architectures"][0])
        hf = kind.config_class.from_dict(described)
        with torch.device("meta"):
            peer = kind(hf)
    else:
        kind = getattr(diffusers, described["_class_name"])
        with torch.device("meta"):
            peer = kind.from_config(described)
    kept = tuple(getattr(peer, "_keep_in_fp32_modules", None) or ())
    state = {
        name: value.to(torch.float32 if any(part in name.split(".") for part in kept) else dtype)
        for name, value in diffusers_tensors(dict(module.state_dict()), config).items()
    }
    missing, unexpected = peer.load_state_dict(state, strict=False, assign=True)
    own = {name for name, _ in peer.named_parameters()}
    assert not unexpected, unexpected
    assert not own & set(missing) - {"encoder.embed_tokens.weight", "shared.weight"}, missing
    _rebuild_tables(peer, next(iter(state.values())).device)
    return peer.eval().requires_grad_(False)


def _rebuild_tables(peer: Any, device: torch.device) -> None:
    """Tables that are computed at construction and not stored; on the meta device they came out empty."""
    if hasattr(peer, "tie_weights"):
        peer.tie_weights()
    if hasattr(peer, "rope"):
        old = peer.rope
        peer.rope = type(old)(old.attention_head_dim, old.patch_size, old.max_seq_len).to(device)


def tuned_transformer(peer: Any) -> Any:
    """What Diffusers' documentation offers for speed: cuDNN attention, joined projections, compiled blocks."""
    peer.set_attention_backend("_native_cudnn")
    peer.fuse_qkv_projections()
    peer.compile_repeated_blocks(fullgraph=True)
    return peer


def tuned_vae(peer: Any) -> Any:
    """Channels-last weights."""
    for parameter in peer.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return peer
