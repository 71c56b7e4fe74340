"""The one place that joins weight files, networks and their placement into components ready for use."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import platformdirs
import torch

from cygnet.checkpoints import (
    ComponentConfig,
    ComponentWeights,
    materialise,
    read_component,
    recognise,
    resolve_pipeline_folder,
    variant_name,
    without_weights,
)
from cygnet.checkpoints.digest import digest
from cygnet.checkpoints.folders import TOKENIZER_FILES
from cygnet.checkpoints.layouts import COMPONENT_WORDS
from cygnet.checkpoints.lora import Coverage as Coverage
from cygnet.checkpoints.lora import with_loras
from cygnet.checkpoints.lora.beside import Branches, set_beside
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.weight_file import printable, shown
from cygnet.errors import ModelNotFoundError, RequestError, StateMismatchError, WeightFileError
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.taehv.model import PreviewDecoder, decoder_state
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.prompt import encode_prompt
from cygnet.models.umt5.tokenizer import MAX_TOKENS, Tokenizer
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.components import Components
from cygnet.pipelines.presets import defaults_for
from cygnet.runtime.block_swap import BlockSwap, swapped_bytes
from cygnet.runtime.eight_bit import keep_in_eight_bits
from cygnet.runtime.execution import DEFAULT as DEFAULT
from cygnet.runtime.execution import Execution as Execution
from cygnet.runtime.memory import device_memory as device_memory
from cygnet.runtime.memory import free_memory
from cygnet.runtime.plan import Offload as Offload
from cygnet.runtime.plan import Placement, Weights, choose, fits_alone
from cygnet.runtime.precision import parse_device, parse_dtype, pick_dtype
from cygnet.runtime.residency import Placed, Resident, Stage, StageResidency, loaded
from cygnet.runtime.residency import release_unused as release_unused
from cygnet.runtime.step_cache import make_step_cache as make_step_cache
from cygnet.runtime.streaming import MatrixStream, streamed_bytes, streamed_names
from cygnet.runtime.text_memory import DiskTextMemory
from cygnet.types import ComponentName, Progress, ProgressSink, Residency, ignore_progress

Place = str | os.PathLike[str]
Source = Place | Mapping[str, Place] | Mapping[ComponentName, Place]
Lora = Place | tuple[Place, float]
"""A LoRA file, or one and its strength; 1 by default."""
Dtype = str | torch.dtype
Device = str | torch.device

COMPONENT_NAMES: tuple[ComponentName, ...] = get_args(ComponentName)
EMBEDDED_NAMES: Mapping[str, tuple[str, ComponentName]] = {
    "tiny-vae": ("tiny-t2v", "vae"),
    "tiny-text-encoder": ("tiny-t2v", "text_encoder"),
    "tiny-image-encoder": ("tiny-i2v", "image_encoder"),
}
"""Names for single networks of the embedded models: name -> model and component."""
STACKS = ("blocks", "vace_blocks")
"""Where the transformer and the text encoder keep their repeated blocks."""
STREAMED: tuple[ComponentName, ...] = ("dit", "text_encoder")
"""The networks that can be brought in block by block; the others are small."""
DECODING = ("decoder", "conv2")
"""The parts of the VAE that decode."""
_NO_PARTS: Mapping[str, torch.dtype] = MappingProxyType({})

_Module = TypeVar("_Module", WanVAE, DiT, UMT5Encoder, CLIPVision)
_CONFIGS: Mapping[ComponentName, type[Any]] = {
    "dit": DiTConfig,
    "vae": VAEConfig,
    "text_encoder": UMT5Config,
    "image_encoder": CLIPVisionConfig,
}


def read_tensors(path: Place, device: Device = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a weight file as they are stored, on ``device``, and its metadata. Raises WeightFileError."""
    weights = open_weights(Path(path))
    return {name: weights.tensor(name).to(device) for name in weights.tensors}, dict(weights.metadata)


# Single networks -----------------------------------------------------------------------------------------------------


