"""What can be known to go wrong before anything is read or encoded: contradictions, missing files, the output."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cygnet.assembly import LoadedModel, load_components
from cygnet.errors import RequestError
from cygnet.runtime.precision import parse_device
from cygnet.training.config import ModelFiles, TrainConfig
from cygnet.training.dataset import check_place
from cygnet.training.flow_run import check_samples
from cygnet.training.networks import check_network, check_optimizer
from cygnet.training.state import check_identity

LOCK = "train.lock"
"""In the output folder, held by the run that writes there; the system lets go of it when that process ends."""
_RESULTS = {"lora": "lora.safetensors", "full": "dit.safetensors", "scratch": "dit.safetensors"}

log = logging.getLogger(__name__)


def open_model(config: TrainConfig) -> LoadedModel:
    """The model's files, of which nothing is loaded before it is used."""
    source: Any = config.model.paths() if isinstance(config.model, ModelFiles) else config.model
    return load_components(source, device=parse_device(config.device), offload=True)


def checked(config: TrainConfig, *, runs: bool = True) -> LoadedModel:
    """The model of a run, once nothing that can be known beforehand speaks against it; writes nothing.

    ``runs`` is False for a plan, which may come before the clips of ``data.path`` and beside a run of other settings.
    Raises :class:`~cygnet.errors.RequestError` with the field, or ``UnsupportedError`` or ``MediaError``.
    """
    places = {
        "data.path": config.data.path if runs else None,
        "data.validation": config.data.validation,
        "preserve.path": config.preserve.path,
    }
    for field, place in places.items():
        if place is not None:
            check_place(Path(place), field)
    check_optimizer(config.optimizer)
    if runs:
        check_identity(Path(config.output), config.identity())
    model = open_model(config)
    if config.method != "vae":
        check_network(config, model.components.dit, parse_device(config.device))
        if config.every.sample:
            check_samples(config, model)
    return model


@contextmanager
def claimed(config: TrainConfig, *, writes: bool = True) -> Iterator[None]:
    """The output folder, made and held against other runs for the length of a ``with`` block.

    ``writes`` is False in all processes but the first of many. Raises :class:`~cygnet.errors.RequestError` for
    ``output`` where nothing can be written, or another run is at work.
    """
    if not writes:
        yield
        return
    folder = Path(config.output)
    checkpoints = folder / "checkpoints"
    result = folder / _RESULTS.get(config.method, "vae.safetensors")
    for path in (folder / "log.jsonl", result):
        if path.is_dir():
            raise RequestError(
                f"output: {str(path)!r} is a folder, where the run writes a file; move it, or choose another output",
                field="output",
            )
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        for place in (folder, checkpoints):
            with tempfile.TemporaryFile(dir=place):
                pass
    except OSError as error:
        reason = (error.strerror or "refused").lower()
        where = error.filename if isinstance(error.filename, str) else str(folder)
        raise RequestError(
            f"output is {str(folder)!r}, where nothing can be written ({reason}: {where!r}); choose a folder that you "
            "may write to, or mend this one",
            field="output",
        ) from error
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RequestError(
            f"output is {str(folder)!r}, where another cygnet train is at work; wait for it, stop it, or choose "
            "another output",
            field="output",
        ) from error
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): see to it that no other run writes there", str(folder), error)
        yield
        return
    try:
        yield
    finally:
        lock.release()
