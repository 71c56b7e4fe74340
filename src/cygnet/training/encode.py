"""Clips and captions to what the transformer is trained on, each encoded once.

A clip's row holds ``latents [16, t, h, w]`` float32 and, for image-to-video, ``condition [20, t, h, w]`` (mask and
latents of the first frame) and ``image [m, D]`` (its CLIP tokens). A text's row holds ``context [n, D]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cygnet.assembly import LoadedModel
from cygnet.errors import MediaError, NumericalError, RequestError
from cygnet.pipelines.conditioning import encode_images, encode_text, image_condition
from cygnet.training.cache import Cache, key_of
from cygnet.training.clips import Bucket, bucket_for, pixels_of, read_clip
from cygnet.training.config import DataConfig
from cygnet.training.dataset import Item

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Example:
    """A clip that is ready: what it is called, its bucket, and the keys of its rows."""

    name: str
    bucket: Bucket
    clip: str
    text: str


@dataclass(frozen=True)
class _Found:
    item: Item
    bucket: Bucket
    digest: str


def prepare(
    items: Sequence[Item],
    data: DataConfig,
    model: LoadedModel,
    cache: Cache,
    *,
    field: str = "data.path",
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] = lambda: None,
    tell: Tell = lambda what, done, total: None,
) -> list[Example]:
    """Encode whatever the cache lacks, and list all examples in the order of ``items``.

    Of several processes each encodes its share; ``barrier`` waits for all. Raises :class:`~cygnet.errors.RequestError`
    for ``field`` if clips cannot be used, naming the first, before anything is encoded.
    """
    found = _surveyed(items, data, cache, tell, rank, world, barrier, field)
    digests = {name: part["digest"] for name, part in model.describe()["components"].items()}
    sees = model.components.dit.image_dim is not None
    seen = (digests["vae"], digests["image_encoder"]) if sees else (digests["vae"],)
    texts = {caption: key_of("text", caption, digests["text_encoder"]) for caption in ["", *captions(found, data)]}
    examples = [
        Example(each.item.name, each.bucket, key_of("clip", each.digest, data.fps, each.bucket, *seen), texts[caption])
        for each, caption in zip(found, captions(found, data), strict=True)
    ]
    todo = [text for number, text in enumerate(texts) if texts[text] not in cache and number % world == rank]
    _encode_texts(todo, texts, model, cache, tell, field)
    unique = {one.clip: (one, each.item) for one, each in zip(examples, found, strict=True)}
    missing = [both for key, both in sorted(unique.items()) if key not in cache]
    _encode_clips(missing[rank::world], data, model, cache, tell)
    cache.flush()
    barrier()
    cache.reload()
    return examples


def prepare_texts(
    texts: Sequence[str],
    model: LoadedModel,
    cache: Cache,
    *,
    rank: int = 0,
    barrier: Callable[[], None] = lambda: None,
    tell: Tell = lambda what, done, total: None,
) -> list[str]:
    """Keys of texts beside those of the clips, encoded by the first process."""
    digest = model.describe()["components"]["text_encoder"]["digest"]
    keys = {text: key_of("text", text, digest) for text in texts}
    if rank == 0:
        _encode_texts(
            [text for text, key in keys.items() if key not in cache], keys, model, cache, tell, "preserve.captions"
        )
    barrier()
    cache.reload()
    return [keys[text] for text in texts]


def captions(found: Sequence[_Found], data: DataConfig) -> list[str]:
    """What is said about each clip, with the trigger in front."""
    return [f"{data.trigger} {each.item.caption}".strip() for each in found]


def _surveyed(
    items: Sequence[Item],
    data: DataConfig,
    cache: Cache,
    tell: Tell,
    rank: int,
    world: int,
    barrier: Callable[[], None],
    field: str,
) -> list[_Found]:
    """Size, length and digest of every clip; those of files that have not changed come from the cache's notes."""
    bad: dict[int, str] = {}
    for number, item in enumerate(items):
        if number % world == rank:
            tell("looking at clips", number, len(items))
            try:
                _facts(item, data, cache)
            except MediaError as error:
                bad[number] = str(error)
    cache.flush()
    barrier()
    cache.reload()
    found = []
    for number, item in enumerate(items):
        if not item.caption:
            bad.setdefault(number, f"{item.name!r} has no caption")
            continue
        try:
            facts = _facts(item, data, cache)
        except MediaError as error:
            bad[number] = str(error)
            continue
        bucket = bucket_for(facts["width"], facts["height"], facts["frames"], data.shapes, data.frames)
        if bucket is None:
            bad[number] = (
                f"{item.name!r} has {facts['frames']} frames at {data.fps:g} fps; data.frames is {data.frames}"
            )
            continue
        found.append(_Found(item, bucket, facts["sha256"]))
    if bad:
        whose = "" if field == "data.path" else f" of {field}"
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        first = "; ".join(bad[number] for number in sorted(bad)[:3])
        raise RequestError(
            f"{len(bad)} of {len(items)} clips{whose} cannot be used: {first}{more}; remove or mend them "
            "(cygnet data check lists all)",
            field=field,
        )
    return found


