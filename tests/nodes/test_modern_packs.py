"""Custom nodes of the current contract: described, validated, run, saved."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cygnet.graph.events import Event, NodeFailed, NodeFinished
from cygnet.graph.execute import Executor, Job
from cygnet.graph.folders import Folders
from cygnet.graph.validate import validate
from cygnet.nodes import packs
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.workshop import Workshop

PACK = '''
from __future__ import annotations
from enum import Enum
from comfy_api.latest import ComfyExtension, io, ui
from comfy_api.latest.io import NodeOutput
import torch

class Mode(Enum):
    dark = "dark"
    light = "light"

SAME = io.MatchType.Template("same", [io.Image, io.Mask])

class Paint(io.ComfyNode):
    """A plain picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DemoPaint", display_name="Paint", category="demo", description="paints",
            inputs=[
                io.Int.Input("size", default=8, min=1, max=64, step=1, display_mode=io.NumberDisplay.slider),
                io.Float.Input("gain", "Gain", True, "how bright", default=1.0, round=0.01),
                io.Combo.Input("mode", options=Mode, default=Mode.dark),
                io.String.Input("note", multiline=True, dynamic_prompts=True, optional=True, advanced=True),
                io.MultiType.Input("any", [io.Mask, io.Custom("THING")], optional=True),
            ],
            outputs=[io.Image.Output(display_name="picture"), io.Int.Output("area", tooltip="in pixels")],
        )

    @classmethod
    async def validate_inputs(cls, size):
        return True if size != 13 else "thirteen brings bad luck"

    @classmethod
    def fingerprint_inputs(cls, size, **more):
        return size

    @classmethod
    async def execute(cls, size, mode, gain=1.0, note="", any=None) -> io.NodeOutput:
        value = gain * (0.25 if mode == "dark" else 0.75)
        return NodeOutput(torch.full((2, size, size, 3), value), size * size)

class Keep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="DemoKeep", inputs=[io.Image.Input("image")], outputs=[], is_output_node=True,
                         hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, image):
        assert cls.hidden.unique_id == "2" and cls.hidden.auth_token_comfy_org is None
        return NodeOutput(ui=ui.ImageSaveHelper.get_save_images_ui(image, "demo/kept", cls=cls))

class Look(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("DemoLook", inputs=[
            io.Autogrow.Input("parts", io.Autogrow.TemplatePrefix(io.Image.Input("part"), prefix="part", min=1, max=3)),
            io.DynamicCombo.Input("how", [io.DynamicCombo.Option("plain", []),
                                          io.DynamicCombo.Option("scaled", [io.Float.Input("by", default=2.0)])]),
        ], outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, parts, how):
        text = f"{sorted(parts)} {how['how']} {how.get('by')}"
        return NodeOutput(ui={**ui.PreviewImage(parts["part0"], cls=cls).as_dict(), **ui.PreviewText(text).as_dict()})

class Same(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="DemoSame", inputs=[io.MatchType.Input("a", SAME, lazy=True)],
                         outputs=[io.MatchType.Output(SAME, display_name="out")], is_experimental=True)

    @classmethod
    def execute(cls, a):
        return NodeOutput(block_execution="not today")

class Count(io.ComfyNode):
    runs = 0

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="DemoCount", inputs=[io.Image.Input("image"), io.Int.Input("step"),
                                                         io.Custom(Any_("any")).Input("more", optional=True)],
                         outputs=[io.Int.Output()])

    @classmethod
    async def fingerprint_inputs(cls, image, step):
        return "told" if image is None else "known"

    @classmethod
    def execute(cls, image, step):
        Count.runs += step
        return NodeOutput(Count.runs)

class Any_(str):
    def __ne__(self, other):
        return False

class Demo(ComfyExtension):
    loaded = False
    async def on_load(self):
        Demo.loaded = True
    async def get_node_list(self):
        assert Demo.loaded
        return [Paint, Keep, Look, Same, Broken, Count]

class Broken(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="DemoBroken", inputs=[io.NoSuchType.Input("image")])

async def comfy_entrypoint():
    return Demo()
