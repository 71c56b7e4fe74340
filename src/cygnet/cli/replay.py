"""``cygnet replay``: make a video again from its receipt, and compare."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cygnet.cli.interrupts import cancelled_by_interrupt
from cygnet.cli.making import write_stream
from cygnet.cli.options import Debug, File, Json, Loras, Places, Quiet, Switch
from cygnet.cli.output import Voice, error_line
from cygnet.cli.progress import open_display
from cygnet.cli.targets import DEFAULT_SUFFIX, Target, check_target
from cygnet.cli.wish import find_loras, model_source, parse_loras
from cygnet.errors import CygnetError, MediaError, ModelNotFoundError, RequestError
from cygnet.types import Tiles

if TYPE_CHECKING:
    from cygnet.assembly import Execution
    from cygnet.pipelines.request import GenerateRequest

_INPUTS = ("image", "last_image", "video")


def replay(
    file: Annotated[Path, Parameter(name="FILE")],
    /,
    *,
    check: Switch = False,
    image: File = None,
    last_image: File = None,
    video: File = None,
    model: Annotated[str | None, Parameter(metavar="NAME|PATH")] = None,
    dit: File = None,
    vae: File = None,
    text_encoder: File = None,
    image_encoder: File = None,
    tokenizer: File = None,
    lora: Loras = (),
    model_paths: Places = (),
    device: Annotated[str | None, Parameter(metavar="NAME")] = None,
    stream: Switch = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Make a video again from the receipt inside or beside it, and say how far the pixels are apart.

    On the same machine with the same versions the difference is 0.

    Parameters
    ----------
    file
        A video that cygnet made, a folder of its frames, or the receipt beside it (.json).
    check
        Keep nothing, and return 1 unless every pixel is equal.
    image
        The picture that the video began with; found by its name beside the video or in the current folder if absent.
    last_image
        The picture that it ended with, likewise.
    video
        The source video, likewise.
    model
        The model, if the receipt names none that is on this machine.
    dit
        A file for the diffusion transformer, likewise; and so on.
    lora
        A LoRA that it was made with, as for generate; those found by their name nearby need not be given.
    device
        Where to run; by default where the video was made, if this machine has that.
    stream
        Read the large networks block by block, in a few GB of memory; without it, if they do not fit.
    """
    from cygnet.media.receipt import MADE_BY_WORKFLOW, read_receipt

    voice = Voice(as_json=json, quiet=quiet)
    receipt = read_receipt(file)
    if receipt.get("made_by") == MADE_BY_WORKFLOW:
        raise RequestError(f"a workflow made {file.name}; make it again with: cygnet run {file}", field="file")
    request = _part(receipt, "request")
    given = {"image": image, "last_image": last_image, "video": video}
    images = {name: _find_input(name, described, given, file) for name, described in _part(receipt, "inputs").items()}
    parts = {
        "dit": dit, "vae": vae, "text_encoder": text_encoder, "image_encoder": image_encoder, "tokenizer": tokenizer,
    }  # fmt: skip
    for name, offered in given.items():
        if offered is not None and name not in images:
            option = f"--{name.replace('_', '-')}"
            raise RequestError(f"the video was made without {name}; leave {option} out", field=name)
    source = _source(receipt, model, parts, model_paths)
    for name in ("machine", "versions"):
        _part(receipt, name)
    original = _original(file)
    notes: list[str] = []
    with (
        open_display(voice) as display,
        cancelled_by_interrupt(voice.note) as cancel,
        _folder_for(file, check) as folder,
    ):
        import cygnet

        _use_recorded_threads(receipt)
        place = device or _recorded_device(receipt, notes)
        wan = cygnet.load(
            source,
            device=place,
            dtype=_recorded_dtype(receipt, place),
            offload="stream" if stream else True,
            loras=find_loras(parse_loras(lora), model_paths) if lora else recorded_loras(receipt, file, model_paths),
            allow_partial_loras=any(it.get("partial") is True for it in _loras(receipt)),
            execution=_recorded_execution(receipt),
            on_progress=display.report,
        )
        again = wan.replay(request, **images, on_progress=display.report, cancel=cancel)
        target = Target(folder=folder, stem=f"{_stem(file)}-replay", suffix=_suffix(file, again.request), exact=False)
        _check(target, again.request)
        made_from = again.receipt
        result = write_stream(again, target, inputs=images, overwrite=False)
        notes += [*changes(receipt, made_from), *result.notices]
        difference = compare(original, result.path) if original is not None else None
    for note in notes:
        voice.note(f"note: {note}")
    path = None if check else str(result.path)
    voice.result({"path": path, "difference": difference, "notices": notes}, _lines(path, difference))
    return 1 if check and (difference is None or not difference["identical"]) else 0


