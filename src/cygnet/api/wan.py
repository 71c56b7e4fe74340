"""Models: planned, loaded, asked for videos, and saved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch

from cygnet.api.given import Given, ImageLike, VideoLike
from cygnet.api.options import Options, request_of
from cygnet.api.video import Video, VideoStream
from cygnet.assembly import (
    DEFAULT,
    Device,
    Dtype,
    Execution,
    LoadedModel,
    Lora,
    Offload,
    Source,
    check_execution,
    check_offload,
    load_components,
)
from cygnet.checkpoints import ComponentConfig, save_diffusers_pipeline, save_official
from cygnet.checkpoints.folders import TOKENIZER_FILES
from cygnet.checkpoints.saving import staged_folder
from cygnet.errors import OutOfMemory, RequestError, out_of_memory, text_of
from cygnet.pipelines.generate import generate
from cygnet.pipelines.inputs import check_combination
from cygnet.pipelines.presets import Defaults, defaults_for
from cygnet.pipelines.record import Half, Record
from cygnet.pipelines.request import GenerateRequest, shown
from cygnet.pipelines.tiles import Portions
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
from cygnet.types import CancelToken, ComponentName, ProgressSink, ignore_progress

Layout = Literal["diffusers", "official"]
USUAL_PROMPT = "a fox runs through the snow of a forest in the morning, and the camera follows it from the side"
"""Of a usual length: what a plan is made for when none is given."""


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
        given = Given.read(image, last_image, video)
        request = request_of(prompt, given.inputs, options, self.defaults)
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
        request = request_of(prompt, Given.read(image, last_image, video).inputs, options, self.defaults)
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
        return self._run(request, Given.read(image, last_image, video), on_progress, cancel, same=True)

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
        self,
        request: GenerateRequest,
        given: Given,
        on_progress: ProgressSink,
        cancel: CancelToken | None,
        *,
        same: bool = False,
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
            portions=self._placed(request, same=same),
        )
        return VideoStream(
            self.model, self._identity, request, given.described, self._told(chunks, request, record, same=same), record
        )

    def _placed(self, request: GenerateRequest, *, same: bool) -> Portions:
        """Put the weights where the plan of ``request`` has them; returns how much the VAE is to work on at a time.

        With ``same`` no other request will do.

        Raises :class:`~cygnet.errors.OutOfMemory` if the request fits nowhere.
        """
        decision = refuse_what_cannot_fit(self._subject, request, self._machine(), self.model.offload, same=same)
        self.model.residency.move(decision.placement)
        return decision.portions

    def _told(
        self, chunks: Iterator[torch.Tensor], request: GenerateRequest, record: Record, *, same: bool
    ) -> Iterator[torch.Tensor]:
        """The chunks; where memory runs out for good, the error names the request that fits."""
        untold = self.model.residency.untold
        record.notices += untold
        untold.clear()  # it is told once, by the run that comes first
        try:
            yield from chunks
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            message = str(error) if isinstance(error, OutOfMemory) else f"out of memory ({text_of(error)[:200]})"
        # Only now is free what the failed run held.
        placement = self.model.residency.placement
        half: Half = "decode" if "denoise" in record.seconds else "encode"
        raise OutOfMemory(
            f"{message}; "
            + after_failure(
                self._subject,
                request,
                self._machine(),
                self.model.offload,
                placement=placement,
                part=record.at_work,
                half=half,
                tried=record.tiles.get(half),
                same=same,
            )
        )

    def _machine(self) -> Machine:
        """This machine; memory that weights take already is counted as free."""
        # On other devices weights of their file's own type stay mapped from it, and take nothing that is not free.
        there = self.model.taken if self.model.device.type == "cuda" else self._subject.converted
        held = self.model.residency.held
        return Machine.of(self.model.device).with_more(sum(size for part, size in held.items() if part in there))

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
    check_offload(offload)
    check_execution(execution)
    machine = Machine.of(device, device_memory=device_memory, host_memory=host_memory)
    if machine.here:
        execution.check(machine.device)
    subject = subject_of(source, machine.device, dtype, loras, execution, allow_partial_loras=allow_partial_loras)
    request = request_of(prompt, Given.read(image, last_image, video).inputs, options, subject.defaults)
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
