"""``cygnet generate``: a prompt, or a picture and a prompt, becomes a video."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from cygnet.cli.execution import ExecutionOptions
from cygnet.cli.interrupts import WholeStack, cancelled_by_interrupt, uninterrupted
from cygnet.cli.options import DASH, Debug, File, Json, Loras, Number, Partial, Places, Quiet, Switch, Text, Whole
from cygnet.cli.output import Voice, error_line
from cygnet.cli.progress import Display, open_display
from cygnet.cli.targets import Target, check_target, plan_targets, reserved
from cygnet.errors import Cancelled, RequestError
from cygnet.types import CancelToken

if TYPE_CHECKING:
    from cygnet.api import VideoStream
    from cygnet.media.video import Frames
    from cygnet.pipelines.request import GenerateRequest

MAX_COUNT = 1_000
MAX_DRAWN_SEED = 2**32
"""Drawn seeds stay short enough to be read aloud and to stand in a file name."""
MAX_STDIN_BYTES = 1_000_000

_WHAT = Group.create_ordered("The video")
_HOW = Group.create_ordered("How it is made")
_WHERE = Group.create_ordered("Where it goes")
_WITH = Group.create_ordered("The model")
_COMPUTED = Group.create_ordered("How it is computed")


def generate(
    prompt: Annotated[str, Parameter(name="PROMPT")],
    /,
    *,
    image: Annotated[File, Parameter(group=_WHAT)] = None,
    last_image: Annotated[File, Parameter(group=_WHAT)] = None,
    video: Annotated[File, Parameter(group=_WHAT)] = None,
    strength: Annotated[Number, Parameter(group=_WHAT)] = None,
    size: Annotated[str | None, Parameter(group=_WHAT, metavar="WxH")] = None,
    frames: Annotated[Whole, Parameter(group=_WHAT)] = None,
    seconds: Annotated[Number, Parameter(group=_WHAT)] = None,
    fps: Annotated[Number, Parameter(group=_WHAT)] = None,
    negative: Annotated[Text, Parameter(group=_HOW)] = None,
    seed: Annotated[Whole, Parameter(group=_HOW)] = None,
    count: Annotated[Whole, Parameter(group=_HOW)] = None,
    steps: Annotated[Whole, Parameter(group=_HOW)] = None,
    guidance: Annotated[Number, Parameter(group=_HOW)] = None,
    guidance_until: Annotated[Number, Parameter(group=_HOW)] = None,
    guidance_rest: Annotated[str | None, Parameter(group=_HOW, metavar="NAME")] = None,
    shift: Annotated[Number, Parameter(group=_HOW)] = None,
    solver: Annotated[str | None, Parameter(group=_HOW, metavar="NAME")] = None,
    recipe: Annotated[str | None, Parameter(group=_HOW, metavar="NAME")] = None,
    cache: Annotated[str | None, Parameter(group=_HOW, metavar="NAME[:THRESHOLD]")] = None,
    cache_table: Annotated[File, Parameter(group=_HOW)] = None,
    model: Annotated[str | None, Parameter(group=_WITH, metavar="NAME|PATH")] = None,
    dit: Annotated[File, Parameter(group=_WITH)] = None,
    vae: Annotated[File, Parameter(group=_WITH)] = None,
    text_encoder: Annotated[File, Parameter(group=_WITH)] = None,
    image_encoder: Annotated[File, Parameter(group=_WITH)] = None,
    tokenizer: Annotated[File, Parameter(group=_WITH)] = None,
    lora: Annotated[Loras, Parameter(group=_WITH)] = (),
    allow_partial_lora: Annotated[Partial, Parameter(group=_WITH)] = False,
    model_paths: Annotated[Places, Parameter(group=_WITH)] = (),
    device: Annotated[str, Parameter(group=_WITH, metavar="NAME")] = "auto",
    dtype: Annotated[str, Parameter(group=_WITH, metavar="NAME")] = "auto",
    stream: Annotated[Switch, Parameter(group=_WITH)] = False,
    execution: Annotated[ExecutionOptions, Parameter(name="*", group=_COMPUTED)] = ExecutionOptions(),  # noqa: B008
    out: Annotated[str | None, Parameter(group=_WHERE, metavar="FILE|FOLDER|PATTERN")] = None,
    overwrite: Annotated[Switch, Parameter(group=_WHERE)] = False,
    json: Annotated[Json, Parameter(group=_WHERE)] = False,
    json_stream: Annotated[Switch, Parameter(group=_WHERE)] = False,
    quiet: Annotated[Quiet, Parameter(group=_WHERE)] = False,
    debug: Debug = False,
) -> int:
    """Make a video from a prompt, or from a picture and a prompt, and print its path.

    What is not asked for takes the model's own default. A receipt of everything that decides the pixels is stored in
    the video and beside it; `cygnet replay` makes the video again from it.

    Parameters
    ----------
    prompt
        What the video shows, in quotes; - reads it from standard input. Put -- before one that begins with a dash.
    image
        The picture that the video begins with (PNG, JPEG or WebP); needs an image-to-video model.
    last_image
        The picture that it ends with; needs a first-and-last-frame model.
    video
        A video to make anew; see --strength.
    strength
        How much of --video is made anew: above 0 up to 1.
    size
        Width x height in pixels, multiples of 16, such as 832x480; or 480p or 720p, in the aspect of the picture.
    frames
        Number of frames, 4n+1; 1 makes a picture.
    seconds
        Length instead of a number of frames; the nearest length that the model can make is taken and said.
    fps
        Frames per second of the file; changes how fast it plays, not what it shows.
    negative
        What the video should not show.
    seed
        The same seed gives the same video on the same machine; drawn if absent or -1, and recorded.
    count
        How many videos to make, with seeds counting up from the first.
    steps
        Denoising steps.
    guidance
        How closely the prompt is followed; 1 is no guidance and takes half the time.
    guidance_until
        Guide only the first steps, this share of them (0 to 1); the others take half the time. Lossy.
    guidance_rest
        The other steps: prompt, which follows the prompt alone, or reuse, which adds what guidance last added.
    shift
        How much of the work goes into the early, coarse steps.
    solver
        unipc, dpm++, euler or renoise; the model's default suits it.
    recipe
        lightx2v or self-forcing: solver, steps, shift and guidance for weights distilled to four steps. The LoRA that
        makes a named model so is found in the loras folders, unless --lora or --dit is given.
    cache
        Answer some steps from earlier ones: easy, mag or tea, with a threshold such as easy:0.05. Lossy.
        calibrate skips nothing, and measures the tables of mag and tea for the receipt.
    cache_table
        Those of this receipt, or a JSON list of numbers, in place of the published ones.
    model
        A name that `cygnet models` lists, a folder, or a combined file. Default: tiny-t2v, with --image tiny-i2v.
    dit
        A file or folder for the diffusion transformer, in place of the model's.
    vae
        The same for the VAE.
    text_encoder
        The same for the text encoder.
    image_encoder
        The same for the image encoder.
    tokenizer
        The same for the tokenizer, if the text encoder has none inside or beside it.
    lora
        A LoRA for the transformer, with a strength if it is not to be 1: style.safetensors:0.8; may be given again. A
        file that is not there is looked for in the loras folders of --model-paths and the like.
    device
        auto, cpu, cuda or cuda:N.
    dtype
        auto, float32, bfloat16 or float16, for the transformer and the encoders.
    stream
        Read the large networks block by block, in a few GB of memory; without it, if they do not fit. Takes longer.
    out
        A file name (.mp4, .webm, .webp, .gif, .png), a folder, or a pattern with {prompt}, {seed}, {index}, {model}.
        Default: a name from prompt and seed in the current folder. Nothing is overwritten.
    overwrite
        Replace a file of that name.
    json_stream
        Print one JSON object per event: progress lines, each video, and the result.
    """
    voice = Voice(as_json=json, as_stream=json_stream, quiet=quiet)
    for place in model_paths:
        if not os.path.exists(place):
            raise RequestError(f"--model-paths {error_line(str(place))[:200]} does not exist", field="model_paths")
    wish = Wish(
        prompt=read_prompt(prompt),
        images={"image": image, "last_image": last_image, "video": video},
        options={
            "strength": strength,
            "size": size,
            "num_frames": frames,
            "fps": fps,
            "negative_prompt": negative,
            "num_steps": steps,
            "guidance_scale": guidance,
            "guidance_until": guidance_until,
            "guidance_rest": guidance_rest,
            "shift": shift,
            "solver": solver,
            "recipe": recipe,
            "cache": cache,
            "cache_table": read_cache_table(cache_table, cache),
        },
        seconds=seconds,
        seeds=seeds_of(seed, count),
        source=model_source(
            model,
            {
                "dit": dit, "vae": vae, "text_encoder": text_encoder, "image_encoder": image_encoder,
                "tokenizer": tokenizer,
            },
            model_paths,
            with_image=image is not None,
        ),
        place={
            "device": device,
            "dtype": dtype,
            "loras": find_loras(parse_loras(lora), model_paths) or recipe_loras(recipe, model, dit, model_paths),
            "allow_partial_loras": allow_partial_lora,
        },
        stream=stream,
        execution=execution,
        out=out,
        overwrite=overwrite,
    )  # fmt: skip
    started = time.monotonic()
    with open_display(voice) as display, cancelled_by_interrupt(voice.note) as cancel:
        results = make_all(wish, voice, display, cancel)
    value = {"videos": [result.to_json() for result in results], "seconds": round(time.monotonic() - started, 3)}
    # People have seen each path when its video was done.
    voice.result(value, [])
    return 0


# What was asked for --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The command line in the words of the Python API; options that are None take the model's default."""

    prompt: str
    images: Mapping[str, Any]
    options: Mapping[str, Any]
    seconds: float | None
    seeds: Sequence[int]
    source: Any
    place: Mapping[str, Any]
    stream: bool
    execution: ExecutionOptions
    out: str | None
    overwrite: bool


