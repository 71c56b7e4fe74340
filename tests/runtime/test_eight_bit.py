from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cygnet
from cygnet.assembly import load_dit, load_text_encoder
from cygnet.runtime.eight_bit import EightBitLinear
from random_models import write_model
from support import fill

FP8 = torch.float8_e4m3fn


def with_eight_bits(path: Path, scaled: bool) -> Path:
    """The file with its blocks' matrices in fp8, plain or with one scale each."""
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    for name, value in list(state.items()):
        if name.startswith("blocks.") and value.ndim == 2:
            scale = value.abs().max().float() / 448 if scaled else torch.tensor(1.0)
            state[name] = (value.float() / scale).to(FP8)
            if scaled:
                state[name.removesuffix(".weight") + ".scale_weight"] = scale
    if scaled:
        state["scaled_fp8"] = torch.zeros(0, dtype=FP8)
    save_file(state, path)
    return path


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return fill("x", [1, 16, 2, 4, 4]), torch.tensor([500.0]), fill("c", [1, 5, 32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
def test_matrices_kept_in_eight_bits_give_the_same_velocity_bit_for_bit(
    scaled: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = with_eight_bits(write_model(tmp_path)["dit"], scaled)
    wide, narrow = load_dit(path, dtype), load_dit(path, dtype, eight_bit=True)
    assert isinstance(narrow.blocks[0].ffn[0], EightBitLinear)  # type: ignore[index, union-attr]
    assert torch.equal(narrow(*inputs()), wide(*inputs()))

    def held(dit: torch.nn.Module) -> int:
        return sum(it.nbytes for it in (*dit.blocks.parameters(), *dit.blocks.buffers()))  # type: ignore[union-attr, operator]

    assert held(narrow) < (0.62 if dtype == torch.bfloat16 else 0.35) * held(wide)


def test_matrices_rounded_to_eight_bits_are_kept_in_them(tmp_path: Path) -> None:
    path = write_model(tmp_path)["dit"]
    rounded, exact = load_dit(path, rounded=FP8), load_dit(path)
    for name, weight in exact.named_parameters():
        if name.startswith("blocks.") and weight.ndim == 2:
            weight.copy_(weight.to(FP8))
    assert torch.equal(rounded(*inputs()), exact(*inputs()))
    assert rounded.blocks[1].self_attn.q.stored.dtype == FP8  # type: ignore[index, union-attr]


def test_a_model_that_fits_in_eight_bits_alone_is_kept_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_model(tmp_path)
    with_eight_bits(paths["dit"], scaled=True)

    def video() -> torch.Tensor:
        wan = cygnet.load(paths, dtype="float32")
        made = wan.generate("a red ball", num_frames=5, size=(32, 32), num_steps=2, seed=1, negative_prompt="blue")
        with wan.model.components.use_dit() as dit:
            kept.append(isinstance(dit.blocks[0].ffn[0], EightBitLinear))  # type: ignore[index, union-attr]
        return torch.as_tensor(made.frames)

    kept: list[bool] = []
    frames = video()
    wide = sum(path.stat().st_size for path in paths.values())  # more than eight bits take, less than all at float32
    monkeypatch.setattr("cygnet.assembly.placing.free_memory", lambda device: wide * 1.8)
    assert torch.equal(video(), frames)
    assert kept == [False, True]


def test_what_is_no_linear_layer_is_widened_although_it_lies_in_a_block(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = write_model(tmp_path)["text_encoder"]
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({name: it.to(FP8) if it.ndim == 2 else it for name, it in state.items()}, path, notes)
    wide, narrow = (load_text_encoder(path, eight_bit=kept).encode("a red ball") for kept in (False, True))
    assert torch.equal(wide, narrow)
