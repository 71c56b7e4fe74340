"""Which network a file holds and in whose names, told from names and shapes alone; and the names themselves.

The official names are the canonical ones. Each other layout is a table of :class:`Rule`: an official stem, the stem (or
stems) that stand for it, and how the tensors differ. A stem is a name, or a name without its last part; ``{n}`` stands
for one number, the same on both sides. So one table renames weights, biases and quantisation scales, both ways.

Sources: the checkpoints' own names, as listed in Wan-Video/Wan2.1 (wan/modules), huggingface/diffusers
(transformer_wan.py, autoencoder_kl_wan.py), transformers (UMT5, CLIP) and open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cygnet.checkpoints.weight_file import TensorInfo, printable
from cygnet.errors import StateMismatchError, UnknownLayoutError
from cygnet.types import ComponentName

Layout = Literal["official", "diffusers", "transformers", "open_clip"]
Rearrangement = Literal["same", "lift", "transpose", "stack"]
"""How the foreign tensors become the official one: as they are; leading axes of length 1 added until there are three;
two axes swapped; several joined along the first axis."""

COMPONENT_WORDS: Mapping[ComponentName, str] = {
    "dit": "a diffusion transformer",
    "vae": "a Wan-VAE",
    "text_encoder": "a UMT5 text encoder",
    "image_encoder": "a CLIP image encoder",
}


@dataclass(frozen=True)
class Rule:
    """An official stem and what stands for it in another layout."""

    official: str
    other: tuple[str, ...]
    how: Rearrangement = "same"


@dataclass(frozen=True)
class Source:
    """Where a canonical tensor comes from: one or more names, and how they make it up."""

    names: tuple[str, ...]
    how: Rearrangement = "same"


MAX_NAMES = 10_000
"""No published file of the four networks has 3,000 tensors, scales and markers included."""

NUMBER = r"(0|[1-9][0-9]{0,5})"


class KeyMap:
    """Two-way renaming between official names and one other layout, made from rules."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._official = [_pattern(rule.official) for rule in self.rules]
        self._other = [(_pattern(stem), rule, i) for rule in self.rules for i, stem in enumerate(rule.other)]

    def to_official(self, names: Iterable[str]) -> tuple[dict[str, Source], list[str]]:
        """Official names and their sources, and the names that no rule covers.

        A joined tensor of which a part is missing counts as not covered, so that the loss is reported.
        """
        parts: dict[str, dict[int, str]] = {}
        rules: dict[str, Rule] = {}
        leftovers: list[str] = []
        for name in names:
            for pattern, rule, position in self._other:
                match = pattern.fullmatch(name)
                if match is None:
                    continue
                official = _fill(rule.official, match)
                parts.setdefault(official, {})[position] = name
                rules[official] = rule
                break
            else:
                leftovers.append(name)
        found: dict[str, Source] = {}
        for official, by_position in parts.items():
            rule = rules[official]
            if len(by_position) < len(rule.other):
                leftovers.extend(by_position.values())
            else:
                found[official] = Source(tuple(by_position[i] for i in range(len(rule.other))), rule.how)
        return found, leftovers

    def from_official(self, name: str) -> Source:
        """The foreign names of an official tensor. Raises ``KeyError`` for a name that no rule covers."""
        for pattern, rule in zip(self._official, self.rules, strict=True):
            match = pattern.fullmatch(name)
            if match is not None:
                return Source(tuple(_fill(stem, match) for stem in rule.other), rule.how)
        raise KeyError(name)


def _pattern(stem: str) -> re.Pattern[str]:
    return re.compile(re.escape(stem).replace(r"\{n\}", NUMBER) + r"(?P<leaf>\.[A-Za-z_]+)?")


def _fill(stem: str, match: re.Match[str]) -> str:
    filled = stem.replace("{n}", match.group(1)) if "{n}" in stem else stem
    return filled + (match["leaf"] or "")


def _renames(*pairs: tuple[str, str]) -> list[Rule]:
    return [Rule(official, (other,)) for official, other in pairs]


# Diffusion transformer -----------------------------------------------------------------------------------------------

_ATTENTION = (
    ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"), ("norm_q", "norm_q"), ("norm_k", "norm_k"),
)  # fmt: skip


_FUN = (
    "ref_conv", "control_adapter.conv", "control_adapter.residual_blocks.{n}.conv1",
    "control_adapter.residual_blocks.{n}.conv2",
)  # fmt: skip
"""Parts of the Fun models, which Diffusers has not; they keep their names."""


