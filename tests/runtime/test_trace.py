"""The account that is kept of a run over shapes, against that of the same run over numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cygnet.checkpoints import without_weights
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.model import WanVAE
from cygnet.runtime import trace
from cygnet.runtime.trace import Cost, Ledger
from random_models import VAE, dit_config, text_config

Work = Callable[[], object]


def on(device: str, kind: Callable[..., torch.nn.Module], config: object) -> torch.nn.Module:
    if device == "cpu":
        return kind(config).eval().requires_grad_(False)
    with without_weights():
        return kind(config).eval().requires_grad_(False)


def transformer(device: str) -> Work:
    config = dit_config("t2v")
    dit = on(device, DiT, config)
    context = torch.zeros(1, 5, config.text_dim, device=device)
    latents, timestep = torch.zeros(1, 16, 3, 8, 8, device=device), torch.zeros(1, device=device)
    return lambda: dit(latents, timestep, context)


def text(device: str) -> Work:
    umt5, ids = on(device, UMT5Encoder, text_config()), torch.ones(1, 6, dtype=torch.int64, device=device)
    return lambda: umt5(ids)


def autoencoder(device: str) -> Work:
    vae = on(device, WanVAE, VAE)
    assert isinstance(vae, WanVAE)
    latents = torch.zeros(1, 16, 5, 4, 6, device=device)
    return lambda: [frames.aminmax() and None for frames in vae.channels_last().decode_chunks(latents, chunk=2)]


def account(kind: Callable[[str], Work], device: str) -> Cost:
    run = kind(device)
    with torch.no_grad(), Ledger() as ledger:
        run()
    return ledger.cost


KINDS = pytest.mark.parametrize("kind", [transformer, text, autoencoder])


@KINDS
def test_shapes_take_what_numbers_take(kind: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN's own convolution is the one kernel that a processor has under another name.
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    shapes, numbers = account(kind, "meta"), account(kind, "cpu")
    assert shapes.peak == pytest.approx(numbers.peak, rel=0.02)
    assert shapes.moved == pytest.approx(numbers.moved, rel=0.05)


@KINDS
def test_the_shortcuts_change_nothing(kind: Callable[[str], Work], monkeypatch: pytest.MonkeyPatch) -> None:
    short = account(kind, "meta")
    monkeypatch.setattr(trace, "_SHORTCUTS", {})
    monkeypatch.setattr(trace, "_IN_PLACE", frozenset())
    assert account(kind, "meta") == short


def test_tensors_are_struck_off_when_nothing_refers_to_them() -> None:
    given = torch.zeros(1000)
    with Ledger() as ledger:
        one = given + 1  # what comes from outside does not count
        two = one + 1
        del one
        three = two.view(10, 100) + 1
        assert ledger.live == 8000
        del two, three
        assert ledger.live == 0
        assert ledger.peak == 8000
        ledger.mark()
        assert ledger.cost == Cost()


def test_attention_takes_nothing_as_large_as_its_scores() -> None:
    with Ledger() as ledger:
        q = torch.empty(1, 2, 4096, 64, device="meta")
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert ledger.peak < 5 * q.numel() * 4