def read_prompt(given: str) -> str:
    """The prompt itself, or standard input for ``-``."""
    if given != DASH:
        return given
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise RequestError(f"the prompt on standard input is longer than {MAX_STDIN_BYTES:,} bytes", field="prompt")
    try:
        return data.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError("the prompt on standard input is not UTF-8 text", field="prompt") from error


def parse_loras(given: Sequence[str]) -> list[tuple[Path, float]]:
    """Files and strengths of ``FILE[:STRENGTH]``; a colon that no number follows belongs to the name."""
    found = []
    for text in given:
        name, colon, number = text.rpartition(":")
        try:
            strength = float(number) if colon else 1.0
        except ValueError:
            name, strength = text, 1.0
        found.append((Path(name if colon and name else text), strength))
    return found


def read_cache_table(path: Path | None, cache: str | None) -> list[float] | None:
    """The numbers of a JSON list, or of a receipt that was written with ``--cache calibrate``."""
    if path is None:
        return None
    import json

    from cygnet.media.receipt import read_receipt

    policy = (cache or "").partition(":")[0]
    name = error_line(repr(path.name))
    try:
        given: Any = json.loads(path.read_bytes()) if path.suffix == ".json" else read_receipt(path)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"cache_table {name} cannot be read as JSON: {error_line(str(error))[:200]}", field="cache_table"
        ) from None
    if isinstance(given, dict):
        tables = (given.get("cached") or {}).get("tables") or {}
        if policy not in tables:
            raise RequestError(
                f"cache_table {name} holds no table for cache {policy!r}; make one with --cache calibrate and enough "
                "steps, or give a JSON list of numbers",
                field="cache_table",
            )
        given = tables[policy]
    if not isinstance(given, list) or not all(type(value) in (int, float) for value in given):
        raise RequestError(f"cache_table {name} is no list of numbers", field="cache_table")
    return [float(value) for value in given]