def _block(stem: str) -> tuple[tuple[str, str], ...]:
    """Names in one transformer block; ``stem`` is what comes before its number."""
    return (
        (f"{stem}.{{n}}.modulation", f"{stem}.{{n}}.scale_shift_table"),
        *((f"{stem}.{{n}}.self_attn.{a}", f"{stem}.{{n}}.attn1.{b}") for a, b in _ATTENTION),
        *((f"{stem}.{{n}}.cross_attn.{a}", f"{stem}.{{n}}.attn2.{b}") for a, b in _ATTENTION),
        # Not a slip: the one affine norm is the third officially and the second in Diffusers.
        (f"{stem}.{{n}}.norm3", f"{stem}.{{n}}.norm2"),
        (f"{stem}.{{n}}.ffn.0", f"{stem}.{{n}}.ffn.net.0.proj"),
        (f"{stem}.{{n}}.ffn.2", f"{stem}.{{n}}.ffn.net.2"),
    )


DIT_DIFFUSERS = KeyMap(
    _renames(
        ("patch_embedding", "patch_embedding"),
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
        ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
        ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
        ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
        *_block("blocks"),
        ("blocks.{n}.cross_attn.k_img", "blocks.{n}.attn2.add_k_proj"),
        ("blocks.{n}.cross_attn.v_img", "blocks.{n}.attn2.add_v_proj"),
        ("blocks.{n}.cross_attn.norm_k_img", "blocks.{n}.attn2.norm_added_k"),
        ("vace_patch_embedding", "vace_patch_embedding"),
        *_block("vace_blocks"),
        ("vace_blocks.{n}.before_proj", "vace_blocks.{n}.proj_in"),
        ("vace_blocks.{n}.after_proj", "vace_blocks.{n}.proj_out"),
        *((name, name) for name in _FUN),
        ("head.modulation", "scale_shift_table"),
        ("head.head", "proj_out"),
    )
)

# Wan-VAE -------------------------------------------------------------------------------------------------------------

_RESIDUAL = (
    ("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"), ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)  # fmt: skip
_RESAMPLE = (("resample.1", "resample.1"), ("time_conv", "time_conv"))


