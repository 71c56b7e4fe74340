"""Small weight files for tests: whole, in every layout, and broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cygnet.checkpoints import ComponentConfig, detect_config, save_official_folder
from cygnet.types import ComponentName
from support import golden_facts, seeded_weights

COMPONENT_KEYS: Mapping[str, tuple[ComponentName, tuple[str, ...]]] = {
    "t2v": ("dit", ("dit", "t2v")),
    "i2v": ("dit", ("dit", "i2v")),
    "flf2v": ("dit", ("dit", "flf2v")),
    "vae": ("vae", ("vae",)),
    "umt5": ("text_encoder", ("t5",)),
    "clip": ("image_encoder", ("clip",)),
}
"""Sample name to component and place of its key list in ``golden.json``."""


def sample_shapes(sample: str) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of a tiny network."""
    facts: Any = golden_facts()
    for step in COMPONENT_KEYS[sample][1]:
        facts = facts[step]
    return {name: tuple(shape) for name, shape in facts["keys"].items()}


def sample_state(sample: str) -> dict[str, torch.Tensor]:
    """Seeded float32 weights of a tiny network under official names."""
    return seeded_weights(sample_shapes(sample))


def save(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write ``state`` with the reference implementation of the format."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def raw_safetensors(
    path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> Path:
    """A safetensors file from any header text and any data; ``length`` overrides the length field."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def sample_config(sample: str) -> Any:
    """The architecture of a tiny network."""
    return detect_config(COMPONENT_KEYS[sample][0], sample_shapes(sample))


def pipeline_parts(dit: str) -> dict[ComponentName, tuple[dict[str, torch.Tensor], ComponentConfig]]:
    """Weights and architectures of everything that a tiny pipeline with this DiT needs."""
    samples: dict[ComponentName, str] = {"dit": dit, "vae": "vae", "text_encoder": "umt5"}
    if dit != "t2v":
        samples["image_encoder"] = "clip"
    return {name: (sample_state(sample), sample_config(sample)) for name, sample in samples.items()}


def official_repository(folder: Path) -> Path:
    """The I2V repository in small: sharded DiT, ``.pth`` files, tokenizer folders."""
    save_official_folder(folder, sample_state("i2v"), sample_config("i2v"), max_shard_bytes=10**7)
    torch.save(sample_state("vae"), folder / "Wan2.1_VAE.pth")
    torch.save(sample_state("umt5"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    clip = {f"visual.{name}": value for name, value in sample_state("clip").items()}
    torch.save(clip | {"log_scale": torch.tensor(1.0)}, folder / "models_clip_open-clip.pth")
    for name in ("google/umt5-xxl", "xlm-roberta-large"):
        (folder / name).mkdir(parents=True)
        (folder / name / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("Wan")
    return folder
