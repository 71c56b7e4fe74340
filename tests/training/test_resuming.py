"""What a run that is begun again goes on with, and what it refuses to go on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from teaching import Configure

from cygnet.errors import RequestError
from cygnet.training.config import ModelFiles, TrainConfig
from cygnet.training.start import Outcome, train
from cygnet.training.state import Run
from cygnet.training.taught import Begun
from cygnet.types import CancelToken


def quiet(config: TrainConfig, **options: Any) -> Outcome:
    return train(config, say=lambda text: None, **options)


def begin(config: TrainConfig) -> None:
    """Take one step."""
    cancel = CancelToken()
    quiet(config, cancel=cancel, on_step=lambda report: cancel.cancel())


def changed_copy(source: Path, target: Path) -> Path:
    """The same weights, all a little larger."""
    save_file({name: value * 1.01 for name, value in load_file(source).items()}, target)
    return target


@pytest.mark.parametrize(("method", "part"), [("lora", "dit"), ("vae", "vae")])
def test_a_run_does_not_go_on_over_another_model(
    configure: Configure, clips: Path, tmp_path: Path, method: str, part: str
) -> None:
    (clips / "still.png").unlink()
    changes: dict[str, Any] = {"vae": {"crop": 16, "frames": 5}} if method == "vae" else {}
    config = configure(method=method, steps=2, **changes)
    assert isinstance(config.model, ModelFiles)
    begin(config)
    other = changed_copy(Path(getattr(config.model, part)), tmp_path / "other.safetensors")
    model = config.model.model_copy(update={part: str(other)})
    with pytest.raises(RequestError, match="not the one that this run was begun with") as raised:
        quiet(config.model_copy(update={"model": model}))
    assert raised.value.field == "model"
    assert quiet(config).finished


def test_a_run_goes_on_where_its_clips_and_its_model_have_moved(
    configure: Configure, clips: Path, tmp_path: Path
) -> None:
    kept = Path(shutil.copytree(clips, tmp_path / "kept"))
    config = configure(method="full", steps=2, preserve={"path": "kept"})
    assert isinstance(config.model, ModelFiles)
    begin(config)
    assert configure(method="full").identity() != config.identity()
    moved = [place.rename(tmp_path / f"moved {place.name}") for place in (clips, kept)]
    dit = shutil.copy(config.model.dit, tmp_path / "moved.safetensors")
    told: list[str] = []
    outcome = train(
        config.model_copy(
            update={
                "data": config.data.model_copy(update={"path": str(moved[0])}),
                "preserve": config.preserve.model_copy(update={"path": str(moved[1])}),
                "model": config.model.model_copy(update={"dit": str(dit)}),
            }
        ),
        say=told.append,
    )
    assert outcome.finished
    assert "going on at step 1" in told


def test_clips_that_should_stay_are_part_of_a_run(configure: Configure, clips: Path, tmp_path: Path) -> None:
    kept = Path(shutil.copytree(clips, tmp_path / "kept"))
    config = configure(steps=2, preserve={"path": "kept"})
    begin(config)
    (kept / "still.png").unlink()
    with pytest.raises(RequestError, match=r"data set of preserve\.path is not") as raised:
        quiet(config)
    assert raised.value.field == "preserve.path"


def test_a_checkpoint_that_names_no_model_is_taken_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path / "old", step=3).save({})
    assert Run(tmp_path / "old").resume({"model": Begun("ab" * 32)})
    assert "does not say of which model" in caplog.text


def test_a_kill_before_the_first_checkpoint_leaves_no_lines_of_the_log(configure: Configure) -> None:
    class Killed(BaseException):
        pass

    def kill(report: Any) -> None:
        if report.step == 3:
            raise Killed

    config = configure(every={"save": 100, "log": 1})
    with pytest.raises(Killed):
        quiet(config, on_step=kill)
    log = Path(config.output) / "log.jsonl"
    assert len(log.read_text().splitlines()) == 2
    with log.open("a") as file:
        file.write('{"step": 3, "lo')
    assert quiet(config).finished
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


def test_lines_of_the_log_that_are_no_rows_go(tmp_path: Path) -> None:
    run = Run(tmp_path, step=2, quiet=True)
    run.save({})
    run.log(loss=1.0)
    with run.log_path.open("ab") as file:
        file.write(b'7\n[]\nnull\n{"loss": 3}\n{"step": "2"}\n\xff\n{"step": 2, "lo')
    again = Run(tmp_path, quiet=True)
    assert again.resume({})
    (row,) = again.rows()
    assert row["loss"] == 1.0
    assert len(again.log_path.read_text().splitlines()) == 1
