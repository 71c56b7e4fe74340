"""Making the videos of a wish: everything is checked first, then each is written as it is decoded."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cygnet.cli.interrupts import WholeStack, uninterrupted
from cygnet.cli.output import Voice
from cygnet.cli.progress import Display
from cygnet.cli.targets import Target, check_target, plan_targets, reserved
from cygnet.cli.wish import Wish, frames_for
from cygnet.errors import Cancelled, RequestError
from cygnet.types import CancelToken

if TYPE_CHECKING:
    from cygnet.api import VideoStream
    from cygnet.media.video import Frames
    from cygnet.pipelines.request import GenerateRequest


@dataclass(frozen=True, kw_only=True)
class Result:
    """A video that was written."""

    path: Path
    receipt: Path
    seed: int
    width: int
    height: int
    num_frames: int
    fps: float
    seconds: float
    notices: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values for ``json.dumps``."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "path": str(self.path), "receipt": str(self.receipt), "notices": list(self.notices)}


def check_without_model(wish: Wish) -> None:
    """Refuse what no model could make, before torch is imported: within a fraction of a second."""
    from cygnet.media.files import open_regular
    from cygnet.models.dit.config import TINY_T2V
    from cygnet.pipelines.presets import PRESETS
    from cygnet.pipelines.request import GenerateRequest, parse_size
    from cygnet.pipelines.sizes import AREAS

    fields = {name: value for name, value in wish.options.items() if value is not None}
    size = fields.pop("size", None)
    if size is not None and size.lower() not in AREAS:
        fields["width"], fields["height"] = parse_size(size)
    # The defaults of the smallest model: what stands in for absent fields must never be the reason for a refusal.
    request = GenerateRequest.create({"prompt": wish.prompt, "seed": wish.seeds[-1], **fields}, PRESETS[TINY_T2V])
    for path in wish.images.values():
        if path is not None:
            with open_regular(path, max_bytes=sys.maxsize):
                pass
    if "{model}" in (wish.out or ""):
        return
    for target in plan_targets(wish.out, wish.prompt, wish.seeds, ""):
        if target.suffix != ".png":  # the number of frames decides what that becomes
            check_place(target, request, wish)


def check_place(target: Target, request: GenerateRequest, wish: Wish) -> list[str]:
    """Whether a video of ``request`` can go there; notes on its format."""
    return check_target(
        target,
        width=request.width,
        height=request.height,
        fps=request.fps,
        num_frames=request.num_frames,
        overwrite=wish.overwrite,
    )


def make_all(wish: Wish, voice: Voice, display: Display, cancel: CancelToken) -> list[Result]:
    """Check everything, then make the videos one after another."""
    check_without_model(wish)
    import cygnet

    # Weights come in when their stage begins, so a request that cannot be is refused before any is read.
    wan = cygnet.load(
        wish.source,
        offload="stream" if wish.stream else True,
        execution=wish.execution.chosen(),
        on_progress=display.report,
        **wish.place,
    )
    options = {name: value for name, value in wish.options.items() if value is not None}
    if wish.seconds is not None:
        if wish.options["num_frames"] is not None:
            raise RequestError("frames and seconds are both given; give one of them", field="seconds")
        options["num_frames"] = frames_for(wish.seconds, wish.options["fps"] or wan.defaults.fps, voice)
    targets = plan_targets(wish.out, wish.prompt, wish.seeds, wan.name or wan.variant)

    def stream_for(seed: int) -> VideoStream:
        return wan.stream(
            wish.prompt, **wish.images, **options, seed=seed, on_progress=display.report, cancel=cancel
        )  # fmt: skip

    for seed in {wish.seeds[0], wish.seeds[-1]}:
        stream = stream_for(seed)
        request = stream.request
        stream.close()
    for target in targets:
        notes = check_place(target, request, wish)
    for note in notes:
        voice.note(f"note: {note}")
    if len(targets) > 1 and not wish.stream:  # now weights may stay in memory between videos
        wan = cygnet.load(wish.source, execution=wish.execution.chosen(), on_progress=display.report, **wish.place)
    results: list[Result] = []
    for number, (seed, target) in enumerate(zip(wish.seeds, targets, strict=True), start=1):
        if len(targets) > 1:
            display.title(f"video {number} of {len(targets)}, seed {seed}")
        try:
            result = write_stream(stream_for(seed), target, inputs=wish.images, overwrite=wish.overwrite)
        except Cancelled as error:
            done = f"{len(results)} of {len(targets)} videos were finished" if results else "nothing was written"
            stopped = Cancelled(f"stopped on request; {done}")
            stopped.done = {"videos": [it.to_json() for it in results]}
            raise stopped from error
        results.append(result)
        for notice in result.notices:
            voice.note(f"note: {notice}")
        voice.event("video", **result.to_json())
        if not voice.as_json and not voice.as_stream:
            voice.result({}, [str(result.path)])
    if cancel.cancelled:
        voice.note("note: the stop came too late; everything was finished")
    return results


def write_stream(stream: VideoStream, target: Target, *, inputs: Mapping[str, Path | None], overwrite: bool) -> Result:
    """Make the video and write it as it is decoded; nothing is left if that fails. ``inputs`` name the pictures."""
    from cygnet.media.receipt import embed, staged_sidecar
    from cygnet.media.video import open_writer

    started = time.monotonic()
    request = stream.request
    try:
        chunks = iter(stream)
        first: Frames = next(chunks)
        with WholeStack() as stack:
            with uninterrupted():  # until both names are known to the stack, which removes them on failure
                path = stack.enter_context(reserved(target))
                writer = stack.enter_context(
                    open_writer(
                        path,
                        width=request.width,
                        height=request.height,
                        fps=request.fps,
                        num_frames=request.num_frames,
                        overwrite=overwrite,
                        metadata=embed(receipt_of(stream, inputs)),
                    )
                )
            for chunk in itertools.chain([first], chunks):
                with stream.timed("write"):
                    writer.write(chunk)
            folder, last = writer.path.absolute().parent, receipt_of(stream, inputs)
            with uninterrupted(), staged_sidecar(folder, last, overwrite=overwrite) as place:
                with stream.timed("write"):
                    stack.close()
                receipt = place(writer.path)
    finally:
        stream.close()
    return Result(
        path=writer.path,
        receipt=receipt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        fps=request.fps,
        seconds=round(time.monotonic() - started, 3),
        notices=stream.notices,
    )


def receipt_of(stream: VideoStream, inputs: Mapping[str, Path | None]) -> dict[str, Any]:
    """The stream's receipt, with the names of the pictures: only names, as folders are nobody's business."""
    receipt = stream.receipt
    for name, described in receipt["inputs"].items():
        path = inputs.get(name)
        if path is not None:
            receipt["inputs"][name] = {**described, "name": path.name}
    return receipt
