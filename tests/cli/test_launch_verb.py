"""``cygnet launch``: the sockets that it listens on, and what becomes of its options."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from cli_process import Command
from cygnet.cli import launch as module
from cygnet.cli.launch import _all_bound, _bound
from cygnet.cli.studio import model_roots, read_token
from cygnet.errors import RequestError
from cygnet.server.settings import Settings


def test_answers_are_not_held_back() -> None:
    async def main() -> int:
        found = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = _bound("127.0.0.1", 0)
        server = await asyncio.start_server(serve, sock=bound)
        _, writer = await asyncio.open_connection(*bound.getsockname())
        flag: int = await found
        writer.close()
        server.close()
        return flag

    assert asyncio.run(main()) != 0


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} .*choose another --port"):
            _bound("127.0.0.1", port)
    with pytest.raises(RequestError, match="from 0 "):
        _bound("127.0.0.1", 70000)


def test_several_addresses_share_a_port() -> None:
    first, second = _all_bound(["127.0.0.1", "127.0.0.2"], 0)
    assert first.getsockname()[1] == second.getsockname()[1]
    port = first.getsockname()[1]
    with pytest.raises(RequestError, match=r"cannot listen on 127\.0\.0\.2"):
        _all_bound(["127.0.0.3", "127.0.0.2"], port)
    for it in (first, second, *_all_bound(["127.0.0.3"], port)):  # what was bound before the failure is free again
        it.close()


class Served:
    """What a studio would have been started with."""

    settings: Settings
    options: dict[str, Any]
    addresses: list[str]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    it = Served()

    def serve(settings: Settings, options: dict[str, Any], bound: list[socket.socket], auto_launch: bool) -> int:
        it.settings, it.options = settings, options
        it.addresses = [one.getsockname()[0] for one in bound]
        for one in bound:
            one.close()
        return 0

    monkeypatch.setattr(module, "_serve", serve)
    return it


def test_folders_and_limits_are_where_the_flags_say(cygnet: Command, served: Served, place: Path) -> None:
    words = ["--base-directory", "base", "--input-directory", "i", "--output-directory", "o", "--temp-directory", "t"]
    words += ["--user-directory", "u", "--max-upload-size", "0.5", "--disable-metadata", "--cpu", "--port", "0"]
    done = cygnet("launch", *words, "--preview-method", "none", "--preview-size", "64", "--cache-lru", "5")
    assert done.code == 0, done.err
    folders = served.settings.folders
    assert (folders.input, folders.output, folders.temp) == (place / "i", place / "o", place / "t" / "cygnet-temp")
    assert served.settings.user == place / "u"
    assert served.settings.models["vae"][0] == place / "base" / "models" / "vae"
    assert served.settings.largest_upload == 2**19
    wanted = {"device": "cpu", "metadata": False, "preview_method": "none", "preview_side": 64, "results_kept": 5}
    assert wanted.items() <= served.options.items()
    assert served.options["packs"] == [str(place / "base" / "custom_nodes")]
    assert served.addresses == ["127.0.0.1"]


def test_several_files_of_model_folders_may_follow_one_flag(cygnet: Command, served: Served, place: Path) -> None:
    for name in ("a", "b"):
        (place / f"{name}.yaml").write_text(
            f"{name}:\n  base_path: {place / name}\n  vae: vae\n  custom_nodes: nodes\n"
        )
        (place / name / "vae").mkdir(parents=True)
        (place / name / "nodes").mkdir()
    done = cygnet("launch", "--extra-model-paths-config", "a.yaml", "b.yaml", "--port", "0")
    assert done.code == 0, done.err
    assert {place / "a" / "vae", place / "b" / "vae"} <= set(served.settings.models["vae"])
    assert {str(place / "a" / "nodes"), str(place / "b" / "nodes")} <= set(served.options["packs"])


def test_packs_can_be_left_out_but_for_some(cygnet: Command, served: Served) -> None:
    assert cygnet("launch", "--port", "0").code == 0
    assert served.options["only_packs"] is None
    words = ["--disable-all-custom-nodes", "--whitelist-custom-nodes", "one", "two", "--cache-none"]
    assert cygnet("launch", "--port", "0", *words).code == 0
    assert (served.options["only_packs"], served.options["results_kept"]) == (["one", "two"], None)
    done = cygnet("launch", "--whitelist-custom-nodes", "one")
    assert (done.code, "--disable-all-custom-nodes" in done.err) == (2, True)


def test_each_address_is_a_name_of_the_server_and_a_public_one_needs_a_token(
    cygnet: Command, served: Served, place: Path
) -> None:
    assert cygnet("launch", "--listen", "127.0.0.1,127.0.0.2", "--port", "0").code == 0
    assert served.addresses == ["127.0.0.1", "127.0.0.2"]
    assert served.settings.access.knows("127.0.0.2")
    refused = cygnet("launch", "--listen", "--port", "0")
    assert (refused.code, "--token-file" in refused.err) == (2, True)
    refused = cygnet("launch", "--listen", "127.0.0.1,0.0.0.0", "--port", "0")
    assert (refused.code, "--token-file" in refused.err) == (2, True)
    (place / "token").write_text("0123456789abcdef0123")
    refused = cygnet("launch", "--listen", "127.0.0.1,0.0.0.0", "--token-file", "token", "--enable-manager")
    assert (refused.code, "loopback only" in refused.err) == (2, True)


def test_the_page_may_come_from_another_folder(cygnet: Command, served: Served, place: Path) -> None:
    refused = cygnet("launch", "--front-end-root", place, "--port", "0")
    assert (refused.code, "index.html" in refused.err) == (2, True)
    (place / "index.html").write_text("<html>")
    assert cygnet("launch", "--front-end-root", place, "--port", "0").code == 0
    assert served.settings.page == place


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lowvram"], "--lowvram has no meaning here"),
        (["--preview-size", "0"], "--preview-size is 0"),
        (["--cache-lru", "-1"], "--cache-lru is -1"),
        (["--listen", ","], "--listen names no address"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_words(
    cygnet: Command, served: Served, words: list[str], part: str
) -> None:
    done = cygnet("launch", *words, "--port", "0")
    assert (done.code, part in done.err) == (2, True), done.err


@pytest.mark.parametrize("listen", ["a" * 300, "no such host", "256.0.0.1"])
def test_an_address_that_is_none_is_refused_in_words(listen: str) -> None:
    with pytest.raises(RequestError, match="cannot listen on"):
        _bound(listen, 0)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_a_token_that_others_may_choose_is_none(tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    path.write_text("a long and random line\n")
    path.chmod(0o640)
    assert read_token(path) == "a long and random line"
    for mode in (0o660, 0o602):
        path.chmod(mode)
        with pytest.raises(RequestError, match=r"chmod 600 token\.txt"):
            read_token(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00", None])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token.txt").write_bytes(content)
    with pytest.raises(RequestError, match=r"token file token\.txt"):
        read_token(tmp_path / "token.txt")


def test_default_folders_of_a_paths_file_come_first(tmp_path: Path) -> None:
    file = tmp_path / "extra.yaml"
    file.write_text("a:\n  vae: /more/vae\nb:\n  is_default: true\n  vae: /first/vae\n  ipadapter: /first/adapters\n")
    roots = model_roots(tmp_path / "base", [file])
    assert roots["vae"][:3] == ["/first/vae", str(tmp_path / "base" / "models" / "vae"), "/more/vae"]
    assert roots["ipadapter"] == ["/first/adapters"]
    assert roots["loras"][0] == str(tmp_path / "base" / "models" / "loras")
