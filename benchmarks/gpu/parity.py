"""Is all right on this GPU: against the CPU, against the peers, and each way of running against the plain one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

import cygnet
from benchmarks.gpu.peers import peer_of
from benchmarks.gpu.timing import DEVICE
from benchmarks.measure import relative_error
from benchmarks.seeded import seeded
from cygnet.models.clip.config import CLIP_VIT_H
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import T2V_1_3B
from cygnet.models.dit.model import DiT, PreparedContext
from cygnet.models.umt5.config import UMT5_XXL
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.ops.quantised import dequantise, quantise_rows
from cygnet.pipelines.tiles import decode_chunks, encode_chunks
from cygnet.runtime.attention import ORDER, TorchAttention, attention_error, choose_attention, use_attention
from cygnet.runtime.block_swap import BlockSwap
from cygnet.runtime.compile import compile_blocks
from cygnet.runtime.compiled_vae import compile_vae
from cygnet.runtime.eight_bit import KINDS, between_ends, keep_in_eight_bits
from cygnet.runtime.fp8 import use_fp8
from cygnet.runtime.streaming import MatrixStream, streamed_names
from cygnet.types import Tiles

FP32, BF16 = torch.float32, torch.bfloat16
SMALL = replace(T2V_1_3B, num_layers=3)
TILES = Tiles(width=64, height=64)


@dataclass(frozen=True)
class Check:
    """One comparison; ``error`` is a relative L2 distance, 0 where equality bit for bit is meant."""

    name: str
    error: float | None
    tolerance: float | None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and is within the tolerance."""
        return self.tolerance is None or (self.error is not None and self.error <= self.tolerance)

    def as_json(self) -> dict[str, Any]:
        """All fields and the verdict."""
        return {**asdict(self), "passed": self.passed}


def all_checks() -> Iterator[Check]:
    """Every check in turn; one that fails to run at all is a failed check, not the end."""
    groups: list[Callable[[], Iterator[Check]]] = [kernels, transformer, autoencoder, encoders, embedded]
    for group in groups:
        try:
            yield from group()
        except Exception as problem:
            yield Check(group.__name__, None, 0.0, f"{type(problem).__name__}: {problem}"[:400])
        torch.cuda.empty_cache()


def kernels() -> Iterator[Check]:
    """Torch's attention kernels, each on its own."""
    device = torch.device(DEVICE)
    for dtype in (BF16, FP32):
        for kernel in ORDER:
            name = f"attention {kernel.name} {str(dtype).removeprefix('torch.')}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    error = attention_error(TorchAttention((kernel,)), device, dtype, 128)
                yield Check(name, error, 2e-2)
            except RuntimeError as problem:
                yield Check(name, None, None, f"not here: {str(problem).splitlines()[0]}"[:120])


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 16, 5, 32, 32, generator=generator)
    texts = [torch.randn(1, rows, 4096, generator=generator) for rows in (30, 126)]
    return latents.to(DEVICE), torch.tensor([700.0], device=DEVICE), texts[0].to(DEVICE), texts[1].to(DEVICE)


