"""8-bit files of every scheme give back the weights they were made from, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cygnet.checkpoints import inspect, read_component, verify_finite
from cygnet.errors import WeightFileError
from cygnet.ops.quantised import dequantise
from support import relative_l2
from weight_samples import sample_state, save

State = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn


def _linears(state: State) -> list[str]:
    return [name for name, value in state.items() if name.startswith("blocks.") and value.ndim == 2]


def _scaled(state: State, suffix: str, scheme: str, dtype: torch.dtype = FP8) -> State:
    """``state`` with its block matrices in 8 bits and a scale beside each."""
    largest = 127.0 if dtype is torch.int8 else 448.0
    out = dict(state)
    for name in _linears(state):
        value = state[name]
        rows = value.shape[0]
        groups = {"tensor": value.reshape(1, -1), "row": value.reshape(rows, -1), "block": value.reshape(-1, 64)}[
            scheme
        ]
        scale = groups.abs().amax(dim=1, keepdim=True) / largest
        stored = groups / scale
        out[name] = (stored.round() if dtype is torch.int8 else stored).reshape(value.shape).to(dtype)
        shape = {"tensor": (), "row": (rows, 1), "block": (rows, -1, 1)}[scheme]
        out[name.removesuffix(".weight") + suffix] = scale.reshape(shape)
    return out


def _marked(state: State) -> State:
    return state | {"scaled_fp8": torch.zeros(0, dtype=FP8)}


def _noted(state: State, text: str = '{"format": "float8_e4m3fn"}') -> State:
    note = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    layers = [name.removesuffix(".weight_scale") for name in state if name.endswith(".weight_scale")]
    return state | {f"{layer}.comfy_quant": note.clone() for layer in layers}


@pytest.fixture(scope="module")
def exact() -> State:
    return sample_state("t2v")


def _cast(state: State, dtype: torch.dtype, *, matrices_only: bool) -> State:
    return {name: value.to(dtype) if value.ndim == 2 or not matrices_only else value for name, value in state.items()}


SCHEMES: dict[str, tuple[Callable[[State], State], str]] = {
    "plain fp8": (lambda s: _cast(s, FP8, matrices_only=True), "fp8"),
    "everything in fp8": (lambda s: _cast(s, FP8, matrices_only=False), "fp8"),
    "plain e5m2": (lambda s: _cast(s, torch.float8_e5m2, matrices_only=True), "fp8"),
    "ComfyUI with marker": (lambda s: _marked(_scaled(s, ".scale_weight", "tensor")), "scaled fp8"),
    "ComfyUI with notes": (lambda s: _noted(_scaled(s, ".weight_scale", "tensor")), "scaled fp8"),
    "per row": (lambda s: _scaled(s, ".scale_weight", "row"), "scaled fp8"),
    "per block": (lambda s: _scaled(s, ".scale_weight", "block"), "scaled fp8"),
    "int8 per row": (lambda s: _scaled(s, ".weight_scale", "row", torch.int8), "scaled int8"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_come_back_within_the_rounding_of_8_bits(tmp_path: Path, exact: State, scheme: str) -> None:
    make, kind = SCHEMES[scheme]
    weights = read_component(save(tmp_path / "x.safetensors", make(exact)))
    assert weights.quantisation == kind
    assert set(weights.names()) == set(exact)
    limit = 0.08 if "e5m2" in scheme else 0.04
    for name, value in exact.items():
        assert relative_l2(weights.tensor(name, torch.float32), value) < limit, name
    verify_finite(weights)


def test_scaled_weights_are_the_stored_ones_times_their_scale(tmp_path: Path, exact: State) -> None:
    state = _marked(_scaled(exact, ".scale_weight", "tensor"))
    weights = read_component(save(tmp_path / "x.safetensors", state))
    name = "blocks.1.ffn.0.weight"
    product = state[name].float() * state["blocks.1.ffn.0.scale_weight"]
    assert weights.tensor(name, torch.float32).equal(product)
    assert weights.tensor(name).equal(product.bfloat16())
    assert weights.tensor("blocks.1.modulation").dtype is torch.float32


def test_activation_scales_are_set_aside(tmp_path: Path, exact: State) -> None:
    state = _marked(_scaled(exact, ".scale_weight", "tensor"))
    state["blocks.0.self_attn.q.scale_input"] = torch.tensor(1.5)
    assert set(read_component(save(tmp_path / "x.safetensors", state)).names()) == set(exact)


def test_a_block_scale_covers_its_stretch_of_a_row() -> None:
    stored = torch.ones(2, 4).to(FP8)
    scale = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    assert dequantise(stored, scale, torch.float32).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    assert dequantise(stored, torch.tensor([5.0, 6.0]), torch.float32).tolist() == [[5] * 4, [6] * 4]


Q = "blocks.0.self_attn.q"


def _full(state: State) -> State:
    return dict(state)


def _with_marker(state: State) -> State:
    return _marked(_scaled(state, ".scale_weight", "tensor"))


def _with_notes(state: State) -> State:
    return _noted(_scaled(state, ".weight_scale", "tensor"))


def _per_row(state: State) -> State:
    return _scaled(state, ".scale_weight", "row")


NOT_POSITIVE = f"'{Q}.scale_weight' .* not a positive number"
FAULTS: dict[str, tuple[Callable[[State], State], State, str]] = {
    "int8 without scale": (_full, {f"{Q}.weight": torch.ones(256, 256, dtype=torch.int8)}, "needs a scale"),
    "scale without weight": (_full, {"blocks.9.lost.scale_weight": torch.tensor(1.0)}, "has no weight"),
    "scale for a full weight": (_full, {f"{Q}.scale_weight": torch.tensor(1.0)}, "stored as float32; scales go"),
    "two scales": (_with_marker, {f"{Q}.weight_scale": torch.tensor(1.0)}, "has two scales"),
    "scale of odd shape": (_with_marker, {f"{Q}.scale_weight": torch.ones(7)}, r"shape \[7\], which fits no scheme"),
    "blocks that do not divide": (_with_marker, {f"{Q}.scale_weight": torch.ones(256, 7, 1)}, "fits no scheme"),
    "scale 0": (_with_marker, {f"{Q}.scale_weight": torch.tensor(0.0)}, NOT_POSITIVE),
    "scale NaN": (_with_marker, {f"{Q}.scale_weight": torch.tensor(float("nan"))}, NOT_POSITIVE),
    "scale infinite": (_with_marker, {f"{Q}.scale_weight": torch.tensor(float("inf"))}, NOT_POSITIVE),
    "scale negative": (_with_marker, {f"{Q}.scale_weight": torch.tensor(-1.0)}, NOT_POSITIVE),
    "one row's scale 0": (_per_row, {f"{Q}.scale_weight": torch.arange(256.0).reshape(256, 1)}, NOT_POSITIVE),
    "unknown format": (lambda s: _noted(_with_notes(s), '{"format": "nvfp4"}'), {}, "'nvfp4'; known formats: float8"),
    "broken note": (lambda s: _noted(_with_notes(s), "{"), {}, "format note"),
    "long note": (lambda s: _noted(_with_notes(s), " " * 5000), {}, "not a short text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_scales_that_do_not_fit_are_refused_by_name(tmp_path: Path, exact: State, fault: str) -> None:
    make, changes, words = FAULTS[fault]
    with pytest.raises(WeightFileError, match=words):
        read_component(save(tmp_path / "x.safetensors", make(exact) | changes))


@pytest.mark.parametrize(
    ("make", "lost"),
    [(_with_marker, f"{Q}.scale_weight"), (_with_marker, ".scale_weight"), (_with_notes, f"{Q}.weight_scale")],
    ids=["one", "all", "beside its note"],
)
def test_a_missing_scale_is_refused_by_name(
    tmp_path: Path, exact: State, make: Callable[[State], State], lost: str
) -> None:
    state = {name: value for name, value in make(exact).items() if not name.endswith(lost)}
    with pytest.raises(WeightFileError, match=r"is stored as float8_e4m3fn and needs a scale"):
        read_component(save(tmp_path / "x.safetensors", state))


def test_inspection_says_how_a_file_is_quantised(tmp_path: Path, exact: State) -> None:
    [part] = inspect(save(tmp_path / "x.safetensors", _marked(_scaled(exact, ".scale_weight", "tensor")))).components
    assert part.quantisation == "scaled fp8"
    assert part.dtypes["float8_e4m3fn"] == len(_linears(exact))
    assert part.parameters == sum(value.numel() for value in exact.values())
