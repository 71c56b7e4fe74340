"""Forgetting activations changes memory alone, and a plan foretells it."""

from __future__ import annotations

import pytest
import torch

from conftest import Configure  # type: ignore[attr-defined]
from cygnet.errors import RequestError
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable, fresh_adapters
from cygnet.training.memory import Checkpointing, checkpointed
from cygnet.training.networks import patches_as_products
from cygnet.training.plan import activations, plan_for
from support import filled_weights, parameter_shapes, relative_l2

CONFIG = DiTConfig(variant="t2v", dim=128, ffn_dim=256, num_heads=1, num_layers=2, in_channels=16, text_dim=24)


def network() -> DiT:
    dit = DiT(CONFIG)
    dit.load_state_dict(filled_weights(parameter_shapes(dit)))
    return dit


def gradients(how: Checkpointing) -> tuple[dict[str, torch.Tensor], int]:
    dit = network().requires_grad_(False)
    adapters = fresh_adapters(dit, adaptable(dit), rank=2)
    for branch in adapters.branches.values():
        torch.nn.init.constant_(branch.up, 0.01)
    adapters.attach(dit)
    checkpointed(dit.blocks, how)
    generator = torch.Generator().manual_seed(0)
    latents, context = torch.randn(1, 16, 2, 8, 8, generator=generator), torch.randn(1, 5, 24, generator=generator)
    calls = 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += "flash_attention_for_cpu.default" in str(func)
            return func(*args, **(kwargs or {}))

    with Count():
        dit(latents, torch.tensor([500.0]), context).square().mean().backward()
    return {name: p.grad.clone() for name, p in adapters.named_parameters() if p.grad is not None}, calls


def test_gradients_do_not_depend_on_what_is_kept() -> None:
    plain, calls = gradients("none")
    for how in ("products", "attention", "full"):
        found, again = gradients(how)  # type: ignore[arg-type]
        assert again == (2 * calls if how == "full" else calls), how
        for name, value in plain.items():
            assert torch.equal(value, found[name]), (how, name)


def test_the_patch_embedding_as_a_product_is_the_same() -> None:
    dit = network()
    latents, context = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 3, 24)
    time = torch.tensor([300.0, 900.0])
    plain = dit(latents, time, context)
    patches_as_products(dit)
    assert relative_l2(dit(latents, time, context), plain) < 1e-5


def test_a_plan_orders_the_ways_as_their_memory_does(configure: Configure) -> None:
    sizes = {
        how: activations(
            configure(memory={"checkpointing": how, "dtype": "bfloat16"}),
            DiTConfig(variant="t2v", dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_channels=16),
            32_760,
            1,
        )
        for how in ("none", "products", "attention", "full")
    }
    assert sizes["none"] > sizes["products"] > sizes["attention"] > sizes["full"] > 30 * 32_760 * 1536 * 2


def test_a_plan_counts_what_is_trained(configure: Configure) -> None:
    lora, full = plan_for(configure()), plan_for(configure(method="full"))
    assert 0 < lora.trained < full.trained
    assert lora.total < full.total
    assert lora.tokens == 2 * 2 * 2
    assert lora.step_seconds > 0
    with pytest.raises(RequestError):
        plan_for(configure(method="vae"))
