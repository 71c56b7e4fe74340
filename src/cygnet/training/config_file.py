"""The TOML file of a training: read, checked completely before any work begins, and told what is wrong with it.

A fault is told with the field, the value and what is allowed. Relative paths are taken from the folder of the file.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cygnet.errors import RequestError
from cygnet.media.files import shorten
from cygnet.training.config import ModelFiles, Section, TrainConfig

MAX_CONFIG_BYTES = 2**20


def read_config(path: Path) -> TrainConfig:
    """The run that a file describes, with every relative path made absolute.

    Raises :class:`~cygnet.errors.RequestError` naming the first fields at fault.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise RequestError(f"{path.name!r} is larger than 1 MiB; that is no training file", field="config")
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{path.name!r} is not valid TOML: {error}", field="config") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path.name!r} is no UTF-8 text; save it as such", field="config") from None
    except OSError as error:
        reason = (error.strerror or "refused").lower()
        raise RequestError(f"{path.name!r} cannot be read: {reason}; check the path", field="config") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, tables of thousands of levels, NUL
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise RequestError(f"{path.name!r} cannot be read: {why}; mend it", field="config") from None
    return config_from(fields, path.absolute().parent)


def config_from(fields: dict[str, Any], home: Path) -> TrainConfig:
    """As :func:`read_config`, from the parsed fields; ``home`` is where relative paths begin."""
    try:
        config = TrainConfig.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        told = "; also ".join(_told(faults, fields)[:3])
        raise RequestError(told, field=_dotted(faults[0]["loc"]) or None) from None

    def placed(field: str, text: str | None) -> str | None:
        return None if text is None else str(_place(field, text, home))

    data = config.data.model_copy(
        update={name: placed(f"data.{name}", getattr(config.data, name)) for name in ("path", "validation", "cache")}
    )
    model: str | ModelFiles = config.model
    if isinstance(model, ModelFiles):
        model = ModelFiles(**{name: str(placed(f"model.{name}", text)) for name, text in model.paths().items()})
    elif (place := _place("model", model, home)).exists():
        model = str(place)
    sample = config.sample.model_copy(update={"image": placed("sample.image", config.sample.image)})
    preserve = config.preserve.model_copy(update={"path": placed("preserve.path", config.preserve.path)})
    output = placed("output", config.output)
    return config.model_copy(
        update={"data": data, "model": model, "sample": sample, "preserve": preserve, "output": output}
    )


def _place(field: str, text: str, home: Path) -> Path:
    if not text.strip():
        raise RequestError(f'{field} is empty; give a path ("." is the folder of the file)', field=field)
    try:
        place = (home / Path(text).expanduser()).resolve()
        place.exists()  # refuses what can be no name, such as one that is too long
    except (OSError, ValueError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise RequestError(f"{field} is {shorten(text)!r}, which is no usable path: {reason}", field=field) from None
    return place


def documented() -> list[tuple[str, str, str]]:
    """(field, default or "required", what it is) for every field, in the order of the file."""
    return list(_documented(TrainConfig, ""))


def _documented(section: type[BaseModel], prefix: str) -> Any:
    for name, field in section.model_fields.items():
        full = f"{prefix}{field.alias or name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _documented(inner, f"{full}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.default, default=str)
        yield full, default, " ".join((field.description or "").split())


def _dotted(place: tuple[int | str, ...]) -> str:
    """The field, without the names that a choice of types puts behind it."""
    named = [
        str(part)
        for depth, part in enumerate(place)
        if depth == 0 or not (part in ("str", "bool", "ModelFiles") or str(part).startswith("literal["))
    ]
    return ".".join(named)


def _told(faults: list[Any], fields: dict[str, Any]) -> list[str]:
    """Each fault in words; those of the several types that one field may have are told as one."""
    told: dict[str, str] = {}
    for fault in faults:
        words = _in_words(fault, fields)
        given, must, allowed = words.partition("; it must be ")
        first = f"{given}{must}" if must else words
        told[first] = f"{told[first]} or {allowed}" if must and first in told else words
    return list(told.values())


def _in_words(fault: Any, fields: dict[str, Any]) -> str:
    name = _dotted(fault["loc"])
    value = repr(fault.get("input"))
    value = value if len(value) <= 80 else value[:79] + "…"
    match fault["type"]:
        case "extra_forbidden":
            section: type[BaseModel] = TrainConfig
            for part in fault["loc"][:-1]:
                inner = section.model_fields[part].annotation if part in section.model_fields else None
                section = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else ModelFiles
            known = [field.alias or key for key, field in section.model_fields.items()]
            close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
            return f"{name} is no field; {hint}"
        case "missing":
            what = {full: told for full, _, told in documented()}.get(name, "")
            return f"{name} is missing{': ' + what if what else ''}"
        case "value_error":
            told = str(fault["ctx"]["error"])
            return f"{name}: {told}" if name else told
        case _:
            allowed = fault["msg"].removeprefix("Input should be ")
            return f"{name} is {value}; it must be {allowed}"
