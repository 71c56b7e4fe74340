from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend

from cygnet.errors import RequestError
from cygnet.models.dit.model import DiT
from cygnet.ops.attention import attention_by_products, sdpa
from cygnet.runtime import attention
from cygnet.runtime.attention import (
    ORDER,
    ProductsAttention,
    TorchAttention,
    attention_error,
    choose_attention,
    use_attention,
    verdicts,
)
from cygnet.types import Attention
from support import relative_l2

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    for remembered in (attention._tested, attention._on_processor):
        remembered.cache_clear()
    yield
    for remembered in (attention._tested, attention._on_processor):
        remembered.cache_clear()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are chosen for a GPU are tested on the CPU: the code that chooses is the same."""
    measured = attention_error
    monkeypatch.setattr(
        attention, "attention_error", lambda kernel, _, dtype, width: measured(kernel, CPU, dtype, width)
    )


def wrong(*_: object, **__: object) -> torch.Tensor:
    return torch.zeros(1, 2, 533, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_kernels_in_an_order_give_what_torch_gives(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 7, 16, dtype=dtype) for _ in range(3))
    bias = torch.randn(1, 1, 1, 7, dtype=dtype)
    torch.testing.assert_close(TorchAttention(ORDER)(q, k, v, bias, 0.3), sdpa(q, k, v, bias, 0.3))


def test_the_comparison_tells_right_from_wrong_and_from_nan() -> None:
    assert attention_error(sdpa, CPU, torch.float32, 16) < 1e-5
    assert attention_error(sdpa, CPU, torch.bfloat16, 16) < 2e-2
    assert attention_error(wrong, CPU, torch.float32, 16) == pytest.approx(1)
    assert attention_error(lambda q, k, v, *_: q * torch.nan, CPU, torch.float32, 16) == float("inf")
    unscaled: Attention = lambda q, k, v, *_: sdpa(q, k, v, scale=1.0)  # noqa: E731
    assert attention_error(unscaled, CPU, torch.bfloat16, 64) > 0.1


def test_a_kernel_that_errs_is_left_out_with_one_line(
    on_the_cpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = TorchAttention.__call__

    def call(self: TorchAttention, q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if self.backends == [SDPBackend.FLASH_ATTENTION]:
            return wrong()
        return honest(self, q, *rest)

    monkeypatch.setattr(TorchAttention, "__call__", call)
    with caplog.at_level(logging.WARNING, "cygnet"):
        chosen = choose_attention("torch", CUDA, torch.bfloat16, 16)
    assert isinstance(chosen, TorchAttention)
    assert SDPBackend.FLASH_ATTENTION not in chosen.backends
    assert SDPBackend.MATH in chosen.backends
    assert [record.getMessage() for record in caplog.records] == [
        "torch's FLASH_ATTENTION is left out on cuda:0: it is 1 off"
    ]


def package(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def test_flash_attention_3_is_used_where_it_is_installed_and_right(
    on_the_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float | None) -> torch.Tensor:
        asked.append(tuple(q.shape))
        return sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, softmax_scale).transpose(1, 2)

    package(monkeypatch, "flash_attn_interface", flash_attn_func=flash)
    chosen = choose_attention("auto", CUDA, torch.bfloat16, 16)
    assert asked == [(1, 533, 2, 16)]
    q = torch.randn(1, 2, 5, 16, dtype=torch.bfloat16)
    torch.testing.assert_close(chosen(q, q, q), sdpa(q, q, q))
    bias = torch.randn(1, 1, 1, 5, dtype=torch.bfloat16)
    torch.testing.assert_close(chosen(q, q, q, bias), sdpa(q, q, q, bias))
    assert len(asked) == 2  # a bias goes to torch


def test_every_kernel_has_a_verdict(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, "flash_attn_interface", flash_attn_func=lambda q, *_, **__: torch.zeros_like(q))
    told = {it.kernel: it for it in verdicts(CUDA, torch.bfloat16, 16)}
    assert list(told) == ["cudnn", "flash", "efficient", "math", "flash3", "sage"]
    assert told["flash"].admitted
    assert (told["flash3"].error, told["flash3"].reason) == (pytest.approx(1), "it is 1 off, more than 0.02")
    assert told["sage"].reason == "its package sageattention is not installed"
    assert verdicts(CUDA, torch.float32, 16)[4].reason == "it takes 16-bit numbers alone"
    assert [it.kernel for it in verdicts(CPU, torch.float32, 16)] == ["cudnn", "flash", "efficient", "math"]


def test_a_package_that_errs_is_left_out_or_refused(
    on_the_cpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package(monkeypatch, "flash_attn_interface", flash_attn_func=lambda q, *_, **__: torch.zeros_like(q))
    with caplog.at_level(logging.WARNING, "cygnet"):
        assert isinstance(choose_attention("auto", CUDA, torch.bfloat16, 16), TorchAttention)
    assert "attention flash3 is left out on cuda:0: it is 1 off, more than 0.02" in caplog.text
    with pytest.raises(RequestError, match="'flash3' does not work on cuda:0: it is 1 off"):
        choose_attention("flash3", CUDA, torch.bfloat16, 16)


def test_a_package_that_fails_to_load_is_refused(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, "sageattention")  # without the function
    with pytest.raises(RequestError, match="'sage' does not work on cuda:0: ImportError"):
        choose_attention("sage", CUDA, torch.bfloat16, 16)


def test_sage_is_used_only_when_asked_for(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def sage(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tensor_layout: str, sm_scale: float | None
    ) -> torch.Tensor:
        assert tensor_layout == "HND"
        return sdpa(q, k, v, None, sm_scale)

    package(monkeypatch, "sageattention", sageattn=sage)
    assert isinstance(choose_attention("auto", CUDA, torch.bfloat16, 16), TorchAttention)
    assert isinstance(choose_attention("sage", CUDA, torch.bfloat16, 16), attention.SageAttention)


def test_what_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(RequestError, match="attention is 'xformers'; give one of: auto, torch, flash3, sage"):
        choose_attention("xformers", CPU, torch.float32, 16)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="its package sageattention is not installed"):
        choose_attention("sage", CPU, torch.float32, 16)
    assert choose_attention("auto", CPU, torch.float32, 16) is sdpa


def test_a_package_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    package(monkeypatch, "sageattention")
    with pytest.raises(RequestError, match="attention 'sage' needs a CUDA device; use auto on cpu"):
        choose_attention("sage", CPU, torch.float32, 16)


def test_every_attention_layer_of_a_transformer_takes_the_kernel() -> None:
    from test_block_swap import SMALL

    dit = DiT(SMALL)
    use_attention(dit, wrong)
    taken = [name for name, part in dit.named_modules() if getattr(part, "attention", None) is wrong]
    assert taken == [f"blocks.{i}.{kind}_attn" for i in range(4) for kind in ("self", "cross")]


# By products, on a processor


def heads(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Seeded heads ``[B, N, L, K]`` in bfloat16, laid out as the projections leave them."""
    batch, count, rows, width = shape
    values = torch.randn(batch, rows, count, width, generator=torch.Generator().manual_seed(seed))
    return (scale * values).bfloat16().transpose(1, 2)


