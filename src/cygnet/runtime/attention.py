"""Which attention kernel runs on a device: torch's own in the order that is fastest there, a package's, or ours.

Every kernel is admitted by a comparison with plain arithmetic on the device at hand, for a kernel that is wrong on one
chip or driver is a matter of experience; one that errs is left out and said so once. All but SageAttention are exact
to the rounding of their dtype. SageAttention multiplies in 8 bits and is used only when it is asked for.
"""

from __future__ import annotations

import abc
import functools
import importlib.util
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cygnet.errors import RequestError
from cygnet.ops.attention import attention_by_products, sdpa
from cygnet.ops.conv import uses_amx
from cygnet.types import Attention

AttentionName = Literal["auto", "torch", "flash3", "sage"]
"""``auto``: on a GPU FlashAttention 3 where it is installed, else torch's kernels; on a processor matrix products where
they are faster (:func:`products_pay`), else torch's kernel. ``torch``: torch's in any case."""

ORDER = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
"""Torch's kernels, the fastest on current GPUs first; each call takes the first that can do it."""

PRODUCTS_FROM_KEYS = 256
"""Queries and keys from which products are 1.5 to 2 times as fast, in two threads; at 192 they are no slower."""
PRODUCTS_UP_TO_THREADS = 8

_TOLERANCE = {torch.float32: 2e-3, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Relative L2 distance from float64; float32's allows for TF32."""
_SAGE_TOLERANCE = 0.1

_log = logging.getLogger("cygnet")


class TorchAttention:
    """Torch's fused attention by the kernels of ``backends``, the earlier ones first."""

    def __init__(self, backends: tuple[SDPBackend, ...]) -> None:
        self.backends = list(backends)

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Shapes as in :class:`cygnet.types.Attention`."""
        with sdpa_kernel(self.backends, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class ProductsAttention:
    """Attention as matrix products (:func:`~cygnet.ops.attention.attention_by_products`) where that is faster.

    That is: in bfloat16, for many keys, without gradients. Everything else goes to torch's own.
    """

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Shapes as in :class:`cygnet.types.Attention`."""
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        rows = bias is None or (bias.ndim == 4 and bias.shape[1:3] == (1, 1) and bias.shape[3] == k.shape[2])
        alike = q.shape[0] == k.shape[0] == v.shape[0]
        if (
            learns
            or not rows
            or not alike
            or q.dtype != torch.bfloat16
            or min(q.shape[2], k.shape[2]) < PRODUCTS_FROM_KEYS
        ):
            return sdpa(q, k, v, bias, scale)
        return attention_by_products(q, k, v, bias, q.shape[3] ** -0.5 if scale is None else scale)


def products_pay(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether :class:`ProductsAttention` is meant for this machine: few threads, bfloat16 products, no AMX.

    Measured there alone (docs/speed.md); with AMX torch's own kernel uses the tiles, and with many threads the
    pieces are too small to share out.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or torch.get_num_threads() > PRODUCTS_UP_TO_THREADS:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported()) and not uses_amx()


class _Package(abc.ABC):
    """An installed package's kernel; what it cannot do (a bias, float32) goes to ``otherwise``."""

    def __init__(self, otherwise: Attention) -> None:
        self.kernel, self.otherwise = self._load(), otherwise

    @abc.abstractmethod
    def _load(self) -> Callable[..., Any]:
        """The package's function; raises ImportError without it."""

    @abc.abstractmethod
    def _run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        """Attention without a bias; shapes as in :class:`cygnet.types.Attention`."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Shapes as in :class:`cygnet.types.Attention`."""
        if bias is not None or q.dtype == torch.float32:
            return self.otherwise(q, k, v, bias, scale)
        return self._run(q, k, v, scale)


class FlashAttention3(_Package):
    """The ``flash_attn_interface`` package."""

    def _load(self) -> Callable[..., Any]:
        from flash_attn_interface import flash_attn_func

        return flash_attn_func  # type: ignore[no-any-return]

    def _run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        out = self.kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale=scale)
        heads: torch.Tensor = out[0] if isinstance(out, tuple) else out  # some versions give the log-sum too
        return heads.transpose(1, 2)


class SageAttention(_Package):
    """The ``sageattention`` package: scores in 8 bits."""

    def _load(self) -> Callable[..., Any]:
        from sageattention import sageattn

        return sageattn  # type: ignore[no-any-return]

    def _run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        out: torch.Tensor = self.kernel(q, k, v, tensor_layout="HND", sm_scale=scale)
        return out


