"""A request and a model's components to frames: text-to-video, text-to-image, image-to-video and video-to-video.

The kinds differ in what conditions the denoising and where it starts; the stages are the same: text, pictures, source,
denoising, decoding. Each network is released as soon as its last stage is over.

Legend: ``T H W`` frames, height, width; ``t h w`` latent grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from cygnet.errors import NumericalError, OutOfMemory, RequestError, out_of_memory
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.pipelines.components import Components
from cygnet.pipelines.conditioning import (
    Conditioning,
    cover,
    crop_to_aspect,
    encode_images,
    encode_text,
    image_condition,
    resize,
)
from cygnet.pipelines.denoise import Guidance, Sampling, StepCache, check_noise_device, denoise, make_noise
from cygnet.pipelines.presets import defaults_for
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import FRAME_STRIDE, fewer_at_once, latent_frames_at_once, latent_grid
from cygnet.solvers import add_noise, start_step_for_strength
from cygnet.types import CancelToken, ComponentName, Phase, Progress, ProgressSink, ignore_progress

_T = TypeVar("_T")
_M = TypeVar("_M", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a request may come with. Not changed, and not kept after the run."""

    image: torch.Tensor | None = None
    """The first frame: float32 ``[3, H, W]`` in [-1, 1], any size."""
    last_image: torch.Tensor | None = None
    """The last frame, likewise."""
    video: torch.Tensor | None = None
    """A video to make anew: float32 ``[3, T, H, W]`` in [-1, 1]."""


@dataclass(kw_only=True)
class Record:
    """What a run leaves for its receipt; made by the caller, filled while the run goes on."""

    notices: list[str] = field(default_factory=list)
    """What the caller should know, in words."""
    sigmas: tuple[float, ...] = ()
    cached: dict[str, Any] = field(default_factory=dict)
    """What a step cache did: ``skipped`` of ``steps``, and ``tables`` if it measured any; empty without one."""
    seconds: dict[Phase, float] = field(default_factory=dict)
    """Time spent per phase, without the caller's own between chunks."""
    stepped_down: bool = False
    """Whether memory ran out and a stage was done again in less."""

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Add the time of a ``with`` block to ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def generate(
    components: Components,
    request: GenerateRequest,
    inputs: Inputs | None = None,
    *,
    on_progress: ProgressSink = ignore_progress,
    cancel: CancelToken | None = None,
    record: Record | None = None,
    decode_chunk: int | None = None,
) -> Iterator[torch.Tensor]:
    """Frames float32 ``[1, 3, k, H, W]`` in [-1, 1] as they are decoded: 1 first, then 4 to 32 at a time, T in all.

    Whether model, request and inputs go together is checked by the call itself; the work begins with the first
    ``next`` and stops when the iterator is closed. ``decode_chunk`` latent frames are decoded at a time; by default as
    many as suit the size. A stage in which memory runs out is done once more in less memory, if there is a way; a
    notice says so. Raises :class:`~cygnet.errors.RequestError` for a combination that cannot be,
    :class:`~cygnet.errors.Cancelled` when ``cancel`` was set, :class:`~cygnet.errors.OutOfMemory`, and
    :class:`~cygnet.errors.NumericalError` when NaN or infinity appears.
    """
    inputs = inputs or Inputs()
    check_combination(components, request, inputs)
    _step_cache(components, request)  # refuses what cannot be
    return _run(components, request, inputs, on_progress, cancel or CancelToken(), record or Record(), decode_chunk)


