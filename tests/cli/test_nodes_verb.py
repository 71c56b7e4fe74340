"""``cygnet nodes``: installing from a path, a git address, and a stand-in of the registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_process import Command
from cygnet.errors import CygnetError
from cygnet.graph.folders import Folders
from cygnet.nodes import packs
from cygnet.nodes.workshop import Workshop
from cygnet.server.installer import Installer
from cygnet.server.routes_manager import perform
from stand_in_registry import INIT, Registry, stand_in_registry, zipped


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[str, bytes]]]:
    with stand_in_registry() as url:
        monkeypatch.setenv("CYGNET_REGISTRY", url)
        yield Registry.packs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder into which the studio of this test's user installs."""
    return tmp_path / "cygnet" / "custom_nodes"


def test_a_registry_pack_is_installed_listed_updated_and_removed(
    cygnet: Command, root: Path, registry: dict[str, tuple[str, bytes]]
) -> None:
    registry["nice-pack"] = ("1.0.0", zipped(**{"__init__.py": INIT, "data/x.txt": "1"}))
    done = cygnet("nodes", "install", "nice-pack")
    assert (done.code, done.out) == (0, "nice-pack 1.0.0\n")
    assert "Restart the studio" in done.err
    assert (root / "nice-pack" / "data" / "x.txt").read_text() == "1"
    assert cygnet("nodes", "install", "nice-pack").code == 2
    registry["nice-pack"] = ("2.0.0", zipped(**{"nice-pack-2/__init__.py": INIT}))
    assert cygnet("nodes", "update").out == "nice-pack 2.0.0\n"
    assert not (root / "nice-pack" / "data").exists()
    (row,) = cygnet("nodes", "--json").json()["packs"]
    expected = {"name": "nice-pack", "origin": "registry", "address": "nice-pack", "version": "2.0.0", "enabled": True}
    assert row == {**expected, "loaded": None, "error": ""}
    cygnet("nodes", "disable", "nice-pack")
    assert not (root / "nice-pack").exists()
    assert cygnet("nodes", "list", "--json").json()["packs"][0]["enabled"] is False
    cygnet("nodes", "enable", "nice-pack")
    assert cygnet("nodes", "install", "nice-pack", "--version", "1.5.0").code == 2
    assert "version=1.5.0" in Registry.asked[-2]
    assert cygnet("nodes", "remove", "nice-pack").code == 0
    assert list(root.iterdir()) == []
    assert cygnet("nodes").out == "No packs are installed.\n"


def test_the_list_says_which_packs_the_last_start_loaded(cygnet: Command, root: Path, tmp_path: Path) -> None:
    for name, text in (("good", INIT), ("bad", "import no_such_module"), ("off.disabled", INIT), ("single", None)):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text(text or "NODE_CLASS_MAPPINGS = {}")
    before = dict(sys.modules)
    packs.load(Workshop(Folders.below(tmp_path)), [root], set(), root.parent / "user" / "importing-catalogue.json")
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("custom_nodes", "folder_paths", "comfy", "nodes", "server", "execution"):
            del sys.modules[name]
    (root / "new.py").write_text("")
    done = cygnet("nodes", "list")
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in done.out.splitlines()}
    assert said["good"].startswith("yes")
    assert said["single"].startswith("yes")
    assert said["bad"].startswith("no, it failed")
    assert said["bad:"] == "ModuleNotFoundError: No module named 'no_such_module'"
    assert said["off"].startswith("no, disabled")
    assert said["new.py"].startswith("not tried yet")
    found = {it["name"]: (it["loaded"], bool(it["error"])) for it in cygnet("nodes", "--json").json()["packs"]}
    assert found == {
        "bad": (False, True),
        "good": (True, False),
        "new.py": (None, False),
        "off": (None, False),
        "single": (True, False),
    }


