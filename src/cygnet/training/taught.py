"""Which clips a run is taught, and to which model, as parts of its checkpoints: with others it would be another run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from cygnet.errors import RequestError


class Taught:
    """The clips of a run in their order, each by eight bytes of a hexadecimal key of its content and caption.

    ``field`` is where the run's file names them.
    """

    def __init__(self, keys: Iterable[tuple[str, ...]], field: str = "data.path") -> None:
        self._field = field
        rows = [[int.from_bytes(bytes.fromhex(key)[:8], signed=True) for key in row] for row in keys]
        self.marks = torch.tensor(rows, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"marks": self.marks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise :class:`~cygnet.errors.RequestError`, saying how many are gone and new, unless these are the same."""
        before: torch.Tensor = state["marks"]
        if torch.equal(before, self.marks):
            return
        old, new = (Counter(tuple(row) for row in marks.tolist()) for marks in (before, self.marks))
        gone, more = (old - new).total(), (new - old).total()
        what = f"clips gone: {gone}, new: {more}" if gone or more else "its clips come in another order"
        raise RequestError(
            f"the data set of {self._field} is not the one that this run was begun with ({what}; a changed clip or "
            "caption counts as both); bring it back as it was, or choose another output",
            field=self._field,
        )


class Begun:
    """What a run began from, by a digest of the weights that it changes or, for one from nothing, of their shapes."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"digest": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise :class:`~cygnet.errors.RequestError` unless the model is the same."""
        if state["digest"] != self._digest:
            raise RequestError(
                "the model is not the one that this run was begun with (the digest of its weights was "
                f"{state['digest'][:12]} and is {self._digest[:12]}); bring it back as it was, or choose another "
                "output",
                field="model",
            )
