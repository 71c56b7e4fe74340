"""Compiled blocks, 8-bit products and the VAE's two dtypes, and the one value that chooses among them."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_block_swap import SMALL, evaluate, network

import cygnet
from cygnet.assembly import Execution, load_components, load_vae, placing
from cygnet.assembly.memory import weights_taken
from cygnet.errors import RequestError
from cygnet.runtime import compile as compiling
from cygnet.runtime import execution as executing
from cygnet.runtime.compile import CompiledForward, compile_blocks
from cygnet.runtime.fp8 import Fp8Linear, check_fp8, round_rows, use_fp8
from cygnet.runtime.plan import Weights
from cygnet.runtime.precision import pick_decode_dtype
from random_models import write_model

CPU = torch.device("cpu")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for torch's compiler, which takes half a minute: notes each compiled call and makes it plainly."""
    calls: list[str] = []

    def fake(plain: Callable[..., torch.Tensor], **options: Any) -> Callable[..., torch.Tensor]:
        assert options == {"dynamic": False, "fullgraph": True}

        def run(*args: Any, **named: Any) -> torch.Tensor:
            calls.append("compiled")
            return plain(*args, **named)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    return calls


def test_every_block_runs_compiled(counted: list[str]) -> None:
    dit, plain = network(), network()
    compile_blocks(dit, ("blocks",), True, CPU)
    assert torch.equal(evaluate(dit), evaluate(plain))
    assert len(counted) == SMALL.num_layers


def test_auto_leaves_small_videos_alone_and_false_all(counted: list[str]) -> None:
    for mode in ("auto", False):
        dit = network()
        compile_blocks(dit, ("blocks",), mode, CPU)  # type: ignore[arg-type]
        evaluate(dit)
    assert not counted


@pytest.mark.parametrize(
    ("tokens", "dtype", "compiled"),
    [(1280, torch.bfloat16, True), (600, torch.bfloat16, False), (1280, torch.float32, False)],
)
def test_auto_compiles_long_steps_on_a_processor(
    counted: list[str], tokens: int, dtype: torch.dtype, compiled: bool
) -> None:
    dit = network()
    compile_blocks(dit, ("blocks",), "auto", CPU)
    with torch.no_grad(), pytest.raises(TypeError):  # the block wants more arguments; which one was asked is all
        dit.blocks[0].forward(torch.zeros(1, tokens, 1536, dtype=dtype))
    assert counted == ["compiled"] * compiled


def test_auto_compiles_long_videos_on_a_gpu() -> None:
    assert compiling.pays("cuda", torch.bfloat16, 32_760, 1536)
    assert not compiling.pays("cuda", torch.bfloat16, 1_280, 1536)


def test_a_block_that_is_watched_runs_plain(counted: list[str]) -> None:
    dit = network()
    compile_blocks(dit, ("blocks",), True, CPU)
    hook = dit.blocks[2].ffn[0].register_forward_hook(lambda *_: None)  # type: ignore[index, union-attr, operator]
    evaluate(dit)
    assert len(counted) == SMALL.num_layers - 1
    hook.remove()
    dit.blocks[2].register_forward_pre_hook(lambda *_: None)
    evaluate(dit)
    assert len(counted) == 2 * SMALL.num_layers - 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_runs_compiled_with_its_own_weights(copied: Callable[[Any], Any], counted: list[str]) -> None:
    dit, plain = network(), network()
    compile_blocks(dit, ("blocks",), True, CPU)
    evaluate(dit)
    other = copied(dit)
    for changed in (other, plain):
        for parameter in changed.parameters():
            parameter.data *= 0.5
    assert torch.equal(evaluate(other), evaluate(plain))
    assert not torch.equal(evaluate(other), evaluate(dit))
    assert len(counted) == 4 * SMALL.num_layers


def test_training_runs_plain(counted: list[str]) -> None:
    dit = network()
    compile_blocks(dit, ("blocks",), True, CPU)
    dit(torch.zeros(1, 16, 1, 2, 2), torch.tensor([1.0]), torch.zeros(1, 1, 8))
    assert not counted