def load_vae(
    path: Place,
    dtype: Dtype = torch.float32,
    device: Device = "cpu",
    config: VAEConfig | None = None,
    *,
    decode_dtype: Dtype | None = None,
) -> WanVAE:
    """The autoencoder of a weight file, a folder, or a model's name; not trainable until you say so.

    ``dtype`` is a torch dtype or its name; ``decode_dtype`` one for the decoding half, "auto" what decodes fastest on
    ``device`` without a visible difference, None the same; ``config`` overrides what the shapes say.

    Raises ``ModelNotFoundError``, ``UnknownLayoutError``, ``StateMismatchError`` or ``WeightFileError`` of
    :mod:`cygnet.errors`, each in words. The same holds for the other loaders.
    """
    weights = _weights(path, "vae", config)
    kind, place = _dtype("vae", dtype, device), parse_device(device)
    decoded = kind if decode_dtype is None else Execution(decode_dtype=decode_dtype).decodes_in(place, None)
    return _vae(weights, kind, decoded, place)


def _vae(weights: ComponentWeights, dtype: torch.dtype, decode_dtype: torch.dtype, device: torch.device) -> WanVAE:
    decoding = dict.fromkeys(DECODING, decode_dtype)
    return _build(WanVAE, weights, dtype, device, channels_last=True, by_part=decoding)


def load_dit(
    path: Place,
    dtype: Dtype = torch.float32,
    device: Device = "cpu",
    config: DiTConfig | None = None,
    loras: Sequence[Lora] = (),
    *,
    eight_bit: bool = False,
    rounded: torch.dtype | None = None,
    allow_partial_loras: bool = False,
    execution: Execution = DEFAULT,
    on_coverage: Callable[[Coverage], None] = lambda coverage: None,
) -> DiT:
    """The diffusion transformer; its norms, modulation, time embedding and head are float32 whatever ``dtype`` is.

    ``eight_bit`` keeps matrices that are stored so in 8 bits: half the memory, the same results, some time. ``rounded``
    names an 8-bit type that the blocks' matrices are rounded to and kept in. ``execution`` chooses attention kernel,
    compiler and products.

    Every LoRA of ``loras``, a path or a path and a strength, is merged in, or runs beside the matrices that are kept in
    8 bits; ``on_coverage`` hears how much of each found its place. One that finds less than half is refused unless
    ``allow_partial_loras``. See :func:`cygnet.checkpoints.lora.with_loras` for what is raised.
    """
    weights = _weights(path, "dit", config)
    if loras:
        weights = with_loras(weights, _with_strengths(loras), allow_partial=allow_partial_loras)
        for coverage in weights.coverage:
            on_coverage(coverage)
    execution.check(place := parse_device(device))
    eight_bit = eight_bit and not execution.fp8
    kind = _dtype("dit", dtype, place)
    return _build(DiT, weights, kind, place, eight_bit=eight_bit, rounded=rounded, execution=execution)


def _executed(dit: DiT, device: torch.device, execution: Execution) -> DiT:
    execution.apply(dit, device, dit.config.dim // dit.config.num_heads, STACKS)
    return dit


def load_preview_decoder(path: Place, dtype: Dtype = torch.float32, device: Device = "cpu") -> PreviewDecoder:
    """The decoder of a TAEHV file (``taew2_1``), for previews; see :mod:`cygnet.models.taehv.model`.

    Raises ``WeightFileError`` if the file is another network's or another version's.
    """
    file = open_weights(Path(path))
    with without_weights():
        decoder = PreviewDecoder()
    state = decoder_state({name: file.tensor(name) for name in file.tensors}, decoder)
    wanted = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    if wanted != {name: tuple(value.shape) for name, value in state.items()}:
        raise WeightFileError(f"{shown(Path(path))} is not TAEHV for Wan 2.1; get taew2_1.safetensors or taew2_1.pth")
    place = parse_device(device)
    kind = parse_dtype(dtype) or torch.float32
    decoder.load_state_dict({name: value.to(place, kind) for name, value in state.items()}, assign=True)
    return decoder.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload, no-any-return]


def _with_strengths(loras: Sequence[Lora]) -> list[tuple[Path, float]]:
    if isinstance(loras, str | os.PathLike):
        raise RequestError("loras is one path; give a list of paths, or of (path, strength)", field="loras")
    found = []
    for lora in loras:
        place, strength = (lora, 1.0) if isinstance(lora, str | os.PathLike) else _pair(lora)
        found.append((Path(place), strength))
    return found


