"""What packs import from their host is there and does what it promises, or says that it is not."""

from __future__ import annotations

import inspect
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from cygnet.errors import RequestError, UnsupportedError, WeightFileError
from cygnet.graph.context import Context, running
from cygnet.graph.events import Event, NodeFailed, NodeFinished, NodePreviewed, NodeProgressed, Place
from cygnet.graph.execute import Executor, Job
from cygnet.graph.folders import Folders
from cygnet.graph.validate import validate
from cygnet.media.video_read import read_metadata
from cygnet.nodes import packs
from cygnet.nodes.catalogue import node_classes
from cygnet.nodes.host import Host
from cygnet.nodes.stand_ins.absent import AbsentNameError
from cygnet.nodes.workshop import Workshop
from cygnet.types import CancelToken

IMPORTS = """
import comfy.sd, comfy.samplers, comfy.sample, comfy.model_patcher, comfy.controlnet, comfy.clip_vision, comfy.lora
import comfy.utils, comfy.model_management as mm, comfy.latent_formats, comfy.ops, comfy.model_base, latent_preview
import folder_paths, node_helpers, nodes, server, comfyui_version, execution, comfy_extras, comfy.patcher_extension
import comfy.k_diffusion.sampling, comfy.hooks, comfy.conds, comfy.float, comfy.lora_convert, comfy.sampler_helpers
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_mask import MaskComposite
from comfy.cli_args import args, LatentPreviewMethod
from comfy.comfy_types import IO, ComfyNodeABC, InputTypeDict, FileLocator, CheckLazyMixin
from comfy.comfy_types.node_typing import IO as SameIO
from comfy.utils import ProgressBar, common_upscale, load_torch_file, bislerp
from comfy_api.input import AudioInput, ImageInput, VideoInput, LatentInput, MaskInput
from comfy_api.input.basic_types import AudioInput as SameAudio
from comfy_api.input.video_types import VideoInput as SameVideo
from comfy_api.input_impl import VideoFromComponents, VideoFromFile
from comfy_api.input_impl.video_types import VideoFromFile as SameFile
from comfy_api.util import VideoCodec, VideoComponents, VideoContainer
from comfy_api.util.video_types import VideoComponents as SameParts
from comfy_api.latest import ComfyAPI, ComfyExtension, Input, InputImpl, Types, io, ui
from comfy_api.latest._io import Schema
from comfy_api.v0_0_1 import ComfyAPI as FirstAPI, ComfyAPISync
from comfy_api.v0_0_2 import ComfyExtension as SameExtension, ComfyAPISync as SecondAPI, io as same_io
from comfy_execution.graph import ExecutionBlocker, DynamicPrompt, NodeNotFoundError
from comfy_execution.graph_utils import GraphBuilder, ExecutionBlocker as SameBlocker, is_link, add_graph_prefix
from comfy_execution.utils import get_executing_context
from nodes import (LoadImage, SaveImage, PreviewImage, NODE_CLASS_MAPPINGS as KNOWN, MAX_RESOLUTION, VAEDecode,
                   interrupt_processing, before_node_execution, EXTENSION_WEB_DIRS, common_ksampler)
from server import PromptServer, BinaryEventTypes
import torch
SEEN = globals()
"""

