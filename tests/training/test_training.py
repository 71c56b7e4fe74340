"""What training promises: nothing lost at a stop, nothing lost at an extension, and statistics that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.errors import NumericalError, RequestError
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT, initialise
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.training.extend import extend_to_images
from cygnet.training.flow import Batch, FlowMatching
from cygnet.training.loop import Schedule, train_flow
from cygnet.training.optimizers import KernelMuon
from cygnet.training.state import Average, Run, newest_state
from cygnet.training.vae import VAELoss, fold_statistics
from cygnet.training.vae import initialise as initialise_vae
from support import relative_l2

SMALL = DiTConfig(variant="t2v", dim=128, ffn_dim=128, num_heads=1, num_layers=1, in_channels=16, text_dim=24)
SHORT = Schedule(steps=6, warmup=2, log_every=2, save_every=2)


def fresh() -> DiT:
    torch.manual_seed(0)
    dit = DiT(SMALL)
    initialise(dit)
    return dit


def state(folder: Path) -> dict[str, Any]:
    found = newest_state(folder)
    assert found is not None
    return found


def draw(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(torch.randn(4, 16, 1, 4, 4, generator=generator) * 0.1 + 1, torch.randn(4, 5, 24, generator=generator))


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = train_flow(fresh(), draw, SHORT, tmp_path / "whole", objective=FlowMatching())

    def interrupted(step: int) -> Batch:
        if step == 5:
            raise KeyboardInterrupt
        return draw(step)

    with pytest.raises(KeyboardInterrupt):
        train_flow(fresh(), interrupted, SHORT, tmp_path / "broken", objective=FlowMatching())
    again = train_flow(fresh(), draw, SHORT, tmp_path / "broken", objective=FlowMatching())
    for (name, one), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_resumed_training_takes_the_rates_that_are_asked_for_now(tmp_path: Path) -> None:
    train_flow(fresh(), draw, replace(SHORT, steps=4), tmp_path, objective=FlowMatching())
    still = replace(SHORT, matrix_rate=0.0, other_rate=0.0, average=0.0)
    before = state(tmp_path)["dit"]
    after = train_flow(fresh(), draw, still, tmp_path, objective=FlowMatching())
    for name, value in after.named_parameters():
        assert torch.equal(value, before[name]), name


def test_a_checkpoint_that_kept_less_is_refused_and_left_alone(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    run = Run(tmp_path / "run", step=3)
    run.save({"layer": layer})
    with pytest.raises(RequestError, match="lacks average; choose another output"):
        Run(tmp_path / "run").resume({"layer": layer, "average": Average(layer, 0.9)})
    assert Run(tmp_path / "run").resume({"layer": layer})


def test_a_broken_gradient_stops_before_anything_is_saved(tmp_path: Path) -> None:
    def poisoned(step: int) -> Batch:
        batch = draw(step)
        return replace(batch, latents=batch.latents * float("nan")) if step == 3 else batch

    with pytest.raises(NumericalError, match="step 3"):
        train_flow(fresh(), poisoned, SHORT, tmp_path, objective=FlowMatching())
    assert state(tmp_path)["step"] == 2


def test_training_learns(tmp_path: Path) -> None:
    torch.manual_seed(9)
    objective, batch = FlowMatching(), draw(0)

    def loss(dit: DiT) -> float:
        with torch.no_grad():
            torch.manual_seed(3)
            return float(torch.stack([objective(dit, batch.latents, batch.context) for _ in range(8)]).mean())

    before = loss(fresh())
    longer = replace(SHORT, steps=60, average=0.9)
    assert loss(train_flow(fresh(), draw, longer, tmp_path, objective=objective)) < 0.8 * before


def test_noise_levels_lie_inside_and_shift_moves_them_up() -> None:
    torch.manual_seed(0)
    plain, shifted = FlowMatching(shift=1.0).levels(4000), FlowMatching(shift=3.0).levels(4000)
    assert 0 < float(plain.min()) < float(plain.max()) < 1
    assert abs(float(plain.median()) - 0.5) < 0.01
    assert abs(float(shifted.median()) - 0.75) < 0.01


def test_an_extended_transformer_starts_as_the_one_it_came_from() -> None:
    t2v = fresh()
    torch.nn.init.normal_(t2v.head.head.weight, std=0.1)
    i2v = extend_to_images(t2v, replace(SMALL, variant="i2v", in_channels=36, image_dim=48))
    torch.manual_seed(1)
    x, t, context = torch.randn(2, 16, 2, 4, 4), torch.tensor([900.0, 100.0]), torch.randn(2, 5, 24)
    with torch.no_grad():
        given = i2v(x, t, context, torch.randn(2, 17, 48), torch.randn(2, 20, 2, 4, 4))
        assert relative_l2(given, t2v(x, t, context)) < 1e-6


@pytest.mark.parametrize("other", [{"ffn_dim": 256}, {"eps": 1e-5}, {"text_length": 256}])
def test_an_extension_of_another_kind_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="but for variant, in_channels and the image fields"):
        extend_to_images(fresh(), replace(SMALL, variant="i2v", in_channels=36, image_dim=48, **other))


@pytest.fixture(scope="module")
def small_vae() -> WanVAE:
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(base_width=4))
    initialise_vae(vae)
    return vae


def test_a_fresh_vae_repeats_frames_and_sees_no_motion(small_vae: WanVAE) -> None:
    still = torch.rand(1, 3, 1, 16, 16).expand(1, 3, 9, 16, 16) * 2 - 1
    with torch.no_grad():
        raw = small_vae.posterior(still)[0]
        frames = small_vae.reconstruct(raw)
    assert torch.allclose(raw, raw[:, :, :1].expand_as(raw), atol=1e-5)
    assert torch.allclose(frames, frames[:, :, :1].expand_as(frames), atol=1e-5)


def test_folded_statistics_fit_and_change_no_picture(small_vae: WanVAE) -> None:
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        raw = small_vae.posterior(video)[0]
        before = small_vae.reconstruct(raw)
        rows = raw.transpose(0, 1).flatten(1)
        folded = WanVAE(small_vae.config)
        folded.load_state_dict(small_vae.state_dict())
        fold_statistics(folded, rows.mean(dim=1), rows.std(dim=1))
        latents = folded.encode(video)
        after = folded.reconstruct(folded.denormalise(latents))
    rows = latents.transpose(0, 1).flatten(1)
    assert torch.allclose(rows.mean(dim=1), torch.zeros(16), atol=1e-3)
    assert torch.allclose(rows.std(dim=1), torch.ones(16), atol=1e-3)
    assert relative_l2(after, before) < 1e-4


def test_the_vae_loss_is_least_for_a_perfect_picture(small_vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with monkeypatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(small_vae, "reconstruct", lambda raw: video)
        perfect = VAELoss()(small_vae, video)[0]
        patch.setattr(small_vae, "reconstruct", lambda raw: video + 0.01)
        assert float(perfect.detach()) < float(VAELoss()(small_vae, video)[0].detach())


def test_the_vae_loss_reaches_every_weight(small_vae: WanVAE) -> None:
    loss, parts = VAELoss()(small_vae, torch.rand(1, 3, 5, 16, 16) * 2 - 1)
    loss.backward()
    assert set(parts) == {"l1", "edges", "kl", "mse"}
    assert all(p.grad is not None for p in small_vae.decoder.parameters())
    small_vae.zero_grad()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_muon_updates_a_kernel_as_it_would_its_matrix(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3, 3).contiguous(memory_format=layout))
    axes = (0, 2, 3, 4, 1) if layout == torch.channels_last_3d else (0, 1, 2, 3, 4)
    matrix = torch.nn.Parameter(kernel.detach().permute(axes).flatten(1).clone())
    grad = torch.randn(8, 4, 3, 3, 3)
    kernel.grad, matrix.grad = grad.clone(), grad.permute(axes).flatten(1).clone()
    KernelMuon([kernel], lr=0.1, weight_decay=0.01).step()
    torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw").step()
    assert torch.allclose(kernel.permute(axes).flatten(1), matrix, atol=1e-6)


def test_muon_refuses_a_kernel_that_it_could_not_update_in_place() -> None:
    strided = torch.nn.Parameter(torch.randn(8, 4, 3, 3, 6)[..., ::2])
    with pytest.raises(ValueError, match="not dense"):
        KernelMuon([strided], lr=0.1, weight_decay=0.0)
