"""What the control nodes attach, and that the sampler hands it to the network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cygnet.checkpoints import save_official
from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.errors import RequestError, StateMismatchError
from cygnet.graph.folders import Folders
from cygnet.models.dit.config import Variant
from cygnet.nodes import camera, control, grids, loaders, sampling
from cygnet.nodes.conditioning import Conditioning
from cygnet.nodes.workshop import FileHandle, ModelHandle, Workshop
from cygnet.pipelines.denoise import Guidance, SkippedLayers, guided_from_fitted, respread
from random_models import CLIP, CONDITIONS, dit_config, state_of, takes_pictures

VAE = FileHandle(EMBEDDED / "vae.safetensors")
SIZE = (64, 32, 9)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(Folders.below(tmp_path))


def text() -> Conditioning:
    return [[torch.zeros(1, 2, 32), {"kept": 1}]]


def vace(shop: Workshop, prompt: Conditioning, **given: Any) -> Any:
    it: Any = control.WanVaceToVideo.bind(shop)()
    return it.run(prompt, text(), VAE, *SIZE, 1, 0.5, **given)


def test_without_a_video_all_is_to_be_made(shop: Workshop) -> None:
    positive, negative, latent, trim = vace(shop, text())
    extras = positive[0][1]
    assert trim == 0
    assert latent["samples"].shape == (1, 16, 3, 4, 8)
    assert extras["vace_frames"][0].shape == (1, 32, 3, 4, 8)
    assert torch.equal(extras["vace_mask"][0], torch.ones(1, 64, 3, 4, 8))
    assert extras["vace_strength"] == negative[0][1]["vace_strength"] == [0.5]
    assert torch.allclose(*extras["vace_frames"][0].chunk(2, dim=1)), "both halves are grey"


def test_a_reference_stands_before_the_video_and_is_to_be_trimmed(shop: Workshop) -> None:
    positive, _, latent, trim = vace(shop, text(), reference_image=torch.rand(2, 40, 40, 3))
    frames, mask = positive[0][1]["vace_frames"][0], positive[0][1]["vace_mask"][0]
    assert trim == 1
    assert latent["samples"].shape == frames[:, :16].shape == (1, 16, 4, 4, 8)
    assert float(sampling.normalised(frames)[:, 16:, 0].abs().max()) < 1e-6
    assert mask[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1]


def test_a_short_control_video_is_continued_by_grey_to_be_made(shop: Workshop) -> None:
    masks = torch.zeros(5, 32, 64)
    positive, _, _, _ = vace(shop, text(), control_video=torch.rand(5, 32, 64, 3), control_masks=masks)
    mask = positive[0][1]["vace_mask"][0]
    assert mask[0, 0, :, 0, 0].tolist() == [0, 0, 1]


def test_controls_are_chained_and_their_inputs_left_alone(shop: Workshop) -> None:
    once, _, _, _ = vace(shop, text())
    twice, _, _, _ = vace(shop, once)
    assert [len(it[0][1]["vace_frames"]) for it in (once, twice)] == [1, 2]
    assert twice[0][1]["kept"] == 1


def test_a_mask_becomes_the_pixels_of_its_cells() -> None:
    mask = torch.zeros(1, 16, 8, 1)
    mask[0, 3, 5] = 1
    cells = control.mask_cells(mask, 1)
    assert cells.shape == (1, 64, 1, 2, 1)
    assert cells[0, :, 0, 0, 0].nonzero().tolist() == [[8 * 3 + 5]]


def test_a_control_video_and_a_start_picture_lie_side_by_side(shop: Workshop) -> None:
    it: Any = control.WanFunControlToVideo.bind(shop)()
    positive, _, latent = it.run(text(), text(), VAE, *SIZE, 2, start_image=torch.rand(1, 32, 64, 3))
    beside = sampling.given_frames(positive[0][1], 32, latent["samples"][:1])
    assert beside.shape == (1, 32, 3, 4, 8)
    assert float(beside[:, :16].abs().max()) < 1e-6
    assert float(beside[:, 16:, 1:].abs().max()) < 1e-6
    assert float(beside[:, 16:, 0].abs().max()) > 0.1


def test_a_standing_camera_sees_along_the_same_rays(shop: Workshop) -> None:
    it: Any = camera.WanCameraEmbedding.bind(shop)()
    rays, width, height, length = it.run("Static", 64, 32, 9)
    assert (width, height, length) == (64, 32, 9)
    assert rays.shape == (1, 24, 3, 32, 64)
    assert torch.equal(rays[:, :, 0], rays[:, :, 2])
    assert float(rays[:, :12].abs().max()) == 0, "rays through the origin have no moment"
    directions = rays[0, 12::4, 0]
    assert torch.allclose(directions.norm(dim=0), torch.ones(32, 64))
    assert float(directions[2].min()) > 0


def test_the_first_frame_fills_the_first_latent_frame() -> None:
    rays = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 1, 6)
    folded = camera.fold_frames(rays)
    assert folded[0, :4, 0, 0, 0].tolist() == [0, 0, 0, 0]
    assert folded[0, :4, 1, 0, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "point", "where"),
    [("Pan Right", (0, 0, 0), (0.75, 0, 0)), ("Zoom In", (0, 0, 0), (0, 0, 1.5)), ("Pan Up", (0, 0, 0), (0, -0.75, 0))],
)
def test_a_path_leads_where_its_name_says(path: str, point: tuple[float, ...], where: tuple[float, ...]) -> None:
    last = camera.poses(path, 2, 1.0)[1]
    assert (last @ torch.tensor([*point, 1.0], dtype=torch.float64))[:3].tolist() == pytest.approx(where)


def test_a_clockwise_camera_turns_by_its_share_of_sixty_degrees() -> None:
    turned = camera.poses("ClockWise (CW)", 4, 2.0)[2]
    assert math.atan2(float(turned[1, 0]), float(turned[0, 0])) == pytest.approx(math.pi / 3)


def test_a_wide_frame_shortens_the_rays_to_the_sides(shop: Workshop) -> None:
    it: Any = camera.WanCameraEmbedding.bind(shop)()
    square, wide = it.run("Static", 64, 64, 1)[0], it.run("Static", 128, 64, 1)[0]
    # fx grows by (H * 16/9) / W in the square; fy by W / (16/9) / H in the wide one.
    edge = square[0, 12::4, 0, 32, -1]
    assert float(edge[0] / edge[2]) == pytest.approx((63.5 - 32) / (0.5 * 64 * 16 / 9), rel=1e-5)
    edge = wide[0, 12::4, 0, -1, 64]
    assert float(edge[1] / edge[2]) == pytest.approx((63.5 - 32) / (0.5 * 64 * 128 * 9 / 16 / 64), rel=1e-5)


# Through the sampler


def sample(shop: Workshop, model: ModelHandle, positive: Conditioning, latent: Any) -> torch.Tensor:
    it: Any = sampling.KSampler.bind(shop)()
    return it.run(model, 1, 2, 2.0, "euler", "simple", positive, positive, latent)[0]["samples"]  # type: ignore[no-any-return]


def saved(tmp_path: Path, variant: Variant) -> ModelHandle:
    config = dit_config(variant)
    return ModelHandle(save_official(tmp_path / f"{variant}.safetensors", state_of(config), config))


@pytest.mark.parametrize("variant", ["vace", "control", "camera", "i2v"])
def test_the_sampler_hands_on_what_the_nodes_attach(shop: Workshop, tmp_path: Path, variant: Variant) -> None:
    prompt = text()
    if takes_pictures(variant):
        prompt[0][1]["clip_vision_output"] = torch.rand(1, CLIP.num_tokens, CLIP.dim)
    picture = torch.rand(1, 32, 64, 3)
    latent: Any
    if variant == "vace":
        steered, _, latent, _ = vace(shop, prompt, control_video=picture)
    elif variant == "control":
        it: Any = control.WanFunControlToVideo.bind(shop)()
        steered, _, latent = it.run(prompt, prompt, VAE, *SIZE, 1, control_video=picture)
    elif variant == "camera":
        it = camera.WanCameraImageToVideo.bind(shop)()
        rays = torch.rand(1, 24, 3, 32, 64)
        steered, _, latent = it.run(prompt, prompt, VAE, *SIZE, 1, camera_conditions=rays)
    else:
        it = control.WanFunInpaintToVideo.bind(shop)()
        steered, _, latent = it.run(
            positive=prompt, negative=prompt, vae=VAE, width=64, height=32, length=9, batch_size=1, start_image=picture
        )
    model = saved(tmp_path, variant)
    assert not torch.equal(sample(shop, model, steered, latent), sample(shop, model, prompt, latent))


@pytest.mark.parametrize("variant", ["vace", "control", "camera", "i2v"])
def test_sizes_off_the_grids_are_taken_by_every_kind_of_steering(
    shop: Workshop, tmp_path: Path, variant: Variant
) -> None:
    prompt, size = text(), {"width": 76, "height": 44, "length": 5, "batch_size": 1}
    if takes_pictures(variant):
        prompt[0][1]["clip_vision_output"] = torch.rand(1, CLIP.num_tokens, CLIP.dim)
    picture = torch.rand(1, 50, 90, 3)
    given = {"positive": prompt, "negative": prompt, "vae": VAE, **size}
    it: Any
    if variant == "vace":
        it = control.WanVaceToVideo.bind(shop)()
        found = it.run(**given, strength=1.0, control_video=picture, control_masks=torch.ones(1, 50, 90))
    elif variant == "control":
        it = control.WanFunControlToVideo.bind(shop)()
        found = it.run(**given, control_video=picture)
    elif variant == "camera":
        seen: Any = camera.WanCameraEmbedding.bind(shop)()
        rays = seen.run("Pan Up", 76, 44, 5)[0]
        it = camera.WanCameraImageToVideo.bind(shop)()
        found = it.run(**given, start_image=picture, camera_conditions=rays)
    else:
        it = control.WanFunInpaintToVideo.bind(shop)()
        found = it.run(**given, start_image=picture, end_image=picture)
    made = sample(shop, saved(tmp_path, variant), found[0], found[2])
    assert made.shape == (1, 16, 2, 5, 9)
    assert bool(made.isfinite().all())


def test_latents_of_odd_sides_are_continued_around_their_edges() -> None:
    rows = torch.arange(2 * 3 * 5.0).view(1, 1, 2, 3, 5)
    whole = grids.whole_patches(rows, (1, 2, 2))
    assert whole.shape == (1, 1, 2, 4, 6)
    assert torch.equal(whole[..., :3, :5], rows)
    assert torch.equal(whole[..., 3, :5], rows[..., 0, :])
    assert torch.equal(whole[..., :3, 5], rows[..., 0])
    assert grids.whole_patches(rows[..., :2, :4], (1, 2, 2)).shape == (1, 1, 2, 2, 4)


def test_what_fills_no_cell_is_cut_off_evenly_and_a_picture_without_any_is_refused() -> None:
    picture = torch.arange(20 * 27.0).view(1, 20, 27, 1)
    assert torch.equal(grids.whole_cells(picture), picture[:, 2:18, 1:25])
    with pytest.raises(RequestError, match="7x20 pixels; the VAE takes 8x8"):
        grids.whole_cells(torch.zeros(1, 20, 7, 3))


def test_conditioning_of_another_size_or_model_is_refused(shop: Workshop, tmp_path: Path) -> None:
    it: Any = control.WanFunControlToVideo.bind(shop)()
    prompt = text()
    steered, _, latent = it.run(prompt, prompt, VAE, *SIZE, 1, control_video=torch.rand(1, 32, 64, 3))
    with pytest.raises(RequestError, match="take both from the same node"):
        sampling.given_frames(steered[0][1], 32, torch.zeros(1, 16, 2, 4, 8))
    with pytest.raises(RequestError, match="has 32 channels and this model takes 20"):
        sampling.given_frames(steered[0][1], CONDITIONS["i2v"], latent["samples"])


# Guidance


def test_fitted_guidance_of_parallel_answers_is_scaled_alone() -> None:
    torch.manual_seed(0)
    x, answer = torch.randn(1, 16, 1, 2, 2), torch.randn(1, 16, 1, 2, 2)
    # The negative fits wholly: what is left is the prompt's own answer, and the share of the latents.
    joined = guided_from_fitted(x, 0.5, answer, answer / 2, 3.0)
    estimate = x - 0.5 * joined
    expected = 2 * (x - 0.5 * answer / 2) + 3 * ((x - 0.5 * answer) - 2 * (x - 0.5 * answer / 2))
    assert torch.allclose(estimate, expected, atol=1e-4)


def test_equal_answers_are_guided_nowhere() -> None:
    x, answer = torch.randn(1, 16, 1, 2, 2), torch.randn(1, 16, 1, 2, 2)
    assert torch.allclose(guided_from_fitted(x, 0.5, answer, answer, 6.0), answer, atol=1e-5)


def test_rescaling_wholly_gives_the_spread_of_the_prompts_own_estimate() -> None:
    torch.manual_seed(0)
    x, answer, guided = (torch.randn(1, 16, 2, 4, 4) for _ in range(3))
    out = x - 0.5 * respread(x, 0.5, guided, answer, 1.0)
    assert float(out.std()) == pytest.approx(float((x - 0.5 * answer).std()), rel=1e-5)
    assert torch.allclose(respread(x, 0.5, guided, answer, 0.0), guided, atol=1e-5)


def test_layers_are_skipped_between_their_shares_of_the_sampling_only(shop: Workshop) -> None:
    it: Any = sampling.SkipLayerGuidanceDiT.bind(shop)()
    plain = ModelHandle(Path("x"), shift=8.0)
    patched = it.run(plain, "1, 7", "3", 3.0, 0.0, 0.5)[0]
    assert patched.skip == SkippedLayers(blocks=frozenset({1, 7}), scale=3.0, start=1.0, end=pytest.approx(8 / 9))
    assert it.run(plain, "", "3", 3.0, 0.0, 0.5)[0] is plain
    assert it.run(plain, "1", "", 0.0, 0.0, 0.5)[0] is plain


def test_skipping_moves_the_result_away_from_what_fewer_blocks_give(shop: Workshop, tmp_path: Path) -> None:
    model, prompt = saved(tmp_path, "t2v"), text()
    latent = {"samples": torch.zeros(1, 16, 3, 4, 8)}
    before = sample(shop, model, prompt, latent)
    skip = SkippedLayers(blocks=frozenset({1}), scale=2.0, start=1.0, end=0.99)
    assert not torch.equal(sample(shop, replace(model, skip=skip), prompt, latent), before)
    never = replace(skip, start=0.4, end=0.3)
    assert torch.equal(sample(shop, replace(model, skip=never), prompt, latent), before)


def test_a_handle_says_how_answers_are_joined() -> None:
    assert ModelHandle(Path("x"), zero_star=True).guidance(5.0) == Guidance(scale=5.0, zero_star=True)


@pytest.mark.parametrize("kind", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_matrices_are_rounded_to_the_stored_type_that_is_asked_for(tmp_path: Path, kind: str) -> None:
    (tmp_path / "dits").mkdir()
    path = saved(tmp_path / "dits", "t2v").path
    shop = Workshop(Folders.below(tmp_path / "studio"), models={"diffusion_models": (path.parent,)})
    it: Any = loaders.UNETLoader.bind(shop)()
    plain, rounded = (shop.dit(it.run(path.name, choice)[0]) for choice in ("default", kind))
    eight_bit = torch.float8_e5m2 if "e5m2" in kind else torch.float8_e4m3fn
    before, after = plain.blocks[0].ffn[0].weight, rounded.blocks[0].ffn[0].stored
    assert after.dtype == eight_bit
    assert torch.equal(after.float(), before.to(eight_bit).float())
    assert not torch.equal(after.to(before.dtype), before)
    assert torch.equal(plain.head.head.weight, rounded.head.head.weight)


def test_a_lora_is_merged_when_the_model_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    shop = Workshop(Folders.below(tmp_path / "studio"), models={"loras": (folder,)})
    model, prompt = saved(tmp_path, "t2v"), text()
    delta = {"blocks.0.self_attn.v.diff": torch.randn(128, 128), "blocks.0.self_attn.v.diff_b": torch.randn(128)}
    save_file(delta, folder / "style.safetensors")
    it: Any = loaders.LoraLoader.bind(shop)()
    clip = FileHandle(tmp_path / "text.safetensors")
    patched, same = it.run(model, clip, "style.safetensors", 0.5, 1.0)
    assert same is clip
    assert it.run(model, clip, "style.safetensors", 0.0, 1.0)[0] is model
    assert "style.safetensors" in it.INPUT_TYPES()["required"]["lora_name"][0]
    before = shop.dit(model).blocks[0].self_attn.v.weight.clone()
    after = shop.dit(patched).blocks[0].self_attn.v.weight
    assert torch.allclose((after - before).float(), 0.5 * delta["blocks.0.self_attn.v.diff"], atol=0.02)
    assert len(shop._loaded) == 1, "one merge of a file is kept, not every one"
    latent = {"samples": torch.zeros(1, 16, 3, 4, 8)}
    assert not torch.equal(sample(shop, patched, prompt, latent), sample(shop, model, prompt, latent))


def test_a_workflow_takes_what_fits_of_a_lora_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    shop = Workshop(Folders.below(tmp_path / "studio"), models={"loras": (folder,)})
    model = saved(tmp_path, "t2v")
    names = [f"blocks.{number}.self_attn.v" for number in (0, 50, 51)]
    save_file({f"diffusion_model.{name}.diff": torch.ones(128, 128) for name in names}, folder / "deep.safetensors")
    it: Any = loaders.LoraLoaderModelOnly.bind(shop)()
    with caplog.at_level("WARNING"):
        shop.dit(it.run(model, "deep.safetensors", 1.0)[0])
    [told] = [record.message for record in caplog.records]
    assert "1 of 3 modules matched; 2 modules skipped" in told
    assert "less than half" in told
    save_file({f"{names[1]}.diff": torch.ones(128, 128)}, folder / "none.safetensors")
    with pytest.raises(StateMismatchError, match="0 of 1 modules matched"):
        shop.dit(it.run(model, "none.safetensors", 1.0)[0])