def _pair(lora: object) -> tuple[Place, float]:
    match lora:
        case (str() | os.PathLike() as place, int() | float() as strength):
            return place, strength
    raise RequestError(f"{printable(str(lora))} is no LoRA; give a path, or (path, strength)", field="loras")


@dataclass(frozen=True)
class TextEncoder:
    """A UMT5 encoder and the tokenizer that came with it."""

    model: UMT5Encoder
    tokenizer: Tokenizer | None
    """None when neither the file nor its folder holds one; then :meth:`encode` cannot work, but ``model`` can."""

    def encode(self, prompt: str) -> torch.Tensor:
        """Features ``[n, D]`` of the ``n <= 512`` tokens of ``prompt``, on the model's device and in its dtype."""
        if self.tokenizer is None:
            raise _no_tokenizer()
        return encode_prompt(self.model, self.tokenizer, prompt)


def load_text_encoder(
    path: Place,
    dtype: Dtype = torch.float32,
    device: Device = "cpu",
    config: UMT5Config | None = None,
    tokenizer: Place | None = None,
    *,
    eight_bit: bool = False,
) -> TextEncoder:
    """The text encoder with its tokenizer: from inside the file, from beside it, or from ``tokenizer`` if given.

    ``eight_bit`` as for :func:`load_dit`.
    """
    weights = _weights(path, "text_encoder", config)
    found = TokenizerSource.find(weights, tokenizer)
    model = _build(UMT5Encoder, weights, _dtype("text_encoder", dtype, device), device, eight_bit=eight_bit)
    return TextEncoder(model, None if found is None else found.read())


@dataclass(frozen=True)
class ImageEncoder:
    """A CLIP visual tower."""

    model: CLIPVision

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Tokens ``[L, D]`` of a picture ``[3, H, W]`` in [-1, 1], at its original size."""
        if image.ndim != 3:
            raise RequestError(f"the picture has shape {list(image.shape)}; give [3, height, width]", field="image")
        weight = self.model.patch_embedding.weight
        pixels = preprocess(image, self.model.config.image_size).to(weight.device, weight.dtype)
        tokens: torch.Tensor = self.model(pixels)[0]
        return tokens


def load_image_encoder(
    path: Place, dtype: Dtype = torch.float32, device: Device = "cpu", config: CLIPVisionConfig | None = None
) -> ImageEncoder:
    """The image encoder. Of a file that also holds CLIP's text tower, only the visual part is read."""
    weights = _weights(path, "image_encoder", config)
    return ImageEncoder(_build(CLIPVision, weights, _dtype("image_encoder", dtype, device), device))


def fits(
    path: Place, component: ComponentName, dtype: Dtype = "auto", device: Device = "cpu", *, eight_bit: bool = False
) -> bool:
    """Whether the memory that is free on ``device`` holds this network and leaves room to work; reads its header."""
    weights, place = _weights(path, component, None), parse_device(device)
    taken = weights_taken(weights, _dtype(component, dtype, place))
    return fits_alone(taken.eight_bit if eight_bit else taken.whole, free_memory(place))


def weights_taken(weights: ComponentWeights, dtype: torch.dtype, decode_dtype: torch.dtype | None = None) -> Weights:
    """What a network's weights take in memory in ``dtype``, by how they are held; from its header.

    ``decode_dtype`` is that of the VAE's decoding half.
    """
    taken = network_taken(weights.component, weights.config, dtype, decode_dtype)
    plan = _in_eight_bits(weights, stored=True)
    kept = sum(weights.infos[name].numel for name in plan.matrices)
    beside = plan.branches.parameters * dtype.itemsize
    return replace(taken, eight_bit=taken.whole - kept * (dtype.itemsize - 1) + beside)


@functools.lru_cache(maxsize=64)
def network_taken(
    part: ComponentName, config: ComponentConfig, dtype: torch.dtype, decode_dtype: torch.dtype | None = None
) -> Weights:
    """The same of an architecture none of whose weights need be here; nothing of it is in 8 bits."""
    with without_weights():
        module: torch.nn.Module = _KINDS[part](config)
    wide: tuple[str, ...] = getattr(module, "fp32_parameters", ())

    def itemsize(name: str) -> int:
        if part == "vae" and decode_dtype is not None and name.split(".", 1)[0] in DECODING:
            return decode_dtype.itemsize
        return 4 if any(word in name for word in wide) else dtype.itemsize

    sizes = {name: value.numel() * itemsize(name) for name, value in module.state_dict(keep_vars=True).items()}
    whole = sum(sizes.values())
    if part not in STREAMED:
        return Weights(whole=whole, eight_bit=whole)
    matrices = {name: sizes[name] for name in streamed_names(module, STACKS)}
    return Weights(
        whole=whole,
        eight_bit=whole,
        streamed=whole - sum(matrices.values()) + streamed_bytes(matrices),
        swapped=swapped_bytes(sizes, STACKS),
        gathered=sizes.get("token_embedding.weight", 0),
        largest=max(matrices.values(), default=0),
    )


