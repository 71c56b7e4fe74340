"""LoRAs merged into a model's file, and several LoRAs into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cygnet.checkpoints.digest import digest
from cygnet.checkpoints.hints import metadata_for
from cygnet.checkpoints.lora.arithmetic import product
from cygnet.checkpoints.lora.extract import check_rank
from cygnet.checkpoints.lora.file import Adapter, LoraFile, read_lora
from cygnet.checkpoints.lora.matching import check_strengths, product_shape
from cygnet.checkpoints.lora.merging import PatchedWeights
from cygnet.checkpoints.lora.names import LoraForm
from cygnet.checkpoints.lora.writing import LowRankChange, noted, save_lora
from cygnet.checkpoints.quantised import is_eight_bit
from cygnet.checkpoints.saving import Entry, check_target, staged_file, write_safetensors
from cygnet.checkpoints.weight_file import TensorInfo, printable, shown
from cygnet.errors import RequestError
from cygnet.types import Progress, ProgressSink, ignore_progress

if TYPE_CHECKING:
    import torch

    from cygnet.checkpoints.lora.svd import Truncated


def merge_into_model(
    weights: PatchedWeights,
    target: Path | str,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    on_progress: ProgressSink = ignore_progress,
) -> Path:
    """Write a transformer with its LoRAs merged in as one official file; returns where.

    ``dtype`` casts every tensor; None keeps each one's own, and makes 8-bit weights bfloat16. The header says what the
    model was made from: the names and digests of the base's files and of every LoRA, and strengths. Tensors are read,
    changed and written one by one. Raises ``OutputError`` as :func:`cygnet.checkpoints.save_official`.
    """
    path = Path(target)
    check_target(path, overwrite=overwrite)
    entries: dict[str, Entry] = {}
    total = len(weights.infos)

    def reader(name: str, number: int, kind: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            import torch

            on_progress(Progress(phase="write", step=number, total=total, message=name))
            return weights.tensor(name, getattr(torch, kind))

        return read

    for number, (name, info) in enumerate(weights.infos.items()):
        kind = str(dtype).removeprefix("torch.") if dtype is not None else info.dtype
        kind = "bfloat16" if is_eight_bit(kind) else kind
        entries[name] = Entry(TensorInfo(kind, info.shape), reader(name, number, kind))
    loras = {change.lora.file.path: change.lora for rows in weights.changes.values() for change in rows}
    digests = {lora.name: digest(lora.file.files) for lora in loras.values()}
    said = {
        "base": {"files": [shown(it) for it in weights.sources], "digest": digest(weights.sources)},
        "loras": [
            {"file": told.name, "strength": told.strength, "matched": told.matched, "total": told.total}
            | ({"digest": digests[told.name]} if told.name in digests else {})
            for told in weights.coverage
        ],
    }
    notes = {"format": "pt", **metadata_for(weights.config), "cygnet.merged": noted(said)}
    with staged_file(path, overwrite=overwrite) as file:
        write_safetensors(file, entries, notes)
    return path


def merge_loras(
    loras: Sequence[tuple[Path | str, float]],
    target: Path | str,
    *,
    rank: int | None = None,
    form: LoraForm = "comfyui",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    on_progress: ProgressSink = ignore_progress,
) -> MergedLoras:
    """Write one LoRA that does at strength 1 what ``(path, strength)`` of ``loras`` do together.

    Low-rank changes are laid side by side, which is exact: the ranks add up. ``rank`` keeps the largest singular values
    of each sum instead, and is needed for LoHa and LoKr. What is part of no Wan transformer is left out and told.
    Raises ``RequestError`` for DoRA and ``set_weight``, which depend on the model's own weights (merge those into the
    model), and as :func:`~cygnet.checkpoints.lora.file.read_lora` and
    :func:`~cygnet.checkpoints.lora.writing.save_lora`.
    """
    import torch

    check_strengths(loras)
    check_rank(rank)
    check_target(Path(target), overwrite=overwrite)
    opened = [(read_lora(path), float(strength)) for path, strength in loras]
    _check_mergeable(opened, rank)
    names = list(dict.fromkeys(module for lora, _ in opened for module in lora.adapters))
    modules: dict[str, LowRankChange] = {}
    rest: dict[str, dict[str, torch.Tensor]] = {}
    energy = lost = 0.0
    for number, module in enumerate(names):
        on_progress(Progress(phase="write", step=number, total=len(names), message=module))
        rows = [(lora, lora.adapters[module], strength) for lora, strength in opened if module in lora.adapters]
        pairs = [_pair(*row) for row in rows if row[1].kind == "LoRA"]
        products = [row for row in rows if row[1].kind in ("LoRA", "LoHa", "LoKr")]
        if rank is not None and (len(products) > len(pairs) or sum(it.shape[0] for it, _ in pairs) > rank):
            kept = _nearest(products, rank)
            modules[module] = LowRankChange(kept.down, kept.up)
            energy, lost = energy + kept.energy, lost + kept.lost
        elif pairs:
            down, up = torch.cat([it for it, _ in pairs]), torch.cat([it for _, it in pairs], dim=1)
            modules[module] = LowRankChange(down, up)
        if others := _others(rows):
            rest[module] = others
    said = [{"file": lora.name, "strength": strength, "digest": digest(lora.file.files)} for lora, strength in opened]
    path = save_lora(
        target, modules, rest=rest, form=form, dtype=dtype or _widest(opened), note={"from": said}, overwrite=overwrite
    )
    left_out = tuple((lora.name, lora.unknown_modules) for lora, _ in opened if lora.unknown)
    return MergedLoras(path, len(names), None if rank is None else 1.0 if energy == 0 else 1 - lost / energy, left_out)


@dataclass(frozen=True)
class MergedLoras:
    """A LoRA made of several. ``kept`` is the share of the energy of what was cut to a rank; None where nothing was."""

    path: Path
    modules: int
    kept: float | None
    left_out: tuple[tuple[str, int], ...]
    """Files with modules that belong to no Wan transformer, such as a text encoder's, and how many each has."""


