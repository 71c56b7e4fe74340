"""Everything that decides a training run: the fields of its file, and what fits together.

Nothing is converted: a number in quotes or a field that does not exist is refused. The docstring below a field is its
documentation; ``cygnet train --fields`` prints them all. The file itself is read in
:mod:`cygnet.training.config_file`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Method = Literal["lora", "full", "scratch", "vae"]
Dtype = Literal["float32", "bfloat16"]
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelFiles(Section):
    """The files of a model one by one, in place of a name or a folder."""

    dit: str
    """Transformer."""
    vae: str
    """Autoencoder."""
    text_encoder: str
    """Text encoder."""
    image_encoder: str | None = None
    """Image encoder; image-to-video needs it."""
    tokenizer: str | None = None
    """Tokenizer, where the text encoder's file holds none."""

    def paths(self) -> dict[str, str]:
        """Those that are given."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class DataConfig(Section):
    """What is taught: videos and pictures with captions."""

    path: str
    """A folder of videos and pictures with a ``.txt`` caption beside each; a ``.jsonl`` file of
    ``{"path": ..., "caption": ...}`` lines; or a ``.tar`` shard or a folder of them (WebDataset)."""
    validation: str | None = None
    """The same for clips that are never trained on; without it the validation loss is that of the first clips here."""
    sizes: Annotated[list[str], Field(min_length=1)] = ["832x480"]
    """Sizes ``WIDTHxHEIGHT`` in multiples of 16. Each clip goes to the nearest aspect, scaled to cover it."""
    frames: Annotated[list[int], Field(min_length=1)] = [81]
    """Lengths 4n+1 in frames. Each clip goes to the longest that it fills; a picture to 1, which is always allowed."""
    fps: Annotated[float, Field(gt=0, le=240)] = 16.0
    """Frames per second at which clips are read; Wan was trained at 16. A clip at another rate is resampled in time."""
    cache: str | None = None
    """Folder of encoded latents and texts; by default ``cache`` in the output folder. May be shared by runs."""
    trigger: str = ""
    """Words put before every caption, such as the name of a subject."""

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, value: list[str]) -> list[str]:
        for size in value:
            match = _SIZE.fullmatch(size)
            if match is None or any(int(side) % 16 or not 16 <= int(side) <= 16384 for side in match.groups()):
                raise ValueError(f"{size!r} is no size; give WIDTHxHEIGHT in multiples of 16, such as 832x480")
        return value

    @field_validator("frames")
    @classmethod
    def _check_frames(cls, value: list[int]) -> list[int]:
        for count in value:
            if count % 4 != 1 or not 1 <= count <= 1001:
                below = max(1, (count - 1) // 4 * 4 + 1)
                raise ValueError(
                    f"{count} is no length; Wan needs 4n+1 from 1 to 1001 (nearest: {below} or {below + 4})"
                )
        return value

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The sizes as (width, height)."""
        return [(int(w), int(h)) for w, h in (size.split("x") for size in self.sizes)]


class LoraConfig(Section):
    """The adapter."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    """Inner width."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / rank; by default alpha is the rank."""
    targets: Annotated[list[str], Field(min_length=1)] = [
        "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
        "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2",
    ]  # fmt: skip
    """Linear layers of every block that get one, by the end of their names."""


class PreserveConfig(Section):
    """Keeping what the model does for other captions: its own answers from before the training are taught beside."""

    captions: list[str] = []
    """What should stay as it is; a few dozen that are unlike the clips' captions. They are asked of the clips that are
    taught. Empty, and without ``path``: nothing is preserved."""
    path: str | None = None
    """In place of ``captions``: clips with captions of what should stay, best those that the model itself has made, in
    any form that ``data.path`` may have. They say more, and take as long to encode as others."""
    empty: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Share of the clips of ``path`` that are asked without their caption: guidance leads away from that answer."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of the difference from the model's own answer, beside the loss of the clips."""
    batch: Positive = 4
    """Captions per step, over all processes."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.captions and self.path is not None:
            raise ValueError("preserve.captions and preserve.path exclude each other; clips of path have captions")
        # What is given and not read would be a contradiction.
        if self.path is None and "empty" in self.model_fields_set:
            raise ValueError("preserve.empty is for the clips of preserve.path; give that, or remove it")
        unused = [f"preserve.{name}" for name in ("weight", "batch") if name in self.model_fields_set]
        if unused and not self.wanted:
            raise ValueError(
                f"{' and '.join(unused)} without preserve.captions or preserve.path: nothing is preserved; give one of "
                "these, or remove what is not used"
            )
        return self

    @property
    def wanted(self) -> bool:
        """Whether anything is preserved."""
        return bool(self.captions) or self.path is not None


class ObjectiveConfig(Section):
    """Flow matching: which noise levels are trained."""

    mean: float = 0.0
    """Of the logit-normal density of levels."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Of the logit-normal density of levels."""
    shift: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Moves the levels towards noise; by default the model's own shift for the largest size, as sampling uses it."""
    caption_dropout: Share = 0.1
    """Share of clips that are trained without their caption, so that guidance works."""


