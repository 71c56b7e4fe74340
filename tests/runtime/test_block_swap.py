from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from cygnet.models.dit.config import T2V_1_3B, DiTConfig
from cygnet.models.dit.control import VaceContext
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable, fresh_adapters
from cygnet.ops.quantised import quantise_rows
from cygnet.runtime.block_swap import BlockSwap
from cygnet.runtime.eight_bit import EightBitLinear
from cygnet.runtime.streaming import streamed_names
from cygnet.training.memory import Checkpointing, checkpointed

SMALL = replace(T2V_1_3B, dim=24, ffn_dim=32, num_heads=2, num_layers=4, text_dim=8, freq_dim=16)


def network(seed: int = 0, config: DiTConfig = SMALL) -> DiT:
    torch.manual_seed(seed)
    dit = DiT(config).requires_grad_(False)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return dit


def evaluate(dit: DiT, skip: frozenset[int] = frozenset(), vace: Sequence[VaceContext] = ()) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents, context = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(1, 5, 8, generator=generator)
    with torch.no_grad():
        return dit(latents, torch.tensor([300.0]), context, skip_blocks=skip, vace=vace)


@pytest.fixture
def swapped() -> tuple[DiT, DiT, BlockSwap]:
    resident, module = network(), network()
    return resident, module, BlockSwap(module, ("blocks",), "cpu")


def test_results_are_those_of_the_resident_network_bit_for_bit(swapped: tuple[DiT, DiT, BlockSwap]) -> None:
    resident, module, _ = swapped
    for _ in range(3):
        assert torch.equal(evaluate(module), evaluate(resident))


@pytest.mark.parametrize("skip", [{0}, {1}, {3}, {1, 2}])
def test_blocks_may_be_left_out_and_come_back(swapped: tuple[DiT, DiT, BlockSwap], skip: set[int]) -> None:
    resident, module, _ = swapped
    for left_out in (frozenset(skip), frozenset(skip), frozenset[int](), frozenset(skip)):
        assert torch.equal(evaluate(module, left_out), evaluate(resident, left_out))


def test_two_blocks_are_on_the_device_at_a_time_the_next_one_among_them(swapped: tuple[DiT, DiT, BlockSwap]) -> None:
    _, module, swap = swapped
    seen: list[set[int]] = []
    hooks = [block.register_forward_hook(lambda *_: seen.append(set(swap.present))) for block in module.blocks]
    evaluate(module)
    evaluate(module)
    assert seen == [{0, 1}, {1, 2}, {2, 3}, {3, 0}] * 2
    for hook in hooks:
        hook.remove()


def test_a_block_that_is_not_running_lies_at_home(swapped: tuple[DiT, DiT, BlockSwap]) -> None:
    _, module, swap = swapped
    rooms = {room.data_ptr() for room in swap._rooms}
    evaluate(module)

    def starts(block: torch.nn.Module) -> int:
        return next(block.parameters()).untyped_storage().data_ptr()

    assert [starts(block) in rooms for block in module.blocks] == [False, False, False, True]


def test_closing_leaves_a_network_that_works_without_it(swapped: tuple[DiT, DiT, BlockSwap]) -> None:
    resident, module, swap = swapped
    evaluate(module)
    swap.close()
    assert torch.equal(evaluate(module), evaluate(resident))
    assert not any(block._forward_pre_hooks for block in module.blocks)


def test_parameters_keep_their_dtypes(swapped: tuple[DiT, DiT, BlockSwap]) -> None:
    module = network()
    module.blocks.to(torch.bfloat16)
    for block in module.blocks:
        block.modulation.data = block.modulation.data.float()  # type: ignore[union-attr, operator]
    kinds = {name: value.dtype for name, value in module.named_parameters()}
    BlockSwap(module, ("blocks",), "cpu")
    assert {name: value.dtype for name, value in module.named_parameters()} == kinds


