"""What callers of the transformer rely on, beyond agreement with the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT, PreparedContext, initialise
from cygnet.ops.attention import sdpa
from support import relative_l2

SMALL = DiTConfig(variant="t2v", dim=256, ffn_dim=128, num_heads=2, num_layers=2, in_channels=16, text_dim=24)


def make(config: DiTConfig = SMALL) -> DiT:
    torch.manual_seed(0)
    dit = DiT(config)
    initialise(dit)
    torch.nn.init.normal_(dit.head.head.weight, std=0.05)
    for block in dit.blocks:
        torch.nn.init.normal_(block.cross_attn.o.bias, std=0.1)
        torch.nn.init.normal_(block.cross_attn.k.bias, std=0.1)
    return dit.eval().requires_grad_(False)


def inputs(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 16, 2, 4, 6), torch.full((batch,), 700.0), torch.randn(batch, 9, 24)


def padded(context: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat((context, context.new_zeros(context.shape[0], rows - context.shape[1], context.shape[2])), dim=1)


def test_one_row_of_padding_equals_all_of_it() -> None:
    dit, (x, t, context) = make(), inputs()
    assert relative_l2(dit(x, t, context), dit(x, t, padded(context, 512))) < 2e-6


def test_zero_rows_inside_a_batch_are_the_padding_they_are() -> None:
    dit, (x, t, context) = make(), inputs()
    assert relative_l2(dit(x, t, padded(context, 40)), dit(x, t, context)) < 2e-6


def test_padding_is_not_masked_away() -> None:
    short = replace(SMALL, text_length=9)
    dit, other, (x, t, context) = make(), make(short), inputs()
    assert relative_l2(dit(x, t, context), other(x, t, context)) > 1e-3


def test_an_empty_context_is_all_padding() -> None:
    dit, (x, t, context) = make(), inputs()
    assert relative_l2(dit(x, t, context[:, :0]), dit(x, t, torch.zeros(1, 512, 24))) < 2e-6


def test_a_prepared_context_gives_the_same_velocity() -> None:
    dit, (x, t, context) = make(), inputs()
    assert torch.equal(dit(x, t, dit.prepare(context)), dit(x, t, context))


@pytest.mark.parametrize("one_by_one", [False, True])
def test_one_video_is_answered_for_several_prompts_at_once(one_by_one: bool) -> None:
    dit, (x, t, context) = make(), inputs()
    prompts = [dit.prepare(context[:, :rows]) for rows in (9, 2, 0)] + [dit.prepare(padded(context, 512))]
    together = dit(x, t, PreparedContext.joined(prompts), one_by_one=one_by_one)
    assert relative_l2(together, torch.cat([dit(x, t, each) for each in prompts])) < 2e-6


def test_the_first_block_looks_at_one_video_once_for_all_prompts() -> None:
    rows: list[int] = []

    def attention(q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        rows.append(q.shape[0])
        return sdpa(q, k, *rest)

    dit, (x, t, context) = DiT(SMALL, attention), inputs()
    both = PreparedContext.joined([dit.prepare(context), dit.prepare(context[:, :3])])
    dit(x, t, both)
    assert rows == [1, 2, 2, 2]


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    dit, (x, t, context) = make(), inputs(2)
    t = torch.tensor([900.0, 20.0])
    together = dit(x, t, context)
    for i in range(2):
        assert relative_l2(together[i : i + 1], dit(x[i : i + 1], t[i : i + 1], context[i : i + 1])) < 2e-6


def test_patches_come_back_where_they_were() -> None:
    dit, (x, _, _) = make(), inputs()
    patches = x.unflatten(4, (3, 2)).unflatten(3, (2, 2))  # [B, C, t, h/2, 2, w/2, 2]
    patches = patches.permute(0, 2, 3, 5, 4, 6, 1).reshape(1, 2 * 2 * 3, 64)
    assert torch.equal(dit.unpatchify(patches, (2, 2, 3)), x)


def test_half_precision_keeps_time_norms_and_head_in_float32() -> None:
    dit, (x, t, context) = make(), inputs()
    exact = dit(x, t, context)
    for name, parameter in dit.named_parameters():
        if not any(part in name for part in DiT.fp32_parameters):
            parameter.data = parameter.data.bfloat16()
    half = dit(x, t, context)
    assert half.dtype == torch.float32
    assert relative_l2(half, exact) < 0.02


def test_a_kernel_can_be_handed_in() -> None:
    calls = []

    def spy(q, k, v, bias=None, scale=None):  # type: ignore[no-untyped-def]
        calls.append(k.shape[2])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)

    x, t, context = inputs()
    DiT(SMALL, attention=spy)(x, t, context)
    assert calls == [12, 10, 12, 10], "video tokens, then text rows and one for the padding, in each block"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(1, 15, 2, 4, 6)}, "latents must be"),
        ({"latents": torch.zeros(1, 16, 2, 3, 6)}, "multiples of"),
        ({"timestep": torch.zeros(2)}, "timestep must be"),
        ({"context": torch.zeros(1, 513, 24)}, "context must be"),
        ({"context": torch.zeros(1, 9, 25)}, "context must be"),
        ({"context": torch.zeros(24)}, "context must be"),
        ({"image_context": torch.zeros(1, 257, 1280)}, "takes no image_context"),
        ({"image_condition": torch.zeros(1, 20, 2, 4, 6)}, "image_condition must be None"),
    ],
)
def test_wrong_shapes_are_refused_in_words(change: dict[str, torch.Tensor], message: str) -> None:
    x, t, context = inputs()
    with pytest.raises(ValueError, match=message):
        make()(**{"latents": x, "timestep": t, "context": context, **change})


def test_image_variants_demand_their_picture() -> None:
    dit = make(replace(SMALL, variant="i2v", in_channels=36, image_dim=48))
    x, t, context = inputs()
    with pytest.raises(ValueError, match="image_condition must be"):
        dit(x, t, context)
    with pytest.raises(ValueError, match="image_context must be"):
        dit(x, t, context, image_condition=torch.zeros(1, 20, 2, 4, 6))


def test_batches_that_do_not_fit_together_are_refused() -> None:
    dit = make(replace(SMALL, variant="i2v", in_channels=36, image_dim=32))
    latents, timestep = torch.zeros(2, 16, 1, 2, 2), torch.zeros(2)
    condition = torch.zeros(2, 20, 1, 2, 2)
    text, image = torch.zeros(3, 4, dit.config.text_dim), torch.zeros(2, 5, dit.config.image_dim or 0)
    with pytest.raises(ValueError, match="batch of 3"):
        dit(latents, timestep, text, image, condition)
    with pytest.raises(ValueError, match="batch of 3"):
        dit(latents[:1], timestep[:1], text, image, condition[:1])
    with pytest.raises(ValueError, match="image_context"):
        dit(latents, timestep, text[:1], image[:, :0], condition)
    one = dit(latents, timestep, text[:1], image[:1], condition)
    assert torch.equal(one, dit(latents, timestep, text[:2], image, condition)), "one context serves the whole batch"
    bare = dit.prepare(text[:1], image[:1])
    blocks = tuple(replace(keys, image_k=None, image_v=None) for keys in bare.blocks)
    with pytest.raises(ValueError, match="without image_context"):
        dit(latents, timestep, PreparedContext(blocks), None, condition)


def test_joined_prompts_begin_where_attention_kernels_can_read_them() -> None:
    """cuDNN faults on a bias whose address is no multiple of 16 bytes, which a later prompt's part could be."""
    dit = make().bfloat16()
    joined = PreparedContext.joined([dit.prepare(torch.randn(1, rows, 24)) for rows in (3, 9)]).blocks[0]
    for part in joined.split():
        for value in (part.k, part.v, part.bias):
            assert value is not None
            assert value.storage_offset() * value.element_size() % 16 == 0