NODES = """
class Classic(ComfyNodeABC):
    DESCRIPTION = "by the typed base"
    CATEGORY = "demo"
    RETURN_TYPES = (IO.STRING, IO.ANY)
    FUNCTION = "go"
    @classmethod
    def INPUT_TYPES(cls) -> InputTypeDict:
        return {"required": {"text": (IO.STRING, {"default": "a"}), "number": (IO.NUMBER, {"forceInput": True})},
                "optional": {"sampler": (comfy.samplers.KSampler.SAMPLERS,)}}
    def go(self, text: str, number: float = 0, sampler="euler"):
        return (f"{text} {number}", get_executing_context())

class Keep(SaveImage):
    def __init__(self):
        super().__init__()
        self.output_dir = folder_paths.get_temp_directory()
        self.type = "temp"
        self.prefix_append = "_mine"

class Peek(PreviewImage):
    RETURN_TYPES = ("IMAGE",)
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"size": ("INT", {"default": 8})},
                "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}
    FUNCTION = "peek"
    def peek(self, size, prompt=None, extra_pnginfo=None):
        made = torch.rand(1, size, size, 3)
        return {**self.save_images(made, "peek", prompt, extra_pnginfo), "result": (made,)}

class Slow:
    RETURN_TYPES = (); FUNCTION = "go"; OUTPUT_NODE = True; CATEGORY = "demo"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"how": ("STRING", {})}}
    async def go(self, how):
        from PIL import Image
        if how == "bar":
            bar = ProgressBar(4)
            bar.update_absolute(2, preview=("PNG", Image.new("RGB", (64, 32)), 16))
            bar.update(2)
        elif how == "api":
            await ComfyAPI().execution.set_progress(1, 2, preview_image=torch.rand(1, 8, 8, 3))
            FirstAPI().execution; ComfyAPISync().execution.set_progress(2, 2)
        elif how == "other":
            SecondAPI().execution.set_progress(1, 2, node_id="99")
        else:
            interrupt_processing()
            before_node_execution()
        return {}

class Grow:
    RETURN_TYPES = ("IMAGE",); FUNCTION = "go"; CATEGORY = "demo"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE", {"rawLink": True}), "times": ("INT", {"default": 2})},
                "hidden": {"prompt": "DYNPROMPT", "id": "UNIQUE_ID"}}
    def go(self, image, times, prompt, id):
        assert isinstance(prompt, DynamicPrompt) and is_link(image)
        assert prompt.get_node(image[0])["class_type"] == "Peek"
        graph, link = GraphBuilder(), image
        for _ in range(times):
            link = graph.node("ImageScaleBy", image=link, upscale_method="area", scale_by=2.0).out(0)
        return {"result": (link,), "expand": graph.finalize()}

class Uses:
    RETURN_TYPES = ("STRING",); FUNCTION = "go"; CATEGORY = "demo"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    def go(self):
        return (comfy.sd.VAE(sd={}),)

class All(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(node_id="All", inputs=[io.Int.Input("known")], outputs=[io.String.Output()],
                      accept_all_inputs=True)
    @classmethod
    def execute(cls, known, **more):
        return io.NodeOutput(f"{known} {sorted(more.items())}")

class Told(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(node_id="Told", inputs=[io.Int.Input("known"), io.AnyType.Input("link", raw_link=True)],
                      outputs=[io.String.Output()])
    @classmethod
    def execute(cls, known, link):
        return io.NodeOutput(f"{known} {link}")

NODE_CLASS_MAPPINGS = {"Classic": Classic, "Keep": Keep, "Peek": Peek, "Slow": Slow, "Grow": Grow, "Uses": Uses,
                       "All": All, "Told": Told}
NODE_DISPLAY_NAME_MAPPINGS = {"Keep": "Keep it"}
"""


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("cygnet", "torch", "PIL", "numpy", "av", "safetensors")):
            del sys.modules[name]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    shop = Workshop(Folders.below(tmp_path), {"vae": (tmp_path / "vae",), "text_encoders": (tmp_path / "clip",)})
    shop.device = "cpu"
    for folder in (shop.folders.input, shop.folders.temp, tmp_path / "vae", tmp_path / "clip"):
        folder.mkdir()
    return shop


@pytest.fixture
def classes(shop: Workshop, tmp_path: Path) -> dict[str, Any]:
    root = tmp_path / "custom_nodes"
    root.mkdir()
    (root / "demo.py").write_text(IMPORTS + NODES)
    (root / "later.py").write_text(
        "import nodes\nclass More(nodes.NODE_CLASS_MAPPINGS['Keep']): pass\nNODE_CLASS_MAPPINGS = {'More': More}"
    )
    ours = node_classes(shop)
    found = packs.load(shop, [root], ours, host=Host(address=("127.0.0.1", 8188), preview_method="none"))
    assert [it.error for it in found] == ["", ""], found[0].traceback
    return {**ours, **{name: node for it in found for name, node in it.nodes.items()}}


