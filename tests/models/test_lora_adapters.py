"""Adapters beside a network: what they add, what they leave alone, and that they learn."""

from __future__ import annotations

import pytest
import torch

from cygnet.models.dit.model import DiT
from cygnet.models.lora import Adapters, LowRank, LowRankLinear, adaptable, fresh_adapters
from cygnet.runtime.eight_bit import EightBitLinear
from random_models import dit_config, state_of
from support import fill, relative_l2

Q = "blocks.0.self_attn.q"


def network() -> DiT:
    config = dit_config("t2v")
    dit = DiT(config)
    dit.load_state_dict(state_of(config))
    return dit.requires_grad_(False)


def answer(dit: DiT) -> torch.Tensor:
    return dit(fill("x", [1, 16, 2, 4, 4]), torch.tensor([500.0]), fill("c", [1, 5, 32]))  # type: ignore[no-any-return]


def test_fresh_adapters_change_nothing_until_they_have_learnt() -> None:
    dit = network()
    before = answer(dit)
    adapters = fresh_adapters(dit, adaptable(dit), rank=4, alpha=2)
    assert len(adapters.branches) == 2 * 10
    with adapters.attached(dit):
        assert torch.equal(answer(dit), before)
        answer(dit).square().mean().backward()
        gradients = {name: branch.up.grad for name, branch in adapters.branches.items()}
        assert all(it is not None and it.abs().sum() > 0 for it in gradients.values())
        assert all(weight.grad is None for weight in dit.parameters())
        with torch.no_grad():
            for branch in adapters.branches.values():
                branch.up.fill_(0.01)
        assert not torch.equal(answer(dit), before)
    assert torch.equal(answer(dit), before), "detached, the network is what it was"
    assert set(dict(dit.named_parameters())) == set(state_of(dit_config("t2v"))), "and its names are its own"


def test_an_adapter_does_what_a_changed_weight_does() -> None:
    dit, merged = network(), network()
    down, up = fill("down", [4, 128]), fill("up", [128, 4])
    adapters = Adapters({Q: LowRank(down, up, 0.5)})
    with torch.no_grad():
        merged.get_parameter(f"{Q}.weight").add_(0.5 * up @ down)
    with torch.no_grad():
        with adapters.attached(dit):
            hooked = answer(dit)
        adapters.install(dit)
        assert relative_l2(hooked, answer(merged)) < 1e-5
        assert torch.equal(answer(dit), hooked)
    assert isinstance(dit.get_submodule(Q), LowRankLinear)


@pytest.mark.parametrize("way", ["attach", "install"])
def test_they_come_back_as_they_were_put_there(way: str) -> None:
    dit = network()
    with torch.no_grad():
        before, names = answer(dit), [name for name, _ in dit.named_parameters()]
        adapters = Adapters({Q: LowRank(fill("down", [4, 128]), fill("up", [128, 4]), 0.5)})
        getattr(adapters, way)(dit)
        with_it, kind = answer(dit), type(dit.get_submodule(Q))
        with adapters.away(dit):
            assert torch.equal(answer(dit), before)
        assert torch.equal(answer(dit), with_it)
        assert type(dit.get_submodule(Q)) is kind
        with pytest.raises(ValueError, match="attached already"):
            adapters.install(dit)
        adapters.detach()
        assert torch.equal(answer(dit), before)
    assert [name for name, _ in dit.named_parameters()] == names


def test_their_state_goes_on_where_it_was() -> None:
    dit = network()
    first = fresh_adapters(dit, [Q], rank=4, seed=1)
    assert list(first.state_dict()) == [f"{Q}.down", f"{Q}.up"]
    other = fresh_adapters(dit, [Q], rank=4, seed=2)
    assert not torch.equal(other.branches[Q].down, first.branches[Q].down)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.branches[Q].down, first.branches[Q].down)
    again = fresh_adapters(dit, [Q], rank=4, seed=1)
    assert torch.equal(again.branches[Q].down, first.branches[Q].down), "the seed decides, whatever was drawn before"


def test_layers_in_eight_bits_take_them_too() -> None:
    dit = network()
    weight = dit.get_parameter(f"{Q}.weight").to(torch.float8_e4m3fn)
    attention = dit.get_submodule("blocks.0.self_attn")
    setattr(attention, "q", EightBitLinear(weight, None, dit.get_parameter(f"{Q}.bias")))  # type: ignore[arg-type] # noqa: B010
    assert Q in adaptable(dit)
    before = answer(dit)
    adapters = fresh_adapters(dit, [Q], rank=2)
    with torch.no_grad():
        adapters.branches[Q].up.fill_(1)
    with adapters.attached(dit):
        assert not torch.equal(answer(dit), before)


def test_what_does_not_fit_is_refused_in_words() -> None:
    dit = network()
    with pytest.raises(ValueError, match=r"the adapter of blocks\.0\.self_attn\.q is \[128, 64\], but the layer is"):
        Adapters({Q: LowRank(torch.zeros(2, 64), torch.zeros(128, 2))}).attach(dit)
    with pytest.raises(ValueError, match="is no linear layer"):
        fresh_adapters(dit, ["blocks.0.norm3"], rank=2)
    with pytest.raises(ValueError, match="must be"):
        LowRank(torch.zeros(2, 64), torch.zeros(128, 3))
    adapters = fresh_adapters(dit, [Q], rank=2)
    adapters.attach(dit)
    with pytest.raises(ValueError, match="attached already"):
        adapters.attach(dit)
    with pytest.raises(AttributeError):
        Adapters({"blocks.9.self_attn.q": LowRank(torch.zeros(2, 128), torch.zeros(128, 2))}).attach(dit)
