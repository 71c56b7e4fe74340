"""What a LoRA file is, from its header and its alphas: dialect, kinds, ranks, what it changes and was made for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cygnet.checkpoints.lora.file import LoraFile, read_lora
from cygnet.checkpoints.lora.matching import product_shape
from cygnet.checkpoints.lora.names import dialect_of
from cygnet.checkpoints.weight_file import printable

MAX_SHOWN_METADATA = 2_000
"""Characters of a header's value that are shown; trainers put whole data sets there."""

_AREAS: tuple[tuple[str, str], ...] = (
    ("image attention", r".*\.(?:k_img|v_img|norm_k_img)|img_emb\..*"),
    ("VACE", r"vace_.*"),
    ("norms and modulation", r".*\.norm\w*|.*modulation"),
    ("self-attention", r"blocks\.\d+\.self_attn\..*"),
    ("cross-attention", r"blocks\.\d+\.cross_attn\..*"),
    ("feed-forward", r"blocks\.\d+\.ffn\..*"),
)
_SIZES: Mapping[int, str] = {1536: "1.3B", 5120: "14B"}


@dataclass(frozen=True, kw_only=True)
class LoraInspection:
    """What is in a LoRA file. Mappings count modules, but ``dtypes`` and ``dialects``, which count tensors."""

    path: Path
    dialects: Mapping[str, int]
    kinds: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float | None, int]
    """None where the file says none, which means the rank."""
    areas: Mapping[str, int]
    modules: int
    unknown: int
    """Modules of no Wan transformer, such as a text encoder's."""
    blocks: int
    """One more than the highest block that it changes."""
    base: str
    dtypes: Mapping[str, int]
    tensors: int
    bytes: int
    metadata: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As plain values for ``json.dumps``."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **plain,
            "path": str(self.path),
            "kind": "lora",
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "alphas": {"none" if it is None else f"{it:g}": count for it, count in self.alphas.items()},
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"{self.path.name}: a LoRA for {self.base}",
            f"  names: {_counted(self.dialects)}; kinds: {_counted(self.kinds)}",
            f"  ranks: {_listed(self.ranks)}; alphas: {_listed({_alpha(it): n for it, n in self.alphas.items()})}",
            f"  {self.modules} modules: {_counted(self.areas)}",
            f"  {self.tensors} tensors ({_counted(self.dtypes)}), {self.bytes / 1e6:.1f} MB",
        ]
        if self.unknown:
            lines.append(f"  {self.unknown} modules are none of a Wan transformer")
        lines += [f"  {printable(key)}: {printable(value, 200)}" for key, value in self.metadata.items()]
        return lines


def inspect_lora(path: Path | str) -> LoraInspection:
    """What the LoRA at ``path`` is; raises as :func:`~cygnet.checkpoints.lora.file.read_lora`."""
    return describe_lora(read_lora(path))


def describe_lora(lora: LoraFile) -> LoraInspection:
    """The same for one that is open."""
    tensors, adapters = lora.file.tensors, lora.adapters.values()
    known = [stored for adapter in adapters for stored in adapter.parts.values()]
    kinds: Counter[str] = Counter(adapter.kind for adapter in adapters)
    areas: Counter[str] = Counter(map(_area, lora.adapters))
    return LoraInspection(
        path=lora.file.path,
        dialects=dict(Counter(map(dialect_of, known)).most_common()),
        kinds=dict(kinds.most_common()),
        ranks=dict(sorted(Counter(it.rank for it in adapters if it.rank is not None).items())),
        alphas=dict(Counter(it.alpha for it in adapters if it.rank is not None).most_common()),
        areas={name: areas[name] for name in (*(it for it, _ in _AREAS), "others") if areas[name]},
        modules=len(lora.adapters),
        unknown=lora.unknown_modules,
        blocks=_blocks(lora.adapters),
        base=_base(lora),
        dtypes=dict(Counter(tensors[stored].dtype for stored in tensors).most_common()),
        tensors=len(tensors),
        bytes=lora.file.nbytes,
        metadata={key: value[:MAX_SHOWN_METADATA] for key, value in sorted(lora.file.metadata.items())},
    )


def _area(module: str) -> str:
    return next((name for name, pattern in _AREAS if re.fullmatch(pattern, module)), "others")


def _blocks(modules: Iterable[str]) -> int:
    numbers = [int(match[1]) for it in modules if (match := re.match(r"blocks\.(\d+)\.", it))]
    return 1 + max(numbers, default=-1)


def _base(lora: LoraFile) -> str:
    """Which model its shapes belong to, in words."""
    width = _width(lora)
    if width is None:
        return "Wan 2.1 of a width that it does not tell"
    areas = {_area(module) for module in lora.adapters}
    variant = "VACE" if "VACE" in areas else "I2V" if "image attention" in areas else "T2V"
    size = _SIZES.get(width, f"model of width {width:,}")
    return f"{variant}-{size}" if width in _SIZES else f"a {variant} {size}"


def _width(lora: LoraFile) -> int | None:
    """The model's width, told by what an attention layer takes and gives, or by a bias, norm or modulation."""
    for module, adapter in lora.adapters.items():
        sizes = {part: lora.file.tensors[stored].shape for part, stored in adapter.parts.items()}
        if re.fullmatch(r"blocks\.\d+\.(?:self|cross)_attn\.\w+", module):
            shape = product_shape(sizes) if adapter.kind != "difference" else None
            if shape is not None:
                return shape[0]
            if told := next((sizes[part] for part in ("diff", "diff_b", "set") if sizes.get(part)), None):
                return told[0]
        if re.fullmatch(r"blocks\.\d+\.ffn\.2", module) and adapter.kind != "difference":
            shape = product_shape(sizes)
            if shape is not None:
                return shape[0]
    return None


def _alpha(value: float | None) -> str:
    return "none (the rank)" if value is None else f"{value:g}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _listed(counts: Mapping[Any, int]) -> str:
    if not counts:
        return "none"
    if len(counts) == 1:
        return str(next(iter(counts)))
    first = list(counts.items())[:6]
    more = "" if len(counts) <= 6 else ", …"
    return ", ".join(f"{value} ({count} modules)" for value, count in first) + more
