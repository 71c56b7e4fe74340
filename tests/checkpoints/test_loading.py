"""Weights of every layout arrive in a module bit for bit, or the difference is explained."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cygnet.checkpoints import (
    ComponentWeights,
    TensorInfo,
    materialise,
    open_weights,
    read_component,
    recognise,
    save_official,
    verify_finite,
    without_weights,
)
from cygnet.checkpoints.detect import detect_config
from cygnet.checkpoints.layouts import Layout, key_map
from cygnet.errors import ModelNotFoundError, StateMismatchError, UnknownLayoutError, WeightFileError
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import T2V_1_3B
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.model import WanVAE
from weight_samples import COMPONENT_KEYS, sample_shapes, sample_state, save

BUILD: dict[str, Callable[[Any], nn.Module]] = {
    "dit": DiT,
    "vae": WanVAE,
    "text_encoder": UMT5Encoder,
    "image_encoder": CLIPVision,
}
LAYOUTS: list[tuple[str, Layout]] = [
    *((sample, "official") for sample in COMPONENT_KEYS),
    ("t2v", "diffusers"),
    ("i2v", "diffusers"),
    ("flf2v", "diffusers"),
    ("vae", "diffusers"),
    ("umt5", "transformers"),
    ("clip", "transformers"),
    ("clip", "open_clip"),
]  # type: ignore[list-item]


def on_meta(sample: str) -> Any:
    component = COMPONENT_KEYS[sample][0]
    with without_weights():
        return BUILD[component](detect_config(component, sample_shapes(sample)))


def foreign_state(sample: str, layout: Layout) -> dict[str, torch.Tensor]:
    """The sample's weights as the foreign program would hold them."""
    state = sample_state(sample)
    names = key_map(COMPONENT_KEYS[sample][0], layout, state)
    out: dict[str, torch.Tensor] = {}
    for official, value in state.items():
        source = names.from_official(official)
        if source.how == "stack":
            out |= dict(zip(source.names, value.chunk(len(source.names)), strict=True))
        elif source.how == "transpose":
            out[source.names[0]] = value.T
        elif source.how == "lift":
            out[source.names[0]] = value.reshape([size for size in value.shape if size > 1])
        else:
            out[source.names[0]] = value
    return out


@pytest.mark.parametrize(("sample", "layout"), LAYOUTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_layout_arrives_bit_for_bit(tmp_path: Path, sample: str, layout: Layout, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    state = foreign_state(sample, layout)
    save(path, state) if suffix == ".safetensors" else torch.save(state, path)
    weights = read_component(path)
    module = materialise(on_meta(sample), weights)
    assert weights.layout == layout
    expected = sample_state(sample)
    loaded = module.state_dict()
    assert set(loaded) == set(expected)
    assert all(loaded[name].equal(value) for name, value in expected.items())


def test_a_combined_file_gives_each_component(tmp_path: Path) -> None:
    spiece = torch.arange(9, dtype=torch.uint8)
    state = {
        **{f"model.diffusion_model.{n}": t for n, t in sample_state("t2v").items()},
        **{f"vae.{n}": t for n, t in sample_state("vae").items()},
        **{f"text_encoders.umt5xxl.transformer.{n}": t for n, t in foreign_state("umt5", "transformers").items()},
        "text_encoders.umt5xxl.spiece_model": spiece,
    }
    path = save(tmp_path / "all.safetensors", state)
    assert read_component(path, "vae").tensor("conv1.bias").equal(sample_state("vae")["conv1.bias"])
    assert read_component(path, "text_encoder").tokenizer_bytes == bytes(range(9))
    assert read_component(path, "dit").tokenizer_bytes is None
    with pytest.raises(WeightFileError, match=r"holds a diffusion transformer and .*; say which component"):
        read_component(path)
    with pytest.raises(UnknownLayoutError, match="but a CLIP image encoder is needed"):
        read_component(path, "image_encoder")


def test_another_component_than_asked_for_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("vae"))
    with pytest.raises(UnknownLayoutError, match="is a Wan-VAE, but a diffusion transformer is needed here"):
        read_component(path, "dit")


# Types and memory ----------------------------------------------------------------------------------------------------


def test_without_a_cast_tensors_stay_mapped_from_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("t2v"))
    weights = read_component(path)
    module = materialise(on_meta("t2v"), weights)
    stored = weights.file.tensor("blocks.0.ffn.0.weight")
    assert module.blocks[0].ffn[0].weight.data_ptr() == stored.data_ptr()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory accounting")
