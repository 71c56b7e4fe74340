"""A prompt to the text features that the diffusion transformer attends to."""

from __future__ import annotations

import torch

from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import PromptTokens, Tokenizer


def encode_prompt(model: UMT5Encoder, tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Features ``[n, D]`` of the ``n <= 512`` tokens of ``text``, on the model's device and in its dtype.

    Raises :class:`~cygnet.errors.WeightFileError` when model and tokenizer do not belong together and
    :class:`~cygnet.errors.RequestError` when the text cannot be taken. Text beyond the limit is left out without a
    word: callers who want to report it use :meth:`Tokenizer.tokenize` and :func:`encode_tokens`.
    """
    tokenizer.check_fits(model.config.vocab_size)
    return encode_tokens(model, tokenizer.tokenize(text))


@torch.no_grad()
def encode_tokens(model: UMT5Encoder, tokens: PromptTokens) -> torch.Tensor:
    """Features ``[n, D]`` of exactly the given tokens; padding is not computed (the mask would remove its effect)."""
    ids = torch.tensor([tokens.ids], dtype=torch.int64, device=model.token_embedding.weight.device)  # [1, n]
    features: torch.Tensor = model(ids)[0]
    return features
