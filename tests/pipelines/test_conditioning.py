from __future__ import annotations

import pytest
import torch

from cygnet.errors import NumericalError
from cygnet.models.clip.model import CLIPVision
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.umt5.tokenizer import Tokenizer
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import (
    cover,
    crop_to_aspect,
    encode_images,
    encode_text,
    image_condition,
    image_mask,
    resize,
)
from random_models import CLIP, VAE, spiece, state_of, text_config
from support import fill


def vae() -> WanVAE:
    module = WanVAE(VAE)
    module.load_state_dict(state_of(VAE))
    return module.requires_grad_(False)


def text_encoder() -> UMT5Encoder:
    module = UMT5Encoder(text_config())
    module.load_state_dict(state_of(text_config()))
    return module.requires_grad_(False)


def test_the_mask_marks_the_first_frame_in_every_channel() -> None:
    mask = image_mask(13, 2, 3, last=False)
    assert mask.shape == (1, 4, 4, 2, 3)
    assert mask[0, :, 0].eq(1).all()
    assert mask[0, :, 1:].eq(0).all()


def test_the_mask_marks_a_last_frame_in_its_last_channel_alone() -> None:
    mask = image_mask(13, 2, 3, last=True)
    assert mask[0, :, 0].eq(1).all()
    assert mask[0, :, 1:-1].eq(0).all()
    assert mask[0, :, -1, 0, 0].tolist() == [0, 0, 0, 1]


def test_one_frame_has_one_latent_frame_that_is_given() -> None:
    assert image_mask(1, 1, 1, last=False).flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("last", [False, True])
def test_the_condition_is_the_vae_of_the_whole_video_with_grey_between(last: bool) -> None:
    model, first, end = vae(), fill("first", [3, 20, 30]), fill("last", [3, 40, 10])
    condition = image_condition(model, first, num_frames=9, width=32, height=16, last_image=end if last else None)
    video = torch.zeros(3, 9, 16, 32)
    video[:, 0] = resize(first, 32, 16)
    if last:
        video[:, -1] = resize(end, 32, 16)
    assert condition.shape == (1, 20, 3, 2, 4)
    torch.testing.assert_close(condition[:, 4:], model.encode(video[None]), rtol=1e-4, atol=1e-5)


def test_two_pictures_give_their_tokens_one_after_the_other() -> None:
    tower = CLIPVision(CLIP)
    tower.load_state_dict(state_of(CLIP))
    first, last = fill("a", [3, 20, 30]), fill("b", [3, 50, 10])
    both = encode_images(tower, (first, last))
    assert both.shape == (1, 2 * CLIP.num_tokens, CLIP.dim)
    torch.testing.assert_close(both[:, CLIP.num_tokens :], encode_images(tower, (last,)))


def test_text_within_the_limit_makes_no_notice() -> None:
    features, notices = encode_text(text_encoder(), Tokenizer.from_sentencepiece(spiece()), "a red ball")
    assert features.ndim == 3
    assert features.shape[2] == 32
    assert notices == ()


def test_text_beyond_512_tokens_is_used_as_far_as_it_fits_and_what_was_cut_is_told() -> None:
    text = "ball " * 600 + "the end"
    features, notices = encode_text(text_encoder(), Tokenizer.from_sentencepiece(spiece()), text)
    assert features.shape[1] == 512
    assert "the prompt is too long" in notices[0]
    assert "were left out, from" in notices[0]


def test_a_damaged_text_encoder_is_noticed_before_sampling() -> None:
    model = text_encoder()
    model.norm.weight[3] = torch.nan
    with pytest.raises(NumericalError, match="text encoder made NaN or infinity of the prompt"):
        encode_text(model, Tokenizer.from_sentencepiece(spiece()), "a red ball")


def test_cropping_keeps_the_most_about_the_centre() -> None:
    image = torch.arange(6.0).expand(3, 4, 6)
    assert crop_to_aspect(image, 16, 16)[0, 0].tolist() == [1, 2, 3, 4]
    assert crop_to_aspect(image, 48, 16).shape == (3, 2, 6)
    assert crop_to_aspect(image, 96, 64).shape == image.shape


def test_covering_fills_the_size_without_changing_the_aspect() -> None:
    ramp = torch.linspace(-1, 1, 40).expand(3, 20, 40)  # dark to bright, left to right
    covered = cover(ramp, 10, 10)
    assert covered.shape == (3, 10, 10)
    # The middle half of the ramp: from about -0.5 to about 0.5.
    assert float(covered[0, 5, 0]) == pytest.approx(-0.5, abs=0.1)
    assert float(covered[0, 5, -1]) == pytest.approx(0.5, abs=0.1)


def test_a_video_is_resized_frame_by_frame() -> None:
    video = fill("v", [3, 5, 12, 10])
    torch.testing.assert_close(resize(video, 16, 32)[:, 2], resize(video[:, 2], 16, 32))
