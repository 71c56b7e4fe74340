"""What a data set may be, where each clip belongs, and what is found wrong before a training stumbles over it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from teaching import Configure, write_clip

from cli_process import Done
from cygnet.checkpoints import save_official
from cygnet.cli.main import run
from cygnet.errors import RequestError
from cygnet.training.batches import Batches
from cygnet.training.cache import Cache
from cygnet.training.check import check_items
from cygnet.training.clips import Bucket, bucket_for, pixels_of, read_clip
from cygnet.training.config import DataConfig, TrainConfig
from cygnet.training.dataset import read_items
from cygnet.training.encode import Example, prepare
from cygnet.training.preflight import open_model
from cygnet.training.start import train
from random_models import VAE, state_of


@pytest.fixture
def configure(configure: Configure) -> Configure:
    """Each test with a cache of its own."""

    def make(variant: str = "t2v", **changes: Any) -> TrainConfig:
        return configure(variant, **{**changes, "data": {"cache": "cache", **changes.get("data", {})}})

    return make


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Done:
    code = run([str(word) for word in words])
    caught = capsys.readouterr()
    return Done(code, caught.out, caught.err)


def examples(config: TrainConfig, notes: list[str] | None = None) -> tuple[list[Example], Cache]:
    cache = Cache(Path(str(config.data.cache)), say=(notes if notes is not None else []).append)
    return prepare(read_items(Path(config.data.path)), config.data, open_model(config), cache), cache


def test_a_folder_a_list_and_a_shard_hold_the_same_clips(clips: Path, tmp_path: Path) -> None:
    folder = read_items(clips)
    assert (folder[0].name, folder[0].caption) == ("0.mp4", "the blue square 0")
    rows = [{"path": f"clips/{item.name}", "caption": item.caption} for item in folder]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for path in sorted(clips.iterdir()):
            shard.add(path, path.name)
    for other in (read_items(tmp_path / "list.jsonl"), read_items(tmp_path / "shard.tar")):
        assert [item.caption for item in other] == [item.caption for item in folder]
        for one, two in zip(other, folder, strict=True):
            assert one.digest() == two.digest()
            assert torch.equal(torch.from_numpy(read_clip(one, 16).frames), torch.from_numpy(read_clip(two, 16).frames))


def test_a_webdataset_may_keep_captions_in_json(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, data in (("x.png", b"1234"), ("x.json", b'{"caption": "a red ball"}'), (".hidden.png", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    (item,) = read_items(tmp_path)
    assert (item.name, item.caption) == ("a/x.png", "a red ball")
    with item.file() as path:
        assert path.read_bytes() == b"1234"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"caption": "x"}\n', 'line 1 of .* has no "path"'),
        ("a.jsonl", "{\n", "line 1 of .* is no JSON"),
        ("a.jsonl", "", "holds no videos"),
        ("a.tar", "no tar at all" * 100, "damaged or compressed"),
        ("a.zip", "x", "no data set"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=words) as raised:
        read_items(tmp_path / name)
    assert raised.value.field == "data.path"


def test_clips_go_to_the_nearest_size_and_the_longest_length_they_fill() -> None:
    sizes = [(832, 480), (480, 832), (416, 240)]
    assert bucket_for(1920, 1080, 200, sizes, [17, 81]) == Bucket(832, 480, 81)
    assert bucket_for(1080, 1920, 50, sizes, [17, 81]) == Bucket(480, 832, 17)
    assert bucket_for(500, 300, 17, sizes, [17, 81]) == Bucket(416, 240, 17)
    assert bucket_for(500, 300, 1, sizes, [17]) == Bucket(416, 240, 1)
    assert bucket_for(500, 300, 16, sizes, [17]) is None


def test_clips_are_brought_to_the_rate_the_size_and_the_length(tmp_path: Path) -> None:
    write_clip(tmp_path / "fast.mp4", frames=18, side=64, fps=32)
    write_clip(tmp_path / "slow.mp4", frames=5, side=64, fps=8)
    fast, slow = (read_clip(item, 16) for item in read_items(tmp_path))
    assert (len(fast.frames), len(slow.frames)) == (9, 9)
    pixels = pixels_of(fast, Bucket(48, 32, 5))
    assert pixels.shape == (3, 5, 32, 48)
    assert float(pixels.abs().max()) <= 1


def test_every_clip_comes_once_an_epoch_and_batches_have_one_bucket() -> None:
    rows = [Example(str(i), Bucket(16, 16, 1 if i < 5 else 5), f"c{i}", "t") for i in range(12)]
    batches = Batches(rows, 2, seed=3)
    assert batches.per_epoch == 3 + 4
    epoch = [batches[step] for step in range(batches.per_epoch)]
    assert all(len({row.bucket for row in batch}) == 1 and len(batch) == 2 for batch in epoch)
    assert {row.name for batch in epoch for row in batch} == {row.name for row in rows}
    assert [row.name for row in Batches(rows, 2, seed=3)[9]] == [row.name for row in batches[9]]
    orders = [[row.name for step in range(7) for row in Batches(rows, 2, seed)[step]] for seed in (3, 4)]
    assert orders[0] != orders[1]


def test_what_did_not_change_is_not_encoded_again(configure: Configure, clips: Path) -> None:
    config = configure()
    first, cache = examples(config)
    shards = sorted(cache.folder.glob("*.safetensors"))
    again, _ = examples(config)
    assert again == first
    assert sorted(cache.folder.glob("*.safetensors")) == shards
    write_clip(clips / "1.mp4", seed=99)
    changed, cache = examples(config)
    assert [a.clip != b.clip for a, b in zip(first, changed, strict=True)] == [False, True, False, False]
    assert changed[1].clip in cache
    (clips / "0.txt").write_text("another caption")
    recaptioned, _ = examples(config)
    assert recaptioned[0].clip == changed[0].clip
    assert recaptioned[0].text != changed[0].text


def test_another_network_encodes_anew(configure: Configure, tmp_path: Path, models: dict[str, dict[str, str]]) -> None:
    first, _ = examples(configure())
    state = {name: value * 1.01 for name, value in state_of(VAE).items()}
    other = save_official(tmp_path / "other-vae.safetensors", state, VAE)
    second, _ = examples(configure(model={**models["t2v"], "vae": str(other)}))
    assert all(a.clip != b.clip and a.text == b.text for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("harm", ["torn", "flipped", "gone", "index"])
def test_a_damaged_shard_is_found_and_made_again(configure: Configure, harm: str) -> None:
    config = configure()
    first, cache = examples(config)
    before = [cache.row(example.clip)["latents"].clone() for example in first]
    shard = max(cache.folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    if harm == "torn":
        shard.write_bytes(data[:-10])
    elif harm == "flipped":
        data[-1] ^= 1
        shard.write_bytes(data)
    elif harm == "gone":
        shard.unlink()
    else:
        next(cache.folder.glob("index-*.json")).write_text("{")
    notes: list[str] = []
    again, cache = examples(config, notes)
    assert notes
    assert "encoded again" in notes[0]
    for value, example in zip(before, again, strict=True):
        assert torch.equal(value, cache.row(example.clip)["latents"])


def test_clips_that_cannot_be_used_stop_the_run_before_it_begins(configure: Configure, clips: Path) -> None:
    (clips / "0.txt").unlink()
    (clips / "1.mp4").write_bytes(b"no video")
    with pytest.raises(RequestError, match=r"2 of 4 clips cannot be used: .*cygnet data check") as raised:
        examples(configure())
    assert raised.value.field == "data.path"


def test_a_clip_that_vanishes_after_it_was_encoded_is_not_missed(configure: Configure, clips: Path) -> None:
    config = configure()
    first, cache = examples(config)
    (clips / "2.mp4").unlink()
    assert cache.row(first[2].clip)["latents"].shape == (16, 2, 4, 4)


def test_check_says_what_is_wrong_with_each_clip(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "0.mp4").write_bytes(b"no video")
    (clips / "1.txt").write_text("")
    write_clip(clips / "short.mp4", frames=3).with_suffix(".txt").write_text("a short one")
    Image.new("RGB", (40, 40)).save(clips / "dark.png")
    (clips / "dark.txt").write_bytes("caf\xe9".encode("latin-1"))
    report = check_items(read_items(clips), DataConfig(path=str(clips), sizes=["48x48"], frames=[5]))
    told = {(it.name, it.weight): it.what for it in report.findings}
    assert "unreadable" in told["0.mp4", "refused"]
    assert "no caption" in told["1.mp4", "refused"]
    assert "too short: 3 frames" in told["short.mp4", "refused"]
    assert "no caption" in told["dark.png", "refused"]
    assert "enlarged" in told["2.mp4", "doubtful"]
    assert any("black" in it.what for it in report.findings if it.name == "dark.png")
    assert (report.good, report.total) == (2, 6)
    done = command(capsys, "data", "check", clips, "--size", "32x32", "--frames", "5", "--json")
    assert done.code == 1
    assert done.json()["good"] == 2
    for name in ("0", "1", "short", "dark"):
        for path in clips.glob(f"{name}.*"):
            path.unlink()
    fine = command(capsys, "data", "check", clips, "--size", "32x32", "--frames", "5")
    assert (fine.code, "2 of 2 clips" in fine.out) == (0, True)
    assert command(capsys, "data", "check", clips, "--size", "33x32").code == 2


def test_a_caption_of_half_a_character_is_refused_and_a_link_to_nothing_is_seen(clips: Path) -> None:
    listed = clips / "list.jsonl"
    listed.write_text('{"path": "0.mp4", "caption": "a \\ud800 swan"}\n')
    with pytest.raises(RequestError, match=r"line 1 of 'list\.jsonl' has a caption with half a character"):
        read_items(listed)
    (clips / "gone.mp4").symlink_to(clips / "nowhere.mp4")
    (clips / "gone.txt").write_text("a clip that is gone")
    report = check_items(read_items(clips), DataConfig(path=str(clips), sizes=["32x32"], frames=[5]))
    assert [it.weight for it in report.findings if it.name == "gone.mp4"] == ["refused"]


@pytest.mark.parametrize("field", ["preserve.path", "data.validation"])
def test_errors_name_the_set_that_they_are_about(
    configure: Configure, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    table, name = field.split(".")
    config = configure(**{table: {name: "other"}})

    def refused(words: str) -> None:
        with pytest.raises(RequestError, match=words) as raised:
            train(config, say=lambda text: None)
        assert raised.value.field == field

    refused(f"holds no videos or pictures .*; check {field}")
    (other / "list.jsonl").write_text("{\n")
    with pytest.raises(RequestError, match=f"{field}: line 1 .* is no JSON"):
        read_items(tmp_path / "other" / "list.jsonl", field)
    (other / "list.jsonl").unlink()
    for number in range(3):
        write_clip(other / f"{number}.mp4", frames=5)
    (other / "0.mp4").write_bytes(b"no video, and without a caption")
    refused(f"3 of 3 clips of {field} cannot be used: '0.mp4'.*; '1.mp4' has no caption; '2.mp4' has no caption;")
    (tmp_path / "train.toml").write_text(
        'method = "lora"\nmodel = "tiny-t2v"\noutput = "run"\nsteps = 1\n[data]\npath = "clips"\nsizes = ["32x32"]\n'
        f'frames = [5]\n{name if table == "data" else "[preserve]" + chr(10) + name} = "other"\n'
    )
    done = command(capsys, "data", "check", tmp_path / "train.toml")
    assert done.code == 1
    assert "4 of 4 clips of data.path can be trained on" in done.out
    assert f"0 of 3 clips of {field} can be trained on" in done.out
    value = command(capsys, "data", "check", tmp_path / "train.toml", "--json").json()
    assert (value["set"], value["good"]) == ("data.path", 4)
    assert [(row["set"], row["good"]) for row in value["others"]] == [(field, 0)]
