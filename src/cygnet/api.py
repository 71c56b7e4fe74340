"""What most programs need: load a model, ask for a video, save it.

    wan = cygnet.load("tiny-t2v")
    video = wan.generate("a red ball moves right on a black background", seed=1)
    video.save("ball.mp4")

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cygnet.assembly import DEFAULT, Device, Dtype, Execution, LoadedModel, Lora, Offload, Source, load_components
from cygnet.checkpoints import ComponentConfig, save_diffusers_pipeline, save_official
from cygnet.checkpoints.folders import TOKENIZER_FILES
from cygnet.checkpoints.saving import staged_folder
from cygnet.errors import OutOfMemory, RequestError, out_of_memory
from cygnet.media.frames import to_signed, to_uint8
from cygnet.media.image import load_image, picture_from_array, picture_from_pillow
from cygnet.media.receipt import RECEIPT_KEY, RECEIPT_VERSION, check_sidecar, embed, sidecar_path, staged_sidecar
from cygnet.media.video import VideoFormat, open_writer
from cygnet.media.video_read import read_video
from cygnet.pipelines.generate import generate
from cygnet.pipelines.inputs import Inputs, check_combination, check_pixels
from cygnet.pipelines.presets import Defaults, defaults_for
from cygnet.pipelines.record import Record
from cygnet.pipelines.request import GenerateRequest, parse_size, shown
from cygnet.pipelines.sizes import AREAS, FRAME_STRIDE, size_for_image
from cygnet.planning import (
    Machine,
    Plan,
    Subject,
    after_failure,
    refuse_what_cannot_fit,
    subject_of,
    subject_of_loaded,
)
from cygnet.planning import plan as plan_request
from cygnet.types import CancelToken, ComponentName, Phase, ProgressSink, ignore_progress

Frames = npt.NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | bytes | Image.Image | Frames | torch.Tensor
"""A file, its bytes, a Pillow picture, uint8 ``[H, W, 3]``, or float ``[3, H, W]`` in [-1, 1]."""
VideoLike = str | os.PathLike[str] | Frames | torch.Tensor
"""A file, uint8 ``[T, H, W, 3]``, or float ``[3, T, H, W]`` in [-1, 1]."""
Layout = Literal["diffusers", "official"]
USUAL_PROMPT = "a fox runs through the snow of a forest in the morning, and the camera follows it from the side"
"""Of a usual length: what a plan is made for when none is given."""


class Options(TypedDict, total=False):
    """What may be asked of a video besides its prompt; what is absent or None takes the model's own default."""

    size: tuple[int, int] | str | None
    """``(width, height)``, "832x480", or an area, "480p" or "720p", in the aspect of the picture."""
    num_frames: int | None
    num_steps: int | None
    guidance_scale: float | None
    shift: float | None
    solver: str | None
    negative_prompt: str | None
    seed: int | None
    fps: float | None
    strength: float | None
    guidance_until: float | None
    guidance_rest: str | None
    cache: str | None
    """Answer some steps from earlier ones, which is lossy: "easy:0.05"; see docs/speed.md for what it costs."""
    cache_table: Sequence[float] | None
    recipe: str | None
    """Solver, steps, shift and guidance for weights distilled to few steps: "lightx2v" or "self-forcing"."""
    image_fit: str | None
    noise_device: str | None
    reference_exact: bool | None
    """Compute the size for a picture exactly as the official code does; see :mod:`cygnet.pipelines.sizes`."""