@dataclass(frozen=True)
class _EightBits:
    """What of a network is kept in 8 bits: stored values and scales by name, and the changes that run beside them."""

    weights: ComponentWeights
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    branches: Branches


def _in_eight_bits(weights: ComponentWeights, *, stored: bool, rounded: bool = False) -> _EightBits:
    """The matrices of linear layers in blocks that are ``stored`` in 8 bits, and what LoRAs do beside them.

    With ``rounded`` the others will be rounded to 8 bits, so that LoRAs run beside all of them.
    """
    stored = stored and weights.quantisation != "none"
    if not (stored or rounded):
        return _EightBits(weights, {}, Branches())
    names = _block_matrices(weights)
    in_file = [name for name in names if stored and ComponentWeights.eight_bit(weights, name) is not None]
    weights, branches = set_beside(weights, names if rounded else in_file)
    found = ((name, weights.eight_bit(name)) for name in in_file)
    return _EightBits(weights, {name: matrix for name, matrix in found if matrix is not None}, branches)


def _block_matrices(weights: ComponentWeights) -> list[str]:
    """The weights of linear layers in the network's blocks."""
    with without_weights():
        module: torch.nn.Module = _KINDS[weights.component](weights.config)
    return [name for name in streamed_names(module, STACKS) if name in weights.infos]


@torch.no_grad()
def _round_matrices(dit: torch.nn.Module, kind: torch.dtype, device: torch.device) -> None:
    """Round the blocks' matrices to values of an 8-bit type and keep them in it; they compute as before."""
    for name in streamed_names(dit, STACKS):
        keep_in_eight_bits(dit, {name: (dit.get_parameter(name).to(kind), None)}, device)


def _weights(path: Place, component: ComponentName, config: ComponentConfig | None) -> ComponentWeights:
    if config is not None and not isinstance(config, _CONFIGS[component]):
        raise RequestError(
            f"config is a {type(config).__name__}; {COMPONENT_WORDS[component]} has a {_CONFIGS[component].__name__}",
            field="config",
        )
    return read_component(_component_place(path, component), component, config=config)


def _component_place(path: Place, component: ComponentName) -> Path:
    """A path as it is; a name as the path of its component."""
    from cygnet.checkpoints import catalogue

    if isinstance(path, str) and not Path(path).exists():
        if path in EMBEDDED_NAMES:
            model, part = EMBEDDED_NAMES[path]
            return catalogue.resolve(model)[part]
        if catalogue.is_name(path):
            found = catalogue.resolve(path)
            if component not in found:
                raise ModelNotFoundError(f"{path} has no {_bare(component)}; it has: {', '.join(found)}")
            return found[component]
    return Path(path)


def _dtype(component: ComponentName, dtype: Dtype, device: Device) -> torch.dtype:
    asked = parse_dtype(dtype)
    return asked if asked is not None else pick_dtype(component, parse_device(device))


def _build(
    kind: Callable[[Any], _Module],
    weights: ComponentWeights,
    dtype: torch.dtype,
    device: Device,
    *,
    eight_bit: bool = False,
    channels_last: bool = False,
    by_part: Mapping[str, torch.dtype] = _NO_PARTS,
    rounded: torch.dtype | None = None,
    execution: Execution | None = None,
) -> _Module:
    """The network with its weights; ``rounded`` and ``execution`` are for a DiT alone."""
    place = parse_device(device)
    with without_weights():
        module = kind(weights.config)
    rounds = rounded is not None or (execution is not None and execution.fp8)
    plan = _in_eight_bits(weights, stored=eight_bit, rounded=rounds)
    materialise(
        module,
        plan.weights,
        dtype=dtype,
        device=place,
        leave=plan.matrices,
        channels_last=channels_last,
        by_part=by_part,
    )
    keep_in_eight_bits(module, plan.matrices, place)
    if rounded is not None:
        _round_matrices(module, rounded, place)
    # fp8 puts other layers in the places of some, and LoRAs go beside what is there then. Blocks are compiled later, at
    # their first call.
    if execution is not None:
        assert isinstance(module, DiT)
        _executed(module, place, execution)
    plan.branches.read(dtype, place).install(module)
    return module.eval().requires_grad_(False)