def _part(receipt: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = receipt.get(name)
    if not isinstance(part, dict):
        raise MediaError(f"the receipt has no {name!r} that can be read; it is damaged or from a later version")
    return part


def _original(file: Path) -> Path | None:
    """The video to compare with, if there is one."""
    if file.suffix.lower() != ".json":
        return file if file.exists() else None
    video = file.with_name(file.name.removesuffix(file.suffix))
    return video if video.exists() else None


def _find_input(name: str, described: object, given: Mapping[str, Path | None], file: Path) -> Path:
    """The picture or video that the original was made from: as given, or by its name nearby."""
    if name not in _INPUTS or not isinstance(described, dict):
        raise MediaError(f"the receipt names an input {error_line(repr(name))[:80]} that cygnet does not know")
    if (path := given[name]) is not None:
        return path
    recorded = described.get("name")
    option = f"--{name.replace('_', '-')}"
    if not isinstance(recorded, str) or Path(recorded).name != recorded:
        raise RequestError(f"the video was made from a {name}; give it with {option}", field=name)
    for folder in (file.absolute().parent, Path()):
        if (folder / recorded).is_file():
            return folder / recorded
    raise RequestError(
        f"the video was made from {error_line(repr(recorded))}, which is neither beside it nor in the current folder; "
        f"give it with {option}",
        field=name,
    )


def recorded_loras(receipt: Mapping[str, Any], file: Path, places: Sequence[Path] = ()) -> list[tuple[Path, float]]:
    """The LoRAs that the receipt names, found beside the video, in the current folder or in a loras folder."""
    recorded = _part(receipt, "model").get("loras", [])
    found = []
    for told in recorded if isinstance(recorded, list) else [recorded]:
        name, strength = (told.get("file"), told.get("strength")) if isinstance(told, dict) else (None, None)
        if not isinstance(name, str) or Path(name).name != name or not isinstance(strength, int | float):
            raise MediaError("the receipt's list of LoRAs cannot be read; it is damaged or from a later version")
        found.append((_find_lora(name, told.get("digest"), file, places), float(strength)))
    return found


def _find_lora(name: str, recorded: object, file: Path, places: Sequence[Path]) -> Path:
    """The file or folder of that name with the recorded digest; if none has it, the nearest of that name."""
    nearest = None
    for place in _places_of_lora(name, file, places):
        nearest = nearest or place
        if not isinstance(recorded, str) or _has_digest(place, recorded):
            return place
    if nearest is None:
        raise RequestError(
            f"the video was made with the LoRA {error_line(repr(name))}, which is neither beside it, nor in the "
            "current folder, nor in a loras folder; give it with --lora FILE:STRENGTH, or name the folder that holds "
            "loras with --model-paths",
            field="lora",
        )
    return nearest


def _places_of_lora(name: str, file: Path, places: Sequence[Path]) -> Iterator[Path]:
    from cygnet.checkpoints.lora.finding import loras_called

    if name in ("", ".."):  # a folder, but not by its name
        return
    yield from (folder / name for folder in (file.absolute().parent, Path()) if (folder / name).exists())
    yield from loras_called(name, places)  # last: it walks through folders


def _has_digest(lora: Path, recorded: str) -> bool:
    from cygnet.checkpoints.digest import digest
    from cygnet.checkpoints.open import open_weights

    try:
        return digest(open_weights(lora).files) == recorded
    except CygnetError:  # another thing of that name
        return False


def _source(
    receipt: Mapping[str, Any], model: str | None, parts: Mapping[str, Path | None], places: Sequence[Path]
) -> Any:
    recorded = _part(receipt, "model").get("name")
    if model is None and parts["dit"] is None:
        if not isinstance(recorded, str):
            raise ModelNotFoundError(
                "the receipt tells files, not a named model; give them with --model, or --dit, --vae, --text-encoder"
            )
        model = recorded
    return model_source(model, parts, places, with_image=False)


# Under the conditions of the first time ------------------------------------------------------------------------------


def _use_recorded_threads(receipt: Mapping[str, Any]) -> None:
    """Sums over another number of threads are rounded in another order."""
    import torch

    threads = _part(receipt, "machine").get("threads")
    if type(threads) is int and 1 <= threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)


