"""``python -m cygnet`` is the cygnet command."""

from __future__ import annotations

import sys

from cygnet.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