def test_buffers_of_blocks_travel_with_them() -> None:
    dit, resident = network(), network()
    for each in (dit, resident):
        layer = each.blocks[1].ffn[0]  # type: ignore[index, union-attr]
        kept = EightBitLinear(*quantise_rows(layer.weight.clone(), torch.int8), layer.bias)  # type: ignore[operator, union-attr, arg-type]
        each.blocks[1].ffn[0] = kept  # type: ignore[index, union-attr, operator, assignment]
    swap = BlockSwap(dit, ("blocks",), "cpu")
    home = [it.untyped_storage().data_ptr() for it in dit.blocks[1].buffers()]  # type: ignore[union-attr]
    assert len(set(home)) == 1, "in the block's one buffer"
    for _ in range(2):
        assert torch.equal(evaluate(dit), evaluate(resident))
    swap.close()
    assert [it.untyped_storage().data_ptr() for it in dit.blocks[1].buffers()] == home  # type: ignore[union-attr]


def inside(module: torch.nn.Module, swap: BlockSwap) -> bool:
    """Whether all weights of ``module`` lie in the device's two buffers."""
    rooms = {room.data_ptr() for room in swap._rooms}
    return all(parameter.untyped_storage().data_ptr() in rooms for parameter in module.parameters())


def used_at_home(module: torch.nn.Module, swap: BlockSwap) -> list[str]:
    """Names of layers of blocks whose weights are at home when they are used, from now on: no GPU could read them."""
    away: list[str] = []
    for name, part in module.named_modules():
        if "blocks." in name and not list(part.children()):
            part.register_forward_hook(
                lambda part, *_, name=name: None if inside(part, swap) else away.append(name)  # type: ignore[misc]
            )
    return away


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, variant="vace", vace_layers=(0, 2), vace_channels=8)])
def test_every_weight_of_a_block_is_on_the_device_when_it_is_used(config: DiTConfig) -> None:
    """The prompt's keys are computed outside of a block's forward, and so are the ends of VACE's control branch."""
    resident, module = network(config=config), network(config=config)
    swap = BlockSwap(module, ("blocks", "vace_blocks"), "cpu")
    away = used_at_home(module, swap)
    controls = [VaceContext(torch.ones(1, 8, 2, 4, 4), 0.7)] if config.vace_layers else []
    for _ in range(2):
        assert torch.equal(evaluate(module, vace=controls), evaluate(resident, vace=controls))
    assert not away
    swap.close()
    assert torch.equal(evaluate(module, vace=controls), evaluate(resident, vace=controls))
    assert not any("keys" in vars(part) or "forward" in vars(part) for part in module.modules())


def test_of_some_weights_only_those_are_swapped() -> None:
    resident, module = network(), network()
    names = [name for name, _ in module.named_parameters() if name.startswith("blocks.2") and name.endswith(".weight")]
    swap = BlockSwap(module, ("blocks",), "cpu", names=names)
    assert torch.equal(evaluate(module), evaluate(resident))
    assert swap.present == (0,)  # of the one block that is swapped
    rooms = {room.data_ptr() for room in swap._rooms}
    there = {name for name, value in module.named_parameters() if value.untyped_storage().data_ptr() in rooms}
    assert there == set(names)


def test_what_was_put_over_a_block_before_is_there_again_after_closing() -> None:
    module = network()
    calls: list[int] = []
    plain = module.blocks[1].forward

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return plain(*args, **named)

    module.blocks[1].forward = counted  # type: ignore[method-assign]
    BlockSwap(module, ("blocks",), "cpu").close()
    assert module.blocks[1].forward is counted
    evaluate(module)
    assert calls == [1]


# Backward passes ------------------------------------------------------------------------------------------------------


