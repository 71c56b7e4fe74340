"""``cygnet plan``: what a video would take, before any of it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from cygnet.cli.execution import ExecutionOptions
from cygnet.cli.options import Debug, File, Json, Loras, Number, Partial, Places, Quiet, Switch, Text, Whole
from cygnet.cli.output import Voice, gigabytes, table
from cygnet.cli.wish import (
    check_places,
    find_loras,
    frames_for,
    parse_loras,
    planned_source,
    read_cache_table,
    read_prompt,
    recipe_loras,
    seeds_of,
)
from cygnet.errors import ModelNotFoundError, OutOfMemory, OutputError, RequestError

if TYPE_CHECKING:
    from cygnet.planning import Plan

_WHAT = Group.create_ordered("The video, as for generate")
_HOW = Group.create_ordered("How it would be made")
_WITH = Group.create_ordered("The model")
_COMPUTED = Group.create_ordered("How it would be computed")
_WHERE = Group.create_ordered("The machine")
_REST = Group.create_ordered("Taken from a command line of generate, without effect")


def plan(
    prompt: Annotated[str | None, Parameter(name="PROMPT")] = None,
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
    count: Annotated[Whole, Parameter(group=_HOW)] = None,
    steps: Annotated[Whole, Parameter(group=_HOW)] = None,
    guidance: Annotated[Number, Parameter(group=_HOW)] = None,
    shift: Annotated[Number, Parameter(group=_HOW)] = None,
    solver: Annotated[str | None, Parameter(group=_HOW, metavar="NAME")] = None,
    guidance_until: Annotated[Number, Parameter(group=_HOW)] = None,
    guidance_rest: Annotated[str | None, Parameter(group=_HOW, metavar="NAME")] = None,
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
    device_memory: Annotated[Text, Parameter(group=_WHERE, metavar="SIZE")] = None,
    host_memory: Annotated[Text, Parameter(group=_WHERE, metavar="SIZE")] = None,
    calibrate: Annotated[Switch, Parameter(group=_WHERE)] = False,
    seed: Annotated[Whole, Parameter(group=_REST, show=False)] = None,
    out: Annotated[str | None, Parameter(group=_REST, show=False)] = None,
    overwrite: Annotated[Switch, Parameter(group=_REST, show=False)] = False,
    json: Json = False,
    json_stream: Annotated[Switch, Parameter(group=_REST, show=False)] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Say what a video would take: memory, disk, and time for each phase, and where the weights would be and why.

    Takes the options of `cygnet generate`, which decides in the same way. No weight is read, and those of a published
    model need not be on this machine. Returns 1, and names the nearest request that fits, if this one does not.

    Parameters
    ----------
    prompt
        The prompt; one of usual length if absent.
    device_memory
        Plan for a CUDA device with this much free, such as 24GiB, whether or not this machine has one.
    host_memory
        Plan for a machine with this much memory free.
    calibrate
        Measure this machine first, a few seconds; the figures are kept, and times are guesses without them.
    """
    import cygnet
    from cygnet.api import USUAL_PROMPT
    from cygnet.planning import Machine, calibrate_machine, subject_of

    voice = Voice(as_json=json or json_stream, quiet=quiet)
    if calibrate:
        voice.note("note: measuring this machine")
        try:
            rates, _ = calibrate_machine(device)
            voice.note(f"note: measured {rates.device}, torch {rates.version}, {rates.threads} threads; kept")
        except OutputError as unkept:  # the plan goes by guesses, and says so
            voice.note(f"note: {unkept}")
    parts = {
        "dit": dit, "vae": vae, "text_encoder": text_encoder, "image_encoder": image_encoder, "tokenizer": tokenizer,
    }  # fmt: skip
    check_places(model_paths)
    source = planned_source(model, parts, model_paths, voice, with_image=image is not None)
    loras = find_loras(parse_loras(lora), model_paths)
    if not loras:
        try:
            loras = recipe_loras(recipe, model, dit, model_paths)
        except ModelNotFoundError as absent:  # a plan needs no weights; generate does
            voice.note(f"note: planned without the LoRA of the recipe: {absent}")
    if seconds is not None:
        if frames is not None:
            raise RequestError("frames and seconds are both given; give one of them", field="seconds")
        place = Machine.of(device, device_memory=device_memory, host_memory=host_memory).device
        defaults = subject_of(source, place, dtype).defaults
        frames = frames_for(seconds, fps or defaults.fps, voice)
    options: dict[str, Any] = {
        "strength": strength, "size": size, "num_frames": frames, "fps": fps, "negative_prompt": negative,
        "num_steps": steps, "guidance_scale": guidance, "shift": shift, "solver": solver,
        "guidance_until": guidance_until, "guidance_rest": guidance_rest, "recipe": recipe, "cache": cache,
        "cache_table": read_cache_table(cache_table, cache),
    }  # fmt: skip
    many = len(seeds_of(seed, count))
    made = cygnet.plan(
        source,
        USUAL_PROMPT if prompt is None else read_prompt(prompt),
        image=image,
        last_image=last_image,
        video=video,
        device=device,
        dtype=dtype,
        offload="stream" if stream else None if many > 1 else True,  # as generate has it
        loras=loras,
        allow_partial_loras=allow_partial_lora,
        execution=execution.chosen(),
        device_memory=device_memory,
        host_memory=host_memory,
        **options,
    )
    value = {**made.to_json(), "count": many}
    if not made.fits:
        if not voice.as_json:
            voice.result({}, lines_of(made, many))
        error = OutOfMemory(f"this does not fit: {made.refusal()}")
        error.done = {"plan": value}
        raise error
    voice.result(value, lines_of(made, many))
    return 0