def seen(name: str) -> Any:
    """A name as the pack sees it."""
    return vars(sys.modules["custom_nodes.demo"])[name]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def run(classes: dict[str, Any], prompt: dict[str, Any]) -> tuple[list[Event], str]:
    verdict = validate(prompt, classes)
    assert verdict.error is None, verdict
    events: list[Event] = []
    job = Job(prompt=verdict.prompt, outputs=verdict.outputs, extra={"extra_pnginfo": {"workflow": {"a": 1}}}, id="j")
    return events, Executor(classes).run(job, events.append).state


def texts(events: list[Event]) -> list[Any]:
    return [text for it in events if isinstance(it, NodeFinished) and it.ui for text in it.ui.get("text", ())]


def test_the_names_of_one_thing_are_one_thing(classes: dict[str, Any]) -> None:
    same = [("SameIO", "IO"), ("SameAudio", "AudioInput"), ("SameVideo", "VideoInput"), ("SameFile", "VideoFromFile"),
            ("SameParts", "VideoComponents"), ("SameExtension", "ComfyExtension"), ("SameBlocker", "ExecutionBlocker"),
            ("FirstAPI", "ComfyAPI")]  # fmt: skip
    assert [seen(one) is seen(other) for one, other in same] == [True] * len(same)
    assert seen("comfyui_version").__version__.count(".") == 2
    assert (seen("Input").Video, seen("InputImpl").VideoFromFile) == (seen("VideoInput"), seen("VideoFromFile"))
    assert issubclass(seen("VideoFromFile"), seen("VideoInput"))
    assert seen("Types").VideoContainer.as_input() == ["auto", "mp4"]
    assert (seen("VideoCodec")("h264"), seen("VideoContainer").get_extension("auto")) == ("h264", "mp4")


def test_a_typed_node_is_described_and_runs(classes: dict[str, Any]) -> None:
    info = json.loads(json.dumps(classes["Classic"].describe().info()))
    assert info["output"] == ["STRING", "*"]
    assert info["input"]["required"]["text"][0] == "STRING"
    assert info["input"]["required"]["number"][0] == "FLOAT,INT"
    assert "euler" in info["input"]["optional"]["sampler"][0]
    prompt = {
        "0": node("PrimitiveInt", value=3),
        "1": node("Classic", text="b", number=["0", 0]),
        "2": node("PreviewAny", source=["1", 0]),
        "3": node("PreviewAny", source=["1", 1]),
    }
    events, state = run(classes, prompt)
    assert state == "success", events
    assert "b 3" in texts(events)
    assert any("prompt_id='j', node_id='1', list_index=0" in it for it in texts(events)), texts(events)
    assert seen("get_executing_context")() is None


def test_nodes_derived_from_ours_save_where_they_say(classes: dict[str, Any], shop: Workshop) -> None:
    prompt = {"1": node("Peek", size=8), "2": node("Keep", images=["1", 0], filename_prefix="sub/x"),
              "3": node("More", images=["1", 0], filename_prefix="y")}  # fmt: skip
    events, state = run(classes, prompt)
    assert state == "success", events
    shown = {it.place.node: it.ui["images"][0] for it in events if isinstance(it, NodeFinished) and it.ui}
    assert shown["2"] == {"filename": "x_mine_00001_.png", "subfolder": "sub", "type": "temp"}
    assert (shown["1"]["type"], shown["3"]["filename"]) == ("temp", "y_mine_00001_.png")
    assert json.loads(read_metadata(shop.folders.temp / "sub" / "x_mine_00001_.png")["workflow"]) == {"a": 1}
    assert classes["Keep"].display_name == "Keep it"
    assert set(seen("KNOWN")) >= {"KSampler", "Peek", "More"}
    keep = seen("Keep")()
    keep.output_dir = str(shop.folders.output)
    with pytest.raises(RequestError, match="not in the temp folder"):
        keep.save_images(torch.rand(1, 8, 8, 3))


