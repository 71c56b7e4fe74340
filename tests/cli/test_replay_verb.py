"""``cygnet replay``: the same video again, and how far it is from the first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_process import Command
from cygnet.cli.replay import _recorded_execution, changes, compare
from cygnet.media.video import open_writer

PROMPT = "a red ball moves right"


@pytest.mark.parametrize("name", ["x.mp4", "x.png", "x.gif"])
def test_a_replay_on_the_same_machine_has_difference_0(
    name: str, cygnet: Command, small: list[str], place: Path
) -> None:
    made = cygnet("generate", PROMPT, *small, "--out", name)
    assert made.code == 0, made.err
    done = cygnet("replay", made.out.strip(), *small[:2], "--json", "--quiet")
    assert done.code == 0
    assert done.json()["difference"] == {"identical": True, "max": 0, "mean": 0.0, "share": 0.0}
    assert Path(done.json()["path"]).exists()
    assert "-replay" in done.json()["path"]
    assert done.json()["notices"] == []


def test_a_check_keeps_nothing_and_fails_when_pixels_differ(
    cygnet: Command, small: list[str], i2v: Path, place: Path
) -> None:
    cygnet("generate", PROMPT, *small, "--seed", "1", "--out", "x.mp4")
    before = sorted(path.name for path in place.iterdir())
    assert cygnet("replay", "x.mp4", "--check", *small[:2]).code == 0
    assert cygnet("replay", "x.mp4", "--check", "--stream", *small[:2]).code == 0
    receipt = json.loads((place / "x.mp4.json").read_text())
    receipt["request"]["seed"] = 2
    receipt["model"]["components"]["vae"]["digest"] = "sha256:another"
    (place / "x.mp4.json").write_text(json.dumps(receipt))
    done = cygnet("replay", "x.mp4.json", "--check", *small[:2])
    assert done.code == 1
    assert "difference at most" in done.out
    assert "the weights of vae are not those" in done.err
    assert sorted(path.name for path in place.iterdir()) == before


def test_the_picture_is_found_by_its_name_or_asked_for(cygnet: Command, i2v: Path, place: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(place / "red.png")
    (place / "videos").mkdir()
    quick = ["--size", "32x32", "--frames", "5", "--steps", "2", "--out", "videos/x.mp4"]
    cygnet("generate", PROMPT, "--model", i2v, "--image", "red.png", *quick)
    assert "difference 0" in cygnet("replay", "videos/x.mp4", "--check", "--model", i2v).out
    (place / "red.png").rename(place / "moved.png")
    done = cygnet("replay", "videos/x.mp4", "--check", "--model", i2v)
    assert (done.code, done.out) == (2, "")
    assert "--image" in done.err
    assert cygnet("replay", "videos/x.mp4", "--check", "--model", i2v, "--image", "moved.png").code == 0
    Image.new("RGB", (32, 32), "blue").save(place / "blue.png")
    other = cygnet("replay", "videos/x.mp4", "--check", "--model", i2v, "--image", "blue.png")
    assert other.code == 1
    assert "image is not the one" in other.err


def test_frames_can_be_replayed_as_often_as_a_video(cygnet: Command, small: list[str], place: Path) -> None:
    assert cygnet("generate", PROMPT, *small, "--out", "f.png").code == 0
    for folder in ("f-replay", "f-replay-2", "f-replay-3"):
        done = cygnet("replay", "f", *small[:2])
        assert (done.code, "difference 0" in done.out) == (0, True), done.err
        assert len(list((place / folder).glob("*.png"))) == 5


def test_tiles_are_said_recorded_and_replayed(cygnet: Command, t2v: Path, place: Path) -> None:
    quick = ["--model", t2v, "--size", "96x80", "--frames", "5", "--steps", "1"]
    made = cygnet("generate", PROMPT, *quick, "--decode-tiles", "64x64", "--out", "x.mp4")
    assert made.code == 0, made.err
    assert "note: frames are decoded in 4 tiles of 64x64; pixels are the same as without" in made.err
    assert json.loads((place / "x.mp4.json").read_text())["tiles"] == {"decode": "64x64"}
    done = cygnet("replay", "x.mp4", "--check", "--model", t2v)
    assert (done.code, "difference 0" in done.out) == (0, True), done.err
    assert "frames are decoded in 4 tiles" in done.err
    planned = cygnet("plan", *quick, "--decode-tiles", "64x64")
    assert "frames are decoded in 4 tiles of 64x64" in planned.out
    wrong = cygnet("generate", PROMPT, *quick, "--decode-tiles", "60x64")
    assert (wrong.code, "decode_tiles is '60x64'; give \"auto\"" in wrong.err) == (2, True), wrong.err


def test_what_the_video_was_made_without_is_refused(cygnet: Command, small: list[str], place: Path) -> None:
    cygnet("generate", PROMPT, *small, "--out", "x.mp4")
    done = cygnet("replay", "x.mp4", "--check", "--image", "y.png", *small[:2])
    assert (done.code, "leave --image out" in done.err) == (2, True)


def test_a_receipt_of_a_later_version_is_refused(cygnet: Command, small: list[str], place: Path) -> None:
    cygnet("generate", PROMPT, *small, "--out", "x.mp4")
    receipt = json.loads((place / "x.mp4.json").read_text())
    (place / "y.mp4.json").write_text(json.dumps({**receipt, "cygnet_receipt": 99}))
    done = cygnet("replay", "y.mp4.json", *small[:2])
    assert (done.code, "has version 99; this cygnet reads version 1" in done.err) == (2, True), done.err


def test_a_receipt_of_files_asks_for_the_files(cygnet: Command, small: list[str], place: Path) -> None:
    cygnet("generate", PROMPT, *small, "--out", "x.mp4")
    done = cygnet("replay", "x.mp4")
    assert done.code == 2
    assert "--model" in done.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "no receipt of cygnet"),
        ("not JSON", "damaged"),
        ('{"cygnet_receipt": 1}', "'request'"),
        ('{"cygnet_receipt": 1, "request": {}, "inputs": {"sound": {}}}', "'sound'"),
        ('{"cygnet_receipt": 1, "request": {}, "inputs": {"image": {"name": "../../etc/passwd"}}}', "give it with"),
        ('{"cygnet_receipt": 1, "request": {}, "inputs": {}, "model": {"name": 5}}', "--model"),
        ('{"cygnet_receipt": 1, "request": {}, "inputs": {}, "model": {"name": "tiny-t2v"}}', "'machine'"),
    ],
)
def test_a_receipt_that_cannot_be_used_is_refused_in_words(
    content: str, words: str, cygnet: Command, place: Path
) -> None:
    (place / "x.json").write_text(content)
    done = cygnet("replay", "x.json")
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_video_without_a_receipt_is_said_to_be_so(cygnet: Command, place: Path) -> None:
    with open_writer(place / "x.mp4", width=32, height=32, fps=16) as writer:
        writer.write(np.zeros((1, 32, 32, 3), np.uint8))
    done = cygnet("replay", "x.mp4")
    assert done.code == 2
    assert "carries no receipt" in done.err


def test_distances_count_decoded_values(place: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    for name, value in (("a.png", 0), ("b.png", 10)):
        frames[1, 0, 0, 0] = value
        with open_writer(place / name, width=16, height=16, fps=16) as writer:
            writer.write(frames)
    assert compare(place / "a", place / "b") == {
        "identical": False,
        "max": 10,
        "mean": 10 / frames.size,
        "share": 1 / frames.size,
    }
    with open_writer(place / "c.png", width=16, height=16, fps=16) as writer:
        writer.write(frames[:1])
    assert "2 frames of 16x16 then" in compare(place / "a", place / "c.png")["reason"]


def test_what_can_change_pixels_is_told() -> None:
    before = {
        "model": {"components": {"dit": {"digest": "a", "dtype": "float32"}}},
        "inputs": {"image": {"sha256": "1"}},
        "versions": {"torch": "2.7"},
        "machine": {"device": "cuda"},
    }
    now = {
        "model": {"components": {"dit": {"digest": "a", "dtype": "bfloat16"}}},
        "inputs": {"image": {"sha256": "2"}},
        "versions": {"torch": "2.13"},
        "machine": {"device": "cpu"},
    }
    assert changes(before, before) == []
    assert len(changes(before, now)) == 4


def test_how_it_was_computed_is_taken_from_the_receipt() -> None:
    from cygnet.assembly import Execution

    for asked in (
        Execution(),
        Execution(compile=True, attention="torch"),
        Execution(compile=False, fp8=True),
        Execution(weight_dtype="int8"),
    ):
        receipt = {"model": {"components": {"vae": {"decode_dtype": "bfloat16"}}, **asked.describe()}}
        found = _recorded_execution(receipt)
        assert (found.compile, found.attention, found.fp8) == (asked.compile, asked.attention, asked.fp8)
        assert found.weight_dtype == asked.weight_dtype
        assert found.decode_dtype == "bfloat16"
    assert (
        _recorded_execution({"model": {"attention": "sage", "components": {"vae": {}}}}).attention == "auto"
    )  # not installed
    assert _recorded_execution({"model": {"components": {"vae": {}}}}).decode_dtype == "float32"


def test_another_way_of_computing_is_told() -> None:
    before, now = (
        {"model": {"components": {}, **way}, "inputs": {}, "versions": {}, "machine": {}}
        for way in ({"compile": True}, {"fp8": True})
    )
    assert changes(before, now) == [
        "compile is the usual way; the first time True",
        "fp8 is True; the first time the usual way",
    ]