def lines_of(plan: Plan, count: int) -> list[str]:
    """The plan for people."""
    from cygnet.planning.words import gib, shape

    request, machine = plan.request, plan.machine
    place = machine.rates.device if machine.rates is not None else f"{machine.device.type}, which is not this machine's"
    columns = ["memory"] if machine.shares else ["device", "host"]
    rows: list[tuple[str, ...]] = [("phase", *columns, "TFLOP", "time")]
    for stage in plan.stages:
        sizes = [gib(stage.host_peak)] if machine.shares else [gib(stage.device_peak), gib(stage.host_peak)]
        work = f"{stage.flops / 1e12:.3g}" if stage.flops else "-"
        rows.append((stage.phase, *sizes, work, duration(stage.seconds)))
    name = plan.model or plan.variant
    lines = [
        f"{name}: {shape(request)}, {request.num_steps} steps, on {place}",
        f"weights: {gigabytes(plan.files)} to read{'' if plan.present else ', not on this machine'}; "
        f"result about {gigabytes(plan.output)}",
        f"placement: {plan.held()}",
        f"because: {plan.why}",
        *table(rows),
    ]
    if machine.shares:
        lines.append(f"peak: {gib(plan.host_peak)}; free now: {gib(machine.host_free)} of {gib(machine.host_limit)}")
    else:
        lines.append(
            f"peak: {gib(plan.device_peak)} of the device, of which {gib(machine.device_free)} are free; "
            f"{gib(plan.host_peak)} of the host, of which {gib(machine.host_free)} are free"
        )
    if plan.seconds is not None:
        each = f" each, {duration(count * plan.seconds)} in all" if count > 1 else ""
        how = f"measured {machine.rates.date}" if plan.calibrated and machine.rates else NOT_MEASURED
        lines.append(f"time: {duration(plan.seconds)}{each} ({how})")
    else:
        lines.append("time: unknown for a device that is not here")
    lines += [f"assumed: {words}" for words in plan.assumes]
    return lines


NOT_MEASURED = "a guess: this machine was not measured; run cygnet plan --calibrate once"


def duration(seconds: float | None) -> str:
    """Seconds in words; "-" for none."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
