"""Where an error came from, in words that tell nobody how this machine's folders are called."""

from __future__ import annotations

import os
import re
import sys
import traceback

_FILE = re.compile(r'^  File "([^"]+)"', re.MULTILINE)


def trace_of(error: BaseException) -> list[str]:
    """The lines of its traceback, with files named from the folder on which they were imported."""
    roots = sorted({os.path.join(os.path.realpath(it or "."), "") for it in sys.path}, key=len, reverse=True)

    def shown(found: re.Match[str]) -> str:
        path = os.path.realpath(found[1])
        root = next((it for it in roots if path.startswith(it)), None)
        name = os.path.join(*path.split(os.sep)[-3:]) if root is None else path.removeprefix(root)
        return f'  File "{name}"'

    return [_FILE.sub(shown, line) for line in traceback.format_exception(error)]
