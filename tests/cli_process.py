"""What a command leaves, and the command as a process of its own for tests with signals and pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Stdout, which must be one JSON object on one line and nothing else."""
        assert self.out.endswith("}\n")
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Command = Callable[..., Done]


def started(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """``cygnet`` with one thread, as a child process."""
    options.setdefault("env", {**os.environ, "OMP_NUM_THREADS": "1"})
    command = [sys.executable, "-m", "cygnet", *map(str, arguments)]
    return subprocess.Popen(command, **options)


def wait_for(process: subprocess.Popen[bytes], log: Path, words: str, seconds: float = 200.0) -> None:
    """Return when ``log``, the child's stderr, holds ``words``."""
    end = time.monotonic() + seconds
    while words not in log.read_text(encoding="utf-8", errors="replace"):
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        assert time.monotonic() < end, f"{words!r} did not appear"
        time.sleep(0.02)
