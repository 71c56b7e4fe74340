"""What is timed on a GPU: steps of the transformers, the VAE, the text encoder, a whole video in four steps.

A *step* is one denoising step with classifier-free guidance: two evaluations, the prompt's and the negative's. Ours
runs through the pipeline's own :class:`~cygnet.pipelines.denoise.GuidedVelocity`; the peer's as its pipeline does it,
two calls with the text padded to 512 rows. Weights are seeded; both sides share memory where the dtype is the same.
"""

from __future__ import annotations

import collections
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from benchmarks.gpu.peers import peer_of, tuned_transformer, tuned_vae
from benchmarks.gpu.timing import DEVICE, Row, compare, timed
from benchmarks.measure import relative_error
from benchmarks.seeded import seeded
from cygnet.models.dit.config import T2V_1_3B, T2V_14B, DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5_XXL
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import Conditioning, image_condition
from cygnet.pipelines.denoise import Guidance, GuidedVelocity, Sampling, denoise
from cygnet.pipelines.tiles import decode_chunks
from cygnet.runtime.block_swap import BlockSwap
from cygnet.runtime.compiled_vae import compile_vae
from cygnet.runtime.execution import Execution
from cygnet.types import CancelToken, Tiles

BF16 = torch.bfloat16
P480, P720 = (21, 60, 104), (21, 90, 160)
"""Latent grids of 81 frames."""
PROMPT_ROWS, NEGATIVE_ROWS = 30, 126
GUIDANCE = 5.0
HEAD_WIDTH = 128


Left = Callable[[], float]
"""Seconds that are left."""


@dataclass(frozen=True)
class Missing:
    """A side for which there was no time."""

    side: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison; ``seconds`` is about what it takes, compiling included."""

    name: str
    title: str
    seconds: float
    run: Callable[[Left], Iterable[Row | Missing]]


def _latents(grid: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator(DEVICE).manual_seed(1)
    return torch.randn(1, 16, *grid, generator=generator, device=DEVICE)


def _texts() -> Conditioning:
    generator = torch.Generator(DEVICE).manual_seed(2)
    rows = (PROMPT_ROWS, NEGATIVE_ROWS)
    prompt, negative = (torch.randn(1, n, 4096, generator=generator, device=DEVICE) for n in rows)
    return Conditioning(context=prompt, negative_context=negative)


def our_step(dit: DiT, grid: tuple[int, int, int], execution: Execution) -> Callable[[], torch.Tensor]:
    """One step as the pipeline makes it."""
    execution.apply(dit, torch.device(DEVICE), HEAD_WIDTH, ("blocks",))
    velocity = GuidedVelocity(dit, _texts(), 50, Guidance(scale=GUIDANCE), CancelToken())
    velocity.watched = True  # the pipeline's first evaluation looks for NaN part by part; the other 99 do not
    latents, timestep = _latents(grid), torch.tensor(700.0, device=DEVICE)
    return lambda: velocity(latents, timestep)


def peer_step(peer: Any, grid: tuple[int, int, int]) -> Callable[[], torch.Tensor]:
    """One step as the peer's pipeline makes it."""
    texts = _texts()
    assert texts.negative_context is not None

    def padded(context: torch.Tensor) -> torch.Tensor:
        return torch.cat((context, context.new_zeros(1, 512 - context.shape[1], 4096)), dim=1).to(BF16)

    prompt, negative = padded(texts.context), padded(texts.negative_context)
    latents, timestep = _latents(grid).to(BF16), torch.tensor([700.0], device=DEVICE)

    def step() -> torch.Tensor:
        answer = peer(latents, timestep, prompt, return_dict=False)[0]
        opposite = peer(latents, timestep, negative, return_dict=False)[0]
        guided: torch.Tensor = opposite + GUIDANCE * (answer - opposite)
        return guided

    return step


def _dit(config: DiTConfig) -> DiT:
    return cast(DiT, seeded(DiT, config, BF16, DEVICE))


