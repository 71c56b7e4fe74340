"""Attention kernels behind the :class:`cygnet.types.Attention` signature.

Legend: B batch, N heads, L queries, M keys, K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

AT_ONCE = 1 << 20
"""Scores that are worked on at a time: 2 MiB, which a core's cache holds."""
LOOKED_AT = 64
"""Keys by which a query's largest score is estimated."""
FAR = 4.0
"""How far a query's largest score may be from its estimate; bfloat16 tells numbers around it apart by 0.03."""


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Torch's own fused attention; exact on every device. Shapes as in :class:`cygnet.types.Attention`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def attention_by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """The same as two matrix products a head, some rows at a time: ``q [B, N, L, K]`` -> ``[B, N, L, K]``.

    For a processor whose matrix products are fast in bfloat16 and whose fused kernel is not. ``bias`` is
    ``[1 or B, 1, 1, M]``. Scores come out of the product in bfloat16, which is coarse where they are large; a guess at
    each query's largest one is subtracted within the product, in float32, so that those which count come out small.
    Where a guess was far off, that piece is done again with the largest itself. Softmax does not depend on either.
    A query whose keys are all masked by ``-inf`` gets NaN.
    """
    if torch.compiler.is_compiling():
        one: torch.Tensor = _as_one_operator(q, k, v, bias, scale)
        return one
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    out = q.new_empty(batch, queries, heads, width)
    together = max(1, min(heads, AT_ONCE // (queries * keys)))
    rows = queries if queries * keys <= AT_ONCE else max(1, AT_ONCE // keys)
    step = max(1, keys // LOOKED_AT)
    for b in range(batch):
        extra = None if bias is None else bias[b if bias.shape[0] > 1 else 0].to(q.dtype)  # [1, 1, M]
        for first in range(0, heads, together):
            some = slice(first, first + together)
            turned, values = k[b, some].contiguous().transpose(1, 2), v[b, some].contiguous()
            looked_at = turned[..., ::step].contiguous()
            for start in range(0, queries, rows):
                part = q[b, some, start : start + rows].contiguous()
                guess = torch.bmm(part, looked_at).amax(dim=-1, keepdim=True).mul_(-scale)
                scores = _shifted_scores(part, turned, extra, guess, scale)
                largest = scores.amax(dim=-1, keepdim=True)
                if float(largest.abs().amax()) > FAR:
                    scores = _shifted_scores(part, turned, extra, guess - largest, scale)
                out[b, start : start + rows, some] = torch.bmm(scores.softmax(dim=-1), values).transpose(0, 1)
    return out.transpose(1, 2)


# For a compiler, which would unroll the loops. Any other call of it would load the compiler, a second at every start.
_as_one_operator = torch.library.custom_op("cygnet::attention_by_products", attention_by_products, mutates_args=())


@_as_one_operator.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    batch, heads, queries, width = q.shape
    return q.new_empty(batch, queries, heads, width).transpose(1, 2)


def _shifted_scores(
    q: torch.Tensor, turned: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor, scale: float
) -> torch.Tensor:
    """``scale * q @ turned + bias + shift``, summed in float32 and rounded once: ``[N, L, M]``."""
    offset = shift.expand(-1, -1, turned.shape[2]) if bias is None else shift + bias
    return torch.baddbmm(offset, q, turned, alpha=scale)
