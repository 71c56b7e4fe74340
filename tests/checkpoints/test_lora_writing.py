"""The LoRA files that cygnet writes: their names, what they say, and that they are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cygnet.checkpoints import ComponentWeights, read_component, save_official
from cygnet.checkpoints.lora import LowRankChange, read_lora, save_adapters, save_lora, with_loras
from cygnet.checkpoints.lora.names import LoraForm
from cygnet.errors import OutputError, RequestError
from cygnet.models.lora import Adapters, LowRank
from random_models import dit_config, state_of
from support import fill, relative_l2

Q, FFN = "blocks.0.self_attn.q", "blocks.1.ffn.2"
UP, DOWN = fill("up", [128, 4]), fill("down", [4, 128])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ComponentWeights:
    config = dit_config("t2v")
    return read_component(save_official(tmp_path_factory.mktemp("dit") / "dit.safetensors", state_of(config), config))


NAMES: dict[LoraForm, list[str]] = {
    "comfyui": [f"diffusion_model.{Q}.{it}" for it in ("alpha", "lora_A.weight", "lora_B.weight")],
    "diffusers": [f"transformer.blocks.0.attn1.to_q.lora_{it}.weight" for it in "AB"],
}


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_what_is_written_is_read_back_as_the_same_change(
    tmp_path: Path, base: ComponentWeights, form: LoraForm, alpha: float | None
) -> None:
    path = save_lora(tmp_path / "x.safetensors", {Q: LowRankChange(DOWN, UP, alpha)}, form=form, note={"base": "T2V"})
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == NAMES[form]
        assert json.loads(file.metadata()["cygnet.lora"]) == {"base": "T2V", "modules": 1, "ranks": [4]}
    change = with_loras(base, [(path, 1.0)]).tensor(f"{Q}.weight") - base.tensor(f"{Q}.weight")
    assert relative_l2(change, (1 if alpha is None else alpha / 4) * UP @ DOWN) < 1e-5


def test_trained_adapters_are_written_as_they_ran(tmp_path: Path, base: ComponentWeights) -> None:
    adapters = Adapters({FFN: LowRank(fill("d", [4, 96]), UP, 0.5)})
    path = save_adapters(tmp_path / "x.safetensors", adapters, dtype=torch.bfloat16)
    adapter = read_lora(path).adapters[FFN]
    assert (adapter.scale, adapter.alpha, adapter.rank) == (0.5, 2.0, 4)
    assert read_lora(path).file.tensors[adapter.parts["up"]].dtype == "bfloat16"
    change = with_loras(base, [(path, 1.0)]).tensor(f"{FFN}.weight") - base.tensor(f"{FFN}.weight")
    assert relative_l2(change, 0.5 * UP @ fill("d", [4, 96])) < 0.01


def test_what_would_make_no_lora_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for modules, words in (
        ({"double_blocks.0": LowRankChange(DOWN, UP)}, "no module of the transformer"),
        ({Q: LowRankChange(DOWN[:0], UP[:, :0])}, r"down \[0, 128\]"),
        ({Q: LowRankChange(DOWN[:2], UP)}, "must be"),
        ({Q: LowRankChange(DOWN, UP, float("nan"))}, "alpha"),
        ({Q: LowRankChange(DOWN * float("inf"), UP)}, "NaN or infinity"),
    ):
        with pytest.raises(RequestError, match=words):
            save_lora(path, modules)
    with pytest.raises(RequestError, match="would hold NaN or infinity in float16"):
        save_lora(path, {Q: LowRankChange(DOWN * 1e6, UP)}, dtype=torch.float16)
    with pytest.raises(RequestError, match="would hold NaN or infinity in float32"):
        save_lora(path, {}, rest={Q: {"diff_b": torch.full((128,), float("nan"))}})
    for part in ("unheard_of", "up_bias", "magnitude"):
        with pytest.raises(RequestError, match="one that cygnet refuses"):
            save_lora(path, {}, rest={Q: {part: torch.zeros(128)}})
    rest = {"blocks.0.norm3": {"diff": torch.zeros(128)}}
    with pytest.raises(RequestError, match="for which diffusers has no name"):
        save_lora(path, {}, rest=rest, form="diffusers")
    assert list(tmp_path.iterdir()) == []
    save_lora(path, {}, rest=rest)
    with pytest.raises(OutputError, match="exists"):
        save_lora(path, {}, rest=rest)
    assert [it.name for it in tmp_path.iterdir()] == ["x.safetensors"]