def check_combination(components: Components, request: GenerateRequest, inputs: Inputs) -> None:
    """Raise :class:`~cygnet.errors.RequestError`, stating the rule, unless the model can do this with these inputs.

    That includes noise from a device that is not there.
    """
    variant, model = components.dit.variant, f"this is {components.variant}"
    if variant in ("vace", "control", "camera"):
        raise RequestError(
            f"{model}, which follows a control; make its videos in a workflow: cygnet run FILE", field="model"
        )
    if inputs.last_image is not None and inputs.image is None:
        raise RequestError("last_image is given without image; give both, or image alone", field="image")
    if inputs.image is not None and inputs.video is not None:
        raise RequestError("image and video are both given; give one of them", field="video")
    if variant == "t2v":
        if inputs.image is not None:
            raise RequestError(
                f"{model}; image-to-video needs an I2V model: load tiny-i2v, i2v-14b-480p or i2v-14b-720p, or leave "
                "the image out",
                field="image",
            )
    elif inputs.video is not None:
        raise RequestError(f"{model}; video-to-video needs a T2V model: load tiny-t2v or t2v-1.3b", field="video")
    elif inputs.image is None:
        raise RequestError(
            f"{model}, which needs a picture: give image, or load a T2V model for text alone", field="image"
        )
    if variant == "i2v" and inputs.last_image is not None:
        raise RequestError(
            f"{model}; a last frame needs an FLF2V model: load flf2v-14b-720p, or leave last_image out",
            field="last_image",
        )
    if variant == "flf2v":
        if inputs.last_image is None:
            raise RequestError(
                f"{model}, which needs a first and a last frame: give last_image too, or load an I2V model",
                field="last_image",
            )
        if request.num_frames == 1:
            raise RequestError("num_frames is 1; a first and a last frame need at least 5", field="num_frames")
    if inputs.video is None and request.strength != 1:
        raise RequestError(
            f"strength is {request.strength:g}, but no video is given; leave it out, or give video", field="strength"
        )
    if inputs.video is not None and inputs.video.shape[1] < request.num_frames:
        have = inputs.video.shape[1]
        raise RequestError(
            f"num_frames is {request.num_frames}, but the video has {have} frames; ask for at most "
            f"{1 + (have - 1) // FRAME_STRIDE * FRAME_STRIDE}",
            field="num_frames",
        )
    check_noise_device(request.noise_device)
    for name in ("image", "last_image", "video"):
        check_pixels(name, getattr(inputs, name), 4 if name == "video" else 3)


def check_pixels(name: str, value: torch.Tensor | None, axes: int) -> None:
    """Raise :class:`~cygnet.errors.RequestError` unless a picture (3 axes) or video (4) is as :class:`Inputs` says."""
    if value is None:
        return
    if value.ndim != axes or value.shape[0] != 3 or not value.is_floating_point() or not value.numel():
        shape = "[3, T, H, W]" if axes == 4 else "[3, H, W]"
        raise RequestError(f"{name} is {value.dtype} {list(value.shape)}; it must be floating {shape}", field=name)
    low, high = (float(x) for x in value.aminmax())
    if not (low >= -1 and high <= 1):
        raise RequestError(f"{name} has values from {low:g} to {high:g}; they must be in [-1, 1]", field=name)


def _run(
    components: Components,
    request: GenerateRequest,
    inputs: Inputs,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
    decode_chunk: int | None,
) -> Iterator[torch.Tensor]:
    try:
        record.notices += _expectations(components, request)
        given, inputs = inputs, _fitted(inputs, request, record)
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
            with _using(components.use_dit(), "denoise", record) as dit:
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

        latents, cache = _attempt(components, "dit", "denoising", record, denoised)
        components.residency.release("dit")
        if cache is not None:
            _tell_of_cache(cache, request, record)
        yield from _decode(components, latents, decode_chunk, on_progress, cancel, record)
    finally:
        names: tuple[ComponentName, ...] = ("text_encoder", "image_encoder", "dit", "vae")
        for name in names:
            components.residency.release(name)


@contextmanager
def _using(component: AbstractContextManager[_M], phase: Phase, record: Record) -> Iterator[_M]:
    """A network for the length of a block; the time until it is there counts as loading, the rest as ``phase``."""
    with ExitStack() as stack:
        with record.timed("load"):
            network = stack.enter_context(component)
        with record.timed(phase):
            yield network


def _attempt(components: Components, name: ComponentName, doing: str, record: Record, work: Callable[[], _T]) -> _T:
    """``work``, and if memory runs out in it once more, with the component ``name`` held in less; no third time.

    Raises :class:`~cygnet.errors.OutOfMemory` when there is no smaller way, or none is left.
    """
    try:
        return work()
    except Exception as error:
        if not out_of_memory(error) or record.stepped_down:
            raise
    # Only here, with the error and the frames that it refers to gone, can what was computed be freed.
    how = components.residency.shrink(name)
    if how is None:
        raise OutOfMemory(f"out of memory while {doing}, and the weights cannot be held in less")
    _step_down(record, doing, how)
    return work()


