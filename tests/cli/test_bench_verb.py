"""``cygnet bench vae``: figures of autoencoders on the same frames."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from cli_process import Command
from cygnet.assembly import load_vae
from cygnet.cli.bench_vae import draw
from cygnet.media.frames import to_signed
from cygnet.media.quality import psnr
from cygnet.media.video import open_writer
from cygnet.models.taehv.model import PreviewDecoder

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 40, 52, 3), dtype=np.uint8)
QUICK = ["--frames", "5", "--size", "64x32", "--rounds", "1"]


@pytest.fixture
def clip(place: Path) -> Path:
    with open_writer(place / "clip.png", width=52, height=40, fps=16, num_frames=6) as writer:
        writer.write(FRAMES)
    return place / "clip"  # single frames, without loss


@pytest.fixture
def vae(t2v: Path) -> Path:
    return next(path for path in t2v.iterdir() if path.stem == "vae")


def test_the_middle_of_a_video_is_carried_and_compared(cygnet: Command, clip: Path, vae: Path) -> None:
    done = cygnet("bench", "vae", clip, "--vae", vae, *QUICK, "--json")
    assert done.code == 0, done.err
    value = done.json()
    assert value["videos"] == [{"name": "clip", "frames": 5, "width": 48, "height": 32}]
    [row] = value["rows"]
    model = load_vae(vae)
    assert row["parameters"] == sum(it.numel() for it in model.parameters())
    frames = np.ascontiguousarray(FRAMES[:5, 4:36, 2:50])
    made = model.decode(model.encode(to_signed(frames)[None]))[0].clamp(-1, 1)
    levels = np.asarray(((made + 1) * 127.5).round().byte().permute(1, 2, 3, 0))
    assert row["psnr"] == pytest.approx(psnr(frames, levels), abs=0.01)
    assert 0 < row["ssim"] < 1
    assert len(row["seconds"]) == 1
    assert row["fps"] == pytest.approx(5 / sum(row["seconds"][0]))


def test_the_processors_time_can_be_counted_in_place_of_the_clocks(cygnet: Command, clip: Path, vae: Path) -> None:
    done = cygnet("bench", "vae", clip, "--vae", vae, *QUICK, "--json", "--processor-time", "--device", "cpu")
    assert done.code == 0, done.err
    assert done.json()["clock"] == "processor"


def test_taehv_decodes_what_the_wan_vae_encodes(cygnet: Command, clip: Path, vae: Path, place: Path) -> None:
    save_file(PreviewDecoder().state_dict(), place / "taew2_1.safetensors")
    done = cygnet("bench", "vae", clip, "--vae", vae, "--taehv", "taew2_1.safetensors", *QUICK, "--json")
    assert done.code == 0, done.err
    names = [row["name"] for row in done.json()["rows"]]
    assert names == [vae.name, f"TAEHV's decoder after {vae.name}"]


def test_people_read_a_table(cygnet: Command, clip: Path, vae: Path) -> None:
    done = cygnet("bench", "vae", clip, "--vae", vae, *QUICK, "--quiet")
    assert (done.code, done.err) == (0, "")
    head, row = done.out.splitlines()
    assert head.split() == ["VAE", "PARAMETERS", "PSNR", "SSIM", "ENCODE", "DECODE", "BOTH"]
    assert " dB " in row
    assert row.count("fps") == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no video is given"),
        (["--seeded", "svd"], "choose some of wan, wan-diffusers, hunyuan"),
        (["clip", "--frames", "9"], "'clip' has 6 frames; ask for fewer"),
        (["clip", "--frames", "6"], "Wan needs 4n+1 (nearest: 5"),
        (["clip", "--size", "50x50"], "multiples of 16"),
        (["clip", "--rounds", "0"], "rounds is 0"),
        (["clip", "--taehv", "x.pth"], "add --vae"),
        (["clip", "--dtype", "auto"], "name one: float32"),
        (["clip", "--dtype", "float16", "--device", "cpu"], "give bfloat16 or float32"),
        (["clip", "--plot", "x.jpg"], "name a .png file"),
        (["clip", "--plot", "absent/x.png"], "does not exist; make it first"),
        (["absent.mp4"], "absent.mp4"),
    ],
)
def test_what_cannot_be_is_refused(given: list[str], words: str, cygnet: Command, clip: Path) -> None:
    done = cygnet("bench", "vae", *given)
    assert (done.code, done.out) == (2, ""), done.err
    assert words in done.err


@pytest.mark.parametrize(
    ("library", "given", "words"),
    [
        ("matplotlib", ["clip", "--plot", "x.png"], "pip install 'cygnet[bench]'"),
        ("diffusers", ["--seeded", "hunyuan", "--size", "16x16", "--frames", "1"], "pip install 'cygnet[oracle]'"),
    ],
)
def test_an_absent_library_is_named_with_the_way_to_get_it(
    library: str, given: list[str], words: str, cygnet: Command, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = cygnet("bench", "vae", *given)
    assert done.code == 2
    assert words in done.err


def test_the_plot_appears_whole_or_not_at_all(place: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"name": "a", "parameters": 10**6, "psnr": 30.0, "fps": 5.0}
    draw({"rows": [row, {**row, "name": "b", "psnr": None}]}, place / "x.png", overwrite=False)
    assert (place / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in place.iterdir()] == ["x.png"]
