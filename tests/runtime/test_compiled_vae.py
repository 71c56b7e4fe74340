"""The VAE's fused passes, compiled for a processor: the very functions that a GPU gets."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.assembly import Execution, build, load_components
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import CausalConv3d, ResidualBlock, Stream
from cygnet.models.vae.model import WanVAE
from cygnet.runtime import compiled_vae
from cygnet.runtime.compile import missing_for_compiling
from cygnet.runtime.compiled_vae import FusedBlock, compile_vae, fuse_passes
from cygnet.runtime.convolution import fit_processor
from random_models import write_model
from support import fill, filled_weights, parameter_shapes, relative_l2

CONFIG = VAEConfig(base_width=8, width_multipliers=(1, 1), temporal_downsample=(True,), residual_blocks=1)
"""Two widths, 8 and 4, and a block with a shortcut: as few functions to compile as can be."""
LATENTS, VIDEO = fill("latents", [1, 16, 5, 3, 4]), fill("video", [1, 3, 9, 6, 8])
FUNCTIONS = 3
"""A norm of each width, and a sum of the width that blocks end in."""

needs_compiler = pytest.mark.skipif(missing_for_compiling("cpu") is not None, reason="there is no compiler")


@functools.cache
def plain() -> WanVAE:
    module = WanVAE(CONFIG)
    module.load_state_dict(filled_weights(parameter_shapes(module)))
    return module.requires_grad_(False).channels_last()


def fused(of: WanVAE | None = None) -> WanVAE:
    return fuse_passes(copy.deepcopy(plain() if of is None else of), "cpu")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch's compiler, which keeps what it makes in a folder of this run."""
    import torch._inductor.config as inductor

    # Headers compiled beforehand pay from a dozen functions on.
    quickly = inductor.patch({"cpp_cache_precompile_headers": False})
    with pytest.MonkeyPatch.context() as patch, quickly:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        torch.compiler.reset()
        yield
    torch.compiler.reset()


def graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@needs_compiler
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_videos_and_latents_are_the_same_to_rounding(dtype: torch.dtype, tolerance: float) -> None:
    network = copy.deepcopy(plain()).to(dtype)
    ours, before = fused(network), graphs()
    for chunk in (1, 3):
        assert relative_l2(ours.decode(LATENTS, chunk=chunk), network.decode(LATENTS, chunk=chunk)) < tolerance
    assert graphs() == before + FUNCTIONS
    assert relative_l2(ours.encode(VIDEO), network.encode(VIDEO)) < tolerance
    assert graphs() == before + FUNCTIONS, "encoding needs the same functions"


@needs_compiler
@pytest.mark.usefixtures("compiler")
def test_no_size_batch_or_second_network_is_compiled_again() -> None:
    ours = fused()
    ours.decode(LATENTS)
    before = graphs()
    both = torch.cat((LATENTS, -LATENTS))
    assert relative_l2(ours.decode(both), plain().decode(both)) < 1e-5
    wide = fill("wide", [2, 16, 4, 7, 5])
    assert relative_l2(fused().decode(wide, chunk=2), plain().decode(wide, chunk=2)) < 1e-5
    assert graphs() == before


