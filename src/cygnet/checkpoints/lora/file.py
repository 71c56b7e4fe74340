"""What a LoRA file holds: its parts gathered by module under official names, each module one :class:`Adapter`.

A module whose parts do not make up a whole change, or change it in a way that cygnet does not know, makes the file
refused: a LoRA is loaded fully or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cygnet.checkpoints.layouts import MAX_NAMES
from cygnet.checkpoints.lora.names import ENDING, official_module, without_prefix
from cygnet.checkpoints.lora.scales import NotedScales
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.weight_file import WeightFile, printable, shown
from cygnet.errors import WeightFileError

Kind = Literal["LoRA", "DoRA", "LoHa", "LoKr", "difference"]

_PRODUCTS: Mapping[Kind, frozenset[str]] = {
    "LoRA": frozenset({"down", "up", "mid", "up_bias"}),
    "LoHa": frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
    "LoKr": frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
}
_DIFFERENCES = frozenset({"diff", "diff_b", "diff_m", "set"})
_UNREAD: Mapping[str, str] = {
    "hada_t1": "Tucker factors (hada_t1)", "hada_t2": "Tucker factors (hada_t2)", "lokr_t2": "Tucker factors (lokr_t2)",
    "orthogonal": "an orthogonal change (OFT)", "glora": "a GLoRA change", "ia3": "an IA3 change",
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """One module's parts: role to stored name. ``scale`` is what a product of factors is multiplied with."""

    module: str
    parts: Mapping[str, str]
    scale: float
    kind: Kind
    rank: int | None
    """Inner width of the product; None where the file holds whole matrices."""
    alpha: float | None
    """As the file says it; None where it does not."""


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA: adapters by official module name, and the stored names that belong to no known module."""

    file: WeightFile = field(repr=False)
    adapters: Mapping[str, Adapter]
    unknown: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name, fit for a message."""
        return shown(self.file.path)

    @property
    def unknown_modules(self) -> int:
        """How many modules the unknown names are parts of."""
        return len({_stem(name) for name in self.unknown})


def read_lora(path: Path | str) -> LoraFile:
    """Open a LoRA and sort its tensors, reading only the small ones.

    ``path`` is a file, or a folder as PEFT saves it. Raises ``WeightFileError`` if it is no LoRA, a module is
    incomplete or of a kind that cygnet does not read, a rank is 0 or an alpha is not finite, and as
    :func:`~cygnet.checkpoints.open.open_weights`.
    """
    file = open_weights(path)
    if len(file.tensors) > MAX_NAMES:
        raise WeightFileError(
            f"{shown(file.path)} holds {len(file.tensors):,} tensors; no LoRA for Wan has more than {MAX_NAMES:,}"
        )
    groups: dict[str, dict[str, str]] = {}
    stems: dict[str, str] = {}
    unknown: list[str] = []
    for name in file.tensors:
        ending = ENDING.search(name)
        role = "" if ending is None else str(ending.lastgroup)
        module = None if ending is None else _module_of(name[: ending.start()], role)
        if ending is None or module is None:
            unknown.append(name)
            continue
        group = groups.setdefault(module, {})
        if role in group:
            raise WeightFileError(
                f"{shown(file.path)} has the {role} part of {printable(module)} twice, as {printable(group[role])!r} "
                f"and {printable(name)!r}; it mixes two files"
            )
        group[role] = name
        stems[module] = without_prefix(name[: ending.start()])
    if not groups:
        raise WeightFileError(f"{shown(file.path)} is no LoRA for Wan: {_first(file.tensors)}")
    for name in unknown:
        _refuse_unread_part(file, name)
    noted = NotedScales.of(file)
    adapters = {module: _adapter(file, module, parts, noted, stems[module]) for module, parts in groups.items()}
    return LoraFile(file, adapters, tuple(unknown))