def test_learning_compiles_the_passes_with_gradients_alone(counted: list[str]) -> None:
    dit = network()
    compile_blocks(dit, ("blocks",), True, CPU, learning=True)
    evaluate(dit)
    assert not counted
    dit(torch.zeros(1, 16, 1, 2, 2), torch.tensor([1.0]), torch.zeros(1, 1, 8))
    assert len(counted) == SMALL.num_layers


def test_a_compiler_that_fails_is_left_alone_after_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import Unsupported

    tried: list[int] = []

    def fake(_: object, **__: object) -> Callable[..., torch.Tensor]:
        def run(*_: Any, **__: Any) -> torch.Tensor:
            tried.append(1)
            raise Unsupported("no such operator")

        return run

    monkeypatch.setattr(torch, "compile", fake)
    dit, plain = network(), network()
    compile_blocks(dit, ("blocks",), True, CPU)
    with caplog.at_level(logging.WARNING, "cygnet"):
        assert torch.equal(evaluate(dit), evaluate(plain))
        assert torch.equal(evaluate(dit), evaluate(plain))
    assert len(tried) == 1
    assert caplog.text.count("blocks run uncompiled, for the compiler failed: no such operator") == 1


def test_a_missing_compiler_is_said_when_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "missing_for_compiling", lambda _: "no C compiler is found; install gcc")
    with caplog.at_level(logging.WARNING, "cygnet"):
        compile_blocks(network(), ("blocks",), "auto", CPU)
        assert not caplog.text
        compile_blocks(network(), ("blocks",), True, CPU)
    assert "blocks are not compiled: no C compiler is found; install gcc" in caplog.text


def test_what_is_missing_for_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling.missing_for_compiling.cache_clear()
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    assert compiling.missing_for_compiling("cpu") == "no C++ compiler is found (g++); install g++"
    assert compiling.missing_for_compiling("mps") == "torch does not compile for mps here"
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/bin/{name}" if name in ("gcc", "own") else None)
    compiling.missing_for_compiling.cache_clear()
    assert compiling.missing_for_compiling("cpu") is not None  # a compiler of C alone does not do
    monkeypatch.setenv("CXX", "own")
    assert (compiling.find_compiler("cpu"), compiling.find_compiler("cuda")) == ("own", "gcc")
    compiling.missing_for_compiling.cache_clear()


# 8-bit products


def test_rounding_rows_keeps_what_eight_bits_can() -> None:
    x = torch.randn(5, 64) * torch.tensor([1e-6, 1e-2, 1.0, 1e3, 0.0])[:, None]
    stored, scale = round_rows(x)
    assert stored.dtype == torch.float8_e4m3fn
    assert torch.isfinite(stored.float()).all()
    assert ((stored.float() * scale - x).abs() <= 2**-4 * x.abs() + 1e-3 * x.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_an_eight_bit_product_is_near_the_exact_one(bias: bool) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Linear(64, 48, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(2, 7, 64, dtype=torch.bfloat16)
    out, exact = Fp8Linear(layer)(x), layer(x)
    assert out.shape == exact.shape
    assert out.dtype == exact.dtype
    assert 0 < float((out - exact).float().norm() / exact.float().norm()) < 0.05


def test_the_first_and_last_block_and_all_but_the_large_layers_stay() -> None:
    dit = network()
    assert use_fp8(dit, "blocks") == 2 * 8
    inside = {name for name, part in dit.named_modules() if isinstance(part, Fp8Linear)}
    assert {name.split(".")[1] for name in inside} == {"1", "2"}
    assert "blocks.1.cross_attn.k" not in inside
    assert "blocks.1.ffn.2" in inside


def test_a_device_without_eight_bit_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="fp8 products need a CUDA device; cpu has none: leave them out"):
        check_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    with pytest.raises(RequestError, match=r"need compute capability 8\.9 .*; A100 has 8\.0"):
        check_fp8(torch.device("cuda"))


# The VAE's two dtypes


def test_decoding_in_bfloat16_leaves_encoding_as_it_was_and_is_near() -> None:
    vae, half = cygnet.load_vae("tiny-vae"), load_vae("tiny-vae", decode_dtype="bfloat16")
    assert (half.dtype, half.decode_dtype) == (torch.float32, torch.bfloat16)
    video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode(video)
    assert torch.equal(half.encode(video), latents)
    exact, near = vae.decode(latents), half.decode(latents)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).square().mean()) < 1e-4  # 46 dB of a range of 2


