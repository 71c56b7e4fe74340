"""Files that clients send, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from cygnet.media.files import discard, new_part, output_error, publish


def write_whole(path: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Make ``path`` hold ``data``, in one step and safe against power loss; its folder is made if need be.

    Raises FileExistsError if another file is there and ``overwrite`` is false, and
    :class:`~cygnet.errors.OutputError` in words when the disk does not take it; nothing half-written stays.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = new_part(path.parent)
        part.write_bytes(data)
        publish(part, path, overwrite=overwrite)
    except FileExistsError:
        if path.parent.is_dir():
            raise
        raise output_error(NotADirectoryError(), path) from None
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        if part is not None:
            discard(part)
