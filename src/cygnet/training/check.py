"""What is wrong with a data set, said before a training stumbles over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from cygnet.errors import MediaError
from cygnet.training.clips import RawClip, bucket_for, read_clip
from cygnet.training.config import DataConfig
from cygnet.training.dataset import Item

Weight = Literal["refused", "doubtful"]
SHORT_CAPTION, LONG_CAPTION = 3, 1500
"""Characters below and above which a caption is doubtful; 512 tokens are about 2,000 characters of English."""
STILL = 0.25
"""Mean change between neighbouring frames, of 255, below which a video is taken for a still picture."""
DARK, BRIGHT = 8.0, 247.0
"""Mean of all pixels beyond which a clip is taken to be empty."""


@dataclass(frozen=True)
class Finding:
    """One thing about one clip. ``refused``: training refuses it. ``doubtful``: probably not what was meant."""

    name: str
    weight: Weight
    what: str


@dataclass
class Report:
    """Everything that was found."""

    total: int
    findings: list[Finding] = field(default_factory=list)
    buckets: dict[str, int] = field(default_factory=dict)
    """How many clips train in each size and length."""

    @property
    def good(self) -> int:
        """Clips that training takes."""
        return self.total - len({it.name for it in self.findings if it.weight == "refused"})

    def to_json(self) -> dict[str, Any]:
        """As one object."""
        return {
            "clips": self.total,
            "good": self.good,
            "buckets": self.buckets,
            "findings": [asdict(it) for it in self.findings],
        }


def check_items(
    items: Sequence[Item], data: DataConfig, tell: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Decode every clip and read every caption; ``tell`` hears how many are done."""
    report = Report(len(items))
    buckets: Counter[str] = Counter()
    seen: dict[str, str] = {}
    said = Counter(item.caption for item in items if item.caption)
    for number, item in enumerate(items):
        tell(number, len(items))
        for weight, what in _about_caption(item, said):
            report.findings.append(Finding(item.name, weight, what))
        try:
            clip = read_clip(item, data.fps)
            digest = item.digest()
        except (MediaError, OSError) as error:
            report.findings.append(Finding(item.name, "refused", f"unreadable: {error}"))
            continue
        if digest in seen:
            report.findings.append(Finding(item.name, "doubtful", f"the same file as {seen[digest]}"))
        seen.setdefault(digest, item.name)
        frames, height, width, _ = clip.frames.shape
        bucket = bucket_for(width, height, frames, data.shapes, data.frames)
        if bucket is None:
            what = f"too short: {frames} frames at {data.fps:g} fps; the shortest length is {min(data.frames)}"
            report.findings.append(Finding(item.name, "refused", what))
            continue
        if bucket.width > width or bucket.height > height:
            what = f"too small: {width}x{height} is enlarged to {bucket.width}x{bucket.height}"
            report.findings.append(Finding(item.name, "doubtful", what))
        for what in _about_pixels(clip):
            report.findings.append(Finding(item.name, "doubtful", what))
        if item.caption:
            buckets[str(bucket)] += 1
    report.buckets = dict(sorted(buckets.items()))
    return report


def _about_caption(item: Item, said: Counter[str]) -> list[tuple[Weight, str]]:
    text = item.caption
    if not text:
        what = 'no caption: a .txt file of UTF-8 text beside it, or "caption" in the list, is missing or empty'
        return [("refused", what)]
    found: list[tuple[Weight, str]] = []
    if len(text) < SHORT_CAPTION:
        found.append(("doubtful", f"the caption {text!r} says hardly anything"))
    if len(text) > LONG_CAPTION:
        found.append(("doubtful", f"the caption has {len(text):,} characters; only 512 tokens are read"))
    if any(not character.isprintable() and character not in "\n\t" for character in text):
        found.append(("doubtful", "the caption holds control characters"))
    if "\ufffd" in text:
        found.append(("doubtful", "the caption holds replacement characters: its encoding was lost"))
    if len(said) > 1 and said[text] > max(2, sum(said.values()) // 2):
        found.append(("doubtful", f"{said[text]} clips have this same caption"))
    return found


def _about_pixels(clip: RawClip) -> list[str]:
    found = list(clip.notes)
    small = clip.frames[:, ::4, ::4].astype(np.float32)
    if len(small) > 1 and float(np.abs(np.diff(small, axis=0)).mean()) < STILL:
        found.append("nothing moves: it may be a picture saved as a video")
    mean = float(small.mean())
    if not DARK <= mean <= BRIGHT:
        found.append(f"nearly {'black' if mean < DARK else 'white'} throughout")
    return found
