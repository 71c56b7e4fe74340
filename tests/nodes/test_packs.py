"""Custom nodes of the classic contract, good and bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cygnet.graph.execute import Executor, Job
from cygnet.graph.folders import Folders
from cygnet.graph.validate import validate
from cygnet.nodes import packs
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.host import Host
from cygnet.nodes.workshop import Workshop

GOOD = """
import folder_paths, torch
from comfy.utils import ProgressBar
from .helper import TITLE
class Double:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("INT", {"default": 1})}}
    RETURN_TYPES = ("STRING",); FUNCTION = "run"; OUTPUT_NODE = True; CATEGORY = "x"
    def run(self, value):
        ProgressBar(2).update(2)
        return {"ui": {"text": [f"{value * 2} {folder_paths.get_output_directory()}"]}, "result": (str(value),)}
class KSampler(Double): pass
NODE_CLASS_MAPPINGS = {"Double": Double, "KSampler": KSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"Double": TITLE}
WEB_DIRECTORY = "./web"
"""


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("custom_nodes", "folder_paths", "comfy", "nodes", "server", "execution"):
            del sys.modules[name]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(Folders.below(tmp_path))


def pack(root: Path, name: str, **files: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "custom_nodes"
    good = pack(root, "good-pack", __init__=GOOD, helper="TITLE = 'Twice'")
    (good / "web").mkdir()
    (good / "web" / "a.js").write_text("1")
    (good / "example_workflows").mkdir()
    return root


def test_a_pack_runs_among_ours_and_cannot_replace_them(shop: Workshop, root: Path) -> None:
    ours = node_classes(shop)
    (found,) = packs.load(shop, [root], ours)
    assert set(found.nodes) == {"Double"}
    assert found.web == ("good-pack", root / "good-pack" / "web")
    assert found.examples == root / "good-pack" / "example_workflows"
    info = found.nodes["Double"].describe().info()
    assert info["display_name"] == "Twice"
    assert info["python_module"] == "custom_nodes.good-pack"
    classes = {**ours, **found.nodes}
    verdict = validate({"1": {"class_type": "Double", "inputs": {"value": 21}}}, classes)
    events: list[Any] = []
    assert Executor(classes).run(Job(prompt=verdict.prompt, outputs=verdict.outputs), events.append).state == "success"
    assert f"42 {shop.folders.output}" in str(events)


FORMS = """
import importlib, sys
import custom_nodes
from . import one, sub
from .one import WHO as a
from .one import *
from .sub import two
from .sub.two import WHO as b
from .sub.deep import three
from .sub.deep.three import WHO as c
d = importlib.import_module(".one", __name__).WHO
e = importlib.import_module("custom_nodes.NAME.sub.two").WHO
class It:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("STRING",); FUNCTION = "run"; OUTPUT_NODE = True
    def run(self):
        from . import late
        from .sub.deep.later import WHO
        import custom_nodes.PLAIN.one as again
        return ("|".join([a, b, c, d, e, one.WHO, two.WHO, three.WHO, late.WHO, WHO, again.WHO]),)