class OptimizerConfig(Section):
    """How the weights move."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """``adamw8bit`` needs the package bitsandbytes; ``muon`` is for matrices, with AdamW for the rest."""
    rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """Learning rate after the warm-up."""
    other_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """With ``muon``: the rate of what AdamW trains; by default half of ``rate``."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """Decay of AdamW's two averages."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Decay of matrices per step and unit of rate; vectors are not decayed."""
    warmup: Annotated[int, Field(ge=0)] = 20
    """Steps over which the rate rises."""
    floor: Share = 0.05
    """The share of the rate that is left at the end of its half cosine; 1 keeps it constant."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; larger ones are scaled down."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights (EMA), which is then what is saved and sampled; 0 keeps none."""

    @field_validator("betas", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class MemoryConfig(Section):
    """What is traded for memory."""

    dtype: Dtype = "bfloat16"
    """In which type products are computed. Weights that are trained are kept in float32."""
    checkpointing: Literal["none", "products", "attention", "full"] = "attention"
    """What is computed again in the backward pass to save memory: nothing; all but large matrix products and attention
    (nearly as fast as nothing); all but attention; everything."""
    base: Literal["as_dtype", "fp8", "int8"] = "as_dtype"
    """How a LoRA's frozen matrices are kept: in ``dtype``, or in 8 bits (half the memory)."""
    compile_: Annotated[bool | Literal["auto"], Field(alias="compile")] = "auto"
    """Whether blocks are compiled: faster, in less memory, the same to rounding. "auto": a LoRA's, on a processor in
    bfloat16, where clips are large enough; ``full`` and ``scratch``, between whose products all is float32, only with
    true. Needs a C++ compiler, and on a GPU triton; without, they are not compiled, which is said."""
    block_swap: Annotated[int, Field(ge=0)] = 0
    """How many of the frozen base's blocks stay in host memory; two of them are on the device at a time. LoRA only."""


class EveryConfig(Section):
    """What happens every so many steps; 0 is never."""

    save: Positive = 100
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Checkpoints that are kept; the newest ones."""
    log: Positive = 10
    """Steps between lines of the log."""
    validate_: Annotated[int, Field(ge=0, alias="validate")] = 0
    """Steps between measurements of the validation loss, with the same noise every time."""
    sample: Annotated[int, Field(ge=0)] = 0
    """Steps between sample videos."""


class SampleConfig(Section):
    """The sample videos."""

    prompts: list[str] = []
    """One video each."""
    image: str | None = None
    """The first frame, for image-to-video."""
    steps: Positive = 20
    """Steps of the solver."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Guidance; the model's own by default."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the noise."""


class ParallelConfig(Section):
    """Many GPUs, with ``torchrun``."""

    context: Positive = 1
    """Processes that share one clip's tokens (for long clips); divides the number of processes and of heads."""


class VaeConfig(Section):
    """Training the autoencoder."""

    crop: Annotated[int, Field(ge=16, multiple_of=8)] = 128
    """Side of the random crops in pixels."""
    frames: Annotated[int, Field(ge=1)] = 9
    """Their length, 4n+1."""
    l1: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the absolute error."""
    difference: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the error of differences between neighbours, over three scales."""
    kl: Annotated[float, Field(ge=0)] = 1e-5
    """Weight of the latents' distance from a standard normal distribution."""

    @field_validator("frames")
    @classmethod
    def _check_frames(cls, value: int) -> int:
        if value % 4 != 1:
            raise ValueError(f"{value} is no length; Wan needs 4n+1")
        return value


class ScratchConfig(Section):
    """Training from nothing."""

    dim: Positive | None = None
    """Width; this and the other fields are by default those of ``model``, whose own weights are not used."""
    ffn_dim: Positive | None = None
    """Width inside the feed-forward layers."""
    num_heads: Positive | None = None
    """Attention heads."""
    num_layers: Positive | None = None
    """Blocks."""


class TrainConfig(Section):
    """A training run."""

    method: Method
    """``lora`` (an adapter), ``full`` (all weights), ``scratch`` (from nothing) or ``vae`` (the autoencoder)."""
    model: str | ModelFiles
    """A model's name, its folder, or a table of its files. Text-to-video or image-to-video follows from it."""
    output: str
    """Folder of checkpoints, log, samples and the result. Running the same file again goes on where it was stopped."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    """Updates of the weights."""
    batch: Positive = 1
    """Clips per update, over all processes."""
    accumulate: Positive = 1
    """Parts into which a process cuts its clips of one update, to save memory; the result differs by rounding alone."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of order, noise and initial weights."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of the CPU; 0 is torch's own choice."""
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    preserve: PreserveConfig = PreserveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    memory: MemoryConfig = MemoryConfig()
    every: EveryConfig = EveryConfig()
    sample: SampleConfig = SampleConfig()
    parallel: ParallelConfig = ParallelConfig()
    vae: VaeConfig = VaeConfig()
    scratch: ScratchConfig = ScratchConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.memory.base != "as_dtype" and self.method != "lora":
            raise ValueError(
                f"memory.base is {self.memory.base!r}, but method is {self.method!r}; only lora keeps its base frozen"
            )
        if self.memory.block_swap and self.method != "lora":
            raise ValueError("memory.block_swap is for method lora, whose base is frozen; set it to 0")
        if self.every.sample and not self.sample.prompts:
            raise ValueError("every.sample is set, but sample.prompts is empty; give a prompt or set it to 0")
        if self.batch % self.accumulate:
            raise ValueError(f"batch is {self.batch}, which accumulate ({self.accumulate}) does not divide")
        if self.preserve.wanted and self.method not in ("lora", "full"):
            given = "preserve.captions" if self.preserve.captions else "preserve.path"
            raise ValueError(f"{given} is for methods lora and full, which begin at a finished model")
        ignored = self._ignored()
        if ignored:
            raise ValueError(f"method {self.method!r} does not use {', '.join(ignored)}; remove what is not used")
        return self

    def _ignored(self) -> list[str]:
        """What the file says that the method does not read: a contradiction, not a detail."""
        tables = {"lora": self.method != "lora", "scratch": self.method != "scratch", "vae": self.method != "vae"}
        if self.method != "vae":
            return [f"[{name}]" for name, foreign in tables.items() if foreign and name in self.model_fields_set]
        tables["objective"] = True
        found = [f"[{name}]" for name, foreign in tables.items() if foreign and name in self.model_fields_set]
        # data.sizes and data.frames stay: `cygnet data check` reads them.
        given = {
            "every.sample": self.every.sample,
            "every.validate": self.every.validate_,
            "sample.prompts": self.sample.prompts,
            "sample.image": self.sample.image,
            "parallel.context": self.parallel.context > 1,
            "data.validation": self.data.validation,
            "data.cache": self.data.cache,
            "data.trigger": self.data.trigger,
            "memory.checkpointing": "checkpointing" in self.memory.model_fields_set,
            "memory.compile": self.memory.compile_ is True,
        }
        return found + [name for name, value in given.items() if value]

    def identity(self) -> str:
        """Fingerprint of what decides the weights; a checkpoint of another one is refused.

        Clips and model are not in it: a checkpoint knows those by their content, wherever they lie.
        """
        fields = self.model_dump(mode="json", by_alias=True)
        for name in ("model", "output", "device", "threads", "every", "sample", "parallel", "accumulate"):
            fields.pop(name)
        for name in ("path", "cache", "validation"):
            fields["data"].pop(name)
        fields["preserve"]["path"] = self.preserve.path is not None
        fields["memory"].pop("checkpointing")
        fields["memory"].pop("block_swap")
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
