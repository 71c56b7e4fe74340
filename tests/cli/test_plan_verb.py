from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cli_process import Command


def test_a_plan_is_a_table_and_nothing_is_made(cygnet: Command, small: list[str], place: Path) -> None:
    done = cygnet("plan", "a red ball", *small, "--seed", "3", "--out", "x.mp4", "--overwrite")
    assert (done.code, done.err) == (0, "")
    for word in (
        "placement: each network is in memory for its stage alone",
        "because: ",
        "denoise",
        "peak: ",
        "time: ",
    ):
        assert word in done.out
    assert "a guess: this machine was not measured; run cygnet plan --calibrate once" in done.out
    assert list(place.iterdir()) == []


def test_the_same_for_machines(cygnet: Command, small: list[str]) -> None:
    done = cygnet("plan", *small, "--json", "--count", "3", "--stream")
    value = done.json()
    assert (done.code, value["fits"], value["count"], value["calibrated"]) == (0, True, 3, False)
    assert value["placement"]["streamed"] == ["dit", "text_encoder"]
    assert value["bytes"]["host_peak"] > value["bytes"]["weights_read"]
    assert value["request"]["num_frames"] == 5
    assert {stage["phase"] for stage in value["stages"]} == {"load", "text", "denoise", "decode", "write"}


def test_what_does_not_fit_is_an_error_that_names_what_does(cygnet: Command) -> None:
    words = ["plan", "--model", "t2v-1.3b", "--size", "720p", "--device-memory", "3712MiB", "--host-memory", "32GiB"]
    done = cygnet(*words)
    assert done.code == 1
    assert "error: this does not fit: 81 frames of 1280x720 need " in done.err
    assert done.err.rstrip().endswith(" fit")
    assert "placement: " in done.out
    value = cygnet(*words, "--json").json()
    assert value["error"]["code"] == "out_of_memory"
    assert value["plan"]["nearest"]["num_frames"] < 81


def test_seconds_become_frames_and_both_are_refused(cygnet: Command, small: list[str]) -> None:
    without = [word for word in small if word not in ("--frames", "5")]
    assert cygnet("plan", *without, "--seconds", "1", "--json").json()["request"]["num_frames"] == 17
    done = cygnet("plan", *small, "--seconds", "1")
    assert (done.code, "frames and seconds are both given" in done.err) == (2, True)


def test_a_measurement_is_made_once_and_then_used(
    cygnet: Command, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cygnet import planning
    from cygnet.runtime.calibration import guessed, keep

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def measured(device: str) -> object:
        rates = replace(guessed(planning.Machine.of("cpu").device), date="2026-01-02T03:04:05+00:00")
        return rates, keep(rates, planning.machine.calibration_folder())

    monkeypatch.setattr(planning, "calibrate_machine", measured)
    done = cygnet("plan", *small, "--calibrate")
    assert "note: measuring this machine" in done.err
    assert "(measured 2026-01-02T03:04:05+00:00)" in cygnet("plan", *small).out


def test_the_compiler_of_torch_is_not_loaded_for_a_plan() -> None:
    """It takes longer than all the rest."""
    code = (
        "import sys, cygnet; plan = cygnet.plan('i2v-14b-480p', device_memory='24GiB', host_memory='64GiB', "
        "size='480p', num_frames=17); print(plan.fits, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr


def test_what_generate_refuses_of_this_device_a_plan_refuses_too(cygnet: Command, small: list[str]) -> None:
    for verb in ("plan", "generate"):
        done = cygnet(verb, "a red ball", *small, "--device", "cpu", "--fp8")
        assert (done.code, "fp8 products need a CUDA device" in done.err) == (2, True)


def test_the_lora_of_a_recipe_is_planned_with_or_said_to_be_absent(
    cygnet: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import cygnet as package

    words = ["plan", "--model", "t2v-14b", "--recipe", "lightx2v", "--size", "480p", "--frames", "5"]
    words += ["--device-memory", "80GiB", "--host-memory", "64GiB"]
    monkeypatch.setenv("CYGNET_MODEL_PATHS", str(tmp_path))
    done = cygnet(*words)
    assert done.code == 0, done.err
    assert "note: planned without the LoRA of the recipe: the LoRA for t2v-14b by recipe lightx2v is not" in done.err
    file = tmp_path / "loras" / "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors"
    file.parent.mkdir()
    save_file({"diffusion_model.blocks.0.ffn.0.diff_b": torch.zeros(8)}, file)
    asked: list[object] = []
    real = package.plan

    def planned(*args: object, **named: object) -> object:
        asked.append(named["loras"])
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(package, "plan", planned)
    done = cygnet(*words)
    assert (done.code, "without the LoRA" in done.err) == (0, False), done.err
    assert asked == [[(file, 1.0)]]


def test_a_published_model_is_planned_for_where_its_folders_do_not_hold_it(cygnet: Command, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    words = ["plan", "--model", "t2v-1.3b", "--size", "256x256", "--frames", "5", "--json"]
    words += ["--device-memory", "24GiB", "--host-memory", "64GiB"]
    plain = cygnet(*words).json()
    done = cygnet(*words, "--model-paths", folder)
    assert (done.code, done.json()["bytes"], done.json()["weights_present"]) == (0, plain["bytes"], False)
    assert "a UMT5 text encoder missing); planned from its published sizes" in done.err
    refused = cygnet(*words, "--vae", folder / "own.safetensors")
    assert refused.code == 2
    assert "leave out --vae, or run: cygnet pull t2v-1.3b" in refused.json()["error"]["message"]
    assert "does not exist" in cygnet(*words, "--model-paths", tmp_path / "absent").json()["error"]["message"]


def test_a_part_that_is_missing_may_be_given(tmp_path: Path) -> None:
    """Of a published model, all of whose other parts are here, for plans and for videos."""
    from cygnet.cli.output import Voice
    from cygnet.cli.wish import model_source, planned_source

    here = {"diffusion_models": "wan2.1_t2v_1.3B_bf16", "text_encoders": "umt5_xxl_fp8_e4m3fn_scaled"}
    for kind, name in here.items():
        (tmp_path / kind).mkdir()
        save_file({"x": torch.zeros(1)}, tmp_path / kind / f"{name}.safetensors")
    own = tmp_path / "own.safetensors"
    parts, places = {"vae": own, "dit": None}, [tmp_path]
    for found in (
        model_source("t2v-1.3b", parts, places, with_image=False),
        planned_source("t2v-1.3b", parts, places, Voice(), with_image=False),
    ):
        assert isinstance(found, dict)
        assert (sorted(found), found["vae"]) == (["dit", "text_encoder", "vae"], own)


def test_a_plan_takes_every_option_of_generate() -> None:
    from cygnet.cli.generate import generate
    from cygnet.cli.plan import plan

    assert set(inspect.signature(generate).parameters) <= set(inspect.signature(plan).parameters)


def test_a_plan_is_made_although_its_calibration_cannot_be_kept(
    cygnet: Command, small: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "no-folder").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "no-folder"))
    done = cygnet("plan", *small, "--calibrate")
    assert done.code == 0, done.err
    assert "peak: " in done.out
    assert done.err.count("the calibration cannot be kept at") == 1
    assert "no-folder/cygnet/calibration (not a directory)" in done.err