def _facts(item: Item, data: DataConfig, cache: Cache) -> Mapping[str, Any]:
    try:
        stamp = item.stamp()
        name = f"{item.path}:{item.offset}:{data.fps}" if item.offset is not None else f"{item.path}:{data.fps}"
        noted = cache.file(name, stamp)
        if noted is not None:
            return noted
        clip = read_clip(item, data.fps)
        frames, height, width, _ = clip.frames.shape
        facts = {"sha256": item.digest(), "width": width, "height": height, "frames": frames}
    except OSError as error:
        raise MediaError(f"{item.name!r} cannot be read: {(error.strerror or 'refused').lower()}") from error
    cache.note_file(name, stamp, facts)
    return facts


def _encode_texts(
    todo: Sequence[str], keys: dict[str, str], model: LoadedModel, cache: Cache, tell: Tell, field: str
) -> None:
    if not todo:
        return
    parts = model.components
    with parts.use_text_encoder() as encoder:
        for number, text in enumerate(todo):
            tell("encoding captions", number, len(todo))
            features, notices = encode_text(encoder, parts.tokenizer, text, what="a caption")
            if notices:
                raise RequestError(f"{notices[0]} (in {text[:60]!r}); shorten it", field=field)
            cache.put(keys[text], {"context": features[0]})
    cache.flush()
    parts.residency.release("text_encoder")


def _encode_clips(
    todo: Sequence[tuple[Example, Item]], data: DataConfig, model: LoadedModel, cache: Cache, tell: Tell
) -> None:
    if not todo:
        return
    parts = model.components
    sees = parts.dit.image_dim is not None
    for number, (example, item) in enumerate(todo):
        tell("encoding clips", number, len(todo))
        pixels = pixels_of(read_clip(item, data.fps), example.bucket)
        row = encode_clip(model, pixels)
        if sees:
            row |= encode_first_frame(model, pixels)
        if not all(bool(torch.isfinite(value).all()) for value in row.values()):
            raise NumericalError(f"encoding {item.name!r} gave NaN or infinity; the autoencoder's weights are damaged")
        cache.put(example.clip, row)
    cache.flush()
    for name in ("vae", "image_encoder") if sees else ("vae",):
        parts.residency.release(name)


@torch.no_grad()
def encode_clip(model: LoadedModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """``latents [16, t, h, w]`` float32 of ``pixels [3, T, H, W]`` in [-1, 1]."""
    with model.components.use_vae() as vae:
        return {"latents": vae.encode(pixels[None].to(vae.device), chunk=1)[0].float()}


@torch.no_grad()
def encode_first_frame(model: LoadedModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What image-to-video is given of a clip ``[3, T, H, W]``: ``condition [20, t, h, w]`` and ``image [m, D]``."""
    frames, height, width = pixels.shape[1:]
    first = pixels[:, 0]
    with model.components.use_vae() as vae:
        condition = image_condition(vae, first, num_frames=frames, width=width, height=height)
    with model.components.use_image_encoder() as eye:
        tokens = encode_images(eye, (first,))
    return {"condition": condition[0].float(), "image": tokens[0].float()}
