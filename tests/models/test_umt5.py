from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from cygnet.errors import RequestError
from cygnet.models.umt5.config import UMT5_XXL, UMT5Config
from cygnet.models.umt5.model import UMT5Encoder, relative_buckets
from cygnet.ops.attention import sdpa
from support import fill, filled_weights, golden_array, golden_facts, parameter_shapes, relative_l2, seeded_weights

TINY = UMT5Config(vocab_size=64, dim=64, attention_dim=64, ffn_dim=128, num_heads=4, num_layers=2)


@functools.cache
def golden_encoder() -> UMT5Encoder:
    facts: dict[str, Any] = golden_facts()["t5"]
    config = UMT5Config(
        vocab_size=facts["vocab"],
        dim=facts["dim"],
        attention_dim=facts["dim_attn"],
        ffn_dim=facts["dim_ffn"],
        num_heads=facts["num_heads"],
        num_layers=facts["num_layers"],
        num_buckets=facts["num_buckets"],
    )
    encoder = UMT5Encoder(config)
    encoder.load_state_dict(seeded_weights(facts["keys"]), assign=True)
    return encoder.requires_grad_(False)


@functools.cache
def tiny_encoder() -> UMT5Encoder:
    encoder = UMT5Encoder(TINY)
    encoder.load_state_dict(filled_weights(parameter_shapes(encoder)), assign=True)
    return encoder.requires_grad_(False)


def test_parameter_names_and_shapes_are_the_official_ones() -> None:
    expected = {name: tuple(shape) for name, shape in golden_facts()["t5"]["keys"].items()}
    assert parameter_shapes(golden_encoder()) == expected


def test_the_published_encoder_has_242_tensors_and_their_sizes() -> None:
    with torch.device("meta"):
        shapes = parameter_shapes(UMT5Encoder(UMT5_XXL))
    assert len(shapes) == 242
    assert shapes["token_embedding.weight"] == (256384, 4096)
    assert shapes["blocks.23.pos_embedding.embedding.weight"] == (32, 64)
    assert shapes["blocks.23.ffn.fc2.weight"] == (4096, 10240)


def test_features_equal_the_reference() -> None:
    ids, mask = golden_array("t5.ids").long(), golden_array("t5.mask").long()
    expected = golden_array("t5.out")
    assert relative_l2(golden_encoder()(ids, mask)[:, : expected.shape[1]], expected) < 1e-5


def test_features_of_a_short_text_without_mask_equal_the_reference() -> None:
    ids = golden_array("t5.ids").long()[:, :7]
    assert relative_l2(golden_encoder()(ids), golden_array("t5.short")) < 1e-5


def test_features_with_hash_weights_are_the_published_ones() -> None:
    ids = torch.tensor([[5, 12, 19, 26, 33, 40, 47, 54, 61, 8, 15, 1] + [0] * 8])
    mask = torch.tensor([[1] * 12 + [0] * 8])
    rows = tiny_encoder()(ids, mask)[0, :12]
    assert float(rows.mean()) == pytest.approx(0.152243, abs=2e-6)
    assert float(rows.std(unbiased=False)) == pytest.approx(1.004958, abs=2e-6)
    assert float(rows.abs().mean()) == pytest.approx(0.815030, abs=2e-6)
    samples = [float(rows[0, 0]), float(rows[5, 17]), float(rows[11, 63])]
    assert samples == pytest.approx([-1.71184, -0.24003, 0.58881], abs=1e-5)


def test_padding_changes_nothing_about_real_tokens() -> None:
    ids = torch.arange(3, 20)[None]
    alone = tiny_encoder()(ids)
    padded = torch.cat([ids, torch.zeros(1, 23, dtype=torch.int64)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 23, dtype=torch.int64)], dim=1)
    assert relative_l2(tiny_encoder()(padded, mask)[:, :17], alone) < 1e-6
    assert relative_l2(tiny_encoder()(padded)[:, :17], alone) > 1e-2