class Teaching:
    """A network with an adapter on every layer of its blocks, which compute their activations again."""

    def __init__(self, how: Checkpointing = "full", *, swapped: bool) -> None:
        self.dit = network(config=replace(SMALL, num_layers=5))
        self.adapters = fresh_adapters(self.dit, adaptable(self.dit), rank=2)
        for branch in self.adapters.branches.values():
            torch.nn.init.constant_(branch.up, 0.05)
        self.swap: BlockSwap | None = None
        if swapped:
            names = [name for name in streamed_names(self.dit, ("blocks",)) if not name.startswith("blocks.0.")]
            self.swap = BlockSwap(self.dit, ("blocks",), "cpu", names=names)
        self.adapters.attach(self.dit)
        checkpointed(self.dit.blocks, how)

    def loss(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        latents, context = torch.randn(1, 16, 2, 4, 4, generator=generator), torch.randn(1, 5, 8, generator=generator)
        return self.dit(latents, torch.tensor([300.0]), context).square().mean()  # type: ignore[no-any-return]

    def gradients(self) -> dict[str, torch.Tensor]:
        self.adapters.zero_grad()
        self.loss().backward()
        return {name: value.grad.clone() for name, value in self.adapters.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("how", ["products", "attention", "full"])
def test_gradients_are_those_of_the_resident_network_bit_for_bit(how: Checkpointing) -> None:
    resident, taught = Teaching(how, swapped=False), Teaching(how, swapped=True)
    assert taught.swap is not None
    away: list[str] = []
    for name in streamed_names(taught.dit, ("blocks",)):
        layer = taught.dit.get_submodule(name.removesuffix(".weight"))
        homes = {each.home.data_ptr() for each in taught.swap._packed}
        layer.register_forward_hook(
            lambda layer, *_, name=name, homes=homes: (  # type: ignore[misc]
                away.append(name) if layer.weight.untyped_storage().data_ptr() in homes else None
            )
        )
    wanted = resident.gradients()
    for _ in range(3):
        found = taught.gradients()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not away, "a weight was used at home, where no device could read it"


def test_after_one_step_every_block_is_on_its_way_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = Teaching(swapped=True)
    swap, sent, late = taught.swap, [], []
    assert swap is not None
    entering: list[int] = []
    enter, send = swap._enter, swap._send

    def watched_enter(entry: str, number: int) -> None:
        entering.append(number)
        enter(entry, number)

    def watched_send(number: int, room: int) -> None:
        sent.append(number)
        if number == entering[-1]:
            late.append(number)
        send(number, room)

    monkeypatch.setattr(swap, "_enter", watched_enter)
    monkeypatch.setattr(swap, "_send", watched_send)
    for _ in range(2):
        taught.gradients()
    sent.clear()
    late.clear()
    taught.gradients()
    assert not late
    # The prompt's keys, then forward, then back: at each turn two blocks are there already.
    assert sent == [2, 3, 0, 1, 2, 3, 1, 0], sent


def test_threads_take_turns_within_one_network(swapped: tuple[DiT, DiT, BlockSwap]) -> None:
    resident, module, swap = swapped
    away, wanted = used_at_home(module, swap), evaluate(resident)
    other_done, inside = threading.Event(), threading.Event()

    def pause(*_: object) -> None:
        """In the middle of a block, long enough for another thread to go through all of them, if it could."""
        if threading.current_thread() is threading.main_thread() and not inside.is_set():
            inside.set()
            other_done.wait(0.3)

    module.blocks[1].cross_attn.register_forward_hook(pause)  # type: ignore[union-attr, operator]

    def other() -> torch.Tensor:
        inside.wait(10)
        found = evaluate(module)
        other_done.set()
        return found

    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(other)
        assert torch.equal(evaluate(module), wanted)
        assert torch.equal(theirs.result(), wanted)
    assert not away


def test_a_network_that_is_trained_refuses_other_threads() -> None:
    taught = Teaching(swapped=True)
    taught.gradients()
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="trained by another thread"):
        pool.submit(taught.loss).result()
    assert torch.isfinite(taught.loss())
