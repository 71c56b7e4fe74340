"""Where the weights of a model's networks are while they work: the one place that decides, and the steps down from it.

A network is held *whole* where it fits; in *eight bits* where it is stored so and does not fit otherwise; and
*streamed*, matrix by matrix, where even that does not fit. All networks stay *resident* together, or each is there for
its *stage* alone. Results are the same bit for bit; each step down takes less memory and more time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cygnet.errors import RequestError
from cygnet.types import ComponentName

Offload = bool | Literal["stream"] | None
"""Whether networks come in for their stage alone; "stream": and the large ones' matrices when their layer runs."""

SHARE_OF_MEMORY = 0.6
"""Of the free memory, what weights may take as long as nothing is known of the request."""
MARGIN = 0.9
"""Of the free memory, what weights and work may take together; the rest is for what is not foreseen."""
WORDS: Mapping[ComponentName, str] = {
    "dit": "transformer", "vae": "VAE", "text_encoder": "text encoder", "image_encoder": "image encoder",
}  # fmt: skip


def check_offload(offload: object) -> None:
    """Raise :class:`~cygnet.errors.RequestError` for what is no :data:`Offload`."""
    if offload is not None and not isinstance(offload, bool) and offload != "stream":
        raise RequestError(f'offload is {str(offload)[:80]!r}; give True, False, None or "stream"', field="offload")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes that one network's weights take on the device, by how they are held."""

    whole: int
    eight_bit: int
    """Equal to ``whole`` if nothing is stored in 8 bits."""
    streamed: int | None = None
    """The most that is there at a time; None for a network that cannot be streamed."""
    swapped: int = 0
    """The same where a machine beside the device holds all of them; 0 for a network that cannot be streamed."""
    swaps: bool = False
    """Whether that is so; ``streamed`` is then equal to ``swapped``."""
    gathered: int = 0
    """Of these, tables of which a few rows are read: where they stay mapped from the file, the rest is not there."""
    largest: int = 0
    """The largest matrix that can be in eight bits or streamed."""
    widened: int = 0
    """Of matrices that were rounded to 8 bits however the network is held, the size as they compute."""

    def swapped_from(self, host_free: int) -> Weights:
        """The same on a device of its own, beside a machine with that much free memory."""
        if not self.swapped or not fits_alone(self.whole, host_free):
            return self
        return replace(self, streamed=self.swapped, swaps=True)

    def rounded_when_loaded(self) -> Weights:
        """The same of weights that fp8 products round: all of them are there before, and none comes from the file."""
        return replace(self, eight_bit=self.whole, streamed=None)

    @property
    def widening(self) -> int:
        """What rounding a matrix takes as it is read, and widening it when it runs: in float32, and in 16 bits."""
        return 3 * self.largest if self.widened else 0

    @property
    def narrow(self) -> bool:
        """Whether 8 bits make a difference."""
        return self.eight_bit < self.whole


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One way to hold all networks of a model."""

    resident: bool
    """All at once, from load on."""
    eight_bit: frozenset[ComponentName] = frozenset()
    streamed: frozenset[ComponentName] = frozenset()

    def bytes(self, part: ComponentName, weights: Weights) -> int:
        """What the network ``part`` takes while it works."""
        if part in self.streamed:
            assert weights.streamed is not None
            return weights.streamed
        return weights.eight_bit if part in self.eight_bit else weights.whole

    def lower(self, other: Placement) -> Placement:
        """What takes no more memory than either."""
        return Placement(
            resident=self.resident and other.resident,
            eight_bit=self.eight_bit | other.eight_bit,
            streamed=self.streamed | other.streamed,
        )

    def describe(self) -> str:
        """In a few words."""
        words = ["all networks stay in memory" if self.resident else "each network is in memory for its stage alone"]
        for how, parts in (("kept in 8 bits", self.eight_bit), ("streamed block by block", self.streamed)):
            if parts:
                verb = "is" if len(parts) == 1 else "are"
                words.append(f"{' and '.join(f'the {WORDS[part]}' for part in sorted(parts))} {verb} {how}")
        return "; ".join(words)


def fits_alone(size: int, free: int) -> bool:
    """Whether weights of that size leave room to work, as long as nothing is known of the work."""
    return size <= SHARE_OF_MEMORY * free


def choose(
    weights: Mapping[ComponentName, Weights],
    free: int,
    offload: Offload = None,
    work: Mapping[ComponentName, int] | None = None,
) -> Placement:
    """The fastest placement that fits ``free`` bytes; if none does, the smallest of those that ``offload`` allows.

    ``work`` is what each network takes beside its weights for the request at hand, where that is known. ``offload``
    True rules out that all stay resident, "stream" also that large networks are whole, and False that any is away.
    """

    def room_of(part: ComponentName | None) -> float:
        if work is None:
            return SHARE_OF_MEMORY * free
        return MARGIN * free - (max(work.values(), default=0) if part is None else work.get(part, 0))

    if offload is None:
        offload = sum(each.eight_bit for each in weights.values()) > room_of(None)
    if not offload:
        wide = sum(each.whole for each in weights.values()) <= room_of(None)
        # Widened weights are the faster ones, so eight bits are kept only where the others do not fit.
        return Placement(resident=True, eight_bit=frozenset() if wide else _narrow(weights))
    return Placement(
        resident=False,
        eight_bit=_narrow(weights, [part for part, each in weights.items() if each.whole > room_of(part)]),
        streamed=frozenset(
            part
            for part, each in weights.items()
            if each.streamed is not None and (offload == "stream" or each.eight_bit > room_of(part))
        ),
    )


def smaller(placement: Placement, weights: Mapping[ComponentName, Weights], part: ComponentName) -> Placement | None:
    """The next placement down the ladder that leaves ``part`` more room; None if there is none."""
    if placement.resident:
        return replace(placement, resident=False)
    if part not in placement.eight_bit | placement.streamed and weights[part].narrow:
        return replace(placement, eight_bit=placement.eight_bit | {part})
    if part not in placement.streamed and weights[part].streamed is not None:
        return replace(placement, streamed=placement.streamed | {part})
    return None


def _narrow(
    weights: Mapping[ComponentName, Weights], among: Collection[ComponentName] | None = None
) -> frozenset[ComponentName]:
    parts = weights if among is None else among
    return frozenset(part for part in parts if weights[part].narrow)