def transformer() -> Iterator[Check]:
    """Three blocks of the 1.3B transformer on 1,280 tokens, with both prompts in one evaluation."""
    latents, timestep, prompt, negative = _inputs()
    padded = torch.cat((prompt, prompt.new_zeros(1, 512 - prompt.shape[1], 4096)), dim=1)

    def both(dit: DiT) -> PreparedContext:
        return PreparedContext.joined((dit.prepare(prompt), dit.prepare(negative)))

    torch.backends.cudnn.allow_tf32 = False  # for the convolution that makes tokens
    exact = cast(DiT, seeded(DiT, SMALL, FP32, DEVICE))
    reference = exact(latents, timestep, both(exact))
    on_cpu = cast(DiT, seeded(DiT, SMALL, FP32, DEVICE)).cpu()
    alone = on_cpu(latents.cpu(), timestep.cpu(), prompt.cpu())
    yield Check("transformer float32, GPU and CPU", relative_error(reference[:1].cpu(), alone), 1e-4)
    peer = peer_of(exact, SMALL, FP32)
    theirs = peer(latents, timestep, padded, return_dict=False)[0]
    yield Check("transformer float32, ours and Diffusers'", relative_error(reference[:1], theirs), 1e-4)

    dit = cast(DiT, seeded(DiT, SMALL, BF16, DEVICE))
    prepared = both(dit)
    plain = dit(latents, timestep, prepared)
    yield Check("transformer bfloat16 and float32", relative_error(plain, reference), 2e-2)
    theirs = peer_of(dit, SMALL, BF16)(latents.to(BF16), timestep, padded.to(BF16), return_dict=False)[0]
    yield Check("transformer bfloat16, ours and Diffusers'", relative_error(plain[:1], theirs), 2e-2)
    one_by_one = dit(latents, timestep, prepared, one_by_one=True)
    yield Check("one prompt at a time", relative_error(one_by_one, plain), 1e-2)
    use_attention(dit, choose_attention("auto", torch.device(DEVICE), BF16, 128))
    yield Check("chosen attention", relative_error(dit(latents, timestep, prepared), plain), 1e-2)
    one_by_one = dit(latents, timestep, prepared, one_by_one=True)
    yield Check("chosen attention, one prompt at a time", relative_error(one_by_one, plain), 1e-2)
    plain = dit(latents, timestep, prepared)

    compiled = cast(DiT, seeded(DiT, SMALL, BF16, DEVICE))
    use_attention(compiled, choose_attention("auto", torch.device(DEVICE), BF16, 128))
    compile_blocks(compiled, ("blocks",), True, torch.device(DEVICE))
    before = _frames_compiled()
    answer = compiled(latents, timestep, prepared)
    yield Check("compiled blocks", relative_error(answer, plain), 1e-2, f"{_frames_compiled() - before} graphs")

    swapped = cast(DiT, seeded(DiT, SMALL, BF16, DEVICE)).cpu()
    use_attention(swapped, choose_attention("auto", torch.device(DEVICE), BF16, 128))
    swap = BlockSwap(swapped, ("blocks",), DEVICE)
    errors = [relative_error(swapped(latents, timestep, prepared), plain) for _ in range(4)]
    swap.close()
    yield Check("block swap, bit for bit", max(errors), 0.0)

    streamed = cast(DiT, seeded(DiT, SMALL, BF16, DEVICE))
    use_attention(streamed, choose_attention("auto", torch.device(DEVICE), BF16, 128))
    home = {name: streamed.get_parameter(name).cpu() for name in streamed_names(streamed, ("blocks",))}
    stream = MatrixStream(streamed, ("blocks",), home.__getitem__, device=DEVICE)
    errors = [relative_error(streamed(latents, timestep, prepared), plain) for _ in range(4)]
    stream.close()
    yield Check("matrices streamed, bit for bit", max(errors), 0.0)

    eight, widened = (cast(DiT, seeded(DiT, SMALL, BF16, DEVICE)) for _ in range(2))
    for name in streamed_names(eight, ("blocks",)):
        stored = eight.get_parameter(name).to(torch.float8_e4m3fn)
        widened.get_parameter(name).copy_(stored.to(BF16))
        keep_in_eight_bits(eight, {name: (stored, None)}, DEVICE)
    answers = [each(latents, timestep, prepared) for each in (eight, widened)]
    yield Check("weights kept in 8 bits, bit for bit", relative_error(*answers), 0.0)

    yield from _rounded_rows(latents, timestep, prepared)

    if torch.cuda.get_device_capability() >= (8, 9):
        count = use_fp8(dit, "blocks", keep=())
        yield Check("fp8 products", relative_error(dit(latents, timestep, prepared), plain), 0.1, f"{count} layers")


def _rounded_rows(latents: torch.Tensor, timestep: torch.Tensor, prepared: PreparedContext) -> Iterator[Check]:
    """Weights with a scale for each row, on the device and swapped, beside those widened by the processor."""
    for kind in KINDS.values():
        resident, swapped, widened = (cast(DiT, seeded(DiT, SMALL, BF16, DEVICE)) for _ in range(3))
        swapped.cpu()
        for name in between_ends(streamed_names(widened, ("blocks",))):
            stored, scale = quantise_rows(widened.get_parameter(name).to("cpu", torch.float32), kind)
            widened.get_parameter(name).copy_(dequantise(stored, scale, BF16))
            keep_in_eight_bits(resident, {name: (stored, scale)}, DEVICE)
            keep_in_eight_bits(swapped, {name: (stored, scale)}, "cpu")
        right = widened(latents, timestep, prepared)
        yield Check(f"rows in {kind}, bit for bit", relative_error(resident(latents, timestep, prepared), right), 0.0)
        swap = BlockSwap(swapped, ("blocks",), DEVICE)
        errors = [relative_error(swapped(latents, timestep, prepared), right) for _ in range(3)]
        swap.close()
        yield Check(f"rows in {kind}, swapped, bit for bit", max(errors), 0.0)


def _frames_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"].get("unique_graphs", 0))