def _recorded_device(receipt: Mapping[str, Any], notes: list[str]) -> str:
    import torch

    device = _part(receipt, "machine").get("device")
    if not isinstance(device, str):
        return "auto"
    kind = device.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        notes.append("the video was made on a GPU, which is absent here; pixels will differ a little")
        return "auto"
    return kind if kind in ("cpu", "cuda") else "auto"


def _recorded_dtype(receipt: Mapping[str, Any], device: str) -> str:
    """The ``--dtype`` that gives the recorded types: auto if that still does, else the transformer's."""
    from cygnet.assembly import COMPONENT_NAMES
    from cygnet.runtime.precision import parse_device, pick_dtype

    components = _part(_part(receipt, "model"), "components")
    recorded = {part: described.get("dtype") for part, described in components.items() if isinstance(described, dict)}
    place = parse_device(device)
    usual = {part: str(pick_dtype(part, place)).removeprefix("torch.") for part in COMPONENT_NAMES if part in recorded}
    dtype = recorded.get("dit")
    return "auto" if recorded == usual or not isinstance(dtype, str) else dtype


def _recorded_execution(receipt: Mapping[str, Any]) -> Execution:
    """How the networks computed; receipts from before that was written decoded in float32."""
    from cygnet.assembly import Execution
    from cygnet.runtime.attention import check_attention

    model = _part(receipt, "model")
    decoded = _part(_part(model, "components"), "vae").get("decode_dtype", "float32")
    attention, compiled = model.get("attention", "auto"), model.get("compile")
    tiles = _tiles(receipt)
    try:
        check_attention(str(attention))
    except RequestError:  # not on this machine; the comparison of the receipts says so
        attention = "auto"
    return Execution(
        attention=attention,
        compile=compiled if isinstance(compiled, bool) else "auto",
        decode_dtype=decoded if isinstance(decoded, str) else "float32",
        decode_tiles=tiles.get("decode", "auto"),
        encode_tiles=tiles.get("encode", "auto"),
        fp8=model.get("fp8") is True,
        weight_dtype=model.get("weight_dtype", "auto"),
    )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two receipts and can change pixels, in words."""
    found = []
    old, new = (_part(receipt, "model").get("components") or {} for receipt in (before, now))
    for part, described in new.items():
        recorded = old.get(part)
        if not isinstance(recorded, dict) or recorded.get("digest") != described["digest"]:
            found.append(f"the weights of {part} are not those that the video was made with")
        elif recorded.get("dtype") != described["dtype"]:
            found.append(f"{part} runs in {described['dtype']}; the first time in {_short(recorded.get('dtype'))}")
        elif recorded.get("decode_dtype", "float32") != (decoded := described.get("decode_dtype", "float32")):
            first = _short(recorded.get("decode_dtype", "float32"))
            found.append(f"{part} decodes in {decoded}; the first time in {first}")
    for name in ("attention", "compile", "fp8", "weight_dtype"):
        first, second = (_part(receipt, "model").get(name, "the usual way") for receipt in (before, now))
        if first != second:
            found.append(f"{name} is {_short(second)}; the first time {_short(first)}")
    first_tiles, tiles = _tiles(before), _tiles(now)
    for half in sorted(first_tiles.keys() | tiles.keys()):
        first, second = (it.get(half, "whole frames") for it in (first_tiles, tiles))
        if first != second:
            found.append(f"the VAE {_short(half)}s in {second}; the first time in {first}")
    kept = [[(it.get("digest"), it.get("strength")) for it in _loras(receipt)] for receipt in (before, now)]
    if kept[0] != kept[1]:
        found.append("the LoRAs or their strengths are not those that the video was made with")
    old_inputs = _part(before, "inputs")
    for name, described in _part(now, "inputs").items():
        recorded = old_inputs.get(name)
        if not isinstance(recorded, dict) or recorded.get("sha256") != described["sha256"]:
            found.append(f"{name} is not the one that the video was made from")
    for group in ("versions", "machine"):
        old_group = _part(before, group)
        for name, value in _part(now, group).items():
            if old_group.get(name) != value:
                found.append(f"{name} is {value}; the first time it was {_short(old_group.get(name))}")
    return found


def _tiles(receipt: Mapping[str, Any]) -> dict[str, str]:
    """The tiles in which the VAE worked, by half; raises MediaError for what are none."""
    recorded = receipt.get("tiles", {})
    try:
        if not isinstance(recorded, dict):
            raise RequestError("tiles are no table")
        return {half: str(Tiles.parse(size, "tiles")) for half, size in recorded.items()}
    except RequestError as error:
        raise MediaError("the receipt's tiles cannot be read; it is damaged or from a later version") from error


def _loras(receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    recorded = _part(receipt, "model").get("loras", [])
    return [it for it in recorded if isinstance(it, dict)] if isinstance(recorded, list) else []


def _short(value: object) -> str:
    return error_line(str(value)[:80])


# Where it goes, and how far it is from the first ---------------------------------------------------------------------


@contextmanager
def _folder_for(file: Path, check: bool) -> Iterator[Path]:
    """The folder of the original, or for a check one that vanishes afterwards."""
    if check:
        with tempfile.TemporaryDirectory(prefix="cygnet-replay-") as folder:
            yield Path(folder)
    else:
        yield file.parent


def _stem(file: Path) -> str:
    name = file.name.removesuffix(".json") if file.suffix.lower() == ".json" else file.name
    return Path(name).stem or "video"


def _suffix(file: Path, request: GenerateRequest) -> str:
    from cygnet.media.video import FORMATS

    name = Path(file.name.removesuffix(".json")) if file.suffix.lower() == ".json" else file
    suffix = name.suffix.lower()
    if suffix.removeprefix(".") in FORMATS:
        return suffix
    return ".png" if file.is_dir() or not suffix else DEFAULT_SUFFIX


def _check(target: Target, request: GenerateRequest) -> None:
    check_target(
        target,
        width=request.width,
        height=request.height,
        fps=request.fps,
        num_frames=request.num_frames,
        overwrite=False,
    )


def compare(first: Path, second: Path) -> dict[str, Any]:
    """How far the decoded pixels of two files are apart, in steps of 255: largest, mean, share that differs."""
    import numpy as np

    from cygnet.media.video_read import read_video

    old, new = read_video(first).frames, read_video(second).frames
    if old.shape != new.shape:
        return {"identical": False, "reason": f"{_shape(old.shape)} then, {_shape(new.shape)} now"}
    largest, total, differing = 0, 0, 0
    for before, after in zip(old, new, strict=True):
        apart = np.abs(before.astype(np.int16) - after.astype(np.int16))
        largest = max(largest, int(apart.max()))
        total += int(apart.sum(dtype=np.int64))
        differing += int(np.count_nonzero(apart))
    return {
        "identical": largest == 0,
        "max": largest,
        "mean": total / old.size,
        "share": differing / old.size,
    }


def _shape(shape: Sequence[int]) -> str:
    frames, height, width, _ = shape
    return f"{frames} frames of {width}x{height}"


def _lines(path: str | None, difference: Mapping[str, Any] | None) -> list[str]:
    lines = [] if path is None else [path]
    if difference is None:
        return [*lines, "nothing to compare with: only the receipt is there"]
    if "reason" in difference:
        return [*lines, f"cannot be compared: {difference['reason']}"]
    if difference["identical"]:
        return [*lines, "difference 0: every pixel is equal"]
    return [
        *lines,
        f"difference at most {difference['max']}, {difference['mean']:.4f} on average, of 255; "
        f"{difference['share']:.2%} of the values differ",
    ]
