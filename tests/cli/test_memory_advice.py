"""What is advised when memory runs out: options that the verb has, and that take less."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cygnet as package
from cli_process import Command
from cygnet.cli import main
from cygnet.errors import OutOfMemory
from cygnet.planning import Subject, subject_of
from cygnet.planning.words import ways_to_less
from cygnet.runtime.plan import Placement
from cygnet.runtime.residency import Placed
from cygnet.types import ComponentName
from random_models import write_model

EACH = Placement(resident=False)
TILED = package.Execution(decode_tiles="416x240", encode_tiles="416x240")


def options(cygnet: Command, *verb: str) -> set[str]:
    return set(re.findall(r"--[a-z0-9-]+", cygnet(*verb, "--help").out))


def test_every_option_that_is_advised_exists(cygnet: Command) -> None:
    for verb, words in main._LESS_MEMORY.items():
        wanted = set(re.findall(r"--[a-z0-9-]+", words))
        assert wanted <= options(cygnet, verb, *(["vae"] if verb == "bench" else [])), verb
        error = main._unexpected(MemoryError(), [verb, "x"], debug=False)
        assert str(error) == f"out of memory (no message); {words}"
    assert "--size" not in str(main._unexpected(MemoryError(), ["lora", "merge"], debug=False))
    every = [
        ways_to_less(subject, placement, part)
        for subject in (subject_of("tiny-i2v", torch.device("cpu"), "float32", execution=TILED),)
        for placement in (EACH, Placement(resident=True))
        for part in subject.weights
    ]
    wanted = {option for ways in every for option in re.findall(r"--[a-z0-9-]+", " ".join(ways))}
    assert wanted == {"--stream", "--dtype", "--weight-dtype", "--decode-dtype", "--decode-tiles", "--encode-tiles"}
    assert wanted <= options(cygnet, "generate")
    assert "--stream" in options(cygnet, "replay")


def subject(dtype: str, **changes: Any) -> Subject:
    found = subject_of("tiny-i2v", torch.device("cpu"), dtype)
    weights = {part: replace(each, **changes.get(part, {})) for part, each in found.weights.items()}
    return replace(found, weights=weights)


@pytest.mark.parametrize(
    ("part", "dtype", "placement", "words"),
    [
        ("text_encoder", "float32", EACH, ["--stream", "--dtype bfloat16", "text encoder that is stored in 8 bits"]),
        ("text_encoder", "bfloat16", replace(EACH, streamed=frozenset({"text_encoder"})), []),
        ("dit", "bfloat16", EACH, ["--stream", "--weight-dtype fp8", "transformer that is stored in 8 bits"]),
        ("dit", "bfloat16", replace(EACH, streamed=frozenset({"dit"})), []),
        ("dit", "bfloat16", Placement(resident=True), ["offload=True", "--stream", "lossy", "stored in 8 bits"]),
        ("image_encoder", "float32", EACH, ["--dtype bfloat16"]),
        ("vae", "float32", EACH, ["--decode-dtype bfloat16"]),
        ("vae", "bfloat16", EACH, []),
    ],
)
def test_each_stage_names_what_helps_there(
    part: ComponentName, dtype: str, placement: Placement, words: Sequence[str]
) -> None:
    found = subject(dtype)
    found = replace(found, decode_dtype=torch.float32 if dtype == "float32" else torch.bfloat16)
    ways = ways_to_less(found, placement, part)
    assert len(ways) == len(words)
    assert all(word in way for word, way in zip(words, ways, strict=True))


def test_weights_in_eight_bits_are_not_advised_to_be_and_fp8_is_named_where_it_is_in_the_way() -> None:
    for changes in ({"eight_bit": 1}, {"widened": 1}):
        narrow = subject("bfloat16", dit=changes)
        assert not any("8 bits" in way for way in ways_to_less(narrow, EACH, "dit"))
    assert not any("lossy" in way for way in ways_to_less(subject("bfloat16"), EACH, "dit", same=True))
    rounded = replace(subject("bfloat16", dit={"streamed": None}), execution=package.Execution(fp8=True))
    assert [way.split(",")[0] for way in ways_to_less(rounded, EACH, "dit")] == ["leave out --fp8"]


def test_tiles_are_advised_only_where_none_are_taken_by_themselves() -> None:
    """A plan takes tiles without being asked; those that were asked for it leaves as they are."""
    kind = torch.device("cpu")
    assert not any("tiles" in way for way in ways_to_less(subject("bfloat16"), EACH, "vae"))
    tiled = subject_of("tiny-i2v", kind, "bfloat16", execution=TILED)
    ways = ways_to_less(tiled, EACH, "vae")
    assert ways[-2:] == ["leave out --decode-tiles 416x240", "leave out --encode-tiles 416x240"]
    assert not any("tiles" in way for way in ways_to_less(tiled, EACH, "vae", failed=True))
    assert not any("tiles" in way for way in ways_to_less(tiled, EACH, "vae", same=True))
    assert not any("tiles" in way for way in ways_to_less(tiled, EACH, "dit"))
    least = subject_of("tiny-i2v", kind, "bfloat16", execution=package.Execution(decode_tiles="64x64"))
    assert not any("tiles" in way for way in ways_to_less(least, EACH, "vae"))


def test_the_text_stage_says_that_it_can_be_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the smaller placement that was tried after all were resident does not stream it yet."""
    from cygnet.models.umt5.model import UMT5Encoder

    small: Mapping[str, Any] = {"size": (32, 16), "num_frames": 5, "num_steps": 1, "seed": 1}
    paths = write_model(tmp_path)
    wan = package.load(paths, device="cpu", dtype="float32", offload=False)
    real = UMT5Encoder.forward

    def fail(self: Any, ids: torch.Tensor, *rest: Any) -> Any:
        if ids.is_meta:
            return real(self, ids, *rest)
        raise MemoryError

    monkeypatch.setattr(UMT5Encoder, "forward", fail)
    assert isinstance(wan.model.residency, Placed)
    with pytest.raises(OutOfMemory, match=r"no request of this model fits so; or add --stream .* the text encoder"):
        wan.generate("a red ball", **small)
    request = wan.plan("a red ball", **small).request
    wan = package.load(paths, device="cpu", dtype="float32", offload=False)
    with pytest.raises(
        OutOfMemory, match=r"\(MemoryError\); this very video needs that much memory; or add --s"
    ) as caught:
        list(wan.replay(request))
    assert "--dtype" not in str(caught.value)


def test_several_videos_are_made_although_their_networks_do_not_load_together(
    cygnet: Command, small: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cygnet.assembly import placing

    real, calls = placing.build, list[int]()

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(placing, "build", fail)
    Path("cnt").mkdir()
    done = cygnet("generate", "a red ball", *small, "--count", "2", "--out", "cnt/")
    assert done.code == 0, done.err
    assert len(list(Path("cnt").glob("*.mp4"))) == 2
    assert done.err.count("note: memory ran out while loading; it was done again in less: each network is") == 1
