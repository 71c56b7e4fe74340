"""What the command says: results on stdout, notes and errors on stderr, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cygnet.errors import CygnetError


def escaped(text: str) -> str:
    """``text`` with control characters escaped, so that no terminal obeys what came from a file or a prompt."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def error_line(text: str) -> str:
    """``text`` on one line, with control characters escaped."""
    return escaped(" ".join(text.split()))


def print_error(error: CygnetError, *, as_json: bool) -> None:
    """The one message about a failure: an object on stdout with ``as_json``, a line on stderr otherwise."""
    message = error_line(str(error))
    if as_json:
        field = getattr(error, "field", None)
        print_json({"error": {"code": error.code, "message": message, "field": field}, **error.done})
        return
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()


def print_json(value: Mapping[str, Any]) -> None:
    """One object as one line; it is written whole."""
    print_line(json.dumps(value, ensure_ascii=True, allow_nan=False))


def print_line(text: str) -> None:
    """One line of results."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass(frozen=True, kw_only=True)
class Voice:
    """How a verb talks: ``as_json`` one object at the end, ``as_stream`` also a line per event, ``quiet`` no notes."""

    as_json: bool = False
    as_stream: bool = False
    quiet: bool = False

    def note(self, text: str) -> None:
        """Something worth knowing, for people."""
        if not self.quiet:
            try:
                sys.stderr.write(f"{error_line(text)}\n")
                sys.stderr.flush()
            except OSError:  # nobody reads notes any more; the work goes on
                return

    def event(self, kind: str, **values: Any) -> None:
        """A line of the event stream, if that was asked for."""
        if self.as_stream:
            print_json({"event": kind, **values})

    def result(self, value: Mapping[str, Any], lines: list[str]) -> None:
        """The result: ``value`` for programs or ``lines`` for people."""
        if self.as_stream:
            print_json({"event": "done", **value})
        elif self.as_json:
            print_json(value)
        else:
            for line in lines:
                print_line(line)


def gigabytes(count: float) -> str:
    """Bytes in words: ``17.6 GB``, ``41 MB``."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns; the last column is as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
