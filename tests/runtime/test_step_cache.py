"""Steps without the blocks: what is kept, when it is used, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cygnet.errors import RequestError
from cygnet.models.dit.config import I2V_14B, T2V_1_3B, T2V_14B, VACE_14B, Variant
from cygnet.models.dit.control import VaceContext
from cygnet.models.dit.model import DiT
from cygnet.pipelines.conditioning import Conditioning
from cygnet.pipelines.denoise import Guidance, GuidedVelocity, Sampling, SkippedLayers, denoise, make_noise
from cygnet.runtime.cache_policies import (
    Calibration,
    EasyCache,
    Evaluation,
    MagCache,
    TeaCache,
    fitted,
    nearest,
    polynomial,
)
from cygnet.runtime.cache_tables import coefficients, magnitude_ratios
from cygnet.runtime.eight_bit import EightBitLinear
from cygnet.runtime.step_cache import StepCache, make_step_cache
from cygnet.runtime.streaming import MatrixStream
from cygnet.types import CancelToken, StepCaching
from random_models import dit_config, state_of
from support import fill, relative_l2

NOISE = make_noise((2, 4, 4), 16, seed=1)
CONDITIONING = Conditioning(context=fill("c", [1, 5, 32]), negative_context=fill("n", [1, 3, 32]))
ALWAYS = 9.0
"""A threshold that nothing reaches: whatever is not forced is skipped."""


def network(variant: Variant = "t2v") -> DiT:
    dit = DiT(dit_config(variant))
    dit.load_state_dict(state_of(dit_config(variant)))
    return dit.requires_grad_(False)


def blocks_run(dit: DiT) -> list[int]:
    """Counts the runs of the first block from now on, in place."""
    count = [0]

    def one_more(*_: Any) -> None:
        count[0] += 1

    dit.blocks[0].register_forward_pre_hook(one_more)
    return count


def run(dit: DiT, cache: StepCache | None, steps: int = 8, conditioning: Any = CONDITIONING, **guidance: Any) -> Any:
    sampling = Sampling(solver="euler", num_steps=steps, shift=3.0)
    return denoise(dit, NOISE, conditioning, sampling, Guidance(**{"scale": 5.0, **guidance}), cache=cache)


def easy(steps: int = 8, **wish: Any) -> StepCache:
    wished = StepCaching(policy="easy", **wish)
    return make_step_cache(dit_config("t2v"), wished, num_steps=steps)


def test_a_threshold_of_nothing_skips_nothing_and_changes_no_bit() -> None:
    dit = network()
    cache = easy(threshold=0.0)
    assert torch.equal(run(dit, cache), run(dit, None))
    assert (cache.skipped, cache.evaluations) == (0, 8)


def test_skipped_steps_run_no_block_and_the_first_and_last_are_computed() -> None:
    dit = network()
    exact = run(dit, None)
    count = blocks_run(dit)
    cache = easy(threshold=ALWAYS)
    steps: list[int] = []
    dit.blocks[0].register_forward_pre_hook(lambda *_: steps.append(cache.evaluations))
    cached = run(dit, cache)
    # Two first steps of eight are always computed, and the rate of change is known after the second.
    assert steps == [1, 2, 8]
    assert (count[0], cache.skipped) == (3, 5)
    assert 0 < relative_l2(cached, exact) < 0.5


@pytest.mark.parametrize("at_once", [4096, 0])
def test_the_kept_sums_stand_for_the_blocks(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.pipelines.denoise.TOKENS_AT_ONCE", at_once)
    dit = network()
    cache = StepCache(EasyCache(ALWAYS, rate=0.0), total=8)
    velocity = GuidedVelocity(dit, CONDITIONING, 8, Guidance(scale=5.0), CancelToken(), cache)
    timestep = torch.tensor(700.0)
    computed = velocity(NOISE, timestep)
    velocity.step = 1
    answered = velocity(NOISE, timestep)
    assert (cache.skipped, cache.evaluations) == (1, 2)
    assert relative_l2(answered, computed) < 1e-5
    assert relative_l2(velocity(2 * NOISE, timestep), computed) > 1e-3, "the rest of the network sees the new latents"


def test_after_guidance_ends_the_prompts_own_sum_is_used() -> None:
    dit = network()
    cache = easy(threshold=ALWAYS)
    count = blocks_run(dit)
    run(dit, cache, until=0.5)
    assert (count[0], cache.skipped) == (3, 5)


def test_a_guided_step_after_one_of_the_prompt_alone_is_computed() -> None:
    dit = network()
    cache = StepCache(EasyCache(ALWAYS, rate=0.0), total=8)
    timestep = torch.tensor(700.0)
    for step, rows in enumerate((1, 2)):
        cache.begin(dit, NOISE, timestep, step, rows=rows)
        context = torch.cat([fill("c", [1, 5, 32])] * rows)
        cache.ask(dit, lambda *, without_blocks, context=context: dit(NOISE, timestep[None], dit.prepare(context)))  # type: ignore[misc]
    assert cache.skipped == 0


def test_control_branches_are_left_out_with_the_blocks() -> None:
    dit = network("vace")
    control = VaceContext(fill("v", [1, 96, 2, 4, 4]))
    conditioning = Conditioning(
        context=CONDITIONING.context, negative_context=CONDITIONING.negative_context, vace=(control,)
    )
    cache = StepCache(EasyCache(ALWAYS, rate=0.0), total=8)
    velocity = GuidedVelocity(dit, conditioning, 8, Guidance(scale=5.0), CancelToken(), cache)
    computed = velocity(NOISE, torch.tensor(700.0))
    velocity.step = 1
    hints: list[int] = []
    dit.vace_blocks[0].register_forward_pre_hook(lambda *_: hints.append(1))
    assert relative_l2(velocity(NOISE, torch.tensor(700.0)), computed) < 1e-5
    assert (cache.skipped, hints) == (1, [])


def test_steps_of_skip_layer_guidance_are_computed() -> None:
    dit = network()
    cache = easy(threshold=ALWAYS)
    run(dit, cache, skip=SkippedLayers(blocks=frozenset({1}), scale=1.0))
    assert cache.skipped == 0


def test_no_more_than_so_many_steps_in_a_row_are_skipped() -> None:
    dit = network()
    cache = easy(threshold=ALWAYS, most=1)
    steps: list[int] = []
    dit.blocks[0].register_forward_pre_hook(lambda *_: steps.append(cache.evaluations))
    run(dit, cache)
    assert steps == [1, 2, 4, 6, 8]


def test_nothing_is_skipped_outside_the_noise_levels() -> None:
    cache = easy(threshold=ALWAYS, first=0.0, sigmas=(0.9, 0.6))
    computed: list[float] = []
    dit = network()
    sampling = Sampling(solver="euler", num_steps=8, shift=3.0)
    hooks = dit.blocks[0].register_forward_pre_hook(lambda *_: computed.append(sampling.sigmas[cache.evaluations - 1]))
    run(dit, cache)
    hooks.remove()
    expected = [sigma for sigma in sampling.sigmas[:-1] if not 0.6 < sigma <= 0.9]
    assert computed == expected
    assert cache.skipped > 0


def test_a_streamed_network_reads_nothing_for_a_skipped_step() -> None:
    state = state_of(dit_config("t2v"))
    plain, streamed = network(), network()
    read: list[str] = []

    def fetch(name: str) -> torch.Tensor:
        read.append(name)
        return state[name].clone()

    stream = MatrixStream(streamed, ("blocks",), fetch, ahead_bytes=1)
    try:
        cached = run(streamed, easy(threshold=ALWAYS))
    finally:
        stream.close()
    assert torch.equal(cached, run(plain, easy(threshold=ALWAYS)))
    steps_read = read.count("blocks.0.ffn.0.weight")
    assert steps_read <= 4, "three computed steps, and one read ahead"


def test_eight_bit_layers_are_cached_alike() -> None:
    dit = network()
    for block in dit.blocks:
        linear = block.ffn[0]
        block.ffn[0] = EightBitLinear(linear.weight.to(torch.float8_e4m3fn), None, linear.bias)
    cache = easy(threshold=ALWAYS)
    assert torch.isfinite(run(dit, cache)).all()
    assert cache.skipped == 5


def test_hooks_are_gone_after_a_run_and_after_a_failure() -> None:
    dit = network()
    cache = easy(threshold=ALWAYS)
    run(dit, cache)

    def fail(*, without_blocks: bool) -> torch.Tensor:
        raise InterruptedError

    cache.begin(dit, NOISE, torch.tensor(500.0), 3, rows=1, exact=True)
    with pytest.raises(InterruptedError):
        cache.ask(dit, fail)
    assert not dit.head._forward_pre_hooks
    assert not dit.blocks[0]._forward_pre_hooks


# The rules -----------------------------------------------------------------------------------------------------------


def coming(number: int, x: float = 0.0, time: float = 1.0, total: int = 10) -> Evaluation:
    return Evaluation(number, total, torch.full((2,), x), torch.full((1, 3), time))


def test_easycache_adds_up_the_change_that_the_last_rate_lets_expect() -> None:
    policy, residual = EasyCache(0.25), torch.zeros(1, 1, 1)
    answers = {0: 1.0, 1: 1.2}
    for number, v in answers.items():
        assert not policy.may_skip(coming(number, x=0.1 * number), forced=True)
        policy.answered(coming(number, x=0.1 * number), torch.full((2,), v), residual)
    assert policy.rate == pytest.approx(2.0)  # |1.2 - 1| / |0.1 - 0|
    assert policy.may_skip(coming(2, x=0.2), forced=False)  # 2 * 0.1 / 1.2 = 0.167 < 0.25
    policy.answered(coming(2, x=0.2), torch.full((2,), 1.25), None)
    assert not policy.may_skip(coming(3, x=0.3), forced=False)  # and 2 * 0.1 / 1.25 more is 0.327
    assert policy.expected == 0


def test_magcache_follows_the_ratios_and_begins_anew_after_each_computed_step() -> None:
    policy = MagCache(0.09, [1.0, 0.99, 0.95, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    # 0.01; 0.01 + |1 - 0.99 * 0.95| = 0.0695; with 0.9 more far above 0.09, and so is 0.1 alone.
    said = [policy.may_skip(coming(number), forced=number == 0) for number in range(5)]
    assert said == [False, True, True, False, False]


def test_a_table_of_another_length_is_read_at_the_nearest_step() -> None:
    assert [nearest([1.0, 2.0, 3.0, 4.0, 5.0], number, 3) for number in range(3)] == [1.0, 3.0, 5.0]
    assert nearest([1.0, 2.0], 0, 1) == 2.0


def test_teacache_rescales_the_change_of_the_time_embedding() -> None:
    policy = TeaCache(0.3, (2.0, 0.0))  # twice the change
    said = [policy.may_skip(coming(number, time=time), forced=number == 0) for number, time in enumerate((1, 1.1, 1.2))]
    assert said == [False, True, False]  # 0.2; then 0.2 + 2 * 0.1 / 1.1


def test_a_calibration_skips_nothing_and_finds_ratios_and_a_polynomial() -> None:
    dit = network()
    cache = make_step_cache(dit.config, StepCaching(policy="calibrate"), num_steps=8)
    assert torch.equal(run(dit, cache), run(dit, None))
    tables = cache.tables()
    assert (cache.skipped, len(tables["mag"]), len(tables["tea"])) == (0, 8, 5)
    assert tables["mag"][0] == 1
    mag = make_step_cache(dit.config, StepCaching(policy="mag", table=tuple(tables["mag"])), num_steps=8)
    run(dit, mag)
    assert mag.skipped > 0


def test_a_calibration_measures_the_lengths_of_the_sums_token_by_token() -> None:
    policy = Calibration()
    for number, residual in enumerate((torch.ones(1, 2, 4), torch.tensor([0.5, 1.5])[None, :, None].expand(1, 2, 4))):
        policy.answered(coming(number, time=1 + number), torch.ones(1), residual)
    assert policy.ratios == [1.0, 1.0]
    assert policy.changes == [(1.0, 0.0)]


def test_a_fitted_polynomial_is_the_one_that_made_the_values() -> None:
    made = (3e3, -1e3, 2e2, -8.0, 0.1)
    found = fitted([(x / 100, polynomial(made, x / 100)) for x in range(1, 12)])
    assert found == pytest.approx(made, rel=1e-6)


# What was published --------------------------------------------------------------------------------------------------


def test_published_tables_are_chosen_by_architecture_and_size() -> None:
    small, large = 832 * 480, 1280 * 720
    assert coefficients(T2V_1_3B, small) == coefficients(T2V_1_3B, large)
    assert coefficients(I2V_14B, small) != coefficients(I2V_14B, large)
    tables = [magnitude_ratios(*case) for case in ((T2V_1_3B, 1), (T2V_14B, 1), (I2V_14B, small), (I2V_14B, large))]
    assert [len(table or ()) for table in tables] == [50, 50, 40, 40]
    assert all(table is not None and table[0] == 1 and 0.8 < min(table) <= max(table) < 1.03 for table in tables)
    assert coefficients(VACE_14B, small) is None


def test_the_published_ratios_save_what_was_published() -> None:
    # MagCache's page: 2.8 times as fast on T2V-14B with a threshold of 0.24 and at most 6 in a row, 50 steps.
    cache = make_step_cache(T2V_14B, StepCaching(policy="mag", threshold=0.24, most=6), num_steps=50)
    in_a_row = computed = 0
    for number in range(50):
        forced = number < cache.always_first or number == 49 or in_a_row == 6
        skipped = cache.policy.may_skip(coming(number, total=50), forced=forced) and not forced
        in_a_row = in_a_row + 1 if skipped else 0
        computed += not skipped
    assert 50 / computed == pytest.approx(2.8, abs=0.05)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (StepCaching(policy="mag"), "no magnitude ratios were published.*calibrate"),
        (StepCaching(policy="tea"), "no coefficients were published.*calibrate"),
        (StepCaching(policy="tea", table=(1.0, 0.0)), "no published threshold.*tea:0.1"),
    ],
)
def test_models_without_published_tables_are_told_what_to_do(wish: StepCaching, words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        make_step_cache(dit_config("t2v"), wish, num_steps=8)
    assert error.value.field == "cache"


def test_published_defaults_are_taken_and_can_be_overridden() -> None:
    tea = make_step_cache(T2V_14B, StepCaching(policy="tea"), num_steps=50)
    assert isinstance(tea.policy, TeaCache)
    assert (tea.policy.threshold, tea.always_first) == (0.15, 1)
    mag = make_step_cache(T2V_14B, StepCaching(policy="mag", threshold=0.24, most=6), num_steps=50)
    assert isinstance(mag.policy, MagCache)
    assert (mag.policy.threshold, mag.most, mag.always_first) == (0.24, 6, 10)
