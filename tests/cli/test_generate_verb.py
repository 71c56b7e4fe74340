"""``cygnet generate`` with a model of random weights: what appears, what does not, and what is said."""

from __future__ import annotations

import io
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_process import Command, started, wait_for
from cygnet.media.receipt import read_receipt
from cygnet.media.video_read import read_video

PROMPT = "a red ball moves right"


def test_a_prompt_becomes_a_video_with_its_receipt_inside_and_beside(
    cygnet: Command, small: list[str], place: Path
) -> None:
    done = cygnet("generate", PROMPT, *small, "--seed", "7")
    assert (done.code, done.out) == (0, "a-red-ball-moves-right-7.mp4\n"), done.err
    assert sorted(path.name for path in place.iterdir()) == [
        "a-red-ball-moves-right-7.mp4",
        "a-red-ball-moves-right-7.mp4.json",
    ]
    clip = read_video(place / "a-red-ball-moves-right-7.mp4")
    assert clip.frames.shape == (5, 32, 32, 3)
    beside = json.loads((place / "a-red-ball-moves-right-7.mp4.json").read_text())
    assert beside["request"]["seed"] == 7
    assert beside["request"]["prompt"] == PROMPT
    inside = read_receipt(place / "a-red-ball-moves-right-7.mp4")
    assert inside["request"] == beside["request"]
    assert str(place) not in json.dumps(beside)


def test_json_is_one_object_and_nothing_else_on_stdout(cygnet: Command, small: list[str], place: Path) -> None:
    done = cygnet("generate", PROMPT, *small, "--count", "2", "--seed", "1", "--json", "--quiet", "--out", "x.webm")
    assert (done.code, done.err) == (0, "")
    videos = done.json()["videos"]
    assert [(video["path"], video["seed"]) for video in videos] == [("x-1.webm", 1), ("x-2.webm", 2)]
    for video in videos:
        assert Path(video["receipt"]).is_file()
        assert (video["width"], video["height"], video["num_frames"], video["fps"]) == (32, 32, 5, 16.0)
    first, second = (read_video(place / video["path"]).frames for video in videos)
    assert np.any(first != second)


def test_the_stream_of_events_is_whole_lines_of_json(cygnet: Command, small: list[str]) -> None:
    done = cygnet("generate", PROMPT, *small, "--json-stream")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert done.out.endswith("\n")
    phases = [event["phase"] for event in events if event["event"] == "progress"]
    assert {"text", "denoise", "decode"} <= set(phases)
    assert [event["event"] for event in events[-2:]] == ["video", "done"]
    assert events[-1]["videos"][0]["path"] == events[-2]["path"]


def test_nothing_is_overwritten_unless_it_is_asked_for(cygnet: Command, small: list[str], place: Path) -> None:
    (place / "mine.mp4").write_bytes(b"mine")
    (place / "other.mp4.json").write_text("mine")
    for name in ("mine.mp4", "other.mp4"):
        done = cygnet("generate", PROMPT, *small, "--out", name)
        assert done.code == 2
        assert "exists already" in done.err
    assert (place / "mine.mp4").read_bytes() == b"mine"
    assert not (place / "other.mp4").exists()
    assert cygnet("generate", PROMPT, *small, "--out", "mine.mp4", "--overwrite").code == 0
    assert len(read_video(place / "mine.mp4").frames) == 5


def test_equal_names_get_a_counter_also_when_only_a_receipt_is_left(
    cygnet: Command, small: list[str], place: Path
) -> None:
    (place / "x-1.mp4").write_bytes(b"mine")
    (place / "x-1-2.mp4.json").write_text("a receipt that lost its video")
    assert cygnet("generate", "x", *small, "--seed", "1").out == "x-1-3.mp4\n"
    assert (place / "x-1.mp4").read_bytes() == b"mine"
    assert not (place / "x-1-2.mp4").exists()


