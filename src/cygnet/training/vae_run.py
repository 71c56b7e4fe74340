"""Training an autoencoder on random crops of videos and pictures.

On CPUs with AMX the gradients of 3-D convolutions are computed as those of 2-D ones; :mod:`cygnet.ops.conv` sees to
that by itself.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.assembly import LoadedModel, load_vae
from cygnet.checkpoints import save_official
from cygnet.errors import MediaError, RequestError
from cygnet.media.frames import to_signed
from cygnet.models.vae.model import WanVAE
from cygnet.runtime.precision import parse_device
from cygnet.training.clips import read_clip
from cygnet.training.config import TrainConfig
from cygnet.training.dataset import Item, read_items
from cygnet.training.loop import Pace, Piece, StepReport, Trainer
from cygnet.training.networks import DTYPES, build_optimizers
from cygnet.training.reports import Charts, plot_losses
from cygnet.training.start import Outcome, begun_from
from cygnet.training.state import Average, Run
from cygnet.training.taught import Begun, Taught
from cygnet.training.vae import VAELoss
from cygnet.types import CancelToken

CLIPS_IN_MEMORY = 64
"""Decoded clips that are kept for later steps."""


def train_vae(
    config: TrainConfig,
    model: LoadedModel,
    *,
    say: Callable[[str], None],
    on_step: Callable[[StepReport], None],
    cancel: CancelToken | None,
    seconds: float,
) -> Outcome:
    """Run (or go on with) the training of the model's autoencoder; see :func:`cygnet.training.start.train`."""
    clocks = time.monotonic(), time.process_time()
    folder, device = Path(config.output), parse_device(config.device)
    run = Run(folder, identity=config.identity(), keep=config.every.keep, quiet=True)
    vae = load_vae(model.weights["vae"].file.path, torch.float32, device)
    vae.requires_grad_(True)
    items = read_items(Path(config.data.path))
    crops = Crops(items, config)
    optimizers = build_optimizers(config.optimizer, vae)
    average = Average(vae, config.optimizer.average) if config.optimizer.average else None
    loss_of = VAELoss(l1=config.vae.l1, difference=config.vae.difference, kl=config.vae.kl)

    def pieces(step: int) -> list[Piece]:
        chosen = crops.chosen(step)
        size = len(chosen) // config.accumulate
        parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        return [Piece(functools.partial(loss, step, part), 1 / len(parts), crops.names(part)) for part in parts]

    def loss(step: int, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        video = torch.stack([crops.crop(step, place, number) for place, number in places]).to(device)
        low = DTYPES[config.memory.dtype]
        with torch.autocast(device.type, dtype=low, enabled=low != torch.float32):
            total, _ = loss_of(vae, video)
        return total

    charts = Charts(folder, say)
    parts: dict[str, Any] = {"clips": Taught((_digest(item),) for item in items)}
    parts |= {"model": Begun(begun_from(config, model)), "weights": vae}
    parts |= {f"optimizer {number}": optimizer for number, optimizer in enumerate(optimizers)}
    if average is not None:
        parts["average"] = average

    def charted(report: StepReport) -> None:
        charts.add(report.step, loss=report.loss)
        on_step(report)

    trainer = Trainer(
        module=vae,
        optimizers=optimizers,
        run=run,
        pace=Pace(
            steps=config.steps,
            warmup=config.optimizer.warmup,
            floor=config.optimizer.floor,
            clip=config.optimizer.clip,
            log_every=config.every.log,
            save_every=config.every.save,
        ),
        draw=pieces,
        parts=parts,
        average=average,
        on_step=charted,
        cancel=cancel or CancelToken(),
    )
    if trainer.resume():
        say(f"going on at step {run.step}")
    charts.begin(run.step)
    try:
        finished = trainer.train(seconds)
    finally:
        charts.close()
    result = _write(vae, average, folder)
    plot = plot_losses(run.rows(), folder / "loss.png", say) if finished else None
    now = time.monotonic(), time.process_time()
    return Outcome(finished, run.step, result, plot, now[0] - clocks[0], now[1] - clocks[1], None)


def _digest(item: Item) -> str:
    try:
        return item.digest()
    except OSError as error:
        raise MediaError(f"{item.name!r} cannot be read: {(error.strerror or 'refused').lower()}") from error


def _write(vae: WanVAE, average: Average | None, folder: Path) -> Path:
    if average is not None:
        average.swap(vae)
    try:
        state = {name: value.contiguous() for name, value in vae.state_dict().items()}
        return save_official(folder / "vae.safetensors", state, vae.config, overwrite=True)
    finally:
        if average is not None:
            average.swap(vae)


class Crops:
    """Random parts of clips, a function of the seed, the step and the place in the batch."""

    def __init__(self, items: Sequence[Item], config: TrainConfig) -> None:
        self._items, self._config = items, config
        self._pixels = functools.lru_cache(maxsize=CLIPS_IN_MEMORY)(self._read)

    def chosen(self, step: int) -> list[tuple[int, int]]:
        """Place in the batch and number of the clip of every crop of a step."""
        rng = np.random.default_rng([self._config.seed, step, 11])
        return list(enumerate(rng.integers(0, len(self._items), self._config.batch).tolist()))

    def names(self, places: Sequence[tuple[int, int]]) -> str:
        """Of the clips, for messages."""
        return ", ".join(dict.fromkeys(self._items[number].name for _, number in places))

    def crop(self, step: int, place: int, number: int) -> torch.Tensor:
        """``[3, T, side, side]`` in [-1, 1] of clip ``number``."""
        rng = np.random.default_rng([self._config.seed, step, 13, place])
        frames, side = self._pixels(number), self._config.vae.crop
        count, height, width, _ = frames.shape
        length = self._config.vae.frames
        if count < length or min(height, width) < side:
            raise RequestError(
                f"{self._items[number].name!r} is {width}x{height} with {count} frames; crops are {side}x{side} with "
                f"{length}: set vae.crop and vae.frames lower, or remove it",
                field="vae.crop",
            )
        first, top, left = (int(rng.integers(0, free + 1)) for free in (count - length, height - side, width - side))
        return to_signed(frames[first : first + length, top : top + side, left : left + side])

    def _read(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return read_clip(self._items[number], self._config.data.fps).frames