# The tokenizer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer is: a serialised SentencePiece model, or a file."""

    data: bytes | None = None
    path: Path | None = None

    @classmethod
    def find(cls, weights: ComponentWeights, given: Place | None = None) -> TokenizerSource | None:
        """``given`` (a file or a folder), else the one inside the weight file, else one beside it; None if none is."""
        if given is not None:
            path = Path(given)
            found = _tokenizer_in(path) if path.is_dir() else path
            if found is None:
                raise WeightFileError(f"folder {shown(path)} holds no {' and no '.join(TOKENIZER_FILES)}")
            return cls(path=found)
        if (data := weights.tokenizer_bytes) is not None:
            return cls(data=data)
        folder = weights.file.path if weights.file.path.is_dir() else weights.file.path.parent
        for place in (folder, folder / "tokenizer", folder.parent / "tokenizer", folder / "google" / "umt5-xxl"):
            if found := _tokenizer_in(place):
                return cls(path=found)
        return None

    def read(self) -> Tokenizer:
        """The tokenizer; raises :class:`~cygnet.errors.WeightFileError` if it is damaged."""
        if self.data is not None:
            return Tokenizer.from_sentencepiece(self.data, name="the tokenizer inside the text encoder")
        assert self.path is not None
        return Tokenizer.from_file(self.path)


def _tokenizer_in(folder: Path) -> Path | None:
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def _no_tokenizer() -> WeightFileError:
    return WeightFileError(
        f"the text encoder came without a tokenizer; put its {' or '.join(TOKENIZER_FILES)} beside it, or give its "
        "path as tokenizer"
    )


# Whole models --------------------------------------------------------------------------------------------------------


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
    configs: tuple[DiTConfig, VAEConfig, UMT5Config, CLIPVisionConfig | None]
    loras: tuple[tuple[Path, Coverage], ...]


