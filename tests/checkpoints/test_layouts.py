"""Every layout is recognised from names and shapes, and every key map is a bijection."""

from __future__ import annotations

import pytest

from cygnet.checkpoints.layouts import Layout, key_map, recognise, vae_diffusers
from cygnet.checkpoints.weight_file import TensorInfo
from cygnet.errors import StateMismatchError, UnknownLayoutError
from cygnet.types import ComponentName
from weight_samples import COMPONENT_KEYS, sample_shapes

FOREIGN: list[tuple[str, Layout]] = [
    ("t2v", "diffusers"),
    ("i2v", "diffusers"),
    ("flf2v", "diffusers"),
    ("vae", "diffusers"),
    ("umt5", "transformers"),
    ("clip", "transformers"),
    ("clip", "open_clip"),
]


def foreign_infos(sample: str, layout: Layout) -> dict[str, TensorInfo]:
    """Headers of a sample under foreign names; shapes of rearranged tensors as they would be there."""
    shapes = sample_shapes(sample)
    names = key_map(COMPONENT_KEYS[sample][0], layout, shapes)
    infos: dict[str, TensorInfo] = {}
    for official, shape in shapes.items():
        source = names.from_official(official)
        if source.how == "stack":
            shape = (shape[0] // len(source.names), *shape[1:])
        elif source.how == "transpose":
            shape = shape[::-1]
        elif source.how == "lift":
            shape = tuple(size for size in shape if size > 1)
        infos |= {name: TensorInfo("float32", shape) for name in source.names}
    return infos


def official_infos(sample: str, prefix: str = "") -> dict[str, TensorInfo]:
    return {prefix + name: TensorInfo("float32", shape) for name, shape in sample_shapes(sample).items()}


@pytest.mark.parametrize(("sample", "layout"), FOREIGN)
def test_official_to_foreign_and_back_is_the_identity(sample: str, layout: Layout) -> None:
    shapes = sample_shapes(sample)
    component = COMPONENT_KEYS[sample][0]
    names = key_map(component, layout, shapes)
    sources = {name: names.from_official(name) for name in shapes}
    foreign = [part for source in sources.values() for part in source.names]
    assert len(set(foreign)) == len(foreign)
    back, leftovers = key_map(component, layout, foreign).to_official(foreign)
    assert leftovers == []
    assert back == sources


@pytest.mark.parametrize("sample", COMPONENT_KEYS)
def test_official_names_are_recognised_whole(sample: str) -> None:
    [part] = recognise(official_infos(sample))
    assert (part.component, part.layout, part.prefix) == (COMPONENT_KEYS[sample][0], "official", "")
    assert {name: source.names for name, source in part.tensors.items()} == {n: (n,) for n in sample_shapes(sample)}
    assert part.leftovers == ()


@pytest.mark.parametrize(("sample", "layout"), FOREIGN)
def test_foreign_names_are_recognised_whole(sample: str, layout: Layout) -> None:
    [part] = recognise(foreign_infos(sample, layout))
    assert (part.component, part.layout) == (COMPONENT_KEYS[sample][0], layout)
    assert set(part.tensors) == set(sample_shapes(sample))
    assert part.leftovers == ()


@pytest.mark.parametrize(
    ("official", "layout", "foreign"),
    [
        ("blocks.3.norm3.weight", "diffusers", "blocks.3.norm2.weight"),
        ("blocks.0.modulation", "diffusers", "blocks.0.scale_shift_table"),
        ("head.modulation", "diffusers", "scale_shift_table"),
        ("blocks.12.cross_attn.norm_k_img.weight", "diffusers", "blocks.12.attn2.norm_added_k.weight"),
        ("img_emb.emb_pos", "diffusers", "condition_embedder.image_embedder.pos_embed"),
        ("blocks.7.self_attn.o.bias", "diffusers", "blocks.7.attn1.to_out.0.bias"),
    ],
)
def test_dit_names_are_those_of_diffusers(official: str, layout: Layout, foreign: str) -> None:
    assert key_map("dit", layout, ()).from_official(official).names == (foreign,)


@pytest.mark.parametrize(
    ("official", "foreign"),
    [
        ("conv1.weight", "quant_conv.weight"),
        ("decoder.upsamples.3.time_conv.weight", "decoder.up_blocks.0.upsamplers.0.time_conv.weight"),
        ("decoder.upsamples.4.shortcut.bias", "decoder.up_blocks.1.resnets.0.conv_shortcut.bias"),
        ("decoder.upsamples.14.residual.6.weight", "decoder.up_blocks.3.resnets.2.conv2.weight"),
        ("encoder.downsamples.8.resample.1.bias", "encoder.down_blocks.8.resample.1.bias"),
        ("encoder.head.0.gamma", "encoder.norm_out.gamma"),
        ("decoder.middle.1.to_qkv.weight", "decoder.mid_block.attentions.0.to_qkv.weight"),
    ],
)
def test_vae_names_are_those_of_diffusers(official: str, foreign: str) -> None:
    assert vae_diffusers(3).from_official(official).names == (foreign,)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model.", "module.", "model.model."])
def test_a_prefix_in_front_of_every_name_is_stripped(prefix: str) -> None:
    if prefix == "model.model.":
        with pytest.raises(UnknownLayoutError):
            recognise(official_infos("t2v", prefix))
        return
    [part] = recognise(official_infos("t2v", prefix))
    assert part.prefix == prefix
    assert part.tensors["head.modulation"].names == (f"{prefix}head.modulation",)


def test_wrappers_of_training_frameworks_inside_names_are_stripped() -> None:
    infos = {
        name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): info
        for name, info in official_infos("t2v", "model._fsdp_wrapped_module.").items()
    }
    [part] = recognise(infos)
    assert set(part.tensors) == set(sample_shapes("t2v"))


