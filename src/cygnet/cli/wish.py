"""What a command line asks for, in the words of the Python API: prompt, model, LoRAs, tables, seeds and lengths."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cygnet.cli.execution import ExecutionOptions
from cygnet.cli.options import DASH
from cygnet.cli.output import Voice, error_line
from cygnet.errors import ModelNotFoundError, RequestError

MAX_COUNT = 1_000
MAX_DRAWN_SEED = 2**32
"""Drawn seeds stay short enough to be read aloud and to stand in a file name."""
MAX_STDIN_BYTES = 1_000_000


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
    if policy in ("easy", "calibrate"):
        raise RequestError(
            f"cache_table is given, and cache {policy} takes none; leave it out, or choose mag or tea",
            field="cache_table",
        )
    name = error_line(repr(path.name))
    try:
        given: Any = json.loads(path.read_bytes()) if path.suffix == ".json" else read_receipt(path)
    except (OSError, ValueError, RecursionError) as error:  # the last: nested too deep
        raise RequestError(
            f"cache_table {name} cannot be read as JSON: {error_line(str(error))[:200]}", field="cache_table"
        ) from None
    if isinstance(given, dict):
        cached = given.get("cached")
        tables = cached.get("tables") if isinstance(cached, dict) else None
        if not isinstance(tables, dict) or policy not in tables:
            raise RequestError(
                f"cache_table {name} holds no table for cache {policy!r}; make one with --cache calibrate and enough "
                "steps, or give a JSON list of numbers",
                field="cache_table",
            )
        given = tables[policy]
    if not isinstance(given, list) or not all(type(value) in (int, float) for value in given):
        raise RequestError(f"cache_table {name} is no list of numbers", field="cache_table")
    try:
        return [float(value) for value in given]
    except OverflowError:  # a whole number of hundreds of digits
        raise RequestError(
            f"cache_table {name} holds a number too large for any use; give a JSON list of ratios or coefficients",
            field="cache_table",
        ) from None


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
        found = catalogue.look_for(model, places=places)
        lacks = not set(found.missing) <= set(given)
        base |= dict((catalogue.resolve(model, places=places) if lacks else found.paths).items())  # or says what lacks
    else:
        folder = resolve_pipeline_folder(Path(model))
        base |= dict(folder.components.items())
        if folder.tokenizer is not None:
            base["tokenizer"] = folder.tokenizer
    return {**base, **given}


def planned_source(
    model: str | None, parts: Mapping[str, Path | None], places: Sequence[Path], voice: Voice, *, with_image: bool
) -> str | dict[str, Path]:
    """As :func:`model_source` for a plan, which needs no weights: a published model may be absent, or here in part."""
    from cygnet.checkpoints import catalogue
    from cygnet.checkpoints.layouts import COMPONENT_WORDS

    if model is not None and catalogue.is_name(model) and not Path(model).exists():
        found = catalogue.look_for(model, places=places)
        given = {part: f"--{part.replace('_', '-')}" for part, path in parts.items() if path is not None}
        if not set(found.missing) <= set(given) and found.entry.embedded is None:
            missing = ", ".join(COMPONENT_WORDS[part] for part in found.missing)
            if given:
                raise ModelNotFoundError(
                    f"{found.entry.name} is not complete on this machine ({missing} missing), and a plan by its "
                    f"published sizes would not be one of the file given; leave out {' and '.join(given.values())}, or "
                    f"run: cygnet pull {found.entry.name}"
                )
            if places:
                voice.note(
                    f"note: {found.entry.name} is complete neither in --model-paths nor elsewhere on this machine "
                    f"({missing} missing); planned from its published sizes"
                )
            return model
    return model_source(model, parts, places, with_image=with_image)


def check_places(places: Sequence[Path]) -> None:
    """Raise :class:`~cygnet.errors.RequestError` for a folder of ``--model-paths`` that is not there."""
    for place in places:
        if not place.exists():
            raise RequestError(f"--model-paths {error_line(str(place))[:200]} does not exist", field="model_paths")


def frames_for(seconds: float, fps: float, voice: Voice) -> int:
    """The length 4n+1 that comes nearest to ``--seconds``."""
    if not 0 < seconds <= 3600:
        raise RequestError(f"seconds is {seconds:g}; it must be above 0 and at most 3600", field="seconds")
    num_frames = 4 * max(0, round((seconds * fps - 1) / 4)) + 1
    voice.note(f"note: {seconds:g} s at {fps:g} frames per second: {num_frames} frames ({num_frames / fps:.2f} s)")
    return num_frames
