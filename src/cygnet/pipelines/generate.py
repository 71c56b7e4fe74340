"""A request and a model's components to frames: text-to-video, text-to-image, image-to-video and video-to-video.

The kinds differ in what conditions the denoising and where it starts; the stages are the same: text, pictures, source,
denoising, decoding. Each network is released as soon as its last stage is over.

Legend: ``T H W`` frames, height, width; ``t h w`` latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cygnet.errors import NumericalError, RequestError
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.pipelines.attempts import attempt, tile_further
from cygnet.pipelines.components import Components
from cygnet.pipelines.conditioning import Conditioning, encode_images, encode_text, image_condition, resize
from cygnet.pipelines.decoding import decode
from cygnet.pipelines.denoise import Guidance, Sampling, StepCache, denoise, make_noise
from cygnet.pipelines.inputs import Inputs, check_combination, fitted
from cygnet.pipelines.presets import defaults_for
from cygnet.pipelines.record import Record, using
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import FRAME_STRIDE, latent_grid
from cygnet.pipelines.tiles import WHOLE, Portions, encode_chunks, in_portions
from cygnet.solvers import add_noise, start_step_for_strength
from cygnet.types import CancelToken, ComponentName, Progress, ProgressSink, ignore_progress


def generate(
    components: Components,
    request: GenerateRequest,
    inputs: Inputs | None = None,
    *,
    on_progress: ProgressSink = ignore_progress,
    cancel: CancelToken | None = None,
    record: Record | None = None,
    portions: Portions = WHOLE,
) -> Iterator[torch.Tensor]:
    """Frames float32 ``[1, 3, k, H, W]`` in [-1, 1] as they are decoded: 1 first, then 4 to 32 at a time, T in all.

    Whether model, request and inputs go together is checked by the call itself; the work begins with the first
    ``next`` and stops when the iterator is closed. ``portions`` says in which tiles the VAE works, by default in none.
    A stage in which memory runs out is done once more in less memory, if there is a way, decoding twice; a notice says
    so, and ``record`` which tiles. Raises :class:`~cygnet.errors.RequestError` for a combination that cannot be,
    :class:`~cygnet.errors.Cancelled` when ``cancel`` was set, :class:`~cygnet.errors.OutOfMemory`, and
    :class:`~cygnet.errors.NumericalError` when NaN or infinity appears.
    """
    inputs = inputs or Inputs()
    check_combination(components, request, inputs)
    _step_cache(components, request)  # refuses what cannot be
    record = record or Record()
    if portions.decode_tiles is not None:
        record.tiles["decode"] = portions.decode_tiles
    if portions.encode_tiles is not None and (inputs.image is not None or inputs.video is not None):
        record.tiles["encode"] = portions.encode_tiles
    record.parked = portions.parked
    for half, tiles in record.tiles.items():
        told = in_portions(half, tiles, request.width, request.height)
        record.notices.append(f"{told}; pixels are the same as without, up to rounding")
    return _run(components, request, inputs, on_progress, cancel or CancelToken(), record)


def _run(
    components: Components,
    request: GenerateRequest,
    inputs: Inputs,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Iterator[torch.Tensor]:
    try:
        record.notices += _expectations(components, request)
        given, inputs = inputs, fitted(inputs, request, record)
        conditioning = _condition(components, request, given, inputs, on_progress, cancel, record)
        sampling = Sampling(
            solver=request.solver,
            num_steps=request.num_steps,
            shift=request.shift,
            start_step=start_step_for_strength(request.strength, request.num_steps),
            seed=request.seed,
        )
        record.sigmas = sampling.sigmas
        start = _start(components, request, inputs, sampling, on_progress, cancel, record)

        def denoised() -> tuple[torch.Tensor, StepCache | None]:
            cache = _step_cache(components, request)  # one for each attempt
            with using(components.use_dit(), "denoise", record) as dit:
                done = denoise(
                    dit,
                    start,
                    conditioning,
                    sampling,
                    _guidance(request),
                    on_progress=on_progress,
                    cancel=cancel,
                    cache=cache,
                )
            return done, cache

        latents, cache = attempt(components, "dit", "denoising", record, denoised)
        components.residency.release("dit")
        if cache is not None:
            _tell_of_cache(cache, request, record)
        yield from decode(components, latents, on_progress, cancel, record)
    finally:
        names: tuple[ComponentName, ...] = ("text_encoder", "image_encoder", "dit", "vae")
        for name in names:
            components.residency.release(name)


def _guidance(request: GenerateRequest) -> Guidance:
    return Guidance(scale=request.guidance_scale, until=request.guidance_until, rest=request.guidance_rest)


def _step_cache(components: Components, request: GenerateRequest) -> StepCache | None:
    """The cache that was asked for; raises :class:`~cygnet.errors.RequestError` if this model cannot have it."""
    wish = request.caching()
    if wish is None:
        return None
    if components.step_cache is None:
        raise RequestError("this model was put together without step caches; leave cache out", field="cache")
    return components.step_cache(
        components.dit,
        wish,
        num_steps=request.num_steps,
        start_step=start_step_for_strength(request.strength, request.num_steps),
        pixels=request.width * request.height,
    )


def _tell_of_cache(cache: StepCache, request: GenerateRequest, record: Record) -> None:
    record.cached = {"skipped": cache.skipped, "steps": cache.evaluations}
    if tables := cache.tables():
        record.cached["tables"] = tables
        return
    if cache.skipped:
        told = f"{cache.skipped} of {cache.evaluations} steps; the video is not exactly the one without it"
    else:
        told = f"none of {cache.evaluations} steps; the video is the one without it"
    record.notices.append(f"cache {request.cache} skipped {told}")


def _expectations(components: Components, request: GenerateRequest) -> list[str]:
    """What is allowed but unlikely to turn out well."""
    usual = defaults_for(components.dit).num_frames
    if request.num_frames > usual:
        return [
            f"{request.num_frames} frames are more than the {usual} that the model was trained on; colours may drift"
        ]
    return []


def _condition(
    components: Components,
    request: GenerateRequest,
    given: Inputs,
    inputs: Inputs,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Conditioning:
    """What steers the denoising. CLIP sees the pictures as ``given``, whole; the VAE those cut to size."""
    cancel.check()
    context, negative = _encoded_text(components, request, on_progress, record)
    if inputs.image is None:
        return Conditioning(context=context, negative_context=negative)
    cancel.check()
    image_context, condition = _encoded_pictures(components, request, given, inputs, on_progress, cancel, record)
    return Conditioning(
        context=context, negative_context=negative, image_context=image_context, image_condition=condition
    )


def _encoded_text(
    components: Components, request: GenerateRequest, on_progress: ProgressSink, record: Record
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of the prompt and, if any step is guided, of the negative prompt."""
    sampled = request.num_steps - start_step_for_strength(request.strength, request.num_steps)
    guided = _guidance(request).guided_steps(sampled) > 0
    on_progress(Progress(phase="text", step=0, total=1 + guided))

    def encoded_text() -> tuple[torch.Tensor, torch.Tensor | None, tuple[str, ...]]:
        with using(components.use_text_encoder(), "text", record) as encoder:
            context, notices = encode_text(encoder, components.tokenizer, request.prompt)
            on_progress(Progress(phase="text", step=1, total=1 + guided))
            if not guided:
                return context, None, notices
            negative, more = _negative(components, encoder, request.negative_prompt)
            on_progress(Progress(phase="text", step=2, total=2))
            return context, negative, notices + more

    context, negative, notices = attempt(components, "text_encoder", "encoding the text", record, encoded_text)
    record.notices += notices
    components.residency.release("text_encoder")
    return context, negative


