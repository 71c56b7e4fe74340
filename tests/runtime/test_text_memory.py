from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import cygnet
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.pipelines.conditioning import encode_text
from cygnet.pipelines.presets import defaults_for
from cygnet.runtime.text_memory import DiskTextMemory
from random_models import dit_config, write_model
from support import filled_weights, parameter_shapes

NEGATIVE = defaults_for(dit_config("t2v")).negative_prompt


def test_features_come_back_as_they_were(tmp_path: Path) -> None:
    features = torch.randn(1, 4, 8).bfloat16()
    DiskTextMemory(tmp_path / "new", {"bad"}, lambda: "this encoder").keep("bad", features)
    again = DiskTextMemory(tmp_path / "new", {"bad"}, lambda: "this encoder").recall("bad")
    assert again is not None
    assert again.dtype == torch.bfloat16
    assert torch.equal(again, features)
    assert DiskTextMemory(tmp_path / "new", {"bad"}, lambda: "another").recall("bad") is None


def test_what_a_user_wrote_is_never_kept(tmp_path: Path) -> None:
    memory = DiskTextMemory(tmp_path, {"bad"}, lambda: "this encoder")
    memory.keep("a private text", torch.zeros(1, 4, 8))
    assert memory.recall("a private text") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"not a file of tensors", None])
def test_a_damaged_file_counts_as_none_and_is_replaced(
    damage: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = DiskTextMemory(tmp_path, {"bad"}, lambda: "this encoder")
    memory.keep("bad", torch.full((1, 4, 8), torch.nan) if damage is None else torch.zeros(1, 4, 8))
    (file,) = tmp_path.iterdir()
    if damage is not None:
        file.write_bytes(damage)
    assert memory.recall("bad") is None
    assert damage is None or "cannot be read" in caplog.text
    memory.keep("bad", torch.ones(1, 4, 8))
    assert memory.recall("bad") is not None


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("in the way")
    memory = DiskTextMemory(tmp_path / "file", {"bad"}, lambda: "this encoder")
    memory.keep("bad", torch.zeros(1, 4, 8))
    assert "not kept" in caplog.text


def test_the_models_own_negative_prompt_is_encoded_once_and_the_video_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = write_model(tmp_path)

    def video() -> tuple[torch.Tensor, int]:
        wan = cygnet.load(paths, dtype="float32")
        calls: list[Any] = []
        with wan.model.components.use_text_encoder() as encoder:
            encoder.register_forward_hook(lambda *_: calls.append(1))
            made = wan.generate("a red ball", num_frames=5, size=(32, 32), num_steps=2, seed=1)
        return torch.as_tensor(made.frames), len(calls)

    assert NEGATIVE
    (first, encoded), (second, encoded_again) = video(), video()
    assert (encoded, encoded_again) == (2, 1)
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    """Else features that one number of threads kept would be another's; the docstring of the module has more widths."""
    embedded = cygnet.load_text_encoder("tiny-text-encoder", dtype=dtype)
    config = UMT5Config(vocab_size=300, dim=512, attention_dim=512, ffn_dim=1024, num_heads=8, num_layers=2)
    seeded = UMT5Encoder(config)
    seeded.load_state_dict(filled_weights(parameter_shapes(seeded)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with torch.no_grad():
                ids = torch.arange(126).remainder(300)[None]
                answer = seeded.to(dtype)(ids)
            found.append((answer, encode_text(embedded.model, embedded.tokenizer, "a red ball " * 20)[0]))
    finally:
        torch.set_num_threads(before)
    assert found[0][0].std() > 0
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))
