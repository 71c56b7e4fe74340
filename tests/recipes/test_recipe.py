"""The recipe's steps fit together: what one writes, the next reads, and all of it goes on after a stop."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.tiny import export, make, train_clip, train_i2v, train_t2v, train_vae
from recipes.tiny.latents import SHARD, Latents, clip, encode_shards, first_frame, scene_of
from recipes.tiny.train_t2v import ROWS, Captioner
from recipes.tiny.train_vae import Stage

import cygnet
from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.checkpoints.saving import save_official
from cygnet.models.clip.config import TINY_CLIP
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import TINY_I2V, TINY_T2V
from cygnet.training.loop import Pace
from cygnet.training.state import newest_state


def fill(folder: Path, seed: int) -> Path:
    """A shard of noise in place of encoded clips."""
    generator = torch.Generator().manual_seed(seed)
    encode_shards(lambda index: torch.randn(16, 5, 16, 16, generator=generator), folder, SHARD)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", *map(str, arguments)])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    module.main()  # type: ignore[attr-defined]


def test_the_first_frame_is_that_of_the_clip() -> None:
    for index in (0, 7, 123):
        scene, frames = clip(index)
        assert scene == scene_of(index)
        assert np.array_equal(frames[0], first_frame(index))


def test_shards_are_shared_out_and_never_made_twice(tmp_path: Path) -> None:
    asked: list[int] = []

    def encode(index: int) -> torch.Tensor:
        asked.append(index)
        return torch.full((1, 1, 1, 1), float(index))

    for part in (1, 0):
        encode_shards(encode, tmp_path, 3 * SHARD, part=part, parts=2)
    assert sorted(asked) == list(range(3 * SHARD))
    encode_shards(encode, tmp_path, 3 * SHARD)
    assert len(asked) == 3 * SHARD
    latents = Latents(tmp_path)
    assert len(latents) == 3 * SHARD
    assert float(latents[2 * SHARD + 5]) == 2 * SHARD + 5


def test_a_folder_without_latents_or_with_a_gap_says_how_to_make_them(tmp_path: Path) -> None:
    np.save(tmp_path / "00001.npy", np.zeros((SHARD, 1)))
    with pytest.raises(SystemExit, match=r"recipes\.tiny\.latents"):
        Latents(tmp_path)


def test_captions_have_one_shape_and_zero_rows_behind_them() -> None:
    captioner = Captioner(EMBEDDED / "text_encoder.safetensors")
    rng = np.random.default_rng(0)
    texts = [captioner.draw(scene_of(i), rng) for i in range(40)]
    rows = captioner(["", *texts])
    assert rows.shape[1] == ROWS
    used = (rows.abs().sum(dim=-1) > 0).sum(dim=1)
    assert used.tolist() == [len(captioner.tokenizer.encode(text)) for text in ["", *texts]]


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_the_share_of_clips_with_two_things_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two: float
) -> None:
    fill(tmp_path, 1)
    drawn: list[int] = []
    monkeypatch.setattr(train_t2v, "scene_of", lambda index: drawn.append(index) or scene_of(index))
    captioner = Captioner(EMBEDDED / "text_encoder.safetensors")
    draw = train_t2v.batches(Latents(tmp_path), captioner, two)
    drawn.clear()
    for step in range(3):
        draw(step)
    assert drawn
    assert {len(scene_of(index).entities) for index in drawn} == {2 if two else 1}


def test_both_transformers_train_resume_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, pictures = fill(tmp_path / "latents", 1), fill(tmp_path / "pictures", 2)
    weights, runs = tmp_path / "weights", tmp_path / "runs"
    weights.mkdir()
    (weights / "text_encoder.safetensors").write_bytes((EMBEDDED / "text_encoder.safetensors").read_bytes())
    torch.manual_seed(0)
    tower = CLIPVision(TINY_CLIP)
    save_official(weights / "image_encoder.safetensors", tower.state_dict(), TINY_CLIP, dtype=torch.bfloat16)
    for module in (train_t2v, train_i2v):
        monkeypatch.setattr(module, "BATCH", 2)
    given = ["--latents", latents, "--weights", weights, "--device", "cpu"]
    for steps in (1, 2):
        run(monkeypatch, train_t2v, *given, "--out", runs / "t2v", "--steps", steps)
    assert newest_state(runs / "t2v")["step"] == 2
    export.export(runs, weights, ("t2v",))
    assert cygnet.load_dit(weights / "t2v.safetensors").config == TINY_T2V
    run(monkeypatch, train_i2v, *given, "--pictures", pictures, "--out", runs / "i2v", "--steps", 1)
    export.export(runs, weights)
    assert cygnet.load_dit(weights / "i2v.safetensors").config == TINY_I2V
    again = runs / "again"
    run(monkeypatch, train_t2v, *given, "--out", again, "--start", weights / "t2v.safetensors", "--steps", 0)
    started = newest_state(again)["dit"]
    trained = newest_state(runs / "t2v")["average"]["shadow"]
    name = "blocks.0.self_attn.q.weight"
    assert torch.equal(started[name], trained[name].bfloat16().float())


class Parsed(Exception):
    """The arguments were understood; no work is done."""


@pytest.mark.parametrize("name", make.FILES)
def test_the_one_command_calls_modules_that_understand_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    for module, *rest in make.commands(name, tmp_path / "runs", tmp_path / "out", compiled=True):
        with pytest.raises(Parsed):
            run(monkeypatch, importlib.import_module(f"recipes.tiny.{module}"), *rest)


def test_a_finished_network_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in make.FILES.values():
        (tmp_path / file).touch()
    run(monkeypatch, make, "--runs", tmp_path / "runs", "--out", tmp_path)
    assert capsys.readouterr().out.count(": finished") == len(make.FILES)
    assert not (tmp_path / "runs").exists()


def test_a_failed_step_stops_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "commands", lambda *given: [["no_such_module"]])
    with pytest.raises(SystemExit, match="no_such_module stopped"):
        run(monkeypatch, make, "--runs", tmp_path / "runs", "--out", tmp_path)


def test_an_untrained_transformer_predicts_nothing_at_first() -> None:
    dit = train_t2v.fresh()
    with torch.no_grad():
        out = dit(torch.randn(1, 16, 1, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, TINY_T2V.text_dim))
    assert float(out.abs().max()) == 0.0


def test_the_autoencoder_goes_on_in_the_midst_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_vae, "psnr", lambda vae: 0.0)
    stages = (Stage("pictures", 2, 1, 1, 16, 5e-4), Stage("crops", 2, 1, 5, 16, 3e-4))
    assert [train_vae.at(step, stages) for step in range(4)] == [(one, step) for one in stages for step in range(2)]
    train_vae.train(tmp_path / "whole", seconds=1e9, compiled=False, stages=stages)

    def interrupted(rng: np.random.Generator, stage: Stage) -> torch.Tensor:
        if stage.name == "crops":
            raise KeyboardInterrupt
        return plain(rng, stage)

    plain, keep = train_vae.batch_of, Pace
    monkeypatch.setattr(train_vae, "Pace", lambda **named: keep(**{**named, "save_every": 1}))
    monkeypatch.setattr(train_vae, "batch_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_vae.train(tmp_path / "broken", seconds=1e9, compiled=False, stages=stages)
    monkeypatch.setattr(train_vae, "batch_of", plain)
    train_vae.train(tmp_path / "broken", seconds=1e9, compiled=False, stages=stages)
    whole, broken = newest_state(tmp_path / "whole"), newest_state(tmp_path / "broken")
    assert whole is not None
    assert broken is not None
    assert whole["step"] == broken["step"] == 4
    assert all(torch.equal(value, broken["vae"][name]) for name, value in whole["vae"].items())
    mean = broken["average"]["shadow"]
    assert all(torch.equal(value, mean[name]) for name, value in export.averaged(tmp_path / "whole").items())


def test_the_tower_trains_and_is_taken_from_its_run(tmp_path: Path) -> None:
    train_clip.train(tmp_path / "clip", steps=2, batch=2)
    CLIPVision(TINY_CLIP).load_state_dict(export.part_of(tmp_path / "clip", "tower."))