def _step_down(record: Record, doing: str, how: str) -> None:
    record.stepped_down = True
    record.notices.append(f"memory ran out while {doing}; it was done again in less: {how}")


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
    record.notices.append(
        f"cache {request.cache} skipped {cache.skipped} of {cache.evaluations} steps; the video is not exactly the one "
        "without it"
    )


def _expectations(components: Components, request: GenerateRequest) -> list[str]:
    """What is allowed but unlikely to turn out well."""
    usual = defaults_for(components.dit).num_frames
    if request.num_frames > usual:
        return [
            f"{request.num_frames} frames are more than the {usual} that the model was trained on; colours may drift"
        ]
    return []


def _fitted(inputs: Inputs, request: GenerateRequest, record: Record) -> Inputs:
    """The inputs cut to the video's aspect if that was asked for, and a last frame made to match the first."""
    size = (request.width, request.height)

    def fit(name: str, pixels: torch.Tensor | None) -> torch.Tensor | None:
        if pixels is None or request.image_fit == "stretch":
            return pixels
        cut = crop_to_aspect(pixels, *size)
        if cut.shape != pixels.shape:
            record.notices.append(
                f"{name} was cut from {pixels.shape[-1]}x{pixels.shape[-2]} to {cut.shape[-1]}x{cut.shape[-2]} about "
                f"its centre, to fit {size[0]}x{size[1]}"
            )
        return cut

    image, last = fit("image", inputs.image), inputs.last_image
    if image is not None and last is not None and last.shape != image.shape:
        record.notices.append(
            f"last_image was scaled and cut from {last.shape[2]}x{last.shape[1]} to match the first frame, "
            f"{image.shape[2]}x{image.shape[1]}"
        )
        last = cover(last, image.shape[2], image.shape[1]).clamp(-1, 1)
    if image is not None and last is not None and torch.equal(image.float(), last.float()):
        record.notices.append("the first and the last frame are the same picture; expect little motion")
    video = inputs.video
    if video is not None and video.shape[1] > request.num_frames:
        record.notices.append(f"only the first {request.num_frames} of the video's {video.shape[1]} frames are used")
        video = video[:, : request.num_frames]
    return Inputs(image=image, last_image=last, video=fit("video", video))


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
    sampled = request.num_steps - start_step_for_strength(request.strength, request.num_steps)
    guided = _guidance(request).guided_steps(sampled) > 0
    on_progress(Progress(phase="text", step=0, total=1 + guided))

    def encoded_text() -> tuple[torch.Tensor, torch.Tensor | None, tuple[str, ...]]:
        with _using(components.use_text_encoder(), "text", record) as encoder:
            context, notices = encode_text(encoder, components.tokenizer, request.prompt)
            on_progress(Progress(phase="text", step=1, total=1 + guided))
            if not guided:
                return context, None, notices
            negative, more = _negative(components, encoder, request.negative_prompt)
            on_progress(Progress(phase="text", step=2, total=2))
            return context, negative, notices + more

    context, negative, notices = _attempt(components, "text_encoder", "encoding the text", record, encoded_text)
    record.notices += notices
    components.residency.release("text_encoder")
    if inputs.image is None:
        return Conditioning(context=context, negative_context=negative)

    cancel.check()
    images = tuple(it for it in (given.image, given.last_image) if it is not None)
    steps = 1 + latent_grid(request.num_frames, request.width, request.height)[0]  # CLIP, then the VAE frame by frame
    on_progress(Progress(phase="image", step=0, total=steps))

    def seen() -> torch.Tensor:
        with _using(components.use_image_encoder(), "image", record) as eye:
            return encode_images(eye, images)

    image_context = _attempt(components, "image_encoder", "encoding the picture", record, seen)
    components.residency.release("image_encoder")
    cancel.check()
    on_progress(Progress(phase="image", step=1, total=steps))

    def encoded(done: int, total: int) -> None:
        cancel.check()
        on_progress(Progress(phase="image", step=1 + done, total=1 + total))

    first = inputs.image

    def conditioned() -> torch.Tensor:
        with _using(components.use_vae(), "image", record) as vae:
            return image_condition(
                vae,
                first,
                num_frames=request.num_frames,
                width=request.width,
                height=request.height,
                last_image=inputs.last_image,
                on_piece=encoded,
            )

    condition = _attempt(components, "vae", "encoding the picture", record, conditioned)
    _check_finite(image_context, "the image encoder made NaN or infinity of the picture")
    _check_finite(condition, "the VAE made NaN or infinity of the picture")
    return Conditioning(
        context=context, negative_context=negative, image_context=image_context, image_condition=condition
    )


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
        with _using(components.use_vae(), "encode", record) as vae:
            for piece in vae.encode_chunks(_pieces(video, request.width, request.height)):
                pieces.append(piece)
                cancel.check()
                on_progress(Progress(phase="encode", step=len(pieces), total=total))
        return torch.cat(pieces, dim=2)

    source = _attempt(components, "vae", "encoding the source video", record, encoded)
    _check_finite(source, "the VAE made NaN or infinity of the source video")
    return add_noise(source, noise.to(source.device), sampling.sigmas[0])


