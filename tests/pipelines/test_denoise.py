from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cygnet.errors import Cancelled, NumericalError, RequestError
from cygnet.models.dit.model import DiT
from cygnet.ops.attention import sdpa
from cygnet.pipelines.conditioning import Conditioning
from cygnet.pipelines.denoise import Guidance, GuidedVelocity, Sampling, all_finite, denoise, make_noise
from cygnet.types import CancelToken, Progress
from random_models import dit_config, state_of
from support import fill, relative_l2


class CountingDiT(DiT):
    """Counts its evaluations, and can be told to do something before one."""

    forwards = 0
    prepared = 0
    batches: Sequence[int] = ()
    before: Any = None

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        self.prepared += 1
        return super().prepare(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.forwards += 1
        self.batches = [*self.batches, len(args[2].blocks[0].k)]
        if self.before is not None:
            self.before(self.forwards)
        return super().forward(*args, **kwargs)


def network() -> CountingDiT:
    dit = CountingDiT(dit_config("t2v"))
    dit.load_state_dict(state_of(dit_config("t2v")))
    return dit.requires_grad_(False)


NOISE = make_noise((2, 4, 4), 16, seed=1)
CONDITIONING = Conditioning(context=fill("c", [1, 5, 32]), negative_context=fill("n", [1, 3, 32]))


def run(dit: DiT, steps: int = 4, scale: float = 5.0, until: float = 1.0, **options: Any) -> torch.Tensor:
    sampling = Sampling(solver="euler", num_steps=steps, shift=3.0)
    return denoise(dit, NOISE, CONDITIONING, sampling, Guidance(scale=scale, until=until), **options)


def test_prompts_are_prepared_once_and_both_are_answered_by_one_evaluation_per_step() -> None:
    dit = network()
    run(dit)
    assert (dit.prepared, dit.forwards) == (2, 4)


def test_many_tokens_are_worked_on_one_prompt_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[int] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
        largest.append(max(q.shape[0], k.shape[0]))
        return sdpa(q, k, v, *rest)

    dit = DiT(dit_config("t2v"), attention)
    dit.load_state_dict(state_of(dit_config("t2v")))
    dit.requires_grad_(False)
    together = run(dit)
    assert max(largest) == 2
    largest.clear()
    monkeypatch.setattr("cygnet.pipelines.denoise.TOKENS_AT_ONCE", 0)
    assert relative_l2(run(dit), together) < 1e-5
    assert max(largest) == 1


def test_guidance_of_one_asks_once_per_step_and_needs_no_negative_prompt() -> None:
    dit = network()
    alone = Conditioning(context=CONDITIONING.context)
    denoise(dit, NOISE, alone, Sampling(solver="euler", num_steps=4, shift=3.0), Guidance(scale=1.0))
    assert (dit.prepared, dit.forwards) == (1, 4)


def test_guidance_stops_after_its_share_of_the_steps() -> None:
    dit = network()
    run(dit, until=0.5)
    assert dit.forwards == 4
    assert dit.batches == [2, 2, 1, 1]


def test_after_its_end_guidance_may_add_again_what_it_added_last() -> None:
    dit = network()
    velocity = GuidedVelocity(dit, CONDITIONING, 4, Guidance(scale=5.0, until=0.5, rest="reuse"), CancelToken())
    prompt = GuidedVelocity(dit, CONDITIONING, 4, Guidance(scale=1.0), CancelToken())
    timesteps = [torch.tensor(value) for value in (900.0, 700.0, 500.0)]
    with torch.no_grad():
        answers, alone = ([], [])
        for step, timestep in enumerate(timesteps):
            velocity.step = step
            answers.append(velocity(NOISE, timestep))
            alone.append(prompt(NOISE, timestep))
    added = answers[1] - alone[1]
    assert relative_l2(answers[2], alone[2] + added) < 1e-5
    assert relative_l2(answers[2], alone[2]) > 1e-2


def test_guidance_leads_from_the_negative_prompt_through_the_prompt() -> None:
    dit = network()
    alone = {
        name: denoise(
            dit,
            NOISE,
            Conditioning(context=context),
            Sampling(solver="euler", num_steps=1, shift=3.0),
            Guidance(scale=1.0),
        )
        for name, context in (("prompt", CONDITIONING.context), ("negative", CONDITIONING.negative_context))
        if context is not None
    }
    expected = alone["negative"] + 5.0 * (alone["prompt"] - alone["negative"])  # one Euler step is linear
    assert relative_l2(run(dit, steps=1), expected) < 1e-5


def test_progress_is_reported_before_the_first_and_after_each_step() -> None:
    seen: list[Progress] = []
    run(network(), on_progress=seen.append)
    assert [(p.phase, p.step, p.total) for p in seen] == [("denoise", step, 4) for step in range(5)]


def test_a_cancelled_run_stops_inside_the_evaluation_before_the_next_block() -> None:
    dit, token = network(), CancelToken()
    reached: list[tuple[int, int]] = []
    for number, block in enumerate(dit.blocks):
        block.register_forward_hook(lambda *_, number=number: reached.append((dit.forwards, number)))
    dit.blocks[0].register_forward_hook(lambda *_: token.cancel() if dit.forwards == 3 else None)
    with pytest.raises(Cancelled):
        run(dit, cancel=token)
    assert reached[-1] == (3, 0), "the second block of the third evaluation was not begun"
    assert not any(module._forward_pre_hooks for module in dit.modules())


def test_a_stop_does_not_reach_another_run_of_the_same_network() -> None:
    dit, token = network(), CancelToken()
    plain = run(dit)
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        if threading.current_thread() is other:
            inside.set()
            go_on.wait(20)

    ended: list[str] = []

    def stopped() -> None:
        try:
            run(dit, cancel=token)
        except Cancelled:
            ended.append("stopped")

    other = threading.Thread(target=stopped)
    hook = dit.blocks[0].register_forward_hook(hold)
    other.start()
    assert inside.wait(20)
    token.cancel()
    assert torch.equal(run(dit), plain)
    go_on.set()
    other.join(20)
    hook.remove()
    assert ended == ["stopped"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.1.ffn.2.weight", "blocks.1.ffn.2"),
        ("text_embedding.0.bias", "text_embedding.0"),
        ("head.head.weight", "head.head"),
        ("blocks.0.self_attn.norm_k.weight", "blocks.0.self_attn.norm_k"),
    ],
)
def test_a_damaged_weight_stops_the_run_and_is_named_with_step_and_layer(name: str, part: str) -> None:
    dit = network()
    dit.get_parameter(name).view(-1)[0] = torch.nan
    with pytest.raises(NumericalError) as caught:
        run(dit)
    message = str(caught.value)
    assert message.startswith("step 1 of 4: ")
    assert f"first appears in {part}," in message
    assert repr(name) in message
    assert "fetch it again" in message


