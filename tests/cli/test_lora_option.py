"""``--lora``: merged, said, recorded, and found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cygnet as library
from cli_process import Command
from cygnet.api import Wan
from cygnet.checkpoints.digest import digest
from cygnet.checkpoints.lora.distilled import DISTILLED
from cygnet.cli.replay import recorded_loras
from cygnet.cli.wish import parse_loras, recipe_loras
from cygnet.errors import RequestError
from cygnet.media.receipt import read_receipt
from cygnet.pipelines.recipes import RECIPES
from random_models import write_model

PROMPT = "a red ball moves right"


@pytest.fixture
def style(place: Path) -> Path:
    torch.manual_seed(0)
    path = place / "style.safetensors"
    module = "diffusion_model.blocks.0.self_attn"
    save_file({f"{module}.{it}.diff": torch.randn(128, 128) for it in ("v", "o")}, path)
    return path


def test_a_lora_changes_the_video_and_stands_in_the_receipt(
    cygnet: Command, small: list[str], place: Path, style: Path
) -> None:
    plain = cygnet("generate", PROMPT, *small, "--seed", "1", "--out", "plain.png")
    done = cygnet("generate", PROMPT, *small, "--seed", "1", "--out", "x.mp4", "--lora", f"{style}:0.5")
    assert (plain.code, done.code) == (0, 0), done.err
    assert "LoRA style.safetensors at 0.5: 2 of 2 modules matched" in done.err
    [told] = read_receipt(place / "x.mp4")["model"]["loras"]
    assert (told["file"], told["strength"]) == ("style.safetensors", 0.5)
    assert "loras" not in json.loads((place / "plain.json").read_text())["model"]
    again = cygnet("replay", "x.mp4", "--check", *small[:2])
    assert again.code == 0, again.err
    other = cygnet("replay", "x.mp4", "--check", *small[:2], "--lora", f"{style}:0.25")
    assert other.code == 1
    assert "the LoRAs or their strengths are not those" in other.err
    style.unlink()
    missing = cygnet("replay", "x.mp4", "--check", *small[:2])
    assert missing.code == 2
    assert "--lora FILE:STRENGTH" in missing.err


def test_replay_finds_the_very_lora_in_a_loras_folder(
    cygnet: Command, small: list[str], place: Path, style: Path
) -> None:
    loras = place / "store" / "loras"
    (loras / "a").mkdir(parents=True)
    style.rename(loras / "style.safetensors")
    where = ("--model-paths", "store")
    done = cygnet("generate", PROMPT, *small, "--seed", "1", "--out", "x.mp4", "--lora", "style", *where)
    assert done.code == 0, done.err
    for other in (style, loras / "a" / style.name):  # of that name, but nearer or listed first
        save_file({"diffusion_model.blocks.0.self_attn.v.diff": torch.ones(128, 128)}, other)
    again = cygnet("replay", "x.mp4", "--check", *small[:2], *where)
    assert again.code == 0, again.err
    assert "the LoRAs" not in again.err
    style.write_bytes(b"no LoRA")
    assert cygnet("replay", "x.mp4", "--check", *small[:2], *where).code == 0


def test_replay_finds_a_lora_that_is_a_folder(place: Path) -> None:
    folder = place / "peft"
    folder.mkdir()
    factors = {"base_model.model.blocks.0.self_attn.v.lora_A.weight": torch.ones(2, 128),
               "base_model.model.blocks.0.self_attn.v.lora_B.weight": torch.ones(128, 2)}  # fmt: skip
    save_file(factors, folder / "adapter_model.safetensors")
    told = {"file": "peft", "strength": 0.5, "digest": digest([folder / "adapter_model.safetensors"])}
    assert recorded_loras({"model": {"loras": [told]}}, place / "out" / "x.mp4") == [(Path("peft"), 0.5)]
    for name in ("", "..", "other"):
        with pytest.raises(RequestError, match="nor in a loras folder"):
            recorded_loras({"model": {"loras": [told | {"file": name}]}}, place / "x.mp4")


@pytest.mark.parametrize("given", ["none.safetensors", "{}:nan", "{}:1e9", "{}:-101"])
def test_a_lora_that_cannot_be_is_refused_before_the_work(
    cygnet: Command, small: list[str], place: Path, style: Path, given: str
) -> None:
    done = cygnet("generate", PROMPT, *small, "--out", "x.mp4", "--lora", given.format(style))
    assert (done.code, done.out) == (2, "")
    assert [path.name for path in place.iterdir()] == ["style.safetensors"]


def test_strengths_are_told_from_names() -> None:
    assert parse_loras(["a.safetensors", "b.safetensors:0.5", "c:d.safetensors", "e:-1"]) == [
        (Path("a.safetensors"), 1.0),
        (Path("b.safetensors"), 0.5),
        (Path("c:d.safetensors"), 1.0),
        (Path("e"), -1.0),
    ]


def test_a_model_is_saved_with_its_loras_merged(tmp_path: Path, style: Path) -> None:
    (tmp_path / "parts").mkdir()
    paths = write_model(tmp_path / "parts")
    wan: Wan = library.load(paths, loras=[(style, 0.5)])
    folder = wan.save_pretrained(tmp_path / "merged", "official")
    name = "blocks.0.self_attn.v.weight"
    merged = library.load_dit(folder / "diffusion_pytorch_model.safetensors").state_dict()[name]
    same = library.load_dit(paths["dit"], loras=[(style, 0.5)]).state_dict()[name]
    assert torch.equal(merged, same)
    assert not torch.equal(merged, library.load_dit(paths["dit"]).state_dict()[name])
    plain = library.load_dit(paths["dit"], loras=[style]).state_dict()[name]
    assert not torch.equal(plain, merged), "a path alone has the strength 1"


def test_less_than_half_of_a_lora_is_taken_only_if_asked_for(cygnet: Command, small: list[str], place: Path) -> None:
    names = ("blocks.0.self_attn.q", *(f"blocks.{number}.self_attn.q" for number in range(50, 54)))
    save_file({f"diffusion_model.{it}.diff": torch.randn(128, 128) for it in names}, place / "deep.safetensors")
    refused = cygnet("generate", PROMPT, *small, "--out", "x.mp4", "--lora", "deep.safetensors")
    assert refused.code == 2
    assert "1 of 5 modules matched; 4 modules skipped because" in refused.err
    assert "--allow-partial-lora" in refused.err
    done = cygnet(
        "generate",
        PROMPT,
        *small,
        "--seed",
        "1",
        "--out",
        "x.mp4",
        "--lora",
        "deep.safetensors",
        "--allow-partial-lora",
    )
    assert done.code == 0, done.err
    assert read_receipt(place / "x.mp4")["model"]["loras"][0]["partial"] is True
    again = cygnet("replay", "x.mp4", "--check", *small[:2])
    assert again.code == 0, again.err


def test_a_recipe_takes_its_lora_with_a_published_model(cygnet: Command, place: Path) -> None:
    missing = cygnet("generate", PROMPT, "--model", "t2v-14b", "--recipe", "lightx2v", "--out", "x.mp4")
    assert missing.code == 2
    assert "get Lightx2v/lightx2v_T2V_14B" in missing.err
    folder = place / "models" / "loras"
    folder.mkdir(parents=True)
    path = folder / "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"
    path.write_bytes(b"x")
    assert recipe_loras("lightx2v", "t2v-14b", None, [place]) == [(path, 1.0)]
    assert recipe_loras("lightx2v", "tiny-t2v", None, [place]) == []
    assert recipe_loras(None, "t2v-14b", None, [place]) == []
    assert {it.recipe for it in DISTILLED} == set(RECIPES)


def test_streaming_merges_a_lora_as_keeping_does(cygnet: Command, small: list[str], place: Path) -> None:
    torch.manual_seed(0)
    module = "diffusion_model.blocks.0.self_attn.o"
    pair = {f"{module}.lora_down.weight": torch.randn(4, 128), f"{module}.lora_up.weight": torch.randn(128, 4)}
    save_file(pair, place / "low.safetensors")
    made = cygnet("generate", PROMPT, *small, "--seed", "1", "--lora", "low.safetensors", "--stream", "--out", "x.mp4")
    assert made.code == 0, made.err
    again = cygnet("replay", "x.mp4", "--check", *small[:2])  # which brings networks in whole
    assert again.code == 0, again.err