def _pieces(video: torch.Tensor, width: int, height: int) -> Iterator[torch.Tensor]:
    """``[1, 3, k, H, W]``: one frame, then four at a time, at the size of the result."""
    starts = (0, *range(1, video.shape[1], FRAME_STRIDE))
    for start in starts:
        piece = video[:, start : start + (FRAME_STRIDE if start else 1)]
        yield resize(piece, width, height).unsqueeze(0)


def _decode(
    components: Components,
    latents: torch.Tensor,
    chunk: int | None,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Iterator[torch.Tensor]:
    """The frames; where memory runs out, those that were not given yet are decoded fewer at a time."""
    chunk = chunk or latent_frames_at_once(*latents.shape[3:])
    given = 0
    try:
        for frames in _decoded(components, latents, chunk, on_progress, cancel, record):
            given += frames.shape[2]
            yield frames
        return
    except Exception as error:
        if not out_of_memory(error) or record.stepped_down:
            raise
    how, fewer = components.residency.shrink("vae"), fewer_at_once(chunk)
    if how is None and fewer == chunk:
        raise OutOfMemory("out of memory while decoding, one latent frame at a time and with nothing else in memory")
    words = [] if fewer == chunk else [f"{fewer} latent frames are decoded at a time, not {chunk}"]
    _step_down(record, "decoding", "; ".join([*([] if how is None else [how]), *words]))
    end = 0
    for frames in _decoded(components, latents, fewer, on_progress, cancel, record):
        start, end = end, end + frames.shape[2]
        if end > given:
            yield frames[:, :, max(given - start, 0) :]


def _decoded(
    components: Components,
    latents: torch.Tensor,
    chunk: int,
    on_progress: ProgressSink,
    cancel: CancelToken,
    record: Record,
) -> Iterator[torch.Tensor]:
    total = latents.shape[2]
    low, high = torch.inf, -torch.inf
    on_progress(Progress(phase="decode", step=0, total=total))
    with ExitStack() as stack:
        with record.timed("load"):
            vae = stack.enter_context(components.use_vae())
        chunks = vae.decode_chunks(latents, chunk=chunk)
        for done in (1, *(min(first + chunk, total) for first in range(1, total, chunk))):
            cancel.check()
            with record.timed("decode"):
                frames = next(chunks)
                smallest, largest = (float(value) for value in frames.aminmax())
            if smallest != smallest or largest != largest:
                raise NumericalError(
                    f"decoding gave NaN by latent frame {done} of {total}; use float32 for the VAE, or verify its file"
                )
            low, high = min(low, smallest), max(high, largest)
            if done == total and low == high:
                record.notices.append("every pixel has the same colour; the VAE's weights may be damaged")
            on_progress(Progress(phase="decode", step=done, total=total))
            yield frames


def _check_finite(value: torch.Tensor, what: str) -> None:
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(f"{what}; its weights are damaged or its dtype overflows: verify the file, or use float32")
