"""What of a LoRA a model has: which tensors it changes, how, and what finds no place."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cygnet.checkpoints.loading import ComponentWeights
from cygnet.checkpoints.lora.file import Adapter, LoraFile, read_lora
from cygnet.checkpoints.weight_file import printable, shown
from cygnet.errors import RequestError, StateMismatchError

MAX_LORAS = 100
MAX_STRENGTH = 100.0
LEAST_COVERAGE = 0.5
"""Share of a file's modules that a model must have, unless the caller accepts less."""

_IMAGE = re.compile(r".*\.(?:k_img|v_img|norm_k_img)|img_emb\..*")
_CONTROL = re.compile(r"vace_.*|control_adapter.*|ref_conv.*")


@dataclass(frozen=True)
class Skipped:
    """Modules of a file that found no place: what they are, why they did not, and how many."""

    what: str
    why: str
    count: int

    def __str__(self) -> str:
        """For people: ``8 image-attention modules skipped because the base is T2V-14B``."""
        return f"{self.count} {self.what}{'' if self.count == 1 else 's'} skipped because {self.why}"


@dataclass(frozen=True)
class Coverage:
    """How much of a LoRA found its place."""

    name: str
    strength: float
    matched: int
    total: int
    skipped: tuple[Skipped, ...]

    @property
    def share(self) -> float:
        """Part of the file's modules that the model has."""
        return self.matched / self.total

    @property
    def partial(self) -> bool:
        """Whether it is too little to be taken unless the caller says so."""
        return self.share < LEAST_COVERAGE

    def __str__(self) -> str:
        """One line for people."""
        rest = "".join(f"; {each}" for each in self.skipped)
        return f"{self.name} at {self.strength:g}: {self.matched} of {self.total} modules matched{rest}"


@dataclass(frozen=True)
class Change:
    """How one adapter changes one tensor."""

    lora: LoraFile
    adapter: Adapter
    role: str
    """Which of the adapter's parts says how; "product" is the product of its factors."""
    strength: float


def check_strengths(loras: Sequence[tuple[Path | str, float]]) -> None:
    """Raise ``RequestError`` for a strength or a number of files that is not allowed; opens none."""
    if len(loras) > MAX_LORAS:
        raise RequestError(f"{len(loras)} LoRAs are given; at most {MAX_LORAS} can be merged", field="lora")
    for path, strength in loras:
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not abs(strength) <= MAX_STRENGTH:
            raise RequestError(
                f"the strength of {shown(Path(path))} is {strength!r}; it must be from -{MAX_STRENGTH:g} to "
                f"{MAX_STRENGTH:g}",
                field="lora",
            )


def matched_changes(
    weights: ComponentWeights, loras: Sequence[tuple[Path | str, float]], *, allow_partial: bool = False
) -> tuple[dict[str, list[Change]], list[Coverage]]:
    """The changes of every ``(path, strength)`` by the tensor of ``weights`` that they change, in the order given.

    Raises ``RequestError`` for a strength or a number of files that is not allowed, and ``StateMismatchError`` if the
    shapes are those of another model or fewer than half of a file's modules match. With ``allow_partial`` whatever fits
    is taken, unless nothing does.
    """
    check_strengths(loras)
    changes: dict[str, list[Change]] = {}
    coverage: list[Coverage] = []
    for path, strength in loras:
        found, told = _matched(read_lora(path), weights, float(strength), allow_partial)
        if not told.matched:
            raise StateMismatchError(f"{told}. It was made for another model; choose a LoRA for {weights.variant}")
        if told.partial and not allow_partial:
            raise StateMismatchError(
                f"{told}. That is less than half: it was made for another model than {weights.variant}. Choose a LoRA "
                "for this one, or accept what fits (--allow-partial-lora, in Python allow_partial_loras=True)"
            )
        coverage.append(told)
        for name, change in found:
            changes.setdefault(name, []).append(change)
    return changes, coverage


def _matched(
    lora: LoraFile, weights: ComponentWeights, strength: float, allow_partial: bool
) -> tuple[list[tuple[str, Change]], Coverage]:
    found: list[tuple[str, Change]] = []
    skipped: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for module, adapter in lora.adapters.items():
        targets = _targets(adapter, weights)
        if not any(name in weights.infos for name in targets):
            skipped[_why_absent(module, weights.variant)] += 1
        elif all(name in weights.infos and _fits(lora, adapter, role, name, weights) for name, role in targets.items()):
            found += [(name, Change(lora, adapter, role, strength)) for name, role in targets.items() if strength]
        elif module == "patch_embedding":  # made for a variant with more or fewer input channels
            skipped["patch embedding", "the base takes another number of input channels"] += 1
        else:
            wrong.append(module)
            skipped["module", "it has another shape in the base"] += 1
    if wrong and not allow_partial:
        raise StateMismatchError(
            f"{lora.name} does not fit {weights.variant}: {len(wrong)} of {len(lora.adapters)} modules have other "
            f"shapes, first {printable(wrong[0])!r}, {_shape_here(lora.adapters[wrong[0]], weights)}; choose a LoRA "
            "for this model"
        )
    if lora.unknown:
        skipped["module", "it belongs to no Wan transformer (but to a text encoder, or is of another model)"] += (
            lora.unknown_modules
        )
    total = len(lora.adapters) + lora.unknown_modules
    left = tuple(Skipped(what, why, count) for (what, why), count in skipped.items())
    return found, Coverage(lora.name, strength, total - sum(it.count for it in left), total, left)


