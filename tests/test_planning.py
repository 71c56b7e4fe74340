"""Plans: of weights that are here and that are not, for this machine and for another, and of what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cygnet
from cygnet import planning
from cygnet.assembly import load_dit, placing, read_model
from cygnet.assembly.placing import Networks
from cygnet.checkpoints import without_weights
from cygnet.checkpoints.catalogue import ENTRIES
from cygnet.errors import OutOfMemory, RequestError
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.sizes import latent_frames_at_once
from cygnet.pipelines.tiles import decode_chunks, encode_chunks
from cygnet.planning import Machine, decide, parse_memory, refuse_what_cannot_fit, stages, subject_of, tiling
from cygnet.planning import assumptions as assuming
from cygnet.planning.machine import HOST_BASE_CUDA
from cygnet.planning.nearest import nearest
from cygnet.planning.plan import on_machine
from cygnet.planning.subject import PUBLISHED
from cygnet.runtime import execution as executing
from cygnet.runtime.calibration import guessed
from cygnet.runtime.plan import Placement
from cygnet.runtime.residency import Placed, Resident
from cygnet.runtime.trace import Ledger
from cygnet.types import ComponentName, Tiles
from random_models import write_model

GIB = 2**30


@pytest.fixture
def _unsearched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that do not fit name no nearest request: looking for one takes far longer than all else in them."""
    monkeypatch.setitem(on_machine.__globals__, "nearest", lambda *_: None)


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES if entry.embedded is None])
def test_every_published_model_is_planned_for_without_its_weights(name: str) -> None:
    assert name in PUBLISHED
    plan = cygnet.plan(name, device_memory="24GiB", host_memory="64GiB", size="480p", num_frames=81)
    assert not plan.present
    assert plan.fits
    assert plan.seconds is None  # of a device that is not here
    assert plan.device_peak < 24 * GIB
    assert plan.files > 10e9
    phases = [stage.phase for stage in plan.stages]
    assert phases == ["load", "text", *(["image"] if name[0] != "t" else []), "denoise", "decode", "write"]
    assert ("dit" in plan.placement.streamed) == ("14b" in name)
    assert json.loads(json.dumps(plan.to_json()))["placement"]["why"] == plan.why


def test_what_does_not_fit_is_refused_with_the_nearest_request_that_does() -> None:
    plan = cygnet.plan("t2v-1.3b", device_memory="3712MiB", host_memory="32GiB", size="720p", num_frames=81)
    assert not plan.fits
    assert plan.nearest is not None
    small = plan.nearest
    assert (small.num_frames, small.width, small.height) != (81, 1280, 720)
    assert f"{small.num_frames} frames of {small.width}x{small.height} fit" in plan.refusal()
    again = cygnet.plan(
        "t2v-1.3b", device_memory="3712MiB", host_memory="32GiB", size=(small.width, small.height),
        num_frames=small.num_frames,
    )  # fmt: skip
    assert again.fits
    assert again.device_peak <= 3712 * 2**20
    none = cygnet.plan("t2v-14b", device_memory="300MiB", host_memory="32GiB", num_frames=5, size="480p")
    assert none.nearest is None
    assert "no request of this model fits" in none.refusal()


@pytest.mark.usefixtures("_unsearched")
def test_stated_memory_holds_the_process_too() -> None:
    """What a plan calls fitting has a peak below what was stated; the refusal names the memory that is short."""
    small = cygnet.plan("tiny-t2v", device="cpu", host_memory="100MiB")
    assert not small.fits
    assert "of memory even with" in small.refusal()
    short = cygnet.plan("t2v-1.3b", device_memory="24GiB", host_memory="1GiB", size="480p", num_frames=17)
    assert not short.fits
    assert "of the host's memory, through which the weights pass to the device, and 1.0 GiB are free" in short.refusal()
    seen = set()
    for size in range(320, 640, 20):
        plan = cygnet.plan("tiny-t2v", device="cpu", host_memory=f"{size}MiB")
        seen.add(plan.fits)
        assert not plan.fits or plan.host_peak <= size * 2**20
    assert seen == {True, False}


