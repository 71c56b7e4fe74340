"""LoRAs on matrices that stay in 8 bits or are read block by block: branches beside them, as good as merging."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cygnet.assembly import load_components, load_dit
from cygnet.checkpoints.catalogue import resolve
from cygnet.checkpoints.lora import save_adapters
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable, fresh_adapters
from cygnet.pipelines.components import Components
from cygnet.runtime.eight_bit import EightBitLinear
from cygnet.runtime.execution import Execution
from random_models import write_model
from support import fill, relative_l2

FP8 = torch.float8_e4m3fn
Q, OUT, GATE = "blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.0"


def pair(module: str, out: int = 128, inner: int = 128, rank: int = 4) -> dict[str, torch.Tensor]:
    return {
        f"diffusion_model.{module}.lora_down.weight": fill(f"{module} down", [rank, inner]),
        f"diffusion_model.{module}.lora_up.weight": 0.3 * fill(f"{module} up", [out, rank]),
        f"diffusion_model.{module}.alpha": torch.tensor(2.0),
    }


def hadamard(module: str) -> dict[str, torch.Tensor]:
    shapes = {"w1_a": [128, 3], "w1_b": [3, 128], "w2_a": [128, 2], "w2_b": [2, 128]}
    return {f"{module}.hada_{part}": 0.9 * fill(f"{module}{part}", shape) for part, shape in shapes.items()}


LORAS: dict[str, tuple[dict[str, torch.Tensor], frozenset[str]]] = {
    "low rank": (pair(Q) | pair(OUT) | pair(GATE, 96) | {
        f"diffusion_model.{Q}.diff_b": fill("bias", [128]), "diffusion_model.blocks.0.norm3.diff": fill("n", [128]),
        "diffusion_model.blocks.1.diff_m": 0.1 * fill("m", [1, 6, 128]),
        "diffusion_model.patch_embedding.lora_down.weight": fill("pd", [2, 16, 1, 2, 2]),
        "diffusion_model.patch_embedding.lora_up.weight": fill("pu", [128, 2, 1, 1, 1]),
    }, frozenset({Q, OUT, GATE})),
    "Hadamard": (hadamard(Q), frozenset({Q})),
    "Kronecker": ({f"{Q}.lokr_w1": fill("a", [8, 4]), f"{Q}.lokr_w2": 0.2 * fill("b", [16, 32])}, frozenset()),
    "lengths": (pair(Q) | {f"diffusion_model.{Q}.dora_scale": 1 + 0.1 * fill("l", [128, 1])}, frozenset()),
    "difference": ({f"{Q}.diff": 0.1 * fill("d", [128, 128])}, frozenset()),
}  # fmt: skip


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    save_file(dict(tensors), path)
    return path


def in_eight_bits(path: Path) -> Path:
    state = load_file(path)
    for name, value in list(state.items()):
        if name.startswith("blocks.") and value.ndim == 2:
            scale = value.abs().max().float() / 448
            state[name] = (value.float() / scale).to(FP8)
            state[name.removesuffix(".weight") + ".scale_weight"] = scale
    save_file({**state, "scaled_fp8": torch.zeros(0, dtype=FP8)}, path)
    return path


def answer(dit: torch.nn.Module, text: int = 32) -> torch.Tensor:
    with torch.no_grad():
        return dit(fill("x", [1, 16, 2, 4, 4]), torch.tensor([500.0]), fill("c", [1, 5, text]))  # type: ignore[no-any-return]


def streamed_answer(paths: dict[str, Path], dtype: str, loras: list[tuple[Path, float]]) -> torch.Tensor:
    parts: Components = load_components(
        {str(name): path for name, path in paths.items()}, dtype=dtype, offload="stream", loras=loras
    ).components
    with parts.use_dit() as dit:
        first, second = answer(dit), answer(dit)
    assert torch.equal(first, second), "the second pass reads ahead"
    parts.residency.release("dit")
    return first


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_an_eight_bit_model_the_result_is_that_of_merging(tmp_path: Path, kind: str, dtype: str) -> None:
    tensors, beside = LORAS[kind]
    path, lora = in_eight_bits(write_model(tmp_path)["dit"]), write(tmp_path / "lora.safetensors", tensors)
    merged, narrow = (load_dit(path, dtype, loras=[(lora, 0.7)], eight_bit=kept) for kept in (False, True))
    layers = {name.removesuffix(".layer"): layer for name, layer in narrow.named_modules()}
    kept = {name for name, layer in layers.items() if isinstance(layer, EightBitLinear)}
    assert (Q in kept) == (Q in beside), "what is not low-rank is merged, and its matrix widened"
    assert len(kept) == 20 - (0 if beside else 1)
    exact = answer(load_dit(path, "float32", loras=[(lora, 0.7)]))
    assert relative_l2(answer(load_dit(path, "float32")), exact) > 0.02, "it matters"
    if dtype == "float32":
        assert relative_l2(answer(narrow), exact) < 1e-5
    else:
        assert relative_l2(answer(narrow), exact) < 1.3 * relative_l2(answer(merged), exact)


@pytest.mark.parametrize("kind", LORAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_streamed_model_the_result_is_that_of_merging(tmp_path: Path, kind: str, dtype: str) -> None:
    paths, lora = write_model(tmp_path), write(tmp_path / "lora.safetensors", LORAS[kind][0])
    exact = answer(load_dit(paths["dit"], "float32", loras=[(lora, 0.7)]))
    got = streamed_answer({str(k): v for k, v in paths.items()}, dtype, [(lora, 0.7)])
    limit = (
        1e-5
        if dtype == "float32"
        else 1.3 * relative_l2(answer(load_dit(paths["dit"], dtype, loras=[(lora, 0.7)])), exact)
    )
    assert relative_l2(got, exact) < limit


def test_several_loras_on_one_matrix_are_one_branch(tmp_path: Path) -> None:
    path = in_eight_bits(write_model(tmp_path)["dit"])
    first, second = write(tmp_path / "a.safetensors", pair(Q)), write(tmp_path / "b.safetensors", hadamard(Q))
    loras = [(first, 0.5), (second, -1.0)]
    assert relative_l2(answer(load_dit(path, loras=loras, eight_bit=True)), answer(load_dit(path, loras=loras))) < 1e-5


def test_a_small_change_is_not_rounded_away_with_the_matrix_beside_it(tmp_path: Path) -> None:
    path = write_model(tmp_path)["dit"]
    small = {name: it * 0.01 if name.endswith("up.weight") else it for name, it in pair(Q).items()}
    lora = write(tmp_path / "small.safetensors", small)

    def change(**options: object) -> torch.Tensor:
        with_it, without = load_dit(path, loras=[lora], **options), load_dit(path, **options)  # type: ignore[arg-type]
        return answer(with_it) - answer(without)

    dit: DiT = load_dit(path, loras=[lora], rounded=FP8)
    assert isinstance(dit.get_submodule(f"{Q}.layer"), EightBitLinear)
    assert relative_l2(change(rounded=FP8), change()) < 0.2


def test_memory_is_counted_with_the_branches(tmp_path: Path) -> None:
    from cygnet.assembly import weights_taken
    from cygnet.checkpoints import read_component
    from cygnet.checkpoints.lora import with_loras

    weights = read_component(in_eight_bits(write_model(tmp_path)["dit"]))
    lora = write(tmp_path / "lora.safetensors", pair(Q))
    patched = with_loras(weights, [(lora, 1.0)])
    taken = [weights_taken(each, torch.bfloat16).eight_bit for each in (patched, weights)]
    assert taken[0] - taken[1] == 2 * 4 * (128 + 128)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("options", "limit"),
    [({"eight_bit": True}, 0.03), ({"execution": Execution(compile=True), "eight_bit": True}, 0.03),
     ({"execution": Execution(fp8=True)}, 0.06)],
    ids=["8 bits", "compiled", "fp8 products"],
)  # fmt: skip
def test_on_a_gpu_the_result_is_that_of_merging(tmp_path: Path, options: dict[str, Any], limit: float) -> None:
    source = tmp_path / "dit.safetensors"
    save_file(load_file(resolve("tiny-t2v")["dit"]), source)
    adapters = fresh_adapters(load_dit(source), adaptable(load_dit(source)), rank=8)
    for name, branch in adapters.branches.items():
        branch.up.data = 0.5 * fill(name, list(branch.up.shape))
    loras = [(save_adapters(tmp_path / "lora.safetensors", adapters), 1.0)]
    path = in_eight_bits(source) if "eight_bit" in options else source
    exact = answer(load_dit(path, "float32", loras=loras), 192)
    assert relative_l2(answer(load_dit(path, "float32"), 192), exact) > limit, "it matters"
    assert relative_l2(answer(load_dit(path, "bfloat16", "cuda", loras=loras, **options), 192).cpu(), exact) < limit