_SUMMED = {"diff": "diff", "diff_b": "diff_b", "diff_m": "diff_m", "up_bias": "diff_b"}
"""Parts that are added up as they are, and as what they are written."""


def _check_mergeable(opened: Sequence[tuple[LoraFile, float]], rank: int | None) -> None:
    shapes: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}
    for lora, _ in opened:
        for module, adapter in lora.adapters.items():
            where = f"{lora.name}: {printable(module)}"
            if adapter.kind == "DoRA" or "set" in adapter.parts or "mid" in adapter.parts:
                raise RequestError(
                    f"{where} is changed in a way that depends on the model's own weights (DoRA, set_weight) or a "
                    "kernel; merge it into a model: cygnet lora merge --base MODEL",
                    field="lora",
                )
            if adapter.kind in ("LoHa", "LoKr") and rank is None:
                raise RequestError(
                    f"{where} is a {adapter.kind} change, whose rank is not low; say with --rank what to cut it to",
                    field="rank",
                )
            sizes = {part: lora.file.tensors[stored].shape for part, stored in adapter.parts.items()}
            made: list[tuple[str, tuple[int, ...]]] = [
                (_SUMMED[part], shape) for part, shape in sizes.items() if part in _SUMMED
            ]
            if adapter.kind != "difference":
                matrix = product_shape(sizes)
                if matrix is None or 0 in matrix:
                    factors = ", ".join(f"{part} {list(size)}" for part, size in sizes.items() if part != "alpha")
                    raise RequestError(
                        f"{where} has {factors}, whose product is no matrix; the file is damaged", field="lora"
                    )
                made.append(("product", matrix))
            for part, shape in made:
                other, name = shapes.setdefault((module, part), (shape, lora.name))
                if other != shape:
                    raise RequestError(
                        f"{where} is {list(shape)}, but {list(other)} in {name}; they were made for different models",
                        field="lora",
                    )


def _pair(lora: LoraFile, adapter: Adapter, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``down`` and ``up`` in float32, flattened, with strength and scale in ``up``."""
    down, up = (lora.file.tensor(adapter.parts[role]).float().flatten(1) for role in ("down", "up"))
    return down, strength * adapter.scale * up


def _nearest(rows: Sequence[tuple[LoraFile, Adapter, float]], rank: int) -> Truncated:
    import torch

    from cygnet.checkpoints.lora.svd import truncated

    total: torch.Tensor | None = None
    for lora, adapter, strength in rows:

        def part(role: str, lora: LoraFile = lora, adapter: Adapter = adapter) -> torch.Tensor:
            return lora.file.tensor(adapter.parts[role]).float()

        change = strength * adapter.scale * product(adapter.parts, part).flatten(1)
        total = change if total is None else total + change
    assert total is not None
    if not bool(torch.isfinite(total).all()):
        names = ", ".join(lora.name for lora, _, _ in rows)
        raise RequestError(
            f"the change of {printable(rows[0][1].module)} by {names} holds NaN or infinity; a file is damaged, or a "
            "strength too large",
            field="lora",
        )
    return truncated(total, rank)


def _others(rows: Sequence[tuple[LoraFile, Adapter, float]]) -> dict[str, torch.Tensor]:
    """Sums of the differences, with the biases of low-rank changes among them."""
    found: dict[str, torch.Tensor] = {}
    for lora, adapter, strength in rows:
        for role, name in _SUMMED.items():
            if role in adapter.parts:
                factor = strength * (adapter.scale if role == "up_bias" else 1.0)
                value = factor * lora.file.tensor(adapter.parts[role]).float()
                found[name] = found[name] + value if name in found else value
    return found


def _widest(opened: Sequence[tuple[LoraFile, float]]) -> torch.dtype:
    """The type that holds what all files' tensors hold; float32 if they differ."""
    import torch

    kinds = {lora.file.tensors[stored].dtype for lora, _ in opened for it in lora.adapters.values()
             for role, stored in it.parts.items() if role != "alpha"}  # fmt: skip
    only = next(iter(kinds)) if len(kinds) == 1 else "float32"
    return getattr(torch, "float32" if is_eight_bit(only) else only)  # type: ignore[no-any-return]
