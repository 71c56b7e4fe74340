"""The difference of two models as a LoRA: each matrix cut to a rank, everything else kept whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cygnet.checkpoints.digest import digest
from cygnet.checkpoints.loading import ComponentWeights
from cygnet.checkpoints.lora.names import LoraForm
from cygnet.checkpoints.lora.writing import LowRankChange, save_lora
from cygnet.checkpoints.saving import check_target
from cygnet.checkpoints.weight_file import printable, shown
from cygnet.errors import RequestError, StateMismatchError
from cygnet.types import CancelToken, Progress, ProgressSink, ignore_progress

if TYPE_CHECKING:
    import torch

MAX_RANK = 1024


@dataclass(frozen=True)
class Extraction:
    """A LoRA made from two models. Energy is the sum of squares of a change; ``kept`` its share that the LoRA holds."""

    path: Path
    modules: int
    unchanged: int
    kept: float
    worst: tuple[tuple[str, float], ...]
    """The five matrices that lost most, with the share kept of each."""


def check_rank(rank: int | None) -> None:
    """Raise ``RequestError`` for a rank out of bounds; None is none."""
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise RequestError(f"rank is {rank}; it must be a whole number from 1 to {MAX_RANK}", field="rank")


def extract_lora(
    base: ComponentWeights,
    tuned: ComponentWeights,
    target: Path | str,
    *,
    rank: int,
    form: LoraForm = "comfyui",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    on_progress: ProgressSink = ignore_progress,
    cancel: CancelToken | None = None,
) -> Extraction:
    """Write the LoRA that turns ``base`` into ``tuned``, as nearly as ``rank`` allows; returns what it holds.

    Each matrix of a linear layer that differs becomes a low-rank change; biases, norms, modulation and kernels become
    differences, which are exact ("comfyui" alone can hold them). Both must be the same architecture. Raises
    ``RequestError`` for a rank out of bounds or two models that do not differ, ``StateMismatchError`` if one has
    tensors that the other has not, and as :func:`~cygnet.checkpoints.lora.writing.save_lora`.
    """
    import torch

    from cygnet.checkpoints.lora.svd import truncated

    check_rank(rank)
    check_target(Path(target), overwrite=overwrite)
    _check_alike(base, tuned)
    modules: dict[str, LowRankChange] = {}
    rest: dict[str, dict[str, torch.Tensor]] = {}
    shares: list[tuple[str, float]] = []
    energy = lost = 0.0
    unchanged = 0
    for number, (name, info) in enumerate(base.infos.items()):
        if cancel is not None:
            cancel.check()
        on_progress(Progress(phase="write", step=number, total=len(base.infos), message=name))
        delta = tuned.tensor(name, torch.float32) - base.tensor(name, torch.float32)
        if not bool(torch.isfinite(delta).all()):
            raise StateMismatchError(f"{printable(name)} holds NaN or infinity in one of the models; it is damaged")
        if not bool(delta.any()):
            unchanged += 1
            continue
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(info.shape) == 2:
            cut = truncated(delta.to(device), rank)
            modules[module] = LowRankChange(cut.down.cpu(), cut.up.cpu())
            energy, lost = energy + cut.energy, lost + cut.lost
            shares.append((module, 1 - cut.lost / cut.energy))
        else:
            owner, role = _place(name)
            rest.setdefault(owner, {})[role] = delta
            energy += float(delta.double().square().sum())
    if not (modules or rest):
        raise RequestError("the two models do not differ; there is nothing to extract", field="tuned")
    path = save_lora(
        target,
        modules,
        rest=rest,
        form=form,
        dtype=dtype,
        note={"extracted": {side: _told(it) for side, it in (("base", base), ("tuned", tuned))}, "rank": rank},
        overwrite=overwrite,
    )
    worst = tuple(sorted(shares, key=lambda it: it[1])[:5])
    return Extraction(path, len(modules.keys() | rest.keys()), unchanged, 1 - lost / energy, worst)


def _place(name: str) -> tuple[str, str]:
    """The module and part under which a file holds the difference of a tensor that is no linear layer's matrix."""
    module, _, leaf = name.rpartition(".")
    if leaf == "weight":
        return module, "diff"
    if leaf == "bias":
        return module, "diff_b"
    if leaf == "modulation" and module.startswith("blocks."):
        return name, "diff_m"
    return name, "diff"


def _told(weights: ComponentWeights) -> dict[str, object]:
    return {"files": [shown(it) for it in weights.sources], "digest": digest(weights.sources)}


def _check_alike(base: ComponentWeights, tuned: ComponentWeights) -> None:
    names = [shown(it.file.path) for it in (base, tuned)]
    for it in (base, tuned):
        if it.component != "dit":
            raise RequestError(f"{shown(it.file.path)} is no diffusion transformer; LoRAs change nothing else")
    different = [
        name
        for name in base.infos.keys() | tuned.infos.keys()
        if name not in base.infos or name not in tuned.infos or base.infos[name].shape != tuned.infos[name].shape
    ]
    if different:
        raise StateMismatchError(
            f"{names[0]} is {base.variant} and {names[1]} is {tuned.variant}: {len(different)} tensors are in one "
            f"alone or have other shapes, first {printable(min(different))!r}; give two models of one architecture"
        )
