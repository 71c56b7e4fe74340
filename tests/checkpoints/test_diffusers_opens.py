"""Diffusers and transformers open what cygnet saves, whole, and cygnet reads what they save."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.checkpoints import ComponentConfig, read_component, save_diffusers_component, save_diffusers_pipeline
from cygnet.checkpoints.detect import PUBLISHED
from cygnet.checkpoints.diffusers_config import COMPONENT_FILES, component_config, in_diffusers
from cygnet.checkpoints.layouts import key_map
from cygnet.checkpoints.saving import component_of
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.model import WanVAE
from weight_samples import pipeline_parts, sample_config, sample_state

pytestmark = pytest.mark.oracle

CLASSES = {
    "t2v": ("diffusers", "WanTransformer3DModel"),
    "i2v": ("diffusers", "WanTransformer3DModel"),
    "flf2v": ("diffusers", "WanTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "umt5": ("transformers", "UMT5EncoderModel"),
    "clip": ("transformers", "CLIPVisionModelWithProjection"),
}


def _is_foreign(config: ComponentConfig) -> bool:
    return isinstance(config, DiTConfig) and not in_diffusers(config)


BUILD: dict[str, Callable[[Any], torch.nn.Module]] = {
    "dit": DiT,
    "vae": WanVAE,
    "text_encoder": UMT5Encoder,
    "image_encoder": CLIPVision,
}


def _tiny_tokenizer() -> bytes:
    import sentencepiece

    words = ["a", "red", "blue", "ball", "star", "moves", "spins", "left", "right", "on", "black", "background"]
    chooser = random.Random(0)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(chooser.choices(words, k=8)) for _ in range(300)),
        model_writer=out, vocab_size=100, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
    )  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize("sample", CLASSES)
def test_a_saved_component_opens_whole_and_comes_back_bit_for_bit(tmp_path: Path, sample: str) -> None:
    library: Any = pytest.importorskip(CLASSES[sample][0])
    state = sample_state(sample)
    folder = save_diffusers_component(tmp_path / "ours", state, sample_config(sample))
    opened, report = getattr(library, CLASSES[sample][1]).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    opened.save_pretrained(tmp_path / "theirs")
    back = read_component(tmp_path / "theirs")
    assert back.config == sample_config(sample)
    assert set(back.names()) == set(state)
    assert all(back.tensor(name).equal(value) for name, value in state.items())


@pytest.mark.parametrize("dit", ["t2v", "i2v", "flf2v"])
def test_a_saved_pipeline_opens(tmp_path: Path, dit: str) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    tokenizer = _tiny_tokenizer()
    folder = save_diffusers_pipeline(tmp_path / "p", pipeline_parts(dit), tokenizer=tokenizer, flow_shift=3.0)
    kind = diffusers.WanPipeline if dit == "t2v" else diffusers.WanImageToVideoPipeline
    pipeline = kind.from_pretrained(folder)
    assert pipeline.scheduler.config.flow_shift == 3.0
    assert torch.equal(pipeline.vae.quant_conv.weight, sample_state("vae")["conv1.weight"])
    import sentencepiece

    ids = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).encode("a red ball moves left")
    assert pipeline.tokenizer("a red ball moves left").input_ids == [*ids, 1]


@pytest.mark.parametrize("name", [name for name, it in PUBLISHED.items() if not _is_foreign(it)])
def test_full_size_names_and_shapes_are_those_of_the_other_library(name: str) -> None:
    config = PUBLISHED[name]
    component = component_of(config)
    sample = {"dit": "t2v", "vae": "vae", "text_encoder": "umt5", "image_encoder": "clip"}[component]
    library: Any = pytest.importorskip(CLASSES[sample][0])
    build = getattr(library, component_config(config).get("_class_name", CLASSES[sample][1]))
    fields = {key: value for key, value in component_config(config).items() if not key.startswith("_")}
    with torch.device("meta"):
        other = build(build.config_class(**fields)) if hasattr(build, "config_class") else build(**fields)
        ours = BUILD[component](config)
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    layout = COMPONENT_FILES[component].layout
    names = key_map(component, layout, shapes)
    # Modules of transformers 5 lack a segment that its files have; tied duplicates are not in files.
    theirs = {_as_in_files(key): tuple(value.shape) for key, value in other.state_dict().items()}
    theirs.pop("encoder.embed_tokens.weight", None)
    mapped = {}
    for key, shape in shapes.items():
        source = names.from_official(key)
        if source.how == "stack":
            shape = (shape[0] // len(source.names), *shape[1:])
        elif source.how == "transpose":
            shape = shape[::-1]
        elif source.how == "lift":
            shape = tuple(size for size in shape if size > 1)
        mapped |= dict.fromkeys(source.names, shape)
    assert mapped == theirs


def _as_in_files(name: str) -> str:
    bare = name.startswith(("embeddings.", "pre_layrnorm.", "encoder.layers.", "post_layernorm."))
    return f"vision_model.{name}" if bare else name
