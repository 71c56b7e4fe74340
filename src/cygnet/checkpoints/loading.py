"""From a path to a network with weights: read, check, convert, assign."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from cygnet.checkpoints import quantised
from cygnet.checkpoints.detect import ComponentConfig, describe_difference, detect_config, variant_name
from cygnet.checkpoints.folders import component_path, is_diffusers_pipeline
from cygnet.checkpoints.hints import with_hints
from cygnet.checkpoints.layouts import COMPONENT_WORDS, Layout, Part, Rearrangement, Source, recognise
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.weight_file import TensorInfo, WeightFile, printable, shown
from cygnet.errors import StateMismatchError, UnknownLayoutError, WeightFileError
from cygnet.types import ComponentName

if TYPE_CHECKING:
    import torch

    Module = TypeVar("Module", bound=torch.nn.Module)

MAX_TOKENIZER_BYTES = 32 * 2**20
_NO_PARTS: Mapping[str, torch.dtype] = MappingProxyType({})


@dataclass(frozen=True)
class ComponentWeights:
    """One network's weights under official names, still in the file.

    ``infos`` holds the canonical shape of each tensor, and its stored type before dequantisation. ``quantisation`` says
    how 8-bit weights are stored; ``auxiliary`` names what else the file holds (short name to stored name).
    """

    component: ComponentName
    layout: Layout
    config: ComponentConfig
    quantisation: quantised.Quantisation
    infos: Mapping[str, TensorInfo]
    file: WeightFile = field(repr=False)
    sources_of: Mapping[str, Source] = field(repr=False)
    scales: Mapping[str, str] = field(repr=False)
    auxiliary: Mapping[str, str] = field(repr=False)

    @property
    def variant(self) -> str:
        """What people call the architecture, such as ``T2V-1.3B``."""
        return variant_name(self.config)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that the weights lie in."""
        return self.file.files

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(info.numel for info in self.infos.values())

    @property
    def tokenizer_bytes(self) -> bytes | None:
        """The serialised SentencePiece model that ComfyUI puts into text-encoder files; None if there is none."""
        stored = self.auxiliary.get("spiece_model")
        if stored is None:
            return None
        info = self.file.tensors[stored]
        if info.dtype not in ("uint8", "int8") or len(info.shape) != 1 or info.numel > MAX_TOKENIZER_BYTES:
            raise WeightFileError(f"the embedded tokenizer {stored!r} is not a row of at most 32 MiB")
        return self.file.tensor(stored).numpy().tobytes()

    def lazy_state(self) -> Mapping[str, torch.Tensor]:
        """The tensors as a read-only mapping that reads each one anew when asked for it."""
        return _LazyState(self)

    def names(self) -> tuple[str, ...]:
        """The official names present."""
        return tuple(self.infos)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor under official ``name`` on the CPU.

        With ``dtype`` None it has its stored type and, where the layout allows, shares memory with the mapped file;
        8-bit weights become bfloat16, which holds every fp8 value exactly. Raises ``KeyError`` for an unknown name.
        """
        source = self.sources_of[name]
        return _rearranged([self._part(stored, dtype) for stored in source.names], source.how)

    def copied(self, name: str, dtype: torch.dtype | None = None, *, channels_last: bool = False) -> torch.Tensor:
        """As :meth:`tensor`, in memory of its own: no page of the file stays in memory.

        With ``channels_last`` a kernel of a convolution has that layout.
        """
        import torch

        source = self.sources_of[name]
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(self.infos[name].shape))
        if not channels_last or layout is None or source.how != "same":
            value = _rearranged([self._part(stored, dtype, copy=True) for stored in source.names], source.how)
            return value if not channels_last or layout is None else value.contiguous(memory_format=layout)
        return self._part(source.names[0], dtype, copy=True, layout=layout)

    def eight_bit(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Stored values and scale of a tensor that lies in the file in 8 bits and as it is; None for any other."""
        source = self.sources_of[name]
        if source.how != "same" or not quantised.is_eight_bit(self.file.tensors[source.names[0]].dtype):
            return None
        stored = source.names[0]
        return self.file.tensor(stored), self._scale(stored)

    def _scale(self, stored: str) -> torch.Tensor | None:
        return self.file.tensor(self.scales[stored]) if stored in self.scales else None

    def _part(
        self,
        stored: str,
        dtype: torch.dtype | None,
        *,
        copy: bool = False,
        layout: torch.memory_format | None = None,
    ) -> torch.Tensor:
        import torch

        from cygnet.ops.quantised import dequantise

        kind = self.file.tensors[stored].dtype
        if quantised.is_eight_bit(kind):
            with self.file.borrowed(stored) as values:
                wide = dequantise(values, self._scale(stored), dtype or torch.bfloat16)
            return wide if layout is None else wide.contiguous(memory_format=layout)
        if copy or (dtype is not None and str(dtype) != f"torch.{kind}"):
            with self.file.borrowed(stored) as values:
                kept = torch.preserve_format if layout is None else layout
                return values.to(dtype or values.dtype, copy=True, memory_format=kept)
        return self.file.tensor(stored)