@dataclass(frozen=True, eq=False)
class Video:
    """A finished video: ``frames`` uint8 ``[T, H, W, 3]``, ``fps`` frames per second, and what it was made from."""

    frames: Frames
    fps: float
    receipt: dict[str, Any]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: VideoFormat | None = None,
        quality: float | None = None,
        overwrite: bool = False,
        sidecar: bool = True,
    ) -> Path:
        """Write the video and return where it is; the suffix decides the format (mp4, webm, webp, gif, png).

        The receipt goes into the file and, with ``sidecar``, also beside it as ``<name>.json``. Both appear whole or
        not at all. Raises as :func:`cygnet.media.video.open_writer`.
        """
        if sidecar:
            check_sidecar(path)
        if sidecar and not overwrite and sidecar_path(path).exists():
            raise RequestError(
                f"{sidecar_path(path).name} exists; choose another name, or say to overwrite it", field="path"
            )
        count, height, width, _ = self.frames.shape
        opened = open_writer(
            path,
            width=width,
            height=height,
            fps=self.fps,
            format=format,
            quality=quality,
            metadata=embed(self.receipt),
            num_frames=count,
            overwrite=overwrite,
        )
        with ExitStack() as stack:
            writer = stack.enter_context(opened)
            writer.write(self.frames)
            if sidecar:
                folder = writer.path.absolute().parent
                with staged_sidecar(folder, self.receipt, overwrite=overwrite) as place:
                    stack.close()
                    place(writer.path)
        return writer.path


