"""Weights that are rounded to 8 bits as they are loaded: what is, how near it is, and where it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cygnet.assembly import Execution, load_components, load_dit, placing, weights_taken
from cygnet.assembly import eight_bit as assembling
from cygnet.checkpoints import read_component, save_official
from cygnet.errors import RequestError, WeightFileError
from cygnet.models.dit.model import DiT
from cygnet.ops.quantised import dequantise, quantise_rows
from cygnet.runtime.block_swap import BlockSwap
from cygnet.runtime.eight_bit import EightBitLinear, WeightDtype, between_ends
from cygnet.runtime.plan import Weights
from cygnet.runtime.streaming import streamed_names
from cygnet.types import ComponentName
from random_models import dit_config, state_of, write_model
from support import fill, relative_l2

KINDS: Mapping[WeightDtype, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
BOTH = pytest.mark.parametrize("name", KINDS)
Q = "blocks.1.self_attn.q"


@pytest.fixture
def paths(tmp_path: Path) -> dict[ComponentName, Path]:
    """A model of four blocks."""
    config = replace(dit_config("t2v"), num_layers=4)
    return {**write_model(tmp_path), "dit": save_official(tmp_path / "four.safetensors", state_of(config), config)}


def answer(dit: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return dit(fill("x", [1, 16, 2, 4, 4]), torch.tensor([500.0]), fill("c", [1, 5, 32]))  # type: ignore[no-any-return]


def rounded(dit: DiT) -> dict[str, EightBitLinear]:
    return {name.removesuffix(".layer"): part for name, part in dit.named_modules() if isinstance(part, EightBitLinear)}


def lora(path: Path, layer: str = Q, scale: float = 1.0) -> Path:
    factors = {"lora_down": fill("down", [4, 128]), "lora_up": scale * fill("up", [128, 4])}
    save_file({f"diffusion_model.{layer}.{name}.weight": value for name, value in factors.items()}, path)
    return path


# The numbers


@BOTH
def test_a_rounded_row_is_off_by_no_more_than_its_type_allows(name: WeightDtype) -> None:
    x = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([1e-6, 1e-2, 1.0, 1e3, 0.0, 1.0])[:, None]
    stored, scale = quantise_rows(x.clone(), KINDS[name])
    assert (stored.dtype, scale.dtype, scale.shape) == (KINDS[name], torch.float32, (6, 1))
    most = 127 if name == "int8" else 448
    exact = x.double().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / most
    assert torch.allclose(scale.double(), exact, rtol=1e-6)
    assert float(stored.double().abs().amax()) == most, "the whole range is used"
    found = stored.double() * scale.double()
    bound = scale / 2 if name == "int8" else torch.maximum(x.abs() / 16, scale / 1024)
    assert ((found - x.double()).abs() <= bound.double() * (1 + 1e-5)).all()
    assert torch.equal(dequantise(stored, scale, torch.float32), (stored.float() * scale)), "one rounding"
    assert float((dequantise(stored, scale, torch.bfloat16).double() - found).abs().amax() / found.abs().amax()) < 2**-8


@BOTH
def test_each_matrix_has_the_values_of_its_file_rounded_once(
    name: WeightDtype, paths: dict[ComponentName, Path]
) -> None:
    state = load_file(paths["dit"])
    for dtype in ("float32", "bfloat16"):
        layers = rounded(load_dit(paths["dit"], dtype, execution=Execution(weight_dtype=name)))
        for path, layer in layers.items():
            wanted = state[f"{path}.weight"].double()
            most = 127 if name == "int8" else 448
            scale = wanted.abs().amax(dim=1, keepdim=True) / most
            bound = scale / 2 if name == "int8" else torch.maximum(wanted.abs() / 16, scale / 1024)
            assert layer.scale is not None
            off = (layer.stored.double() * layer.scale.double() - wanted).abs()
            assert (off <= bound * (1 + 1e-5)).all(), (dtype, path)


@BOTH
def test_the_answer_is_near_and_that_of_a_network_with_these_values(
    name: WeightDtype, paths: dict[ComponentName, Path]
) -> None:
    exact, near = load_dit(paths["dit"]), load_dit(paths["dit"], execution=Execution(weight_dtype=name))
    assert 0 < relative_l2(answer(near), answer(exact)) < (0.01 if name == "int8" else 0.03)
    for path, layer in rounded(near).items():
        exact.get_parameter(f"{path}.weight").copy_(dequantise(layer.stored, layer.scale, torch.float32))
    assert torch.equal(answer(near), answer(exact))


# What is rounded


def test_all_matrices_of_the_inner_blocks_are_rounded_and_nothing_else(paths: dict[ComponentName, Path]) -> None:
    dit = load_dit(paths["dit"], execution=Execution(weight_dtype="int8"))
    layers = set(rounded(dit))
    matrices = {it.removesuffix(".weight") for it in streamed_names(load_dit(paths["dit"]), ("blocks",))}
    assert layers == {it for it in matrices if it.split(".")[1] in ("1", "2")}
    assert len(layers) == 2 * 10
    assert all(part.dtype == torch.float32 for part in dit.parameters())


def test_every_stack_keeps_its_ends() -> None:
    names = [f"{stack}.{number}.ffn.0.weight" for stack in ("blocks", "vace_blocks") for number in range(11)]
    kept = set(names) - set(between_ends(names))
    assert kept == {f"{stack}.{number}.ffn.0.weight" for stack in ("blocks", "vace_blocks") for number in (0, 10)}
    assert between_ends(names[:1]) == []


@BOTH
def test_what_the_file_has_in_eight_bits_is_not_rounded_again(
    name: WeightDtype, paths: dict[ComponentName, Path]
) -> None:
    state = load_file(paths["dit"])
    for path in ("blocks.0.ffn.0", "blocks.1.ffn.0"):
        scale = state[f"{path}.weight"].abs().max().float() / 448
        state[f"{path}.weight"] = (state[f"{path}.weight"] / scale).to(torch.float8_e4m3fn)
        state[f"{path}.scale_weight"] = scale
    mixed = paths["dit"].with_name("mixed.safetensors")
    save_file({**state, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, mixed)
    layers = rounded(load_dit(mixed, execution=Execution(weight_dtype=name)))
    for path in ("blocks.0.ffn.0", "blocks.1.ffn.0"):
        assert torch.equal(layers[path].stored.view(torch.uint8), state[f"{path}.weight"].view(torch.uint8))
    assert layers["blocks.1.ffn.2"].stored.dtype == KINDS[name]
    assert set(layers) - {"blocks.0.ffn.0"} == set(
        rounded(load_dit(paths["dit"], execution=Execution(weight_dtype=name)))
    )


# LoRAs


@BOTH
def test_a_small_lora_runs_beside_a_rounded_matrix_and_is_merged_into_an_exact_one(
    name: WeightDtype, paths: dict[ComponentName, Path], tmp_path: Path
) -> None:
    execution = Execution(weight_dtype=name)
    for layer, apart in ((Q, True), ("blocks.3.self_attn.q", False)):
        small = lora(tmp_path / f"{layer}.safetensors", layer, 0.01)
        plain, with_it = (load_dit(paths["dit"], execution=execution, loras=it) for it in ([], [small]))
        assert hasattr(with_it.get_submodule(layer), "branch") == apart
        change = answer(with_it) - answer(plain)
        exact = answer(load_dit(paths["dit"], loras=[small])) - answer(load_dit(paths["dit"]))
        assert relative_l2(change, exact) < 0.2


def test_a_change_that_is_not_low_rank_is_merged_before_rounding(
    paths: dict[ComponentName, Path], tmp_path: Path
) -> None:
    file = tmp_path / "difference.safetensors"
    save_file({f"{Q}.diff": 0.1 * fill("d", [128, 128])}, file)
    layer = rounded(load_dit(paths["dit"], execution=Execution(weight_dtype="int8"), loras=[file]))[Q]
    wanted = load_dit(paths["dit"], loras=[file]).get_parameter(f"{Q}.weight")
    assert layer.scale is not None
    assert ((layer.stored.float() * layer.scale - wanted).abs() <= layer.scale / 2 * 1.001).all()


# Where the weights are


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resident_streamed_and_swapped_give_the_same_bit_for_bit(
    name: WeightDtype, dtype: str, paths: dict[ComponentName, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapping(*which: Any) -> Weights:
        taken = weights_taken(*which)
        return replace(taken, swaps=bool(taken.swapped), streamed=taken.swapped or None)

    answers, seen = [], []
    for offload, swaps in ((False, False), (True, False), ("stream", False), ("stream", True)):
        if swaps:
            monkeypatch.setattr(placing, "weights_taken", swapping)
            monkeypatch.setattr(placing, "BlockSwap", lambda *it: seen.append(BlockSwap(*it)) or seen[-1])
        model = load_components(
            paths,
            device="cpu",
            dtype=dtype,
            offload=offload,  # type: ignore[arg-type]
            execution=Execution(weight_dtype=name),
        )
        with model.components.use_dit() as dit:
            answers += [answer(dit), answer(dit)]
            assert (len(rounded(dit)) == 20) == (offload != "stream" or swaps)
        model.components.residency.release("dit")
    assert seen, "blocks were swapped"
    assert all(torch.equal(it, answers[0]) for it in answers)


@BOTH
def test_memory_is_counted_as_it_is_held(name: WeightDtype, paths: dict[ComponentName, Path], tmp_path: Path) -> None:
    execution = Execution(weight_dtype=name)
    weights = read_component(paths["dit"])
    for dtype in (torch.float32, torch.bfloat16):
        taken = weights_taken(weights, dtype, None, execution)
        dit = load_dit(paths["dit"], dtype, execution=execution)
        assert taken.whole == sum(it.nbytes for it in (*dit.parameters(), *dit.buffers()))
        plain = weights_taken(weights, dtype)
        matrices = sum(layer.stored.numel() for layer in rounded(dit).values())
        scales = sum(4 * layer.out_features for layer in rounded(dit).values())
        assert plain.whole - taken.whole == matrices * (dtype.itemsize - 1) - scales
        assert (taken.streamed, taken.narrow) == (plain.streamed, False)
        assert taken.swapped == plain.swapped, "the first and the last block need the room that all did"
        assert taken.widened == matrices * dtype.itemsize
    assert weights_taken(read_component(paths["text_encoder"]), torch.bfloat16, None, execution).widened == 0


def test_loading_holds_one_matrix_more_than_the_network(
    paths: dict[ComponentName, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is rounded and put in place before the next is read."""
    order: list[str] = []
    real, keep = assembling.EightBits.rounded, assembling.keep_in_eight_bits
    monkeypatch.setattr(assembling.EightBits, "rounded", lambda self, it: order.append("read") or real(self, it))
    from cygnet.assembly import build

    monkeypatch.setattr(build, "keep_in_eight_bits", lambda *it: order.extend("put" for _ in it[1]) or keep(*it))
    dit = load_dit(paths["dit"], execution=Execution(weight_dtype="fp8"))
    assert order == ["read", "put"] * 20
    assert not any(it.is_meta for it in (*dit.parameters(), *dit.buffers()))


# What is refused


def test_what_does_not_go_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="weight_dtype is 'nf4'; give one of: auto, fp8, int8"):
        Execution(weight_dtype="nf4")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="fp8 products round the matrices themselves, and weight_dtype is 'int8'"):
        Execution(fp8=True, weight_dtype="int8")
    with pytest.raises(RequestError, match="give one of the two"):
        load_dit(tmp_path / "no", rounded=torch.float8_e4m3fn, execution=Execution(weight_dtype="fp8"))


@BOTH
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_said_and_not_rounded(
    name: WeightDtype, wrong: float, paths: dict[ComponentName, Path]
) -> None:
    state = load_file(paths["dit"])
    state[f"{Q}.weight"][3, 5] = wrong
    damaged = paths["dit"].with_name("damaged.safetensors")
    save_file(state, damaged)
    with pytest.raises(WeightFileError, match=rf"{Q}.weight' of .*damaged.safetensors holds NaN or infinity"):
        load_dit(damaged, execution=Execution(weight_dtype=name))
