"""``python -m benchmarks.train``: a LoRA training step of ours against Diffusers with PEFT, on a processor.

Both sides train the same adapter (rank 32, on every linear layer of the blocks) on the first blocks of T2V-1.3B with
the same random weights, noise and text: forward, loss, backward, clipping, AdamW. The peer runs as Diffusers' own
training scripts run it: bfloat16 base, float32 adapter, autocast, and gradient checkpointing (``--peer-keeps`` for
without). Ours is what ``cygnet train`` does by default: blocks compiled, attention's results kept. Before anything is
timed, the gradients of both must be equal.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.cases import _opened
from benchmarks.measure import environment, in_turn, packages, relative_error
from benchmarks.seeded import seeded
from cygnet import load_dit
from cygnet.checkpoints import save_official
from cygnet.models.dit.config import T2V_1_3B, DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.lora import adaptable, fresh_adapters
from cygnet.runtime.compile import compile_blocks
from cygnet.training.memory import checkpointed
from cygnet.training.networks import patches_as_products

RANK = 32
LATENTS = (1, 16, 5, 32, 32)
PROMPT_TOKENS = 30
TOLERANCE = 5e-2
TARGETS = {"time": 1.3, "memory": 0.8}
PEER_NAMES = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip
"""Layers of a block by their official and by Diffusers' name."""


@dataclass(frozen=True)
class Side:
    """One library's step, and the gradients that it left, by official layer and matrix."""

    step: Callable[[], torch.Tensor]
    gradients: Callable[[], dict[str, torch.Tensor]]


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, timestep, text and the velocity to predict."""
    generator = torch.Generator().manual_seed(1)
    noise, data = (torch.randn(LATENTS, generator=generator) for _ in range(2))
    text = torch.randn(1, PROMPT_TOKENS, T2V_1_3B.text_dim, generator=generator)
    sigma = 0.7
    return (1 - sigma) * data + sigma * noise, torch.tensor([1000 * sigma]), text, noise - data


def transformer(blocks: int) -> DiT:
    """The first blocks of T2V-1.3B with random weights in bfloat16."""
    return cast(DiT, seeded(DiT, replace(T2V_1_3B, num_layers=blocks), torch.bfloat16))


def _state(dit: DiT) -> tuple[dict[str, torch.Tensor], DiTConfig]:
    return dit.state_dict(), dit.config


def start(layer: str, shape: torch.Size) -> torch.Tensor:
    """What both adapters begin with: small, and nothing zero, so that every gradient says something."""
    generator = torch.Generator().manual_seed(sum(layer.encode()) * 7919 + shape[0])
    return torch.randn(shape, generator=generator) / shape[1] ** 0.5 * 0.1


def ours(blocks: int, how: str) -> Side:
    """As ``cygnet train`` sets it up; ``how`` is the checkpointing, followed by ``, uncompiled`` or nothing."""
    how, _, uncompiled = how.partition(", ")
    with tempfile.TemporaryDirectory() as folder:
        file = save_official(Path(folder) / "dit.safetensors", *_state(transformer(blocks)))
        dit = load_dit(file, torch.bfloat16)
    adapters = fresh_adapters(dit, adaptable(dit), rank=RANK)
    for name, branch in adapters.branches.items():
        branch.down.data = start(f"{name}.down", branch.down.shape)
        branch.up.data = start(f"{name}.up", branch.up.shape)
    adapters.attach(dit) if uncompiled else adapters.install(dit)
    patches_as_products(dit)
    checkpointed(dit.blocks, how)  # type: ignore[arg-type]
    compile_blocks(dit, ("blocks",), not uncompiled, dit.device, learning=True)
    latents, timestep, text, target = inputs()
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = (dit(latents, timestep, text) - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapters.parameters(), 1e9)
        optimizer.step()
        return loss.detach()

    def gradients() -> dict[str, torch.Tensor]:
        found = {}
        for name, branch in adapters.branches.items():
            found |= {f"{name}.down": branch.down.grad, f"{name}.up": branch.up.grad}
        return found  # type: ignore[return-value]

    return Side(step, gradients)


def peer(blocks: int, how: str) -> Side:
    """As Diffusers' training scripts set it up."""
    import diffusers
    from peft import LoraConfig

    dit = transformer(blocks)
    config = dit.config
    model: Any = _opened(diffusers.WanTransformer3DModel.from_pretrained, dit, config, torch.bfloat16)
    del dit
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(PEER_NAMES.values())))
    model.train()
    if how != "none":
        model.enable_gradient_checkpointing()
    trained: dict[str, torch.nn.Parameter] = {}
    for block in range(blocks):
        for official, theirs in PEER_NAMES.items():
            layer = model.get_submodule(f"blocks.{block}.{theirs}")
            for matrix, part in (("down", layer.lora_A), ("up", layer.lora_B)):
                name = f"blocks.{block}.{official}.{matrix}"
                part["default"].weight.data = start(name, part["default"].weight.shape)
                trained[name] = part["default"].weight
    latents, timestep, text, target = inputs()
    padded = torch.nn.functional.pad(text, (0, 0, 0, config.text_length - PROMPT_TOKENS)).bfloat16()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(latents.bfloat16(), timestep, padded, return_dict=False)[0]
            loss = (out.float() - target).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1e9)
        optimizer.step()
        return loss.detach()

    return Side(step, lambda: {name: cast(torch.Tensor, p.grad) for name, p in trained.items()})


