"""Training a transformer on prepared clips: the pieces of a step, validation loss, sample videos, the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cygnet.api import Wan
from cygnet.api.given import Given
from cygnet.api.options import Options, request_of
from cygnet.assembly import LoadedModel
from cygnet.checkpoints import save_official
from cygnet.checkpoints.lora import save_adapters
from cygnet.errors import CygnetError, RequestError
from cygnet.pipelines.inputs import check_combination
from cygnet.solvers import add_noise
from cygnet.training.batches import Batches, load_batch
from cygnet.training.cache import Cache
from cygnet.training.config import TrainConfig
from cygnet.training.encode import Example
from cygnet.training.flow import Batch, Draw, FlowMatching
from cygnet.training.loop import Piece
from cygnet.training.networks import Network
from cygnet.training.parallel import ALONE, Group, WholeModule
from cygnet.training.state import Average
from cygnet.types import ComponentName, Residency

VALIDATION_LEVELS = 4
"""Noise levels at which each clip is measured."""
VALIDATION_CLIPS = 16
"""At most so many are measured."""
WITHOUT_TEXT, PRESERVED = 7, 8
"""Mark the random numbers that decide whose caption is dropped, and which captions are preserved."""


@dataclass(frozen=True, kw_only=True)
class FlowRun:
    """What the loop needs to know about training a transformer."""

    config: TrainConfig
    model: LoadedModel
    network: Network
    cache: Cache
    batches: Batches
    validation: Sequence[Example]
    empty: str
    """The key of the text that stands for none."""
    objective: FlowMatching
    average: Average | None
    group: Group = ALONE
    preserved: Sequence[str] = ()
    """Keys of the captions for which the model should stay as it is."""
    kept: Batches | None = None
    """Clips for which it should, in place of these."""
    told: dict[str, float] = field(default_factory=dict)
    """Values of the last step for the log, beside the loss."""

    def pieces(self, step: int) -> Iterator[Piece]:
        """This process's clips of a step, in ``accumulate`` parts."""
        examples = self.batches[step]
        config, size = self.config, len(self.batches[step])
        rng = np.random.default_rng([config.seed, step, WITHOUT_TEXT])
        dropped = rng.random(size) < config.objective.caption_dropout
        mine = list(range(size))[self.group.share.number :: self.group.share.of]
        per_piece = math.ceil(len(mine) / config.accumulate)
        for start in range(0, len(mine), per_piece):
            chosen = mine[start : start + per_piece]
            rows = [examples[i] for i in chosen]

            def loss(chosen: list[int] = chosen, rows: list[Example] = rows) -> torch.Tensor:
                batch = load_batch(rows, self.cache, [bool(dropped[i]) for i in chosen], self.empty)
                draw = self.objective.draw(config.seed, step, size, chosen, batch.latents.shape[1:])
                return self._loss(batch, draw)

            # With many processes gradients are averaged, so a process's pieces add up to 1.
            yield Piece(loss, len(chosen) / len(mine), ", ".join(dict.fromkeys(row.name for row in rows)))

        if self.preserved or self.kept is not None:
            yield Piece(lambda: self._drift(step), config.preserve.weight, "preserved captions", counts=False)

    def _drift(self, step: int) -> torch.Tensor:
        """How far the answers have moved from those of before, for clips or captions that should stay."""
        config, share = self.config, self.group.share
        count = config.preserve.batch
        rng = np.random.default_rng([config.seed, step, PRESERVED])
        mine = list(range(count))[share.number :: share.of]
        examples = self.batches[step]
        if self.kept is not None:
            asked, without = self.kept[step], rng.random(count) < config.preserve.empty
        else:
            texts, without = rng.integers(0, len(self.preserved), count), np.zeros(count, bool)
            asked = [replace(examples[i % len(examples)], text=self.preserved[texts[i]]) for i in range(count)]
        rows, dropped = [asked[i] for i in mine], [bool(without[i]) for i in mine]
        batch = load_batch(rows, self.cache, dropped, self.empty).to(self.network.dit.device)
        # Places past those of the clips, so that the noise is not theirs.
        size = len(examples) + count
        draw = self.objective.draw(
            config.seed, step, size, [len(examples) + i for i in mine], batch.latents.shape[1:]
        ).to(batch.latents.device)
        noisy = add_noise(batch.latents, draw.noise, draw.sigma)
        rest = (1000 * draw.sigma, batch.context, batch.image_context, batch.image_condition)
        drift = self.network.drift(noisy, *rest)
        self.told["preserve"] = float(drift.detach())
        return drift

    def _loss(self, batch: Batch, draw: Draw) -> torch.Tensor:
        network = self.network
        there = batch.to(network.dit.device)
        with network.precision():
            loss: torch.Tensor = self.objective(
                network.dit, there.latents, there.context, there.image_context, there.image_condition, draw
            )
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average in place of the weights, if there is one, for the length of a ``with`` block."""
        if self.average is None:
            yield
            return
        self.average.swap(self.network.trained)
        try:
            yield
        finally:
            self.average.swap(self.network.trained)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation clips, each at the same levels with the same noise every time."""
        levels = self.objective.levels_at(VALIDATION_LEVELS)
        total, measured = 0.0, self.validation[:VALIDATION_CLIPS]
        with self.averaged():
            for number, example in enumerate(measured):
                batch = load_batch([example], self.cache, [False], self.empty)
                for place, level in enumerate(levels):
                    drawn = self.objective.draw(self.config.seed, 0, 1, [0], batch.latents.shape[1:])
                    noise = self.objective.draw(2**31 + number, place, 1, [0], batch.latents.shape[1:]).noise
                    total += float(self._loss(batch, replace(drawn, sigma=level[None], noise=noise)))
        return total / (len(measured) * VALIDATION_LEVELS)

    def sample(self, step: int, folder: Path, say: Callable[[str], None]) -> list[Path]:
        """A video of every prompt with the weights as they are, with its receipt beside it.

        ``say`` hears of one that failed: the training goes on.
        """
        config = self.config
        parts = replace(self.model.components, residency=_Training(self.network.dit, self.model.components.residency))
        wan = Wan(replace(self.model, components=parts))
        made = []
        with self.averaged():
            for number, prompt in enumerate(_prompts(config)):
                try:
                    video = wan.generate(prompt, config.sample.image, **_options(config))
                except CygnetError as error:
                    if self.group.world > 1 and not isinstance(error, RequestError):
                        raise  # the others may be waiting for this process in the midst of a step
                    say(f"sample {number} of step {step} failed, and training goes on: {error}")
                    continue
                if not self.group.first:
                    continue
                video.receipt["training"] = {"step": step, "method": config.method, "settings": config.identity()}
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    made.append(video.save(folder / f"{step:08d}-{number}.mp4", overwrite=True))
                except (CygnetError, OSError) as error:
                    say(f"sample {number} of step {step} was not saved, and training goes on: {error}")
        return made

    def write(self, step: int, folder: Path) -> Path | None:
        """The result as it is now: a LoRA file, or the whole transformer as a weight file; only one process writes."""
        config, network = self.config, self.network
        base = self.model.describe()
        with self.averaged():
            if network.adapters is not None:
                if not self.group.first:
                    return None
                note = {
                    "base": base["name"] or base["variant"],
                    "base_digest": base["components"]["dit"]["digest"],
                    "training": {"steps": step, "settings": config.identity(), "trigger": config.data.trigger},
                }
                return save_adapters(
                    folder / "lora.safetensors", network.adapters, dtype=torch.bfloat16, note=note, overwrite=True
                )
            state = WholeModule(network.dit).state_dict()
            if not self.group.first:
                return None
            return save_official(
                folder / "dit.safetensors",
                state,
                network.dit.config,
                dtype=torch.bfloat16,
                overwrite=True,
            )