@pytest.mark.parametrize("prompt", ["../../x", "C:\\x", "\x1b[31mred $(touch fired)", "{seed}🎈"])
def test_a_prompt_is_only_a_label_for_the_name_and_stays_whole_in_the_receipt(
    prompt: str, cygnet: Command, t2v: Path, place: Path
) -> None:
    quick = ["--model", t2v, "--size", "16x16", "--frames", "1", "--steps", "1", "--guidance", "1", "--seed", "3"]
    done = cygnet("generate", *quick, "--", prompt)
    assert done.code == 0, done.err
    name = done.out.removesuffix("\n")
    assert sorted(path.name for path in place.iterdir()) == [name, f"{name}.json"]
    assert name.isprintable()
    assert len(name.encode()) <= 200
    assert not set(name) & set("/\\:*?\"<>|%${}'~\n")
    assert json.loads((place / f"{name}.json").read_text())["request"]["prompt"] == prompt
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frames", "80"], "nearest: 77 or 81"),
        (["--frames", "0"], "--frames is 0"),
        (["--out", "{prompt!r}.mp4"], "{prompt!r}; known are"),
        (["--out", "n" * 250 + ".mp4"], "too long: with .json"),
        (["--out", "new\nline.mp4"], "give a file name"),
        (["--model-paths", "/none/at/all"], "does not exist"),
        (["--vae", "v" * 300], "give another"),
        (["--image", "http://a.test/b.png"], "is an address"),
        (["--frames", "-1"], "--frames is -1"),
        (["--frames", "1000000001"], "--frames is"),
        (["--size", "33x32"], "nearest: 32 or 48"),
        (["--size", "0x32"], "width is 0"),
        (["--size", "huge"], "huge"),
        (["--steps", "0"], "--steps is 0"),
        (["--guidance", "-5"], "--guidance is -5"),
        (["--shift", "0"], "shift is 0"),
        (["--fps", "1000000"], "fps"),
        (["--seed", "9223372036854775808"], "seed is 9223372036854775808"),
        (["--seed", "-2"], "seed is -2"),
        (["--seed", "9223372036854775807", "--count", "2"], "seed is 9223372036854775808"),
        (["--count", "0"], "count is 0"),
        (["--solver", "magic"], "unipc"),
        (["--strength", "0.5"], "no video is given"),
        (["--frames", "5", "--seconds", "2"], "frames and seconds are both given"),
        (["--seconds", "0"], "seconds is 0"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int3"], "int3"),
        (["--image", "gone.png"], "there is no file 'gone.png'"),
        (["--last-image", "gone.png"], "there is no file 'gone.png'"),
        (["--video", "gone.mp4"], "there is no file 'gone.mp4'"),
        (["--out", "x.mov"], ".mov"),
        (["--out", "nowhere/x.mp4"], "does not exist"),
        (["--out", "nowhere/"], "does not exist"),
        (["--out", "-"], "give a file name"),
        (["--out", "{date}.mp4"], "{prompt}, {seed}, {index}, {model}"),
        (["--out", "{prompt.__class__}.mp4"], "known are"),
        (["--out", "{seed:9999}.mp4"], "only a width"),
        (["--out", "{.mp4"], "no pattern"),
        (["--out", "{prompt}.mp4", "--count", "2"], "same name"),
        (["--vae", "gone.safetensors"], "gone.safetensors"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_exit_code_2_and_writes_nothing(
    options: list[str], words: str, cygnet: Command, t2v: Path, place: Path
) -> None:
    done = cygnet("generate", PROMPT, "--model", t2v, "--json", *options)
    assert done.code == 2 or words == "does not exist"
    assert words in done.json()["error"]["message"]
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("prompt", ["", "  \n ", "a\udcffb", "x" * 100_001])
def test_a_prompt_that_is_no_prompt_is_refused(prompt: str, cygnet: Command, small: list[str], place: Path) -> None:
    done = cygnet("generate", prompt, *small, "--json")
    assert (done.code, done.json()["error"]["field"]) == (2, "prompt")
    assert list(place.iterdir()) == []


def test_a_model_without_what_the_request_needs_is_named(cygnet: Command, t2v: Path, i2v: Path, place: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(place / "red.png")
    done = cygnet("generate", PROMPT, "--model", t2v, "--image", "red.png")
    assert (done.code, done.out) == (2, "")
    assert "image-to-video needs an I2V model" in done.err
    assert "needs a picture" in cygnet("generate", PROMPT, "--model", i2v).err
    assert "cygnet pull t2v-1.3b" in cygnet("generate", PROMPT, "--model", "t2v-1.3b").err
    assert "--dit FILE" in cygnet("generate", PROMPT, "--vae", t2v / "vae.safetensors").err
    assert [path.name for path in place.iterdir()] == ["red.png"]


def test_a_picture_becomes_a_video_and_its_name_stands_in_the_receipt(cygnet: Command, i2v: Path, place: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(place / "red.png")
    options = ["--size", "32x32", "--frames", "5", "--steps", "2", "--out", "x.gif"]
    done = cygnet("generate", PROMPT, "--model", i2v, "--image", "red.png", *options)
    assert done.code == 0, done.err
    assert read_receipt(place / "x.gif")["inputs"]["image"]["name"] == "red.png"


def test_parts_given_one_by_one_replace_those_of_a_model_or_make_one(cygnet: Command, t2v: Path, place: Path) -> None:
    small = ["--size", "32x32", "--frames", "1", "--steps", "1", "--seed", "1"]
    parts = [
        argument
        for part in ("dit", "vae", "text_encoder")
        for argument in (f"--{part.replace('_', '-')}", t2v / f"{part}.safetensors")
    ]
    assert cygnet("generate", PROMPT, *parts, *small, "--out", "a.png").code == 0
    assert cygnet("generate", PROMPT, "--model", t2v, *parts[:2], *small, "--out", "b.png").code == 0
    assert np.array_equal(read_video(place / "a.png").frames, read_video(place / "b.png").frames)


def test_seconds_take_the_nearest_length_and_say_so(cygnet: Command, t2v: Path, place: Path) -> None:
    done = cygnet(
        "generate", PROMPT, "--model", t2v, "--size", "16x16", "--steps", "1", "--seconds", "0.5", "--out", "x.mp4"
    )
    assert done.code == 0, done.err
    assert "9 frames (0.56 s)" in done.err
    assert len(read_video(place / "x.mp4").frames) == 9


def test_numbered_pictures_go_into_a_folder_and_patterns_name_files(
    cygnet: Command, small: list[str], place: Path
) -> None:
    assert cygnet("generate", PROMPT, *small, "--out", "frames.png").out == "frames\n"
    assert len(list((place / "frames").iterdir())) == 5
    (place / "videos").mkdir()
    done = cygnet("generate", "x/../y", *small, "--seed", "5", "--out", "videos/{index:03}-{prompt}-{seed}.webp")
    assert done.out == "videos/001-x-y-5.webp\n"


def test_a_link_in_the_place_of_the_result_is_never_written_through(
    cygnet: Command, small: list[str], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"untouched")
    (place / "x.mp4").symlink_to(tmp_path / "elsewhere")
    assert cygnet("generate", PROMPT, *small, "--out", "x.mp4").code == 2
    assert cygnet("generate", PROMPT, *small, "--out", "x.mp4", "--overwrite").code == 0
    assert (tmp_path / "elsewhere").read_bytes() == b"untouched"
    assert not (place / "x.mp4").is_symlink()


def test_the_prompt_can_come_from_standard_input(
    cygnet: Command, t2v: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffein roter Ball\n".encode())))
    quick = ["--model", t2v, "--size", "16x16", "--frames", "1", "--steps", "1", "--out", "x.png"]
    done = cygnet("generate", "-", *quick)
    assert (done.code, done.out) == (0, "x.png\n"), done.err
    assert read_receipt(place / "x.png")["request"]["prompt"] == "ein roter Ball"


@pytest.mark.parametrize(
    ("phase", "signals", "code"),
    [
        ("denoising", [signal.SIGINT], 130),
        ("decoding", [signal.SIGINT, signal.SIGINT], 130),
        ("decoding", [signal.SIGTERM], 143),
    ],
)
def test_a_signal_stops_the_work_and_leaves_no_partial_file(
    phase: str, signals: list[signal.Signals], code: int, t2v: Path, place: Path, tmp_path: Path
) -> None:
    long = ["--steps", "1000", "--frames", "5"] if phase == "denoising" else ["--steps", "1", "--frames", "401"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = started("generate", PROMPT, "--model", t2v, "--size", "128x128", *long, stderr=stderr)
        wait_for(process, log, phase)
        time.sleep(0.3)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.05)
        assert process.wait(timeout=60) == code, log.read_text()
    assert list(place.iterdir()) == []
    assert "Traceback" not in log.read_text()


def test_a_stop_says_what_was_finished(cygnet: Command, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cygnet.cli import making

    made = making.write_stream
    calls: list[int] = []

    def stopped(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise making.Cancelled("stop")
        return made(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "write_stream", stopped)
    done = cygnet("generate", PROMPT, *small, "--count", "3", "--seed", "7", "--json")
    value = done.json()
    assert done.code == 130
    assert "1 of 3 videos were finished" in value["error"]["message"]
    assert [video["seed"] for video in value["videos"]] == [7]


def test_full_and_closed_outputs_give_no_traceback(small: list[str], place: Path) -> None:
    import subprocess
    import sys

    words = [sys.executable, "-m", "cygnet", "models", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the system refused: no space left")
    assert done.stderr.count("\n") == 1
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words], check=False)
    assert closed.returncode == 0