def test_our_nodes_are_called_by_the_names_of_the_contract(classes: dict[str, Any], shop: Workshop) -> None:
    Image.new("RGB", (8, 4), (255, 0, 0)).save(shop.folders.input / "red.png")
    image, mask = seen("LoadImage")().load_image("red.png")
    assert (image.shape, mask.shape) == ((1, 4, 8, 3), (1, 64, 64))
    scaled = seen("nodes").ImageScale().upscale(image, "area", 4, 2, "disabled")[0]
    assert scaled.shape == (1, 2, 4, 3)
    scale = seen("nodes").ImageScaleBy()
    assert getattr(scale, scale.FUNCTION)(image=image, upscale_method="area", scale_by=2.0)[0].shape == (1, 8, 16, 3)
    with pytest.raises(TypeError, match="takes 2 inputs"):
        seen("VAEDecode")().decode(1, 2, 3)
    with pytest.raises(RequestError, match="not both"):
        seen("common_ksampler")(*[None] * 9, denoise=0.5, start_step=1)


@pytest.mark.parametrize("how", ["bar", "api"])
def test_progress_and_previews_reach_the_page(classes: dict[str, Any], how: str) -> None:
    events, state = run(classes, {"1": node("Slow", how=how)})
    assert state == "success", events
    done = [(it.value, it.total) for it in events if isinstance(it, NodeProgressed)]
    assert done == ([(2, 4), (4, 4)] if how == "bar" else [(1, 2), (2, 2)])
    (shown,) = [it for it in events if isinstance(it, NodePreviewed)]
    with Image.open(io.BytesIO(shown.image)) as picture:
        assert (picture.format, picture.size) == (("PNG", (16, 8)) if how == "bar" else ("JPEG", (8, 8)))


def test_a_node_tells_no_progress_of_another(classes: dict[str, Any]) -> None:
    events, state = run(classes, {"1": node("Slow", how="other")})
    assert state == "error"
    assert "of node 99" in next(it.message for it in events if isinstance(it, NodeFailed))
    with pytest.raises(AttributeError, match="node_replacement is not there in cygnet"):
        seen("ComfyAPI")().node_replacement  # noqa: B018


def test_a_node_stops_its_job(classes: dict[str, Any]) -> None:
    assert run(classes, {"1": node("Slow", how="stop")})[1] == "interrupted"
    with pytest.raises(RuntimeError, match="post to /api/interrupt"):
        seen("interrupt_processing")()
    token = CancelToken()
    with running(Context(Place(node="1", display="1", real="1"), lambda event: None, token)):
        seen("mm").interrupt_current_processing(False)
        assert not token.cancelled
        seen("mm").interrupt_current_processing()
        assert seen("mm").processing_interrupted()
        with pytest.raises(seen("mm").InterruptProcessingException):
            seen("mm").throw_exception_if_processing_interrupted()


def test_a_pack_expands_what_a_raw_link_leads_to(classes: dict[str, Any]) -> None:
    prompt = {"1": node("Peek", size=8), "2": node("Grow", image=["1", 0], times=2),
              "3": node("GetImageSize", image=["2", 0]), "4": node("PreviewAny", source=["3", 0])}  # fmt: skip
    events, state = run(classes, prompt)
    assert (state, texts(events)) == ("success", ["32"])


def test_a_v3_node_takes_all_inputs_or_a_raw_link(classes: dict[str, Any]) -> None:
    prompt = {"1": node("PrimitiveInt", value=3), "2": node("All", known=1, extra="x", number=["1", 0]),
              "3": node("PreviewAny", source=["2", 0]), "4": node("Told", known=1, link=["1", 0], extra="x"),
              "5": node("PreviewAny", source=["4", 0])}  # fmt: skip
    events, state = run(classes, prompt)
    assert state == "success", events
    assert sorted(texts(events)) == ["1 ['1', 0]", "1 [('extra', 'x'), ('number', 3)]"]