'''


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("custom_nodes", "folder_paths", "comfy", "nodes", "server", "comfy_api"):
            del sys.modules[name]


@pytest.fixture
def classes(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "custom_nodes" / "demo"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACK)
    shop = Workshop(Folders.below(tmp_path))
    ours = node_classes(shop)
    (found,) = packs.load(shop, [tmp_path / "custom_nodes"], ours)
    assert found.error == "", found.traceback
    assert set(found.nodes) == {"DemoPaint", "DemoKeep", "DemoLook", "DemoSame", "DemoCount"}
    return {**ours, **found.nodes}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def ran(prompt: dict[str, Any], classes: dict[str, Any], executor: Executor | None = None) -> list[Event]:
    verdict = validate(prompt, classes)
    assert verdict.error is None, verdict
    seen: list[Event] = []
    (executor or Executor(classes)).run(Job(prompt=verdict.prompt, outputs=verdict.outputs, extra={}), seen.append)
    return seen


def shown(events: list[Event], key: str) -> Any:
    return next(it.ui for it in events if isinstance(it, NodeFinished) and it.place.node == key)


def test_clients_read_what_the_schema_says(classes: dict[str, Any]) -> None:
    info = classes["DemoPaint"].describe().info()
    assert (info["display_name"], info["category"], info["description"]) == ("Paint", "demo", "paints")
    required, optional = info["input"]["required"], info["input"]["optional"]
    assert required["size"] == ["INT", {"default": 8, "min": 1, "max": 64, "step": 1, "display": "slider"}]
    assert required["mode"] == ["COMBO", {"multiselect": False, "options": ["dark", "light"], "default": "dark"}]
    assert optional["gain"] == [
        "FLOAT",
        {"display_name": "Gain", "tooltip": "how bright", "default": 1.0, "round": 0.01},
    ]
    assert optional["note"] == ["STRING", {"multiline": True, "dynamicPrompts": True, "advanced": True}]
    assert optional["any"][0] == "MASK,THING"
    assert (info["output"], info["output_name"]) == (["IMAGE", "INT"], ["picture", "INT"])
    assert info["output_tooltips"] == [None, "in pixels"]
    same = classes["DemoSame"].describe().info()
    assert same["input"]["required"]["a"][1] == {
        "template": {"template_id": "same", "allowed_types": "IMAGE,MASK"}, "lazy": True,
    }  # fmt: skip
    assert (same["output_matchtypes"], same["experimental"]) == (["same"], True)
    look = classes["DemoLook"].describe().info()["input"]["required"]
    assert look["parts"][1]["template"] == {
        "input": {"required": {"part": ("IMAGE", {"forceInput": True})}}, "prefix": "part", "min": 1, "max": 3,
    }  # fmt: skip
    assert look["how"][1]["options"][1]["inputs"] == {"required": {"by": ("FLOAT", {"default": 2.0})}}


def test_nodes_run_and_save_with_the_workflow_inside(classes: dict[str, Any], tmp_path: Path) -> None:
    prompt = {"1": node("DemoPaint", size=4, mode="light"), "2": node("DemoKeep", image=["1", 0])}
    images = shown(ran(prompt, classes), "2")["images"]
    assert [it["filename"] for it in images] == ["kept_00001_.png", "kept_00002_.png"]
    assert images[0]["subfolder"] == "demo"
    picture = Image.open(tmp_path / "output" / "demo" / "kept_00001_.png")
    assert "DemoPaint" in picture.info["prompt"]
    assert np.asarray(picture).tolist() == np.full((4, 4, 3), 191).tolist()


def test_dynamic_inputs_arrive_as_mappings(classes: dict[str, Any]) -> None:
    paint = node("DemoPaint", size=4, mode="dark")
    prompt = {
        "1": paint,
        "2": node("DemoLook", **{"parts.part0": ["1", 0], "parts.part1": ["1", 0], "how": "scaled", "how.by": 3.0}),
    }
    ui = shown(ran(prompt, classes), "2")
    assert ui["text"] == ["['part0', 'part1'] scaled 3.0"]
    assert ui["images"][0]["type"] == "temp"


def test_a_hook_refuses_and_a_blocker_stops_what_follows(classes: dict[str, Any]) -> None:
    bad = {"1": node("DemoPaint", size=13, mode="dark"), "2": node("DemoKeep", image=["1", 0])}
    verdict = validate(bad, classes)
    assert verdict.error is not None
    assert "thirteen brings bad luck" in str(verdict.nodes["1"].errors)
    blocked = {
        "1": node("DemoPaint", size=4, mode="dark"),
        "3": node("DemoSame", a=["1", 0]),
        "2": node("DemoKeep", image=["3", 0]),
    }
    events = ran(blocked, classes)
    assert any(isinstance(it, NodeFailed) and it.blocked and "not today" in it.message for it in events)
    assert not any(isinstance(it, NodeFinished) and it.place.node == "2" and it.ui for it in events)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "custom_nodes" / "odd"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from comfy_api.latest import io\nx = io.DynamicSlot\n")
    (found,) = packs.load(Workshop(Folders.below(tmp_path)), [tmp_path / "custom_nodes"], {})
    assert "DynamicSlot" in found.error


def test_a_node_whose_fingerprint_names_a_link_is_kept(classes: dict[str, Any]) -> None:
    executor = Executor(classes)
    prompt = {
        "1": node("DemoPaint", size=16, gain=1.0, mode="light"),
        "2": node("DemoCount", image=["1", 0], step=1),
        "3": node("PreviewAny", source=["2", 0]),
    }
    for _ in range(2):
        assert shown(ran(prompt, classes, executor), "3") == {"text": ["1"]}


def test_a_custom_type_may_be_a_wildcard(classes: dict[str, Any]) -> None:
    assert classes["DemoCount"].describe().input("more").type == "*"


def test_a_custom_node_makes_a_video(classes: dict[str, Any]) -> None:
    made: dict[str, Any] = {}
    exec(
        "from comfy_api.latest import InputImpl, Types\n"
        "from comfy_api.input_impl import VideoFromComponents\n"
        "from comfy_api.util import VideoComponents\n"
        "import torch\n"
        "parts = Types.VideoComponents(images=torch.zeros(4, 8, 16, 3), frame_rate=Fraction(8))\n"
        "video = InputImpl.VideoFromComponents(parts)\n",
        {"Fraction": Fraction},
        made,
    )
    assert made["video"].get_dimensions() == (16, 8)
    assert made["VideoFromComponents"](made["VideoComponents"](made["parts"].images, 2)).get_duration() == 2
