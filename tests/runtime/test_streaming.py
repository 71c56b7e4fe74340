from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import cygnet
from cygnet.assembly import Execution, load_components
from cygnet.models.dit.model import DiT
from cygnet.pipelines.components import Components
from cygnet.runtime import streaming
from cygnet.runtime.compile import missing_for_compiling
from cygnet.runtime.streaming import MatrixStream, streamed_names
from random_models import write_model
from support import fill


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


def test_a_network_whose_stream_is_closed_refuses_to_run() -> None:
    """Torch itself would multiply by a matrix without values, and give noise."""
    _, module, stream, _ = streamed(0)
    with torch.no_grad():
        module(torch.randn(1, 8))
        stream.close()
        with pytest.raises(RuntimeError, match=r"blocks\.0\.0\.weight is not in memory: .* the use is over"):
            module(torch.randn(1, 8))


def test_a_layer_that_is_called_by_itself_refuses_to_run_while_its_weight_is_away() -> None:
    _, module, stream, _ = streamed(0)
    with torch.no_grad():
        module(torch.randn(1, 8))
        module.blocks[3][1](torch.randn(1, 8))  # type: ignore[index]
        with pytest.raises(RuntimeError, match=r"blocks\.2\.1\.weight is not in memory"):
            module.blocks[2][1](torch.randn(1, 8))  # type: ignore[index]
    stream.close()


def test_threads_take_turns_within_one_network() -> None:
    resident, module, stream, _ = streamed(300)
    inputs = [torch.randn(3, 8) for _ in range(4)]

    def answers(x: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [module(x) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answers, inputs))
    with torch.no_grad():
        assert all(torch.equal(each, resident(x)) for x, several in zip(inputs, found, strict=True) for each in several)
    stream.close()


def frames(wan: cygnet.Wan, seed: int = 1) -> torch.Tensor:
    return torch.as_tensor(
        wan.generate("a red ball", num_frames=5, size=(32, 32), num_steps=2, seed=seed, negative_prompt="blue").frames
    )


def test_two_threads_with_one_streamed_model_make_the_right_videos(tmp_path: Path) -> None:
    paths = write_model(tmp_path)
    resident = cygnet.load(paths, dtype="float32", offload=False)
    wanted = [frames(resident, seed) for seed in range(4)]
    wan = cygnet.load(paths, dtype="float32", offload="stream")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: frames(wan, seed), range(4)))
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert wan.model.residency.now.present == ()  # type: ignore[attr-defined]


def test_a_video_that_is_left_half_way_keeps_no_other_waiting(tmp_path: Path) -> None:
    wan = cygnet.load(write_model(tmp_path), dtype="float32", offload="stream")
    left = wan.stream("a red ball", num_frames=9, size=(32, 32), num_steps=1, seed=1, negative_prompt="blue")
    next(iter(left))
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(frames, wan).result(timeout=60)) == 5


@pytest.fixture
def graphs() -> Any:
    """How many functions torch's compiler has made so far."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def velocity(paths: Any, dtype: str, offload: Any, *, compiled: bool) -> torch.Tensor:
    parts: Components = load_components(
        paths, device="cpu", dtype=dtype, offload=offload, execution=Execution(compile=compiled)
    ).components
    with parts.use_dit() as dit, torch.no_grad():
        first, second = (
            dit(fill("x", [1, 16, 2, 4, 4]), torch.tensor([500.0]), fill("c", [1, 5, 32])) for _ in range(2)
        )
    parts.residency.release("dit")
    assert torch.equal(first, second), "the second pass reads ahead"
    return first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_give_the_same_wherever_their_weights_are(dtype: str, graphs: Any, tmp_path: Path) -> None:
    """By the real compiler, which is called once for all blocks, and once for all ways of holding them."""
    if missing := missing_for_compiling("cpu"):
        pytest.skip(missing)
    paths, before = write_model(tmp_path), graphs()
    resident = velocity(paths, dtype, offload=False, compiled=True)
    needed = graphs() - before
    assert needed == 1
    assert not torch.equal(velocity(paths, dtype, offload=False, compiled=False), resident), "running plain shows"
    for offload in (True, "stream"):
        assert torch.equal(velocity(paths, dtype, offload, compiled=True), resident)
    assert graphs() - before == needed


def test_stepping_down_from_compiled_blocks_makes_the_same_video(
    graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing := missing_for_compiling("cpu"):
        pytest.skip(missing)
    paths, real, calls = write_model(tmp_path), DiT.forward, list[int]()

    def load(offload: bool) -> cygnet.Wan:
        return cygnet.load(paths, device="cpu", dtype="bfloat16", offload=offload, execution=Execution(compile=True))

    def failing(self: DiT, latents: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        if not latents.is_meta:
            calls.append(1)
            if len(calls) == 2:
                raise MemoryError
        return real(self, latents, *args, **named)

    resident, needed = frames(load(False)), graphs()
    wan = load(True)
    monkeypatch.setattr(DiT, "forward", failing)
    assert torch.equal(frames(wan), resident)
    assert wan.model.residency.placement.streamed == {"dit"}
    assert graphs() == needed


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