def test_a_damaged_modulation_is_named_though_it_belongs_to_no_layer() -> None:
    dit = network()
    dit.get_parameter("blocks.1.modulation").view(-1)[0] = torch.inf
    with pytest.raises(NumericalError, match=r"blocks\.1\..* weight 'blocks\.1\.modulation'"):
        run(dit)


def test_an_overflow_of_finite_weights_names_layer_and_dtype() -> None:
    dit = network()
    dit.get_parameter("blocks.1.self_attn.o.weight").fill_(3e38)
    with pytest.raises(NumericalError, match=r"first appears in blocks\.1\.self_attn\.o, computed in float32"):
        run(dit)


def test_nan_at_a_later_step_names_that_step() -> None:
    dit = network()

    def damage(count: int) -> None:
        if count == 3:
            dit.get_parameter("blocks.0.ffn.0.bias")[0] = torch.nan

    dit.before = damage
    with pytest.raises(NumericalError, match=r"^step 3 of 4: "):
        run(dit)


def test_no_hook_stays_on_the_network_after_a_failure() -> None:
    dit = network()
    dit.get_parameter("head.head.weight").fill_(torch.nan)
    with pytest.raises(NumericalError):
        run(dit)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dit.modules())


def test_a_seed_means_the_same_noise_and_another_seed_other_noise() -> None:
    again, other = make_noise((2, 4, 4), 16, seed=1), make_noise((2, 4, 4), 16, seed=2)
    assert torch.equal(NOISE, again)
    assert not torch.equal(NOISE, other)
    assert NOISE.shape == (1, 16, 2, 4, 4)
    assert NOISE.dtype == torch.float32


def test_noise_is_the_plain_stream_of_a_cpu_generator() -> None:
    expected = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(NOISE[0], expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_noise_of_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="use 'cpu'"):
        make_noise((1, 2, 2), 16, seed=1, device="cuda")


def test_sigmas_of_a_started_schedule_begin_where_it_starts() -> None:
    whole = Sampling(solver="unipc", num_steps=10, shift=5.0)
    late = Sampling(solver="unipc", num_steps=10, shift=5.0, start_step=7)
    assert late.sigmas == whole.sigmas[7:]
    assert late.steps_made == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_that_is_no_number_is_found_and_large_ones_are_none(dtype: torch.dtype) -> None:
    x = torch.full((3, 50), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(x), "their sum is beyond the type"
    for bad in (float("nan"), float("inf"), -float("inf")):
        x[1, 7] = bad
        assert not all_finite(x)
    x[1, 7], x[2, 7] = float("inf"), -float("inf")
    assert not all_finite(x)