def find_loras(given: Sequence[tuple[Path, float]], places: Sequence[Path]) -> list[tuple[Path, float]]:
    """The files themselves where they exist, else those of that name in the loras folders."""
    from cygnet.checkpoints.lora.finding import find_lora

    return [(find_lora(path, places), strength) for path, strength in given]


def recipe_loras(
    recipe: str | None, model: str | None, dit: Path | None, places: Sequence[Path]
) -> list[tuple[Path, float]]:
    """The LoRA without which ``recipe`` would give a blur of a published model; none for weights of one's own."""
    if recipe is None:
        return []
    from cygnet.checkpoints.lora.distilled import distilled_lora, needs_lora

    if dit is not None or model is None or not needs_lora(recipe, model):
        return []
    return [distilled_lora(recipe, model, places)]


def seeds_of(seed: int | None, count: int | None) -> range:
    """The seed of each video. None and -1 draw the first one."""
    number = 1 if count is None else count
    if not 1 <= number <= MAX_COUNT:
        raise RequestError(f"count is {number}; it must be a whole number from 1 to {MAX_COUNT:,}", field="count")
    first = secrets.randbelow(MAX_DRAWN_SEED) if seed in (None, -1) else seed
    assert first is not None
    return range(first, first + number)


def model_source(
    model: str | None, parts: Mapping[str, Path | None], places: Sequence[Path], *, with_image: bool
) -> str | dict[str, Path]:
    """What to load: a name or path, or a mapping once single parts or folders to look into are given."""
    from cygnet.checkpoints import catalogue, resolve_pipeline_folder

    given = {part: path for part, path in parts.items() if path is not None}
    if model is None and not given:
        return "tiny-i2v" if with_image else "tiny-t2v"
    if model is None:
        if "dit" not in given:
            raise RequestError(
                f"{', '.join(given)} given without a model; add --model NAME, or --dit FILE for the transformer",
                field="model",
            )
        return given
    is_name = catalogue.is_name(model) and not Path(model).exists()
    if not given and not (is_name and places):
        return model
    base: dict[str, Path] = {}
    if is_name:
        base |= dict(catalogue.resolve(model, places=places).items())
    else:
        folder = resolve_pipeline_folder(Path(model))
        base |= dict(folder.components.items())
        if folder.tokenizer is not None:
            base["tokenizer"] = folder.tokenizer
    return {**base, **given}


# The work ------------------------------------------------------------------------------------------------------------


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


def frames_for(seconds: float, fps: float, voice: Voice) -> int:
    """The length 4n+1 that comes nearest to ``--seconds``."""
    if not 0 < seconds <= 3600:
        raise RequestError(f"seconds is {seconds:g}; it must be above 0 and at most 3600", field="seconds")
    num_frames = 4 * max(0, round((seconds * fps - 1) / 4)) + 1
    voice.note(f"note: {seconds:g} s at {fps:g} frames per second: {num_frames} frames ({num_frames / fps:.2f} s)")
    return num_frames


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
