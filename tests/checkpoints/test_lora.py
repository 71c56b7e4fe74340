"""Every dialect of LoRA changes the same weights in the same way, wholly or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cygnet.checkpoints import ComponentWeights, read_component, save_official
from cygnet.checkpoints.lora import official_module, read_lora, with_loras
from cygnet.checkpoints.lora.scales import METADATA_KEY
from cygnet.errors import RequestError, StateMismatchError, WeightFileError
from random_models import dit_config, state_of
from support import relative_l2

Q = "blocks.0.self_attn.q"
FFN = "blocks.1.ffn.2"
RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ComponentWeights:
    config = dit_config("t2v")
    return read_component(save_official(tmp_path_factory.mktemp("dit") / "dit.safetensors", state_of(config), config))


@pytest.fixture(scope="module")
def image_base(tmp_path_factory: pytest.TempPathFactory) -> ComponentWeights:
    config = dit_config("i2v")
    return read_component(save_official(tmp_path_factory.mktemp("i2v") / "dit.safetensors", state_of(config), config))


def factors(seed: int = 0, out: int = 128, inner: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, RANK, generator=generator), torch.randn(RANK, inner, generator=generator)


def write(tmp_path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = tmp_path / "lora.safetensors"
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)
    return path


UP, DOWN = factors()
ALPHA = torch.tensor(2.0)
DIALECTS: dict[str, tuple[str, str, str | None]] = {
    "ComfyUI": (
        f"diffusion_model.{Q}.lora_A.weight", f"diffusion_model.{Q}.lora_B.weight", f"diffusion_model.{Q}.alpha",
    ),
    "ComfyUI down/up": (f"diffusion_model.{Q}.lora_down.weight", f"diffusion_model.{Q}.lora_up.weight", None),
    "Diffusers": (
        "transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight", None,
    ),
    "PEFT": (
        "base_model.model.blocks.0.attn1.to_q.lora_A.weight", "base_model.model.blocks.0.attn1.to_q.lora_B.weight",
        None,
    ),
    "kohya": (
        "lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.lora_up.weight",
        "lora_unet_blocks_0_self_attn_q.alpha",
    ),
    "VideoX-Fun": (
        "lora_unet__blocks_0_self_attn_q.lora_down.weight", "lora_unet__blocks_0_self_attn_q.lora_up.weight",
        "lora_unet__blocks_0_self_attn_q.alpha",
    ),
    "DiffSynth": (f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight", None),
    "old Diffusers": (f"{Q}_lora.down.weight", f"{Q}_lora.up.weight", None),
    "linear layer": (f"{Q}.lora_linear_layer.down.weight", f"{Q}.lora_linear_layer.up.weight", None),
    "bare": (f"{Q}.lora_A", f"{Q}.lora_B", None),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_changes_the_weight_it_means(tmp_path: Path, base: ComponentWeights, dialect: str) -> None:
    down, up, alpha = DIALECTS[dialect]
    path = write(tmp_path, {down: DOWN, up: UP} | ({} if alpha is None else {alpha: ALPHA}))
    merged = with_loras(base, [(path, 0.5)])
    scale = 0.5 * (1 if alpha is None else 2 / RANK)
    before = base.tensor(f"{Q}.weight")
    assert relative_l2(merged.tensor(f"{Q}.weight") - before, scale * UP @ DOWN) < 1e-5
    assert torch.equal(merged.tensor(f"{Q}.bias"), base.tensor(f"{Q}.bias"))
    assert merged.coverage[0].matched == merged.coverage[0].total == 1
    assert torch.equal(base.tensor(f"{Q}.weight"), before), "the model itself is left alone"


def test_ranks_and_alphas_may_stand_in_the_header(tmp_path: Path, base: ComponentWeights) -> None:
    names = ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q")
    tensors = {f"transformer.{it}.lora_{x}.weight": value for it in names for x, value in (("A", DOWN), ("B", UP))}
    note = {
        "transformer.r": RANK, "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"blocks.1.attn1.to_q": 2}, "transformer.rank_pattern": {},
    }  # fmt: skip
    merged = with_loras(base, [(write(tmp_path, tensors, {METADATA_KEY: json.dumps(note)}), 1.0)])
    for block, scale in ((0, 2.0), (1, 0.5)):
        name = f"blocks.{block}.self_attn.q.weight"
        assert relative_l2(merged.tensor(name) - base.tensor(name), scale * UP @ DOWN) < 1e-5


def test_differences_of_weights_biases_norms_and_modulation_are_added(tmp_path: Path, base: ComponentWeights) -> None:
    shapes = {
        f"diffusion_model.{Q}.diff": f"{Q}.weight",
        f"diffusion_model.{Q}.diff_b": f"{Q}.bias",
        "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "diffusion_model.blocks.1.norm3.diff_b": "blocks.1.norm3.bias",
        "diffusion_model.blocks.1.diff_m": "blocks.1.modulation",
        "diffusion_model.blocks.0.modulation.diff": "blocks.0.modulation",
        "diffusion_model.head.head.diff": "head.head.weight",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    }
    tensors = {name: torch.randn(base.infos[target].shape) for name, target in shapes.items()}
    merged = with_loras(base, [(write(tmp_path, tensors), 2.0)])
    for name, target in shapes.items():
        assert relative_l2(merged.tensor(target) - base.tensor(target), 2 * tensors[name]) < 1e-5, target


def test_products_of_hadamard_and_kronecker_factors(tmp_path: Path, base: ComponentWeights) -> None:
    (a, b), (c, d) = factors(1), factors(2)
    left, right = torch.randn(8, 4), torch.randn(16, 32)
    tensors = {
        f"lycoris_{Q}".replace(".", "_") + f".{part}": value
        for part, value in (("hada_w1_a", a), ("hada_w1_b", b), ("hada_w2_a", c), ("hada_w2_b", d), ("alpha", ALPHA))
    } | {"blocks.0.self_attn.k.lokr_w1": left, "blocks.0.self_attn.k.lokr_w2": right}
    merged = with_loras(base, [(write(tmp_path, tensors), 1.0)])
    change = merged.tensor(f"{Q}.weight") - base.tensor(f"{Q}.weight")
    assert relative_l2(change, 0.5 * (a @ b) * (c @ d)) < 1e-5
    name = "blocks.0.self_attn.k.weight"
    assert relative_l2(merged.tensor(name) - base.tensor(name), torch.kron(left, right)) < 1e-5


def test_a_decomposed_change_gives_each_row_its_length(tmp_path: Path, base: ComponentWeights) -> None:
    lengths = torch.rand(128) + 1
    tensors = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.dora_scale": lengths[:, None]}
    path = write(tmp_path, tensors)
    whole = with_loras(base, [(path, 1.0)]).tensor(f"{Q}.weight")
    assert torch.allclose(whole.norm(dim=1), lengths, atol=1e-4)
    direction = base.tensor(f"{Q}.weight") + UP @ DOWN
    assert relative_l2(whole / whole.norm(dim=1, keepdim=True), direction / direction.norm(dim=1, keepdim=True)) < 1e-5
    half = with_loras(base, [(path, 0.5)]).tensor(f"{Q}.weight")
    assert relative_l2(half, (whole + base.tensor(f"{Q}.weight")) / 2) < 1e-5


def test_several_loras_add_up_and_a_strength_of_zero_changes_nothing(tmp_path: Path, base: ComponentWeights) -> None:
    path = write(tmp_path, {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP})
    name = f"{Q}.weight"
    twice = with_loras(base, [(path, 0.25), (path, 0.5)])
    assert relative_l2(twice.tensor(name), with_loras(base, [(path, 0.75)]).tensor(name)) < 1e-6
    assert torch.equal(with_loras(base, [(path, 0.0)]).tensor(name), base.tensor(name))
    assert len(twice.coverage) == 2


def test_a_changed_weight_is_rounded_once(tmp_path: Path, base: ComponentWeights) -> None:
    merged = with_loras(base, [(write(tmp_path, {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP}), 1.0)])
    exact = base.tensor(f"{Q}.weight") + UP @ DOWN
    assert torch.equal(merged.tensor(f"{Q}.weight", torch.bfloat16), exact.bfloat16())
    assert merged.tensor(f"{Q}.bias", torch.bfloat16).dtype == torch.bfloat16


def test_image_attention_is_skipped_on_a_text_model_and_said_so(
    tmp_path: Path, base: ComponentWeights, image_base: ComponentWeights
) -> None:
    tensors = {}
    for module in (Q, "blocks.0.self_attn.v", "blocks.0.cross_attn.k_img"):
        tensors |= {f"{module}.lora_A.weight": DOWN, f"{module}.lora_B.weight": UP}
    path = write(tmp_path, tensors)
    told = with_loras(base, [(path, 1.0)]).coverage[0]
    assert str(told) == (
        "lora.safetensors at 1: 2 of 3 modules matched; 1 image-attention module skipped because the base is "
        f"{base.variant}"
    )
    assert with_loras(image_base, [(path, 1.0)]).coverage[0].skipped == ()


def test_a_patch_embedding_of_another_variant_is_skipped(tmp_path: Path, base: ComponentWeights) -> None:
    tensors = {
        "patch_embedding.diff": torch.zeros(128, 36, 1, 2, 2),
        f"{Q}.lora_A.weight": DOWN,
        f"{Q}.lora_B.weight": UP,
    }
    told = with_loras(base, [(write(tmp_path, tensors), 1.0)]).coverage[0]
    assert [str(it) for it in told.skipped] == [
        "1 patch embedding skipped because the base takes another number of input channels"
    ]


BROKEN: dict[str, tuple[dict[str, torch.Tensor], type[Exception], str]] = {
    "other names": ({"unet.down.0.lora_A.weight": DOWN}, WeightFileError, "no LoRA for Wan"),
    "no tensors of a LoRA": ({"x.weight": DOWN}, WeightFileError, "its tensors are called x.weight"),
    "a missing pair": ({f"{Q}.lora_A.weight": DOWN}, WeightFileError, "lacks its up part"),
    "rank 0": (
        {f"{Q}.lora_A.weight": DOWN[:0], f"{Q}.lora_B.weight": UP[:, :0]}, WeightFileError, "has rank 0",
    ),
    "alpha": (
        {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.alpha": torch.tensor(float("nan"))},
        WeightFileError, "no finite alpha",
    ),
    "two dialects": (
        {f"{Q}.lora_A.weight": DOWN, "lora_unet_blocks_0_self_attn_q.lora_down.weight": DOWN, f"{Q}.lora_B.weight": UP},
        WeightFileError, "twice",
    ),
    "other width": (
        {f"{Q}.lora_A.weight": DOWN[:, :64], f"{Q}.lora_B.weight": UP}, StateMismatchError, "1 modules have other",
    ),
    "other ranks": (
        {f"{Q}.lora_A.weight": DOWN[:2], f"{Q}.lora_B.weight": UP}, StateMismatchError, "other shapes",
    ),
    "more blocks": (
        {f"blocks.{i}.self_attn.q.lora_{x}.weight": v for i in range(9) for x, v in (("A", DOWN), ("B", UP))},
        StateMismatchError, r"2 of 9 modules matched; 7 modules skipped because tiny T2V .* than half: .*partial",
    ),
    "Tucker factors": (
        {f"{Q}.lokr_w1": DOWN, f"{Q}.lokr_w2": UP, f"{Q}.lokr_t2": DOWN}, WeightFileError, r"Tucker factors \(lokr_t2",
    ),
    "another shape": (
        {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.reshape_weight": ALPHA},
        StateMismatchError, "other shapes",
    ),
    "infinite": (
        {f"{Q}.diff": torch.full((128, 128), float("inf"))}, WeightFileError, "makes 'blocks.0.self_attn.q.weight' NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_merged_whole_is_refused_in_words(tmp_path: Path, base: ComponentWeights, case: str) -> None:
    tensors, error, words = BROKEN[case]
    with pytest.raises(error, match=words):
        with_loras(base, [(write(tmp_path, tensors), 1.0)]).tensor(f"{Q}.weight")


@pytest.mark.parametrize("strength", [float("nan"), 101.0, True, "1"])
def test_a_strength_out_of_bounds_is_refused(tmp_path: Path, base: ComponentWeights, strength: Any) -> None:
    with pytest.raises(RequestError, match="strength"):
        with_loras(base, [(tmp_path / "x.safetensors", strength)])


def test_too_many_are_refused_before_any_is_opened(tmp_path: Path, base: ComponentWeights) -> None:
    with pytest.raises(RequestError, match="at most 100"):
        with_loras(base, [(tmp_path / "x.safetensors", 1.0)] * 101)


def test_less_coverage_may_be_accepted(tmp_path: Path, base: ComponentWeights) -> None:
    tensors, _, _ = BROKEN["more blocks"]
    merged = with_loras(base, [(write(tmp_path, tensors), 1.0)], allow_partial=True)
    assert merged.coverage[0].share == pytest.approx(2 / 9)


def test_names_become_official_whatever_their_dialect() -> None:
    assert official_module("diffusion_model.blocks.12.cross_attn.norm_k_img") == "blocks.12.cross_attn.norm_k_img"
    assert official_module("transformer.blocks.3.attn2.to_out.0") == "blocks.3.cross_attn.o"
    assert official_module("transformer.blocks.3.ffn.net.0.proj") == "blocks.3.ffn.0"
    assert official_module("lora_unet_blocks_3_attn2_to_out_0") == "blocks.3.cross_attn.o"
    assert official_module("lora_unet_time_projection_1") == "time_projection.1"
    assert official_module("vace_blocks.2.self_attn.q") == "vace_blocks.2.self_attn.q"
    assert official_module("lora_te_encoder_block_0") is None
    assert official_module("double_blocks.0.img_attn.proj") is None


def test_names_that_belong_to_no_module_are_kept_apart(tmp_path: Path) -> None:
    lora = read_lora(write(tmp_path, {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, "odd": DOWN}))
    assert lora.unknown == ("odd",)
    assert lora.adapters[Q].scale == 1
    assert replace(lora, unknown=()).name == "lora.safetensors"


def test_a_folder_of_peft_says_its_scale_beside_the_file(tmp_path: Path, base: ComponentWeights) -> None:
    def folder(**told: Any) -> ComponentWeights:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        names = ("blocks.0.attn1.to_q", "blocks.1.attn1.to_q")
        tensors = {f"base_model.model.{it}.lora_{x}.weight": v for it in names for x, v in (("A", DOWN), ("B", UP))}
        save_file({name: it.clone() for name, it in tensors.items()}, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps(told))
        return with_loras(base, [(place, 1.0)])

    def scale(merged: ComponentWeights, block: int = 0) -> float:
        change = merged.tensor(f"blocks.{block}.self_attn.q.weight") - base.tensor(f"blocks.{block}.self_attn.q.weight")
        return float((change * (UP @ DOWN)).sum() / (UP @ DOWN).square().sum())

    assert scale(folder(r=RANK, lora_alpha=2)) == pytest.approx(0.5, rel=1e-4)
    assert scale(folder(r=RANK, lora_alpha=2, use_rslora=True)) == pytest.approx(1.0, rel=1e-4)
    assert scale(folder(peft_type="LORA")) == pytest.approx(1.0, rel=1e-4)
    special = folder(r=RANK, lora_alpha=4, alpha_pattern={"blocks.1.attn1.to_q": 12})
    assert (scale(special, 0), scale(special, 1)) == (pytest.approx(1, rel=1e-4), pytest.approx(3, rel=1e-4))
    with pytest.raises(WeightFileError, match="alphas are numbers above 0"):
        folder(r=RANK, lora_alpha="many")


def test_lengths_of_a_square_matrix_are_per_row_or_per_column_as_their_shape_says(
    tmp_path: Path, base: ComponentWeights
) -> None:
    lengths = torch.rand(128) + 1
    for shape, axis in (((128, 1), 1), ((1, 128), 0)):
        tensors = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.dora_scale": lengths.reshape(shape)}
        whole = with_loras(base, [(write(tmp_path, tensors), 1.0)]).tensor(f"{Q}.weight")
        assert torch.allclose(whole.norm(dim=axis), lengths, atol=1e-4)


def test_factors_may_be_products_themselves(tmp_path: Path, base: ComponentWeights) -> None:
    a, b, c, d = (torch.randn(shape) for shape in ((8, 2), (2, 4), (16, 2), (2, 32)))
    tensors = {f"{Q}.lokr_{part}": it for part, it in (("w1_a", a), ("w1_b", b), ("w2_a", c), ("w2_b", d))}
    merged = with_loras(base, [(write(tmp_path, tensors | {f"{Q}.alpha": ALPHA}), 1.0)])
    change = merged.tensor(f"{Q}.weight") - base.tensor(f"{Q}.weight")
    assert relative_l2(change, torch.kron(a @ b, c @ d)) < 1e-5, "alpha 2 over rank 2"


def test_a_kernel_of_convolution_changes_like_a_matrix(tmp_path: Path, base: ComponentWeights) -> None:
    name, down, up = "patch_embedding", torch.randn(4, 16, 1, 2, 2), torch.randn(128, 4, 1, 1, 1)
    tensors = {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
    merged = with_loras(base, [(write(tmp_path, tensors), 1.0)])
    change = merged.tensor(f"{name}.weight") - base.tensor(f"{name}.weight")
    assert relative_l2(change, torch.einsum("or,rithw->oithw", up[..., 0, 0, 0], down)) < 1e-5


def test_step_distillation_files_carry_every_kind_of_part(tmp_path: Path, base: ComponentWeights) -> None:
    """As LightX2V's and CausVid's do: low-rank matrices, biases, norms, modulation, head and embeddings."""
    tensors: dict[str, torch.Tensor] = {}
    for module in (Q, "blocks.1.cross_attn.v"):
        tensors |= {
            f"diffusion_model.{module}.lora_down.weight": DOWN,
            f"diffusion_model.{module}.lora_up.weight": UP,
            f"diffusion_model.{module}.diff_b": torch.randn(128),
        }
    wholes = {
        "blocks.0.norm3": ("diff", "diff_b"), "blocks.0.cross_attn.norm_q": ("diff",),
        "text_embedding.0": ("diff_b",), "time_projection.1": ("diff_b",), "head.head": ("diff", "diff_b"),
        "patch_embedding": ("diff", "diff_b"),
    }  # fmt: skip
    for module, parts in wholes.items():
        for part in parts:
            target = f"{module}.{'bias' if part == 'diff_b' else 'weight'}"
            tensors[f"diffusion_model.{module}.{part}"] = torch.randn(base.infos[target].shape)
    merged = with_loras(base, [(write(tmp_path, tensors), 0.5)])
    assert str(merged.coverage[0]) == "lora.safetensors at 0.5: 8 of 8 modules matched"
    for module in (Q, "blocks.1.cross_attn.v"):
        assert relative_l2(merged.tensor(f"{module}.weight") - base.tensor(f"{module}.weight"), 0.5 * UP @ DOWN) < 1e-5
    for name, value in tensors.items():
        if ".diff" in name:
            module, part = name.removeprefix("diffusion_model.").rsplit(".", 1)
            target = f"{module}.{'bias' if part == 'diff_b' else 'weight'}"
            assert relative_l2(merged.tensor(target) - base.tensor(target), 0.5 * value) < 1e-5, name


def test_a_weight_that_is_set_is_taken_as_it_is_but_not_at_strength_zero(
    tmp_path: Path, base: ComponentWeights
) -> None:
    value = torch.randn(128)
    path = write(tmp_path, {"diffusion_model.blocks.0.norm3.set_weight": value})
    assert torch.equal(with_loras(base, [(path, 0.3)]).tensor("blocks.0.norm3.weight"), value)
    assert torch.equal(
        with_loras(base, [(path, 0.0)]).tensor("blocks.0.norm3.weight"), base.tensor("blocks.0.norm3.weight")
    )


def test_text_encoder_tensors_are_told_and_left(tmp_path: Path, base: ComponentWeights) -> None:
    tensors = {f"diffusion_model.{Q}.lora_A.weight": DOWN, f"diffusion_model.{Q}.lora_B.weight": UP}
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        tensors[f"lora_te_encoder_block_0_layer_0_SelfAttention_q.{part}"] = DOWN
    told = with_loras(base, [(write(tmp_path, tensors), 1.0)]).coverage[0]
    assert (told.matched, told.total) == (1, 2)
    assert "1 module skipped because it belongs to no Wan transformer" in str(told)


HALF: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "alpha alone": ({f"{Q}.alpha": ALPHA}, "has only its alpha part"),
    "lengths alone": ({f"{Q}.dora_scale": torch.ones(128, 1)}, "has only its magnitude part"),
    "half a Kronecker product": ({f"{Q}.lokr_w1": DOWN, f"{Q}.lokr_w2_a": UP}, "lacks its lokr_w2_b part"),
    "half a Hadamard product": ({f"{Q}.hada_w1_a": UP}, "lacks its hada_w1_b and hada_w2_a and hada_w2_b part"),
    "two kinds": (
        {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.lokr_w1": DOWN, f"{Q}.lokr_w2": UP},
        "parts of LoRA and of LoKr",
    ),
    "a bias where there is none": ({"blocks.0.self_attn.norm_q.diff_b": torch.ones(128)}, "no such module"),
    "a bias beside a weight where there is none": (
        {f"blocks.0.self_attn.norm_q.{it}": torch.ones(128) for it in ("diff", "diff_b")}, "which has no bias here",
    ),
    "orthogonal": ({f"{Q}.oft_blocks": torch.ones(4, 4, 4), f"{Q}.alpha": ALPHA}, "an orthogonal change"),
    "a part of no known kind": (
        {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.boft_R": DOWN}, "has the part 'boft_R', which",
    ),
    "a layer saved whole": (
        {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, "base_model.model.head.head.weight": DOWN},
        r"head\.head has the part 'weight', which",
    ),
    "lengths of another size": (
        {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{Q}.dora_scale": torch.ones(64)}, "other shapes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HALF)
def test_nothing_is_loaded_in_part(tmp_path: Path, base: ComponentWeights, case: str) -> None:
    tensors, words = HALF[case]
    with pytest.raises((WeightFileError, StateMismatchError), match=words):
        with_loras(base, [(write(tmp_path, tensors), 1.0)])


def test_another_shape_is_skipped_only_if_asked_for(tmp_path: Path, base: ComponentWeights) -> None:
    tensors = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP, f"{FFN}.diff": torch.ones(2, 2)}
    path = write(tmp_path, tensors)
    with pytest.raises(StateMismatchError, match=r"1 of 2 modules have other shapes, first 'blocks\.1\.ffn\.2'"):
        with_loras(base, [(path, 1.0)])
    told = with_loras(base, [(path, 1.0)], allow_partial=True).coverage[0]
    assert "1 of 2 modules matched; 1 module skipped because it has another shape in the base" in str(told)
    only = write(tmp_path, {f"{FFN}.diff": torch.ones(2, 2)})
    with pytest.raises(StateMismatchError, match="0 of 1 modules matched"):
        with_loras(base, [(only, 1.0)], allow_partial=True)


def test_a_file_of_endless_names_is_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {f"lora_unet_{number}.alpha": torch.zeros(0) for number in range(10_001)})
    with pytest.raises(WeightFileError, match="holds 10,001 tensors"):
        read_lora(path)


def full_size(name: str) -> ComponentWeights:
    """Names and shapes of a published transformer, without a file."""
    from cygnet.checkpoints.weight_file import TensorInfo
    from cygnet.models.dit.config import I2V_14B, T2V_1_3B, T2V_14B
    from cygnet.models.dit.model import DiT

    config = {"T2V-1.3B": T2V_1_3B, "T2V-14B": T2V_14B, "I2V-14B": I2V_14B}[name]
    with torch.device("meta"):
        state = DiT(config).state_dict()
    infos = {key: TensorInfo("bfloat16", tuple(value.shape)) for key, value in state.items()}
    return ComponentWeights("dit", "official", config, "none", infos, None, {}, {}, {})  # type: ignore[arg-type]


def test_loras_of_full_size_are_covered_as_they_should_be(tmp_path: Path) -> None:
    models = {name: full_size(name) for name in ("T2V-1.3B", "T2V-14B", "I2V-14B")}
    paths = {}
    for name, weights in models.items():
        tensors: dict[str, torch.Tensor] = {}
        for key, info in weights.infos.items():
            if key.startswith("blocks.") and len(info.shape) == 2:
                stem = f"diffusion_model.{key.removesuffix('.weight')}"
                tensors[f"{stem}.lora_A.weight"] = torch.zeros(1, info.shape[1], dtype=torch.bfloat16)
                tensors[f"{stem}.lora_B.weight"] = torch.zeros(info.shape[0], 1, dtype=torch.bfloat16)
        paths[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, paths[name])
    told = {pair: with_loras(models[pair[1]], [(paths[pair[0]], 1.0)]).coverage[0] for pair in (
        ("T2V-1.3B", "T2V-1.3B"), ("T2V-14B", "T2V-14B"), ("T2V-14B", "I2V-14B"), ("I2V-14B", "T2V-14B"),
    )}  # fmt: skip
    assert [it.total for it in told.values()] == [300, 400, 400, 480]
    assert [it.share for it in told.values()] == [1, 1, 1, pytest.approx(5 / 6)]
    assert str(told["I2V-14B", "T2V-14B"]) == (
        "I2V-14B.safetensors at 1: 400 of 480 modules matched; 80 image-attention modules skipped because the base is "
        "T2V-14B"
    )
    with pytest.raises(StateMismatchError, match=r"does not fit T2V-1\.3B: 300 of 400 modules have other shapes"):
        with_loras(models["T2V-1.3B"], [(paths["T2V-14B"], 1.0)])
