from __future__ import annotations

from pathlib import Path

import pytest

from cygnet.checkpoints.catalogue import NAMES
from cygnet.checkpoints.lora.distilled import DISTILLED, distilled_lora, needs_lora
from cygnet.errors import ModelNotFoundError, RequestError


def test_the_lora_of_a_recipe_is_found_in_folders_and_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"Lightx2v/lightx2v_T2V_14B.* of the repository Kijai/WanVideo_comfy"):
        distilled_lora("lightx2v", "t2v-14b", cache_folder=tmp_path)
    cached = tmp_path / "models--Kijai--WanVideo_comfy" / "snapshots" / "abc" / DISTILLED[0].path
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert distilled_lora("lightx2v", "T2V-14B", cache_folder=tmp_path) == (cached, 1.0)
    folder = tmp_path / "comfy" / "models" / "loras"
    folder.mkdir(parents=True)
    for name in ("other", "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32"):
        (folder / f"{name}.safetensors").write_bytes(b"x")
    found = distilled_lora("lightx2v", "t2v-14b", [tmp_path / "comfy"], cache_folder=tmp_path)
    assert found == (folder / "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors", 1.0)


def test_only_published_models_need_one_and_all_that_are_named_exist() -> None:
    assert needs_lora("lightx2v", "t2v-14b")
    assert not needs_lora("lightx2v", None)
    assert not needs_lora("lightx2v", "distilled.safetensors")
    assert not needs_lora("lightx2v", "tiny-t2v")
    assert not needs_lora(None, "t2v-14b")
    assert {name for it in DISTILLED for name in it.models} <= set(NAMES)
    with pytest.raises(RequestError, match=r"has a LoRA for t2v-14b, .*, and none for tiny-t2v"):
        distilled_lora("lightx2v", "tiny-t2v")
