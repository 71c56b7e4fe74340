"""What a plan is made for: a model's networks, and what their weights take, from headers or from what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cygnet.assembly import (
    DEFAULT,
    Dtype,
    Execution,
    LoadedModel,
    Lora,
    Source,
    TokenizerSource,
    network_taken,
    read_model,
    rounded_of,
    weights_taken,
)
from cygnet.checkpoints import ComponentConfig, ComponentWeights, catalogue, variant_name
from cygnet.models.clip.config import CLIP_VIT_H, CLIPVisionConfig
from cygnet.models.dit.config import FLF2V_14B, I2V_14B, T2V_1_3B, T2V_14B, DiTConfig
from cygnet.models.umt5.config import UMT5_XXL, UMT5Config
from cygnet.models.vae.config import WAN_VAE, VAEConfig
from cygnet.pipelines.presets import Defaults, defaults_for
from cygnet.runtime.eight_bit import WeightDtype
from cygnet.runtime.plan import Weights
from cygnet.runtime.precision import parse_dtype, pick_dtype
from cygnet.types import ComponentName, Tiles

PUBLISHED: Mapping[str, DiTConfig] = {
    "t2v-1.3b": T2V_1_3B,
    "t2v-14b": T2V_14B,
    "i2v-14b-480p": I2V_14B,
    "i2v-14b-720p": I2V_14B,
    "flf2v-14b-720p": FLF2V_14B,
}
"""The transformers of the named models; everything else is the same in all of them."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model as a plan sees it."""

    name: str | None
    dit: DiTConfig
    vae: VAEConfig
    text_encoder: UMT5Config
    image_encoder: CLIPVisionConfig | None
    weights: Mapping[ComponentName, Weights]
    dtypes: Mapping[ComponentName, torch.dtype]
    decode_dtype: torch.dtype
    """Of the VAE's decoding half."""
    on_processor: bool
    """Whether the networks compute on a processor: there the VAE may convolve otherwise."""
    files: Mapping[ComponentName, int]
    """Bytes on disk that a run reads once."""
    converted: frozenset[ComponentName]
    """The networks whose weights change their type as they are read; the others stay mapped from their file."""
    present: bool
    """Whether the weights are on this machine."""
    tokenizer: TokenizerSource | None
    execution: Execution

    @property
    def decode_tiles(self) -> Tiles | None:
        """Those that were asked for; None where memory decides."""
        return self.execution.tiles("decode_tiles")

    @property
    def encode_tiles(self) -> Tiles | None:
        """The same of the VAE's other half."""
        return self.execution.tiles("encode_tiles")

    @property
    def variant(self) -> str:
        """What people call the architecture."""
        return variant_name(self.dit)

    @property
    def defaults(self) -> Defaults:
        """What is used for everything that a request does not say."""
        return defaults_for(self.dit, self.name)

    def with_rounded(self, weight_dtype: WeightDtype) -> Subject:
        """The same with the matrices of the transformer's blocks rounded to 8 bits; none of them is so in its file."""
        taken = network_taken("dit", self.dit, self.dtypes["dit"], eight_bit=rounded_of("dit", self.dit))
        return replace(
            self,
            weights={**self.weights, "dit": taken},
            converted=self.converted | {"dit"},
            execution=replace(self.execution, weight_dtype=weight_dtype),
        )

    def tokens(self, text: str) -> int:
        """How many tokens a prompt becomes; about one for four letters where there is no tokenizer to ask."""
        if self.tokenizer is not None:
            return len(self.tokenizer.read().tokenize(text).ids)
        wide = sum(character > "\u2e80" for character in text)  # Chinese and the like: nearly a token each
        return min(1 + wide + -(-(len(text) - wide) // 4), self.dit.text_length)


def subject_of(
    source: Source,
    device: torch.device,
    dtype: Dtype = "auto",
    loras: Sequence[Lora] = (),
    execution: Execution = DEFAULT,
    *,
    allow_partial_loras: bool = False,
) -> Subject:
    """The model of a name, path or mapping. A published one need not be on this machine; no weight is read."""
    asked = parse_dtype(dtype)
    decoded = _decode_dtype(device, asked, execution)
    if isinstance(source, str) and source.lower() in PUBLISHED and not Path(source).exists():
        found = catalogue.look_for(source)
        if not found.complete:
            return _published(found.entry, device, asked, decoded, execution)
    on_processor = device.type == "cpu"
    read = read_model(source, loras, allow_partial_loras=allow_partial_loras)
    dtypes = {part: _dtype(part, device, asked) for part in read.weights}
    return _subject(read.name, read.weights, read.tokenizer, dtypes, decoded, execution, on_processor=on_processor)


def _dtype(part: ComponentName, device: torch.device, asked: torch.dtype | None) -> torch.dtype:
    """As :func:`pick_dtype`, also for a CUDA device that this machine has not; that is taken for a recent one."""
    if device.type == "cuda" and not torch.cuda.is_available() and asked is None and part != "vae":
        return torch.float16 if part == "image_encoder" else torch.bfloat16
    return pick_dtype(part, device, asked)


def _decode_dtype(device: torch.device, asked: torch.dtype | None, execution: Execution) -> torch.dtype:
    if device.type == "cuda" and not torch.cuda.is_available():
        return parse_dtype(execution.decode_dtype) or (torch.float32 if asked == torch.float32 else torch.bfloat16)
    return execution.decodes_in(device, asked)


def subject_of_loaded(model: LoadedModel) -> Subject:
    """A model that is loaded."""
    subject = _subject(
        model.name,
        model.weights,
        model.tokenizer,
        model.dtypes,
        model.decode_dtype,
        model.execution,
        on_processor=model.device.type == "cpu",
    )
    return replace(subject, weights=model.taken)


def _subject(
    name: str | None,
    weights: Mapping[ComponentName, ComponentWeights],
    tokenizer: TokenizerSource | None,
    dtypes: Mapping[ComponentName, torch.dtype],
    decode_dtype: torch.dtype,
    execution: Execution,
    *,
    on_processor: bool,
) -> Subject:
    configs: dict[ComponentName, ComponentConfig] = {part: each.config for part, each in weights.items()}
    dit, vae, text, eye = (configs.get(part) for part in ("dit", "vae", "text_encoder", "image_encoder"))
    assert isinstance(dit, DiTConfig)
    assert isinstance(vae, VAEConfig)
    assert isinstance(text, UMT5Config)
    taken = {part: weights_taken(each, dtypes[part], decode_dtype, execution) for part, each in weights.items()}
    return Subject(
        name=name,
        dit=dit,
        vae=vae,
        text_encoder=text,
        image_encoder=eye if isinstance(eye, CLIPVisionConfig) and dit.image_dim is not None else None,
        weights=taken,
        dtypes=dtypes,
        decode_dtype=decode_dtype,
        on_processor=on_processor,
        files={part: sum(info.nbytes for info in each.infos.values()) for part, each in weights.items()},
        converted=frozenset(
            part for part, each in weights.items() if taken[part].widened or _converted(part, each, dtypes[part])
        ),
        present=True,
        tokenizer=tokenizer,
        execution=execution,
    )


def _converted(part: ComponentName, weights: ComponentWeights, dtype: torch.dtype) -> bool:
    """Whether most of the weights are of another type in the file than in memory; the VAE's are laid out anew."""
    name = str(dtype).removeprefix("torch.")
    same = sum(info.numel for info in weights.infos.values() if info.dtype == name)
    return part == "vae" or 2 * same < weights.parameters


def _published(
    entry: catalogue.Entry,
    device: torch.device,
    asked: torch.dtype | None,
    decode_dtype: torch.dtype,
    execution: Execution,
) -> Subject:
    """As the first source that `cygnet pull` would fetch from has it."""
    dit = PUBLISHED[entry.name]
    configs: dict[ComponentName, ComponentConfig] = {"dit": dit, "vae": WAN_VAE, "text_encoder": UMT5_XXL}
    if dit.image_dim is not None:
        configs["image_encoder"] = CLIP_VIT_H
    dtypes = {part: _dtype(part, device, asked) for part in configs}
    files: dict[ComponentName, int] = dict.fromkeys(configs, 0)
    for file in entry.source().select():
        if file.role in files:
            files[file.role] += file.bytes
    weights = {part: network_taken(part, config, dtypes[part], decode_dtype) for part, config in configs.items()}
    if execution.fp8:
        weights["dit"] = weights["dit"].rounded_when_loaded()
    subject = Subject(
        name=entry.name,
        dit=dit,
        vae=WAN_VAE,
        text_encoder=UMT5_XXL,
        image_encoder=CLIP_VIT_H if dit.image_dim is not None else None,
        weights=weights,
        dtypes=dtypes,
        decode_dtype=decode_dtype,
        on_processor=device.type == "cpu",
        files=files,
        converted=frozenset(part for part in files if part == "vae" or files[part] > 1.2 * weights[part].whole),
        present=False,
        tokenizer=None,
        execution=execution,
    )
    return subject if execution.weight_dtype == "auto" else subject.with_rounded(execution.weight_dtype)