_PACKAGES: dict[str, tuple[str, Callable[[Attention], Attention]]] = {
    "flash3": ("flash_attn_interface", FlashAttention3),
    "sage": ("sageattention", SageAttention),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a kernel is used on a device, and why not."""

    kernel: str
    error: float | None
    """How far it is from float64, relative L2; None for one that does not run there."""
    reason: str
    """Why it is left out; empty for one that is admitted."""

    @property
    def admitted(self) -> bool:
        """Whether it is used."""
        return not self.reason


def verdicts(device: torch.device, dtype: torch.dtype, head_width: int) -> list[Verdict]:
    """What becomes of each kernel that is known here: torch's in their order, then the packages for CUDA.

    Each is tried as before its use. "sage" is used where it is asked for alone.
    """
    found = [_of_torch(kernel, device, dtype, head_width) for kernel in ORDER]
    if products_pay(device, dtype):
        found.insert(0, _of_products(head_width))
    for name, (package, _) in _PACKAGES.items() if device.type == "cuda" else ():
        if importlib.util.find_spec(package) is None:
            found.append(Verdict(kernel=name, error=None, reason=f"its package {package} is not installed"))
        elif dtype == torch.float32:  # which it gives to torch's kernels
            found.append(Verdict(kernel=name, error=None, reason="it takes 16-bit numbers alone"))
        else:
            found.append(_of_package(name, sdpa, device, dtype, head_width)[0])
    return found


def check_attention(name: str) -> None:
    """Raise :class:`~cygnet.errors.RequestError` unless ``name`` is an :data:`AttentionName` whose package is here."""
    if name not in get_args(AttentionName):
        raise RequestError(
            f"attention is {name[:80]!r}; give one of: {', '.join(get_args(AttentionName))}", field="attention"
        )
    if name in _PACKAGES and importlib.util.find_spec(_PACKAGES[name][0]) is None:
        raise RequestError(
            f"attention is {name!r}, but its package {_PACKAGES[name][0]} is not installed; install it, or use auto",
            field="attention",
        )


def choose_attention(name: AttentionName, device: torch.device, dtype: torch.dtype, head_width: int) -> Attention:
    """The kernel to use on ``device``; tested there once per process, which takes about two seconds.

    Raises :class:`~cygnet.errors.RequestError` if ``name`` asks for a package that is not installed, not for CUDA, or
    wrong on this device; "auto" and "torch" always find one.
    """
    check_attention(name)
    if device.type != "cuda":
        if name in _PACKAGES:
            raise RequestError(f"attention {name!r} needs a CUDA device; use auto on {device.type}", field="attention")
        return _on_processor(head_width) if name == "auto" and products_pay(device, dtype) else sdpa
    return _tested(name, device, dtype, head_width)


@functools.cache
def _on_processor(head_width: int) -> Attention:
    verdict = _of_products(head_width)
    if verdict.admitted:
        return ProductsAttention()
    _log.warning("attention by products is left out: %s", verdict.reason)
    return sdpa


def _of_products(head_width: int) -> Verdict:
    dtype = torch.bfloat16
    error = attention_error(ProductsAttention(), torch.device("cpu"), dtype, head_width)
    reason = "" if error <= _TOLERANCE[dtype] else f"it is {error:.2g} off"
    return Verdict(kernel="products", error=error, reason=reason)


@functools.cache
def _tested(name: str, device: torch.device, dtype: torch.dtype, head_width: int) -> Attention:
    sound = tuple(kernel for kernel in ORDER if _is_sound(kernel, device, dtype, head_width))
    plain = TorchAttention((*sound, SDPBackend.MATH) if SDPBackend.MATH not in sound else sound)
    wanted = "flash3" if name == "auto" and importlib.util.find_spec("flash_attn_interface") else name
    if wanted not in _PACKAGES:
        return plain
    verdict, special = _of_package(wanted, plain, device, dtype, head_width)
    if special is not None:
        return special
    if name == wanted:
        raise RequestError(
            f"attention {name!r} does not work on {device}: {verdict.reason}; use auto", field="attention"
        )
    _log.warning("attention %s is left out on %s: %s", wanted, device, verdict.reason)
    return plain


def _of_package(
    name: str, otherwise: Attention, device: torch.device, dtype: torch.dtype, head_width: int
) -> tuple[Verdict, Attention | None]:
    """The verdict on an installed package's kernel, and the kernel if it is admitted."""
    tolerance = _SAGE_TOLERANCE if name == "sage" else _TOLERANCE[dtype]
    try:
        special = _PACKAGES[name][1](otherwise)
        error = attention_error(special, device, dtype, head_width)
    except Exception as problem:  # a foreign package may fail in any way; what matters is that it does
        reason = f"{type(problem).__name__}: {problem}"[:200]
        return Verdict(kernel=name, error=None, reason=reason), None
    if error <= tolerance:
        return Verdict(kernel=name, error=error, reason=""), special
    return Verdict(kernel=name, error=error, reason=f"it is {error:.2g} off, more than {tolerance:g}"), None


def _of_torch(kernel: SDPBackend, device: torch.device, dtype: torch.dtype, head_width: int) -> Verdict:
    name = kernel.name.lower().removesuffix("_attention")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains each refusal
            error = attention_error(TorchAttention((kernel,)), device, dtype, head_width)
    except RuntimeError:  # not built in, or not for this chip or dtype
        return Verdict(kernel=name, error=None, reason=f"torch has none for {device.type} here")
    reason = "" if error <= _TOLERANCE[dtype] else f"it is {error:.2g} off"
    return Verdict(kernel=name, error=error, reason=reason)


def _is_sound(kernel: SDPBackend, device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether one of torch's kernels is admitted; one that runs and errs is left out with a line."""
    verdict = _of_torch(kernel, device, dtype, head_width)
    if verdict.error is not None and not verdict.admitted:
        _log.warning("torch's %s is left out on %s: %s", kernel.name, device, verdict.reason)
    return verdict.admitted


@torch.no_grad()
def attention_error(attention: Attention, device: torch.device, dtype: torch.dtype, head_width: int) -> float:
    """Relative L2 distance of ``attention`` from float64 arithmetic; infinite if it gives NaN or infinity.

    The scores spread over some ten units, as those of a trained network do, and the lengths are no multiples of a tile.
    """
    generator = torch.Generator().manual_seed(7)
    shapes = ((1, 2, 533, head_width), (1, 2, 717, head_width), (1, 2, 717, head_width))
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    q = 3 * q
    out = attention(q, k, v)
    scores = q.double() @ k.double().transpose(2, 3) / math.sqrt(head_width)
    reference = scores.softmax(dim=-1) @ v.double()
    error = float((out.double() - reference).norm() / reference.norm())
    return error if math.isfinite(error) else math.inf


def use_attention(module: nn.Module, attention: Attention) -> None:
    """Give every layer of ``module`` that was built with an attention kernel this one."""
    for part in module.modules():
        if "attention" in vars(part):
            part.attention = attention  # type: ignore[assignment]