def _why_absent(module: str, variant: str) -> tuple[str, str]:
    if _IMAGE.fullmatch(module):
        return "image-attention module", f"the base is {variant}"
    if _CONTROL.fullmatch(module):
        return "control module", f"the base is {variant}"
    return "module", f"{variant} has no such module"


def _shape_here(adapter: Adapter, weights: ComponentWeights) -> str:
    for name in _targets(adapter, weights):
        if name not in weights.infos:
            return f"which has no {name.rpartition('.')[2]} here"
    name = next(iter(_targets(adapter, weights)))
    return f"which is {list(weights.infos[name].shape)} here"


def _targets(adapter: Adapter, weights: ComponentWeights) -> dict[str, str]:
    """The tensors that an adapter changes, each with the part that says how."""
    module, parts = adapter.module, adapter.parts
    bare = module in weights.infos
    weight = module if bare else f"{module}.weight"
    wanted: dict[str, str] = {}
    if adapter.kind != "difference":
        wanted[weight] = "product"
    for role, name in (
        ("diff", weight), ("set", weight), ("diff_m", module), ("diff_b", f"{module}.bias"),
        ("up_bias", f"{module}.bias"),
    ):  # fmt: skip
        if role in parts:
            wanted[name] = f"{wanted[name]}+{role}" if name in wanted else role
    return wanted


def _fits(lora: LoraFile, adapter: Adapter, role: str, name: str, weights: ComponentWeights) -> bool:
    """Whether the parts make up the shape that the tensor has."""
    shape = weights.infos[name].shape
    sizes = {part: lora.file.tensors[stored].shape for part, stored in adapter.parts.items()}
    if "reshape" in sizes and tuple(lora.file.tensor(adapter.parts["reshape"]).flatten().tolist()) != shape:
        return False
    rows, columns = shape[0], math.prod(shape[1:])
    for part in role.split("+"):
        if part != "product":
            if math.prod(sizes[part]) != math.prod(shape):
                return False
        elif product_shape(sizes) != (rows, columns):
            return False
    return "magnitude" not in sizes or magnitude_axis(sizes["magnitude"], (rows, columns)) is not None


def magnitude_axis(magnitude: tuple[int, ...], shape: tuple[int, int]) -> int | None:
    """The axis of a matrix ``[rows, columns]`` along which DoRA's lengths are taken: 1 per row, 0 per column.

    ``magnitude`` is ``[rows]`` or ``[rows, 1...]``, else ``[1, columns...]``; None for any other shape.
    """
    rows, columns = shape
    if magnitude[:1] == (rows,) and math.prod(magnitude) == rows:
        return 1
    if magnitude[:1] == (1,) and math.prod(magnitude) == columns:
        return 0
    return None


def product_shape(sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Rows and columns of the change that parts of these shapes make; None if they do not go together."""

    def matrix(role: str) -> tuple[int, int] | None:
        shape = sizes.get(role)
        return None if shape is None or len(shape) < 2 else (shape[0], math.prod(shape[1:]))

    def product(left: tuple[int, int] | None, right: tuple[int, int] | None) -> tuple[int, int] | None:
        return (left[0], right[1]) if left and right and left[1] == right[0] else None

    if "down" in sizes:
        up, down = matrix("up"), matrix("down")
        if "mid" in sizes and up and down:
            mid = sizes["mid"]
            if mid[:2] != (up[1], down[0]):
                return None
            return (up[0], down[1] * math.prod(mid[2:]))
        return product(up, down)
    if "hada_w1_a" in sizes:
        first = product(matrix("hada_w1_a"), matrix("hada_w1_b"))
        return first if first == product(matrix("hada_w2_a"), matrix("hada_w2_b")) else None
    first = matrix("lokr_w1") or product(matrix("lokr_w1_a"), matrix("lokr_w1_b"))
    second = matrix("lokr_w2") or product(matrix("lokr_w2_a"), matrix("lokr_w2_b"))
    return (first[0] * second[0], first[1] * second[1]) if first and second else None
