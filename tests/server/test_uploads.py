"""What is uploaded is wholly what its name says, is stored once and whole, and never costs more than it may."""

from __future__ import annotations

import errno
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from cygnet.media import files as media_files


def picture(size: tuple[int, int] = (8, 4), kind: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, format=kind)
    return out.getvalue()


def upload(client: TestClient, name: str, data: bytes, route: str = "image", **fields: str) -> Any:
    return client.post(f"/upload/{route}", files={"image": (name, data)}, data=fields)


BOMB = picture((20_000, 20_000), mode="1")


def test_the_bytes_of_a_good_picture_are_kept_as_they_are(client: TestClient, base: Path) -> None:
    """Its texts hold the workflow that the page opens from it."""
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")):
        data = picture(kind=kind)
        assert upload(client, f"kept.{suffix}", data).status_code == 200
        assert (base / "input" / f"kept.{suffix}").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "data", "status", "words"),
    [
        ("bomb.png", BOMB, 413, "pixels"),
        ("html.png", picture() + b"<html><script>", 400, "second kind of file"),
        ("webp.png", picture(kind="WEBP"), 400, "WEBP picture"),
        ("gif.jpg", picture(kind="GIF"), 400, "GIF picture"),
        ("cut.jpg", picture((64, 64), kind="JPEG")[:-30], 400, ""),
        ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", 400, "not a PNG"),
        ("empty.png", b"", 400, ""),
        (f"{'a' * 300}.png", picture(), 400, "longer than"),
    ],
)
def test_a_picture_that_is_none_or_more_is_refused(
    client: TestClient, base: Path, name: str, data: bytes, status: int, words: str
) -> None:
    answer = upload(client, name, data)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert not (base / "input" / name[:200]).exists()


@pytest.mark.parametrize("subfolder", ["a" * 300, "a/" * 1100, ".git/hooks", "x/.hidden", "../x", "C:\\x", "taken.png"])
def test_a_subfolder_that_cannot_be_is_refused(client: TestClient, subfolder: str) -> None:
    upload(client, "taken.png", picture())
    assert upload(client, "a.png", picture(), subfolder=subfolder).status_code == 400


def test_a_folder_is_never_overwritten(client: TestClient, base: Path) -> None:
    upload(client, "inner.png", picture(), subfolder="folder.png")
    assert upload(client, "folder.png", picture(), overwrite="true").status_code == 400
    assert upload(client, "folder.png", picture()).json()["name"] == "folder (1).png"
    assert (base / "input/folder.png/inner.png").is_file()


def test_uploads_of_one_name_at_once_all_survive(client: TestClient, base: Path) -> None:
    pictures = [picture((8, 8 + i)) for i in range(24)]
    with ThreadPoolExecutor(12) as pool:
        names = [it.json()["name"] for it in pool.map(lambda data: upload(client, "race.png", data), pictures)]
    assert len(set(names)) == len(pictures)
    assert [(base / "input" / name).read_bytes() for name in names] == pictures
    assert not list((base / "input").glob(".*"))


@pytest.mark.parametrize(
    ("original", "mask", "status"),
    [
        ("[" * 100_000, picture(mode="RGBA"), 400),
        ("5", picture(mode="RGBA"), 400),
        (json.dumps({"filename": "of.png", "type": "input"}), BOMB, 413),
        (json.dumps({"filename": "huge.png", "type": "input"}), picture(mode="RGBA"), 413),
        (json.dumps({"filename": "../../secret", "type": "input"}), picture(mode="RGBA"), 400),
        (json.dumps({"filename": "of.png", "type": "input"}), b"%!PS-Adobe-3.0 EPSF-3.0\n", 400),
    ],
)
def test_a_mask_is_judged_like_any_picture(
    client: TestClient, base: Path, original: str, mask: bytes, status: int
) -> None:
    upload(client, "of.png", picture())
    (base / "input/huge.png").write_bytes(BOMB)
    assert upload(client, "m.png", mask, route="mask", original_ref=original).status_code == status
    assert upload(client, "m.mp4", picture(), route="mask", original_ref=original).status_code == 400


def test_a_preview_of_a_bomb_or_of_no_picture_is_refused(client: TestClient, base: Path) -> None:
    for name, data, status in (("huge.png", BOMB, 413), ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", 400)):
        (base / "output" / name).write_bytes(data)
        assert client.get("/view", params={"filename": name, "preview": "webp"}).status_code == status


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "disk_full"), (errno.EDQUOT, 507, "disk_full"), (errno.EROFS, 503, "output_failed"),
     (errno.EACCES, 503, "output_failed"), (errno.EIO, 503, "output_failed")],
)  # fmt: skip
def test_a_disk_that_takes_no_more_is_named_and_nothing_half_written_stays(
    client: TestClient, base: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int, code: str
) -> None:
    assert client.post("/userdata/kept.json", content=b"old").status_code == 200
    before = {it for it in base.rglob("*") if "jobs.sqlite" not in it.name}

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    asked = [
        upload(client, "full.png", picture()),
        client.post("/userdata/full.json", content=b"{}"),
        client.post("/userdata/kept.json", content=b"new"),
        client.post("/settings/full", json=1),
    ]
    monkeypatch.undo()
    for answer in asked:
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, code)
        assert str(base) not in answer.text
    assert {it for it in base.rglob("*") if "jobs.sqlite" not in it.name} == before
    assert client.get("/userdata/kept.json").content == b"old"
    assert upload(client, "full.png", picture()).status_code == 200, "it goes on when there is room again"


def test_a_part_that_a_killed_server_left_is_shown_nowhere(client: TestClient, base: Path) -> None:
    for folder in ("input", "user/default"):
        media_files.new_part(base / folder)
    assert ".part" not in client.get("/internal/files/input").text
    assert ".part" not in client.get("/userdata?dir=.").text + client.get("/v2/userdata").text


def test_the_settings_file_is_changed_by_its_own_route_alone(client: TestClient) -> None:
    client.post("/settings/kept", json=1)
    for name in ("comfy.settings.json", ".%2Fcomfy.settings.json", "x/../comfy.settings.json"):
        assert client.post(f"/userdata/{name}", content=b"NaN").status_code == 403
        assert client.delete(f"/userdata/{name}").status_code == 403
        assert client.post(f"/userdata/{name}/move/other.json").status_code == 403
    assert client.get("/settings/kept").json() == 1


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=2-4", 206),
        ("bytes=-2", 206),
        ("bytes=0-99999999999999999999", 206),
        ("bytes=99999-", 416),
        ("bytes=5-1", 400),
        ("bytes=a-b", 400),
        ("items=0-1", 400),
        ("bytes=" + ",".join(f"{i}-{i}" for i in range(5000)), 200),
        ("bytes=" + "9" * 5000 + "-", 400),
    ],
    ids=lambda it: str(it)[:20],
)
def test_odd_ranges_are_answered_within_bounds(client: TestClient, base: Path, asked: str, status: int) -> None:
    data = bytes(range(256)) * 4
    (base / "output" / "ranges.mp4").write_bytes(data)
    answer = client.get("/view?filename=ranges.mp4", headers={"range": asked})
    assert answer.status_code == status
    assert len(answer.content) <= 2 * len(data)
    if asked == "bytes=2-4":
        assert answer.content == data[2:5]
