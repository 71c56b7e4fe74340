"""Whole models: read and compared from their headers, then loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from cygnet.assembly.arguments import Device, Dtype, Lora, Source, with_strengths
from cygnet.assembly.placing import Networks
from cygnet.assembly.sources import find_files
from cygnet.assembly.together import Architectures, checked_together
from cygnet.assembly.tokenizer import TokenizerSource, no_tokenizer
from cygnet.checkpoints import ComponentWeights, read_component, variant_name
from cygnet.checkpoints.digest import digest
from cygnet.checkpoints.lora import Coverage, with_loras
from cygnet.checkpoints.open import open_weights
from cygnet.models.dit.config import DiTConfig
from cygnet.pipelines.components import Components
from cygnet.pipelines.presets import defaults_for
from cygnet.runtime.execution import DEFAULT, Execution, check_execution
from cygnet.runtime.plan import Offload, Weights, check_offload
from cygnet.runtime.precision import parse_device, parse_dtype, pick_dtype
from cygnet.runtime.residency import Placed
from cygnet.runtime.step_cache import make_step_cache
from cygnet.runtime.text_memory import DiskTextMemory
from cygnet.types import ComponentName, ProgressSink, Residency, ignore_progress


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to work: its components, and what its files are."""

    components: Components
    name: str | None
    """The name it was loaded by; None for files."""
    weights: Mapping[ComponentName, ComponentWeights]
    tokenizer: TokenizerSource
    device: torch.device
    dtypes: Mapping[ComponentName, torch.dtype]
    decode_dtype: torch.dtype
    residency: Placed
    """Where the networks are; that of ``components``."""
    taken: Mapping[ComponentName, Weights]
    offload: Offload
    """What was asked for when it was loaded."""
    execution: Execution = DEFAULT
    loras: tuple[tuple[Path, Coverage], ...] = ()
    """What was merged into the transformer, and how much of it found its place."""

    def describe(self) -> dict[str, Any]:
        """For receipts: name, and per component variant, dtype, file names and :func:`~...digest.digest`; LoRAs."""
        loras = [
            {
                "file": path.name,
                "strength": told.strength,
                "digest": digest(open_weights(path).files),
                **({"partial": True} if told.partial else {}),
            }
            for path, told in self.loras
        ]
        return {
            "name": self.name,
            "variant": self.components.variant,
            "components": {
                name: {
                    "variant": weights.variant,
                    "files": [path.name for path in weights.sources],
                    "digest": digest(weights.sources),
                    "dtype": str(self.dtypes[name]).removeprefix("torch."),
                    **({"decode_dtype": str(self.decode_dtype).removeprefix("torch.")} if name == "vae" else {}),
                }
                for name, weights in self.weights.items()
            },
            **({"loras": loras} if loras else {}),
            **self.execution.describe(),
        }


@dataclass(frozen=True, kw_only=True)
class ReadModel:
    """A model of which the headers were read and found to belong together."""

    name: str | None
    weights: Mapping[ComponentName, ComponentWeights]
    tokenizer: TokenizerSource
    configs: Architectures
    loras: tuple[tuple[Path, Coverage], ...]


def read_model(source: Source, loras: Sequence[Lora] = (), *, allow_partial_loras: bool = False) -> ReadModel:
    """Read headers and compare the parts, as :func:`load_components` does before it reads any weight."""
    files = find_files(source)
    weights = {part: read_component(path, part) for part, path in files.components.items()}
    configs = checked_together(weights)
    chosen = with_strengths(loras)
    coverage: tuple[Coverage, ...] = ()
    if chosen:
        patched = with_loras(weights["dit"], chosen, allow_partial=allow_partial_loras)
        weights["dit"], coverage = patched, patched.coverage
    tokenizer = TokenizerSource.find(weights["text_encoder"], files.tokenizer)
    if tokenizer is None:
        raise no_tokenizer()
    told = tuple((path, each) for (path, _), each in zip(chosen, coverage, strict=True))
    return ReadModel(name=files.name, weights=weights, tokenizer=tokenizer, configs=configs, loras=told)


