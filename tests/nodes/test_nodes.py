"""Our nodes have the inputs and outputs that stock workflows expect, and make videos with the embedded networks."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.errors import Cancelled, MediaError, RequestError
from cygnet.graph.context import Context, running
from cygnet.graph.events import Event, NodeFailed, NodeFinished, NodePreviewed, NodeProgressed, Place
from cygnet.graph.execute import Executor, Job
from cygnet.graph.folders import Folders
from cygnet.graph.schema import COMBO, Input, NodeType
from cygnet.graph.validate import validate
from cygnet.media.video_read import read_metadata, read_video
from cygnet.models.vae.config import WAN_LATENTS_MEAN
from cygnet.nodes import conditioning, latents, sampling, videos
from cygnet.nodes.catalogue import embedded_files, node_classes
from cygnet.nodes.workshop import FileHandle, Workshop
from cygnet.types import CancelToken

DUMP = json.loads((Path(__file__).parents[1] / "data" / "object_info.json").read_text())
"""What the reference server declares for these node types (facts, with its texts removed)."""

FEWER_CHOICES = {
    ("KSampler", "sampler_name"),
    ("KSampler", "scheduler"),
    ("KSamplerAdvanced", "sampler_name"),
    ("KSamplerAdvanced", "scheduler"),
    ("KSamplerSelect", "sampler_name"),
    ("BasicScheduler", "scheduler"),
    ("CLIPLoader", "type"),
}
"""Combos in which we list only what works."""
WIDER = {("ImageFromBatch", "batch_index")}
"""Ranges that newer servers have widened."""


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    folders = Folders.below(tmp_path)
    folders.input.mkdir()
    return Workshop(folders, embedded=embedded_files(EMBEDDED), device="cpu")


def shape(it: Input) -> dict[str, Any]:
    kept = {
        key: it.options[key]
        for key in ("default", "min", "max", "step", "multiline", "forceInput")
        if key in it.options
    }
    return {"name": it.name, "type": it.type, "section": it.section, **kept}


NAMES = sorted(node_classes(Workshop(Folders.below(Path("/nowhere")))))


CACHE = (
    "model: MODEL, reuse_threshold: FLOAT =0.2 [0..3] step 0.01, start_percent: FLOAT =0.15 [0..1] step 0.01, "
    "end_percent: FLOAT =0.95 [0..1] step 0.01, verbose: BOOLEAN =False",
    "MODEL: MODEL",
)
NEWER: dict[str, tuple[str, str]] = {
    "EasyCache": CACHE,
    "LazyCache": CACHE,
    "BatchImagesNode": ("images: COMFY_AUTOGROW_V3", "IMAGE: IMAGE"),
    "ComfyMathExpression": (
        "expression: STRING ='a + b' multiline, values: COMFY_AUTOGROW_V3",
        "FLOAT: FLOAT, INT: INT, BOOL: BOOLEAN",
    ),
    "ComfySwitchNode": (
        "switch: BOOLEAN =False, on_false?: COMFY_MATCHTYPE_V3 lazy, on_true?: COMFY_MATCHTYPE_V3 lazy",
        "output: COMFY_MATCHTYPE_V3",
    ),
    "GenerateTracks": (
        "width: INT =832 [16..4096] step 16, height: INT =480 [16..4096] step 16, "
        "start_x: FLOAT =0.0 [0..1] step 0.01, start_y: FLOAT =0.0 [0..1] step 0.01, "
        "end_x: FLOAT =1.0 [0..1] step 0.01, end_y: FLOAT =1.0 [0..1] step 0.01, "
        "num_frames: INT =81 [1..1024], num_tracks: INT =5 [1..100], track_spread: FLOAT =0.025 [0..1] step 0.001, "
        "bezier: BOOLEAN =False, mid_x: FLOAT =0.5 [0..1] step 0.01, mid_y: FLOAT =0.5 [0..1] step 0.01, "
        "interpolation: COMBO linear|ease_in|ease_out|ease_in_out|constant, track_mask?: MASK",
        "TRACKS: TRACKS, track_length: INT",
    ),
    "ImageScaleToTotalPixels": (
        "image: IMAGE, upscale_method: COMBO nearest-exact|bilinear|area|bicubic|lanczos, "
        "megapixels: FLOAT =1.0 [0.01..16] step 0.01",
        "IMAGE: IMAGE",
    ),
    "MaskPreview": ("mask: MASK", ""),
    "ResizeImageMaskNode": (
        "input: COMFY_MATCHTYPE_V3, resize_type: COMFY_DYNAMICCOMBO_V3 scale dimensions|scale by multiplier|"
        "scale longer dimension|scale shorter dimension|scale width|scale height|scale total pixels|match size|"
        "scale to multiple, "
        "scale_method: COMBO ='area' nearest-exact|bilinear|area|bicubic|lanczos",
        "resized: COMFY_MATCHTYPE_V3",
    ),
    "WanMoveConcatTrack": ("tracks_1: TRACKS, tracks_2?: TRACKS", "TRACKS: TRACKS"),
    "WanMoveTracksFromCoords": (
        "track_coords?: STRING ='[]' forceInput, track_mask?: MASK",
        "TRACKS: TRACKS, track_length: INT",
    ),
    "WanMoveTrackToVideo": (
        "positive: CONDITIONING, negative: CONDITIONING, vae: VAE, strength: FLOAT =1.0 [0..100] step 0.01, "
        "width: INT =832 [16..16384] step 16, height: INT =480 [16..16384] step 16, "
        "length: INT =81 [1..16384] step 4, batch_size: INT =1 [1..4096], start_image: IMAGE, tracks?: TRACKS, "
        "clip_vision_output?: CLIP_VISION_OUTPUT",
        "positive: CONDITIONING, negative: CONDITIONING, latent: LATENT",
    ),
    "WanMoveVisualizeTracks": (
        "images: IMAGE, line_resolution: INT =24 [1..1024], circle_size: INT =12 [1..128], "
        "opacity: FLOAT =0.75 [0..1] step 0.01, line_width: INT =16 [1..128], tracks?: TRACKS",
        "IMAGE: IMAGE",
    ),
}
"""Nodes of servers newer than the one that the dump was taken from: inputs and outputs, from their published docs."""
RESIZE = {
    "scale dimensions": "width: INT =512 [0..16384] step 1, height: INT =512 [0..16384] step 1, "
    "crop: COMBO ='center' disabled|center",
    "scale by multiplier": "multiplier: FLOAT =1.0 [0.01..8] step 0.01",
    "scale longer dimension": "longer_size: INT =512 [0..16384] step 1",
    "scale shorter dimension": "shorter_size: INT =512 [0..16384] step 1",
    "scale width": "width: INT =512 [0..16384] step 1",
    "scale height": "height: INT =512 [0..16384] step 1",
    "scale total pixels": "megapixels: FLOAT =1.0 [0.01..16] step 0.01, multiple: INT =1 [1..16384] step 1",
    "match size": "match: IMAGE,MASK, crop: COMBO ='center' disabled|center",
    "scale to multiple": "multiple: INT =8 [1..16384] step 1",
}


def written(it: Input, prefix: str = "") -> str:
    """An input on one line."""
    options = it.options
    words = [f"{it.name.removeprefix(prefix)}{'?' if it.section == 'optional' else ''}: {it.type}"]
    words += [f"={options['default']!r}"] if "default" in options else []
    words += [f"[{options['min']:g}..{options['max']:g}]"] if "max" in options and it.type in ("INT", "FLOAT") else []
    words += [f"step {options['step']:g}"] if "step" in options else []
    words += ["|".join(it.choices)] if it.choices else []
    return " ".join([*words, *(name for name in ("multiline", "lazy", "forceInput") if options.get(name))])


@pytest.mark.parametrize("name", NEWER)
def test_a_newer_node_declares_what_its_docs_say(shop: Workshop, name: str) -> None:
    it = node_classes(shop)[name].describe()
    inputs, outputs = NEWER[name]
    assert ", ".join(written(each) for each in it.inputs) == inputs
    assert ", ".join(f"{each.name}: {each.type}" for each in it.outputs) == outputs
    assert it.is_output == (name == "MaskPreview")


def test_each_rule_of_resizing_has_the_inputs_that_its_docs_say(shop: Workshop) -> None:
    rule = node_classes(shop)["ResizeImageMaskNode"].describe().input("resize_type")
    assert rule is not None
    for key, inputs in RESIZE.items():
        assert ", ".join(written(each, "resize_type.") for each in rule.chosen(key)) == inputs


def test_every_node_is_one_that_the_reference_has() -> None:
    assert set(NAMES) - set(DUMP) == set(NEWER)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(NEWER)))
def test_a_node_declares_what_the_reference_declares(shop: Workshop, name: str) -> None:
    ours, theirs = node_classes(shop)[name].describe(), NodeType.parse(name, DUMP[name])
    assert [it.name for it in ours.inputs] == [it.name for it in theirs.inputs]
    for mine, reference in zip(ours.inputs, theirs.inputs, strict=True):
        if (name, mine.name) not in WIDER:
            assert shape(mine) == shape(reference)
        if mine.type == COMBO and not mine.name.endswith(("_name", "image")):
            exact = (name, mine.name) not in FEWER_CHOICES
            assert (
                list(mine.choices) == list(reference.choices) if exact else set(mine.choices) <= set(reference.choices)
            )
    assert [(it.name, it.type, it.is_list) for it in ours.outputs] == [
        (it.name, it.type, it.is_list) for it in theirs.outputs
    ]
    assert ours.is_output == theirs.is_output
    assert set(ours.hidden) == set(theirs.hidden)


def test_a_file_that_is_put_into_its_folder_is_among_the_choices_at_once(tmp_path: Path) -> None:
    shop = Workshop(Folders.below(tmp_path), models={"vae": (tmp_path / "vae",)}, device="cpu")
    classes = node_classes(shop)

    def choices(node: str, name: str) -> list[Any]:
        it = classes[node].describe().input(name)
        assert it is not None
        return list(it.choices)

    assert choices("LoadImage", "image") == choices("VAELoader", "vae_name") == []
    (tmp_path / "vae" / "sub").mkdir(parents=True)
    (tmp_path / "vae" / "sub" / "new.safetensors").write_bytes(b"")
    shop.folders.input.mkdir()
    (shop.folders.input / "new.png").write_bytes(b"")
    assert choices("LoadImage", "image") == ["new.png"]
    assert choices("VAELoader", "vae_name") == ["sub/new.safetensors"]


def run(shop: Workshop, prompt: dict[str, Any]) -> list[Event]:
    classes = node_classes(shop)
    verdict = validate(prompt, classes)
    assert verdict.error is None, (verdict.error, verdict.nodes)
    events: list[Event] = []
    extra = {"extra_pnginfo": {"workflow": {"id": "w", "text": "héllo {}"}}}
    Executor(classes).run(Job(prompt=verdict.prompt, outputs=verdict.outputs, extra=extra), events.append)
    assert not [it for it in events if isinstance(it, NodeFailed)], events
    return events


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def text_to_video(**outputs: dict[str, Any]) -> dict[str, Any]:
    sampler = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "uni_pc", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["2", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
    return {
        "1": node("UNETLoader", unet_name="cygnet_tiny_t2v.safetensors", weight_dtype="default"),
        "2": node("ModelSamplingSD3", model=["1", 0], shift=8.0),
        "3": node("CLIPLoader", clip_name="cygnet_tiny_umt5.safetensors", type="wan"),
        "4": node("CLIPTextEncode", text="a red ball spins", clip=["3", 0]),
        "5": node("CLIPTextEncode", text="", clip=["3", 0]),
        "6": node("EmptyHunyuanLatentVideo", width=64, height=32, length=5, batch_size=1),
        "7": node("KSampler", **sampler, **links),
        "8": node("VAELoader", vae_name="cygnet_tiny_vae.safetensors"),
        "9": node("VAEDecode", samples=["7", 0], vae=["8", 0]),
        **outputs,
    }


def test_a_prompt_becomes_files_that_carry_their_workflow(shop: Workshop) -> None:
    frames: dict[str, Any] = {"images": ["9", 0], "filename_prefix": "x"}
    prompt = text_to_video(
        v=node("CreateVideo", images=["9", 0], fps=16.0),
        a=node("SaveVideo", video=["v", 0], filename_prefix="video/x", format="auto", codec="auto"),
        b=node("SaveAnimatedWEBP", **frames, fps=16.0, lossless=True, quality=80, method="default"),
        c=node("SaveWEBM", **frames, codec="vp9", fps=16.0, crf=20.0),
        d=node("SaveImage", **frames),
    )
    events = run(shop, prompt)
    saved = {it.place.node: it.ui for it in events if isinstance(it, NodeFinished) and it.ui}
    assert saved["a"] == {
        "images": [{"filename": "x_00001_.mp4", "subfolder": "video", "type": "output"}],
        "animated": [True],
    }
    assert [len(ui["images"]) for ui in (saved["b"], saved["c"], saved["d"])] == [1, 1, 5]
    for path in (shop.folders.output / "video/x_00001_.mp4", *shop.folders.output.glob("x_*.web?")):
        clip = read_video(path)
        assert clip.frames.shape == (5, 32, 64, 3)
        assert clip.fps == pytest.approx(16, rel=0.02)
        told = read_metadata(path)
        assert json.loads(told["workflow"])["text"] == "héllo {}"
        assert told["workflow"].isascii()
        assert json.loads(told["prompt"])["4"]["inputs"]["text"] == "a red ball spins"
    assert [it for it in events if isinstance(it, NodePreviewed)]


@pytest.mark.parametrize(("width", "height"), [(72, 40), (100, 75)])
def test_sizes_off_the_grids_are_made_as_far_as_they_fill_cells(shop: Workshop, width: int, height: int) -> None:
    whole = (height // 8 * 8, width // 8 * 8)
    shop.folders.input.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "red").save(shop.folders.input / "p.png")
    prompt = text_to_video(
        d=node("SaveImage", images=["9", 0], filename_prefix="x"),
        e=node("VAEEncode", pixels=["f", 0], vae=["8", 0]),
        f=node("LoadImage", image="p.png"),
        g=node("VAEDecode", samples=["e", 0], vae=["8", 0]),
        h=node("SaveImage", images=["g", 0], filename_prefix="y"),
    )
    prompt["6"]["inputs"] |= {"width": width, "height": height}
    run(shop, prompt)
    assert {Image.open(it).size[::-1] for it in shop.folders.output.glob("*.png")} == {whole}
    assert len([*shop.folders.output.glob("x*.png")]) == 5


def test_the_first_and_the_last_step_are_shown_however_fast_the_others_are(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SHOW_EVERY", 1e9)
    prompt = text_to_video(d=node("SaveImage", images=["9", 0], filename_prefix="p"))
    prompt["7"]["inputs"]["steps"] = 4
    told = [it for it in run(shop, prompt) if isinstance(it, NodeProgressed | NodePreviewed) and it.place.node == "7"]
    assert [it.value if isinstance(it, NodeProgressed) else "shown" for it in told] == [1, "shown", 2, 3, 4, "shown"]


def test_files_that_are_saved_at_once_all_have_names_of_their_own(shop: Workshop) -> None:
    """As when a command and the studio work in one folder: a name may be taken while a file is being written."""
    nodes = node_classes(shop)
    pixels = torch.rand(3, 16, 16, 3)
    inputs: dict[str, dict[str, Any]] = {
        "SaveImage": {"images": pixels},
        "SaveAnimatedPNG": {"images": pixels, "fps": 8.0, "compress_level": 4},
        "SaveAnimatedWEBP": {"images": pixels, "fps": 8.0, "lossless": True, "quality": 80, "method": "fastest"},
    }

    def save(name: str) -> list[str]:
        shown = nodes[name].call(nodes[name].instance(), {**inputs[name], "filename_prefix": "same"})
        return [it["filename"] for it in shown["ui"]["images"]]

    with ThreadPoolExecutor(6) as threads:
        named = [name for found in threads.map(save, [*inputs] * 6) for name in found]
    assert len(named) == len(set(named)) == 30
    assert {it.name for it in shop.folders.output.iterdir()} == set(named)
    for name in named:
        with Image.open(shop.folders.output / name) as picture:
            picture.load()


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(shop: Workshop) -> None:
    def frames(seed: int) -> np.ndarray:
        prompt = text_to_video(d=node("SaveImage", images=["9", 0], filename_prefix=f"s{seed}"))
        prompt["7"]["inputs"]["seed"] = seed
        run(shop, prompt)
        newest = max(shop.folders.output.glob(f"s{seed}_*"))
        return np.asarray(Image.open(newest))

    assert np.array_equal(frames(3), frames(3))
    assert not np.array_equal(frames(3), frames(4))


def test_a_picture_is_loaded_and_reloaded_when_its_file_changes(shop: Workshop) -> None:
    path = shop.folders.input / "a.png"
    Image.new("RGB", (8, 4), (255, 0, 51)).save(path)
    loader = node_classes(shop)["LoadImage"]
    before = loader.fingerprint({"image": "a.png"})
    image, mask = loader.call(loader.instance(), {"image": "a.png"})
    assert image.shape == (1, 4, 8, 3)
    assert image[0, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert mask.shape == (1, 64, 64)
    Image.new("RGB", (8, 4)).save(path)
    assert loader.fingerprint({"image": "a.png"}) != before
    for bad in ("none.png", "../a.png", "/etc/passwd"):
        assert loader.check({"image": bad}, {}) is not None


def test_transparency_becomes_a_mask_and_leaves_the_colours_alone(shop: Workshop) -> None:
    pixels = np.zeros((4, 8, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 255
    pixels[1, 2, 3] = 0
    Image.fromarray(pixels).save(shop.folders.input / "holed.png")
    loader = node_classes(shop)["LoadImage"]
    image, mask = loader.call(loader.instance(), {"image": "holed.png"})
    assert mask.shape == (1, 4, 8)
    assert mask.nonzero().tolist() == [[0, 1, 2]]
    assert image[0, 1, 2].tolist() == [1, 0, 0]


def test_a_shift_of_nothing_is_refused() -> None:
    it: Any = sampling.ModelSamplingSD3()
    with pytest.raises(RequestError, match="must be above 0"):
        it.run(sampling.ModelHandle(Path("x")), 0.0)


# What the conditioning nodes attach


def test_start_frames_are_marked_as_known(shop: Workshop) -> None:
    handle = conditioning.FileHandle(EMBEDDED / "vae.safetensors")
    empty_prompt: conditioning.Conditioning = [[torch.zeros(1, 2, 192), {"kept": 1}]]
    nodes = conditioning.WanImageToVideo.bind(shop)()
    start = torch.rand(5, 32, 64, 3)
    positive, negative, latent = nodes.run(
        empty_prompt, empty_prompt, handle, 64, 32, 17, 1, start, torch.ones(1, 3, 4)
    )  # type: ignore[attr-defined]
    extras = positive[0][1]
    assert extras["kept"] == 1
    assert latent["samples"].shape == (1, 16, 5, 4, 8)
    assert extras["concat_latent_image"].shape == (1, 16, 5, 4, 8)
    assert extras["concat_mask"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1]
    assert negative[0][1]["clip_vision_output"] is extras["clip_vision_output"]
    assert "concat_mask" not in empty_prompt[0][1]
    given = sampling.given_frames(extras, 20, latent["samples"])
    assert given.shape == (1, 20, 5, 4, 8)
    assert given[0, :4, :, 0, 0].sum(dim=0).tolist() == [4, 4, 0, 0, 0]


def test_first_and_last_frames_are_marked_frame_by_frame(shop: Workshop) -> None:
    handle = conditioning.FileHandle(EMBEDDED / "vae.safetensors")
    prompt: conditioning.Conditioning = [[torch.zeros(1, 2, 192), {}]]
    it: Any = conditioning.WanFirstLastFrameToVideo.bind(shop)()
    one, seen = torch.rand(1, 40, 40, 3), torch.ones(1, 3, 4)
    positive, _, _ = it.run(prompt, prompt, handle, 64, 32, 9, 1, one, one, seen, seen)
    extras = positive[0][1]
    assert extras["clip_vision_output"].shape == (1, 6, 4)
    assert extras["concat_mask"][0, :, :, 0, 0].T.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_pictures_are_covered_and_cut() -> None:
    image = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 4, 8, 3)
    assert conditioning.resized(image, 4, 4)[0, 0, :, 0].tolist() == [2, 3, 4, 5]
    assert torch.equal(conditioning.resized(image, 8, 4), image)
    assert conditioning.resized(image.transpose(1, 2), 4, 4)[0, :, 0, 0].tolist() == [2, 3, 4, 5]


def test_raw_latents_and_the_transformers_are_two_scales() -> None:
    raw = torch.randn(1, 16, 2, 3, 3)
    assert torch.allclose(sampling.denormalised(sampling.normalised(raw)), raw, atol=1e-5)
    mean = torch.tensor(WAN_LATENTS_MEAN).view(1, 16, 1, 1, 1).expand(1, 16, 2, 3, 3)
    assert float(sampling.normalised(mean).abs().max()) < 1e-6
    assert float(latents.empty(64, 32, 5).abs().max()) == 0


def test_a_stop_is_heard_between_the_frames_that_are_encoded(shop: Workshop) -> None:
    token, told = CancelToken(), []

    def watch(event: Event) -> None:
        if isinstance(event, NodeProgressed):
            told.append((event.value, event.total))
            token.cancel()

    network = shop.vae(FileHandle(shop.path("vae", shop.names("vae")[-1])))
    with running(Context(Place(node="1", display="1", real="1"), watch, token)), pytest.raises(Cancelled):
        latents.encode(network, torch.zeros(17, 16, 16, 3))
    assert told == [(1, 5)]


def test_two_prompts_at_once_are_refused_in_words() -> None:
    pair: conditioning.Conditioning = [[torch.zeros(1, 1, 1), {}]] * 2
    with pytest.raises(RequestError, match="join the prompts"):
        sampling.only(pair, "positive")


def test_sound_goes_from_a_video_to_a_video(shop: Workshop, tmp_path: Path) -> None:
    times = np.arange(44100, dtype=np.float32) / 44100
    audio = {"waveform": torch.from_numpy(0.3 * np.sin(2 * np.pi * 500 * times))[None, None], "sample_rate": 44100}
    nodes = node_classes(shop)

    def call(name: str, **inputs: Any) -> Any:
        return nodes[name].call(nodes[name].instance(), inputs)

    (video,) = call("CreateVideo", images=torch.rand(8, 16, 16, 3), fps=8.0, audio=audio)
    saved = call("SaveVideo", video=video, filename_prefix="a", format="auto", codec="auto")
    (shop.folders.output / saved["ui"]["images"][0]["filename"]).rename(shop.folders.input / "b.mp4")
    (loaded,) = call("LoadVideo", file="b.mp4")
    _, heard, fps = call("GetVideoComponents", video=loaded)
    assert (fps, heard["sample_rate"], heard["waveform"].shape[:2]) == (8.0, 44100, (1, 1))
    assert heard["waveform"][0, 0, 10_000:20_000].abs().max() > 0.2
    with pytest.raises(RequestError, match="is not a waveform"):
        call("CreateVideo", images=torch.rand(8, 16, 16, 3), fps=8.0, audio={})


def test_a_video_has_the_methods_that_custom_nodes_call(tmp_path: Path) -> None:
    waveform = torch.zeros(1, 1, 44100)
    video = videos.VideoValue(torch.rand(10, 16, 32, 3), 30000 / 1001, {"waveform": waveform, "sample_rate": 44100})
    parts = video.get_components()
    assert (parts.images is video.images, parts.audio is video.audio) == (True, True)
    assert parts.frame_rate == video.get_frame_rate() == Fraction(30000, 1001)
    assert (video.get_dimensions(), video.get_frame_count()) == ((32, 16), 10)
    assert video.get_duration() == pytest.approx(10 * 1001 / 30000)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"another")
    video.save_to(str(path), metadata={"prompt": {"1": {}}})
    clip = read_video(path)
    assert (clip.frames.shape, clip.fps) == ((10, 16, 32, 3), pytest.approx(30000 / 1001))
    assert json.loads(read_metadata(path)["prompt"]) == {"1": {}}
    stream = video.get_stream_source()
    assert isinstance(stream, io.BytesIO)
    assert stream.read(12)[4:8] == b"ftyp"
    with pytest.raises(RequestError, match="saved as h264"):
        video.save_to(path, codec="av1")


def test_a_video_of_a_file_is_read_when_it_is_needed_and_cut(tmp_path: Path) -> None:
    waveform = torch.zeros(1, 1, 44100)
    images = torch.arange(10)[:, None, None, None].expand(10, 16, 32, 3) / 10
    videos.VideoValue(images, 10.0, {"waveform": waveform, "sample_rate": 44100}).save_to(tmp_path / "a.mp4")
    whole = videos.VideoFromFile(str(tmp_path / "a.mp4"))
    assert (whole.get_dimensions(), whole.get_frame_count(), whole.get_frame_rate()) == ((32, 16), 10, 10)
    assert (whole.get_stream_source(), whole.get_container_format()) == (
        str(tmp_path / "a.mp4"),
        "mov,mp4,m4a,3gp,3g2,mj2",
    )
    inside = videos.VideoFromFile(io.BytesIO((tmp_path / "a.mp4").read_bytes()), start_time=-0.5, duration=0.2)
    parts = inside.get_components()
    assert (len(parts.images), inside.get_duration()) == (2, 0.2)
    assert float(parts.images.mean()) == pytest.approx(0.55, abs=0.05)
    assert parts.audio is not None
    assert parts.audio["waveform"].shape[-1] == 8820
    assert inside.get_container_format() == "mov,mp4,m4a,3gp,3g2,mj2"
    assert whole.as_trimmed(0.5, 0.8) is None
    rest = whole.as_trimmed(0.5, 0.8, strict_duration=False)
    assert rest is not None
    assert rest.get_frame_count() == 5
    assert whole.as_trimmed(2.0) is None
    with pytest.raises(MediaError, match="no part"):
        videos.VideoFromFile(str(tmp_path / "a.mp4"), start_time=3).get_components()
    missing = videos.VideoFromFile(str(tmp_path / "none.mp4"))
    with pytest.raises(MediaError):
        missing.get_dimensions()


class Told:
    """What a running node says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: Any) -> None:
        self.lines.append(event.text)


