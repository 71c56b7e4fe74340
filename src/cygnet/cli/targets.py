"""Where results go: what ``--out`` means, and names that are made from prompts without trusting them."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cygnet.cli.options import DASH
from cygnet.cli.output import error_line
from cygnet.errors import RequestError

DEFAULT_SUFFIX = ".mp4"
PLACEHOLDERS = ("prompt", "seed", "index", "model")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One result's place. An ``exact`` name is the user's own; another one gets a counter if it is taken."""

    folder: Path
    stem: str
    suffix: str
    exact: bool

    @property
    def path(self) -> Path:
        """The name that is wished for."""
        return self.folder / f"{self.stem}{self.suffix}"


def plan_targets(out: str | None, prompt: str, seeds: Sequence[int], model: str) -> list[Target]:
    """The place of each result, one per seed.

    ``out`` is None (a name from prompt and seed, in the current folder), a folder (likewise, in it), a file name (with
    the seed added if there are several), or a pattern with {prompt}, {seed}, {index} and {model}. Only ``out`` itself
    decides folders: what a prompt contributes is cleaned of separators. RequestError if the pattern is not understood
    or gives one name twice.
    """
    from cygnet.media.names import safe_label

    label = safe_label(prompt)
    if out is None:
        return [_automatic(Path(), label, seed) for seed in seeds]
    if out in ("", DASH) or any(ord(letter) < 32 for letter in out):
        shown = "-" if out == DASH else error_line(repr(out))
        raise RequestError(
            f"out is {shown}; give a file name, a folder, or a pattern such as videos/{{prompt}}.mp4", field="out"
        )
    if out.endswith(("/", os.sep)) or Path(os.path.expanduser(out)).is_dir():
        return [_automatic(Path(os.path.expanduser(out)), label, seed) for seed in seeds]
    if "{" in out or "}" in out:
        names = [
            _filled(out, {"prompt": label, "seed": seed, "index": index, "model": safe_label(model)})
            for index, seed in enumerate(seeds, start=1)
        ]
        if len(set(names)) < len(names):
            raise RequestError(
                f"out {error_line(repr(out))} gives the same name to several videos; add {{seed}} or {{index}}",
                field="out",
            )
        return [_exact(Path(os.path.expanduser(name))) for name in names]
    path = Path(os.path.expanduser(out))
    if len(seeds) == 1:
        return [_exact(path)]
    return [_exact(path.with_name(f"{path.stem}-{seed}{path.suffix}")) for seed in seeds]


def _automatic(folder: Path, label: str, seed: int) -> Target:
    return Target(folder=folder, stem=f"{label}-{seed}", suffix=DEFAULT_SUFFIX, exact=False)


def _exact(path: Path) -> Target:
    return Target(folder=path.parent, stem=path.stem, suffix=path.suffix, exact=True)


def _filled(pattern: str, values: dict[str, str | int]) -> str:
    try:
        pieces = list(string.Formatter().parse(pattern))
        for _, name, spec, conversion in pieces:
            if name is not None and (name not in values or conversion is not None or "{" in (spec or "")):
                shown = error_line(name) + (f"!{conversion}" if conversion else "")
                raise RequestError(
                    f"out has {{{shown}}}; known are {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}",
                    field="out",
                )
            if spec and not (spec.isdigit() and len(spec) <= 3):
                raise RequestError(
                    f"out has the format {error_line(repr(spec))}; only a width such as {{index:03}} is known",
                    field="out",
                )
        return pattern.format(**values)
    except (ValueError, IndexError, KeyError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"out is {error_line(repr(pattern))}, which is no pattern: {error}; write {{{{ for a brace", field="out"
        ) from error


def check_target(target: Target, *, width: int, height: int, fps: float, num_frames: int, overwrite: bool) -> list[str]:
    """Everything about a place that can be known before the work; writes nothing. Returns notes on the format.

    Raises as :func:`cygnet.media.video.check_output`, and RequestError if a receipt of that name is in the way.
    """
    from cygnet.media.receipt import check_sidecar, sidecar_path
    from cygnet.media.video import check_output

    path = target.path if target.exact else _first_free(target)
    plan = check_output(path, width=width, height=height, fps=fps, num_frames=num_frames, overwrite=overwrite)
    check_sidecar(path)
    if target.exact and not overwrite:
        sidecar = sidecar_path(path)
        if os.path.lexists(sidecar):
            raise RequestError(
                f"{error_line(repr(sidecar.name))} exists already, and the receipt would go there; choose another name "
                "or add --overwrite",
                field="out",
            )
    return list(plan.notes)


def _first_free(target: Target) -> Path:
    for count in range(1, 10_000):
        stem = target.stem if count == 1 else f"{target.stem}-{count}"
        path = target.folder / f"{stem}{target.suffix}"
        if not os.path.lexists(path) and not _is_taken_by_frames(path):
            return path
    return target.path


def _is_taken_by_frames(path: Path) -> bool:
    """Single frames go into a folder that has the name without its suffix."""
    return path.suffix == ".png" and os.path.lexists(path.with_suffix(""))


@contextmanager
def reserved(target: Target) -> Iterator[Path]:
    """The final path for the length of the block; an automatic name is taken for us alone, and given back if unused."""
    from cygnet.media.names import release, unused_path
    from cygnet.media.receipt import sidecar_path

    if target.exact:
        yield target.path
        return
    taken: list[Path] = []
    try:
        while True:
            path = unused_path(target.folder, target.stem, target.suffix)
            taken.append(path)
            if not os.path.lexists(sidecar_path(path)):  # a receipt that lost its video keeps its name
                break
        for unusable in taken[:-1]:
            release(unusable)
        yield taken[-1]
    finally:
        for path in taken:
            release(path)