def steps(
    name: str,
    config: DiTConfig,
    grid: tuple[int, int, int],
    *,
    sides: tuple[str, ...],
    rounds: int,
    scale: float = 1.0,
    side_seconds: float,
    left: Left,
    targets: dict[str, tuple[float, float]] | None = None,
) -> Iterator[Row | Missing]:
    """Time ``sides`` one after another, so that each one's memory is its own; the answers are compared."""
    answers: dict[str, torch.Tensor] = {}
    for side in sides:
        if left() < side_seconds:
            yield Missing(side, f"{left():.0f} s were left, it takes {side_seconds:.0f}")
            continue
        dit = _dit(config)
        swap: BlockSwap | None = None
        if side == "cygnet, plain":
            work = our_step(dit, grid, Execution(compile=False))
        elif side == "cygnet":
            work = our_step(dit, grid, Execution(compile=True))
        elif side == "cygnet, fp8":
            work = our_step(dit, grid, Execution(compile=True, fp8=True))
        elif side == "cygnet, blocks swapped":
            # As a model is loaded: how it computes first, where its blocks are around that.
            work = our_step(dit, grid, Execution(compile=True))
            dit = dit.cpu()
            torch.cuda.empty_cache()
            swap = BlockSwap(dit, ("blocks",), DEVICE)
        else:
            peer = peer_of(dit, config, BF16)
            del dit
            work = peer_step(tuned_transformer(peer) if side.endswith("tuned") else peer, grid)
        first = timed(lambda work=work, side=side: answers.update({side: work().cpu()}))  # type: ignore[misc]
        error = None if side == sides[0] else relative_error(answers[side], answers[sides[0]])
        (row,) = compare(
            name,
            {side: work},
            rounds=rounds,
            scale=scale,
            targets=targets,
            lossy=("cygnet, fp8",),
            errors={} if error is None else {side: error},
        )
        yield replace(row, first_seconds=first)
        if swap is not None:
            swap.close()
        swap = None
        del work
        dit = peer = None  # type: ignore[assignment]
        release()