def read_model(source: Source, loras: Sequence[Lora] = (), *, allow_partial_loras: bool = False) -> ReadModel:
    """Read headers and compare the parts, as :func:`load_components` does before it reads any weight."""
    name, paths, tokenizer_path = _paths(source)
    weights = {part: read_component(path, part) for part, path in paths.items()}
    configs = _checked_together(weights)
    chosen = _with_strengths(loras)
    coverage: tuple[Coverage, ...] = ()
    if chosen:
        patched = with_loras(weights["dit"], chosen, allow_partial=allow_partial_loras)
        weights["dit"], coverage = patched, patched.coverage
    tokenizer = TokenizerSource.find(weights["text_encoder"], tokenizer_path)
    if tokenizer is None:
        raise _no_tokenizer()
    told = tuple((path, each) for (path, _), each in zip(chosen, coverage, strict=True))
    return ReadModel(name=name, weights=weights, tokenizer=tokenizer, configs=configs, loras=told)


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
    beyond that. With ``offload`` each network is read
    when its stage begins and dropped when it ends; None decides by the free memory. What is stored in 8 bits is kept so
    if it does not fit otherwise. A network that still does not fit, or with "stream" each of the large ones, is read
    block by block at every use: it takes a block's memory, and the time of reading the file once per step. Results are
    the same bit for bit.

    ``loras`` are merged into the transformer as it is read, or run as low-rank branches beside matrices that are kept
    in 8 bits or read block by block; the two agree within the rounding of ``dtype``. One of which the transformer has
    less than half is refused unless ``allow_partial_loras``. See :func:`cygnet.checkpoints.lora.with_loras`.

    Headers are read and the parts compared before any weight is. Raises ``ModelNotFoundError`` if a part is missing,
    ``StateMismatchError`` if parts do not belong together, and as the single loaders.
    """
    place = parse_device(device)
    execution.check(place)
    asked = parse_dtype(dtype)
    read = read_model(source, loras, allow_partial_loras=allow_partial_loras)
    weights, tokenizer = read.weights, read.tokenizer
    dit, vae, text, eye = read.configs
    dtypes = {part: pick_dtype(part, place, asked) for part in weights}
    decode_dtype = execution.decodes_in(place, asked)
    taken = {part: weights_taken(it, dtypes[part], decode_dtype) for part, it in weights.items()}
    if execution.fp8:  # which has a storage of its own
        taken["dit"] = replace(taken["dit"], eight_bit=taken["dit"].whole)
    if place.type == "cuda":
        host = free_memory(torch.device("cpu"))
        taken = {part: it.swapped_from(host) for part, it in taken.items()}

    def build(placement: Placement) -> Residency:
        builders: dict[ComponentName, Callable[[], torch.nn.Module]] = {
            part: _builder(part, it, dtypes[part], place, part in placement.eight_bit) for part, it in weights.items()
        }
        builders["vae"] = lambda: _vae(weights["vae"], dtypes["vae"], decode_dtype, place)
        builders["dit"] = lambda: _build(
            DiT, weights["dit"], dtypes["dit"], place, eight_bit="dit" in placement.eight_bit, execution=execution
        )
        if placement.resident:
            return _all_resident(builders, on_progress)
        return StageResidency(
            {
                part: _streamed(part, weights[part], dtypes[part], place, execution, taken[part].swaps)
                if part in placement.streamed
                else loaded(builder)
                for part, builder in builders.items()
            }
        )

    residency = Placed(choose(taken, free_memory(place), offload), taken, build)
    residency.prepare()
    components = Components(
        residency=residency,
        variant=variant_name(dit),
        tokenizer=tokenizer.read(),
        dit=dit,
        vae=vae,
        text_encoder=text,
        image_encoder=eye,
        step_cache=make_step_cache,
        text_memory=_text_memory(weights["text_encoder"], tokenizer, dtypes["text_encoder"], place, dit),
    )
    return LoadedModel(
        components=components,
        name=read.name,
        weights=weights,
        tokenizer=tokenizer,
        device=place,
        dtypes=dtypes,
        decode_dtype=decode_dtype,
        execution=execution,
        loras=read.loras,
        residency=residency,
        taken=taken,
        offload=offload,
    )


def _all_resident(
    builders: Mapping[ComponentName, Callable[[], torch.nn.Module]], on_progress: ProgressSink
) -> Resident:
    modules: dict[ComponentName, torch.nn.Module] = {}
    for part, build in builders.items():
        on_progress(Progress(phase="load", step=len(modules), total=len(builders), message=part))
        modules[part] = build()
    on_progress(Progress(phase="load", step=len(modules), total=len(builders)))
    return Resident(modules)


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


_KINDS: Mapping[ComponentName, Callable[[Any], Any]] = {
    "dit": DiT,
    "vae": WanVAE,
    "text_encoder": UMT5Encoder,
    "image_encoder": CLIPVision,
}


def _builder(
    part: ComponentName, weights: ComponentWeights, dtype: torch.dtype, device: torch.device, eight_bit: bool
) -> Callable[[], torch.nn.Module]:
    return lambda: _build(_KINDS[part], weights, dtype, device, eight_bit=eight_bit)


def _streamed(
    part: ComponentName,
    weights: ComponentWeights,
    dtype: torch.dtype,
    device: torch.device,
    execution: Execution,
    swapped: bool,
) -> Stage:
    """A network whose blocks come in as they run: from the machine's memory if that holds them, else from the file."""
    bringers: list[MatrixStream | BlockSwap] = []

    def bring() -> torch.nn.Module:
        beside = Branches()
        if swapped:
            module: torch.nn.Module = _build(_KINDS[part], weights, dtype, "cpu")
            bringers.append(BlockSwap(module, STACKS, device))
        else:
            plain, beside = set_beside(weights, _block_matrices(weights))
            with without_weights():
                module = _KINDS[part](weights.config)
            materialise(module, plain, dtype=dtype, device=device, leave=streamed_names(module, STACKS))
            bringers.append(MatrixStream(module, STACKS, lambda name: plain.copied(name, dtype), device=device))
        module = module.eval().requires_grad_(False)
        if isinstance(module, DiT):
            _executed(module, device, execution)
        beside.read(dtype, device).attach(module)
        return module

    def send_away(_: torch.nn.Module) -> None:
        bringers.pop().close()

    return Stage(bring, send_away)


