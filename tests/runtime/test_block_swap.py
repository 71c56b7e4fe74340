from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from cygnet.models.dit.config import T2V_1_3B, DiTConfig
from cygnet.models.dit.control import VaceContext
from cygnet.models.dit.model import DiT
from cygnet.runtime.block_swap import BlockSwap

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


def test_blocks_with_buffers_are_refused() -> None:
    module = network()
    module.blocks[1].register_buffer("extra", torch.zeros(2))
    with pytest.raises(AssertionError, match=r"blocks\.1\.extra"):
        BlockSwap(module, ("blocks",), "cpu")


def inside(module: torch.nn.Module, swap: BlockSwap) -> bool:
    """Whether all weights of ``module`` lie in the device's two buffers."""
    rooms = {room.data_ptr() for room in swap._rooms}
    return all(parameter.untyped_storage().data_ptr() in rooms for parameter in module.parameters())


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, variant="vace", vace_layers=(0, 2), vace_channels=8)])
def test_every_weight_of_a_block_is_on_the_device_when_it_is_used(config: DiTConfig) -> None:
    """The prompt's keys are computed outside of a block's forward, and so are the ends of VACE's control branch."""
    resident, module = network(config=config), network(config=config)
    swap = BlockSwap(module, ("blocks", "vace_blocks"), "cpu")
    away: list[str] = []
    for name, part in module.named_modules():
        if "blocks." in name and not list(part.children()):
            part.register_forward_hook(
                lambda part, *_, name=name: None if inside(part, swap) else away.append(name)  # type: ignore[misc]
            )
    controls = [VaceContext(torch.ones(1, 8, 2, 4, 4), 0.7)] if config.vace_layers else []
    for _ in range(2):
        assert torch.equal(evaluate(module, vace=controls), evaluate(resident, vace=controls))
    assert not away
    swap.close()
    assert torch.equal(evaluate(module, vace=controls), evaluate(resident, vace=controls))
    assert not any("keys" in vars(part) or "forward" in vars(part) for part in module.modules())
