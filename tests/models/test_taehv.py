"""TAEHV's decoder: against the published description, computed in another way, and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cygnet.assembly import load_preview_decoder
from cygnet.errors import WeightFileError
from cygnet.models.taehv.model import PreviewDecoder

PUBLISHED = 11_315_539
ENCODER = 1_470_928
"""Of the published file's parameters those of the encoder, counted by hand from its layers."""


def tensors() -> dict[str, torch.Tensor]:
    """Seeded weights under the published names, large enough that every path shows."""
    torch.manual_seed(3)
    return {
        name: torch.randn_like(value) * (1.4 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1)
        for name, value in PreviewDecoder().state_dict().items()
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "taew2_1.safetensors"
    save_file({**tensors(), "encoder.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    return path


def described(latents: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """The network as the description reads, frame by frame: ``[16, t, h, w]`` -> ``[4t - 3, 3, 8h, 8w]``."""

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = w[f"decoder.{name}.weight"]
        return F.conv2d(x[None], weight, w.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)[0]

    def remember(frames: list[torch.Tensor], i: int) -> list[torch.Tensor]:
        out = []
        for at, x in enumerate(frames):
            y = torch.cat((x, frames[at - 1] if at else torch.zeros_like(x)))
            for part in ("conv.0", "conv.2"):
                y = conv(y, f"{i}.{part}").relu()
            out.append((conv(y, f"{i}.conv.4") + x).relu())
        return out

    frames = [conv(torch.tanh(x / 3) * 3, "1").relu() for x in latents.unbind(1)]
    for first, times, after in ((3, 1, 8), (9, 2, 14), (15, 2, 20)):
        for i in range(first, first + 3):
            frames = remember(frames, i)
        large = [F.interpolate(x[None], scale_factor=2, mode="nearest")[0] for x in frames]
        grown = [part for x in large for part in conv(x, f"{first + 4}.conv").chunk(times)]
        frames = [conv(x, str(after)) for x in grown]
    return torch.stack([conv(x.relu(), "22") for x in frames][3:]).clamp(0, 1)


def test_it_is_the_published_network(file: Path) -> None:
    decoder = load_preview_decoder(file)
    assert sum(it.numel() for it in decoder.parameters()) == PUBLISHED - ENCODER
    latents = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = {name: value.double() for name, value in tensors().items()}
    with torch.no_grad():
        video = decoder.double()(latents)
    assert video.shape == (2, 3, 9, 32, 48)
    for row, frames in zip(latents, video, strict=True):
        wanted = described(row, exact).transpose(0, 1) * 2 - 1
        assert wanted.std() > 0.2
        torch.testing.assert_close(frames, wanted, rtol=1e-9, atol=1e-9)


def test_of_a_file_that_grows_more_frames_the_last_rows_count(file: Path, tmp_path: Path) -> None:
    state = tensors()
    key = "decoder.7.conv.weight"
    state[key] = torch.cat((torch.full_like(state[key], 9.0), state[key]))
    save_file(state, tmp_path / "more.safetensors")
    latents = torch.zeros(1, 16, 1, 2, 2) + 0.5
    with torch.no_grad():
        assert torch.equal(
            load_preview_decoder(tmp_path / "more.safetensors")(latents), load_preview_decoder(file)(latents)
        )


def test_another_network_is_refused(tmp_path: Path) -> None:
    state = tensors()
    del state["decoder.22.bias"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightFileError, match=r"is not TAEHV for Wan 2\.1; get taew2_1"):
        load_preview_decoder(tmp_path / "other.safetensors")