def test_two_spellings_of_one_weight_are_refused() -> None:
    infos = official_infos("t2v")
    infos["_orig_mod.head.modulation"] = infos["head.modulation"]
    with pytest.raises(StateMismatchError, match="mean the same weight"):
        recognise(infos)


def test_a_combined_file_holds_its_components_side_by_side() -> None:
    infos = {
        **official_infos("t2v", "model.diffusion_model."),
        **official_infos("vae", "first_stage_model."),
        **{f"text_encoders.umt5xxl.transformer.{n}": i for n, i in foreign_infos("umt5", "transformers").items()},
        "text_encoders.umt5xxl.spiece_model": TensorInfo("uint8", (9,)),
        "text_encoders.umt5xxl.logit_scale": TensorInfo("float32", ()),
    }
    parts = {part.component: part for part in recognise(infos)}
    assert set(parts) == {"dit", "vae", "text_encoder"}
    assert parts["text_encoder"].auxiliary["spiece_model"] == "text_encoders.umt5xxl.spiece_model"
    assert all(part.leftovers == () for part in parts.values())


def test_names_that_belong_to_nothing_are_left_over() -> None:
    infos = official_infos("t2v") | {
        "blocks.0.self_attn.extra.weight": TensorInfo("float32", (1,)),
        "vae.nonsense": TensorInfo("float32", (1,)),
        "blocks.01.norm3.weight": TensorInfo("float32", (1,)),
    }
    [part] = recognise(infos)
    assert set(part.leftovers) == {"blocks.0.self_attn.extra.weight", "vae.nonsense", "blocks.01.norm3.weight"}


