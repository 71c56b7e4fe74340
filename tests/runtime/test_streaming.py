from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cygnet
from cygnet.assembly import load_components
from cygnet.pipelines.components import Components
from cygnet.runtime import streaming
from cygnet.runtime.streaming import MatrixStream, streamed_names
from random_models import write_model


class Blocks(torch.nn.Module):
    """Four blocks of two layers, and one layer outside of them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)) for _ in range(4)
        )
        self.last = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x)  # type: ignore[no-any-return]


def streamed(ahead_bytes: int) -> tuple[Blocks, Blocks, MatrixStream, list[str]]:
    torch.manual_seed(0)
    resident, module, read = Blocks(), Blocks(), list[str]()
    module.load_state_dict(resident.state_dict())

    def fetch(name: str) -> torch.Tensor:
        read.append(name)
        return resident.get_parameter(name).detach().clone()

    return resident, module, MatrixStream(module, ("blocks",), fetch, ahead_bytes=ahead_bytes), read


@pytest.mark.parametrize("ahead_bytes", [0, 300, 10**6])
def test_results_are_those_of_the_resident_network_bit_for_bit(ahead_bytes: int) -> None:
    resident, module, stream, _ = streamed(ahead_bytes)
    x = torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(module(x), resident(x))
    stream.close()


def test_the_weights_of_one_block_are_in_place_at_a_time() -> None:
    _, module, stream, _ = streamed(0)
    seen: list[tuple[str, ...]] = []
    for block in module.blocks:
        block.register_forward_hook(lambda *_: seen.append(stream.present))
    with torch.no_grad():
        module(torch.randn(1, 8))
    assert seen == [(f"blocks.{i}.0.weight", f"blocks.{i}.1.weight") for i in range(4)]
    stream.close()
    assert stream.present == ()
    assert all(module.get_parameter(name).is_meta for name in streamed_names(module, ("blocks",)))
    assert not module.last.weight.is_meta


def test_each_weight_is_read_once_per_pass_and_ahead_of_its_turn_when_the_order_is_known() -> None:
    _, module, stream, read = streamed(10**6)
    order = [f"blocks.{i}.{j}.weight" for i in range(4) for j in range(2)]
    with torch.no_grad():
        module(torch.randn(1, 8))
        assert read == order
        module(torch.randn(1, 8))
        module(torch.randn(1, 8))
    stream.close()
    counts = {name: read.count(name) for name in order}
    assert all(3 <= count <= 4 for count in counts.values()), counts  # those read ahead for a pass that never came


def test_a_read_that_fails_is_told_where_the_weight_is_needed() -> None:
    module = Blocks()

    def fetch(name: str) -> torch.Tensor:
        raise OSError(f"{name} cannot be read")

    stream = MatrixStream(module, ("blocks",), fetch)
    with pytest.raises(OSError, match=r"blocks\.0\.0\.weight"):
        module(torch.randn(1, 8))
    stream.close()


def frames(wan: cygnet.Wan) -> torch.Tensor:
    return torch.as_tensor(
        wan.generate("a red ball", num_frames=5, size=(32, 32), num_steps=2, seed=1, negative_prompt="blue").frames
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_makes_the_same_video_wherever_its_weights_are(dtype: str, tmp_path: Path) -> None:
    paths = write_model(tmp_path)
    resident = frames(cygnet.load(paths, dtype=dtype, offload=False))
    assert torch.equal(frames(cygnet.load(paths, dtype=dtype, offload=True)), resident)
    assert torch.equal(frames(cygnet.load(paths, dtype=dtype, offload="stream")), resident)


def test_a_network_larger_than_memory_is_streamed_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_model(tmp_path)
    sizes = {"dit": paths["dit"].stat().st_size, "text_encoder": paths["text_encoder"].stat().st_size}
    assert sizes["dit"] > 2 * sizes["text_encoder"]
    monkeypatch.setattr("cygnet.assembly.placing.free_memory", lambda device: sizes["dit"])
    parts: Components = load_components(paths, dtype="float32").components
    with parts.use_dit() as dit, parts.use_text_encoder() as text, torch.no_grad():
        assert dit.blocks[0].ffn[0].weight.is_meta  # type: ignore[index, union-attr]
        assert not any(parameter.is_meta for parameter in text.parameters())


def test_pieces_of_memory_are_given_back_after_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[None] = []
    monkeypatch.setattr(streaming, "give_back_pieces", lambda: given_back.append(None))
    _, module, stream, _ = streamed(0)
    with torch.no_grad():
        module(torch.randn(1, 8))
    assert len(given_back) == 3, "the first of four blocks follows none"
    stream.close()