class VideoStream:
    """A video as it is made: iterate once for uint8 ``[k, H, W, 3]``, 1 frame first and then a few at a time.

    Nothing is computed before the first ``next``. :meth:`close` stops early and frees what was held.
    """

    def __init__(
        self,
        model: LoadedModel,
        identity: Mapping[str, Any],
        request: GenerateRequest,
        inputs: Mapping[str, Any],
        chunks: Iterator[torch.Tensor],
        record: Record,
    ) -> None:
        self.request = request
        self._model = model
        self._identity = identity
        self._inputs = dict(inputs)
        self._chunks = chunks
        self._record = record
        self._created = datetime.now(UTC)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the caller should know so far, in words; complete at the end."""
        return tuple(self._record.notices)

    @property
    def seconds(self) -> Mapping[Phase, float]:
        """Time spent so far, by phase."""
        return dict(self._record.seconds)

    def timed(self, phase: Phase) -> AbstractContextManager[None]:
        """Count the time of a block as ``phase``: what a caller does with the frames, such as "write"."""
        return self._record.timed(phase)

    @property
    def receipt(self) -> dict[str, Any]:
        """What the video is made from, fit for :func:`cygnet.media.receipt.embed`.

        From the first chunk on everything that decides the pixels is in it; the time for decoding still grows.
        """
        return {
            RECEIPT_KEY: RECEIPT_VERSION,
            "created": self._created.isoformat(timespec="seconds"),
            "request": self.request.model_dump(mode="json"),
            "inputs": self._inputs,
            "model": dict(self._identity),
            "sigmas": list(self._record.sigmas),
            "versions": {"cygnet": version("cygnet"), "torch": torch.__version__, "python": platform.python_version()},
            "machine": {
                "device": str(self._model.device),
                "system": f"{platform.system()} {platform.machine()}",
                "threads": torch.get_num_threads(),
            },
            **({"cached": dict(self._record.cached)} if self._record.cached else {}),
            "seconds": {phase: round(seconds, 3) for phase, seconds in self._record.seconds.items()},
            "notices": list(self._record.notices),
        }

    def __iter__(self) -> Iterator[Frames]:
        for chunk in self._chunks:
            yield to_uint8(chunk)

    def close(self) -> None:
        """Stop; the stream gives no more frames."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class Wan:
    """A loaded model. One request at a time."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @property
    def name(self) -> str | None:
        """The name the model was loaded by; None for files."""
        return self.model.name

    @property
    def variant(self) -> str:
        """What people call the architecture, such as ``T2V-1.3B``."""
        return self.model.components.variant

    @property
    def defaults(self) -> Defaults:
        """What is used for everything that a request does not say."""
        return defaults_for(self.model.components.dit, self.model.name)

    def generate(
        self,
        prompt: str,
        image: ImageLike | None = None,
        last_image: ImageLike | None = None,
        video: VideoLike | None = None,
        *,
        on_progress: ProgressSink = ignore_progress,
        cancel: CancelToken | None = None,
        **options: Unpack[Options],
    ) -> Video:
        """A video of ``prompt``, beginning with ``image``, ending with ``last_image``, or made anew from ``video``.

        Everything is checked before the work begins; see :class:`Options` for what may be asked. Raises
        :class:`~cygnet.errors.RequestError` (also for an option that does not exist), ``MediaError`` for pictures,
        ``NumericalError`` when NaN appears, and ``Cancelled``.
        """
        stream = self.stream(prompt, image, last_image, video, on_progress=on_progress, cancel=cancel, **options)
        frames = np.concatenate(list(stream))
        return Video(frames, stream.request.fps, stream.receipt)

    def stream(
        self,
        prompt: str,
        image: ImageLike | None = None,
        last_image: ImageLike | None = None,
        video: VideoLike | None = None,
        *,
        on_progress: ProgressSink = ignore_progress,
        cancel: CancelToken | None = None,
        **options: Unpack[Options],
    ) -> VideoStream:
        """Like :meth:`generate`, but frames come as they are decoded. All checks are made by this call itself."""
        given = _Given.read(image, last_image, video)
        request = _request(prompt, given.inputs, options, self.defaults)
        return self._run(request, given, on_progress, cancel)

    def plan(
        self,
        prompt: str,
        image: ImageLike | None = None,
        last_image: ImageLike | None = None,
        video: VideoLike | None = None,
        **options: Unpack[Options],
    ) -> Plan:
        """What :meth:`generate` would take: memory, disk and time, stage by stage; see :func:`plan`."""
        request = _request(prompt, _Given.read(image, last_image, video).inputs, options, self.defaults)
        return plan_request(self._subject, request, self._machine(), self.model.offload)

    def replay(
        self,
        request: GenerateRequest | Mapping[str, Any],
        image: ImageLike | None = None,
        last_image: ImageLike | None = None,
        video: VideoLike | None = None,
        *,
        on_progress: ProgressSink = ignore_progress,
        cancel: CancelToken | None = None,
    ) -> VideoStream:
        """Make again what ``request`` says, such as ``receipt["request"]``; no default is applied to it."""
        if not isinstance(request, GenerateRequest):
            request = GenerateRequest.create(request)
        return self._run(request, _Given.read(image, last_image, video), on_progress, cancel)

    def save_pretrained(
        self, folder: str | os.PathLike[str], layout: Layout = "diffusers", *, overwrite: bool = False
    ) -> Path:
        """Write the model, in its stored precision, as a folder that Diffusers or any Wan program opens.

        "diffusers" is a pipeline folder; "official" is one file per network under official names, with the tokenizer
        inside the text encoder or in ``google/umt5-xxl``. The folder appears whole or not at all.
        """
        place = Path(folder)
        states = {name: (weights.lazy_state(), weights.config) for name, weights in self.model.weights.items()}
        source = self.model.tokenizer
        if layout == "diffusers":
            tokenizer = source.data if source.data is not None else source.path
            assert tokenizer is not None
            return save_diffusers_pipeline(
                place,
                states,
                tokenizer=tokenizer.parent if isinstance(tokenizer, Path) else tokenizer,
                flow_shift=self.defaults.shift,
                overwrite=overwrite,
            )
        if layout != "official":
            raise RequestError(f'layout is {shown(layout)}; choose "diffusers" or "official"', field="layout")
        with staged_folder(place, overwrite=overwrite) as staging:
            for name, (state, config) in states.items():
                self._save_official(staging, name, state, config)
        return place

    def _save_official(
        self, folder: Path, name: ComponentName, state: Mapping[str, torch.Tensor], config: ComponentConfig
    ) -> None:
        source = self.model.tokenizer
        stem = "diffusion_pytorch_model" if name == "dit" else name
        embedded = source.data if name == "text_encoder" else None
        save_official(folder / f"{stem}.safetensors", state, config, tokenizer=embedded)
        if name == "text_encoder" and source.path is not None:
            home = folder / "google" / "umt5-xxl"
            home.mkdir(parents=True)
            for file in TOKENIZER_FILES:
                if (source.path.parent / file).is_file():
                    (home / file).write_bytes((source.path.parent / file).read_bytes())

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return self.model.describe()

    def _run(
        self, request: GenerateRequest, given: _Given, on_progress: ProgressSink, cancel: CancelToken | None
    ) -> VideoStream:
        record = Record(notices=[*given.notices, *(f"LoRA {told}" for _, told in self.model.loras)])
        check_combination(self.model.components, request, given.inputs)
        chunks = generate(
            self.model.components,
            request,
            given.inputs,
            on_progress=on_progress,
            cancel=cancel,
            record=record,
            decode_chunk=self._placed(request),
        )
        return VideoStream(self.model, self._identity, request, given.described, self._told(chunks, request), record)

    def _placed(self, request: GenerateRequest) -> int:
        """Put the weights where the plan of ``request`` has them; returns how many latent frames to decode at a time.

        Raises :class:`~cygnet.errors.OutOfMemory` if the request fits nowhere.
        """
        decision = refuse_what_cannot_fit(self._subject, request, self._machine(), self.model.offload)
        self.model.residency.move(decision.placement)
        return decision.decode_chunk

    def _told(self, chunks: Iterator[torch.Tensor], request: GenerateRequest) -> Iterator[torch.Tensor]:
        """The chunks; where memory runs out for good, the error names the request that fits."""
        try:
            yield from chunks
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            message = str(error) if isinstance(error, OutOfMemory) else f"out of memory ({str(error)[:200]})"
        # Only now is free what the failed run held.
        raise OutOfMemory(f"{message}; {after_failure(self._subject, request, self._machine(), self.model.offload)}")

    def _machine(self) -> Machine:
        """This machine; memory that weights take already is counted as free."""
        held = 0
        if self.model.residency.placement.resident:
            there = self.model.taken if self.model.device.type == "cuda" else self._subject.converted
            held = sum(self.model.taken[part].whole for part in there)
        return Machine.of(self.model.device).with_more(held)

    @cached_property
    def _subject(self) -> Subject:
        return subject_of_loaded(self.model)


def plan(
    source: Source,
    prompt: str = USUAL_PROMPT,
    image: ImageLike | None = None,
    last_image: ImageLike | None = None,
    video: VideoLike | None = None,
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = True,
    loras: Sequence[Lora] = (),
    allow_partial_loras: bool = False,
    execution: Execution = DEFAULT,
    device_memory: int | str | None = None,
    host_memory: int | str | None = None,
    **options: Unpack[Options],
) -> Plan:
    """What a video would take on this machine, before any of it is done; reads headers alone.

    ``source``, pictures and options are those of :func:`load` and :meth:`Wan.generate`. The weights of a published
    model need not be here; an image model is planned for without its picture too. With ``device_memory``, bytes or
    text such as "24GiB", the plan is for a CUDA device with so much free, whether or not there is one;
    ``host_memory`` says the same of the host. See :class:`~cygnet.planning.Plan`: ``plan.fits``, ``plan.nearest``,
    ``plan.stages``. Raises as :func:`load` and :meth:`Wan.generate` do for what can be no request.
    """
    machine = Machine.of(device, device_memory=device_memory, host_memory=host_memory)
    subject = subject_of(source, machine.device, dtype, loras, execution, allow_partial_loras=allow_partial_loras)
    request = _request(prompt, _Given.read(image, last_image, video).inputs, options, subject.defaults)
    return plan_request(subject, request, machine, offload)


def load(
    source: Source,
    *,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = None,
    loras: Sequence[Lora] = (),
    allow_partial_loras: bool = False,
    execution: Execution = DEFAULT,
    on_progress: ProgressSink = ignore_progress,
) -> Wan:
    """A model by name ("tiny-t2v", "t2v-1.3b", ...), folder, combined file, or a mapping of parts to files.

    ``loras`` are files, or ``(file, strength)`` pairs, merged into the transformer: ``[("style.safetensors", 0.8)]``;
    one of which it has less than half is refused unless ``allow_partial_loras``. ``offload="stream"`` needs the least
    memory; ``execution`` chooses kernels and compiling (:class:`cygnet.Execution`). See
    :func:`cygnet.assembly.load_components` for those, the other arguments and for what is raised.
    """
    return Wan(
        load_components(
            source,
            device=device,
            dtype=dtype,
            offload=offload,
            loras=loras,
            allow_partial_loras=allow_partial_loras,
            execution=execution,
            on_progress=on_progress,
        )
    )


def _request(prompt: str, inputs: Inputs, options: Options, defaults: Defaults) -> GenerateRequest:
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    exact = fields.pop("reference_exact", False)
    if not isinstance(exact, bool):
        raise RequestError(f"reference_exact is {shown(exact)}; give True or False", field="reference_exact")
    size = fields.pop("size", None)
    like = inputs.image if inputs.image is not None else inputs.video
    fields = {**_size_fields(size, like, defaults, exact), **fields}
    if inputs.video is not None:
        fields.setdefault("strength", defaults.strength)
        have = 1 + (inputs.video.shape[1] - 1) // FRAME_STRIDE * FRAME_STRIDE
        fields.setdefault("num_frames", min(have, defaults.num_frames))
    return GenerateRequest.create({"prompt": prompt, **fields}, defaults)


def _size_fields(
    size: object, like: torch.Tensor | None, defaults: Defaults, reference_exact: bool
) -> dict[str, int | str]:
    """Width, height and how a picture meets them."""
    if isinstance(size, str) and size.lower() in AREAS:
        width, height = AREAS[size.lower()]
    elif size is None:
        width, height = defaults.width, defaults.height
    else:
        width, height = parse_size(size)
        return {"width": width, "height": height}
    if like is None or (size is None and not defaults.size_from_image):
        return {"width": width, "height": height}
    rows, columns = like.shape[-2:]
    width, height = size_for_image(columns, rows, width * height, reference_exact=reference_exact)
    # What is left of another aspect comes from rounding; stretching it away is the official way.
    return {"width": width, "height": height, "image_fit": "stretch"}


# Pictures and videos -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """The pictures of a request as tensors, what was done to read them, and what a receipt says of them."""

    inputs: Inputs
    notices: tuple[str, ...]
    described: Mapping[str, Any]

    @classmethod
    def read(cls, image: ImageLike | None, last_image: ImageLike | None, video: VideoLike | None) -> _Given:
        notices: list[str] = []
        pixels: dict[str, torch.Tensor] = {}
        for name, value in (("image", image), ("last_image", last_image)):
            if value is not None:
                pixels[name] = _image_tensor(name, value, notices)
        if video is not None:
            pixels["video"] = _video_tensor(video, notices)
        described = {name: _describe_pixels(value) for name, value in pixels.items()}
        return cls(Inputs(**pixels), tuple(notices), described)


def _image_tensor(name: str, value: ImageLike, notices: list[str]) -> torch.Tensor:
    """Float32 ``[3, H, W]`` in [-1, 1]; raises ``MediaError`` or ``RequestError``."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return _pixels(name, value, 3)
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        picture = picture_from_array(value)
    elif isinstance(value, Image.Image):
        picture = picture_from_pillow(value)
    elif isinstance(value, str | os.PathLike | bytes):
        picture = load_image(value)
    else:
        raise RequestError(
            f"{name} is of type {type(value).__name__}; give a path, a Pillow picture, uint8 [H, W, 3], or a float "
            "tensor [3, H, W] in [-1, 1]",
            field=name,
        )
    notices += [f"{name}: {note}" for note in picture.notes]
    return to_signed(picture.pixels[None])[:, 0]