NODE_CLASS_MAPPINGS = {"NODE": It}
"""
PARTS = ("one", "late", "sub/two", "sub/deep/three", "sub/deep/later")


@pytest.mark.parametrize("failing", [False, True])
def test_the_modules_of_packs_are_found_in_every_form_and_kept_apart(
    shop: Workshop, tmp_path: Path, failing: bool
) -> None:
    first, second = tmp_path / "custom_nodes", tmp_path / "elsewhere"
    where = {"a-b": first, "a_b": first, "v1.2": second, "plain": second}
    for name, root in where.items():
        short = name.replace(".", "_x_")
        plain = short if short.isidentifier() else "plain"
        text = FORMS.replace("NAME", short, 1).replace("PLAIN", plain).replace('{"NODE"', f'{{"{name}"')
        folder = pack(root, name, __init__=text)
        (folder / "sub" / "deep").mkdir(parents=True)
        (folder / "sub" / "__init__.py").write_text("from .. import one; from ..one import WHO; from . import deep")
        (folder / "sub" / "deep" / "__init__.py").write_text("from ...one import WHO")
        for part in PARTS:
            (folder / f"{part}.py").write_text(f"WHO = {f'{name}/{part}'!r}\n")
    if failing:
        pack(first, "a", __init__="from . import one; from .sub import two; raise ValueError", one="WHO = 'a'")
    (first / "plain.py").write_text("import custom_nodes.plain; NODE_CLASS_MAPPINGS = {}")
    found = {it.name: it for it in packs.load(shop, [first, second], set()) if it.nodes or it.error}
    assert {name: it.error for name, it in found.items() if name != "a"} == dict.fromkeys(where, "")
    for name in where:
        it: Any = found[name].nodes[name]
        said = it.call(it.instance(), {})[0].split("|")
        again = name if name in ("a_b", "v1.2") else "plain"
        parts = ("one", "sub/two", "sub/deep/three", "one", "sub/two", *("one", "sub/two", "sub/deep/three"))
        assert said == [*(f"{name}/{part}" for part in (*parts, "late", "sub/deep/later")), f"{again}/one"]
    assert not [it for it in sys.modules if it == "custom_nodes.a" or it.startswith("custom_nodes.a.")]


def test_packs_that_fail_hide_nothing_and_are_remembered(shop: Workshop, root: Path) -> None:
    pack(root, "a_broken", __init__="import no_such_module_at_all")
    pack(root, "b_leaves", __init__="raise SystemExit(3)")
    pack(root, "c_v3", __init__="def comfy_entrypoint(): pass")
    pack(root, "d_syntax", __init__="def (")
    pack(root, "e_off.disabled", __init__="raise ValueError")
    pack(root, "f_no_package", other="raise ValueError")
    pack(root, "g_early", __init__=GOOD, helper="TITLE = 1", prestartup_script="raise OSError('early')")
    (root / "single.py").write_text("NODE_CLASS_MAPPINGS = {'One': object, 2: object, None: object}")
    (root / ".hidden.py").write_text("raise ValueError")
    found = {it.name: it for it in packs.load(shop, [root, root / "none"], set())}
    assert set(found) == {"a_broken", "b_leaves", "c_v3", "d_syntax", "g_early", "good-pack", "single"}
    assert "no_such_module_at_all" in found["a_broken"].error
    assert "import no_such_module_at_all" in found["a_broken"].traceback
    assert "SystemExit" in found["b_leaves"].error
    assert "must return a ComfyExtension" in found["c_v3"].error
    assert "SyntaxError" in found["d_syntax"].error
    assert not found["good-pack"].error
    assert found["single"].json()["nodes"] == ["One"], "a name that is no text is left out alone"
    assert set(found["g_early"].nodes) == {"Double", "KSampler"}
    assert set(found["good-pack"].nodes) == set(), "the first that has a name keeps it"
    json.dumps([it.json() for it in found.values()])


def test_only_the_packs_that_are_named_are_imported(shop: Workshop, root: Path) -> None:
    pack(root, "other", __init__="raise ValueError('imported')", prestartup_script="raise OSError('early')")
    assert [it.name for it in packs.load(shop, [root], set(), only=["good-pack", "none"])] == ["good-pack"]
    assert packs.load(shop, [root], set(), only=[]) == []


def test_a_web_folder_outside_the_pack_is_not_served(shop: Workshop, root: Path) -> None:
    pack(root, "p", __init__="NODE_CLASS_MAPPINGS = {}; WEB_DIRECTORY = '../..'")
    project = pack(root, "q", __init__="NODE_CLASS_MAPPINGS = {}")
    (project / "js").mkdir()
    (project / "pyproject.toml").write_text('[project]\nname = "q-public"\n[tool.comfy]\nweb = "js"\n')
    found = {it.name: it.web for it in packs.load(shop, [root], set())}
    assert found["p"] is None
    assert found["q"] == ("q-public", project / "js")


def test_a_pack_that_ends_the_process_is_left_out_until_it_changes(tmp_path: Path, shop: Workshop, root: Path) -> None:
    bad = pack(root, "bad", __init__="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    notes = tmp_path / "user" / "importing-worker.json"
    code = f"""
