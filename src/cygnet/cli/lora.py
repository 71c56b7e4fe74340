"""``cygnet lora``: what a LoRA file is, and new ones from it: converted, merged, extracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from cygnet.cli.interrupts import cancelled_by_interrupt
from cygnet.cli.options import Debug, Json, Partial, Places, Quiet, Switch, Whole
from cygnet.cli.output import Voice, error_line, escaped, gigabytes
from cygnet.cli.progress import open_display
from cygnet.cli.wish import find_loras, parse_loras
from cygnet.errors import RequestError

if TYPE_CHECKING:
    import torch

    from cygnet.checkpoints import ComponentWeights

lora = App(name="lora", help="Inspect, convert, merge and extract LoRAs.", help_format="plaintext")

Form = Annotated[Literal["comfyui", "diffusers"], Parameter(name="--to")]
Out = Annotated[Path, Parameter(name="--out", metavar="FILE")]
Dtype = Annotated[str | None, Parameter(metavar="NAME")]
Model = Annotated[str, Parameter(metavar="NAME|PATH")]


@lora.command
def inspect(
    file: Annotated[str, Parameter(name="FILE")],
    /,
    *,
    model_paths: Places = (),
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Say what a LoRA is: whose names, which kinds, ranks and alphas, what it changes, and for which model.

    Only its header and its alphas are read.

    Parameters
    ----------
    file
        The file, or its name in a loras folder.
    """
    from cygnet.checkpoints.lora.finding import find_lora
    from cygnet.checkpoints.lora.inspection import inspect_lora

    found = inspect_lora(find_lora(file, model_paths))
    Voice(as_json=json).result(found.to_json(), [escaped(line) for line in found.lines()])
    return 0