def test_a_joined_weight_with_a_part_missing_is_left_over() -> None:
    infos = foreign_infos("clip", "transformers")
    del infos["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    [part] = recognise(infos)
    assert "transformer.1.attn.to_qkv.weight" not in part.tensors
    assert len(part.leftovers) == 2


def test_clip_files_lose_their_text_tower() -> None:
    infos = official_infos("clip", "visual.") | {
        "textual.token_embedding.weight": TensorInfo("float32", (9, 4)),
        "log_scale": TensorInfo("float32", ()),
    }
    [part] = recognise(infos)
    assert part.prefix == "visual."
    assert set(part.tensors) == set(sample_shapes("clip"))
    assert set(part.auxiliary) == {"textual.token_embedding.weight", "log_scale"}


def test_open_clip_files_lose_their_text_tower() -> None:
    infos = {f"visual.{name}": info for name, info in foreign_infos("clip", "open_clip").items()} | {
        "transformer.resblocks.0.attn.in_proj_weight": TensorInfo("float32", (9, 4)),
        "positional_embedding": TensorInfo("float32", (7, 4)),
        "ln_final.weight": TensorInfo("float32", (4,)),
        "text_projection": TensorInfo("float32", (4, 4)),
        "logit_scale": TensorInfo("float32", ()),
    }
    [part] = recognise(infos)
    assert part.layout == "open_clip"
    assert part.leftovers == ()
    assert part.tensors["pos_embedding"].names == ("visual.positional_embedding",)


def test_transformers_names_without_their_first_segment_are_read() -> None:
    infos = {n.removeprefix("vision_model."): i for n, i in foreign_infos("clip", "transformers").items()}
    [part] = recognise(infos)
    assert set(part.tensors) == set(sample_shapes("clip"))
    assert part.leftovers == ()


def test_a_tied_embedding_is_set_aside_or_used_if_alone() -> None:
    infos = foreign_infos("umt5", "transformers")
    tied = infos | {"encoder.embed_tokens.weight": infos["shared.weight"]}
    [part] = recognise(tied)
    assert part.auxiliary == {"encoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
    del tied["shared.weight"]
    [part] = recognise(tied)
    assert part.tensors["token_embedding.weight"].names == ("encoder.embed_tokens.weight",)


def test_scales_markers_and_old_norms_are_set_aside() -> None:
    infos = foreign_infos("i2v", "diffusers") | {
        "blocks.0.attn1.to_q.scale_weight": TensorInfo("float32", ()),
        "blocks.0.attn2.norm_added_q.weight": TensorInfo("float32", (256,)),
        "scaled_fp8": TensorInfo("float8_e4m3fn", (0,)),
    }
    [part] = recognise(infos)
    assert len(part.auxiliary) == 3
    assert part.leftovers == ()


def _with(infos: dict[str, TensorInfo], **shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    return infos | {name.replace("__", "."): TensorInfo("float32", shape) for name, shape in shapes.items()}


RELATIVES: dict[str, tuple[dict[str, TensorInfo], str]] = {
    "5B": (
        _with(official_infos("t2v"), patch_embedding__weight=(256, 48, 1, 2, 2), head__head__weight=(192, 256)),
        "Wan 2.2 TI2V-5B",
    ),
    "A14B": (_with(official_infos("t2v"), patch_embedding__weight=(256, 36, 1, 2, 2)), r"Wan 2\.2 I2V-A14B"),
    "A14B in Diffusers": (
        _with(foreign_infos("t2v", "diffusers"), patch_embedding__weight=(256, 36, 1, 2, 2)),
        r"Wan 2\.2 I2V-A14B",
    ),
    "VAE 2.2": (
        _with({}, decoder__upsamples__0__upsamples__0__residual__2__weight=(1024, 1024, 3, 3, 3)),
        r"Wan 2\.2 VAE",
    ),
    "VAE 2.2 by width": (_with(official_infos("vae"), conv2__weight=(48, 48, 1, 1, 1)), r"Wan 2\.2 VAE"),
    "TAEHV": (_with({}, decoder__1__weight=(256, 16, 3, 3), decoder__3__conv__0__weight=(256, 512, 3, 3)), "TAEHV"),
    "T5": (
        {n: i for n, i in foreign_infos("umt5", "transformers").items() if ".1.layer.0.SelfAttention.rel" not in n},
        "T5 text encoder",
    ),
    "GGUF names": (_with({}, enc__blk__0__attn_q__weight=(4, 4)), "GGUF names"),
}


@pytest.mark.parametrize(("infos", "words"), RELATIVES.values(), ids=RELATIVES)
def test_relatives_of_wan_21_are_refused_by_name(infos: dict[str, TensorInfo], words: str) -> None:
    with pytest.raises(UnknownLayoutError, match=words):
        recognise(infos)


def test_a_lora_is_told_from_a_model() -> None:
    infos = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": TensorInfo("float32", (4, 4))}
    with pytest.raises(UnknownLayoutError, match="this is a LoRA, not a model"):
        recognise(infos)


def test_an_unknown_file_is_described_by_its_first_names() -> None:
    infos = {f"transformer_blocks.{i}.w": TensorInfo("float32", (1,)) for i in range(9)}
    with pytest.raises(UnknownLayoutError, match=r"none of the 9 tensor names.*transformer_blocks\.0\.w"):
        recognise(infos)
    with pytest.raises(UnknownLayoutError, match="no tensors"):
        recognise({})


def test_more_names_than_any_model_has_are_refused_unmapped() -> None:
    with pytest.raises(UnknownLayoutError, match="more than any Wan"):
        recognise({f"blocks.{i}.x": TensorInfo("float32", ()) for i in range(10_001)})


def test_a_rule_names_every_part_once() -> None:
    components: list[tuple[ComponentName, Layout]] = [
        ("dit", "diffusers"), ("vae", "diffusers"), ("text_encoder", "transformers"),
        ("image_encoder", "transformers"), ("image_encoder", "open_clip"),
    ]  # fmt: skip
    for component, layout in components:
        rules = key_map(component, layout, ()).rules
        stems = [stem for rule in rules for stem in rule.other]
        assert len({rule.official for rule in rules}) == len(rules)
        assert len(set(stems)) == len(stems)
