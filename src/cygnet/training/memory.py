"""Less memory for the same gradients: which results are kept for the backward pass, and which are computed again.

- ``none`` keeps everything.
- ``products`` keeps the results of attention and of large matrix products: norms, activations and adapters are computed
  again, a few per cent of the work.
- ``attention`` keeps the results of attention alone.
- ``full`` keeps nothing but what each block is given.

Attention's work grows with the square of the number of tokens while its result takes as little as any other, so it is
always the first to keep.

Blocks may be compiled with this in them (:func:`cygnet.runtime.compile.compile_blocks`): what is kept is the same, less
what no gradient needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "products", "attention", "full"]
LARGE_INNER = 128
"""Products over fewer columns than this, such as the second half of an adapter, cost little to do again."""


@functools.cache
def _attention_operators() -> frozenset[Any]:
    names = (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    found = (getattr(torch.ops.aten, name, None) for name in names)
    return frozenset(it.default for it in found if it is not None)


def _keep_attention(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _attention_operators() else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_products(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    aten = torch.ops.aten
    if operator in _attention_operators():
        return CheckpointPolicy.MUST_SAVE
    if operator in (aten.addmm.default, aten.mm.default, aten.linear.default):
        left = inputs[1] if operator == aten.addmm.default else inputs[0]
        if left.shape[-1] >= LARGE_INNER:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_POLICIES: dict[str, Callable[..., CheckpointPolicy]] = {"attention": _keep_attention, "products": _keep_products}


def checkpointed(blocks: Iterable[nn.Module], how: Checkpointing) -> Callable[[], None]:
    """Have each block forget its activations and compute them again in the backward pass; returns what undoes it.

    Gradients are the same.
    """
    if how == "none":
        return lambda: None
    contexts: dict[str, Any] = {}
    if how in _POLICIES:
        contexts["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _POLICIES[how])
    done = []
    for block in blocks:
        plain = block.forward

        def forward(*args: Any, _plain: Callable[..., Any] = plain, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return _plain(*args, **kwargs)
            return checkpoint(_plain, *args, use_reentrant=False, preserve_rng_state=False, **contexts, **kwargs)

        block.forward = forward
        done.append(block)

    def plain_again() -> None:
        for block in done:
            block.__dict__.pop("forward")

    return plain_again