@lora.command
def convert(
    file: Annotated[str, Parameter(name="FILE")],
    /,
    *,
    out: Out,
    to: Form = "comfyui",
    dtype: Dtype = None,
    overwrite: Switch = False,
    model_paths: Places = (),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Write a LoRA of any dialect under the names that ComfyUI, or Diffusers, expects; print the path.

    Parameters
    ----------
    file
        The file, or its name in a loras folder.
    out
        Where to write it: a .safetensors file.
    to
        comfyui, which holds every kind of change and which most programs read; or diffusers, for low-rank ones alone.
    dtype
        Store it as float32, float16 or bfloat16. Default: as it is.
    overwrite
        Replace a file of that name.
    """
    from cygnet.checkpoints.lora.convert import convert_lora
    from cygnet.checkpoints.lora.finding import find_lora

    voice = Voice(as_json=json, quiet=quiet)
    path = convert_lora(find_lora(file, model_paths), _target(out), to, dtype=_dtype(dtype), overwrite=overwrite)
    return _done(voice, path, {"form": to})


@lora.command
def merge(
    *files: Annotated[str, Parameter(name="FILE[:STRENGTH]")],
    out: Out,
    base: Annotated[str | None, Parameter(metavar="NAME|PATH")] = None,
    rank: Whole = None,
    to: Form = "comfyui",
    dtype: Dtype = None,
    allow_partial_lora: Partial = False,
    overwrite: Switch = False,
    model_paths: Places = (),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Merge LoRAs into a model's transformer, with --base, or several LoRAs into one; print the path.

    Parameters
    ----------
    files
        LoRAs with their strengths: style.safetensors:0.8.
    out
        Where to write it: a .safetensors file.
    base
        The model to merge them into: a name that `cygnet models` lists, or a file or folder.
    rank
        Of several LoRAs, keep the largest so many singular values of each matrix; otherwise their ranks add up.
    to
        Names of the LoRA that is written: comfyui or diffusers.
    dtype
        Store it as float32, float16 or bfloat16. Default: as the model is, or the LoRAs are.
    overwrite
        Replace a file of that name.
    """
    from cygnet.checkpoints.lora.combine import merge_into_model, merge_loras
    from cygnet.checkpoints.lora.merging import with_loras

    voice = Voice(as_json=json, quiet=quiet)
    loras = find_loras(parse_loras(files), model_paths)
    if not loras:
        raise RequestError("no LoRA is given; name the files to merge: cygnet lora merge A.safetensors:0.8 --out B")
    if base is not None and rank is not None:
        raise RequestError("--rank is for merging LoRAs into one; leave it out with --base", field="rank")
    target, kind = _target(out), _dtype(dtype)
    with open_display(voice) as display:
        if base is not None:
            weights = with_loras(_transformer(base, model_paths), loras, allow_partial=allow_partial_lora)
            for told in weights.coverage:
                voice.note(f"LoRA {told}")
            path = merge_into_model(weights, target, dtype=kind, overwrite=overwrite, on_progress=display.report)
            return _done(voice, path, {"loras": [str(told) for told in weights.coverage]})
        made = merge_loras(
            loras, target, rank=rank, form=to, dtype=kind, overwrite=overwrite, on_progress=display.report
        )
    for name, count in made.left_out:
        voice.note(f"{name}: {count} module{'' if count == 1 else 's'} left out, part of no Wan transformer")
    if made.kept is not None:
        voice.note(f"rank {rank} holds {made.kept:.2%} of the energy of what it was cut from")
    left_out = [{"file": name, "modules": count} for name, count in made.left_out]
    return _done(voice, made.path, {"modules": made.modules, "kept": made.kept, "left_out": left_out})


@lora.command
def extract(
    base: Annotated[str, Parameter(name="BASE")],
    tuned: Annotated[str, Parameter(name="TUNED")],
    /,
    *,
    out: Out,
    rank: Whole = 32,
    to: Form = "comfyui",
    dtype: Dtype = None,
    device: Annotated[str, Parameter(metavar="NAME")] = "cpu",
    overwrite: Switch = False,
    model_paths: Places = (),
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Write the difference of two models as a LoRA, say how much of it the rank holds, and print the path.

    Parameters
    ----------
    base
        The model that the LoRA will be used with: a name that `cygnet models` lists, or a file or folder.
    tuned
        The model that the two together should be.
    out
        Where to write it: a .safetensors file.
    rank
        Singular values to keep of each matrix. Biases, norms and modulation are kept whole.
    to
        comfyui or, if nothing but matrices differ, diffusers.
    dtype
        Store it as float32, float16 or bfloat16. Default: float32.
    device
        Where matrices are decomposed: cpu, cuda or cuda:N.
    overwrite
        Replace a file of that name.
    """
    from cygnet.checkpoints.lora.extract import extract_lora
    from cygnet.runtime.precision import parse_device

    voice = Voice(as_json=json, quiet=quiet)
    assert rank is not None
    with open_display(voice) as display, cancelled_by_interrupt(voice.note) as cancel:
        made = extract_lora(
            _transformer(base, model_paths),
            _transformer(tuned, model_paths),
            _target(out),
            rank=rank,
            form=to,
            dtype=_dtype(dtype),
            device=parse_device(device),
            overwrite=overwrite,
            on_progress=display.report,
            cancel=cancel,
        )
    voice.note(f"{made.modules} modules differ; rank {rank} holds {made.kept:.4%} of the energy of the difference")
    for module, kept in made.worst:
        voice.note(f"  {module}: {kept:.2%}")
    worst = [{"module": module, "kept": kept} for module, kept in made.worst]
    value = {"modules": made.modules, "unchanged": made.unchanged, "rank": rank, "kept": made.kept, "worst": worst}
    return _done(voice, made.path, value)


# What was asked for --------------------------------------------------------------------------------------------------


def _target(path: Path) -> Path:
    if path.suffix.lower() != ".safetensors":
        raise RequestError(f"--out {error_line(path.name)!r} must end in .safetensors", field="out")
    return path


def _dtype(name: str | None) -> torch.dtype | None:
    from cygnet.runtime.precision import parse_dtype

    return None if name is None else parse_dtype(name)


def _transformer(text: str, places: Sequence[Path]) -> ComponentWeights:
    """The weights of a named model's transformer, or of a file's or folder's."""
    from cygnet.checkpoints import catalogue, read_component

    if catalogue.is_name(text) and not Path(text).exists():
        return read_component(catalogue.resolve(text, places=places)["dit"], "dit")
    return read_component(Path(text), "dit")


def _done(voice: Voice, path: Path, value: Mapping[str, Any]) -> int:
    size = path.stat().st_size
    voice.note(f"wrote {path.name} ({gigabytes(size)})")
    voice.result({"path": str(path), "bytes": size, **value}, [str(path)])
    return 0