def vae_diffusers(decoder_blocks: int, levels: int = 8) -> KeyMap:
    """Names of a VAE with ``decoder_blocks`` residual blocks per decoder level (3 in the published one).

    The official decoder counts its blocks through; Diffusers groups them by level, so the number is needed.
    """
    pairs: list[tuple[str, str]] = [("conv1", "quant_conv"), ("conv2", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        pairs += [
            (f"{half}.conv1", f"{half}.conv_in"),
            (f"{half}.head.0", f"{half}.norm_out"),
            (f"{half}.head.2", f"{half}.conv_out"),
        ]
        for official, other in (("middle.0", "mid_block.resnets.0"), ("middle.2", "mid_block.resnets.1")):
            pairs += [(f"{half}.{official}.{a}", f"{half}.{other}.{b}") for a, b in _RESIDUAL]
        for leaf in ("norm", "to_qkv", "proj"):
            pairs.append((f"{half}.middle.1.{leaf}", f"{half}.mid_block.attentions.0.{leaf}"))
    pairs += [(f"encoder.downsamples.{{n}}.{a}", f"encoder.down_blocks.{{n}}.{b}") for a, b in _RESIDUAL + _RESAMPLE]
    for level in range(levels):
        first = level * (decoder_blocks + 1)
        up = f"decoder.up_blocks.{level}"
        for block in range(decoder_blocks):
            number = f"decoder.upsamples.{first + block}"
            pairs += [(f"{number}.{a}", f"{up}.resnets.{block}.{b}") for a, b in _RESIDUAL]
        number = f"decoder.upsamples.{first + decoder_blocks}"
        pairs += [(f"{number}.{a}", f"{up}.upsamplers.0.{b}") for a, b in _RESAMPLE]
    return KeyMap(_renames(*pairs))


def decoder_blocks(names: Iterable[str], layout: Layout) -> int:
    """Residual blocks per decoder level, counted in the first level of a VAE in ``layout``; at most 9."""
    if layout == "diffusers":
        block = re.compile(r"decoder\.up_blocks\.0\.resnets\.([0-8])\.norm1\.gamma")
        return 1 + max((int(m[1]) for name in names if (m := block.fullmatch(name))), default=0)
    upsampler = re.compile(r"decoder\.upsamples\.([1-9])\.resample\.1\.weight")
    return min((int(m[1]) for name in names if (m := upsampler.fullmatch(name))), default=3)


# Text encoder --------------------------------------------------------------------------------------------------------

UMT5_TRANSFORMERS = KeyMap(
    _renames(
        ("token_embedding", "shared"),
        ("blocks.{n}.norm1", "encoder.block.{n}.layer.0.layer_norm"),
        *((f"blocks.{{n}}.attn.{x}", f"encoder.block.{{n}}.layer.0.SelfAttention.{x}") for x in "qkvo"),
        (
            "blocks.{n}.pos_embedding.embedding",
            "encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias",
        ),
        ("blocks.{n}.norm2", "encoder.block.{n}.layer.1.layer_norm"),
        ("blocks.{n}.ffn.gate.0", "encoder.block.{n}.layer.1.DenseReluDense.wi_0"),
        ("blocks.{n}.ffn.fc1", "encoder.block.{n}.layer.1.DenseReluDense.wi_1"),
        ("blocks.{n}.ffn.fc2", "encoder.block.{n}.layer.1.DenseReluDense.wo"),
        ("norm", "encoder.final_layer_norm"),
    )
)

# Image encoder -------------------------------------------------------------------------------------------------------

_VISION = "vision_model.encoder.layers.{n}"
_QKV = tuple(f"{_VISION}.self_attn.{x}_proj" for x in "qkv")

CLIP_TRANSFORMERS = KeyMap(
    [
        Rule("cls_embedding", ("vision_model.embeddings.class_embedding",), "lift"),
        Rule("pos_embedding", ("vision_model.embeddings.position_embedding.weight",), "lift"),
        Rule("head", ("visual_projection.weight",), "transpose"),
        Rule("transformer.{n}.attn.to_qkv", _QKV, "stack"),
        *_renames(
            ("patch_embedding", "vision_model.embeddings.patch_embedding"),
            ("pre_norm", "vision_model.pre_layrnorm"),  # spelt so in every published file
            ("transformer.{n}.norm1", f"{_VISION}.layer_norm1"),
            ("transformer.{n}.norm2", f"{_VISION}.layer_norm2"),
            ("transformer.{n}.attn.proj", f"{_VISION}.self_attn.out_proj"),
            ("transformer.{n}.mlp.0", f"{_VISION}.mlp.fc1"),
            ("transformer.{n}.mlp.2", f"{_VISION}.mlp.fc2"),
            ("post_norm", "vision_model.post_layernorm"),
        ),
    ]
)

CLIP_OPEN_CLIP = KeyMap(
    [
        Rule("cls_embedding", ("class_embedding",), "lift"),
        Rule("pos_embedding", ("positional_embedding",), "lift"),
        *_renames(
            ("head", "proj"),
            ("patch_embedding", "conv1"),
            ("pre_norm", "ln_pre"),
            ("transformer.{n}.norm1", "transformer.resblocks.{n}.ln_1"),
            ("transformer.{n}.norm2", "transformer.resblocks.{n}.ln_2"),
            ("transformer.{n}.attn.to_qkv.weight", "transformer.resblocks.{n}.attn.in_proj_weight"),
            ("transformer.{n}.attn.to_qkv.bias", "transformer.resblocks.{n}.attn.in_proj_bias"),
            ("transformer.{n}.attn.proj", "transformer.resblocks.{n}.attn.out_proj"),
            ("transformer.{n}.mlp.0", "transformer.resblocks.{n}.mlp.c_fc"),
            ("transformer.{n}.mlp.2", "transformer.resblocks.{n}.mlp.c_proj"),
            ("post_norm", "ln_post"),
        ),
    ]
)


def key_map(component: ComponentName, layout: Layout, names: Iterable[str]) -> KeyMap:
    """The map between official names and ``layout``. ``names`` are those at hand, in either layout (the VAE's depend
    on its depth). For ``official`` the map is the identity on the names that the component can have.
    """
    names = list(names)
    if component == "vae":
        probe: Layout = "diffusers" if any(".up_blocks." in name for name in names) else "official"
        foreign = vae_diffusers(decoder_blocks(names, probe))
    elif component == "dit":
        foreign = DIT_DIFFUSERS
    elif component == "text_encoder":
        foreign = UMT5_TRANSFORMERS
    else:
        foreign = CLIP_OPEN_CLIP if layout == "open_clip" else CLIP_TRANSFORMERS
    if layout == "official":
        return KeyMap(Rule(rule.official, (rule.official,)) for rule in foreign.rules)
    return foreign


# Recognition ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One component in a file.

    ``tensors`` maps canonical names to stored ones. ``auxiliary`` holds the rest that is known and no weight (scales,
    markers, the tokenizer, an unused text tower): short name to stored name. ``leftovers`` are stored names that
    belong to nothing.
    """

    component: ComponentName
    layout: Layout
    prefix: str
    tensors: Mapping[str, Source]
    auxiliary: Mapping[str, str]
    leftovers: tuple[str, ...]


# Wrappers that training frameworks put inside names.
_INTERLEAVED = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")

# Longest first. The text encoder's prefix in combined files has an inner part that its tokenizer lacks.
_PREFIXES = (
    re.compile(r"text_encoders\.umt5xxl\.(?:transformer\.)?"),
    re.compile(r"model\.diffusion_model\."),
    re.compile(r"diffusion_model\."),
    re.compile(r"first_stage_model\."),
    re.compile(r"vae\."),
    re.compile(r"module\."),
    re.compile(r"model\."),
)

_SIGNATURES: tuple[tuple[ComponentName, Layout, tuple[str, ...]], ...] = (
    ("dit", "official", ("blocks.0.self_attn.q.weight", "head.modulation")),
    ("dit", "diffusers", ("blocks.0.attn1.to_q.weight", "condition_embedder.time_proj.weight")),
    ("vae", "official", ("decoder.middle.0.residual.0.gamma",)),
    ("vae", "diffusers", ("decoder.mid_block.resnets.0.norm1.gamma",)),
    ("text_encoder", "official", ("blocks.0.pos_embedding.embedding.weight",)),
    ("text_encoder", "transformers", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("image_encoder", "official", ("transformer.0.attn.to_qkv.weight",)),
    ("image_encoder", "transformers", ("vision_model.encoder.layers.0.self_attn.q_proj.weight",)),
    ("image_encoder", "open_clip", ("transformer.resblocks.0.attn.in_proj_weight", "class_embedding")),
)

_QUANTISATION = re.compile(r"scaled_fp8|.*\.(?:scale_weight|scale_input|weight_scale|input_scale|comfy_quant)")
_AUXILIARY: Mapping[ComponentName, re.Pattern[str]] = {
    "dit": re.compile(r".*\.norm_added_q\.weight"),
    "vae": re.compile(r"(?!)"),
    "text_encoder": re.compile(r"spiece_model|logit_scale|decoder\..*|lm_head\.weight"),
    "image_encoder": re.compile(
        r"textual\..*|log_scale|logit_scale|text\..*|text_model\..*|text_projection(\.weight)?"
        r"|vision_model\.embeddings\.position_ids"
    ),
}


def recognise(tensors: Mapping[str, TensorInfo]) -> list[Part]:
    """The components among ``tensors`` (stored names), one for most files, several for combined ones.

    Raises ``UnknownLayoutError`` if there is none, naming what the file looks like instead, and for relatives of
    Wan 2.1 that cygnet does not run.
    """
    if len(tensors) > MAX_NAMES:
        raise UnknownLayoutError(f"{len(tensors):,} tensors are more than any Wan 2.1 model has (under 3,000)")
    groups: dict[str, dict[str, str]] = {}
    for stored in tensors:
        name = stored
        for wrapper in _INTERLEAVED:
            name = name.replace(wrapper, "")
        match = next((m for prefix in _PREFIXES if (m := prefix.match(name))), None)
        prefix = match[0].replace("transformer.", "") if match else ""
        short = name[match.end() :] if match else name
        group = groups.setdefault(prefix, {})
        if short in group:
            raise StateMismatchError(
                f"tensors {printable(group[short])!r} and {printable(stored)!r} mean the same weight; keep one"
            )
        group[short] = stored
    parts: list[Part] = []
    unclaimed: list[str] = []
    for prefix, names in groups.items():
        shapes = {short: tensors[stored].shape for short, stored in names.items()}
        refuse_relatives(shapes)
        part = _recognise_group(prefix, names)
        if part is None:
            unclaimed.extend(names.values())
        else:
            parts.append(part)
    if not parts:
        raise UnknownLayoutError(_what_instead(tensors))
    if len(parts) == 1 and unclaimed:
        only = parts[0]
        leftovers = (*only.leftovers, *unclaimed)
        parts = [Part(only.component, only.layout, only.prefix, only.tensors, only.auxiliary, leftovers)]
    return parts


def _recognise_group(prefix: str, names: dict[str, str]) -> Part | None:
    names = dict(names)
    towers: dict[str, str] = {}
    if any(name.startswith("visual.") for name in names):
        # CLIP with its visual tower set apart; open_clip keeps the text tower at the top level.
        text = re.compile(r"transformer\.|token_embedding\.|positional_embedding|ln_final\.|attn_mask")
        towers = {name: stored for name, stored in names.items() if text.match(name)}
        names = {name.removeprefix("visual."): stored for name, stored in names.items() if name not in towers}
        prefix += "visual."
    elif "encoder.layers.0.self_attn.q_proj.weight" in names and "embeddings.class_embedding" in names:
        # transformers 5 names its modules without this segment; its files may, too.
        outside = ("visual_projection.weight", "logit_scale", "text_projection.weight")
        names = {name if name in outside else f"vision_model.{name}": stored for name, stored in names.items()}
    if "shared.weight" not in names and "encoder.embed_tokens.weight" in names:
        names["shared.weight"] = names.pop("encoder.embed_tokens.weight")
    for component, layout, signature in _SIGNATURES:
        if all(name in names for name in signature):
            return _map_group(component, layout, prefix, names, towers)
    return None


def _map_group(
    component: ComponentName, layout: Layout, prefix: str, names: dict[str, str], auxiliary: dict[str, str]
) -> Part:
    set_aside = _AUXILIARY[component]
    auxiliary = dict(auxiliary)
    weights: dict[str, str] = {}
    for name, stored in names.items():
        tied = name == "encoder.embed_tokens.weight" and component == "text_encoder"
        if tied or _QUANTISATION.fullmatch(name) or set_aside.fullmatch(name):
            auxiliary[name] = stored
        else:
            weights[name] = stored
    mapped, leftovers = key_map(component, layout, weights).to_official(weights)
    tensors = {name: Source(tuple(weights[n] for n in source.names), source.how) for name, source in mapped.items()}
    return Part(component, layout, prefix, tensors, auxiliary, tuple(weights[name] for name in leftovers))


def refuse_relatives(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``UnknownLayoutError`` in words if the names or shapes are those of a model beside Wan 2.1's own four."""

    def rows(*names: str) -> int:
        return next((shapes[name][0] for name in names if shapes.get(name)), 0)

    def refuse(what: str) -> None:
        raise UnknownLayoutError(
            f"this is {what}, which cygnet does not run; it runs Wan 2.1: T2V, I2V, FLF2V, VACE and Fun models"
        )

    if "decoder.upsamples.0.upsamples.0.residual.2.weight" in shapes:
        refuse("the Wan 2.2 VAE (48 latent channels)")
    if "decoder.middle.0.residual.0.gamma" in shapes or "decoder.mid_block.resnets.0.norm1.gamma" in shapes:
        if rows("conv2.weight", "post_quant_conv.weight") == 48:
            refuse("the Wan 2.2 VAE (48 latent channels)")
        return
    if "decoder.1.weight" in shapes and "decoder.3.conv.0.weight" in shapes:
        refuse("a TAEHV preview decoder")
    if any(name.startswith("enc.blk.0.") for name in shapes):
        refuse("a text encoder under GGUF names")
    if "encoder.block.0.layer.0.SelfAttention.q.weight" in shapes:
        bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
        if "encoder.block.1.layer.0.SelfAttention.q.weight" in shapes and bias not in shapes:
            refuse("a T5 text encoder (one position table for all layers; Wan needs UMT5, with one per layer)")
        return
    official = {"blocks.0.self_attn.q.weight", "head.modulation"} <= shapes.keys()
    diffusers = {"blocks.0.attn1.to_q.weight", "condition_embedder.time_proj.weight"} <= shapes.keys()
    if not (official or diffusers):
        return
    patch = shapes.get("patch_embedding.weight", ())
    in_channels = patch[1] if len(patch) == 5 else 0
    if in_channels == 48 and rows("head.head.weight", "proj_out.weight") == 48 * 4:
        refuse("Wan 2.2 TI2V-5B")
    has_image = "img_emb.proj.0.bias" in shapes or "condition_embedder.image_embedder.norm1.bias" in shapes
    if in_channels == 36 and not has_image:
        refuse("Wan 2.2 I2V-A14B (image channels without an image embedding)")


def _what_instead(tensors: Mapping[str, TensorInfo]) -> str:
    lora = re.compile(r".*(lora_[AB]|lora_(down|up)|\.lora\.|hada_w|lokr_w)")
    names = list(tensors)
    if any(lora.match(name) for name in names):
        return "this is a LoRA, not a model; load the model it was made for, and give the LoRA beside it"
    if not names:
        return "this file holds no tensors"
    first = ", ".join(printable(name) for name in names[:3])
    return (
        f"none of the {len(names):,} tensor names is one that a Wan 2.1 model begins with (first: {first}); cygnet "
        "reads the official, Diffusers and ComfyUI layouts of the DiT, VAE, UMT5 and CLIP files"
    )
