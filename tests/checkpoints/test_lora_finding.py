from __future__ import annotations

from pathlib import Path

import pytest

from cygnet.checkpoints.lora.finding import find_lora
from cygnet.errors import ModelNotFoundError


def test_a_lora_is_found_by_its_name_in_the_loras_folders(tmp_path: Path) -> None:
    for name in ("style.safetensors", "sub/motion.safetensors", "sub/twice.safetensors", "twice.safetensors"):
        path = tmp_path / "models" / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    folder = tmp_path / "models" / "loras"
    for name in ("style.safetensors", "style"):
        assert find_lora(name, [tmp_path]) == folder / "style.safetensors"
    for name in ("sub/motion.safetensors", "motion.safetensors", "motion"):
        assert find_lora(name, [tmp_path]) == folder / "sub" / "motion.safetensors"
    assert find_lora(folder / "style.safetensors") == folder / "style.safetensors"
    assert find_lora("twice.safetensors", [tmp_path]) == folder / "twice.safetensors", "the very name comes first"
    with pytest.raises(ModelNotFoundError, match=r"several LoRAs: .*sub/twice"):
        find_lora("twice", [tmp_path])
    with pytest.raises(ModelNotFoundError, match="neither here nor in a loras folder"):
        find_lora("other", [tmp_path])