@pytest.mark.parametrize(
    ("queries", "keys", "biased", "batch"),
    [(5, 7, False, 2), (130, 70, True, 2), (1100, 1030, False, 1), (600, 2100, True, 1)],
    ids=["tiny", "padding", "rows-in-parts", "rows-in-parts-padding"],
)
def test_attention_by_products_is_attention(queries: int, keys: int, biased: bool, batch: int) -> None:
    q, k, v = (
        heads(batch, 3, queries, 32, scale=3),
        heads(batch, 3, keys, 32, seed=1),
        heads(batch, 3, keys, 32, seed=2),
    )
    bias = torch.zeros(batch, 1, 1, keys, dtype=torch.bfloat16)
    bias[..., keys // 2 :] = -torch.inf
    bias[0, ..., 0] = 5
    given = bias if biased else None
    out = attention_by_products(q, k, v, given, 0.3)
    exact = sdpa(q.double(), k.double(), v.double(), None if given is None else given.double(), 0.3)
    assert relative_l2(out, exact) < 6e-3
    fake = torch.library.opcheck(
        torch.ops.cygnet.attention_by_products, (q, k, v, given, 0.3), test_utils="test_faketensor"
    )
    assert set(fake.values()) == {"SUCCESS"}


def test_large_scores_stay_as_fine_as_in_the_fused_kernel() -> None:
    q, k, v = heads(1, 1, 600, 64, scale=12), heads(1, 1, 600, 64, seed=1), heads(1, 1, 600, 64, seed=2)
    exact = sdpa(q.double(), k.double(), v.double())
    coarse = ((q @ k.transpose(2, 3)) * 0.125).softmax(dim=-1) @ v  # scores in the hundreds, rounded to 8 bits
    fine = relative_l2(attention_by_products(q, k, v, None, 0.125), exact)
    assert fine < relative_l2(coarse, exact) / 2
    assert fine < 2e-2


@pytest.mark.parametrize("masked", [False, True])
def test_keys_that_the_guess_does_not_look_at_or_should_not_do_no_harm(masked: bool) -> None:
    q, k, v = heads(1, 2, 600, 64), heads(1, 2, 1024, 64, seed=1), heads(1, 2, 1024, 64, seed=2)
    q[..., 0] = 16
    strong = slice(8, None, 16) if masked else slice(5, None, 16)  # the guess looks at every 16th, from 0 on
    k[:, :, strong, 0] = 16
    bias = torch.zeros(1, 1, 1, 1024, dtype=torch.bfloat16)
    if masked:
        k[:, :, ::16, 0] = 32
        bias[..., ::16] = -torch.inf
    out = attention_by_products(q, k, v, bias, 0.125)
    assert relative_l2(out, sdpa(q.double(), k.double(), v.double(), bias.double(), 0.125)) < 6e-3


def test_products_are_for_many_keys_in_bfloat16_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(attention, "attention_by_products", lambda *_: asked.append("products"))
    monkeypatch.setattr(attention, "sdpa", lambda *_: asked.append("torch"))
    many, few = heads(1, 1, 256, 8), heads(1, 1, 255, 8)
    kernel = ProductsAttention()
    kernel(many, many, many)
    kernel(many, many, many, torch.zeros(1, 1, 1, 256))
    assert asked == ["products"] * 2
    kernel(many, few, few)
    kernel(few, many, many)
    kernel(many.float(), many.float(), many.float())
    kernel(many, many, many, torch.zeros(1, 1, 256, 256))
    kernel(many.clone().requires_grad_(), many, many)
    kernel(many.expand(2, -1, -1, -1), many, many)
    assert asked[2:] == ["torch"] * 6


@pytest.mark.parametrize(("bf16", "amx", "threads", "pays"), [
    (True, False, 2, True), (False, False, 2, False), (True, True, 2, False), (True, False, 64, False),
])  # fmt: skip
def test_auto_takes_products_where_they_were_measured_to_pay(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool, threads: int, pays: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(attention, "uses_amx", lambda: amx)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    chosen = choose_attention("auto", CPU, torch.bfloat16, 16)
    assert isinstance(chosen, ProductsAttention) == pays
    assert any(verdict.kernel == "products" for verdict in verdicts(CPU, torch.bfloat16, 16)) == pays
    assert choose_attention("torch", CPU, torch.bfloat16, 16) is sdpa
    assert choose_attention("auto", CPU, torch.float32, 16) is sdpa


def test_products_that_err_are_left_out_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention, "products_pay", lambda *_: True)
    monkeypatch.setattr(attention, "attention_by_products", lambda q, *_: torch.zeros_like(q))
    with caplog.at_level(logging.WARNING, "cygnet"):
        assert choose_attention("auto", CPU, torch.bfloat16, 16) is sdpa
        assert choose_attention("auto", CPU, torch.bfloat16, 16) is sdpa
    assert caplog.text.count("attention by products is left out: it is 1 off") == 1
