"""``cygnet launch`` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Studio:
    """A running ``cygnet launch``."""

    url: str
    base: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait()


def launched(
    base: Path, *more: str, port: int = 0, program: tuple[str, ...] = ("-m", "cygnet"), **environment: str
) -> Studio:
    """Start a studio on a port, or on one that is free, and wait until it listens; ``program`` stands in for it."""
    command = [sys.executable, *program, "launch", "--port", str(port), "--base-directory", str(base), *more]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"http://\S+", line):
            studio = Studio(found[0], base, process, lines)
            threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
            return studio
    raise AssertionError("".join(lines))