def load_components(
    source: Source,
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = None,
    loras: Sequence[Lora] = (),
    allow_partial_loras: bool = False,
    execution: Execution = DEFAULT,
    on_progress: ProgressSink = ignore_progress,
) -> LoadedModel:
    """All networks of a model: its name, a folder, a combined file, or ``{"dit": path, "vae": path, ...}``.

    A mapping may also name a ``tokenizer``. ``dtype`` applies to the transformer and the encoders; see
    :mod:`cygnet.runtime.precision` for "auto" and why the VAE encodes in float32; ``execution`` says how they compute
    beyond that. With ``offload`` each network is read when its stage begins and dropped when it ends; None decides by
    the free memory, and does so too if memory runs out while all are loaded, which is an error with False. What is
    stored in 8 bits is kept so if it does not fit otherwise. A network that still does not fit, or with "stream" each
    of the large ones, is read block by block at every use: it takes a block's memory, and the time of reading the file
    once per step. Results are the same bit for bit.

    ``loras`` are merged into the transformer as it is read, or run as low-rank branches beside matrices that are kept
    in 8 bits or read block by block; the two agree within the rounding of ``dtype``. One of which the transformer has
    less than half is refused unless ``allow_partial_loras``. See :func:`cygnet.checkpoints.lora.with_loras`.

    Headers are read and the parts compared before any weight is. Raises ``ModelNotFoundError`` if a part is missing,
    ``StateMismatchError`` if parts do not belong together, ``OutOfMemory``, and as the single loaders.
    """
    check_offload(offload)
    check_execution(execution)
    place = parse_device(device)
    execution.check(place)
    asked = parse_dtype(dtype)
    read = read_model(source, loras, allow_partial_loras=allow_partial_loras)
    networks = Networks(
        weights=read.weights,
        dtypes={part: pick_dtype(part, place, asked) for part in read.weights},
        decode_dtype=execution.decodes_in(place, asked),
        device=place,
        execution=execution,
    )
    residency = networks.placed(offload, on_progress)
    return LoadedModel(
        components=_components(read, networks, residency),
        name=read.name,
        weights=networks.weights,
        tokenizer=read.tokenizer,
        device=place,
        dtypes=networks.dtypes,
        decode_dtype=networks.decode_dtype,
        execution=execution,
        loras=read.loras,
        residency=residency,
        taken=networks.taken,
        offload=offload,
    )


def _components(read: ReadModel, networks: Networks, residency: Residency) -> Components:
    dtype = networks.dtypes["text_encoder"]
    return Components(
        residency=residency,
        variant=variant_name(read.configs.dit),
        tokenizer=read.tokenizer.read(),
        dit=read.configs.dit,
        vae=read.configs.vae,
        text_encoder=read.configs.text_encoder,
        image_encoder=read.configs.image_encoder,
        step_cache=make_step_cache,
        text_memory=_text_memory(
            read.weights["text_encoder"], read.tokenizer, dtype, networks.device, read.configs.dit
        ),
    )


def _text_memory(
    weights: ComponentWeights, tokenizer: TokenizerSource, dtype: torch.dtype, device: torch.device, dit: DiTConfig
) -> DiskTextMemory | None:
    """For the negative prompt that a published model comes with; the embedded ones have an empty one."""
    text = defaults_for(dit).negative_prompt
    if not text:
        return None

    def origin() -> str:
        data = tokenizer.data if tokenizer.path is None else tokenizer.path.read_bytes()
        chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        kinds = (dtype, device.type, chip, torch.__version__)
        return "\0".join((digest(weights.sources), hashlib.sha256(data or b"").hexdigest(), *map(str, kinds)))

    return DiskTextMemory(Path(platformdirs.user_cache_dir("cygnet", appauthor=False)) / "text", {text}, origin)
