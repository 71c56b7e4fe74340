"""``python -m benchmarks.gpu.profile``: the rates of the device, and where the time of a step and of the VAE goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.cases import BF16, HEAD_WIDTH, P480, _dit, _latents, our_step, release
from benchmarks.gpu.timing import DEVICE, timed
from benchmarks.seeded import seeded
from cygnet.models.dit.config import T2V_1_3B
from cygnet.models.vae.config import WAN_VAE
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.conditioning import image_condition
from cygnet.runtime.attention import ORDER, TorchAttention
from cygnet.runtime.compiled_vae import compile_vae
from cygnet.runtime.execution import Execution


def best(work: Callable[[], object], runs: int = 3) -> float:
    """Least seconds of some runs, after one that does not count."""
    work()
    return min(timed(work) for _ in range(runs))


def shares(name: str, work: Callable[[], object], rows: int = 14) -> None:
    """Print the kernels that take most of the device's time."""
    work()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    kernels = [it for it in found.key_averages() if it.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(it.self_device_time_total for it in kernels)
    print(f"{name}: {total / 1e3:.1f} ms in kernels")
    for it in sorted(kernels, key=lambda it: -it.self_device_time_total)[:rows]:
        share = it.self_device_time_total / total
        print(f"  {it.self_device_time_total / 1e3:8.2f} ms {share:6.1%} {it.count:5d} {it.key[:100]}")


def rates() -> None:
    """Print the rates of a matrix product, copies, and each attention kernel at 32,760 tokens."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=BF16)
    print(f"matrix product: {2 * 8192**3 / best(lambda: a @ a) / 1e12:.0f} TFLOP/s")
    here, there = (torch.empty(2**30, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    print(f"copy on the device: {2 * 2**30 / best(lambda: there.copy_(here)) / 1e12:.2f} TB/s")
    home = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
    print(f"copy from pinned memory: {2**30 / best(lambda: here.copy_(home, non_blocking=True)) / 1e9:.1f} GB/s")
    q = torch.randn(1, 12, 32760, HEAD_WIDTH, device=DEVICE, dtype=BF16)
    for kernel in ORDER[:-1]:
        attention = TorchAttention((kernel,))
        rate = 4 * 32760**2 * 12 * HEAD_WIDTH / best(lambda attention=attention: attention(q, q, q)) / 1e12  # type: ignore[misc]
        print(f"{kernel.name}: {rate:.0f} TFLOP/s")


def main() -> None:
    """Print everything; takes about two minutes."""
    torch.set_grad_enabled(False)
    start = time.monotonic()
    rates()
    for name, execution in (
        ("plain", Execution(compile=False)),
        ("compiled", Execution(compile=True)),
        ("compiled, fp8", Execution(compile=True, fp8=True)),
    ):
        work = our_step(_dit(replace(T2V_1_3B, num_layers=6)), P480, execution)
        print(f"step of six blocks, {name}: {best(work):.4f} s")
        shares(name, work)
        del work
        release()
    vae = cast(WanVAE, seeded(WanVAE, WAN_VAE, torch.float32, DEVICE)).decode_in(BF16).channels_last()
    latents = _latents(P480)
    video = torch.rand(1, 3, 81, 480, 832, device=DEVICE) * 2 - 1
    picture = video[0, :, 0].cpu()
    for benchmark in (False, True):
        torch.backends.cudnn.benchmark = benchmark
        print(f"cudnn.benchmark {benchmark}")
        print(f"  decode: {best(lambda: [None for _ in vae.decode_chunks(latents)], 2):.3f} s")
        print(f"  encode: {best(lambda: vae.encode(video), 1):.3f} s")
        work = lambda: image_condition(vae, picture, num_frames=81, width=832, height=480)  # noqa: E731
        print(f"  condition of image-to-video: {best(work, 1):.3f} s")
    shares("decode", lambda: [None for _ in vae.decode_chunks(latents)])
    compile_vae(vae, True, torch.device(DEVICE))
    print(f"decode, fused passes: {best(lambda: [None for _ in vae.decode_chunks(latents)], 2):.3f} s")
    shares("decode, fused passes", lambda: [None for _ in vae.decode_chunks(latents)])
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