def _paths(source: Source) -> tuple[str | None, dict[ComponentName, Path], Path | None]:
    """The name if there is one, the path of each component, and the tokenizer's if it was given."""
    from cygnet.checkpoints import catalogue

    if isinstance(source, Mapping):
        parts: dict[str, Place] = {str(name): path for name, path in source.items() if path is not None}
        unknown = sorted(set(parts) - {*COMPONENT_NAMES, "tokenizer"})
        if unknown:
            known = ", ".join((*COMPONENT_NAMES, "tokenizer"))
            raise RequestError(f"{printable(unknown[0])!r} is no component; there are: {known}", field="model")
        tokenizer = Path(parts["tokenizer"]) if "tokenizer" in parts else None
        paths = {part: _component_place(parts[part], part) for part in COMPONENT_NAMES if part in parts}
        return None, paths, tokenizer
    if isinstance(source, str) and (catalogue.is_name(source) or not Path(source).exists()):
        if not catalogue.is_name(source) and (os.sep in source or source.startswith(".")):
            raise ModelNotFoundError(f"{shown(Path(source))} does not exist; check the path")
        return source.lower(), catalogue.resolve(source), None
    if not isinstance(source, str | os.PathLike):
        raise RequestError(f"a model is given by a name, path or mapping, not {type(source).__name__}", field="model")
    path = Path(source)
    if path.is_dir():
        folder = resolve_pipeline_folder(path)
        return None, folder.components, folder.tokenizer
    file = open_weights(path)
    return None, {part.component: path for part in recognise(file.tensors)}, None


def _checked_together(
    weights: Mapping[ComponentName, ComponentWeights],
) -> tuple[DiTConfig, VAEConfig, UMT5Config, CLIPVisionConfig | None]:
    """The architectures, if nothing is missing and each fits the transformer."""
    configs: dict[ComponentName, Any] = {part: each.config for part, each in weights.items()}
    dit = configs.get("dit")
    needed: list[ComponentName] = ["dit", "vae", "text_encoder"]
    if isinstance(dit, DiTConfig) and dit.image_dim is not None:
        needed.append("image_encoder")
    missing = [_bare(part) for part in needed if part not in configs]
    if missing:
        present = ", ".join(_bare(part) for part in configs) or "nothing"
        what = variant_name(dit) if isinstance(dit, DiTConfig) else "a model"
        raise ModelNotFoundError(
            f"the {', the '.join(missing)} is missing: {what} needs {len(needed)} parts, and given are: {present}. "
            'Name every file: load({"dit": ..., "vae": ..., "text_encoder": ..., "image_encoder": ...})'
        )
    assert isinstance(dit, DiTConfig)
    vae, text, eye = configs["vae"], configs["text_encoder"], configs.get("image_encoder")
    model = variant_name(dit)
    _check_equal("text_encoder", weights, "features", text.dim, dit.text_dim, model)
    if dit.text_length != MAX_TOKENS:
        raise StateMismatchError(
            f"the {model} transformer's config says that it takes {dit.text_length} rows of text; Wan 2.1 takes "
            f"{MAX_TOKENS}: correct text_len in its config.json"
        )
    _check_equal("vae", weights, "latent channels", vae.latent_channels, dit.out_channels, model)
    if dit.image_dim is None:
        return dit, vae, text, None
    assert isinstance(eye, CLIPVisionConfig)
    _check_equal("image_encoder", weights, "features", eye.dim, dit.image_dim, model)
    return dit, vae, text, eye


def _check_equal(
    part: ComponentName,
    weights: Mapping[ComponentName, ComponentWeights],
    what: str,
    have: int,
    need: int | None,
    model: str,
) -> None:
    if have != need:
        raise StateMismatchError(
            f"{shown(weights[part].file.path)} is {weights[part].variant} with {have} {what}, but {model} needs "
            f"{need}; give the {_bare(part)} that belongs to the model"
        )


def _bare(part: ComponentName) -> str:
    """The component's words without the article."""
    return COMPONENT_WORDS[part].split(" ", 1)[1]
