"""LoRA files of every dialect: which weights they change, how much of a model they cover, and the changed weights.

A file lists parts (``lora_A``, ``lora_down``, ``hada_w1_a``, ``diff``, ...) of modules under one of several naming
schemes. The parts are gathered by module under official names; each module is one :class:`Adapter`. Merging happens
tensor by tensor while a model is read, in float32, so it needs no second copy of the weights.

Sources: the formats as written by PEFT, Diffusers, kohya-ss/sd-scripts and musubi-tuner, VideoX-Fun, DiffSynth-Studio
and LyCORIS; LoRA arXiv 2106.09685, LoHa 2108.06098, LoKr 2309.14859, DoRA 2402.09353.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cygnet.checkpoints.json_text import parse_object
from cygnet.checkpoints.layouts import DIT_DIFFUSERS, NUMBER
from cygnet.checkpoints.loading import ComponentWeights
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.weight_file import WeightFile, printable, shown
from cygnet.errors import RequestError, StateMismatchError, WeightFileError

if TYPE_CHECKING:
    import torch

MAX_LORAS = 100
MAX_STRENGTH = 100.0
_ELSEWHERE = "of another kind of network (such as a text encoder)"
LEAST_COVERAGE = 0.5
"""Share of a file's modules that a model must have, unless the caller accepts less."""
METADATA_KEY = "lora_adapter_metadata"
"""Where Diffusers notes ranks and alphas, which its tensors do not carry."""

