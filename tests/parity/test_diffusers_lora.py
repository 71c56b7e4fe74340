"""LoRAs that cygnet writes do in Diffusers what they do here, and those of PEFT and Diffusers do the same here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cygnet.assembly import load_dit
from cygnet.checkpoints import save_diffusers_component, save_diffusers_pipeline, save_official
from cygnet.checkpoints.lora import LowRankChange, save_lora
from cygnet.checkpoints.lora.convert import convert_lora
from cygnet.checkpoints.lora.names import LoraForm
from cygnet.models.dit.config import Variant
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable
from random_models import VAE, dit_config, spiece, state_of, text_config
from support import fill, relative_l2

pytestmark = pytest.mark.oracle
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


@pytest.fixture
def both(tmp_path: Path) -> Callable[[Variant], tuple[Path, Any]]:
    diffusers: Any = pytest.importorskip("diffusers")
    pytest.importorskip("peft")

    def models(variant: Variant) -> tuple[Path, Any]:
        config = dit_config(variant)
        state = state_of(config)
        ours = save_official(tmp_path / "dit.safetensors", state, config)
        folder = save_diffusers_component(tmp_path / "transformer", state, config)
        return ours, diffusers.WanTransformer3DModel.from_pretrained(folder).eval()

    return models


@torch.no_grad()
def our_answer(path: Path, *loras: tuple[Path, float]) -> torch.Tensor:
    dit = load_dit(path, loras=loras)
    condition = dit.config.in_channels - 16
    return dit(  # type: ignore[no-any-return]
        fill("x", [1, 16, 2, 4, 4]),
        torch.tensor([500.0]),
        fill("c", [1, 512, 32]),
        *((fill("i", [1, 5, 80]), fill("y", [1, condition, 2, 4, 4])) if condition else ()),
    )


@torch.no_grad()
def their_answer(transformer: Any) -> torch.Tensor:
    latents = fill("x", [1, 16, 2, 4, 4])
    image = None
    if transformer.config.image_dim is not None:
        image = fill("i", [1, 5, 80])
        latents = torch.cat([latents, fill("y", [1, transformer.config.in_channels - 16, 2, 4, 4])], dim=1)
    return transformer(  # type: ignore[no-any-return]
        latents, torch.tensor([500.0]), fill("c", [1, 512, 32]), image, return_dict=False
    )[0]


def changes(dit: DiT, alpha: float | None) -> dict[str, LowRankChange]:
    found = {}
    for name in adaptable(dit):
        out, inner = dit.get_parameter(f"{name}.weight").shape
        found[name] = LowRankChange(fill(f"{name} down", [4, inner]), 0.2 * fill(f"{name} up", [out, 4]), alpha)
    return found


@pytest.mark.parametrize("form", ["comfyui", "diffusers"])
@pytest.mark.parametrize("variant", ["t2v", "i2v"])
def test_a_lora_that_cygnet_writes_does_the_same_in_diffusers(
    both: Callable[[Variant], tuple[Path, Any]], tmp_path: Path, variant: Variant, form: LoraForm
) -> None:
    from diffusers import WanPipeline  # type: ignore[import-not-found]

    ours, theirs = both(variant)
    lora = save_lora(tmp_path / "lora.safetensors", changes(load_dit(ours), 3.0), form=form)
    plain = their_answer(theirs)
    assert relative_l2(our_answer(ours), plain) < 1e-4
    state, metadata = WanPipeline.lora_state_dict(tmp_path, weight_name="lora.safetensors", return_lora_metadata=True)
    theirs.load_lora_adapter(state, metadata=metadata)
    expected = their_answer(theirs)
    assert relative_l2(expected, plain) > 0.05, "it matters"
    assert relative_l2(our_answer(ours, (lora, 1.0)), expected) < 1e-3
    theirs.set_adapters(["default_0"], [0.5])
    assert relative_l2(our_answer(ours, (lora, 0.5)), their_answer(theirs)) < 1e-3


def test_a_pipeline_of_diffusers_loads_it(tmp_path: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    configs: dict[str, Any] = {"dit": dit_config("t2v"), "vae": VAE, "text_encoder": text_config()}
    parts: Any = {name: (state_of(config), config) for name, config in configs.items()}
    pipeline = diffusers.WanPipeline.from_pretrained(
        save_diffusers_pipeline(tmp_path / "pipeline", parts, tokenizer=spiece())
    )
    ours = save_official(tmp_path / "dit.safetensors", *parts["dit"])
    kohya = {}
    for name, change in changes(load_dit(ours), 2.0).items():
        stem = "lora_unet_" + name.replace(".", "_")
        kohya |= {
            f"{stem}.lora_down.weight": change.down, f"{stem}.lora_up.weight": change.up,
            f"{stem}.alpha": torch.tensor(2.0),
        }  # fmt: skip
    save_file(kohya, tmp_path / "kohya.safetensors")
    converted = convert_lora(tmp_path / "kohya.safetensors", tmp_path / "converted.safetensors", "diffusers")
    pipeline.load_lora_weights(tmp_path, weight_name=converted.name)
    expected = their_answer(pipeline.transformer)
    for path in (tmp_path / "kohya.safetensors", converted):
        assert relative_l2(our_answer(ours, (path, 1.0)), expected) < 1e-3


def randomise(module: Any) -> None:
    for name, value in module.named_parameters():
        if any(part in name for part in ("lora_A", "lora_B", "hada_", "lokr_")):
            value.data = (0.2 if "lora" in name else 0.7) * fill(name, list(value.shape))
        elif "magnitude" in name:
            value.data = value.data * (1 + 0.2 * fill(name, list(value.shape)))


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn2.to_k": 1}, "rank_pattern": {"to_v": 2}}]
)
def test_a_lora_that_diffusers_saves_does_the_same_here(
    both: Callable[[Variant], tuple[Path, Any]], tmp_path: Path, options: dict[str, Any]
) -> None:
    from peft import LoraConfig  # type: ignore[import-not-found]

    ours, theirs = both("t2v")
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **options))
    randomise(theirs)
    theirs.save_lora_adapter(tmp_path / "saved")
    path = next((tmp_path / "saved").glob("*.safetensors"))
    plain = our_answer(ours)
    expected = their_answer(theirs)
    assert relative_l2(expected, plain) > 0.02
    assert relative_l2(our_answer(ours, (path, 1.0)), expected) < 1e-3


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "rsLoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "with biases": ("LoraConfig", {"r": 4, "lora_alpha": 6, "lora_bias": True}),
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 6}),
    "LoKr": ("LoKrConfig", {"r": 4, "alpha": 6}),
    "LoKr of two products": ("LoKrConfig", {"r": 2, "alpha": 3, "decompose_both": True, "decompose_factor": 16}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_peft_saves_does_the_same_here(
    both: Callable[[Variant], tuple[Path, Any]], tmp_path: Path, kind: str
) -> None:
    import peft

    ours, theirs = both("t2v")
    name, options = KINDS[kind]
    wrapped = peft.get_peft_model(theirs, getattr(peft, name)(target_modules=TARGETS, **options))
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path / "peft")
    expected = their_answer(wrapped.base_model.model)
    assert relative_l2(expected, our_answer(ours)) > 0.02
    assert relative_l2(our_answer(ours, (tmp_path / "peft", 1.0)), expected) < 1e-3
    converted = convert_lora(tmp_path / "peft", tmp_path / "converted.safetensors", "comfyui")
    assert relative_l2(our_answer(ours, (converted, 1.0)), expected) < 1e-3