@needs_compiler
@pytest.mark.usefixtures("compiler")
def test_the_history_is_that_of_the_plain_way() -> None:
    ours, kept = fused(), (Stream(), Stream())
    for piece in LATENTS.split((1, 2, 2), dim=2):
        for network, stream in zip((ours, plain()), kept, strict=True):
            network.decode_chunk(piece, stream)
        pasts = [
            {name: stream._history[part] for name, part in network.named_modules() if part in stream._history}
            for network, stream in zip((ours, plain()), kept, strict=True)
        ]
        assert pasts[0].keys() == pasts[1].keys()
        assert len(pasts[0]) > 2 * sum(isinstance(part, ResidualBlock) for part in ours.decoder.modules())
        for name, past in pasts[0].items():
            assert relative_l2(past, pasts[1][name]) < 1e-5, name


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the compiler: notes each call of a compiled function and makes it plainly."""
    calls: list[str] = []

    def fake(function: Callable[..., None], **_: Any) -> Callable[..., None]:
        def run(*args: torch.Tensor) -> None:
            calls.append(function.__name__)
            function(*args)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    return calls


def test_a_pass_for_each_norm_and_a_sum_for_each_block(called: list[str]) -> None:
    ours = fused()
    list(ours.decode_chunks(LATENTS[:, :, :1]))
    assert not called, "a first frame alone needs no history, and a third of the products"
    ours.decode(LATENTS, chunk=4)
    blocks = sum(isinstance(part, ResidualBlock) for part in ours.decoder.modules())
    assert called.count("_add_rows") == blocks
    assert called.count("_activate_rows") == 2 * blocks + 1


def test_gradients_and_whole_videos_go_the_plain_way(called: list[str]) -> None:
    networks = [fused(), copy.deepcopy(plain())]
    for network in networks:
        network.requires_grad_(True)
        network.reconstruct(network.posterior(VIDEO)[0]).square().mean().backward()
    with torch.no_grad():
        assert torch.equal(networks[0].posterior(VIDEO)[0], networks[1].posterior(VIDEO)[0])
    assert not called
    for ours, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_hooks_on_a_block_and_its_shortcut_fire(called: list[str]) -> None:
    ours, seen = fused(), []
    blocks = [part for part in ours.decoder.modules() if isinstance(part, ResidualBlock)]
    (block,) = (part for part in blocks if isinstance(part.shortcut, CausalConv3d))
    block.register_forward_hook(lambda *_: seen.append("block"))
    block.shortcut.register_forward_hook(lambda *_: seen.append("shortcut"))
    ours.decode(LATENTS, chunk=4)
    assert called
    assert seen == ["shortcut", "block"] * 2


def test_on_another_device_than_they_were_compiled_for_the_plain_way_is_taken(called: list[str]) -> None:
    ours = fuse_passes(fit_processor(copy.deepcopy(plain())), "cuda")
    assert torch.equal(ours.decode(LATENTS), fit_processor(copy.deepcopy(plain())).decode(LATENTS))
    assert not called


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_a_copy_of_what_has_run_compiles_for_itself(copied: Callable[[WanVAE], WanVAE], called: list[str]) -> None:
    ours = fused()
    wanted = ours.decode(LATENTS)
    calls, other = called.copy(), copied(ours)
    assert is_fused(other)
    assert torch.equal(other.decode(LATENTS), wanted)
    assert called == calls * 2


@pytest.mark.parametrize("good", range(4))
def test_a_compiler_that_fails_is_left_alone_after_one_line(
    good: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever in a block it does so after some ``good`` calls, nothing is lost or added twice."""
    from torch._dynamo.exc import Unsupported

    tried: list[int] = []

    def fake(function: Callable[..., None], **_: Any) -> Callable[..., None]:
        def run(*args: torch.Tensor) -> None:
            tried.append(1)
            if len(tried) > good:
                raise Unsupported("no such operator")
            function(*args)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    ours = fused()
    with caplog.at_level(logging.WARNING, "cygnet"):
        assert relative_l2(ours.decode(LATENTS), plain().decode(LATENTS)) < 1e-5
        assert torch.equal(ours.decode(LATENTS), plain().decode(LATENTS))
    assert len(tried) == good + 1
    assert caplog.text.count("the VAE runs uncompiled, for the compiler failed: no such operator") == 1


def is_fused(vae: WanVAE) -> bool:
    return any(isinstance(part.forward, FusedBlock) for part in vae.modules())


def test_it_is_for_a_gpu_with_a_compiler_and_for_those_who_ask(
    called: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(compiled_vae, "missing_for_compiling", lambda _: None)
    assert is_fused(compile_vae(copy.deepcopy(plain()), True, gpu))
    assert not is_fused(compile_vae(copy.deepcopy(plain()), "auto", gpu))
    assert not is_fused(compile_vae(copy.deepcopy(plain()), False, gpu))
    assert not is_fused(compile_vae(copy.deepcopy(plain()), True, cpu))
    assert not caplog.text
    monkeypatch.setattr(compiled_vae, "missing_for_compiling", lambda _: "the package triton is not installed")
    with caplog.at_level(logging.WARNING, "cygnet"):
        assert not is_fused(compile_vae(copy.deepcopy(plain()), True, gpu))
    assert "the VAE is not compiled: the package triton is not installed" in caplog.text
    assert not called


@pytest.mark.parametrize("mode", [True, False, "auto"])
def test_a_loaded_autoencoder_is_set_up_as_chosen(mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(vae: WanVAE, *chosen: Any) -> WanVAE:
        asked.append(chosen)
        return vae

    monkeypatch.setattr(build, "compile_vae", note)
    model = load_components(write_model(tmp_path), device="cpu", dtype="float32", execution=Execution(compile=mode))
    with model.components.use_vae():
        assert asked == [(mode, torch.device("cpu"))]