# Parts by the end of their name.
_PARTS: tuple[tuple[str, str], ...] = (
    ("down", r"\.lora_A(?:\.\w+)?\.weight|\.lora_A|[._]lora\.down\.weight|\.lora_(?:linear_layer\.)?down(?:\.weight)?"),
    ("up", r"\.lora_B(?:\.\w+)?\.weight|\.lora_B|[._]lora\.up\.weight|\.lora_(?:linear_layer\.)?up(?:\.weight)?"),
    ("up_bias", r"\.lora_B(?:\.\w+)?\.bias"),
    ("mid", r"\.lora_mid(?:\.weight)?"),
    ("alpha", r"\.alpha"),
    ("magnitude", r"\.dora_scale|\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?"),
    *((name, rf"\.{name}") for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *((f"lokr_{part}", rf"\.lokr_{part}") for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    ("diff", r"\.diff"),
    ("diff_b", r"\.diff_b"),
    ("diff_m", r"\.diff_m"),
    ("set", r"\.set_weight"),
    ("reshape", r"\.reshape_weight"),
)
_ENDING = re.compile("(?:" + "|".join(f"(?P<{role}>{pattern})" for role, pattern in _PARTS) + r")\Z")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "model.")
_JOINED = re.compile(r"(?:lora_unet|lycoris)_+")
_IMAGE_ONLY = re.compile(r".*\.(?:k_img|v_img|norm_k_img)|img_emb\..*")
_UNREAD = frozenset({"hada_t1", "hada_t2", "lokr_t2", "reshape"})
"""Parts that change what the others mean; a file with one is refused whole."""
_NEEDED: tuple[frozenset[str], ...] = (
    frozenset({"down", "up"}),
    frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
)


def _split(name: str) -> re.Match[str] | None:
    """The part's ending of a name."""
    return _ENDING.search(name)


# Names ---------------------------------------------------------------------------------------------------------------


def _joined_patterns() -> list[tuple[re.Pattern[str], str]]:
    """Module names with underscores for dots, in official and in Diffusers' spelling, and their official names."""
    found = []
    for rule in DIT_DIFFUSERS.rules:
        for stem in (rule.official, *rule.other):
            pattern = re.escape(stem.replace(".", "_")).replace(r"\{n\}", NUMBER)
            found.append((re.compile(pattern), rule.official))
    return found


_JOINED_PATTERNS = _joined_patterns()


def official_module(stem: str) -> str | None:
    """The official name of the module that a LoRA's ``stem`` means; None if it is no module of the transformer."""
    joined = _JOINED.match(stem)
    if joined is not None:
        rest = stem[joined.end() :]
        for pattern, official in _JOINED_PATTERNS:
            match = pattern.fullmatch(rest)
            if match is not None:
                return official.replace("{n}", match.group(1)) if "{n}" in official else official
        return None
    while prefix := next((it for it in _PREFIXES if stem.startswith(it)), None):
        stem = stem.removeprefix(prefix)
    try:
        DIT_DIFFUSERS.from_official(stem)
    except KeyError:
        found, _ = DIT_DIFFUSERS.to_official([stem])
        return next(iter(found), None)
    return stem


# What a file holds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """One module's parts: role to stored name. ``scale`` is what a low-rank product is multiplied with."""

    module: str
    parts: Mapping[str, str]
    scale: float


@dataclass(frozen=True)
class LoraFile:
    """An opened LoRA: adapters by official module name, and the stored names that belong to no known module."""

    file: WeightFile = field(repr=False)
    adapters: Mapping[str, Adapter]
    unknown: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file's name, fit for a message."""
        return shown(self.file.path)


def read_lora(path: Path | str) -> LoraFile:
    """Open a LoRA and sort its tensors, reading only the small ones.

    Raises ``WeightFileError`` if it is no LoRA, a pair is incomplete, a rank is 0 or an alpha is not finite, and as
    :func:`~cygnet.checkpoints.open.open_weights`.
    """
    file = open_weights(path)
    groups: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for name in file.tensors:
        ending = _split(name)
        module = None if ending is None else _module_of(name[: ending.start()], str(ending.lastgroup))
        if ending is None or module is None:
            unknown.append(name)
            continue
        group = groups.setdefault(module, {})
        role = str(ending.lastgroup)
        if role in group:
            raise WeightFileError(
                f"{shown(file.path)} has the {role} part of {printable(module)} twice, as {printable(group[role])!r} "
                f"and {printable(name)!r}; it mixes two files"
            )
        group[role] = name
    if not groups:
        raise WeightFileError(f"{shown(file.path)} is no LoRA for Wan: {_first(file.tensors)}")
    noted = _noted_scales(file)
    adapters = {module: Adapter(module, parts, _scale(file, module, parts, noted)) for module, parts in groups.items()}
    return LoraFile(file, adapters, tuple(unknown))


def _module_of(stem: str, role: str) -> str | None:
    if role == "diff_m":
        stem += ".modulation"
    return official_module(stem)


def _first(names: Iterable[str]) -> str:
    some = [printable(name) for _, name in zip(range(3), names, strict=False)]
    return f"its tensors are called {', '.join(some)}" if some else "it holds no tensors"


def _noted_scales(file: WeightFile) -> Callable[[str], float | None]:
    """``alpha / rank`` by module as Diffusers notes it in the header; None where nothing is noted."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return lambda module: None
    where = f"the note {METADATA_KEY!r} in the header of {shown(file.path)}"
    noted = parse_object(text.encode(), where, max_depth=4, max_values=20_000)

    def value(name: str, patterns: str, module: str) -> float | None:
        special = noted.get(f"transformer.{patterns}", {})
        for pattern, number in special.items() if isinstance(special, dict) else ():
            if module == official_module(str(pattern)):
                return _positive(number, where)
        common = noted.get(f"transformer.{name}")
        return None if common is None else _positive(common, where)

    def scale(module: str) -> float | None:
        alpha, rank = value("lora_alpha", "alpha_pattern", module), value("r", "rank_pattern", module)
        return None if alpha is None or rank is None else alpha / rank

    return scale


def _positive(number: Any, where: str) -> float:
    if type(number) not in (int, float) or not math.isfinite(number) or number <= 0:
        raise WeightFileError(f"{where} says {printable(str(number))}; ranks and alphas are numbers above 0")
    return float(number)


def _scale(file: WeightFile, module: str, parts: Mapping[str, str], noted: Callable[[str], float | None]) -> float:
    """``alpha / rank`` of one module, 1 where the file does not say."""
    where = f"{shown(file.path)}: {printable(module)}"
    for needed in _NEEDED:
        missing = needed - parts.keys()
        if missing and len(missing) < len(needed):
            raise WeightFileError(f"{where} lacks its {' and '.join(sorted(missing))} part; the file is incomplete")
    if unread := sorted(parts.keys() & _UNREAD):
        raise WeightFileError(f"{where} has the part {unread[0]}, which cygnet does not read; ask for a plain LoRA")
    rank = _rank(file, parts)
    if rank == 0:
        raise WeightFileError(f"{where} has rank 0; the file is damaged")
    if "alpha" not in parts:
        said = noted(module)
        return 1.0 if said is None else said
    info = file.tensors[parts["alpha"]]
    alpha = float(file.tensor(parts["alpha"])) if info.numel == 1 else math.nan
    if not math.isfinite(alpha):
        raise WeightFileError(f"{where} has no finite alpha; the file is damaged")
    return 1.0 if rank is None else alpha / rank


def _rank(file: WeightFile, parts: Mapping[str, str]) -> int | None:
    """The inner width of a product; None where the file holds whole matrices."""
    for role, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w1_b", 0), ("lokr_w2_b", 0)):
        if role in parts:
            shape = file.tensors[parts[role]].shape
            return shape[axis] if shape else 0
    return None


# On a model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How much of a LoRA found its place. ``skipped`` counts modules by the reason why they did not."""

    name: str
    strength: float
    matched: int
    total: int
    skipped: Mapping[str, int]

    @property
    def share(self) -> float:
        """Part of the file's modules that the model has."""
        return self.matched / self.total

    def __str__(self) -> str:
        """One line for people."""
        rest = "".join(f"; {count} skipped: {reason}" for reason, count in self.skipped.items())
        return f"{self.name} at {self.strength:g}: {self.matched} of {self.total} modules matched{rest}"


@dataclass(frozen=True)
class _Change:
    lora: LoraFile
    adapter: Adapter
    roles: tuple[str, ...]
    """Which of the adapter's parts concern this tensor; empty for the weight's product."""
    strength: float


@dataclass(frozen=True)
class PatchedWeights(ComponentWeights):
    """Weights with LoRAs merged in as they are read."""

    changes: Mapping[str, tuple[_Change, ...]] = field(default_factory=dict, repr=False)
    coverage: tuple[Coverage, ...] = ()

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As for :class:`ComponentWeights`; a changed tensor is computed in float32 and rounded once."""
        changes = self.changes.get(name)
        if not changes:
            return super().tensor(name, dtype)
        import torch

        kept = dtype or super().tensor(name).dtype
        value = super().tensor(name, torch.float32).clone()
        for change in changes:
            value = _changed(name, value, change)
        return value.to(kept)

    def eight_bit(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """As for :class:`ComponentWeights`; a changed tensor is not in the file."""
        return None if self.changes.get(name) else super().eight_bit(name)

    def copied(self, name: str, dtype: torch.dtype | None = None, *, channels_last: bool = False) -> torch.Tensor:
        """As for :class:`ComponentWeights`."""
        return (
            self.tensor(name, dtype)
            if self.changes.get(name)
            else super().copied(name, dtype, channels_last=channels_last)
        )


def with_loras(
    weights: ComponentWeights, loras: Sequence[tuple[Path | str, float]], *, least_coverage: float = LEAST_COVERAGE
) -> PatchedWeights:
    """``weights`` of a transformer with every ``(path, strength)`` merged in as it is read; the changes add up.

    Modules that the model lacks (image attention, in a text model) are skipped and counted in ``coverage``. Raises
    ``RequestError`` for a strength or a number of files that is not allowed, ``StateMismatchError`` if the shapes are
    those of another model or fewer than ``least_coverage`` of a file's modules match, and as :func:`read_lora`.
    """
    if len(loras) > MAX_LORAS:
        raise RequestError(f"{len(loras)} LoRAs are given; at most {MAX_LORAS} can be merged", field="lora")
    changes: dict[str, list[_Change]] = {}
    coverage: list[Coverage] = []
    for path, strength in loras:
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) <= MAX_STRENGTH:
            raise RequestError(
                f"the strength of {shown(Path(path))} is {strength!r}; it must be from -{MAX_STRENGTH:g} to "
                f"{MAX_STRENGTH:g}",
                field="lora",
            )
        lora = read_lora(path)
        found, told = _matched(lora, weights, float(strength))
        if told.share < least_coverage or not told.matched:
            raise StateMismatchError(
                f"{told}. It was made for another model than {weights.variant}; choose a LoRA for this one"
            )
        coverage.append(told)
        for name, change in found:
            changes.setdefault(name, []).append(change)
    plain = {item.name: getattr(weights, item.name) for item in fields(ComponentWeights)}
    return PatchedWeights(
        **plain, changes={name: tuple(rows) for name, rows in changes.items()}, coverage=tuple(coverage)
    )


def _matched(lora: LoraFile, weights: ComponentWeights, strength: float) -> tuple[list[tuple[str, _Change]], Coverage]:
    found: list[tuple[str, _Change]] = []
    skipped: Counter[str] = Counter()
    wrong: list[str] = []
    matched = 0
    for module, adapter in lora.adapters.items():
        targets = _targets(adapter, weights)
        if not targets:
            image = _IMAGE_ONLY.fullmatch(module) is not None
            skipped["for image attention, which the model has not" if image else "not in the model"] += 1
            continue
        if any(_misfit(lora, adapter, name, roles, weights) for name, roles in targets):
            if module == "patch_embedding":  # made for a variant with more or fewer input channels
                skipped["for another number of input channels"] += 1
                continue
            wrong.append(module)
            continue
        matched += 1
        found += [(name, _Change(lora, adapter, roles, strength)) for name, roles in targets]
    if wrong:
        shape = list(weights.infos[_targets(lora.adapters[wrong[0]], weights)[0][0]].shape)
        raise StateMismatchError(
            f"{lora.name} does not fit {weights.variant}: {len(wrong)} modules have other shapes, first "
            f"{printable(wrong[0])!r}, which is {shape} here; choose a LoRA for this model"
        )
    if lora.unknown:
        skipped[_ELSEWHERE] += len({_stem(name) for name in lora.unknown})
    total = len(lora.adapters) + skipped[_ELSEWHERE]
    return found, Coverage(lora.name, strength, matched, total, {key: n for key, n in skipped.items() if n})


def _stem(name: str) -> str:
    ending = _split(name)
    return name if ending is None else name[: ending.start()]


def _targets(adapter: Adapter, weights: ComponentWeights) -> list[tuple[str, tuple[str, ...]]]:
    """The tensors that an adapter changes, each with the roles that say how; () is the product of its parts."""
    module, parts = adapter.module, adapter.parts
    bare = module in weights.infos
    weight = module if bare else f"{module}.weight"
    wanted: list[tuple[str, tuple[str, ...]]] = []
    if parts.keys() & {"down", "hada_w1_a", "lokr_w1", "lokr_w1_a"}:
        wanted.append((weight, ()))
    for role, name in (
        ("diff", weight), ("set", weight), ("diff_m", module), ("diff_b", f"{module}.bias"),
        ("up_bias", f"{module}.bias"),
    ):  # fmt: skip
        if role in parts:
            wanted.append((name, (role,)))
    return [(name, roles) for name, roles in wanted if name in weights.infos]


def _misfit(lora: LoraFile, adapter: Adapter, name: str, roles: tuple[str, ...], weights: ComponentWeights) -> bool:
    """Whether the parts make up another shape than the tensor has."""
    shape = weights.infos[name].shape
    sizes = {role: lora.file.tensors[stored].shape for role, stored in adapter.parts.items()}
    if roles:
        return math.prod(sizes[roles[0]]) != math.prod(shape)
    rows, columns = shape[0], math.prod(shape[1:])
    return _product_shape(sizes) != (rows, columns)


def _product_shape(sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Rows and columns of the change that parts of these shapes make; None if they do not go together."""

    def matrix(role: str) -> tuple[int, int] | None:
        shape = sizes.get(role)
        return None if shape is None or len(shape) < 2 else (shape[0], math.prod(shape[1:]))

    def product(left: tuple[int, int] | None, right: tuple[int, int] | None) -> tuple[int, int] | None:
        return (left[0], right[1]) if left and right and left[1] == right[0] else None

    if "down" in sizes:
        up, down = matrix("up"), matrix("down")
        if "mid" in sizes and up and down:
            taps = math.prod(sizes["mid"][2:])
            return (up[0], down[1] * taps)
        return product(up, down)
    if "hada_w1_a" in sizes:
        first = product(matrix("hada_w1_a"), matrix("hada_w1_b"))
        return first if first == product(matrix("hada_w2_a"), matrix("hada_w2_b")) else None
    first = matrix("lokr_w1") or product(matrix("lokr_w1_a"), matrix("lokr_w1_b"))
    second = matrix("lokr_w2") or product(matrix("lokr_w2_a"), matrix("lokr_w2_b"))
    return (first[0] * second[0], first[1] * second[1]) if first and second else None


# Arithmetic ----------------------------------------------------------------------------------------------------------


def _changed(name: str, value: torch.Tensor, change: _Change) -> torch.Tensor:
    """``value`` (float32) after one change."""
    import torch

    adapter, strength = change.adapter, change.strength

    def part(role: str) -> torch.Tensor:
        return change.lora.file.tensor(adapter.parts[role]).float()

    if change.roles == ("set",):
        result = part("set").reshape(value.shape)
    elif change.roles == ("up_bias",):
        result = value + strength * adapter.scale * part("up_bias").reshape(value.shape)
    elif change.roles:
        result = value + strength * part(change.roles[0]).reshape(value.shape)
    else:
        delta = adapter.scale * _product(adapter.parts, part).reshape(value.shape)
        if "magnitude" in adapter.parts:
            result = value + strength * (_decomposed(value, delta, part("magnitude")) - value)
        else:
            result = value + strength * delta
    if not bool(torch.isfinite(result).all()):
        raise WeightFileError(
            f"{change.lora.name} at strength {strength:g} makes {name!r} NaN or infinite; the file is damaged, or the "
            "strength too large"
        )
    return result


def _product(parts: Mapping[str, str], part: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """``[out, in]`` from low-rank, Hadamard or Kronecker factors."""
    import torch

    if "down" in parts:
        up, down = part("up").flatten(1), part("down").flatten(1)
        if "mid" in parts:  # [rank, rank, *taps] between the two
            return torch.einsum("or,rs...,si->oi...", up, part("mid"), down)
        return up @ down
    if "hada_w1_a" in parts:
        return (part("hada_w1_a") @ part("hada_w1_b")) * (part("hada_w2_a") @ part("hada_w2_b"))
    first = part("lokr_w1") if "lokr_w1" in parts else part("lokr_w1_a") @ part("lokr_w1_b")
    second = part("lokr_w2") if "lokr_w2" in parts else part("lokr_w2_a") @ part("lokr_w2_b").flatten(1)
    return torch.kron(first, second.flatten(1))


def _decomposed(value: torch.Tensor, delta: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA: the direction of ``value + delta`` with lengths of its own, per output or per input."""
    import torch

    moved = (value + delta).flatten(1)
    axis = 1 if magnitude.numel() == moved.shape[0] else 0
    length = torch.linalg.vector_norm(moved, dim=axis, keepdim=True) + torch.finfo(torch.float32).eps
    turned: torch.Tensor = moved * (magnitude.reshape(length.shape) / length)
    return turned.reshape(value.shape)
