"""What ``cygnet lora`` does with files: said, converted, combined and extracted, each checked by its effect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cygnet.checkpoints import ComponentWeights, read_component, save_official
from cygnet.checkpoints.lora import with_loras
from cygnet.checkpoints.lora.combine import merge_into_model, merge_loras
from cygnet.checkpoints.lora.convert import convert_lora
from cygnet.checkpoints.lora.extract import extract_lora
from cygnet.checkpoints.lora.inspection import inspect_lora
from cygnet.checkpoints.lora.svd import truncated
from cygnet.errors import OutputError, RequestError, StateMismatchError, WeightFileError
from random_models import dit_config, state_of
from support import fill, relative_l2

Q, KEY, FFN = "blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.1.ffn.2"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ComponentWeights:
    config = dit_config("t2v")
    return read_component(save_official(tmp_path_factory.mktemp("dit") / "dit.safetensors", state_of(config), config))


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata)
    return path


def pair(
    stem: str, module: str, *, inner: int = 128, rank: int = 4, alpha: float | None = 2
) -> dict[str, torch.Tensor]:
    found = {
        f"{stem}.lora_down.weight": fill(f"{module} down", [rank, inner]),
        f"{stem}.lora_up.weight": fill(f"{module} up", [128, rank]),
    }
    return found if alpha is None else found | {f"{stem}.alpha": torch.tensor(float(alpha))}


def changes(base: ComponentWeights, *loras: tuple[Path, float]) -> dict[str, torch.Tensor]:
    merged = with_loras(base, loras)
    return {name: merged.tensor(name) - base.tensor(name) for name in merged.changes}


def assert_same(got: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], limit: float = 1e-5) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert relative_l2(got[name], value) < limit, name


def everything() -> dict[str, torch.Tensor]:
    return (
        pair(f"lora_unet_{Q}".replace(".", "_"), Q)
        | {f"lora_unet_{KEY}.{part}".replace(".", "_", 3): it for part, it in (
            ("hada_w1_a", fill("a", [128, 2])), ("hada_w1_b", fill("b", [2, 128])),
            ("hada_w2_a", fill("c", [128, 2])), ("hada_w2_b", fill("d", [2, 128])), ("alpha", torch.tensor(1.0)),
        )}
        | {f"{FFN}.lokr_w1": fill("w1", [8, 4]), f"{FFN}.lokr_w2": fill("w2", [16, 24])}
        | pair("blocks.1.self_attn.k", "dora", alpha=None)
        | {"blocks.1.self_attn.k.lora_magnitude_vector": 1 + fill("m", [128]).abs()}
        | {"diffusion_model.blocks.0.norm3.diff": fill("n", [128]), f"diffusion_model.{Q}.diff_b": fill("qb", [128]),
           "diffusion_model.blocks.0.diff_m": fill("mod", [1, 6, 128])}
    )  # fmt: skip


def test_a_file_is_described_from_its_header(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.safetensors", everything() | {"lora_te_layer.alpha": torch.tensor(1.0)}, {"ss_note": "hi"}
    )
    told = inspect_lora(path)
    assert told.dialects == {"kohya": 8, "official names": 5, "ComfyUI": 3}
    assert told.kinds == {"LoRA": 1, "LoHa": 1, "LoKr": 1, "DoRA": 1, "difference": 2}
    assert told.ranks == {2: 1, 4: 2}
    assert told.alphas == {2.0: 1, 1.0: 1, None: 1}
    assert told.areas == {
        "norms and modulation": 2, "self-attention": 2, "cross-attention": 1, "feed-forward": 1,
    }  # fmt: skip
    assert (told.modules, told.unknown, told.blocks, told.tensors) == (6, 1, 2, 17)
    assert told.base == "a T2V model of width 128"
    assert told.metadata == {"ss_note": "hi"}
    assert json.loads(json.dumps(told.to_json()))["alphas"] == {"2": 1, "1": 1, "none": 1}


@pytest.mark.parametrize(
    ("width", "extra", "base"),
    [(1536, "", "T2V-1.3B"), (5120, "", "T2V-14B"), (5120, "blocks.0.cross_attn.k_img", "I2V-14B"),
     (1536, "vace_blocks.0.self_attn.q", "VACE-1.3B")],
)  # fmt: skip
def test_the_base_is_guessed_from_shapes(tmp_path: Path, width: int, extra: str, base: str) -> None:
    tensors = {}
    for module in filter(None, (Q, extra)):
        tensors |= {f"{module}.lora_A.weight": torch.zeros(1, width), f"{module}.lora_B.weight": torch.zeros(width, 1)}
    assert inspect_lora(write(tmp_path / "x.safetensors", tensors)).base == base


@pytest.mark.parametrize(
    ("dialect", "name"),
    [("ComfyUI", f"diffusion_model.{Q}"), ("Diffusers", "transformer.blocks.0.attn1.to_q"),
     ("Diffusers", "blocks.0.attn1.to_q"), ("PEFT", f"base_model.model.{Q}"), ("kohya", f"lora_unet_{Q}"),
     ("VideoX-Fun", f"lora_unet__{Q}"), ("LyCORIS", f"lycoris_{Q}"), ("official names", Q)],
)  # fmt: skip
def test_the_dialect_is_named(tmp_path: Path, dialect: str, name: str) -> None:
    stem = name.replace(".", "_") if name.startswith(("lora_", "lycoris")) else name
    told = inspect_lora(write(tmp_path / "x.safetensors", pair(stem, Q, alpha=None)))
    assert told.dialects == {dialect: 2}


def test_every_kind_of_change_survives_conversion_to_comfyui(tmp_path: Path, base: ComponentWeights) -> None:
    source = write(tmp_path / "x.safetensors", everything(), {"ss_network_dim": "4"})
    path = convert_lora(source, tmp_path / "y.safetensors", "comfyui")
    assert_same(changes(base, (path, 0.7)), changes(base, (source, 0.7)))
    with safe_open(path, "pt") as file:
        assert all(name.startswith("diffusion_model.") for name in file.keys())  # noqa: SIM118
        assert file.get_tensor("diffusion_model.blocks.1.self_attn.k.dora_scale").shape == (128, 1)
        notes = file.metadata()
    assert notes["ss_network_dim"] == "4"
    assert json.loads(notes["cygnet.lora"])["from"][0]["file"] == "x.safetensors"
    assert inspect_lora(path).dialects == {"ComfyUI": 16}


@pytest.mark.parametrize("kind", ["LoKr", "LoHa", "LoRA", "DoRA"])
def test_scales_of_the_header_and_biases_survive_conversion(tmp_path: Path, base: ComponentWeights, kind: str) -> None:
    factors = pair(f"transformer.{Q}", Q, alpha=None) | {f"transformer.{Q}.lora_B.bias": fill("b", [128])}
    tensors = {
        "LoKr": {f"transformer.{Q}.lokr_w1": fill("w1", [8, 8]), f"transformer.{Q}.lokr_w2": fill("w2", [16, 16])},
        "LoHa": {f"transformer.{Q}.hada_w{part}": fill(part, [128, 2] if part.endswith("a") else [2, 128])
                 for part in ("1_a", "1_b", "2_a", "2_b")},
        "LoRA": factors,
        "DoRA": factors | {f"transformer.{Q}.lora_magnitude_vector": 1 + fill("m", [128]).abs()},
    }[kind]  # fmt: skip
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 3, "transformer.r": 4})}
    source = write(tmp_path / "x.safetensors", tensors, header)
    path = convert_lora(source, tmp_path / "y.safetensors", "comfyui")
    assert_same(changes(base, (path, 0.7)), changes(base, (source, 0.7)))


def test_conversion_to_diffusers_folds_alphas_into_the_factors(tmp_path: Path, base: ComponentWeights) -> None:
    tensors = pair(f"diffusion_model.{Q}", Q, alpha=3) | {f"diffusion_model.{Q}.diff_b": fill("b", [128])}
    source = write(tmp_path / "x.safetensors", tensors)
    path = convert_lora(source, tmp_path / "y.safetensors", "diffusers")
    assert set(load_file(path)) == {
        f"transformer.blocks.0.attn1.to_q.{it}" for it in ("lora_A.weight", "lora_B.weight", "lora_B.bias")
    }
    assert_same(changes(base, (path, 0.7)), changes(base, (source, 0.7)))
    back = convert_lora(path, tmp_path / "z.safetensors", "comfyui")
    assert_same(changes(base, (back, 0.7)), changes(base, (source, 0.7)))
    with pytest.raises(RequestError, match=r"changes by its \w+, for which diffusers has no name"):
        convert_lora(write(tmp_path / "all.safetensors", everything()), tmp_path / "no.safetensors", "diffusers")
    odd = write(tmp_path / "odd.safetensors", tensors | {"lora_te_x.alpha": torch.tensor(1.0)})
    with pytest.raises(RequestError, match="also holds 1 modules of no Wan transformer"):
        convert_lora(odd, tmp_path / "no.safetensors", "comfyui")
    assert not (tmp_path / "no.safetensors").exists()


def test_several_loras_become_one_exactly(tmp_path: Path, base: ComponentWeights) -> None:
    first = write(
        tmp_path / "a.safetensors", pair(f"diffusion_model.{Q}", Q) | {f"diffusion_model.{Q}.diff_b": fill("b", [128])}
    )
    second = write(tmp_path / "b.safetensors", pair(Q, "other", rank=2, alpha=None) | pair(FFN, FFN, inner=96) | {
        f"{Q}.diff_b": fill("c", [128])
    })  # fmt: skip
    loras = [(first, 0.5), (second, -2.0)]
    made = merge_loras(loras, tmp_path / "both.safetensors")
    assert (made.modules, made.kept) == (2, None)
    assert inspect_lora(made.path).ranks == {4: 1, 6: 1}
    assert_same(changes(base, (made.path, 1.0)), changes(base, *loras))
    again = [it["strength"] for it in json.loads(inspect_lora(made.path).metadata["cygnet.lora"])["from"]]
    assert again == [0.5, -2.0]


def test_a_sum_may_be_cut_to_a_rank(tmp_path: Path, base: ComponentWeights) -> None:
    kronecker = {f"{Q}.lokr_w1": fill("w1", [8, 8]), f"{Q}.lokr_w2": fill("w2", [16, 16])}
    loras = [(write(tmp_path / "a.safetensors", pair(Q, Q)), 1.0),
             (write(tmp_path / "b.safetensors", kronecker), 0.1)]  # fmt: skip
    with pytest.raises(RequestError, match="--rank"):
        merge_loras(loras, tmp_path / "both.safetensors")
    wanted = changes(base, *loras)[f"{Q}.weight"]
    made = merge_loras(loras, tmp_path / "both.safetensors", rank=16)
    got = changes(base, (made.path, 1.0))[f"{Q}.weight"]
    assert made.kept == pytest.approx(1 - float((got - wanted).square().sum() / wanted.square().sum()), abs=1e-4)
    assert made.kept == pytest.approx(
        float(torch.linalg.svdvals(wanted)[:16].square().sum() / wanted.square().sum()), abs=1e-4
    )
    dora = write(tmp_path / "d.safetensors", pair(Q, Q) | {f"{Q}.dora_scale": torch.ones(128, 1)})
    with pytest.raises(RequestError, match="depends on the model's own weights"):
        merge_loras([(dora, 1.0)], tmp_path / "no.safetensors", rank=4)
    other = write(tmp_path / "o.safetensors", pair(Q, Q, inner=64))
    with pytest.raises(RequestError, match="different models"):
        merge_loras([loras[0], (other, 1.0)], tmp_path / "no.safetensors")
    with pytest.raises(RequestError, match="rank is 0"):
        merge_loras(loras, tmp_path / "no.safetensors", rank=0)
    with pytest.raises(RequestError, match="strength"):
        merge_loras([(loras[0][0], float("nan"))], tmp_path / "no.safetensors")


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"lora_A.weight": torch.ones(4, 8), "lora_B.weight": torch.ones(8, 3)}, "product is no matrix"),
        ({"lora_A.weight": torch.ones(4), "lora_B.weight": torch.ones(8, 4)}, "product is no matrix"),
        ({"lora_A.weight": torch.ones(4, 0), "lora_B.weight": torch.ones(8, 4)}, "product is no matrix"),
        ({"lora_A.weight": torch.full((4, 8), torch.inf), "lora_B.weight": torch.ones(8, 4)}, "NaN or infinity"),
        ({"diff_b": torch.ones(8), "lora_A.weight": torch.ones(4, 8), "lora_B.weight": torch.ones(8, 4),
          "lora_B.bias": torch.ones(1)}, "different models"),
    ],
)  # fmt: skip
def test_damaged_loras_are_not_merged(
    tmp_path: Path, parts: dict[str, torch.Tensor], words: str, rank: int | None
) -> None:
    damaged = write(tmp_path / "x.safetensors", {f"{Q}.{name}": value for name, value in parts.items()})
    with pytest.raises(RequestError, match=words):
        merge_loras([(damaged, 1.0)], tmp_path / "no.safetensors", rank=rank)
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("number", [10**400, -(10**400)], ids=["large", "negative"])
def test_a_scale_of_hundreds_of_digits_is_refused(tmp_path: Path, number: int) -> None:
    for noted in ({"lora_alpha": number}, {"r": number}, {"alpha_pattern": {Q: number}}):
        header = {"lora_adapter_metadata": json.dumps(noted)}
        path = write(tmp_path / "x.safetensors", pair(Q, Q, alpha=None), header)
        with pytest.raises(WeightFileError, match="are numbers above 0"):
            inspect_lora(path)


def test_a_model_is_written_with_loras_in_it_and_says_so(tmp_path: Path, base: ComponentWeights) -> None:
    lora = write(tmp_path / "x.safetensors", everything())
    patched = with_loras(base, [(lora, 0.5)])
    path = merge_into_model(patched, tmp_path / "merged.safetensors")
    merged = read_component(path)
    assert merged.config == base.config
    for name in base.names():
        assert torch.equal(merged.tensor(name), patched.tensor(name)), name
    said = json.loads(merged.file.metadata["cygnet.merged"])
    assert said["loras"][0]["strength"] == 0.5
    assert len(said["loras"][0]["digest"]) >= 32
    assert said["base"]["files"] == ["dit.safetensors"]
    half = merge_into_model(patched, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    assert read_component(half).infos[f"{Q}.weight"].dtype == "bfloat16"
    with pytest.raises(OutputError, match="exists"):
        merge_into_model(patched, path)
    with pytest.raises(OutputError, match="make the folder nowhere first"):
        merge_into_model(patched, tmp_path / "nowhere" / "x.safetensors")


def test_the_difference_of_two_models_becomes_a_lora(tmp_path: Path, base: ComponentWeights) -> None:
    state = {name: base.tensor(name).clone() for name in base.names()}
    state[f"{Q}.weight"] += fill("u", [128, 6]) @ fill("v", [6, 128])
    state[f"{FFN}.bias"] += 0.5
    state["blocks.1.modulation"] += fill("m", [1, 6, 128])
    state["head.modulation"] += 0.25
    state["patch_embedding.weight"] *= 1.5
    tuned = read_component(save_official(tmp_path / "tuned.safetensors", state, dit_config("t2v")))
    made = extract_lora(base, tuned, tmp_path / "x.safetensors", rank=8)
    assert made.kept > 1 - 1e-9
    assert (made.modules, made.unchanged) == (5, len(state) - 5)
    merged = with_loras(base, [(made.path, 1.0)])
    for name, value in state.items():
        assert relative_l2(merged.tensor(name), value) < 1e-5, name
    cut = extract_lora(base, tuned, tmp_path / "y.safetensors", rank=3)
    delta = state[f"{Q}.weight"] - base.tensor(f"{Q}.weight")
    best = float(torch.linalg.svdvals(delta)[:3].square().sum() / delta.square().sum())
    assert cut.worst[0] == (Q, pytest.approx(best, abs=1e-4))
    assert cut.worst[0][1] < cut.kept < 1
    with pytest.raises(RequestError, match="do not differ"):
        extract_lora(base, base, tmp_path / "z.safetensors", rank=3)
    other = dit_config("i2v")
    with pytest.raises(StateMismatchError, match="give two models of one architecture"):
        extract_lora(base, read_component(save_official(tmp_path / "i.safetensors", state_of(other), other)),
                     tmp_path / "z.safetensors", rank=3)  # fmt: skip


def test_large_matrices_are_cut_nearly_as_well_as_small_ones() -> None:
    torch.manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(600, 600))[0] * (0.9 ** torch.arange(600.0))
    cut = truncated(matrix, 16)
    best = float(torch.linalg.svdvals(matrix)[16:].square().sum())
    assert cut.lost == pytest.approx(float((matrix - cut.up @ cut.down).square().sum()), rel=1e-3)
    assert best <= cut.lost * (1 + 1e-5) < 1.01 * best
    assert torch.equal(truncated(matrix, 16).up, cut.up), "the same every time"
