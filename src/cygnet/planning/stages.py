"""What each stage of a run takes beside weights: the code of the stage itself, run over shapes.

Networks have equal blocks, so two and three of them tell what all take; steps and chunks likewise. The formulas of
:mod:`cygnet.runtime.flops` give the operations.

Legend: ``t h w`` latent grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cygnet.checkpoints import without_weights
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import Conditioning
from cygnet.pipelines.denoise import Guidance, Sampling, denoise
from cygnet.runtime import flops
from cygnet.runtime.attention import choose_attention, use_attention
from cygnet.runtime.calibration import Clock, Rates
from cygnet.runtime.convolution import bands_room, fit_processor
from cygnet.runtime.flops import Work
from cygnet.runtime.trace import Cost, Ledger
from cygnet.types import SolverName

Grid = tuple[int, int, int]
Laps = tuple[Cost, ...]
"""What the first of several equal parts take, one by one: steps of denoising, chunks of frames."""
_FEW, _MORE = 2, 3
"""Blocks of which the costs are taken; what lies between them is one more."""
_STEPS = range(2)
"""Of denoising: the first, in which every part of the network is watched, and one of the others."""
CELLS = 16
"""Latent cells of a side of the picture that the VAE is traced with."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one stage takes beside weights, in the dtype of its network."""

    cost: Cost
    work: tuple[Work, ...]
    passes: int = 1
    """How often the weights are gone through."""
    parked: int = 0
    """Bytes that wait in the host's memory while the device works."""

    def with_room_for(self, size: int) -> Demand:
        """The same with so many bytes more at its peak."""
        return replace(self, cost=replace(self.cost, peak=self.cost.peak + size))

    def and_then(self, other: Demand) -> Demand:
        """Both, one after the other."""
        cost = Cost(
            max(self.cost.peak, other.cost.peak),
            self.cost.moved + other.cost.moved,
            self.cost.kernels + other.cost.kernels,
        )
        parked = max(self.parked, other.parked)
        return Demand(cost=cost, work=self.work + other.work, passes=self.passes + other.passes, parked=parked)


def encode_text(config: UMT5Config, dtype: torch.dtype, tokens: int) -> Demand:
    """One prompt."""

    def laps(blocks: int) -> Laps:
        model = on_meta(UMT5Encoder, replace(config, num_layers=blocks), dtype)

        def run(lap: Callable[[], None]) -> None:
            model(torch.empty(1, tokens, dtype=torch.int64, device="meta"))
            lap()

        return _laps(run)

    return Demand(cost=total_of(over_blocks(laps, config.num_layers), 1), work=tuple(flops.umt5(config, tokens)))


def look_at_pictures(config: CLIPVisionConfig, dtype: torch.dtype, pictures: int) -> Demand:
    """One picture after the other."""

    def laps(blocks: int) -> Laps:
        model = on_meta(CLIPVision, replace(config, num_layers=blocks + 1), dtype)
        side = config.image_size

        def run(lap: Callable[[], None]) -> None:
            model(torch.empty(1, 3, side, side, device="meta", dtype=dtype))
            lap()

        return _laps(run)

    one = over_blocks(laps, config.num_layers - 1)
    return Demand(cost=total_of(one, pictures), work=tuple(flops.clip(config, pictures)), passes=pictures)


