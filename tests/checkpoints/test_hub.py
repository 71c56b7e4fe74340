"""Fetching weights, against a stand-in hub on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cygnet.checkpoints import catalogue, hub
from cygnet.errors import Cancelled, DownloadError, ModelNotFoundError, RequestError
from cygnet.types import CancelToken
from stand_in_hub import COMMIT, StandInHub, official_files, sha256, stand_in_hub

REPO = "Wan-AI/Wan2.1-T2V-1.3B"
DIT = "diffusion_pytorch_model.safetensors"
WANTED = set(official_files()) - {"README.md", "assets/logo.png"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[StandInHub]:
    with stand_in_hub({REPO: official_files()}) as running:
        yield running


def pulled(server: StandInHub, cache: Path, **options: object) -> hub.Pulled:
    return hub.pull("t2v-1.3b", endpoint=server.endpoint, cache_folder=cache, **options)  # type: ignore[arg-type]


def test_a_pull_fills_the_shared_cache_with_exactly_the_files_of_the_model(server: StandInHub, tmp_path: Path) -> None:
    done = pulled(server, tmp_path)
    assert done.commit == COMMIT
    assert done.folder == tmp_path / "models--Wan-AI--Wan2.1-T2V-1.3B" / "snapshots" / COMMIT
    assert {file.name for file in done.files} == WANTED
    for file in done.files:
        assert file.fetched
        assert file.path.read_bytes() == server.repos[REPO][file.name]
        assert file.sha256 == sha256(server.repos[REPO][file.name])
    assert not list(tmp_path.rglob(hub.PARTIAL_FOLDER))


def test_what_was_pulled_is_found_by_name_and_by_the_hubs_own_library(server: StandInHub, tmp_path: Path) -> None:
    pulled(server, tmp_path)
    paths = catalogue.resolve("t2v-1.3b", cache_folder=tmp_path)
    assert {part: path.name for part, path in paths.items()} == {
        "dit": DIT,
        "vae": "Wan2.1_VAE.pth",
        "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    }
    from huggingface_hub import try_to_load_from_cache

    assert try_to_load_from_cache(REPO, DIT, cache_dir=tmp_path, revision="main") == str(paths["dit"])


def test_a_second_pull_verifies_and_fetches_nothing(server: StandInHub, tmp_path: Path) -> None:
    pulled(server, tmp_path)
    server.requests.clear()
    again = pulled(server, tmp_path)
    assert not any(file.fetched for file in again.files)
    assert [path for method, path, _ in server.requests if method == "GET"] == [
        f"/api/models/{REPO}/revision/main" if "revision" in path else f"/api/models/{REPO}"
        for method, path, _ in server.requests
        if method == "GET"
    ]


def test_a_connection_that_breaks_midway_is_taken_up_where_it_broke(
    server: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 16_384)
    server.cut_after[DIT] = [120_000]
    done = pulled(server, tmp_path)
    assert server.downloads(DIT) == ["", f"bytes={120_000 // 16_384 * 16_384}-"]
    assert next(file for file in done.files if file.name == DIT).path.read_bytes() == server.repos[REPO][DIT]


def test_a_pull_that_was_stopped_goes_on_in_the_next_call(server: StandInHub, tmp_path: Path) -> None:
    token = CancelToken()
    partial = tmp_path / "models--Wan-AI--Wan2.1-T2V-1.3B" / hub.PARTIAL_FOLDER / sha256(server.repos[REPO][DIT])

    def stop_in_the_middle(progress: hub.PullProgress) -> None:
        if progress.file == DIT and progress.stage == "download" and partial.exists():
            partial.write_bytes(server.repos[REPO][DIT][:70_000])  # as a killed process leaves it
            token.cancel()

    with pytest.raises(Cancelled):
        pulled(server, tmp_path, on_progress=stop_in_the_middle, cancel=token)
    with pytest.raises(ModelNotFoundError, match=r"cygnet pull t2v-1\.3b"):
        catalogue.resolve("t2v-1.3b", cache_folder=tmp_path)
    server.requests.clear()
    partial.write_bytes(server.repos[REPO][DIT][:70_000])
    pulled(server, tmp_path)
    assert server.downloads(DIT) == ["bytes=70000-"]
    assert server.downloads("Wan2.1_VAE.pth") == []


def test_a_pull_leaves_what_another_models_pull_began(server: StandInHub, tmp_path: Path) -> None:
    begun = tmp_path / "models--Wan-AI--Wan2.1-T2V-1.3B" / hub.PARTIAL_FOLDER / ("0" * 64)
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"half of a large file")
    pulled(server, tmp_path)
    assert [path.name for path in begun.parent.iterdir()] == [begun.name]


def test_a_file_with_a_wrong_checksum_never_enters_the_cache(server: StandInHub, tmp_path: Path) -> None:
    right = server.repos[REPO][DIT]
    server.damaged[DIT] = right[:-1] + b"!"
    with pytest.raises(DownloadError, match="checksum"):
        pulled(server, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == len(right)]
    with pytest.raises(ModelNotFoundError):
        catalogue.resolve("t2v-1.3b", cache_folder=tmp_path)
    server.damaged.clear()
    assert all(file.path.exists() for file in pulled(server, tmp_path).files)


def test_a_partial_file_that_was_begun_wrongly_is_fetched_once_more_from_the_start(
    server: StandInHub, tmp_path: Path
) -> None:
    partial = tmp_path / "models--Wan-AI--Wan2.1-T2V-1.3B" / hub.PARTIAL_FOLDER / sha256(server.repos[REPO][DIT])
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"?" * 1000)
    pulled(server, tmp_path)
    assert server.downloads(DIT) == ["bytes=1000-", ""]


def test_a_damaged_file_in_the_cache_is_noticed_and_replaced(server: StandInHub, tmp_path: Path) -> None:
    first = pulled(server, tmp_path)
    vae = next(file for file in first.files if file.name == "Wan2.1_VAE.pth")
    blob = vae.path.resolve()
    blob.write_bytes(b"x" * vae.bytes)
    again = pulled(server, tmp_path)
    assert [file.name for file in again.files if file.fetched] == ["Wan2.1_VAE.pth"]
    assert vae.path.read_bytes() == server.repos[REPO]["Wan2.1_VAE.pth"]


def test_files_go_into_comfyui_folders_when_a_folder_is_given(tmp_path: Path) -> None:
    files = {file.path: file.path.encode() * 100 for file in catalogue.entry("t2v-1.3b").source("comfy").select("fp16")}
    with stand_in_hub({catalogue.COMFY_REPO: files}) as server:
        done = hub.pull("t2v-1.3b", "comfy", dtype="fp16", local_folder=tmp_path / "models", endpoint=server.endpoint)
        assert {file.path.relative_to(tmp_path).as_posix() for file in done.files} == {
            "models/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors",
            "models/text_encoders/umt5_xxl_fp16.safetensors",
            "models/vae/wan_2.1_vae.safetensors",
        }
        assert set(catalogue.resolve("t2v-1.3b", places=[tmp_path], cache_folder=tmp_path)) == {
            "dit", "vae", "text_encoder",
        }  # fmt: skip
        own = tmp_path / "models" / "vae" / "wan_2.1_vae.safetensors"
        own.write_bytes(b"m" * own.stat().st_size)
        with pytest.raises(DownloadError, match="move it away"):
            hub.pull("t2v-1.3b", "comfy", dtype="fp16", local_folder=tmp_path / "models", endpoint=server.endpoint)
        assert own.read_bytes() == b"m" * own.stat().st_size


def test_progress_never_goes_back_and_ends_at_the_total(server: StandInHub, tmp_path: Path) -> None:
    seen: list[hub.PullProgress] = []
    pulled(server, tmp_path, on_progress=seen.append)
    total = sum(len(server.repos[REPO][name]) for name in WANTED)
    assert {report.total for report in seen} == {total}
    for stage in ("download", "verify"):
        done = [report.done for report in seen if report.stage == stage]
        assert done == sorted(done)
    assert seen[-1].done == total


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "HF_TOKEN"), (404, "HF_ENDPOINT"), (500, "the hub answered 500"), (429, "the hub answered 429")],
)
def test_an_answer_of_the_hub_becomes_a_message_with_a_next_step(
    server: StandInHub, tmp_path: Path, status: int, words: str
) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=words) as caught:
        pulled(server, tmp_path)
    assert str(tmp_path) not in str(caught.value)


def test_an_unreachable_hub_is_said_to_be_so(tmp_path: Path) -> None:
    with stand_in_hub({}) as server:
        endpoint = server.endpoint
    with pytest.raises(DownloadError, match="cannot be reached"):
        hub.pull("t2v-1.3b", endpoint=endpoint, cache_folder=tmp_path)


def test_an_unknown_revision_name_source_or_type_is_refused(server: StandInHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no such revision"):
        pulled(server, tmp_path, revision="nonsense")
    with pytest.raises(ModelNotFoundError, match=r"did you mean t2v-1\.3b"):
        hub.pull("t2v-1.3", endpoint=server.endpoint)
    with pytest.raises(RequestError, match="official, comfy, diffusers"):
        hub.pull("t2v-1.3b", "torrent", endpoint=server.endpoint)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="it has: bf16, fp16"):
        hub.pull("t2v-1.3b", "comfy", dtype="int3", endpoint=server.endpoint)
    with pytest.raises(RequestError, match="comes with cygnet"):
        hub.pull("tiny-t2v", endpoint=server.endpoint)


def test_a_full_disk_is_seen_before_anything_is_fetched(
    server: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": hub.SPARE_BYTES + 1_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(hub.DiskSpaceError, match="to be fetched"):
        pulled(server, tmp_path)
    assert server.downloads(DIT) == []


def offline(cache: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "CYGNET_HOME": str(cache / "home")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_offline_a_complete_model_is_served_from_the_cache_and_an_incomplete_one_is_an_error(
    server: StandInHub, tmp_path: Path
) -> None:
    pulled(server, tmp_path)
    code = "from cygnet.checkpoints import hub; print(hub.pull({!r}).offline)"
    done = offline(tmp_path, code.format("t2v-1.3b"))
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    done = offline(tmp_path, code.format("t2v-14b"))
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr


def test_offline_a_folder_that_was_asked_for_is_what_is_looked_at(server: StandInHub, tmp_path: Path) -> None:
    folder, cache = tmp_path / "models", tmp_path / "cache"
    pulled(server, cache, local_folder=folder)
    code = "from cygnet.checkpoints import hub; print(hub.pull('t2v-1.3b', local_folder={!r}).folder)"
    done = offline(cache, code.format(str(folder)))
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    (folder / DIT).unlink()
    done = offline(cache, code.format(str(folder)))
    assert done.returncode == 1
    assert "the folder lacks 1 of" in done.stderr


def test_a_hub_that_lists_paths_outside_the_folder_gets_none_of_them_written(tmp_path: Path) -> None:
    files = {**official_files(), "google/umt5-xxl/../../../../escaped": b"x" * 2000}
    with stand_in_hub({REPO: files}) as server:
        hub.pull("t2v-1.3b", local_folder=tmp_path / "in" / "here", endpoint=server.endpoint)
    assert not list(tmp_path.rglob("escaped"))
