"""What a run shows of itself: TensorBoard's event files while it runs, a picture of its losses at the end.

Both need packages of the extra ``train``; without them the log file remains, and a note says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cygnet.checkpoints.saving import staged_file

HINT = "pip install 'cygnet[train]'"


class Charts:
    """Curves for TensorBoard, in the folder ``tensorboard`` of a run; nothing where its package is missing.

    Nothing is drawn before :meth:`begin`: a new file of events takes back all that older ones have past its first step.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, draws: bool = True) -> None:
        self._folder, self._say, self._draws = folder / "tensorboard", say, draws
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Curves go on from ``step``, 0 for a new run: what was drawn past it is taken back."""
        if not self._draws:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say(f"no TensorBoard curves: its package is not installed ({HINT}); log.jsonl has the losses")
            return
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def add(self, step: int, **values: float) -> None:
        """A point on each named curve; it is on the disk at once, so that a kill takes none that a checkpoint has."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Write what waits."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def plot_losses(rows: Sequence[Mapping[str, float]], path: Path, say: Callable[[str], None]) -> Path | None:
    """Draw the loss and the validation loss of a log over its steps; None, and a note, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say(f"no plot: matplotlib is not installed ({HINT})")
        return None
    figure = Figure(figsize=(8, 4.5))
    axes = figure.add_subplot()
    for name, colour in (("loss", "#3b6ea5"), ("validation", "#c0392b")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker="." if len(points) < 40 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    figure.tight_layout()
    with staged_file(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=110)
    return path
