"""What the stages of a request take beside weights: traced, or bounded from above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cygnet.pipelines.denoise import Guidance
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import FRAME_STRIDE, latent_frames_at_once, latent_grid, num_tokens
from cygnet.pipelines.tiles import Portions
from cygnet.planning import stages, tiling
from cygnet.planning.stages import Demand, Grid
from cygnet.planning.subject import Subject
from cygnet.solvers import start_step_for_strength
from cygnet.types import ComponentName, Phase

SLACK = 1.1
"""What allocators lose: blocks that are free and too small for what is needed next."""
ENCODER_FRAMES = 60
"""Frames that the video encoder looks ahead over and holds."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The demands of a request's stages, and of each network the most that it takes beside weights."""

    demands: Mapping[Phase, tuple[tuple[ComponentName, Demand], ...]]
    portions: Portions
    held: int
    """Bytes of the network that stays from one stage to a later one."""

    def work(self) -> dict[ComponentName, int]:
        """Of each network the most beside its own weights, allocators' losses counted."""
        most: dict[ComponentName, int] = {}
        for several in self.demands.values():
            for part, demand in several:
                more = self.held if part == "dit" else 0
                most[part] = max(most.get(part, 0), round(SLACK * demand.cost.peak) + more)
        return most

    def taken(self, phase: Phase) -> int:
        """What the VAE takes in a phase beside its weights, allocators' losses counted; 0 if it is not in it."""
        peaks = [demand.cost.peak for part, demand in self.demands.get(phase, ()) if part == "vae"]
        return round(SLACK * max(peaks, default=0))

    def parked(self) -> int:
        """Bytes that wait in the host's memory while a device of its own works."""
        return max(demand.parked for several in self.demands.values() for _, demand in several)

    def in_portions(self, subject: Subject, request: GenerateRequest, portions: Portions) -> Needs:
        """The same with the VAE working on so much at a time."""
        grid = latent_grid(request.num_frames, request.width, request.height)
        demands = {
            phase: tuple(
                (part, _vae_demand(subject, grid, phase, portions) if part == "vae" else demand)
                for part, demand in several
            )
            for phase, several in self.demands.items()
        }
        return replace(self, demands=demands, portions=portions)


def _vae_demand(subject: Subject, grid: Grid, phase: Phase, portions: Portions) -> Demand:
    """What the VAE takes in one phase: of decoding, of a source video, or of pictures and grey frames."""
    where = subject.on_processor
    if phase == "decode":
        tiles, dtype = portions.decode_tiles, subject.decode_dtype
        if tiles is not None:
            return tiling.demand(subject.vae, dtype, grid, tiles, "decode", parked=portions.parked, on_processor=where)
        return stages.decode(subject.vae, dtype, grid, latent_frames_at_once(*grid[1:]), on_processor=where)
    tiles, dtype = portions.encode_tiles, subject.dtypes["vae"]
    grey, last = phase == "image", subject.dit.variant == "flf2v"
    if tiles is not None:
        return tiling.demand(
            subject.vae,
            dtype,
            grid,
            tiles,
            "encode",
            parked=portions.parked,
            grey=grey,
            last=grey and last,
            on_processor=where,
        )
    return stages.encode(subject.vae, dtype, grid, grey=grey, last=grey and last, on_processor=where)


def needs_of(subject: Subject, request: GenerateRequest, portions: Portions) -> Needs:
    """Traces of all stages."""
    grid = latent_grid(request.num_frames, request.width, request.height)
    dtypes, eye = subject.dtypes, subject.image_encoder
    texts = (subject.tokens(request.prompt), subject.tokens(request.negative_prompt))
    steps = _steps(request)
    text = stages.encode_text(subject.text_encoder, dtypes["text_encoder"], texts[0])
    if steps[0]:
        text = text.and_then(stages.encode_text(subject.text_encoder, dtypes["text_encoder"], texts[1]))
    demands: dict[Phase, tuple[tuple[ComponentName, Demand], ...]] = {"text": (("text_encoder", text),)}
    rows, held = 0, 0
    if eye is not None:
        pictures = 2 if subject.dit.variant == "flf2v" else 1
        rows = eye.num_tokens * pictures
        demands["image"] = (
            ("image_encoder", stages.look_at_pictures(eye, dtypes["image_encoder"], pictures)),
            ("vae", _vae_demand(subject, grid, "image", portions)),
        )
    if request.strength < 1:
        demands["encode"] = (("vae", _vae_demand(subject, grid, "encode", portions)),)
    if eye is not None or request.strength < 1:
        held = subject.weights["vae"].whole
    denoising = stages.denoise_latents(
        subject.dit, dtypes["dit"], grid, texts=texts, image_rows=rows, solver=request.solver, steps=steps
    )
    demands["denoise"] = (("dit", denoising.with_room_for(subject.weights["dit"].widening)),)
    demands["decode"] = (("vae", _vae_demand(subject, grid, "decode", portions)),)
    return Needs(demands=demands, portions=portions, held=held)


def frame_bytes(request: GenerateRequest) -> int:
    """What the video encoder holds on the host: frames of one and a half bytes a pixel, twice."""
    return round(3 * request.width * request.height * min(request.num_frames, ENCODER_FRAMES))


def bounds_of(subject: Subject, request: GenerateRequest) -> dict[ComponentName, int]:
    """More than each network can take beside its weights, without a trace: for requests that fit many times over."""
    tokens = num_tokens(request.num_frames, request.width, request.height)
    dit, text, base = subject.dit, subject.text_encoder, subject.vae.base_width
    chunk = latent_frames_at_once(*latent_grid(request.num_frames, request.width, request.height)[1:])
    pixels = request.width * request.height * FRAME_STRIDE * chunk
    work: dict[ComponentName, int] = {
        "text_encoder": 4 * dit.text_length * (8 * text.dim + 4 * text.ffn_dim + text.num_heads * dit.text_length),
        "dit": 2 * tokens * 4 * (24 * dit.dim + 4 * dit.ffn_dim) + 2**27 + subject.weights["dit"].widening,
        "vae": pixels * 4 * 20 * base + 2**26,
    }
    if (eye := subject.image_encoder) is not None:
        work["image_encoder"] = 4 * eye.num_tokens * (12 * eye.dim + 4 * eye.mlp_dim)
    return work


def _steps(request: GenerateRequest) -> tuple[int, int]:
    """Steps that are guided, and that are not."""
    made = request.num_steps - start_step_for_strength(request.strength, request.num_steps)
    guided = Guidance(scale=request.guidance_scale, until=request.guidance_until).guided_steps(made)
    return guided, made - guided
