"""A training file is checked completely before any work begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cygnet.cli.main import run
from cygnet.errors import RequestError
from cygnet.training.config_file import config_from, documented, read_config

GOOD: dict[str, Any] = {"method": "lora", "model": "tiny-t2v", "output": "run", "steps": 10, "data": {"path": "clips"}}


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"step": 3}, "step", "did you mean 'steps'"),
        ({"steps": "10"}, "steps", "'10'"),
        ({"steps": 10**12}, "steps", "less than or equal to 10000000"),
        ({"steps": 0}, "steps", "greater than or equal to 1"),
        ({"method": "dreambooth"}, "method", "'lora', 'full', 'scratch' or 'vae'"),
        ({"data": {"path": "x", "sizes": ["830x480"]}}, "data.sizes", "multiples of 16"),
        ({"data": {"path": "x", "frames": [80]}}, "data.frames", "nearest: 77 or 81"),
        ({"data": {"path": "x", "fraems": [81]}}, "data.fraems", "did you mean 'frames'"),
        ({"data": {}}, "data.path", "missing"),
        ({"method": "full", "memory": {"base": "fp8"}}, None, "only lora"),
        ({"method": "full", "memory": {"block_swap": 2}}, None, "block_swap"),
        ({"every": {"sample": 5}}, None, "sample.prompts is empty"),
        ({"every": {"keep": 1}}, "every.keep", "greater than or equal to 2"),
        ({"batch": 3, "accumulate": 2}, None, "does not divide"),
        ({"optimizer": {"rate": float("nan")}}, "optimizer.rate", "finite"),
        ({"model": {"dit": "a"}}, None, "model.vae is missing"),
        ({"method": "vae", "preserve": {"captions": ["x"]}}, None, "preserve.captions"),
        ({"method": "vae", "preserve": {"path": "x"}}, None, "preserve.path"),
        ({"preserve": {"captions": ["x"], "path": "x"}}, "preserve", "exclude each other"),
        ({"memory": {"compile": "yes"}}, "memory.compile", "is 'yes'; it must be a valid boolean or 'auto'"),
        (
            {"preserve": {"captions": ["x"], "empty": 0.5}},
            "preserve",
            "preserve.empty is for the clips of preserve.path",
        ),
        ({"preserve": {"weight": 2.0, "batch": 2}}, "preserve", "preserve.weight and preserve.batch without"),
        ({"method": "vae", "memory": {"compile": True}}, None, "does not use memory.compile"),
        ({"bool": True}, "bool", "bool is no field"),
        ({"method": "vae", "every": {"validate": 1}}, None, "does not use every.validate"),
        ({"method": "vae", "data": {"path": "x", "validation": "y"}}, None, "does not use data.validation"),
        ({"method": "vae", "memory": {"checkpointing": "full"}}, None, "does not use memory.checkpointing"),
        ({"method": "full", "lora": {"rank": 32}}, None, "does not use [lora]"),
        ({"scratch": {"dim": 64}, "vae": {"crop": 64}}, None, "does not use [scratch], [vae]"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed(
    changes: dict[str, Any], field: str | None, words: str
) -> None:
    with pytest.raises(RequestError) as raised:
        config_from({**GOOD, **changes}, Path("/home"))
    assert words in str(raised.value)
    if field is not None:
        assert raised.value.field == field


def test_paths_begin_at_the_folder_of_the_file(tmp_path: Path) -> None:
    place = tmp_path / "train.toml"
    place.write_text('method = "lora"\nmodel = "tiny-t2v"\noutput = "run"\nsteps = 1\n[data]\npath = "clips"\n')
    config = read_config(place)
    assert (config.output, config.data.path) == (str(tmp_path / "run"), str(tmp_path / "clips"))
    assert config.model == "tiny-t2v"
    (tmp_path / "bad.toml").write_text("steps = = 3")
    for name, words in (("bad.toml", "not valid TOML"), ("none.toml", "cannot be read")):
        with pytest.raises(RequestError, match=words):
            read_config(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("steps = " + "9" * 5000, "digits"),
        ('output = "a\\u0000b"', "output is .* no usable path"),
        ('output = ""', "output is empty"),
        (f'output = "{"a" * 5000}"', "output is .* too long"),
        ('output = "~nobody-of-this-name/run"', "output is .* no usable path"),
    ],
    ids=["deep", "long-integer", "nul", "empty", "long-path", "nobody"],
)
def test_a_file_that_no_one_means_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    place = tmp_path / "train.toml"
    rest = "" if text.startswith("output") else 'output = "run"\n'
    place.write_text(
        f'{text}\n{rest}method = "lora"\nmodel = "tiny-t2v"\n' + "steps = 1\n" * (text[0] != "s") + "[data]\n"
        'path = "clips"\n'
    )
    with pytest.raises(RequestError, match=words):
        read_config(place)


def test_every_field_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(what and what.endswith(".") for _, _, what in documented())
    assert run(["train", "--fields", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["fields"]
    assert {"every.validate", "data.path", "lora.rank"} <= {row["field"] for row in listed}


def test_what_decides_the_weights_decides_the_identity() -> None:
    def identity(**changes: Any) -> str:
        return config_from({**GOOD, **changes}, Path("/home")).identity()

    assert identity() == identity(output="elsewhere", threads=2, every={"save": 7}, accumulate=1)
    assert identity() != identity(seed=1)
    assert identity() != identity(optimizer={"rate": 0.5})


def test_the_command_trains_and_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.toml").write_text(
        'method = "lora"\nmodel = "tiny-t2v"\noutput = "run"\nsteps = 10\ndevice = "cpu"\n'
        '[data]\npath = "clips"\nsizes = ["128x128"]\nframes = [17]\n'
    )
    assert run(["train", str(tmp_path / "train.toml"), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["tokens"] == 320
    assert plan["total"] == sum(plan["memory"].values())
    assert run(["train", str(tmp_path / "train.toml")]) == 2
    assert "there is no 'clips'" in capsys.readouterr().err
    assert run(["train"]) == 2