def _video_tensor(value: VideoLike, notices: list[str]) -> torch.Tensor:
    """Float32 ``[3, T, H, W]`` in [-1, 1]; raises ``MediaError`` or ``RequestError``."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return _pixels("video", value, 4)
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3 or not value.size:
            raise RequestError(
                f"video is {value.dtype} {list(value.shape)}; it must be uint8 [T, H, W, 3]", field="video"
            )
        return to_signed(value)
    if not isinstance(value, str | os.PathLike):
        raise RequestError(
            f"video is of type {type(value).__name__}; give a path, uint8 [T, H, W, 3], or a float tensor "
            "[3, T, H, W] in [-1, 1]",
            field="video",
        )
    clip = read_video(value)
    notices += [f"video: {note}" for note in clip.notes]
    return to_signed(clip.frames)


def _pixels(name: str, value: torch.Tensor, axes: int) -> torch.Tensor:
    """A picture (3 axes) or video (4) that was given as a float tensor, checked."""
    check_pixels(name, value, axes)
    return value.detach().float().cpu()


def _describe_pixels(pixels: torch.Tensor) -> dict[str, Any]:
    data = pixels.contiguous().numpy().tobytes()
    return {"shape": list(pixels.shape), "sha256": hashlib.sha256(data).hexdigest()}