def check_samples(config: TrainConfig, model: LoadedModel) -> None:
    """Raise :class:`~cygnet.errors.RequestError` or ``MediaError`` where sampling would refuse; computes nothing."""
    given = Given.read(config.sample.image, None, None)
    try:
        for prompt in _prompts(config):
            request = request_of(prompt, given.inputs, _options(config), Wan(model).defaults)
            check_combination(model.components, request, given.inputs)
    except RequestError as error:
        field = None if error.field is None else f"sample.{error.field}"
        raise RequestError(f"[sample] asks for what cannot be made: {error}", field=field) from error


def _prompts(config: TrainConfig) -> list[str]:
    return [f"{config.data.trigger} {prompt}".strip() for prompt in config.sample.prompts]


def _options(config: TrainConfig) -> Options:
    return {
        "size": max(config.data.shapes, key=lambda size: size[0] * size[1]),
        "num_frames": max(config.data.frames),
        "num_steps": config.sample.steps,
        "guidance_scale": config.sample.guidance,
        "seed": config.sample.seed,
    }


class _Training:
    """The transformer that is being trained, and everything else as the model has it."""

    def __init__(self, dit: torch.nn.Module, others: Residency) -> None:
        self._dit, self._others = dit, others

    def use(self, name: ComponentName) -> AbstractContextManager[torch.nn.Module]:
        """The component."""
        return nullcontext(self._dit) if name == "dit" else self._others.use(name)

    def release(self, name: ComponentName) -> None:
        """Let go of everything but the transformer."""
        if name != "dit":
            self._others.release(name)

    def shrink(self, name: ComponentName) -> str | None:
        """None for the transformer, which is being trained; as the others' own residency has it for them."""
        return None if name == "dit" else self._others.shrink(name)