def test_less_memory_is_met_by_smaller_placements() -> None:
    """80 GiB hold everything of the text encoder and the transformer, 24 only one of them, 8 neither."""
    seen = [
        cygnet.plan("t2v-14b", device_memory=f"{size}GiB", host_memory="64GiB", size="480p", num_frames=17).placement
        for size in (80, 24, 8)
    ]
    assert [sorted(it.streamed) for it in seen] == [[], ["dit"], ["dit", "text_encoder"]]
    stream = cygnet.plan("t2v-1.3b", offload="stream", device_memory="80GiB", size="480p", num_frames=17)
    assert sorted(stream.placement.streamed) == ["dit", "text_encoder"]
    assert "because that was asked for" in stream.why


def test_a_run_decides_as_its_plan_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wan = cygnet.load(write_model(tmp_path), device="cpu", dtype="float32", offload=True)
    small: dict[str, Any] = {"prompt": "a red ball", "size": (64, 64), "num_frames": 9, "num_steps": 1, "seed": 1}
    plan = wan.plan(**small)
    assert plan.fits
    need = max(stage.host_peak for stage in plan.stages) - min(stage.host_peak for stage in plan.stages)
    real = Machine.of
    monkeypatch.setattr(Machine, "of", lambda *args, **named: replace(real("cpu"), device_free=free, host_free=free))
    free = need * 2
    wan.stream(**small)
    assert wan.model.residency.placement == wan.plan(**small).placement
    free = 1000
    with pytest.raises(OutOfMemory, match="not begun, for want of memory: 9 frames of 64x64 need"):
        wan.stream(**small)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("stored", ["8 bits", "wide"])