def autoencoder() -> Iterator[Check]:
    """Wan-VAE at 9 frames of 64x96."""
    vae = cast(WanVAE, seeded(WanVAE, WAN_VAE, FP32, DEVICE)).channels_last()
    on_cpu = cast(WanVAE, seeded(WanVAE, WAN_VAE, FP32, DEVICE)).cpu().channels_last()
    generator = torch.Generator().manual_seed(6)
    video = torch.randn(1, 3, 9, 64, 96, generator=generator).clamp(-1, 1)
    latents = torch.randn(1, 16, 3, 8, 12, generator=generator)
    # cuDNN convolves float32 in TF32, ten bits of mantissa; the second pair is without.
    for exact, tolerance in ((False, 5e-3), (True, 2e-5)):
        torch.backends.cudnn.allow_tf32 = not exact
        kind = "float32" if exact else "TF32"
        yield Check(
            f"VAE encode {kind}, GPU and CPU", relative_error(vae.encode(video).cpu(), on_cpu.encode(video)), tolerance
        )
        decoded = vae.decode(latents)
        yield Check(f"VAE decode {kind}, GPU and CPU", relative_error(decoded.cpu(), on_cpu.decode(latents)), tolerance)
    yield Check("VAE decode in chunks", relative_error(vae.decode(latents, chunk=2), decoded), 1e-5)
    # 64 of 96 columns, and the rest; what a tile remembers waits on the host while the other is worked on.
    for parked in (False, True):
        tiled = torch.cat(list(decode_chunks(vae, latents, tiles=TILES, parked=parked)), dim=2)
        name = "waiting on the host" if parked else "on the GPU"
        yield Check(f"VAE decode in tiles, {name}", relative_error(tiled, decoded), 1e-5)
    pieces = [video[:, :, :1], *video[:, :, 1:].split(4, dim=2)]
    tiled = torch.cat(list(encode_chunks(vae, pieces, tiles=TILES, parked=True)), dim=2)
    yield Check("VAE encode in tiles, waiting on the host", relative_error(tiled, vae.encode(video)), 1e-5)
    theirs = peer_of(vae, WAN_VAE, FP32).decode(vae.denormalise(latents.to(DEVICE))).sample
    yield Check("VAE decode float32, ours and Diffusers'", relative_error(decoded, theirs), 1e-4)
    fused = cast(WanVAE, seeded(WanVAE, WAN_VAE, FP32, DEVICE)).channels_last()
    compile_vae(fused, True, torch.device(DEVICE))
    before = _frames_compiled()
    errors = [relative_error(fused.decode(latents, chunk=chunk), decoded) for chunk in (1, 2)]
    graphs = _frames_compiled() - before  # without any, the plain way would be compared with itself
    yield Check("VAE decode float32, fused passes", max(errors) if graphs else None, 2e-5, f"{graphs} graphs")
    yield Check("VAE encode float32, fused passes", relative_error(fused.encode(video), vae.encode(video)), 2e-5)
    torch.backends.cudnn.allow_tf32 = True
    half = vae.decode_in(BF16).decode(latents)
    yield Check("VAE decode bfloat16 and float32", relative_error(half, decoded), 3e-2)
    before = _frames_compiled()
    answer = fused.decode_in(BF16).decode(latents)
    graphs = _frames_compiled() - before
    error = relative_error(answer, half) if graphs else None
    yield Check("VAE decode bfloat16, fused passes", error, 3e-2, f"{graphs} graphs")


def encoders() -> Iterator[Check]:
    """Two layers of each encoder, published widths."""
    config = replace(UMT5_XXL, num_layers=2, vocab_size=4096)
    text = cast(UMT5Encoder, seeded(UMT5Encoder, config, FP32, DEVICE))
    ids = torch.randint(2, 4096, (1, 30), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    padded = torch.cat((ids, ids.new_zeros(1, 482)), dim=1)
    theirs = peer_of(text, config, FP32)(padded, (padded != 0).long()).last_hidden_state[:, :30]
    ours = text(ids)
    yield Check("UMT5 float32, ours and transformers'", relative_error(ours, theirs), 1e-4)
    yield Check("UMT5 float32, GPU and CPU", relative_error(ours.cpu(), text.cpu()(ids.cpu())), 1e-4)
    eye = cast(CLIPVision, seeded(CLIPVision, replace(CLIP_VIT_H, num_layers=3), FP32, DEVICE))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    answer = eye(pixels)
    yield Check("CLIP float32, GPU and CPU", relative_error(answer.cpu(), eye.cpu()(pixels.cpu())), 1e-3)


def embedded() -> Iterator[Check]:
    """The embedded model from prompt to frames."""
    prompt = "a red ball moves right on a black background"
    frames = {}
    for device in ("cpu", "cuda"):
        wan = cygnet.load("tiny-t2v", device=device, dtype="float32")
        frames[device] = torch.from_numpy(wan.generate(prompt, seed=1).frames).double()
    yield Check("embedded model float32, GPU and CPU", relative_error(frames["cuda"], frames["cpu"]), 2e-2)
    wan = cygnet.load("tiny-t2v", device="cuda")
    wan.generate(prompt, seed=1)
    start = time.perf_counter()
    video = torch.from_numpy(wan.generate(prompt, seed=1).frames).double()
    seconds = time.perf_counter() - start
    yield Check(
        "embedded model bfloat16 and float32", relative_error(video, frames["cpu"]), 0.3, f"{seconds:.2f} s a video"
    )
    streamed = cygnet.load("tiny-t2v", device="cuda", offload="stream").generate(prompt, seed=1).frames
    yield Check("embedded model, blocks swapped", relative_error(torch.from_numpy(streamed).double(), video), 0.0)
    wan = cygnet.load("tiny-i2v", device="cuda")
    import numpy as np

    picture = np.full((wan.defaults.height, wan.defaults.width, 3), 90, np.uint8)
    made = wan.generate("a red ball moves right", picture, seed=1).frames
    yield Check(
        "embedded image to video begins with its picture", float(abs(made[0].astype(float) - 90).mean()) / 255, 0.1
    )