@pytest.mark.parametrize("stored", [torch.float32, torch.float8_e4m3fn])
def test_converting_leaves_none_of_the_file_in_memory(tmp_path: Path, stored: torch.dtype) -> None:
    large = {f"blocks.0.self_attn.{x}.weight": torch.ones(2048, 2048).to(stored) for x in "qkvo"}
    file = open_weights(save(tmp_path / "x.safetensors", large))
    [part] = recognise(file.tensors | {"head.modulation": TensorInfo("float32", (1, 2, 2048))})
    weights = ComponentWeights("dit", "official", T2V_1_3B, "none", {}, file, part.tensors, {}, {})

    def mapped_bytes() -> int:
        line = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
        assert line is not None
        return int(line[1]) * 1024

    before = mapped_bytes()
    for name in large:
        assert float(weights.tensor(name, torch.bfloat16)[0, 0]) == 1
    assert mapped_bytes() - before < file.nbytes / 8
    kept = [file.tensor(name) for name in large]
    assert [float(it.float().sum()) for it in kept] == 4 * [2048.0**2]
    assert mapped_bytes() - before > file.nbytes / 2, "unconverted tensors are the file's own pages"
    del kept
    assert mapped_bytes() - before < file.nbytes / 8, "and those go with them"


def test_giving_pages_back_does_not_undo_what_was_written(tmp_path: Path) -> None:
    weights = read_component(save(tmp_path / "x.safetensors", sample_state("umt5")))
    mapped = weights.tensor("token_embedding.weight")
    mapped.fill_(5)
    assert weights.tensor("token_embedding.weight", torch.bfloat16).ne(5).any()
    assert mapped.eq(5).all()


def test_the_policy_keeps_sensitive_parts_in_float32(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in sample_state("t2v").items()}
    weights = read_component(save(tmp_path / "x.safetensors", half))
    module = materialise(on_meta("t2v"), weights, dtype=torch.bfloat16)
    kept = DiT.fp32_parameters
    for name, value in module.state_dict().items():
        wanted = torch.float32 if any(part in name for part in kept) else torch.bfloat16
        assert value.dtype is wanted, name
        assert value.float().equal(half[name].to(wanted).float())
    assert module.state_dict()["blocks.0.modulation"].dtype is torch.float32


def test_without_a_type_stored_types_are_kept(tmp_path: Path) -> None:
    half = {name: value.half() for name, value in sample_state("vae").items()}
    module = materialise(on_meta("vae"), read_component(save(tmp_path / "x.safetensors", half)))
    assert {value.dtype for value in module.state_dict().values()} == {torch.float16}


