"""The export rule and its inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cygnet.errors import NumericalError, RequestError
from cygnet.media.frames import to_signed, to_uint8


def test_bytes_follow_the_official_rule_of_clamping_and_truncating() -> None:
    values = torch.tensor([-9.0, -1.0, -0.999, 0.0, 0.0039, 0.5, 0.9999, 1.0, 9.0])
    frames = values.repeat(3, 1)[:, None, None, :]  # [3, 1, 1, 9]
    assert to_uint8(frames)[0, 0, :, 0].tolist() == [0, 0, 0, 127, 127, 191, 254, 255, 255]


def test_axes_go_from_channels_first_to_channels_last() -> None:
    frames = torch.rand(3, 4, 5, 6) * 2 - 1
    got = to_uint8(frames)
    assert got.shape == (4, 5, 6, 3)
    assert got.flags["C_CONTIGUOUS"]
    assert got[2, 3, 1, 0] == int((frames[0, 2, 3, 1] + 1) / 2 * 255)
    assert np.array_equal(to_uint8(frames[None]), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32_and_the_input_is_not_changed(dtype: torch.dtype) -> None:
    frames = (torch.rand(3, 2, 4, 4) * 2.2 - 1.1).to(dtype)
    before = frames.clone()
    assert np.array_equal(to_uint8(frames), to_uint8(frames.float()))
    assert torch.equal(frames, before)


def test_nan_is_an_error_and_not_a_colour() -> None:
    frames = torch.zeros(3, 1, 2, 2)
    frames[1, 0, 1, 1] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        to_uint8(frames)


@pytest.mark.parametrize("frames", [torch.zeros(4, 1, 2, 2), torch.zeros(2, 3, 1, 2, 2), torch.zeros(3, 1, 2, 2).int()])
def test_frames_of_another_shape_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(RequestError, match=r"\[3, T, H, W\]"):
        to_uint8(frames)


def test_signed_values_have_the_bits_of_the_reference() -> None:
    bytes_ = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    signed = to_signed(bytes_)
    assert signed.shape == (3, 1, 16, 16)
    assert (signed.min(), signed.max()) == (-1.0, 1.0)
    expected = (torch.arange(256).float() / 255 - 0.5) / 0.5
    assert torch.equal(signed[0].flatten(), expected)


def test_there_and_back_differs_by_at_most_one() -> None:
    bytes_ = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    lost = bytes_.astype(int) - to_uint8(to_signed(bytes_))
    assert set(np.unique(lost)) <= {0, 1}


def test_signed_values_do_not_share_memory_with_the_bytes() -> None:
    bytes_ = np.zeros((1, 2, 2, 3), np.uint8)
    bytes_.flags.writeable = False
    to_signed(bytes_).fill_(5)
    assert bytes_.max() == 0


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 2, 3), np.uint8), np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 4), np.uint8)]
)
def test_bytes_of_another_shape_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"\[T, H, W, 3\]"):
        to_signed(frames)