def _encoded_pictures(
    components: Components,
    request: GenerateRequest,
    given: Inputs,
    inputs: Inputs,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP's tokens of the pictures as ``given``, and the image condition of those cut to size."""
    first = inputs.image
    assert first is not None
    images = tuple(it for it in (given.image, given.last_image) if it is not None)
    steps = 1 + latent_grid(request.num_frames, request.width, request.height)[0]  # CLIP, then the VAE frame by frame
    on_progress(Progress(phase="image", step=0, total=steps))

    def seen() -> torch.Tensor:
        with using(components.use_image_encoder(), "image", record) as eye:
            return encode_images(eye, images)

    image_context = attempt(components, "image_encoder", "encoding the picture", record, seen)
    components.residency.release("image_encoder")
    cancel.check()
    on_progress(Progress(phase="image", step=1, total=steps))

    def encoded(done: int, total: int) -> None:
        cancel.check()
        on_progress(Progress(phase="image", step=1 + done, total=1 + total))

    def conditioned() -> torch.Tensor:
        with using(components.use_vae(), "image", record) as vae:
            return image_condition(
                vae,
                first,
                num_frames=request.num_frames,
                width=request.width,
                height=request.height,
                last_image=inputs.last_image,
                tiles=record.tiles.get("encode"),
                parked=record.parked,
                on_piece=encoded,
            )

    def tiled() -> str | None:
        return tile_further(record, "encode", request.width, request.height)

    condition = attempt(components, "vae", "encoding the picture", record, conditioned, otherwise=tiled)
    _check_finite(image_context, "the image encoder made NaN or infinity of the picture")
    _check_finite(condition, "the VAE made NaN or infinity of the picture")
    return image_context, condition


def _negative(components: Components, encoder: UMT5Encoder, text: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Features of the negative prompt, from memory if it is one that is remembered, and notices."""
    memory = components.text_memory
    if memory is not None and (known := memory.recall(text)) is not None:
        return known.to(encoder.token_embedding.weight.device), ()
    features, notices = encode_text(encoder, components.tokenizer, text, what="the negative prompt")
    if memory is not None:
        memory.keep(text, features)
    return features, notices


def _start(
    components: Components,
    request: GenerateRequest,
    inputs: Inputs,
    sampling: Sampling,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> torch.Tensor:
    """Noise, or a source video noised to the first level: ``[1, 16, t, h, w]`` float32."""
    grid = latent_grid(request.num_frames, request.width, request.height)
    noise = make_noise(grid, components.dit.out_channels, request.seed, request.noise_device)
    if inputs.video is None:
        return noise
    total, video = grid[0], inputs.video
    on_progress(Progress(phase="encode", step=0, total=total))

    def encoded() -> torch.Tensor:
        pieces: list[torch.Tensor] = []
        with using(components.use_vae(), "encode", record) as vae:
            frames = _pieces(video, request.width, request.height)
            for piece in encode_chunks(vae, frames, tiles=record.tiles.get("encode"), parked=record.parked):
                pieces.append(piece)
                cancel.check()
                on_progress(Progress(phase="encode", step=len(pieces), total=total))
        return torch.cat(pieces, dim=2)

    def tiled() -> str | None:
        return tile_further(record, "encode", request.width, request.height)

    source = attempt(components, "vae", "encoding the source video", record, encoded, otherwise=tiled)
    _check_finite(source, "the VAE made NaN or infinity of the source video")
    return add_noise(source, noise.to(source.device), sampling.sigmas[0])


def _pieces(video: torch.Tensor, width: int, height: int) -> Iterator[torch.Tensor]:
    """``[1, 3, k, H, W]``: one frame, then four at a time, at the size of the result."""
    starts = (0, *range(1, video.shape[1], FRAME_STRIDE))
    for start in starts:
        piece = video[:, start : start + (FRAME_STRIDE if start else 1)]
        yield resize(piece, width, height).unsqueeze(0)


def _check_finite(value: torch.Tensor, what: str) -> None:
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(f"{what}; its weights are damaged or its dtype overflows: verify the file, or use float32")
