"""Loaders of single networks, each by its file, folder or name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cygnet.assembly.arguments import Device, Dtype, Lora, Place, dtype_of, with_strengths
from cygnet.assembly.build import build, build_vae
from cygnet.assembly.sources import named_weights
from cygnet.assembly.tokenizer import TokenizerSource, no_tokenizer
from cygnet.checkpoints import without_weights
from cygnet.checkpoints.lora import Coverage, with_loras
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.weight_file import shown
from cygnet.errors import RequestError, WeightFileError
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.clip.preprocess import preprocess
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.taehv.model import PreviewDecoder, decoder_state
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.prompt import encode_prompt
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.runtime.execution import DEFAULT, Execution, check_execution
from cygnet.runtime.precision import check_vae_dtype, parse_device, parse_dtype


def read_tensors(path: Place, device: Device = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a weight file as they are stored, on ``device``, and its metadata. Raises WeightFileError."""
    weights = open_weights(Path(path))
    return {name: weights.tensor(name).to(device) for name in weights.tensors}, dict(weights.metadata)


def load_vae(
    path: Place,
    dtype: Dtype = torch.float32,
    device: Device = "cpu",
    config: VAEConfig | None = None,
    *,
    decode_dtype: Dtype | None = None,
) -> WanVAE:
    """The autoencoder of a weight file, a folder, or a model's name; not trainable until you say so.

    ``dtype`` is a torch dtype or its name, on a processor not float16; ``decode_dtype`` one for the decoding half,
    "auto" what decodes fastest on ``device`` without a visible difference, None the same; ``config`` overrides what the
    shapes say.

    Raises ``ModelNotFoundError``, ``UnknownLayoutError``, ``StateMismatchError`` or ``WeightFileError`` of
    :mod:`cygnet.errors`, each in words. The same holds for the other loaders.
    """
    place = parse_device(device)
    kind = check_vae_dtype(dtype_of("vae", dtype, place), place)
    weights = named_weights(path, "vae", config)
    decoded = kind if decode_dtype is None else Execution(decode_dtype=decode_dtype).decodes_in(place, None)
    return build_vae(weights, kind, decoded, place)


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
    names an 8-bit type that the blocks' matrices are rounded to and kept in, all of them and without scales, as
    ComfyUI does; ``execution.weight_dtype`` rounds nearer. ``execution`` chooses attention kernel, compiler and
    products.

    Every LoRA of ``loras``, a path or a path and a strength, is merged in, or runs beside the matrices that are kept in
    8 bits; ``on_coverage`` hears how much of each found its place. One that finds less than half is refused unless
    ``allow_partial_loras``. See :func:`cygnet.checkpoints.lora.with_loras` for what is raised.
    """
    check_execution(execution)
    if rounded is not None and execution.weight_dtype != "auto":
        raise RequestError(
            f"rounded is {rounded} and weight_dtype {execution.weight_dtype!r}; give one of the two",
            field="weight_dtype",
        )
    weights = named_weights(path, "dit", config)
    if loras:
        weights = with_loras(weights, with_strengths(loras), allow_partial=allow_partial_loras)
        for coverage in weights.coverage:
            on_coverage(coverage)
    execution.check(place := parse_device(device))
    eight_bit = eight_bit and not execution.fp8
    kind = dtype_of("dit", dtype, place)
    return build(DiT, weights, kind, place, eight_bit=eight_bit, rounded=rounded, execution=execution)


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


@dataclass(frozen=True)
class TextEncoder:
    """A UMT5 encoder and the tokenizer that came with it."""

    model: UMT5Encoder
    tokenizer: Tokenizer | None
    """None when neither the file nor its folder holds one; then :meth:`encode` cannot work, but ``model`` can."""

    def encode(self, prompt: str) -> torch.Tensor:
        """Features ``[n, D]`` of the ``n <= 512`` tokens of ``prompt``, on the model's device and in its dtype."""
        if self.tokenizer is None:
            raise no_tokenizer()
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
    weights = named_weights(path, "text_encoder", config)
    found = TokenizerSource.find(weights, tokenizer)
    model = build(UMT5Encoder, weights, dtype_of("text_encoder", dtype, device), device, eight_bit=eight_bit)
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
    weights = named_weights(path, "image_encoder", config)
    return ImageEncoder(build(CLIPVision, weights, dtype_of("image_encoder", dtype, device), device))