def release() -> None:
    """Give back all memory and compiled code of a side."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def vae_decode(_: Left) -> list[Row]:
    """81 frames of 832x480 from latents."""
    latents = _latents(P480)
    ours = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32, DEVICE))
    peer, tuned = peer_of(ours, WAN_VAE, torch.float32), tuned_vae(peer_of(ours, WAN_VAE, BF16))
    half = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32, DEVICE)).decode_in(BF16).channels_last()
    fused = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32, DEVICE)).decode_in(BF16).channels_last()
    compile_vae(fused, True, torch.device(DEVICE))
    ours.channels_last()
    raw = ours.denormalise(latents)

    def work(vae: WanVAE, chunk: int, tiles: Tiles | None = None) -> Callable[[], torch.Tensor]:
        def decode() -> torch.Tensor:
            (last,) = collections.deque(decode_chunks(vae, latents, chunk=chunk, tiles=tiles), maxlen=1)
            return last

        return decode

    sides: dict[str, Callable[[], torch.Tensor]] = {
        "cygnet": work(half, 1),
        "cygnet, fused passes": work(fused, 1),
        "cygnet, 4 latent frames at once": work(half, 4),
        "cygnet, 4 tiles of a frame": work(half, 1, Tiles(width=416, height=240)),
        "cygnet, float32": work(ours, 1),
        "Diffusers, bfloat16, tuned": lambda: tuned.decode(
            raw.to(BF16, memory_format=torch.channels_last_3d), return_dict=False
        )[0][:, :, -4:].float(),
        "Diffusers, float32": lambda: peer.decode(raw, return_dict=False)[0][:, :, -4:],
    }
    reference = sides["cygnet, float32"]()
    errors = {name: relative_error(side()[:, :, -4:], reference) for name, side in sides.items()}
    return compare("vae-decode", sides, rounds=3, targets={"cygnet": (1.4, 0.9)}, errors=errors)


def vae_encode(_: Left) -> list[Row]:
    """81 frames of 832x480 to latents: moving ones, and the condition of image-to-video."""
    ours = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32, DEVICE))
    peer = peer_of(ours, WAN_VAE, torch.float32)
    ours.channels_last()
    generator = torch.Generator(DEVICE).manual_seed(3)
    video = torch.rand(1, 3, 81, 480, 832, generator=generator, device=DEVICE) * 2 - 1
    picture = video[0, :, 0].cpu()
    grey = torch.zeros_like(video)
    grey[:, :, 0] = video[:, :, 0]

    def theirs(frames: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: peer.encode(frames).latent_dist.mode()

    def still() -> torch.Tensor:
        return ours.denormalise(image_condition(ours, picture, num_frames=81, width=832, height=480)[:, 4:])

    moving: dict[str, Callable[[], torch.Tensor]] = {
        "cygnet": lambda: ours.denormalise(ours.encode(video)),
        "Diffusers, float32": theirs(video),
    }
    condition: dict[str, Callable[[], torch.Tensor]] = {"cygnet": still, "Diffusers, float32": theirs(grey)}
    rows = []
    for name, sides in (("vae-encode", moving), ("i2v-condition", condition)):
        error = relative_error(sides["cygnet"](), sides["Diffusers, float32"]())
        rows += compare(name, sides, rounds=2, errors={"cygnet": error})
    return rows


def text(_: Left) -> list[Row]:
    """Prompt and negative prompt through UMT5-XXL; the peer pads both to 512 tokens."""
    model = cast(UMT5Encoder, seeded(UMT5Encoder, UMT5_XXL, BF16, DEVICE))
    peer = peer_of(model, UMT5_XXL, BF16)
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(2, 250_000, (1, n), generator=generator).to(DEVICE) for n in (PROMPT_ROWS, NEGATIVE_ROWS)]
    padded = [torch.cat((each, each.new_zeros(1, 512 - each.shape[1])), dim=1) for each in ids]

    def ours() -> torch.Tensor:
        return torch.cat([model(each) for each in ids], dim=1)

    def theirs() -> torch.Tensor:
        answers = [peer(each, (each != 0).long()).last_hidden_state for each in padded]
        return torch.cat([answer[:, : each.shape[1]] for answer, each in zip(answers, ids, strict=True)], dim=1)

    sides = {"cygnet": ours, "transformers": theirs}
    errors = {"cygnet": relative_error(ours(), theirs())}
    return compare("text", sides, rounds=5, targets={"cygnet": (0.030, 0.010)}, errors=errors)


def four_steps(_: Left) -> list[Row]:
    """A video of 81 frames of 832x480 in four steps without guidance: text, denoising, exact decoding."""
    encoder = cast(UMT5Encoder, seeded(UMT5Encoder, UMT5_XXL, BF16, DEVICE))
    vae = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32, DEVICE)).decode_in(BF16).channels_last()
    dit = _dit(T2V_1_3B)
    Execution(compile=True).apply(dit, torch.device(DEVICE), HEAD_WIDTH, ("blocks",))
    ids = torch.randint(2, 250_000, (1, PROMPT_ROWS), generator=torch.Generator().manual_seed(4)).to(DEVICE)

    def video() -> torch.Tensor:
        conditioning = Conditioning(context=encoder(ids))
        sampling = Sampling(solver="euler", num_steps=4, shift=5.0)
        latents = denoise(dit, _latents(P480), conditioning, sampling, Guidance(scale=1.0))
        frames = latents
        for frames in vae.decode_chunks(latents, chunk=1):
            frames = ((frames + 1) * 127.5).to(torch.uint8).cpu()
        return frames

    return compare("four-steps", {"cygnet": video}, rounds=2)


TUNED, DEFAULT = "Diffusers, tuned", "Diffusers, default"
CASES = (
    Case(
        name="step-1.3b-480p",
        title="T2V-1.3B, 81x832x480, one step",
        seconds=25,
        run=lambda left: steps(
            "step-1.3b-480p",
            T2V_1_3B,
            P480,
            sides=("cygnet", "cygnet, plain", "cygnet, fp8", TUNED, DEFAULT),
            rounds=3,
            side_seconds=25,
            left=left,
            targets={"cygnet": (1.00, 0.92), "cygnet, fp8": (0.80, 0.70)},
        ),
    ),
    Case(name="vae-decode", title="VAE decode, 81x832x480", seconds=55, run=vae_decode),
    Case(name="vae-encode", title="VAE encode, 81x832x480", seconds=20, run=vae_encode),
    Case(name="text", title="UMT5-XXL, prompt and negative prompt", seconds=10, run=text),
    Case(name="four-steps", title="T2V-1.3B, 81x832x480, four steps without guidance", seconds=25, run=four_steps),
    Case(
        name="step-14b-480p",
        title="T2V-14B, 81x832x480, one step",
        seconds=40,
        run=lambda left: steps(
            "step-14b-480p",
            T2V_14B,
            P480,
            sides=("cygnet", TUNED, "cygnet, blocks swapped", "cygnet, fp8", DEFAULT),
            rounds=1,
            side_seconds=40,
            left=left,
            targets={"cygnet": (5.6, 5.1), "cygnet, fp8": (4.4, 3.9)},
        ),
    ),
    Case(
        name="step-14b-720p",
        title="T2V-14B, 81x1280x720, one step (4 of 40 blocks, times 10)",
        seconds=25,
        run=lambda left: steps(
            "step-14b-720p",
            replace(T2V_14B, num_layers=4),
            P720,
            sides=("cygnet", "cygnet, fp8", TUNED),
            rounds=1,
            scale=10,
            side_seconds=25,
            left=left,
            targets={"cygnet": (21.5, 20), "cygnet, fp8": (16, 15)},
        ),
    ),
)
