"""``cygnet generate``: a prompt, or a picture and a prompt, becomes a video."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Group, Parameter

from cygnet.cli.execution import ExecutionOptions
from cygnet.cli.interrupts import cancelled_by_interrupt
from cygnet.cli.making import make_all
from cygnet.cli.options import Debug, File, Json, Loras, Number, Partial, Places, Quiet, Switch, Text, Whole
from cygnet.cli.output import Voice
from cygnet.cli.progress import open_display
from cygnet.cli.wish import (
    Wish,
    check_places,
    find_loras,
    model_source,
    parse_loras,
    read_cache_table,
    read_prompt,
    recipe_loras,
    seeds_of,
)

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
    check_places(model_paths)
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
