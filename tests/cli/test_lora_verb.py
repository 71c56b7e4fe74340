"""``cygnet lora`` and what ``cygnet inspect`` says of LoRAs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_process import Command
from cygnet.checkpoints import read_component
from cygnet.checkpoints.lora import with_loras
from random_models import write_model
from support import fill, relative_l2

Q = "blocks.0.self_attn.q"


def lora_file(path: Path, blocks: int = 1) -> Path:
    tensors = {}
    for number in range(blocks):
        name = f"diffusion_model.blocks.{number}.self_attn.q"
        tensors |= {f"{name}.lora_A.weight": fill("d", [4, 128]), f"{name}.lora_B.weight": fill("u", [128, 4])}
    save_file(tensors, path)
    return path


@pytest.fixture
def model(place: Path) -> Path:
    (place / "parts").mkdir()
    return write_model(place / "parts")["dit"]


def test_a_lora_is_described_by_both_verbs(cygnet: Command, place: Path) -> None:
    lora_file(place / "style.safetensors")
    done = cygnet("lora", "inspect", "style.safetensors")
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == [
        "style.safetensors: a LoRA for a T2V model of width 128",
        "  names: 2 ComfyUI; kinds: 1 LoRA",
        "  ranks: 4; alphas: none (the rank)",
    ]
    assert cygnet("inspect", "style.safetensors").out == done.out
    told = json.loads(cygnet("lora", "inspect", "style.safetensors", "--json").out)
    assert (told["kind"], told["ranks"], told["modules"]) == ("lora", {"4": 1}, 1)
    (place / "models" / "loras").mkdir(parents=True)
    (place / "style.safetensors").rename(place / "models" / "loras" / "moved.safetensors")
    assert cygnet("lora", "inspect", "moved", "--model-paths", ".").out.startswith("moved.safetensors: a LoRA")


def test_loras_are_converted_merged_and_extracted(cygnet: Command, place: Path, model: Path) -> None:
    lora_file(place / "a.safetensors")
    done = cygnet("lora", "convert", "a.safetensors", "--to", "diffusers", "--out", "b.safetensors")
    assert (done.code, done.out) == (0, "b.safetensors\n"), done.err
    done = cygnet("lora", "merge", "a.safetensors:0.25", "b.safetensors:0.5", "--out", "c.safetensors")
    assert (done.code, done.out) == (0, "c.safetensors\n"), done.err
    done = cygnet("lora", "merge", "c.safetensors", "--base", str(model), "--out", "merged.safetensors")
    assert (done.code, done.out) == (0, "merged.safetensors\n"), done.err
    assert "LoRA c.safetensors at 1: 1 of 1 modules matched" in done.err
    base, merged = (read_component(it).tensor(f"{Q}.weight") for it in (model, place / "merged.safetensors"))
    assert relative_l2(merged - base, 0.75 * fill("u", [128, 4]) @ fill("d", [4, 128])) < 1e-5
    again = cygnet(
        "lora", "extract", str(model), "merged.safetensors", "--rank", "4", "--out", "d.safetensors", "--json"
    )
    assert again.code == 0, again.err
    told = json.loads(again.out)
    assert (told["modules"], told["rank"], round(told["kept"], 6)) == (1, 4, 1.0)
    back = with_loras(read_component(model), [(place / "d.safetensors", 1.0)]).tensor(f"{Q}.weight")
    assert relative_l2(back, merged) < 1e-5


def test_modules_that_a_merge_leaves_out_are_told(cygnet: Command, place: Path) -> None:
    path = lora_file(place / "te.safetensors")
    more = {f"lora_te_layer_{number}.lora_down.weight": torch.ones(2, 8) for number in range(2)}
    save_file(load_file(path) | more, path)
    done = cygnet("lora", "merge", "te.safetensors", "--out", "b.safetensors", "--json")
    assert done.code == 0, done.err
    assert "te.safetensors: 2 modules left out, part of no Wan transformer" in done.err
    assert json.loads(done.out)["left_out"] == [{"file": "te.safetensors", "modules": 2}]


def test_what_cannot_be_is_refused_and_nothing_is_left(cygnet: Command, place: Path, model: Path) -> None:
    lora_file(place / "a.safetensors")
    lora_file(place / "deep.safetensors", 9)
    before = sorted(it.name for it in place.iterdir())
    for arguments, words in (
        (("convert", "a.safetensors", "--out", "b.bin"), "must end in .safetensors"),
        (("convert", "none.safetensors", "--out", "b.safetensors"), "neither here nor in a loras folder"),
        (("convert", str(model), "--out", "b.safetensors"), "is no LoRA for Wan"),
        (("convert", "a.safetensors", "--out", "b.safetensors", "--to", "kohya"), "comfyui"),
        (("merge", "--out", "b.safetensors"), "no LoRA is given"),
        (("merge", "a.safetensors", "--out", "a.safetensors"), "exists"),
        (("merge", "a.safetensors", "--out", "nowhere/b.safetensors"), "make the folder nowhere first"),
        (("merge", "a.safetensors", "--base", "a.safetensors", "--out", "b.safetensors"), "this is a LoRA"),
        (("merge", "a.safetensors", "--base", str(model), "--rank", "3", "--out", "b.safetensors"), "--rank"),
        (("merge", "deep.safetensors", "--base", str(model), "--out", "b.safetensors"), "2 of 9 modules matched"),
        (("extract", str(model), str(model), "--out", "b.safetensors"), "do not differ"),
        (("extract", str(model), str(model), "--rank", "0", "--out", "b.safetensors"), "rank is 0"),
    ):
        done = cygnet("lora", *arguments)
        assert done.code in (1, 2), arguments
        assert words in done.err.splitlines()[-1], done.err
        assert done.out == ""
    assert sorted(it.name for it in place.iterdir()) == before
    done = cygnet(
        "lora", "merge", "deep.safetensors", "--base", str(model), "--out", "b.safetensors", "--allow-partial-lora"
    )
    assert done.code == 0, done.err
    assert torch.isfinite(read_component(place / "b.safetensors").tensor(f"{Q}.weight")).all()
