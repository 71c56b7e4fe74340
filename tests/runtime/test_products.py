from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cygnet.runtime import products
from cygnet.runtime.eight_bit import EightBitLinear
from cygnet.runtime.products import OneDNNLinear, linear, use_onednn, vendor
from support import fill, relative_l2

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this torch has no oneDNN product",
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that went to oneDNN, on a processor for which that is meant."""
    shapes: list[tuple[int, ...]] = []
    real = products._by_onednn

    def counting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_by_onednn", counting)
    monkeypatch.setattr(products, "onednn_pays", lambda: True)
    return shapes


@needs_onednn
@pytest.mark.parametrize("shape", [[9, 20], [2, 7, 20], [1, 2, 4, 20]])
@pytest.mark.parametrize("biased", [True, False])
def test_products_are_the_same_to_rounding(counted: list[tuple[int, ...]], shape: list[int], biased: bool) -> None:
    layer = nn.Linear(20, 12, bias=biased).requires_grad_(False)
    x = fill("x", shape)
    wanted = layer(x)
    network = nn.Sequential(layer, nn.GELU())
    use_onednn(network)
    assert isinstance(network[0], OneDNNLinear)
    assert relative_l2(network[0](x), wanted) < 1e-6
    assert counted == [tuple(shape)]


@needs_onednn
def test_a_slice_of_a_tensor_is_multiplied_right(counted: list[tuple[int, ...]]) -> None:
    wide, weight = fill("wide", [3, 16, 40]), fill("weight", [12, 20])
    for x in (wide[:, ::2, :20], wide[..., 20:], wide[1:2, :, 1:21], wide.transpose(1, 2)[:, :20].transpose(1, 2)):
        assert relative_l2(linear(x, weight, None), F.linear(x, weight)) < 1e-6
    assert len(counted) == 4


@needs_onednn
def test_a_bias_may_lie_anywhere(counted: list[tuple[int, ...]]) -> None:
    x, weight, columns = fill("x", [9, 20]), fill("weight", [12, 20]), fill("columns", [12, 2])
    for bias in (columns[:, 0], columns[:1, 0].expand(12), columns[0, 0]):
        assert relative_l2(linear(x, weight, bias), F.linear(x, weight, bias)) < 1e-6
    assert len(counted) == 3


def test_forward_derivatives_go_the_usual_way(counted: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(20, 12).requires_grad_(False)
    use_onednn(layer)
    x, along = fill("x", [9, 20]), fill("along", [9, 20])
    _, found = torch.func.jvp(layer, (x,), (along,))
    assert relative_l2(found, F.linear(along, layer.weight)) < 1e-6
    assert counted == []


def test_what_learns_or_is_of_another_type_or_short_goes_the_usual_way(counted: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(20, 12)
    use_onednn(layer)
    plain = F.linear(fill("x", [9, 20]), layer.weight, layer.bias)
    assert torch.equal(layer(fill("x", [9, 20])), plain)
    layer(fill("x", [9, 20])).sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    assert torch.equal(layer(fill("x", [1, 20])), F.linear(fill("x", [1, 20]), layer.weight, layer.bias))
    half = copy.deepcopy(layer).bfloat16()
    x = fill("x", [9, 20]).bfloat16()
    assert torch.equal(half(x), F.linear(x, half.weight, half.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(fill("x", [9, 20])).dtype == torch.bfloat16
    assert counted == []


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ([9, 19], [12, 20], None),
        ([9, 0], [12, 0], [12]),
        ([9, 20], [20], None),
        ([9, 20], [20], []),
        ([9, 20], [2, 12, 20], None),
        ([9, 20], [], None),
        ([], [12, 20], None),
        ([9, 20], [12, 20], [11]),
        ([9, 20], [12, 20], [9, 12]),
        ([9, 20], [12, 20], [2, 9, 12]),
        ([9, 20], [0, 20], [0]),
        ([0, 20], [12, 20], [12]),
    ],
)
def test_odd_shapes_give_what_torch_gives(
    counted: list[tuple[int, ...]], x: list[int], weight: list[int], bias: list[int] | None
) -> None:
    """Its empty or unusual result, or its error."""
    given = fill("x", x), fill("weight", weight), None if bias is None else fill("bias", bias)

    def result(multiply: Any) -> torch.Tensor | str:
        try:
            return multiply(*given)  # type: ignore[no-any-return]
        except RuntimeError as problem:
            return str(problem)

    ours, wanted = result(linear), result(F.linear)
    if isinstance(wanted, str) or isinstance(ours, str):
        assert ours == wanted
    else:
        assert torch.equal(ours, wanted)
    assert all(0 in shape for shape in counted), "of rows there may be none"


def test_what_is_elsewhere_or_stored_otherwise_goes_the_usual_way(counted: list[tuple[int, ...]]) -> None:
    x, weight, bias = fill("x", [9, 20]), fill("weight", [12, 20]), fill("bias", [12])
    assert torch.equal(linear(x, weight.to_sparse(), None), F.linear(x, weight.to_sparse(), None))
    for other in (bias.double(), bias.to("meta")):
        with pytest.raises(RuntimeError, match=r"dtype|device"):
            linear(x, weight, other)
    linear(x, weight, bias.requires_grad_()).sum().backward()
    assert bias.grad is not None
    assert counted == []


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_trace_holds_the_usual_product(counted: list[tuple[int, ...]]) -> None:
    network = nn.Sequential(nn.Linear(20, 12)).requires_grad_(False)
    use_onednn(network)
    x = fill("x", [9, 20])
    traced = torch.jit.trace(network, x)
    assert relative_l2(traced(x), F.linear(x, network[0].weight, network[0].bias)) < 1e-6
    assert "aten::linear" in str(traced.inlined_graph)


@needs_onednn
def test_eight_bits_give_what_their_widened_matrix_gives_bit_for_bit(counted: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(20, 12).requires_grad_(False)
    stored = (layer.weight * 100).to(torch.float8_e4m3fn)
    layer.weight.copy_(stored.float() / 100)
    use_onednn(layer)
    kept = EightBitLinear(stored, torch.tensor(0.01), layer.bias)
    layer.weight.copy_(stored.float() * torch.tensor(0.01))
    assert torch.equal(kept(fill("x", [9, 20])), layer(fill("x", [9, 20])))
    assert len(counted) == 2


def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    asked = products.onednn_pays.__wrapped__
    monkeypatch.setattr(products, "_by_onednn", F.linear)
    assert asked() == torch.backends.mkl.is_available()
    monkeypatch.setattr(products, "_by_onednn", lambda x, weight, bias: F.linear(x, weight, bias) * 1.01)
    assert not asked()

    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(products, "_by_onednn", missing)
    assert not asked()
    monkeypatch.setattr(products, "vendor", lambda: "GenuineIntel")
    monkeypatch.setattr(products, "_by_onednn", F.linear)
    assert not asked()


def test_the_vendor_is_read_where_it_is_told(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n")
    assert vendor(told) == "AuthenticAMD"
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert vendor(tmp_path / "arm") is None
    assert vendor(tmp_path / "absent") is None


def test_whether_onednn_pays_does_not_follow_torchs_defaults() -> None:
    expected = products.onednn_pays.__wrapped__()
    with torch.device("meta"):
        assert products.onednn_pays.__wrapped__() is expected
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert products.onednn_pays.__wrapped__() is expected
    finally:
        torch.set_default_dtype(before)
