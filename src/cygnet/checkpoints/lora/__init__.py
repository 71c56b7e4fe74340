"""LoRA files of every dialect: read, matched with a model, merged or run beside it, and written.

``names`` who calls what how; ``scales`` and ``file`` what a file holds; ``matching`` what of it a model has;
``arithmetic`` and ``merging`` weights with the changes in them; ``beside`` changes that run as low-rank branches;
``writing`` our own files; ``convert``, ``combine``, ``extract`` and ``inspection`` what ``cygnet lora`` does.

Papers: LoRA arXiv 2106.09685, LoHa 2108.06098, LoKr 2309.14859, DoRA 2402.09353, rsLoRA 2312.03732.
"""

from __future__ import annotations

from cygnet.checkpoints.lora.file import Adapter, LoraFile, read_lora
from cygnet.checkpoints.lora.matching import LEAST_COVERAGE, MAX_LORAS, MAX_STRENGTH, Coverage, Skipped
from cygnet.checkpoints.lora.merging import PatchedWeights, with_loras
from cygnet.checkpoints.lora.names import official_module
from cygnet.checkpoints.lora.writing import LowRankChange, save_adapters, save_lora

__all__ = [
    "LEAST_COVERAGE",
    "MAX_LORAS",
    "MAX_STRENGTH",
    "Adapter",
    "Coverage",
    "LoraFile",
    "LowRankChange",
    "PatchedWeights",
    "Skipped",
    "official_module",
    "read_lora",
    "save_adapters",
    "save_lora",
    "with_loras",
]