def test_weights_are_planned_as_a_run_takes_them(
    stored: str, fp8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored in 8 bits or not, with a LoRA that runs beside those that are, with fp8 products and without."""
    monkeypatch.setattr(executing, "check_fp8", lambda _: None)
    paths = write_model(tmp_path)
    state = load_file(paths["dit"])
    if stored == "8 bits":
        for name, value in state.items():
            if name.startswith("blocks.") and value.ndim == 2:
                state[name] = value.to(torch.float8_e4m3fn)
        save_file(state, paths["dit"])
    lora = tmp_path / "lora.safetensors"
    pair = {"lora_A": torch.ones(4, 128), "lora_B": torch.ones(128, 4)}
    save_file({f"diffusion_model.blocks.0.self_attn.q.{name}.weight": it for name, it in pair.items()}, lora)
    device, loras, execution = torch.device("cuda", 0), [(lora, 1.0)], cygnet.Execution(fp8=fp8)
    read = read_model(paths, loras)
    dtypes: dict[ComponentName, torch.dtype] = dict.fromkeys(read.weights, torch.bfloat16) | {"vae": torch.float32}
    networks = Networks(
        weights=read.weights, dtypes=dtypes, decode_dtype=torch.bfloat16, device=device, execution=execution
    )
    for host, plenty in ((64 * GIB, True), (1000, False)):
        monkeypatch.setattr(placing, "free_memory", lambda _, host=host: host)
        vars(networks).pop("taken", None)
        machine = Machine.of("cuda", device_memory="24GiB", host_memory=host + HOST_BASE_CUDA)
        subject = on_machine(subject_of(paths, device, "bfloat16", loras, execution), machine)
        assert subject.weights == networks.taken
        assert (subject.weights["dit"].streamed is None) == (fp8 and not plenty)
    taken = subject.weights["dit"]
    beside = 0 if stored == "wide" and not fp8 else 2 * (4 * 128 * 2)
    assert taken.whole == sum(it.nbytes for it in load_dit(paths["dit"], torch.bfloat16).parameters()) + beside
    kept = load_dit(paths["dit"], torch.bfloat16, loras=loras, eight_bit=True)
    held = sum(it.nbytes for it in (*kept.parameters(), *kept.buffers()))
    assert taken.eight_bit == (taken.whole if fp8 else held)
    if fp8 and stored == "8 bits":
        with pytest.raises(RequestError, match="fp8 products need the transformer's weights in memory"):
            cygnet.plan(
                paths, device_memory="24GiB", host_memory=1000, offload="stream", loras=loras, execution=execution
            )


def test_a_plan_says_of_which_dtype_it_has_no_measurement() -> None:
    here = replace(guessed(torch.device("cpu")), date="2026-11-26T00:00:00+00:00")
    known = {name: rates for name, rates in here.compute.items() if not name.endswith(" float16")}
    machine = replace(Machine.of("cpu"), rates=replace(here, compute=known))
    for dtype, count in (("float16", 1), ("float32", 0)):
        subject = subject_of("tiny-t2v", torch.device("cpu"), dtype)
        request = cygnet.plan("tiny-t2v", device="cpu", num_frames=5).request
        said = planning.plan(subject, request, machine).assumes
        assert len([words for words in said if words.startswith("float16 was not measured")]) == count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["blocks will run compiled"]),
        ({"execution": cygnet.Execution(compile=False)}, []),
        ({"num_frames": 5}, []),  # too short for "auto" to compile
        (
            {"num_frames": 5, "execution": cygnet.Execution(compile=True)},
            ["blocks will run compiled", "the VAE's norms and sums will run compiled"],
        ),
        ({"num_frames": 5, "execution": cygnet.Execution(fp8=True)}, ["products in fp8"]),
        ({"num_frames": 5, "cache": "easy"}, ["steps that the cache"]),
        ({"num_frames": 5, "cache": "calibrate"}, []),
        ({"device": "cpu", "device_memory": None, "offload": "stream"}, ["blocks will run compiled"]),
        ({"device": "cpu", "device_memory": None, "host_memory": "64GiB"}, ["blocks will run compiled"]),
    ],
)
def test_a_plan_says_what_it_takes_for_plain(
    options: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assuming, "missing_for_compiling", lambda _: None)
    usual: dict[str, Any] = {"device_memory": "80GiB", "host_memory": "8GiB", "size": "480p", "num_frames": 81}
    plan = cygnet.plan("t2v-1.3b", dtype="bfloat16", **{**usual, "num_steps": 1, **options})
    assert len(plan.assumes) == len(words)
    assert all(said.startswith(word) for said, word in zip(plan.assumes, words, strict=True))
    assert plan.to_json()["assumes"] == list(plan.assumes)
    monkeypatch.setattr(assuming, "missing_for_compiling", lambda _: "no compiler")
    if options.get("device") == "cpu":
        assert cygnet.plan("t2v-1.3b", dtype="bfloat16", **{**usual, "num_steps": 1, **options}).assumes == ()


def test_only_what_is_in_memory_counts_as_held(tmp_path: Path) -> None:
    wan = cygnet.load(write_model(tmp_path), device="cpu", dtype="float32", offload=False)
    taken = {part: replace(each, eight_bit=each.whole // 2) for part, each in wan.model.taken.items()}
    held = Placed(Placement(resident=True, eight_bit=frozenset({"dit"})), taken, lambda _: Resident({}))
    assert held.held == {}  # nothing is loaded yet
    held.prepare()
    assert held.held == {part: each.eight_bit if part == "dit" else each.whole for part, each in taken.items()}
    held.clear()
    assert held.held == {}
    real = Machine.of("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "of", lambda *_, **__: real)
        assert wan._machine().device_free == real.device_free + sum(
            wan.model.taken[part].whole for part in wan._subject.converted
        )
        wan.model.residency.clear()
        assert wan._machine().device_free == real.device_free


def test_how_many_latent_frames_are_decoded_at_a_time_does_not_depend_on_memory_while_they_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other numbers of them can round otherwise: one at a time only where they do not fit at all, and that is told."""
    wan = cygnet.load(write_model(tmp_path), device="cpu", dtype="float32", offload=True)
    small: dict[str, Any] = {"prompt": "a red ball", "size": (64, 64), "num_frames": 41, "num_steps": 1, "seed": 1}
    work = stages.decode(wan._subject.vae, torch.float32, (11, 8, 8), latent_frames_at_once(8, 8)).cost.peak
    real = Machine.of("cpu")

    def leave(size: float) -> None:
        monkeypatch.setattr(Machine, "of", lambda *_, **__: replace(real, device_free=int(size), host_free=int(size)))

    for size in (8 * GIB, wan.model.taken["vae"].whole + 1.2 * work):
        leave(size)
        stream = wan.stream(**small)
        assert [len(chunk) for chunk in stream] == [1, 32, 8]
        assert "tiles" not in stream.receipt
    leave(0.8 * work)
    plan = wan.plan(**small)
    assert (plan.fits, plan.decode_chunk) == (True, 1)
    assert "latent frames are decoded one at a time because 8 at a time do not fit" in plan.why
    stream = wan.stream(**small)
    assert [len(chunk) for chunk in stream] == [1, *[4] * 10]
    assert stream.receipt["tiles"] == {"decode": "64x64"}
    assert any("latent frames are decoded one at a time; pixels" in told for told in stream.receipt["notices"])
    leave(0.1 * work)
    with pytest.raises(OutOfMemory, match="not begun, for want of memory"):
        wan.stream(**small)


def test_bounds_are_never_below_what_is_traced() -> None:
    """Else a request that does not fit would be begun."""
    from cygnet.planning.needs import bounds_of

    for name, frames, size in (
        ("tiny-t2v", 33, (192, 128)),
        ("i2v-14b-480p", 81, (832, 480)),
        ("tiny-i2v", 5, (64, 64)),
    ):
        subject = subject_of(name, torch.device("cpu"), "float32")
        request = cygnet.plan(name, device="cpu", dtype="float32", num_frames=frames, size=size).request
        exact = decide(subject, request, replace(Machine.of("cpu"), device_free=10**14), exact=True)
        assert exact.needs is not None
        bounds = bounds_of(subject, request)
        assert all(
            size <= bounds[part] for part, size in exact.needs.work().items() if part != "dit" or not exact.needs.held
        )


def test_the_nearest_request_of_one_that_fits_is_itself() -> None:
    subject = subject_of("tiny-t2v", torch.device("cpu"))
    request = cygnet.plan("tiny-t2v", device="cpu").request
    machine = replace(Machine.of("cpu"), device_free=8 * GIB)
    assert nearest(subject, request, machine) == request
    assert refuse_what_cannot_fit(subject, request, machine, True).fits


def test_sizes_of_memory_are_read_with_their_unit() -> None:
    assert parse_memory("24GiB", "x") == parse_memory("24 G", "x") == 24 * GIB
    assert parse_memory("1.5GB", "x") == 1_500_000_000
    assert parse_memory(7, "x") == 7
    for wrong in ("24 apples", "-1GiB", "0", 0, True, 1.5, "", "GiB"):
        with pytest.raises(RequestError, match=r"x is .*; give a size such as 24GiB"):
            parse_memory(wrong, "x")
    with pytest.raises(RequestError, match="give host_memory"):
        cygnet.plan("tiny-t2v", device="cpu", device_memory="1GiB")


def test_an_image_model_is_planned_for_with_and_without_its_picture() -> None:
    without = cygnet.plan("tiny-i2v", device="cpu")
    picture = cygnet.plan("tiny-i2v", image=torch.zeros(3, 64, 96), device="cpu")
    assert [stage.phase for stage in without.stages] == [stage.phase for stage in picture.stages]
    assert "image" in [stage.phase for stage in without.stages]


@pytest.mark.parametrize("half", ["decode", "encode"])
def test_the_account_of_tiles_is_that_of_their_code(half: Any) -> None:
    """Parts are traced on few cells and added up; here all of it is traced on the very frame."""
    config, grid, tiles = VAEConfig(base_width=8), (3, 40, 60), Tiles(width=168, height=160)
    with without_weights():
        vae = WanVAE(config).channels_last()
    latents = torch.empty(1, 16, *grid, device="meta")
    with torch.no_grad(), Ledger() as ledger:
        if half == "decode":
            for frames in decode_chunks(vae, latents, tiles=tiles):
                frames.aminmax()
        else:
            pieces = (torch.empty(1, 3, count, 320, 480, device="meta") for count in (1, 4, 4))
            for _ in encode_chunks(vae, pieces, tiles=tiles):
                pass
    planned = tiling.demand(config, torch.float32, grid, tiles, half)
    assert planned.cost.peak == pytest.approx(ledger.peak, rel=0.1)
    assert planned.cost.moved == pytest.approx(ledger.moved, rel=0.1)
    whole = stages.decode if half == "decode" else stages.encode
    alone = whole(config, torch.float32, grid, **({"chunk": 1} if half == "decode" else {"grey": False}))  # type: ignore[operator]
    assert planned.cost.peak < alone.cost.peak
    parked = tiling.demand(config, torch.float32, grid, tiles, half, parked=True)
    assert planned.cost.peak - parked.cost.peak == pytest.approx(parked.parked, rel=0.25)


def test_the_tiles_of_least_work_that_fit_are_chosen() -> None:
    config, kind = VAEConfig(base_width=8), torch.float32
    grid = (9, 60, 104)

    def peak(tiles: Tiles, parked: bool) -> int:
        return tiling.demand(config, kind, grid, tiles, "decode", parked=parked).cost.peak

    whole = peak(Tiles(width=832, height=480), False)
    chosen = []
    for share in (1.0, 0.9, 0.6, 0.4, 0.3):
        tiles, parked = tiling.largest(config, kind, *grid[1:], "decode", share * whole, parks=True)
        assert peak(tiles, parked) <= share * whole
        chosen.append((tiles.count(832, 480), parked))
    assert chosen == sorted(chosen, key=lambda it: (it[1], it[0]))
    assert chosen[0] == (1, False)
    assert chosen[1][0] > 1
    assert chosen[-1][1]
    assert not tiling.largest(config, kind, *grid[1:], "decode", 0, parks=False)[1]


@pytest.mark.usefixtures("_unsearched")
def test_a_device_of_its_own_lets_tiles_wait_on_the_host() -> None:
    plans = [
        cygnet.plan("t2v-1.3b", device_memory=f"{size}GiB", host_memory="64GiB", size=(1280, 720), num_frames=17)
        for size in (16, 8, 4)
    ]
    assert [plan.portions.decode_tiles is None for plan in plans] == [True, False, False]
    assert [plan.portions.parked for plan in plans] == [False, False, True]
    assert all(plan.fits for plan in plans)
    decoding = [next(stage for stage in plan.stages if stage.phase == "decode") for plan in plans]
    assert decoding[0].device_peak > decoding[1].device_peak > decoding[2].device_peak
    assert decoding[0].flops < decoding[1].flops
    assert decoding[2].host_peak > decoding[1].host_peak + GIB
    assert "waits in the host's memory" in plans[2].why
    short = cygnet.plan("t2v-1.3b", device_memory="4GiB", host_memory="5GiB", size=(1280, 720), num_frames=17)
    assert not short.fits, "neither does what waits there"


def test_a_text_model_encodes_nothing_in_tiles_however_little_is_free() -> None:
    short = cygnet.plan("t2v-1.3b", device_memory="700MiB", host_memory="64GiB", size=(416, 240), num_frames=9)
    assert short.portions.encode_tiles is None
    assert short.portions.decode_tiles is not None
    assert "because one whole does not fit" in short.why


@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_weights_that_will_be_rounded_are_planned_for_in_eight_bits(name: Any) -> None:
    options: dict[str, Any] = {"device_memory": "24GiB", "host_memory": "64GiB", "size": "480p", "num_frames": 81}
    plain = cygnet.plan("t2v-14b", **options)
    rounded = cygnet.plan("t2v-14b", **options, execution=cygnet.Execution(weight_dtype=name))
    assert ("dit" in plain.placement.streamed, "dit" in rounded.placement.streamed) == (True, False)
    assert f"rounded to {name}" in rounded.held()
    assert "rounded" not in plain.held()
    assert rounded.to_json()["placement"]["weight_dtype"] == name
    weights = [subject_of("t2v-14b", torch.device("cuda"), execution=it).weights["dit"] for it in (
        cygnet.Execution(), cygnet.Execution(weight_dtype=name))]  # fmt: skip
    matrices = 38 * (8 * 5120**2 + 2 * 5120 * 13824)
    scales = 38 * 4 * (8 * 5120 + 13824 + 5120)
    assert weights[0].whole - weights[1].whole == matrices - scales
    assert weights[1].widening == 6 * 5120 * 13824


def test_a_plan_is_the_same_within_inference_mode() -> None:
    outside = cygnet.plan("tiny-t2v", "a red ball")
    with torch.inference_mode():
        within = cygnet.plan("tiny-t2v", "a red ball")
    assert [stage.host_peak for stage in within.stages] == [stage.host_peak for stage in outside.stages]
