"""Forgetting activations changes memory alone, and a plan foretells it."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from teaching import Configure
from torch._dynamo.backends.registry import lookup_backend

from cygnet.errors import RequestError
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable, fresh_adapters
from cygnet.runtime import compile as compile_module
from cygnet.runtime.compile import compile_blocks
from cygnet.training import networks
from cygnet.training.flow import Draw, FlowMatching
from cygnet.training.loop import Piece
from cygnet.training.loop import gradients as gradients_of
from cygnet.training.memory import Checkpointing, checkpointed
from cygnet.training.networks import build_optimizers, kept_dtype, patches_as_products, trainable
from cygnet.training.plan import plan_for
from cygnet.training.rehearsal import rehearse
from support import filled_weights, parameter_shapes, relative_l2

CONFIG = DiTConfig(variant="t2v", dim=128, ffn_dim=256, num_heads=1, num_layers=2, in_channels=16, text_dim=24)


def network() -> DiT:
    dit = DiT(CONFIG)
    dit.load_state_dict(filled_weights(parameter_shapes(dit)))
    return dit


def gradients(how: Checkpointing, *, compiled: bool = False) -> tuple[dict[str, torch.Tensor], int]:
    dit = network().requires_grad_(False)
    adapters = fresh_adapters(dit, adaptable(dit), rank=2)
    for branch in adapters.branches.values():
        torch.nn.init.constant_(branch.up, 0.01)
    adapters.install(dit) if compiled else adapters.attach(dit)
    checkpointed(dit.blocks, how)
    compile_blocks(dit, ("blocks",), compiled, torch.device("cpu"), learning=True)
    generator = torch.Generator().manual_seed(0)
    latents, context = torch.randn(1, 16, 2, 8, 8, generator=generator), torch.randn(1, 5, 24, generator=generator)
    calls = 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += "flash_attention_for_cpu.default" in str(func)
            return func(*args, **(kwargs or {}))

    with nullcontext() if compiled else Count():  # a compiler does not work under it
        dit(latents, torch.tensor([500.0]), context).square().mean().backward()
    return {name: p.grad.clone() for name, p in adapters.named_parameters() if p.grad is not None}, calls


def test_gradients_do_not_depend_on_what_is_kept() -> None:
    plain, calls = gradients("none")
    for how in ("products", "attention", "full"):
        found, again = gradients(how)  # type: ignore[arg-type]
        assert again == (2 * calls if how == "full" else calls), how
        for name, value in plain.items():
            assert torch.equal(value, found[name]), (how, name)


@pytest.mark.parametrize("how", ["none", "attention"])
def test_compiled_blocks_give_the_same_gradients(how: Checkpointing, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def traced(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, example)

    # All of the compiler but its code, whose translation would take most of a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    plain, _ = gradients("none")
    found, _ = gradients(how, compiled=True)
    assert graphs
    assert len(graphs) <= CONFIG.num_layers
    assert plain.keys() == found.keys()
    for name, value in plain.items():
        assert relative_l2(found[name], value) < 1e-5, name


@pytest.mark.parametrize("learning", [True, False])
def test_captions_of_all_lengths_need_no_compiling_again(learning: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def traced(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return lookup_backend("eager")(graph, example)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=traced))
    dit, plain = network(), network()
    compile_blocks(dit, ("blocks",), True, torch.device("cpu"), learning=learning)
    latents, time = torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0])
    with torch.set_grad_enabled(learning):
        for count in range(2, 14):
            context = torch.randn(1, count, 24)
            assert relative_l2(dit(latents, time, context), plain(latents, time, context)) < 1e-5
    assert 0 < len(graphs) <= CONFIG.num_layers


def test_the_patch_embedding_as_a_product_is_the_same() -> None:
    dit = network()
    latents, context = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 3, 24)
    time = torch.tensor([300.0, 900.0])
    plain = dit(latents, time, context)
    patches_as_products(dit)
    assert relative_l2(dit(latents, time, context), plain) < 1e-5


WIDE = DiTConfig(variant="t2v", dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_channels=16)
GRID = (21, 60, 104)


def test_a_plan_orders_the_ways_as_their_memory_does(configure: Configure) -> None:
    seen = {
        how: rehearse(configure(batch=1, memory={"checkpointing": how, "dtype": "bfloat16"}), WIDE, GRID,
                      text_rows=30, image_rows=0).demand
        for how in ("none", "products", "attention", "full")
    }  # fmt: skip
    sizes = [demand.cost.peak for demand in seen.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 30 * 32_760 * 1536 * 2
    work = [sum(each.flops for each in demand.work) for demand in seen.values()]
    assert work == sorted(work)
    # Forward, backward without the gradients of frozen weights, forward again; attention's backward is 2.5 of its own.
    linear, attention = (12 * 1536**2 + 4 * 1536 * 8960) * 32_760 * 30, 4 * 32_760**2 * 1536 * 30
    assert work[-1] == pytest.approx(3 * linear + 4.5 * attention, rel=0.05)


@pytest.mark.parametrize(("method", "how"), [("lora", "products"), ("full", "none"), ("full", "full")])
def test_what_is_rehearsed_is_what_a_processor_allocates(configure: Configure, method: str, how: str) -> None:
    """Two steps with numbers, by the same code, and every allocation of torch's counted."""
    config = configure(method=method, batch=6, memory={"checkpointing": how, "dtype": "bfloat16"})
    grid, shape = (3, 12, 12), replace(CONFIG, num_layers=4)
    seen = rehearse(config, shape, grid, text_rows=5, image_rows=0)
    dit = DiT(shape)
    for name, value in dit.named_parameters():
        if not any(word in name for word in dit.fp32_parameters):
            value.data = value.data.to(kept_dtype(config))
    network = trainable(config, dit, torch.device("cpu"))
    latents, context = torch.randn(6, 16, *grid), torch.randn(6, 5, 24)

    def loss() -> torch.Tensor:
        with network.precision():
            return FlowMatching()(network.dit, latents, context, draw=Draw(torch.rand(6), torch.randn_like(latents)))

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizers = build_optimizers(config.optimizer, network.trained)
        for _ in range(2):
            gradients_of(network.trained, optimizers, [Piece(loss)], 1.0)
            optimizers[0].step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    weights = 4 * seen.trained
    rehearsed = seen.learning - weights + seen.demand.cost.peak
    assert rehearsed == pytest.approx(max(itertools.accumulate(changes)), rel=0.05)