def test_a_failed_update_leaves_the_old_pack(
    cygnet: Command, root: Path, registry: dict[str, tuple[str, bytes]]
) -> None:
    registry["p"] = ("1", zipped(**{"__init__.py": INIT}))
    cygnet("nodes", "install", "p")
    registry["p"] = ("2", zipped(**{"__init__.py": INIT, "requirements.txt": "no-such-package-of-cygnet==1\n"}))
    done = cygnet("nodes", "update", "p")
    assert (done.code, "requirements" in done.err) == (1, True)
    assert [it.name for it in root.iterdir()] == ["p"]
    assert cygnet("nodes", "--json").json()["packs"][0]["version"] == "1"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no zip", "damaged"),
        (zipped(**{"../evil.py": "x", "__init__.py": INIT}), "leads out"),
        (zipped(**{"/evil.py": "x", "__init__.py": INIT}), "leads out"),
        (zipped(**{"readme.txt": "x"}), "no __init__.py"),
    ],
)
def test_an_archive_that_is_no_pack_leaves_nothing(
    cygnet: Command, root: Path, registry: dict[str, tuple[str, bytes]], data: bytes, words: str
) -> None:
    registry["bad"] = ("1", data)
    done = cygnet("nodes", "install", "bad")
    assert (done.code, words in done.err) == (1, True), done.err
    assert list(root.iterdir()) == []
    assert not list(root.parent.rglob("evil.py"))


def test_a_path_and_a_git_address(cygnet: Command, root: Path, place: Path) -> None:
    source = place / "mine"
    source.mkdir()
    (source / "__init__.py").write_text(INIT)
    assert cygnet("nodes", "install", source).code == 0
    assert cygnet("nodes", "--json").json()["packs"][0]["address"] == str(source)
    (source / "new.py").write_text("")
    assert cygnet("nodes", "update", "mine").code == 0
    assert (root / "mine" / "new.py").exists()
    if shutil.which("git") is None:
        pytest.skip("git is not installed, so nothing can be cloned")
    for order in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
        subprocess.run(["git", *order], cwd=source, check=True)
    shutil.move(source, place / "cloned.git")
    done = cygnet("nodes", "install", f"file://{place / 'cloned.git'}")
    assert done.code == 0, done.err
    assert (root / "cloned" / "__init__.py").exists()
    assert cygnet("nodes", "update", "cloned").code == 0
    assert "could not clone" in cygnet("nodes", "install", f"file://{place / 'none.git'}").err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["install"], "say what to install"),
        (["install", "../x y"], "is no registry id"),
        (["install", "--version", "1", "."], "a path has none"),
        (["remove", "nobody"], "there is no pack 'nobody'"),
        (["update", "nobody"], "there is no pack"),
        (["list", "x"], "takes no names"),
    ],
)
def test_a_wrong_request_is_refused_in_words(cygnet: Command, words: list[str], part: str) -> None:
    done = cygnet("nodes", *words)
    assert (done.code, part in done.err) == (2, True), done.err


def test_an_unknown_pack_and_an_unreachable_registry(
    cygnet: Command, registry: dict[str, tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cygnet("nodes", "install", "nobody")
    assert (done.code, "answers 404" in done.err) == (1, True)
    monkeypatch.setenv("CYGNET_REGISTRY", "http://example.org")
    assert "only https" in cygnet("nodes", "install", "nobody").err
    monkeypatch.setenv("CYGNET_REGISTRY", "http://127.0.0.1:9")
    assert "cannot be reached" in cygnet("nodes", "install", "nobody", "--json").json()["error"]["message"]


@pytest.mark.parametrize(
    "elsewhere",
    ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "http://192.168.0.1/", "ftp://a.test/x"],
)
def test_a_redirection_is_judged_like_an_address(
    cygnet: Command, root: Path, registry: dict[str, tuple[str, bytes]], elsewhere: str
) -> None:
    registry["p"] = ("1", zipped(**{"__init__.py": INIT}))
    Registry.leads["/zip/p"] = elsewhere
    done = cygnet("nodes", "install", "p")
    assert done.code == 1
    assert "is not fetched" in done.err or "answers 302" in done.err
    assert not (root / "p").exists()
    Registry.leads["/zip/p"] = "/zip/moved"
    registry["moved"] = registry["p"]
    assert cygnet("nodes", "install", "p").code == 0


def test_a_download_without_end_is_given_up(
    cygnet: Command, registry: dict[str, tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry["p"] = ("1", zipped(**{"__init__.py": INIT}))
    monkeypatch.setattr("cygnet.server.fetch.LONGEST", -1.0)
    assert "took more than" in cygnet("nodes", "install", "p").err


def test_what_the_page_asks_for_is_a_registry_id_and_never_a_folder(
    tmp_path: Path, registry: dict[str, tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(INIT)
    monkeypatch.chdir(tmp_path)
    installer = Installer(tmp_path / "custom_nodes", registry=os.environ["CYGNET_REGISTRY"])
    for name in ("mine", "..", ".", "~", "git@host", "", "a b"):
        with pytest.raises(CygnetError):
            perform(installer, "install", {"id": name})
    assert installer.installed() == []