def _refuse_unread_part(file: WeightFile, name: str) -> None:
    """Raise ``WeightFileError`` if an unknown name is a part of a module of the transformer after all."""
    stem = name
    for _ in range(3):
        stem, dot, _ = stem.rpartition(".")
        if dot and (module := official_module(stem)) is not None:
            raise WeightFileError(
                f"{shown(file.path)}: {printable(module)} has the part {printable(name[len(stem) + 1 :])!r}, which "
                "cygnet does not know; convert it to a plain LoRA where it was made, or ask for one"
            )


def is_lora(file: WeightFile) -> bool:
    """Whether an opened file's names are those of a LoRA for Wan's transformer."""
    for name in file.tensors:
        ending = ENDING.search(name)
        if (
            ending is not None
            and ending.lastgroup not in ("glora", "alpha")
            and _module_of(name[: ending.start()], str(ending.lastgroup))
        ):
            return True
    return False


def _module_of(stem: str, role: str) -> str | None:
    if role == "diff_m":
        stem += ".modulation"
    return official_module(stem)


def _stem(name: str) -> str:
    ending = ENDING.search(name)
    return name if ending is None else name[: ending.start()]


def _first(names: Iterable[str]) -> str:
    some = [printable(name) for _, name in zip(range(3), names, strict=False)]
    return f"its tensors are called {', '.join(some)}" if some else "it holds no tensors"


def _adapter(file: WeightFile, module: str, parts: Mapping[str, str], noted: NotedScales, stem: str) -> Adapter:
    where = f"{shown(file.path)}: {printable(module)}"
    kind = _kind(where, parts)
    rank = _rank(file, parts)
    if rank == 0:
        raise WeightFileError(f"{where} has rank 0; the file is damaged")
    alpha = _alpha(file, where, parts)
    if kind == "difference":
        scale = 1.0
    elif alpha is None:
        scale = noted.scale(module, stem, rank)
    else:  # that of two whole matrices (LoKr) is 1, whatever its alpha
        scale = 1.0 if rank is None else alpha / rank
    return Adapter(module, parts, scale, kind, rank, alpha)


def _kind(where: str, parts: Mapping[str, str]) -> Kind:
    """How the parts change the module; raises ``WeightFileError`` unless they are one whole change."""
    roles = parts.keys()
    for role, words in _UNREAD.items():
        if role in roles:
            raise WeightFileError(
                f"{where} has {words}, which cygnet does not read; convert it to a plain LoRA where it was made, or "
                "ask for one"
            )
    products = [kind for kind, known in _PRODUCTS.items() if roles & known]
    if len(products) > 1:
        raise WeightFileError(f"{where} has parts of {' and of '.join(products)}; it mixes two files")
    if not products:
        if stray := sorted(roles & {"magnitude", "reshape"}) or (["alpha"] if not roles & _DIFFERENCES else []):
            raise WeightFileError(f"{where} has only its {stray[0]} part; the file is incomplete")
        return "difference"
    kind = products[0]
    if missing := _missing(kind, roles):
        raise WeightFileError(f"{where} lacks its {' and '.join(missing)} part; the file is incomplete")
    return "DoRA" if "magnitude" in roles else kind


def _missing(kind: Kind, roles: Iterable[str]) -> list[str]:
    have = set(roles)
    if kind == "LoRA":
        return [it for it in ("down", "up") if it not in have]
    if kind == "LoHa":
        return sorted(_PRODUCTS["LoHa"] - have)
    lacking = []
    for side in ("lokr_w1", "lokr_w2"):
        factors = {f"{side}_a", f"{side}_b"}
        if side not in have:
            lacking += sorted(factors - have)
    return lacking


def _rank(file: WeightFile, parts: Mapping[str, str]) -> int | None:
    """The inner width of a product; None where the file holds whole matrices."""
    for role, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)):
        if role in parts:
            shape = file.tensors[parts[role]].shape
            return shape[axis] if shape else 0
    return None


def _alpha(file: WeightFile, where: str, parts: Mapping[str, str]) -> float | None:
    if "alpha" not in parts:
        return None
    info = file.tensors[parts["alpha"]]
    alpha = float(file.tensor(parts["alpha"])) if info.numel == 1 else math.nan
    if not math.isfinite(alpha):
        raise WeightFileError(f"{where} has no finite alpha; the file is damaged")
    return alpha
