"""The same random weights for every side, without a file of them."""

from __future__ import annotations

import zlib

import torch

from cygnet.checkpoints import without_weights


def seeded(kind: type[torch.nn.Module], config: object, dtype: torch.dtype, device: str = "cpu") -> torch.nn.Module:
    """A network of random weights that keep activations near unit size; nothing is zero, not even the last layer.

    Every tensor depends on its own name alone, so a network with fewer blocks has the same first ones. The numbers are
    those of ``device``'s own generator.
    """
    with without_weights():
        module = kind(config)  # type: ignore[call-arg]
    kept: tuple[str, ...] = getattr(module, "fp32_parameters", ())
    for name, parameter in module.named_parameters():
        own = torch.float32 if any(part in name for part in kept) else dtype
        owner, _, leaf = name.rpartition(".")
        value = torch.nn.Parameter(_values(name, parameter, device).to(own), requires_grad=False)
        setattr(module.get_submodule(owner), leaf, value)
    return module.eval()


def _values(name: str, like: torch.Tensor, device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    normal = torch.randn(like.shape, generator=generator, device=device)
    if "norm" in name or name.endswith("gamma"):
        return 1 + 0.1 * normal if name.endswith(("weight", "gamma")) else 0.1 * normal
    if name.endswith("modulation") or ("embedding.weight" in name and "patch" not in name):
        return 0.2 * normal
    if ".attn.q." in name:  # UMT5 divides its scores by nothing
        normal = normal / 8
    return normal / (like[0].numel() ** 0.5 if like.ndim > 1 else 10)