def test_parameters_stay_trainable_and_apart_from_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("umt5"))
    before = path.read_bytes()
    module = materialise(on_meta("umt5"), read_component(path))
    assert all(parameter.requires_grad for parameter in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_a_given_config_overrides_what_shapes_say(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", sample_state("clip"))
    detected: Any = detect_config("image_encoder", sample_shapes("clip"))
    mine = type(detected)(**{**detected.__dict__, "num_heads": 5})
    assert read_component(path, config=mine).config is mine


# What does not fit ---------------------------------------------------------------------------------------------------


def test_missing_tensors_are_counted_and_named(tmp_path: Path) -> None:
    state = sample_state("t2v")
    for name in [name for name in state if name.startswith("blocks.1.self_attn")]:
        del state[name]
    weights = read_component(save(tmp_path / "x.safetensors", state))
    with pytest.raises(StateMismatchError, match=r"10 tensors \(blocks\.1\.self_attn\..*, …\) missing.*incomplete"):
        materialise(on_meta("t2v"), weights)


def test_unknown_tensors_are_counted_and_named(tmp_path: Path) -> None:
    state = sample_state("t2v") | {f"mystery.{i}": torch.ones(1) for i in range(6)}
    path = save(tmp_path / "x.safetensors", state)
    with pytest.raises(StateMismatchError, match=r"6 tensors \(mystery\.0, .*mystery\.4, …\) belong to no such model"):
        read_component(path)


def test_another_variant_is_named_with_the_one_needed(tmp_path: Path) -> None:
    weights = read_component(save(tmp_path / "x.safetensors", sample_state("t2v")))
    with pytest.raises(StateMismatchError, match=r"missing; .*of another shape .*the file is tiny T2V .* but tiny I2V"):
        materialise(on_meta("i2v"), weights)
    with without_weights():
        large = DiT(T2V_1_3B)
    with pytest.raises(StateMismatchError, match=r"the file is tiny T2V .*, but T2V-1\.3B is needed"):
        materialise(large, weights)


def test_a_tensor_of_another_shape_is_told_with_both_shapes(tmp_path: Path) -> None:
    state = sample_state("t2v")
    state["blocks.2.norm3.bias"] = torch.ones(100)
    weights = read_component(save(tmp_path / "x.safetensors", state))
    with pytest.raises(StateMismatchError, match=r"'blocks\.2\.norm3\.bias' is \[100\], \[256\] is needed"):
        materialise(on_meta("t2v"), weights)


def test_a_mismatch_leaves_the_module_untouched(tmp_path: Path) -> None:
    state = sample_state("umt5")
    del state["norm.weight"]
    weights = read_component(save(tmp_path / "x.safetensors", state))
    module = on_meta("umt5")
    with pytest.raises(StateMismatchError):
        materialise(module, weights)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_nan_and_infinity_are_found_by_name(tmp_path: Path) -> None:
    for number, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
        state = sample_state("umt5")
        state["blocks.1.attn.k.weight"][3, 4] = bad
        weights = read_component(save(tmp_path / f"{number}.safetensors", state))
        with pytest.raises(WeightFileError, match=r"'blocks\.1\.attn\.k\.weight' .* NaN or infinity"):
            verify_finite(weights)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_matrix_of_one_value_is_found_by_name(tmp_path: Path, value: float) -> None:
    state = sample_state("umt5")
    state["blocks.0.attn.o.weight"].fill_(value)
    weights = read_component(save(tmp_path / "x.safetensors", state))
    verify_finite(weights)
    with pytest.raises(WeightFileError, match=rf"'blocks\.0\.attn\.o\.weight' .* is {value:g} throughout"):
        verify_finite(weights, allow_constant=False)


def test_an_embedded_tokenizer_must_be_a_row_of_bytes(tmp_path: Path) -> None:
    state = foreign_state("umt5", "transformers") | {"spiece_model": torch.ones(2, 2)}
    with pytest.raises(WeightFileError, match="embedded tokenizer"):
        _ = read_component(save(tmp_path / "x.safetensors", state)).tokenizer_bytes


def test_a_lazy_state_reads_like_a_state_dict(tmp_path: Path) -> None:
    expected = sample_state("umt5")
    weights = read_component(save(tmp_path / "x.safetensors", expected))
    lazy = weights.lazy_state()
    assert dict(lazy.items()).keys() == expected.keys()
    assert all(lazy[name].equal(value) for name, value in expected.items())
    assert weights.parameters == sum(value.numel() for value in expected.values())
    copy = save_official(tmp_path / "y.safetensors", lazy, weights.config)
    assert open_weights(copy).tensor("norm.weight").equal(expected["norm.weight"])


def test_building_without_weights_needs_no_compiler_and_no_memory() -> None:
    program = (
        "import sys; from cygnet.checkpoints import without_weights;"
        "from cygnet.models.umt5.config import UMT5_XXL; from cygnet.models.umt5.model import UMT5Encoder;"
        "from cygnet.models.dit.config import I2V_14B; from cygnet.models.dit.model import DiT\n"
        "with without_weights(): modules = [UMT5Encoder(UMT5_XXL), DiT(I2V_14B)]\n"
        "assert all(parameter.is_meta for module in modules for parameter in module.parameters());"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_initialisers_outside_the_meta_device_still_run() -> None:
    outside = torch.zeros(3)
    with without_weights():
        nn.init.ones_(outside)
    assert outside.tolist() == [1, 1, 1]


def test_a_missing_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_component(tmp_path / "none.safetensors")