def denoise_latents(
    config: DiTConfig,
    dtype: torch.dtype,
    grid: Grid,
    *,
    texts: tuple[int, int],
    image_rows: int,
    solver: SolverName,
    steps: tuple[int, int],
) -> Demand:
    """``steps`` that are guided and that are not; ``texts`` are tokens of prompt and negative prompt."""
    guided, plain = steps
    rows = [min(count + 1, config.text_length) for count in texts]
    tokens = math.prod(grid) // math.prod(config.patch_size)
    work = [*flops.dit_prepare(config, rows[0], image_rows)]
    if guided:
        work += flops.dit_prepare(config, rows[1], image_rows)
    joined = -(-max(rows) // 8) * 8  # see TextKeys.joined
    work += flops.dit_step(config, tokens, joined, image_rows, prompts=2) * guided
    work += flops.dit_step(config, tokens, rows[0], image_rows) * plain
    costs = [
        total_of(_denoise_laps(config, dtype, grid, texts, image_rows, solver, count == 0), number)
        for count, number in ((1, guided), (0, plain))
        if number
    ]
    cost = Cost(max(it.peak for it in costs), sum(it.moved for it in costs), sum(it.kernels for it in costs))
    return Demand(cost=cost, work=tuple(work), passes=guided + plain)


@functools.lru_cache(maxsize=64)
def _denoise_laps(
    config: DiTConfig,
    dtype: torch.dtype,
    grid: Grid,
    texts: tuple[int, int],
    image_rows: int,
    solver: SolverName,
    plain: bool,
) -> Laps:
    def laps(blocks: int) -> Laps:
        dit = on_meta(DiT, replace(config, num_layers=blocks), dtype)

        def run(lap: Callable[[], None]) -> None:
            def made(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
                return torch.empty(1, *shape, device="meta", dtype=kind)

            given = Conditioning(
                context=made(texts[0], config.text_dim, kind=dtype),
                negative_context=None if plain else made(texts[1], config.text_dim, kind=dtype),
                image_context=None if config.image_dim is None else made(image_rows, config.image_dim),
                image_condition=made(config.condition_channels, *grid) if config.condition_channels else None,
            )
            sampling = Sampling(solver=solver, num_steps=len(_STEPS), shift=3.0)
            guidance = Guidance(scale=1.0 if plain else 2.0)
            denoise(dit, made(config.out_channels, *grid), given, sampling, guidance, on_step=lambda _: lap())

        return _laps(run)

    # Those that follow a control have blocks beside the blocks; no command makes plans for them.
    return laps(config.num_layers) if config.vace_layers else over_blocks(laps, config.num_layers)


def decode(config: VAEConfig, dtype: torch.dtype, grid: Grid, chunk: int, *, on_processor: bool = False) -> Demand:
    """``chunk`` latent frames at a time, by the kernels of a processor or of a GPU."""
    frames, rows, columns = grid
    chunk = max(min(chunk, frames - 1), 1)
    laps = _scaled(_decode_laps(config, dtype, chunk, on_processor), rows * columns / CELLS**2)
    cost = total_of(laps, 1 + (frames - 1) / chunk)
    if on_processor:
        cost = replace(cost, peak=cost.peak + bands_room(config, dtype, rows, columns))
    return Demand(cost=cost, work=tuple(flops.vae_decode(config, frames, rows, columns, chunk)))


def encode(
    config: VAEConfig,
    dtype: torch.dtype,
    grid: Grid,
    *,
    grey: bool,
    last: bool = False,
    on_processor: bool = False,
) -> Demand:
    """Frames four at a time; with ``grey`` one picture and then none that change, but with ``last`` the last."""
    frames, rows, columns = grid
    laps = _scaled(_encode_laps(config, dtype, on_processor), rows * columns / CELLS**2)
    work = whole = flops.vae_encode(config, frames, rows, columns)
    if grey:
        windows = vae_on_meta(config, dtype).encoder.windows
        work = flops.vae_encode(config, frames, rows, columns, windows=windows, last=last)
    # What is left out because nothing changes is left out of the time; the first grey frames take all the memory.
    share, cost = flops.total(work) / flops.total(whole), total_of(laps, frames)
    room = bands_room(config, dtype, rows, columns) if on_processor else 0
    return Demand(cost=Cost(cost.peak + room, round(cost.moved * share), round(cost.kernels * share)), work=tuple(work))


@functools.lru_cache(maxsize=32)
def _decode_laps(config: VAEConfig, dtype: torch.dtype, chunk: int, on_processor: bool) -> Laps:
    vae = vae_on_meta(config, dtype, on_processor=on_processor)

    def run(lap: Callable[[], None]) -> None:
        latents = torch.empty(1, config.latent_channels, 1 + 2 * chunk, CELLS, CELLS, device="meta")
        for frames in vae.decode_chunks(latents, chunk=chunk):
            frames.aminmax()
            lap()

    return _laps(run)


@functools.lru_cache(maxsize=32)
def _encode_laps(config: VAEConfig, dtype: torch.dtype, on_processor: bool) -> Laps:
    vae, side = vae_on_meta(config, dtype, on_processor=on_processor), CELLS * config.spatial_stride

    def run(lap: Callable[[], None]) -> None:
        pieces = (torch.empty(1, 3, count, side, side, device="meta") for count in (1, 4, 4))
        for _ in vae.encode_chunks(pieces):
            lap()

    return _laps(run)


def seconds(demand: Demand, rates: Rates, dtype: torch.dtype) -> float:
    """The sum of the parts, without the reading of weights."""
    return rates.seconds(demand.work, dtype) + rates.moving(demand.cost.moved, demand.cost.kernels)


def measured_together(rates: Rates, device: torch.device, clock: Clock) -> dict[str, float]:
    """How much longer small networks take than the sum of their parts, for :attr:`Rates.together`."""
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name, grid = str(dtype).removeprefix("torch."), (3, 24, 24)
        dit = DiTConfig(variant="t2v", dim=512, ffn_dim=2048, num_heads=4, num_layers=2, in_channels=16, text_dim=64)
        text = torch.zeros(1, 20, dit.text_dim, device=device, dtype=dtype)
        network = _random(DiT, dit, dtype, device)
        use_attention(network, choose_attention("auto", device, dtype, dit.dim // dit.num_heads))
        latents = torch.randn(1, 16, *grid, device=device)
        given = Conditioning(context=text, negative_context=text)

        def denoised() -> None:
            sampling = Sampling(solver="unipc", num_steps=2, shift=3.0)
            denoise(network, latents, given, sampling, Guidance(scale=2.0))  # noqa: B023 (called in this turn)

        whole = denoise_latents(dit, dtype, grid, texts=(20, 20), image_rows=0, solver="unipc", steps=(2, 0))
        found[f"dit {name}"] = _fastest(denoised, device, clock) / seconds(whole, rates, dtype)
        vae = VAEConfig(base_width=32)
        decoder, cells = _random(WanVAE, vae, dtype, device).channels_last(), (3, 12, 12)
        on_processor = device.type == "cpu"
        if on_processor:
            fit_processor(decoder)
        noise = torch.randn(1, 16, *cells, device=device)
        shown = decode(vae, dtype, cells, 2, on_processor=on_processor)
        took = _fastest(lambda: decoder.decode(noise, chunk=2), device, clock)  # noqa: B023
        found[f"vae {name}"] = took / seconds(shown, rates, dtype)
    return found


def _fastest(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of the fastest of three runs: the first may be slower, and on a shared machine any."""
    took: list[float] = []
    with torch.no_grad():
        for _ in range(3):
            start = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(clock() - start)
    return min(took)


def _random(kind: Callable[[Any], Any], config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    module = on_meta(kind, config, dtype).to_empty(device=device)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.02)
    return module


# Traces --------------------------------------------------------------------------------------------------------------


def _laps(run: Callable[[Callable[[], None]], object]) -> Laps:
    """Run something that calls its argument after each of its parts; the cost of each part."""
    laps: list[Cost] = []
    with torch.no_grad(), Ledger() as ledger:

        def lap() -> None:
            laps.append(ledger.cost)
            ledger.mark()

        run(lap)
    return tuple(laps)


def over_blocks(laps: Callable[[int], Laps], blocks: int) -> Laps:
    """The laps of a network of so many blocks, from those of two and three."""
    if blocks <= _MORE:
        return laps(blocks)
    pairs = zip(laps(_FEW), laps(_MORE), strict=True)
    return tuple(more.beyond(few, blocks - _MORE) for few, more in pairs)


def total_of(laps: Laps, count: float) -> Cost:
    """The cost of ``count`` laps, of which those that were not run are like the last one."""
    shares = [min(max(count - number, 0.0), 1.0) for number in range(len(laps))]
    shares[-1] += max(count - len(laps), 0.0)
    return Cost(
        max(lap.peak for lap, share in zip(laps, shares, strict=True) if share),
        round(sum(lap.moved * share for lap, share in zip(laps, shares, strict=True))),
        round(sum(lap.kernels * share for lap, share in zip(laps, shares, strict=True))),
    )


def _scaled(laps: Laps, area: float) -> Laps:
    """Laps of a picture so many times as large: the same kernels on more cells."""
    return tuple(Cost(round(lap.peak * area), round(lap.moved * area), lap.kernels) for lap in laps)


def on_meta(kind: Callable[[Any], Any], config: Any, dtype: torch.dtype) -> Any:
    """A network of shapes, its parameters in the dtypes that they would be loaded in."""
    with without_weights():
        module: torch.nn.Module = kind(config)
    wide: tuple[str, ...] = getattr(module, "fp32_parameters", ())
    for name, parameter in module.named_parameters():
        if not any(word in name for word in wide):
            parameter.data = parameter.data.to(dtype)
    return module.eval().requires_grad_(False)


def vae_on_meta(config: VAEConfig, dtype: torch.dtype, *, on_processor: bool = False) -> WanVAE:
    """The autoencoder of shapes, set up as a run would set it up."""
    vae: WanVAE = on_meta(WanVAE, config, dtype)
    vae.channels_last()
    return fit_processor(vae) if on_processor else vae
