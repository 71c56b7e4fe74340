"""Less memory for the same gradients: which activations are kept, and which are computed again.

Attention is the one part whose work grows with the square of the number of tokens, while its result takes as little as
any other activation. So it alone is worth keeping: see section 2.5 of docs/training.md's figures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "attention", "full"]


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


def checkpointed(blocks: Iterable[nn.Module], how: Checkpointing) -> Callable[[], None]:
    """Have each block forget its activations and compute them again in the backward pass; returns what undoes it.

    "attention" keeps the results of attention, so that it alone is not computed twice. Gradients are the same.
    """
    if how == "none":
        return lambda: None
    contexts: dict[str, Any] = {}
    if how == "attention":
        contexts["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)
    undo = []
    for block in blocks:
        plain = block.forward

        def forward(*args: Any, _plain: Callable[..., Any] = plain, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return _plain(*args, **kwargs)
            return checkpoint(_plain, *args, use_reentrant=False, preserve_rng_state=False, **contexts, **kwargs)

        block.forward = forward  # type: ignore[method-assign]
        undo.append(lambda block=block: block.__dict__.pop("forward"))

    def plain_again() -> None:
        for each in undo:
            each()

    return plain_again