@pytest.mark.parametrize(
    ("extra", "kept", "told"),
    [
        ({"workflow": {"a": [1]}, 7: "number", "Über-Name": 1}, {"workflow", "x7", "x_ber_name"}, ""),
        ({"workflow": {"a": object()}, "other": 1}, {"other"}, "'workflow' (Object of type object"),
        ({"workflow": {("a", "b"): 1}}, set(), "'workflow' (keys must be str"),
        ({"workflow": 1, "long": "x" * (17 * 2**20)}, {"workflow"}, "'long' (metadata 'long' holds a NUL or more than"),
        ({"prompt": 1, "cygnet_receipt": 2, "duration": 3, "": 4}, {"x"}, "'prompt' (its name is taken)"),
        ("text", set(), "extra_pnginfo, which is a str and no mapping"),
        (["workflow"], set(), "extra_pnginfo, which is a list and no mapping"),
    ],
)
def test_what_a_file_cannot_hold_costs_no_result(
    shop: Workshop, tmp_path: Path, extra: Any, kept: set[str], told: str
) -> None:
    nodes = node_classes(shop)
    said = Told()
    for name, more in (("SaveImage", {}), ("SaveWEBM", {"codec": "vp9", "fps": 8.0, "crf": 40.0})):
        with running(Context(Place(node="1", display="1", real="1"), said, CancelToken())):
            saved = nodes[name].call(
                nodes[name].instance(),
                {
                    "images": torch.rand(1, 16, 16, 3), "filename_prefix": "a", "prompt": {"1": {}},
                    "extra_pnginfo": extra, **more,
                },
            )  # fmt: skip
        inside = read_metadata(shop.folders.output / saved["ui"]["images"][0]["filename"])
        assert set(inside) - {"prompt", "cygnet_receipt", "encoder", "creation_time"} == kept
        assert json.loads(inside["prompt"]) == {"1": {}}
    assert all(told in it for it in said.lines)
    assert bool(said.lines) == bool(told)


def test_a_custom_nodes_own_video_is_saved_and_taken_apart(shop: Workshop) -> None:
    nodes = node_classes(shop)

    class Theirs:
        def get_components(self) -> SimpleNamespace:
            return SimpleNamespace(images=torch.rand(3, 16, 16, 3), audio=None, frame_rate=Fraction(12))

    def call(name: str, **inputs: Any) -> Any:
        return nodes[name].call(nodes[name].instance(), inputs)

    saved = call("SaveVideo", video=Theirs(), filename_prefix="a", format="auto", codec="auto")
    assert read_video(shop.folders.output / saved["ui"]["images"][0]["filename"]).fps == 12
    assert call("GetVideoComponents", video=Theirs())[1:] == (None, 12.0)
    with pytest.raises(RequestError, match="which is no VIDEO"):
        call("GetVideoComponents", video=torch.rand(3, 16, 16, 3))