SIDES = {"ours": ours, "peer": peer}


def difference(blocks: int, how: dict[str, str]) -> tuple[float, float]:
    """Relative distance of all gradients together, and the largest of one matrix."""
    sides = {name: build(blocks, how[name]) for name, build in SIDES.items()}
    for side in sides.values():
        side.step()
    mine, theirs = sides["ours"].gradients(), sides["peer"].gradients()
    if mine.keys() != theirs.keys():
        raise SystemExit("the sides train different layers")
    everything = [torch.cat([grads[name].float().flatten() for name in mine]) for grads in (mine, theirs)]
    return relative_error(*everything), max(relative_error(mine[name], theirs[name]) for name in mine)


def peak_of(side: str, blocks: int, how: str) -> dict[str, float]:
    """Peak resident bytes, and those before the first step, of a process of its own that takes two steps."""
    command = [sys.executable, "-m", "benchmarks.train", "--peak", side, "--blocks", str(blocks), "--how", how]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return cast("dict[str, float]", json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Parse arguments, compare, time, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5, help="counted steps of each side")
    parser.add_argument(
        "--keeps", choices=("none", "products", "attention", "full"), default="attention", help="our checkpointing"
    )
    parser.add_argument("--uncompiled", action="store_true", help="ours without compiling the blocks")
    parser.add_argument("--peer-keeps", action="store_true", help="the peer without gradient checkpointing")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peak", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        side = SIDES[options.peak](options.blocks, options.how)
        side.step()  # compiles, where that is done: in a training of hours, once
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what loading and compiling have freed is not the step's
        Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
        before = _resident()
        for _ in range(2):
            side.step()
        print(json.dumps({"peak": _resident("VmHWM"), "before": before}))
        return
    ours_how = options.keeps + (", uncompiled" if options.uncompiled else "")
    how = {"ours": ours_how, "peer": "none" if options.peer_keeps else "full"}
    together, worst = difference(options.blocks, how)
    if not together <= TOLERANCE:
        raise SystemExit(f"the gradients differ by {together:.2g}, more than {TOLERANCE:g}; not timed")
    sides = {name: build(options.blocks, how[name]) for name, build in SIDES.items()}
    timings = in_turn({name: side.step for name, side in sides.items()}, options.rounds)
    peaks = {name: peak_of(name, options.blocks, how[name]) for name in SIDES}
    result = {
        "environment": environment() | packages("peft"),
        "blocks": options.blocks,
        "checkpointing": how,
        "gradient_difference": {"together": together, "worst_matrix": worst},
        "seconds": {name: {"median": it.median, "quartiles": it.quartiles} for name, it in timings.items()},
        "peak_bytes": peaks,
        "time_ratio": timings["peer"].median / timings["ours"].median,
        "memory_ratio": peaks["ours"]["peak"] / peaks["peer"]["peak"],
        "targets": TARGETS,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def _resident(field: str = "VmRSS") -> int:
    """Bytes, from the system: what getrusage tells of a process includes its parent's before the start."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
