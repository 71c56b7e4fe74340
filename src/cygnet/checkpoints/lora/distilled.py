"""The LoRAs that teach a published model to sample in few steps: which belongs to which model, and where it is.

How such a model is sampled (solver, steps, shift, guidance) is a recipe of :mod:`cygnet.pipelines`; the name of one is
all that the two have in common. The files are those of the repositories that the published workflows name; no one of
them could be fetched where this was written, so that their names and places are as published and untried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cygnet.checkpoints.catalogue import default_cache, snapshots
from cygnet.checkpoints.discovery import find_models, model_folders
from cygnet.checkpoints.weight_file import printable
from cygnet.errors import ModelNotFoundError, RequestError


@dataclass(frozen=True, kw_only=True)
class DistilledLora:
    """A LoRA that makes ``models`` (names of the catalogue) fit for ``recipe``; ``patterns`` are names of its file."""

    recipe: str
    models: tuple[str, ...]
    patterns: tuple[str, ...]
    repo: str
    path: str
    """Of the file in the repository on the hub that is best known for it."""
    strength: float = 1.0
    """1: they were extracted from distilled models, which they restore at this strength."""


_KIJAI = "Kijai/WanVideo_comfy"

DISTILLED: tuple[DistilledLora, ...] = (
    DistilledLora(
        recipe="lightx2v",
        models=("t2v-14b",),
        patterns=(
            "lightx2v_T2V_14B_cfg_step_distill_*lora_rank*",
            "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank*",
        ),
        repo=_KIJAI,
        path="Lightx2v/lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors",
    ),
    DistilledLora(
        recipe="lightx2v",
        models=("i2v-14b-480p", "i2v-14b-720p"),
        patterns=(
            "lightx2v_I2V_14B_480p_cfg_step_distill_*rank*",
            "Wan21_I2V_14B_lightx2v_cfg_step_distill_lora_rank*",
        ),
        repo=_KIJAI,
        path="Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
    ),
    DistilledLora(
        recipe="self-forcing",
        models=("t2v-14b",),
        patterns=("Wan21_CausVid_14B_T2V_lora_rank*",),
        repo=_KIJAI,
        path="Wan21_CausVid_14B_T2V_lora_rank32.safetensors",
    ),
    DistilledLora(
        recipe="self-forcing",
        models=("t2v-1.3b",),
        patterns=("Wan21_CausVid_*T2V_1_3B_lora_rank*",),
        repo=_KIJAI,
        path="Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors",
    ),
)


def distilled_lora(
    recipe: str, model: str, places: Sequence[Path | str] = (), *, cache_folder: Path | None = None
) -> tuple[Path, float]:
    """The file and strength that sampling the named ``model`` by ``recipe`` needs; nothing is fetched.

    Looked into: the ``loras`` folders of :func:`~cygnet.checkpoints.discovery.model_folders`, with ``places`` first,
    and the shared download cache. Raises ``RequestError`` if none is known for the model, and ``ModelNotFoundError``
    with where to get it if it is not here.
    """
    known = [it for it in DISTILLED if it.recipe == recipe]
    chosen = next((it for it in known if model.lower() in it.models), None)
    if chosen is None:
        names = ", ".join(name for it in known for name in it.models) or "no model"
        raise RequestError(
            f"recipe {printable(recipe)!r} has a LoRA for {names}, and none for {printable(model)}; give weights that "
            "were distilled (--dit), or the LoRA (--lora)",
            field="recipe",
        )
    for found in find_models(model_folders(places), "loras"):
        if any(fnmatchcase(found.path.name.lower(), pattern.lower()) for pattern in chosen.patterns):
            return found.path, chosen.strength
    for snapshot in snapshots(cache_folder or default_cache(), chosen.repo):
        if (snapshot / chosen.path).is_file():
            return snapshot / chosen.path, chosen.strength
    raise ModelNotFoundError(
        f"the LoRA for {model} by recipe {recipe} is not on this machine; get {chosen.path} of the repository "
        f"{chosen.repo} on the Hugging Face hub and put it into a loras folder, or give it with --lora"
    )


def needs_lora(recipe: str | None, model: str | None) -> bool:
    """Whether sampling ``model`` by ``recipe`` takes one of these: a published model does, by the name of one here.

    Files may hold distilled weights themselves, and other models have no such LoRA.
    """
    return model is not None and any(it.recipe == recipe and model.lower() in it.models for it in DISTILLED)
