"""What files say about ``alpha / rank`` outside of their tensors: in their header (Diffusers) or beside them (PEFT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cygnet.checkpoints.json_text import parse_object
from cygnet.checkpoints.lora.names import official_module
from cygnet.checkpoints.weight_file import WeightFile, printable, read_small_file, shown
from cygnet.errors import WeightFileError

METADATA_KEY = "lora_adapter_metadata"
"""Where Diffusers notes ranks and alphas in the header, which its tensors do not carry."""
PEFT_CONFIG = "adapter_config.json"
"""Where PEFT notes them, beside a file called ``adapter_model``."""
MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class NotedScales:
    """Alpha and rank, with exceptions by module; ``by_root`` if alpha is divided by the root of the rank (rsLoRA)."""

    alpha: float | None = None
    rank: float | None = None
    special: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    @classmethod
    def of(cls, file: WeightFile) -> NotedScales:
        """What ``file`` notes; raises ``WeightFileError`` for numbers that mean nothing."""
        text = file.metadata.get(METADATA_KEY)
        if text is not None:
            where = f"the note {METADATA_KEY!r} in the header of {shown(file.path)}"
            noted = parse_object(text.encode(), where, max_depth=6, max_values=20_000)
            # A pipeline's file prefixes each network's part; a transformer's own has no prefix.
            prefix = "transformer." if any(key.startswith("transformer.") for key in noted) else ""
            return cls._read(noted, prefix, where)
        folder = file.path if file.path.is_dir() else file.path.parent
        path = folder / PEFT_CONFIG
        if file.files[0].name.startswith("adapter_model") and path.exists():
            data = read_small_file(path, MAX_CONFIG_BYTES)
            return cls._read(parse_object(data, shown(path), max_depth=8, max_values=20_000), "", shown(path))
        return cls()

    @classmethod
    def _read(cls, noted: Mapping[str, Any], prefix: str, where: str) -> NotedScales:
        alpha = noted.get(f"{prefix}lora_alpha", noted.get(f"{prefix}alpha"))  # the second is that of LoHa and LoKr
        rank = noted.get(f"{prefix}r")
        special = noted.get(f"{prefix}alpha_pattern") or {}
        if not isinstance(special, dict):
            raise WeightFileError(f"{where} has an alpha_pattern that is no object of names and numbers")
        return cls(
            None if alpha is None else _positive(alpha, where),
            None if rank is None else _positive(rank, where),
            {str(pattern): _positive(value, where) for pattern, value in special.items()},
            noted.get(f"{prefix}use_rslora") is True,
        )

    def scale(self, module: str, stem: str, rank: int | None) -> float:
        """What the product of ``module``, stored as ``stem``, is multiplied with; 1 where nothing is noted.

        ``rank`` is that of its factors; None if none tells it (LoKr of two whole matrices).
        """
        alpha = self.alpha
        for pattern, special in self.special.items():
            name = pattern.lstrip("^")
            if name == stem or stem.endswith(f".{name}") or official_module(name) == module:
                alpha = special
        divisor = self.rank if rank is None else rank
        if alpha is None or divisor is None:
            return 1.0
        return alpha / math.sqrt(divisor) if self.by_root else alpha / divisor


def _positive(number: Any, where: str) -> float:
    try:
        value = float(number) if type(number) in (int, float) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise WeightFileError(f"{where} says {printable(str(number))}; ranks and alphas are numbers above 0")
    return value
