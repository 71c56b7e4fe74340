"""``--cache``, ``--cache-table``, ``--guidance-until`` and ``--recipe``: said, recorded, and made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli_process import Command
from cygnet.api import load
from cygnet.cli.wish import recipe_loras
from cygnet.media.receipt import read_receipt

PROMPT = "a red ball moves right"


def test_a_cached_video_says_what_was_skipped_and_is_made_again(cygnet: Command, small: list[str], place: Path) -> None:
    options = ["8", "--seed", "1"]
    done = cygnet("generate", PROMPT, *small[:-1], *options, "--cache", "easy:9", "--out", "x.mp4")
    assert done.code == 0, done.err
    assert "cache easy:9 skipped 5 of 8 steps" in done.err
    receipt = read_receipt(place / "x.mp4.json")
    assert receipt["cached"] == {"skipped": 5, "steps": 8}
    assert receipt["request"]["cache"] == "easy:9"
    again = cygnet("replay", "x.mp4", "--check", *small[:2])
    assert again.code == 0, again.err


def test_a_cache_that_skipped_nothing_changed_nothing_and_says_so(t2v: Path) -> None:
    wan = load(t2v, device="cpu")
    plain, cached = (
        wan.generate(PROMPT, size=(32, 32), num_frames=5, num_steps=2, seed=1, cache=cache) for cache in (None, "easy")
    )
    assert "cache easy skipped none of 2 steps; the video is the one without it" in cached.receipt["notices"]
    assert np.array_equal(plain.frames, cached.frames)


def test_a_calibration_makes_the_exact_video_and_the_table_for_the_next(
    cygnet: Command, small: list[str], place: Path
) -> None:
    options = [*small[:-1], "8", "--seed", "1"]
    exact = cygnet("generate", PROMPT, *options, "--out", "exact.mp4")
    found = cygnet("generate", PROMPT, *options, "--cache", "calibrate", "--out", "found.mp4")
    assert (exact.code, found.code) == (0, 0), found.err
    assert (place / "found.mp4.json").exists()
    tables = read_receipt(place / "found.mp4")["cached"]["tables"]
    cached = cygnet(
        "generate", PROMPT, *options, "--cache", "mag:5", "--cache-table", "found.mp4.json", "--out", "x.mp4"
    )
    assert cached.code == 0, cached.err
    receipt = read_receipt(place / "x.mp4")
    assert receipt["request"]["cache_table"] == tables["mag"]
    assert receipt["cached"]["skipped"] > 0
    (place / "mine.json").write_text(json.dumps(tables["tea"]))
    other = cygnet("generate", PROMPT, *options, "--cache", "tea:5", "--cache-table", "mine.json", "--out", "y.mp4")
    assert other.code == 0, other.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--cache", "fast"], "cache is 'fast'"),
        (["--cache", "mag"], "no magnitude ratios were published"),
        (["--cache", "mag", "--cache-table", "absent.json"], "cannot be read"),
        (["--cache", "mag", "--cache-table", "text.json"], "cannot be read as JSON"),
        (["--cache", "mag", "--cache-table", "object.json"], "holds no table for cache 'mag'"),
        (["--cache", "mag", "--cache-table", "words.json"], "is no list of numbers"),
        (["--cache", "mag", "--cache-table", "large.json"], "holds a number too large"),
        (["--cache", "mag", "--cache-table", "listed.json"], "holds no table for cache 'mag'"),
        (["--cache", "mag", "--cache-table", "counted.json"], "holds no table for cache 'mag'"),
        (["--cache", "mag", "--cache-table", "deep.json"], "cannot be read as JSON"),
        (["--cache-table", "numbers.json"], "without cache"),
        (["--guidance-until", "2"], "--guidance-until is 2.0"),
        (["--guidance-rest", "less"], "--guidance-rest is 'less'"),
        (["--recipe", "turbo"], '"lightx2v", "self-forcing"'),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    given: list[str], words: str, cygnet: Command, small: list[str], place: Path
) -> None:
    (place / "text.json").write_text("{")
    (place / "object.json").write_text("{}")
    (place / "words.json").write_text('["1"]')
    (place / "numbers.json").write_text("[1.0]")
    (place / "large.json").write_text(f"[{'9' * 400}]")
    (place / "listed.json").write_text('{"cached": [1]}')
    (place / "counted.json").write_text('{"cached": {"tables": 5}}')
    (place / "deep.json").write_text("[" * 200_000 + "]" * 200_000)
    before = sorted(place.iterdir())
    done = cygnet("generate", PROMPT, *small, *given)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert sorted(place.iterdir()) == before


def test_a_recipe_decides_solver_steps_shift_and_guidance(cygnet: Command, t2v: Path, place: Path) -> None:
    done = cygnet(
        "generate", PROMPT, "--model", t2v, "--size", "32x32", "--frames", "5", "--recipe", "lightx2v", "--out", "x.mp4"
    )
    assert done.code == 0, done.err
    made = read_receipt(place / "x.mp4")["request"]
    assert (made["solver"], made["num_steps"], made["shift"], made["guidance_scale"]) == ("euler", 4, 5.0, 1.0)


def test_guidance_can_end_early_and_be_added_again(cygnet: Command, small: list[str], place: Path) -> None:
    options = [*small[:-1], "4", "--guidance-until", "0.5", "--guidance-rest", "reuse", "--out", "x.mp4"]
    done = cygnet("generate", PROMPT, *options)
    assert done.code == 0, done.err
    made = read_receipt(place / "x.mp4")["request"]
    assert (made["guidance_until"], made["guidance_rest"]) == (0.5, "reuse")


def test_a_recipe_of_a_published_model_brings_the_lora_that_it_needs(cygnet: Command, place: Path) -> None:
    missing = cygnet("generate", PROMPT, "--model", "t2v-14b", "--recipe", "lightx2v")
    assert missing.code != 0
    assert "get Lightx2v/lightx2v_T2V_14B" in missing.err
    folder = place / "models" / "loras"
    folder.mkdir(parents=True)
    file = folder / "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors"
    file.write_bytes(b"x")
    assert recipe_loras("lightx2v", "t2v-14b", None, [place]) == [(file, 1.0)]
    assert recipe_loras("lightx2v", "t2v-14b", Path("mine.safetensors"), [place]) == []
    assert recipe_loras("lightx2v", "tiny-t2v", None, [place]) == []
    assert recipe_loras(None, "t2v-14b", None, [place]) == []


def test_a_table_for_a_cache_that_takes_none_is_refused_as_such(cygnet: Command, small: list[str], place: Path) -> None:
    (place / "r.json").write_text("{}")
    done = cygnet("generate", "a red ball", *small, "--cache", "easy", "--cache-table", "r.json")
    assert done.code == 2
    assert "cache easy takes none; leave it out, or choose mag or tea" in done.err


def test_rounded_weights_are_recorded_and_the_video_is_made_again_streamed_too(
    cygnet: Command, tmp_path: Path, place: Path
) -> None:
    options = ["--model", "tiny-t2v", "--size", "32x32", "--frames", "5", "--steps", "2", "--seed", "1"]
    exact = cygnet("generate", PROMPT, *options, "--out", "exact.mp4")
    done = cygnet("generate", PROMPT, *options, "--weight-dtype", "fp8", "--out", "x.mp4")
    assert (exact.code, done.code) == (0, 0), done.err
    assert read_receipt(place / "x.mp4.json")["model"]["weight_dtype"] == "fp8"
    assert "weight_dtype" not in read_receipt(place / "exact.mp4.json")["model"]
    assert (place / "x.mp4").read_bytes() != (place / "exact.mp4").read_bytes()
    for how in ([], ["--stream"]):
        again = cygnet("replay", "x.mp4", "--check", *how)
        assert (again.code, "difference 0" in again.out) == (0, True), again.err
    wrong = cygnet("generate", PROMPT, *options, "--weight-dtype", "nf4")
    assert (wrong.code, "weight_dtype is 'nf4'; give one of: auto, fp8, int8" in wrong.err) == (2, True)