from pathlib import Path
from cygnet.graph.folders import Folders
from cygnet.nodes import packs
from cygnet.nodes.host import Host
from cygnet.nodes.workshop import Workshop
packs.load(Workshop(Folders.below(Path({str(tmp_path)!r}))), [Path({str(root)!r})], set(), Path({str(notes)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    for _ in range(2):
        found = {it.name: it for it in packs.load(shop, [root], set(), notes)}
        assert "ended the process" in found["bad"].error
        assert found["good-pack"].nodes
    (bad / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    (bad / "more.py").write_text("")
    os.utime(bad / "__init__.py", (1, 2_000_000_000))
    assert not {it.name: it for it in packs.load(shop, [root], set(), notes)}["bad"].error


def test_what_packs_ask_of_their_host(tmp_path: Path, shop: Workshop) -> None:
    text = """
import folder_paths as f, comfy.model_management as mm, comfy.utils, torch
from server import PromptServer
from nodes import MAX_RESOLUTION
@PromptServer.instance.routes.get("/mine")
async def mine(request): pass
open(f.get_temp_directory() + "/out.txt", "w").write(repr([
    f.get_filename_list("vae"), f.get_full_path("vae", "no"), f.exists_annotated_filepath("a.txt"),
    f.get_save_image_path("s/p", f.get_output_directory(), 4, 5)[1:4], str(mm.get_torch_device()), MAX_RESOLUTION,
    list(comfy.utils.common_upscale(torch.zeros(1, 3, 8, 16), 4, 4, "bilinear", "center").shape)]))
NODE_CLASS_MAPPINGS = {}
"""
    for kind in ("input", "temp"):
        shop.folders.root(kind).mkdir()  # type: ignore[arg-type]
    (shop.folders.input / "a.txt").write_text("x")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "v.safetensors").write_text("x")
    shop.models = {"vae": (tmp_path / "vae",)}
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "asks.py").write_text(text)
    host = Host()
    (found,) = packs.load(shop, [tmp_path / "packs"], set(), host=host)
    assert not found.error, found.traceback
    told = (shop.folders.temp / "out.txt").read_text()
    assert told == "[['v.safetensors'], None, True, ('p', 1, 's'), 'cpu', 16384, [1, 3, 4, 4]]"
    assert ("GET", "/mine") in host.patterns()


@pytest.mark.parametrize("titles", ["[('Mine', 'My node')]", "'Mine'", "[]", "None"])
def test_titles_that_are_no_mapping_cost_the_titles_alone(
    titles: str, shop: Workshop, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = "class Mine:\n    RETURN_TYPES = ()\n    INPUT_TYPES = classmethod(lambda cls: {})\n"
    names = f"NODE_CLASS_MAPPINGS = {{'Mine': Mine}}\nNODE_DISPLAY_NAME_MAPPINGS = {titles}"
    pack(root, "listed", __init__=node + names)
    found = {it.name: it for it in packs.load(shop, [root], ())}
    assert (found["listed"].error, found["listed"].nodes["Mine"].describe().display_name) == ("", "Mine")
    assert ("NODE_DISPLAY_NAME_MAPPINGS is a" in caplog.text) == (titles not in ("[]", "None"))


def test_choices_may_be_a_generator(shop: Workshop, root: Path) -> None:
    """Made anew by each call, or once for all of them, which a second call finds drained."""
    code = """
SIZES = (f"{side}p" for side in (480, 720))
class Mine:
    @classmethod
    def INPUT_TYPES(cls):
        new = (letter for letter in "ab")
        return {"required": {"a": (SIZES,), "b": ("COMBO", {"options": SIZES}), "c": (new, {"default": "b"}),
                             "d": ("COMBO", {"options": {"x": 1}.keys()})}}
    RETURN_TYPES = (); FUNCTION = "run"; OUTPUT_NODE = True
    def run(self, **given): return ()
NODE_CLASS_MAPPINGS = {"Mine": Mine}
"""
    pack(root, "generous", __init__=code)
    node = next(it for it in packs.load(shop, [root], ()) if it.name == "generous").nodes["Mine"]
    for _ in range(2):
        told = json.loads(json.dumps(node.describe().info()))["input"]["required"]
        assert [told[name][0] for name in "ac"] == [["480p", "720p"], ["a", "b"]]
        assert [told[name][1]["options"] for name in "bd"] == [["480p", "720p"], ["x"]]
    prompt = {"1": {"class_type": "Mine", "inputs": {"a": "720p", "b": "480p", "c": "a", "d": "x"}}}
    assert not validate(prompt, {"Mine": node}).nodes
    prompt["1"]["inputs"]["a"] = "1080p"
    assert validate(prompt, {"Mine": node}).nodes