def test_each_row_of_a_batch_keeps_its_own_mask() -> None:
    ids = torch.stack([torch.arange(3, 13), torch.arange(13, 23)])
    lengths = [4, 10]
    mask = torch.stack([torch.arange(10) < length for length in lengths])
    together = tiny_encoder()(ids, mask)
    for row, length in enumerate(lengths):
        assert relative_l2(together[row : row + 1, :length], tiny_encoder()(ids[row : row + 1, :length])) < 1e-6


def test_a_row_of_nothing_but_padding_stays_finite() -> None:
    out = tiny_encoder()(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("first", "last", "bucket"),
    [(n, n, n) for n in range(8)]
    + [(8, 11, 8), (12, 15, 9), (16, 22, 10), (23, 31, 11), (32, 45, 12), (46, 63, 13), (64, 90, 14), (91, 511, 15)],
)
def test_distances_fall_into_the_published_buckets(first: int, last: int, bucket: int) -> None:
    buckets = relative_buckets(512, 32, 128)
    assert set(buckets[0, first : last + 1].tolist()) == {bucket + 16 if first else 0}
    assert set(buckets[first : last + 1, 0].tolist()) == {bucket}


def test_buckets_depend_on_distance_alone() -> None:
    long, short = relative_buckets(300, 32, 128), relative_buckets(7, 32, 128)
    assert torch.equal(long[200:207, 200:207], short)


def test_every_layer_has_its_own_positions() -> None:
    weights = filled_weights(parameter_shapes(tiny_encoder()))
    weights["blocks.1.pos_embedding.embedding.weight"] = weights["blocks.0.pos_embedding.embedding.weight"]
    shared = UMT5Encoder(TINY)
    shared.load_state_dict(weights)
    ids = torch.arange(3, 13)[None]
    assert relative_l2(shared(ids).detach(), tiny_encoder()(ids)) > 1e-2


def test_the_attention_handed_in_is_the_one_used() -> None:
    scales: list[float | None] = []

    def recorded(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        scales.append(scale)
        return sdpa(q, k, v, bias, scale)

    UMT5Encoder(TINY, attention=recorded)(torch.tensor([[5, 1]]))
    assert scales == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype) -> None:
    encoder = UMT5Encoder(TINY)
    encoder.load_state_dict(filled_weights(parameter_shapes(encoder)))
    ids, mask = torch.arange(3, 13)[None], torch.arange(10)[None] < 8
    out = encoder.to(dtype)(ids, mask).detach()
    assert out.dtype == dtype
    assert relative_l2(out[:, :8], tiny_encoder()(ids, mask)[:, :8]) < 0.1


def test_float16_clips_what_would_overflow() -> None:
    encoder = UMT5Encoder(TINY)
    encoder.load_state_dict(filled_weights(parameter_shapes(encoder)))
    encoder.get_parameter("blocks.0.ffn.fc2.weight").data.mul_(2000)
    ids = torch.arange(3, 13)[None]
    assert torch.isfinite(encoder.half()(ids)).all()


@pytest.mark.parametrize(("ids", "mask"), [((5,), None), ((1, 5), (1, 4)), ((1, 5), (5,))])
def test_ids_and_mask_of_other_shapes_are_refused(ids: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    with pytest.raises(RequestError, match="must be"):
        tiny_encoder()(torch.zeros(ids, dtype=torch.int64), None if mask is None else torch.ones(mask))


def test_a_fresh_encoder_starts_near_unit_scale() -> None:
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=64, dim=128, attention_dim=128, ffn_dim=256, num_heads=2, num_layers=2)
    encoder = UMT5Encoder(config).requires_grad_(False)
    x = fill("in", (1, 32, 128)) * 3**0.5
    q, k = (x @ encoder.get_parameter(f"blocks.0.attn.{name}.weight")[:64].T for name in "qk")
    assert 0.5 < float((q @ k.transpose(1, 2)).std()) < 2