def test_float32_asked_for_is_float32_all_through(tmp_path: Path) -> None:
    place = write_model(tmp_path)
    plain = load_components(place, device="cpu", dtype="float32")
    assert plain.decode_dtype == torch.float32
    assert plain.describe()["components"]["vae"]["decode_dtype"] == "float32"
    half = load_components(place, device="cpu", dtype="float32", execution=Execution(decode_dtype="bfloat16"))
    assert half.decode_dtype == torch.bfloat16
    with half.components.use_vae() as vae:
        assert (vae.dtype, vae.decode_dtype) == (torch.float32, torch.bfloat16)


def test_what_decodes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    from cygnet.runtime import precision

    cpu = torch.device("cpu")
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: True)
    assert pick_decode_dtype(cpu) == torch.bfloat16
    assert pick_decode_dtype(cpu, torch.float16) == torch.bfloat16
    assert pick_decode_dtype(cpu, torch.float32) == torch.float32
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: False)
    assert pick_decode_dtype(cpu) == torch.float32


# The one value


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attention": "fast"}, "attention is 'fast'; give one of: auto, torch, flash3, sage"),
        ({"compile": "always"}, "compile is 'always'; give True, False or \"auto\""),
        ({"decode_dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Execution(**wrong)
    assert message in str(caught.value)


def test_fp8_on_a_cpu_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="fp8 products need a CUDA device"):
        load_components(tmp_path / "nothing", device="cpu", execution=Execution(fp8=True))


def test_a_loaded_transformer_computes_as_chosen(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executing, "check_fp8", lambda _: None)
    model = load_components(
        write_model(tmp_path), device="cpu", dtype="bfloat16", execution=Execution(fp8=True, compile=True)
    )
    with model.components.use_dit() as dit:
        assert all(isinstance(block.forward, CompiledForward) for block in dit.blocks)
    assert model.describe()["fp8"] is True


def swapped(taken: Weights) -> Weights:
    return replace(taken, swaps=True, streamed=taken.swapped or None)


def test_fp8_products_on_blocks_that_are_swapped_are_those_of_resident_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executing, "check_fp8", lambda _: None)
    monkeypatch.setattr(executing, "use_fp8", functools.partial(use_fp8, keep=()))  # it has a first and a last block
    monkeypatch.setattr(placing, "weights_taken", lambda *which: swapped(weights_taken(*which)))
    place, fp8 = write_model(tmp_path), Execution(fp8=True)
    answers = []
    for offload in (False, "stream"):
        model = load_components(place, device="cpu", dtype="bfloat16", offload=offload, execution=fp8)  # type: ignore[arg-type]
        with model.components.use_dit() as dit, torch.no_grad():
            inside = [name for name, part in dit.named_modules() if isinstance(part, Fp8Linear)]
            answers.append(
                dit(torch.ones(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.ones(1, 3, dit.config.text_dim))
            )
        model.components.residency.release("dit")
    assert torch.equal(*answers)
    assert inside


def test_fp8_products_on_weights_that_are_streamed_from_the_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executing, "check_fp8", lambda _: None)
    with pytest.raises(RequestError, match="fp8 products need the transformer's weights in memory"):
        load_components(write_model(tmp_path), device="cpu", offload="stream", execution=Execution(fp8=True))


@pytest.mark.parametrize("offload", ["streamed", "Stream", "foo", 5, 1])
@pytest.mark.parametrize("ask", [cygnet.load, cygnet.plan])
def test_offload_is_one_of_four(ask: Any, offload: Any) -> None:
    with pytest.raises(RequestError, match='give True, False, None or "stream"'):
        ask("tiny-t2v", device="cpu", offload=offload)


@pytest.mark.parametrize("ask", [cygnet.load, cygnet.plan])
def test_execution_is_an_execution(ask: Any) -> None:
    with pytest.raises(RequestError, match=r"execution is '3'; give a cygnet\.Execution"):
        ask("tiny-t2v", device="cpu", execution=3)