def test_what_is_not_there_can_be_imported_and_says_so_when_it_is_used(classes: dict[str, Any]) -> None:
    events, state = run(classes, {"1": node("Uses"), "2": node("PreviewAny", source=["1", 0])})
    assert state == "error"
    failed = next(it for it in events if isinstance(it, NodeFailed))
    assert failed.message.startswith("comfy.sd.VAE is not there in cygnet: MODEL, CLIP and VAE are cygnet's own")
    absent = seen("comfy").samplers.CFGGuider
    derived = type("Derived", (absent,), {})
    for use in (absent, derived, lambda: absent.sample, lambda: seen("bislerp")(1), seen("mm").load_models_gpu):
        with pytest.raises(AbsentNameError, match="is not there in cygnet"):
            use()
    assert not hasattr(absent, "sample")
    with pytest.raises(AbsentNameError, match=r"comfy\.samplers\.KSampler is not there"):
        seen("comfy").samplers.KSampler(None)
    with pytest.raises(AttributeError, match=r"args\.fast is not known"):
        seen("args").fast  # noqa: B018
    assert getattr(seen("args"), "fast", "default") == "default"


def test_what_the_studio_was_started_with(classes: dict[str, Any], shop: Workshop) -> None:
    args = seen("args")
    assert (args.listen, args.port, args.cpu, args.lowvram) == ("127.0.0.1", 8188, True, False)
    assert args.output_directory == str(shop.folders.output)
    assert args.preview_method is seen("LatentPreviewMethod").NoPreviews
    assert (seen("PromptServer").instance.address, seen("PromptServer").instance.port) == ("127.0.0.1", 8188)
    with pytest.raises(AttributeError, match="no server runs"):
        Host().port  # noqa: B018


def test_devices_and_their_memory(classes: dict[str, Any], shop: Workshop) -> None:
    mm = seen("mm")
    assert {str(getattr(mm, name)()) for name in ("get_torch_device", "vae_device", "intermediate_device")} == {"cpu"}
    free, total = mm.get_free_memory(), mm.get_total_memory(torch.device("cpu"))
    assert 0 < free <= total
    assert mm.total_vram * 2**20 == pytest.approx(total)
    assert (mm.cpu_state, mm.cpu_mode(), mm.should_use_fp16(), mm.is_nvidia()) == (mm.CPUState.CPU, True, False, False)
    assert (mm.is_device_cpu("cpu"), mm.is_device_mps(torch.device("cpu"))) == (True, False)
    assert mm.module_size(torch.nn.Linear(3, 2)) == 4 * 8
    shop._loaded["x"] = object()
    mm.unload_all_models()
    mm.soft_empty_cache()
    assert not shop._loaded
    with pytest.raises(AttributeError, match="no_such"):
        mm.no_such  # noqa: B018