class _LazyState(Mapping[str, "torch.Tensor"]):
    def __init__(self, weights: ComponentWeights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._weights.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.infos)

    def __len__(self) -> int:
        return len(self._weights.infos)


def _rearranged(parts: list[torch.Tensor], how: Rearrangement) -> torch.Tensor:
    import torch

    if how == "stack":
        return torch.cat(parts)
    only = parts[0]
    if how == "lift":
        return only.reshape(*(1,) * (3 - only.ndim), *only.shape)
    return only.T.contiguous() if how == "transpose" else only


def _canonical_info(source: Source, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    infos = [tensors[name] for name in source.names]
    dtype, shape = infos[0].dtype, infos[0].shape
    if source.how == "stack":
        if any(info.shape[1:] != shape[1:] or not info.shape for info in infos):
            raise StateMismatchError(f"{', '.join(map(printable, source.names))} have shapes that cannot be joined")
        shape = (sum(info.shape[0] for info in infos), *shape[1:])
    elif source.how == "lift":
        shape = (*(1,) * (3 - len(shape)), *shape)
    elif source.how == "transpose":
        if len(shape) != 2:
            raise StateMismatchError(f"{printable(source.names[0])!r} must have two axes, not {len(shape)}")
        shape = (shape[1], shape[0])
    return TensorInfo(dtype, shape)


def read_component(
    path: Path | str, component: ComponentName | None = None, *, config: ComponentConfig | None = None
) -> ComponentWeights:
    """Open the weights of one network and say what they are, without loading them.

    ``path`` is a weight file, a set of shards, a Diffusers component folder or, with ``component`` given, a pipeline
    folder or combined file that holds it. ``config`` overrides what the shapes say. Raises ``ModelNotFoundError``,
    ``UnknownLayoutError``, ``StateMismatchError`` or ``WeightFileError``, each in words.
    """
    path = Path(path)
    if component is None and is_diffusers_pipeline(path):
        raise WeightFileError(f"{shown(path)} is a whole pipeline; say which component to read, or name its subfolder")
    file = open_weights(component_path(path, component))
    part = _chosen(recognise(file.tensors), component, file)
    return component_weights(file, part, config=config)


def component_weights(file: WeightFile, part: Part, *, config: ComponentConfig | None = None) -> ComponentWeights:
    """The weights of ``part`` of an opened file, checked as far as header and scales allow."""
    if part.leftovers:
        raise StateMismatchError(
            f"{shown(file.path)} was taken for {COMPONENT_WORDS[part.component]} in the {part.layout} layout, but "
            f"{_listed(part.leftovers)} belong to no such model; it may be another model, or a newer version"
        )
    infos = {name: _canonical_info(source, file.tensors) for name, source in part.tensors.items()}
    if config is None:
        config = with_hints(detect_config(part.component, {name: info.shape for name, info in infos.items()}), file)
    scales = quantised.find_scales(part, file.tensors)
    quantised.check_formats(part, file)
    quantised.check_scale_values(scales, file)
    return ComponentWeights(
        component=part.component,
        layout=part.layout,
        config=config,
        quantisation=quantised.describe(part, file.tensors),
        infos=infos,
        file=file,
        sources_of=part.tensors,
        scales=scales,
        auxiliary=part.auxiliary,
    )


def _chosen(parts: list[Part], component: ComponentName | None, file: WeightFile) -> Part:
    present = " and ".join(COMPONENT_WORDS[part.component] for part in parts)
    if component is None:
        if len(parts) > 1:
            raise WeightFileError(f"{shown(file.path)} holds {present}; say which component to read")
        return parts[0]
    chosen = [part for part in parts if part.component == component]
    if not chosen:
        raise UnknownLayoutError(f"{shown(file.path)} is {present}, but {COMPONENT_WORDS[component]} is needed here")
    if len(chosen) > 1:
        prefixes = ", ".join(repr(part.prefix) for part in chosen)
        raise WeightFileError(f"{shown(file.path)} holds {COMPONENT_WORDS[component]} twice (under {prefixes})")
    return chosen[0]


def _listed(names: tuple[str, ...] | list[str]) -> str:
    first = ", ".join(printable(name) for name in names[:5])
    more = "" if len(names) <= 5 else ", …"
    return f"{len(names)} tensors ({first}{more})"


# Into a module -------------------------------------------------------------------------------------------------------


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built inside have shapes but no memory: parameters are on the meta device and are not initialised.

    Plain ``torch.device("meta")`` would run the initialisers, and for random ones torch then loads its compiler, which
    takes seconds.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class SkipInitialisers(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Iterable[type],
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            given = kwargs or {}
            if getattr(func, "__name__", "") in _INITIALISERS:
                target = args[0] if args else given.get("tensor")
                if isinstance(target, torch.Tensor) and target.is_meta:
                    return target
            return func(*args, **given)

    with torch.device("meta"), SkipInitialisers():
        yield


_INITIALISERS = frozenset(
    ["normal_", "uniform_", "zero_", "fill_", "constant_", "ones_", "zeros_", "eye_", "trunc_normal_", "copy_"]
    + [f"{scheme}_{kind}_" for scheme in ("kaiming", "xavier") for kind in ("normal", "uniform")]
)


def check_state(module: torch.nn.Module, weights: ComponentWeights) -> None:
    """Raise ``StateMismatchError`` unless ``weights`` has exactly the names and shapes that ``module`` has.

    The message counts and names what differs, and says the likely cause.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict(keep_vars=True).items()}
    missing = [name for name in expected if name not in weights.infos]
    extra = [name for name in weights.infos if name not in expected]
    wrong = [name for name, info in weights.infos.items() if name in expected and expected[name] != info.shape]
    if not (missing or extra or wrong):
        return
    faults: list[str] = []
    if missing:
        faults.append(f"{_listed(missing)} missing")
    if extra:
        faults.append(f"{_listed(extra)} unexpected")
    if wrong:
        name = wrong[0]
        faults.append(
            f"{_listed(wrong)} of another shape ({printable(name)!r} is {list(weights.infos[name].shape)}, "
            f"{list(expected[name])} is needed)"
        )
    cause = _likely_cause(module, weights, missing, extra, wrong)
    raise StateMismatchError(f"{shown(weights.file.path)} does not fit: {'; '.join(faults)}. {cause}")


def _likely_cause(
    module: torch.nn.Module, weights: ComponentWeights, missing: list[str], extra: list[str], wrong: list[str]
) -> str:
    wanted = getattr(module, "config", None)
    if wanted is not None and type(wanted) is type(weights.config):
        difference = describe_difference(weights.config, wanted)
        if difference:
            return f"Likely cause: {difference}"
    if missing and not extra and not wrong:
        return "Likely cause: an incomplete download or a shard left out; download it again"
    if extra and not missing and not wrong:
        return "Likely cause: a variant with parts that this model has not; check which model the file was made for"
    return "Likely cause: the file is for another model or version"


def materialise(
    module: Module,
    weights: ComponentWeights,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    leave: Collection[str] = (),
    channels_last: bool = False,
    by_part: Mapping[str, torch.dtype] = _NO_PARTS,
) -> Module:
    """Give ``module``, built :func:`without_weights`, the tensors of ``weights``; returns it.

    Names and shapes are checked first (:func:`check_state`). Then each tensor is read, dequantised, cast and assigned
    before the next is touched, so the peak is about one copy of the weights; a tensor that needs no cast stays mapped
    from the file. ``dtype`` None keeps stored types (bfloat16 for 8-bit ones). Parameters whose name contains an entry
    of ``module.fp32_parameters`` become float32 in any case. Those named in ``leave`` stay without memory. With
    ``channels_last`` kernels get that layout as they are read, and none stays mapped: else both would be in memory.
    ``by_part`` are dtypes of parts, by the first word of their names, where they differ from ``dtype``.
    """
    import torch

    check_state(module, weights)
    keep: tuple[str, ...] = getattr(module, "fp32_parameters", ())
    slots = {name: (owner, leaf) for name, owner, leaf in _slots(module)}
    left_out = frozenset(leave)
    for name in weights.names():
        if name in left_out:
            continue
        wanted = torch.float32 if any(part in name for part in keep) else by_part.get(name.split(".", 1)[0], dtype)
        value = weights.copied(name, wanted, channels_last=True) if channels_last else weights.tensor(name, wanted)
        value = value.to(device)
        owner, leaf = slots[name]
        old = getattr(owner, leaf)
        if isinstance(old, torch.nn.Parameter):
            trainable = old.requires_grad and value.is_floating_point()
            value = torch.nn.Parameter(value, requires_grad=trainable)
        setattr(owner, leaf, value)
    left = [name for name, value in _everything(module) if value.is_meta and name not in left_out]
    assert not left, f"{type(module).__name__} has tensors that no checkpoint fills: {left[:5]}"
    return module


def _slots(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    for path, owner in module.named_modules():
        for leaf in (*owner._parameters, *owner._buffers):
            yield (f"{path}.{leaf}" if path else leaf), owner, leaf


def _everything(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def verify_finite(weights: ComponentWeights, *, allow_constant: bool = True) -> None:
    """Read every tensor and raise ``WeightFileError`` naming the first that holds NaN or infinity.

    With ``allow_constant`` False also for a matrix whose values are all equal, as a failed conversion leaves behind
    (freshly initialised models have some on purpose).
    """
    for name in weights.names():
        value = weights.tensor(name)
        if value.numel() == 0:
            continue
        low, high = (float(x) for x in value.float().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise WeightFileError(
                f"tensor {name!r} of {shown(weights.file.path)} holds NaN or infinity; download the file again"
            )
        if not allow_constant and low == high and sum(size > 1 for size in value.shape) > 1:
            raise WeightFileError(
                f"tensor {name!r} of {shown(weights.file.path)} is {low:g} throughout; the file was converted wrongly"
            )