def test_swapped_blocks_leave_two_on_the_device(configure: Configure) -> None:
    def sizes(**memory: Any) -> tuple[int, int]:
        config = configure(memory={"checkpointing": "full", **memory})
        seen = rehearse(config, replace(CONFIG, num_layers=6), (1, 4, 4), text_rows=5, image_rows=0)
        return seen.frozen, seen.swapped

    block = sum(weight.numel() * 4 for weight in DiT(CONFIG).blocks[0].parameters() if weight.ndim == 2)
    whole, none = sizes()
    assert none == 0
    assert sizes(block_swap=5) == (whole - 3 * block, 5 * block)
    assert sizes(block_swap=1) == (whole, block)


def test_a_plan_counts_what_is_trained(configure: Configure) -> None:
    lora, full = plan_for(configure()), plan_for(configure(method="full"))
    assert 0 < lora.trained < full.trained
    assert lora.total < full.total
    assert lora.tokens == 2 * 2 * 2
    assert lora.step_seconds is not None
    assert lora.step_seconds > 0
    assert lora.fits
    with pytest.raises(RequestError):
        plan_for(configure(method="vae"))
    with pytest.raises(RequestError, match=r"block_swap is 9; the model has \d+ blocks"):
        plan_for(configure(memory={"block_swap": 9, "checkpointing": "full"}))


def test_a_plan_sees_what_a_method_needs(configure: Configure) -> None:
    plain, eight = (plan_for(configure(memory={"base": base, "dtype": "bfloat16"})) for base in ("as_dtype", "int8"))
    assert eight.memory["frozen weights"] < plain.memory["frozen weights"]
    kept = plan_for(configure(memory={"dtype": "bfloat16"}, preserve={"captions": ["a ball"], "batch": 2}))
    # Preserved captions are answered twice, once without a gradient.
    assert 2 * plain.flops < kept.flops < 3 * plain.flops
    muon = {"name": "muon", "rate": 1e-3, "average": 0.9}
    full = plan_for(configure("i2v", method="full", optimizer=muon))
    assert full.memory["trained weights and their averages"] > 3 * 4 * full.trained  # with the mean, and one moment


def test_a_plan_that_does_not_fit_says_what_to_change(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.planning.machine.free_memory", lambda device: 2**20)
    plan = plan_for(configure())
    assert not plan.fits
    assert "1 MiB are free; raise accumulate, or lower batch" in plan.refusal()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": {"dtype": "bfloat16"}}, True),
        ({"memory": {"dtype": "bfloat16", "compile": True}}, True),
        ({"memory": {"dtype": "bfloat16", "compile": False}}, False),
        ({"memory": {"dtype": "float32"}}, False),
        ({"memory": {"dtype": "bfloat16"}, "method": "full"}, False),
        ({"memory": {"dtype": "bfloat16"}, "data": {"frames": [1]}}, False),
    ],
    ids=["auto", "true", "false", "float32", "full", "short"],
)
def test_it_is_said_once_when_blocks_would_be_compiled_and_no_compiler_is_there(
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    said: bool,
) -> None:
    for module in (networks, compile_module):
        monkeypatch.setattr(module, "missing_for_compiling", lambda kind: "there is none")
    monkeypatch.setattr(compile_module, "COMPILE_FROM_VALUES", 2 * CONFIG.dim * 4)
    trainable(configure(**changes), network(), torch.device("cpu"))
    told = [record.message for record in caplog.records if "there is none" in record.message]
    assert len(told) == said