def test_pictures_and_files_of_tensors(classes: dict[str, Any], tmp_path: Path) -> None:
    utils = seen("comfy").utils
    picture = torch.rand(1, 3, 8, 16)
    for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos"):
        assert utils.common_upscale(picture, 4, 4, method, "center").shape == (1, 3, 4, 4)
    assert utils.common_upscale(torch.rand(2, 3, 5, 8, 16), 4, 2, "bilinear", "disabled").shape == (2, 3, 5, 2, 4)
    with pytest.raises(RequestError, match="cygnet has nearest-exact, bilinear"):
        utils.common_upscale(picture, 4, 4, "bislerp", "disabled")
    utils.save_torch_file({"a.w": torch.ones(2, 3), "b": torch.zeros(1)}, tmp_path / "t.safetensors", {"x": "y"})
    found, metadata = utils.load_torch_file(str(tmp_path / "t.safetensors"), return_metadata=True)
    assert (utils.calculate_parameters(found, "a."), metadata["x"], list(tmp_path.glob(".*"))) == (6, "y", [])
    assert set(utils.state_dict_prefix_replace(dict(found), {"a.": "c."}, filter_keys=True)) == {"c.w"}
    assert set(utils.state_dict_key_replace(dict(found), {"b": "d", "none": "e"})) == {"a.w", "d"}
    (tmp_path / "broken.safetensors").write_text("no")
    with pytest.raises(WeightFileError):
        utils.load_torch_file(tmp_path / "broken.safetensors")
    assert utils.repeat_to_batch_size(torch.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    holder = SimpleNamespace(a=SimpleNamespace(b=1))
    assert (utils.set_attr(holder, "a.b", 2), utils.get_attr(holder, "a.b")) == (1, 2)


def test_tiles_are_joined_without_seams(classes: dict[str, Any]) -> None:
    utils = seen("comfy").utils
    picture = torch.rand(2, 3, 21, 30)
    told: list[int] = []
    bar = SimpleNamespace(update=told.append)

    def twice(tile: torch.Tensor) -> torch.Tensor:
        return tile.repeat_interleave(2, -1).repeat_interleave(2, -2)

    joined = utils.tiled_scale(picture, twice, tile_x=8, tile_y=10, overlap=3, upscale_amount=2, pbar=bar)
    torch.testing.assert_close(joined, twice(picture))
    assert len(told) == 2 * utils.get_tiled_scale_steps(30, 21, 8, 10, 3)


def test_helpers_of_nodes(classes: dict[str, Any]) -> None:
    helpers = seen("node_helpers")
    given = [[torch.zeros(1), {"a": [1]}]]
    assert helpers.conditioning_set_values(given, {"a": [2], "b": 3})[0][1] == {"a": [2], "b": 3}
    assert helpers.conditioning_set_values(given, {"a": [2]}, append=True)[0][1] == {"a": [1, 2]}
    assert given[0][1] == {"a": [1]}, "what was given is left as it is"
    assert helpers.conditioning_set_values_with_timestep_range(given, {"b": 1})[0][1]["b"] == 1
    with pytest.raises(UnsupportedError, match=r"from 0 to 0\.5"):
        helpers.conditioning_set_values_with_timestep_range(given, {}, 0.0, 0.5)
    wide, opaque = helpers.image_alpha_fix(torch.rand(1, 2, 2, 4), torch.zeros(1, 2, 2, 3))
    assert (wide.shape, opaque[..., 3].unique().tolist()) == ((1, 2, 2, 4), [1.0])
    assert helpers.image_alpha_fix(torch.rand(1, 2, 2, 3), torch.zeros(1, 2, 2, 4))[1].shape == (1, 2, 2, 3)
    assert helpers.hasher()(b"").hexdigest().startswith("e3b0c442")
    assert helpers.string_to_torch_dtype("bf16") is torch.bfloat16
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    whole = helpers.pillow(Image.open, io.BytesIO(file.getvalue()))
    short = helpers.pillow(Image.open, io.BytesIO(file.getvalue()[:-300]))
    assert helpers.pillow(lambda it: it.convert("RGB"), short).size == whole.size
    with pytest.raises(OSError, match="cannot identify"):
        helpers.pillow(Image.open, io.BytesIO(b"text"))


def test_folders_and_the_files_in_them(classes: dict[str, Any], shop: Workshop, tmp_path: Path) -> None:
    paths = seen("folder_paths")
    for name in ("a.png", "b.mp4", "c.txt", "d.webp", "sub/e.wav", "sub/skip/f.glb"):
        (shop.folders.input / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.folders.input / name).write_text("")
    (shop.folders.input / "sub" / "back").symlink_to(shop.folders.input)
    found, changed = paths.recursive_search(str(shop.folders.input), excluded_dir_names=["skip"])
    assert sorted(found) == ["a.png", "b.mp4", "c.txt", "d.webp", "sub/e.wav"]
    assert str(shop.folders.input) in changed
    assert paths.recursive_search(str(tmp_path / "none")) == ([], {})
    assert paths.filter_files_content_types([*found, "x.glb"], ["image", "audio", "model"]) == [
        it for it in [*found, "x.glb"] if it in ("a.png", "d.webp", "sub/e.wav", "x.glb")
    ]
    with pytest.raises(ValueError, match="there are image, video"):
        paths.filter_files_content_types(found, ["pictures"])
    (tmp_path / "clip" / "t.safetensors").write_text("")
    assert paths.get_filename_list("clip") == paths.get_filename_list("text_encoders") == ["t.safetensors"]
    assert paths.get_full_path("clip", "t.safetensors") == str(tmp_path / "clip" / "t.safetensors")
    with pytest.raises(KeyError, match="there are"):
        paths.get_folder_paths("nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "m.onnx").write_text("")
    paths.add_model_folder_path("mine", str(tmp_path / "mine"))
    assert paths.get_filename_list("mine") == ["m.onnx"]
    paths.add_model_folder_path("vae", str(tmp_path / "mine"))
    paths.add_model_folder_path("vae", str(tmp_path / "mine"), is_default=True)
    assert paths.get_folder_paths("vae") == [str(tmp_path / "mine"), str(tmp_path / "vae")]
    assert paths.get_annotated_filepath("a.png") == str(shop.folders.input / "a.png")
    assert paths.annotated_filepath("a.png [temp]") == ("a.png", str(shop.folders.temp))
    assert paths.annotated_filepath("a.png") == ("a.png", None)
    assert paths.get_annotated_filepath("new.txt", str(shop.folders.temp)) == str(shop.folders.temp / "new.txt")
    with pytest.raises(RequestError):
        paths.get_annotated_filepath("../out.txt", str(shop.folders.temp))
    assert paths.get_input_subfolders() == ["sub", "sub/back", "sub/skip"]
    with pytest.raises(AbsentNameError, match="chosen when the studio is started"):
        paths.set_output_directory("x")


def test_modules_say_that_they_lie_in_the_base_folder(classes: dict[str, Any], shop: Workshop) -> None:
    base = shop.folders.output.parent
    for name in ("folder_paths", "nodes", "server", "execution", "node_helpers"):
        assert Path(str(sys.modules[name].__file__)) == base / f"{name}.py"
    assert Path(str(sys.modules["comfy"].__file__)) == base / "comfy" / "__init__.py"
    assert Path(inspect.getfile(seen("PromptServer"))).parent == base


def test_the_server_is_a_class_that_packs_may_derive_from_and_change(
    classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = seen("PromptServer")
    assert isinstance(server.instance, server)
    assert isinstance(server.instance, Host)
    assert type("More", (server,), {})().instance is server.instance
    told: list[Any] = []
    monkeypatch.setattr(server, "send_sync", lambda self, *message: told.append(message))
    server.instance.send_sync("a", 1)
    assert told == [("a", 1)]
    assert "custom_nodes_from_web" in server.instance.supports
    queue = server.instance.prompt_queue
    with pytest.raises(AbsentNameError, match=r"prompt_queue.currently_running is not there.*over HTTP"):
        queue.currently_running  # noqa: B018
    assert queue.get_tasks_remaining() == 0
    server.instance.tasks_remaining = 3
    assert queue.get_tasks_remaining() == 3
    assert Host().prompt_queue.get_tasks_remaining() == 0
    with running(Context(Place(node="1", display="1", real="1"), told.append, CancelToken())):
        server.instance.send_progress_text("half", "1")
    assert told[-1].text == "half"


def test_a_message_that_is_no_json_is_not_sent_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def tell(event: str, data: Any, client: str | None) -> None:
        json.dumps(data)

    Host(tell).send_sync("mine", {"a": object()})
    assert "message mine is not sent" in caplog.text


def test_nodes_that_are_not_there_can_be_derived_from_and_say_so(classes: dict[str, Any]) -> None:
    base: Any = sys.modules["nodes"].CheckpointLoaderSimple  # type: ignore[attr-defined]
    more = type("More", (base,), {"RETURN_TYPES": (*base.RETURN_TYPES, "STRING")})
    assert more.RETURN_TYPES == ("MODEL", "CLIP", "VAE", "STRING")
    assert ".png" in sys.modules["comfy.k_diffusion.utils"].FolderOfImages.IMG_EXTENSIONS  # type: ignore[attr-defined]
    assert "bicubic" in sys.modules["nodes"].ImageScale.upscale_methods  # type: ignore[attr-defined]
    for use in (more, lambda: more.INPUT_TYPES(), lambda: seen("optimized_attention")(1), seen("MaskComposite")):
        with pytest.raises(AbsentNameError, match="is not there in cygnet"):
            use()
