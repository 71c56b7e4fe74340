"""``cygnet data``: look at a data set before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cygnet.cli.options import Debug, Json, Quiet
from cygnet.cli.output import Voice, escaped, table
from cygnet.errors import RequestError

if TYPE_CHECKING:
    from cygnet.training.config import DataConfig

Action = Literal["check"]


def data(
    action: Annotated[Action, Parameter(name="ACTION")],
    path: Annotated[Path, Parameter(name="PATH")],
    /,
    *,
    sizes: Annotated[tuple[str, ...], Parameter(name="--size", negative=(), metavar="WxH")] = (),
    frames: Annotated[tuple[int, ...], Parameter(name="--frames", negative=(), metavar="N")] = (),
    fps: float = 16.0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Find what is wrong with a data set: unreadable, too short or too small clips, missing or odd captions.

    Decodes everything once. The exit code is 1 if there is something that training would refuse.

    Parameters
    ----------
    action
        check.
    path
        A folder of videos and pictures with .txt captions beside them, a .jsonl list, tar shards, or the .toml file of
        a training, whose own sizes, lengths and rate are then used; its data.validation and preserve.path are looked
        at as well.
    sizes
        Sizes that training will use, such as 832x480; may be given again. Default: 832x480.
    frames
        Lengths that training will use, such as 81; may be given again. Default: 81.
    fps
        Frames per second at which clips are read.
    """
    from cygnet.training.check import check_items
    from cygnet.training.config_file import read_config
    from cygnet.training.dataset import read_items

    if path.suffix.lower() == ".toml":
        if sizes or frames:
            raise RequestError(
                "a .toml file has its own sizes and lengths; leave --size and --frames out", field="size"
            )
        config = read_config(path)
        settings = config.data
        others = {"data.validation": settings.validation, "preserve.path": config.preserve.path}
    else:
        given = {name: list(value) for name, value in (("sizes", sizes), ("frames", frames)) if value}
        settings, others = _checked({"path": str(path), "fps": fps, **given}), {}
    voice = Voice(as_json=json, quiet=quiet)

    def tell(done: int, total: int) -> None:
        if done % 50 == 0 and done:
            voice.note(f"looked at {done} of {total}")

    # Each set is looked for before any is decoded.
    sets = {"data.path": read_items(Path(settings.path))}
    sets |= {field: read_items(Path(place), field) for field, place in others.items() if place is not None}
    reports = {field: check_items(items, settings, tell) for field, items in sets.items()}
    lines: list[str] = []
    for field, report in reports.items():
        rows: list[tuple[str, ...]] = [("CLIP", "WEIGHT", "WHAT")]
        rows += [(escaped(it.name), it.weight, escaped(it.what)) for it in report.findings]
        lines += table(rows) if report.findings else []
        counts = ", ".join(f"{count} of {bucket}" for bucket, count in report.buckets.items())
        whose = f" of {field}" if len(reports) > 1 else ""
        lines.append(f"{report.good} of {report.total} clips{whose} can be trained on{': ' + counts if counts else ''}")
    value, *further = ({"set": field, **report.to_json()} for field, report in reports.items())
    voice.result({**value, "others": further} if further else value, lines)
    return 0 if all(report.good == report.total for report in reports.values()) else 1


def _checked(fields: dict[str, object]) -> DataConfig:
    from pydantic import ValidationError

    from cygnet.training.config import DataConfig

    try:
        return DataConfig.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = str(fault["loc"][0])
        raise RequestError(f"{field}: {fault['msg'].removeprefix('Value error, ')}", field=field) from None
